"""Certificates: those of searches hold, those that were tampered with are refused, each for its reason."""

from __future__ import annotations

import ast
import copy
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from planner.certify.verify import verify
from planner.certify.write import certificate, write_certificate
from planner.errors import InputError
from planner.problem import load_problem
from planner.search import search
from planner.solve.answer import Limits
from planner.solve.objective import NAMES, Caps, Name
from tests.oracle_problems import MOST_PLANS, certifiable, random_case
from tests.planner.certify.tamper import SMALL, change, leaves, other_value, signed, written

FEW = 20
"""Plans drawn in a test that is not about them."""


def refusal(raw: dict, samples: int = FEW) -> str:
    """Why a certificate is refused; empty where it is not."""
    return verify(raw, samples=samples).reason


@pytest.mark.parametrize("objective", NAMES)
def test_the_certificate_of_a_search_holds(objective: Name) -> None:
    """Every check passes, and every branch is derived anew."""
    found = verify(written(objective))
    assert found.verified and found.whole, found.reason
    told = {check.name: check.detail for check in found.checks}
    assert "no plan is below its bound" in told["experts apart"] and "none is better" in told["samples"]
    assert told["CP model"].endswith("stages") or objective == "cost"


def test_what_is_written_is_the_same_bytes_every_time_and_reads_back(tmp_path: Path) -> None:
    """Two searches write one certificate; it needs nothing but itself."""
    one, two = (
        write_certificate(search(load_problem(SMALL), details=False), tmp_path / name).read_bytes() for name in ("a", "b")
    )
    assert one == two and planner.verify(tmp_path / "a", samples=FEW).verified
    assert planner.certificate(search(load_problem(SMALL), details=False)) == json.loads(one)


@pytest.mark.parametrize("caps", [Caps(latency_s=1.0), Caps(gpus=2), Caps(memory_bytes=4e9), Caps(dollars=1e-6)])
@pytest.mark.parametrize("objective", ["latency", "cost"])
def test_limits_are_part_of_what_is_proven(objective: Name, caps: Caps) -> None:
    """With a limit the certificate holds; where the limit costs something, the same without it is refused."""
    raw = certificate(search(load_problem(SMALL), objective=objective, limits=Limits(caps=caps), details=False))
    assert refusal(raw) == ""
    free = written(objective)
    if raw["objective"]["least"] != free["objective"]["least"]:
        assert refusal(signed({**copy.deepcopy(raw), "limits": free["limits"]}))


def test_a_problem_that_nothing_fits() -> None:
    """No plan is a claim as well: it holds, and not where a plan fits."""
    nothing = written("latency", 1e9)
    assert nothing["status"] == "infeasible" and nothing["plan"] is None
    found = verify(nothing, samples=FEW)
    assert found.verified and found.whole
    wrong = signed({**nothing, "limits": written()["limits"]})
    assert "though there is said to be none" in refusal(wrong)


def test_a_search_that_ran_out_of_time_claims_less() -> None:
    """The bound of a search that was stopped holds, with its gap."""
    stopped = search(load_problem("helix"), limits=Limits(seconds=1e-9), details=False)
    raw = certificate(stopped)
    assert raw["status"] in ("feasible", "timeout")
    assert verify(raw, samples=FEW).verified
    assert "optimal" in refusal(signed({**raw, "status": "optimal"})) or raw["plan"] is None


@pytest.mark.parametrize("factor", [0.5, 0.999_999, 1.000_001, 2.0])
def test_another_value_is_refused_though_every_number_agrees(factor: float) -> None:
    """A forger who changes value, bound and gap together still meets the price of the plan."""
    raw = written()
    for name in ("value", "bound", "least", "at_least"):
        raw["objective"][name] *= factor
    for branch in raw["branches"]:
        for part in ("pipelines", "experts_apart"):
            branch[part]["bound"] *= factor
    assert refusal(signed(raw)).startswith("plan: the plan is worth")


def test_a_removed_or_repeated_branch_is_refused() -> None:
    """The list must be that of the space."""
    raw = written()
    assert "is missing from the list" in refusal(signed({**raw, "branches": raw["branches"][1:]}))
    assert "listed twice" in refusal(signed({**raw, "branches": [*raw["branches"], raw["branches"][0]]}))
    alone = [{**branch, "experts_apart": None} for branch in raw["branches"]]
    assert "experts on GPUs of their own" in refusal(signed({**raw, "branches": alone}))


@pytest.mark.parametrize("part", ["pipelines", "experts_apart"])
def test_every_raised_bound_is_refused_where_a_plan_lies_below_it(part: str) -> None:
    """For each branch: a bound above its best plan is refused with that plan's worth."""
    for index, branch in enumerate(written()["branches"]):
        raw = written()
        raw["branches"][index][part]["bound"] = None  # there is no such plan, it says
        raw["branches"][index][part]["closed_by"] = "no option"
        told = refusal(signed(raw), 0)
        assert f"{branch['replicas']} replicas x {branch['micro_batches']} micro-batches" in told, told
        assert "though there is said to be none" in told


def test_wrong_terms_of_a_closed_form_are_refused() -> None:
    """Chain and work are derived again, and so is what they give."""
    raw = certificate(search(load_problem("helix"), details=False))
    at = next(i for i, branch in enumerate(raw["branches"]) if branch["pipelines"]["closed_by"] == "closed form")
    for name in ("chain_s", "work_s", "bound"):
        path = ("branches", at, "pipelines", name)
        wrong = change(raw, path, raw["branches"][at]["pipelines"][name] * 1.01)
        assert refusal(signed(wrong), 0).startswith("closed forms: "), name


def test_a_bound_of_the_cp_model_that_is_too_high_is_refused() -> None:
    """CP-SAT is asked again, and finds what lies below."""
    raw = written()
    assert raw["cp_model"] is not None
    raw["cp_model"]["bound_s"] *= 1.001
    assert refusal(signed(raw), 0).startswith("CP model: ")


def test_another_plan_is_refused() -> None:
    """A worse plan, a plan outside the space, a plan that is none, an open one."""
    raw, throughput = written(), written("throughput")
    assert throughput["plan"] != raw["plan"]
    assert refusal(signed({**raw, "plan": throughput["plan"]})).startswith("plan: ")
    open_plan = {**raw["plan"]}
    del open_plan["stages"]
    assert "leaves decisions open" in refusal(signed({**raw, "plan": open_plan}))
    assert "cannot be read" in refusal(signed(change(raw, ("plan", "stages", 0, "layers"), 99)))
    narrow = change(raw, ("problem", "space", "replicas"), [3 - raw["plan"]["replicas"]])
    assert refusal(signed(narrow)).startswith("problem: ")


def test_another_problem_is_refused() -> None:
    """What the names stand for is in the certificate, too."""
    raw = written()
    told = refusal(signed(change(raw, ("problem", "workload", "prompt"), 512)))
    assert told.startswith("problem: the model, cluster, workload or space")
    assert refusal(signed(change(raw, ("space", "size"), "12"))).startswith("problem: the space has")


def test_a_sample_that_beats_a_false_bound_is_shown() -> None:
    """The plans drawn are a check of their own: a bound far above every plan's worth falls to them."""
    from planner.certify.document import read_certificate
    from planner.certify.proof import Proof
    from planner.certify.refusal import RefusedError

    raw = written()
    raw["objective"]["at_least"] = 1e3
    with pytest.raises(RefusedError, match="a plan drawn at random is worth"):
        Proof(read_certificate(raw)).check_samples(50, 0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_no_single_change_goes_unseen(seed: int) -> None:
    """Any value of the file changed: refused, or no certificate at all."""
    rng, raw = random.Random(seed), written(random.Random(seed).choice(NAMES))
    path, value = rng.choice(list(leaves(raw)))
    wrong = change(raw, path, other_value(rng, value))
    try:
        found = verify(wrong, samples=0)
    except InputError:
        return
    assert not found.verified and found.reason, path


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_change_of_a_claim_goes_unseen_though_it_is_signed(seed: int) -> None:
    """A number that the proof rests on, made to claim more and signed again: refused."""
    rng, raw = random.Random(seed), written(random.Random(seed).choice(NAMES))
    claims = [path for path, value in leaves(raw["objective"]) if isinstance(value, float)]
    path = ("objective", *rng.choice(claims))
    value = dict(leaves(raw))[path]
    wrong = signed(change(raw, path, value * rng.choice([0.5, 0.9, 1.1, 2.0]) if value > 1e-6 else value + 1e-3))
    assert refusal(wrong, 0), path


@pytest.mark.parametrize("seed", range(0, 200, 8))
def test_certificates_of_random_problems_hold(seed: int) -> None:
    """Over every decision, the objectives in turn."""
    problem = random_case(seed)
    if certifiable(problem) and problem.space.size() <= MOST_PLANS:
        raw = certificate(search(problem, objective=NAMES[seed // 8 % len(NAMES)], details=False))
        found = verify(raw, samples=FEW)
        assert found.verified and found.whole, found.reason


@pytest.mark.parametrize(
    "raw",
    [
        {}, {"schema": "planner.certificate/2"}, {"schema": "planner.result/1"},
        {"schema": "planner.certificate/1"}, {"schema": "planner.certificate/1", "digests": 3},
    ],
)  # fmt: skip
def test_what_is_no_certificate_is_wrong_input(raw: dict, tmp_path: Path) -> None:
    """A message, not a verdict."""
    file = tmp_path / "c.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(InputError):
        verify(file)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("problem", "cluster"), "99999x8-h100"), (("problem", "model"), "/etc/passwd.json"), (("branches",), [3]),
        (("problem", "workload", "batch"), 2**50), (("cp_model", "workers"), 10**6), (("extra",), 1), (("problem",), None),
    ],
)  # fmt: skip
def test_hostile_content_is_wrong_input(path: tuple[object, ...], value: object) -> None:
    """Sizes that nobody has, paths, and fields that no certificate has; signed, so that they are read."""
    with pytest.raises(InputError):
        verify(signed(change(written(), path, value)))


def test_a_problem_in_a_file_of_this_machine_cannot_be_certified(tmp_path: Path) -> None:
    """A certificate is whole: what only a file says is refused when it is written."""
    result = search(load_problem(SMALL), details=False)
    result.problem.raw["model"] = str(tmp_path / "model.json")
    with pytest.raises(InputError, match="what a certificate cannot"):
        certificate(result)


def test_a_cluster_read_from_a_file_is_certified_without_it(tmp_path: Path) -> None:
    """A kind of GPU that only the file names tells where it was read; that is no figure that a proof rests on."""
    file = tmp_path / "slow.yaml"
    file.write_text("""
schema: planner.cluster/1
name: one-slow-node
kinds: {slow: {like: h100, memory_tb_per_s: 1.675}}
nodes: [{kind: h100, gpus: 2}, {kind: slow, gpus: 2}]
network: {name: network, gb_per_s: 50, latency_us: 5.0, source: example}
""")
    raw = certificate(search(load_problem({**SMALL, "cluster": str(file)}), details=False))
    file.unlink()
    assert refusal(raw) == ""
    faster = change(raw, ("problem", "cluster", "kinds", "slow", "memory_tb_per_s"), 3.35)
    assert refusal(signed(faster)).startswith("problem: the model, cluster")


@pytest.mark.parametrize("loads", [[8, 4, 2, 1], [[8, 4, 2, 1], [1, 1, 1, 9], [2, 1, 9, 4], [3, 7, 1, 1]]])
def test_bounds_under_unequal_loads_are_those_of_every_placement(loads: list) -> None:
    """With one load for all layers and with one for each, and a placement for each: the verdict says what the bound is of."""
    work = {**SMALL["workload"], "expert_load": loads}
    raw = certificate(search(load_problem({**SMALL, "workload": work}), details=False))
    found = verify(raw, samples=FEW)
    assert found.verified and found.whole, found.reason
    told = {check.name: check.detail for check in found.checks}
    assert raw["space"]["placements"] == "any" and "of every placement of the experts" in told["problem"]
    for branch in raw["branches"]:
        branch["pipelines"]["bound"] = branch["experts_apart"]["bound"] = None
    assert "though there is said to be none" in refusal(signed(raw)) or "the closed form gives" in refusal(signed(raw))


def test_the_verifier_asks_the_solver_in_one_place() -> None:
    """Nothing of the search is imported but by the writer, and by the module that solves the CP model again."""
    folder = Path(planner.__file__).parent / "certify"
    for path in folder.glob("*.py"):
        names = {n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        solver = {name for name in names if name.startswith(("planner.solve", "planner.search"))}
        assert not solver or path.name in ("write.py", "model.py"), (path.name, solver)
