"""Every kind of claim: one that holds, one that is wrong, and what is needed where nothing can be derived."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings

from planner.check.claims import Subject, claim_findings, claims_of, judge
from planner.check.claims.claim import KINDS
from planner.check.claims.quantities import QUANTITIES
from planner.cli import main
from planner.errors import InputError
from tests.planner.check.claims.claims import chosen, subject, verdict
from tests.planner.plans import Case, cases

HELIX, TWO, MA, BASE, EP = (
    "helix:m4n4", "helix_two_stage:tp8_pp2", "ma_separation:ma_12_4", "ma_separation:baseline_tp8_pp2", "cross_node_ep:ep16",
)  # fmt: skip
SIXTEEN = {"stages": [{"layers": 2, "devices": list(range(16))}], "attention": {"head_groups": 16, "dimension_segments": 1}}
MAX = "max(Get_Time(10240000, 8192, 2048, op=up_proj), Get_Time(10240000, 2048, 8192, op=down_proj))"

JUDGED = [
    (HELIX, {"kind": "term", "operator": "qkv", "claim": "3 x Get_Time(10240000, 8192, 512)"}, "holds", 1, ""),
    (HELIX, {"kind": "term", "operator": "q_proj", "claim": "Get_Time(tokens, 8192, 512)", "where": {"tokens": "unstated"}},
     "not_derivable", None, ""),
    (TWO, {"kind": "term", "operator": "attention", "claim": "2 x Get_Time(10240000, 10240000, 1024)"}, "wrong", 1024,
     "batch as one sequence"),
    (HELIX, {"kind": "term", "operator": "none", "claim": "Get_Time(1, 2, 3)"}, "wrong", None,
     "operator that the plan does not have"),
    (HELIX, {"kind": "term", "operator": "router", "claim": "Get_Time(1, 2, 3)"}, "wrong", None,
     "operator that the plan does not have"),
    (MA, {"kind": "term", "operator": "qkv", "gpus": "8-11", "claim": "3 x Get_Time(2097152, 4096, 256)"}, "holds", 1, ""),
    (MA, {"kind": "term", "operator": "qkv", "gpus": "0-11", "claim": "3 x Get_Time(2097152, 4096, 256)"}, "wrong", 2 / 3,
     "unexplained"),
    (HELIX, {"kind": "shape", "operator": "q_proj", "claim": "[batch_size, seq_len, 8192] x [8192, 512] -> [10240000, 512]"},
     "holds", 1, ""),
    (HELIX, {"kind": "shape", "operator": "q_proj", "claim": "[10240000, 8192] x [512, 8192]"}, "wrong", None,
     "shapes do not fit"),
    (HELIX, {"kind": "shape", "operator": "q_proj", "claim": "[10240000, 8192] x [8192, 512] -> [10240000, 8192]"}, "wrong",
     None, "shapes do not fit"),
    (HELIX, {"kind": "flops", "operator": "q_proj", "claim": 85.9e12}, "holds", 1, ""),
    (HELIX, {"kind": "flops", "operator": "q_proj", "claim": 42.9e12}, "wrong", 0.5, "MACs called FLOPs"),
    (HELIX, {"kind": "flops", "operator": "q_proj", "claim": 85.9e12, "working": "2 x 3"}, "wrong", 1, "arithmetic"),
    (HELIX, {"kind": "arithmetic", "working": "4 x 4", "claim": 16}, "holds", 1, ""),
    (HELIX, {"kind": "arithmetic", "working": "4 x 4", "claim": 32}, "wrong", 2, "arithmetic"),
    (HELIX, {"kind": "model", "of": "layers", "claim": 2}, "holds", 1, ""),
    (EP, {"kind": "model", "of": "total_experts", "claim": 64}, "wrong", 4, "counts that do not add up"),
    (HELIX, {"kind": "count", "of": "partitions", "claim": 16}, "holds", 1, ""),
    (EP, {"kind": "count", "of": "tokens_per_expert", "claim": 640000}, "wrong", 0.5, "top-k left out"),
    (HELIX, {"kind": "count", "of": "tokens_per_expert", "claim": 640000}, "not_derivable", None, ""),
    (MA, {"kind": "count", "of": "heads_per_gpu", "claim": 3}, "wrong", None, "wrong count"),
    (HELIX, {"kind": "structure", "of": "acyclic", "claim": True}, "holds", None, ""),
    (HELIX, {"kind": "structure", "of": "acyclic", "claim": False}, "wrong", None, "wrong structure"),
    (HELIX, {"kind": "structure", "of": "at_once", "operator": ["up_proj", "down_proj"], "claim": True}, "wrong", None,
     "operators of one GPU called simultaneous"),
    (MA, {"kind": "structure", "of": "at_once", "operator": ["o_proj", "expert_up_proj"], "claim": True}, "holds", None, ""),
    (HELIX, {"kind": "bytes", "of": "weights_per_gpu", "claim": 201_424_896, "tolerance": 0.01}, "holds", 1, ""),
    (MA, {"kind": "percentage", "of": "latency_reduction", "claim": 34.2, "against": "baseline_tp8_pp2"}, "wrong", None,
     "gain is a loss"),
    (MA, {"kind": "percentage", "of": "latency_reduction", "claim": 34.2}, "not_derivable", None, ""),
    (MA, {"kind": "percentage", "of": "launch_overhead_reduction", "claim": 15}, "not_derivable", None, ""),
    (TWO, {"kind": "percentage", "of": "throughput_gain", "claim": [1.0, 2.0], "against": {**SIXTEEN, "mlp": {"ways": 16}}},
     "holds", None, ""),
    (MA, {"kind": "comparison", "of": "latency", "claim": "more", "against": "baseline_tp8_pp2"}, "holds", None, ""),
    (MA, {"kind": "comparison", "of": "latency", "claim": "less", "against": "baseline_tp8_pp2"}, "wrong", None,
     "conclusion not borne out"),
    (HELIX, {"kind": "total", "scope": "layer", "operator": ["up_proj", "down_proj"], "claim": MAX}, "wrong", 0.5,
     "max() of dependent operators"),
    (HELIX, {"kind": "total", "scope": "layer", "operator": ["up_proj", "down_proj"], "claim": MAX.replace("max", "")
             .replace("), Get", ") + Get")}, "holds", 1, ""),
    (HELIX, {"kind": "total", "scope": "layer", "claim": "Get_Time(10240000, 8192, 2048, op=up_proj)"}, "wrong", None,
     "operator left out"),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "fields", "expected", "factor", "mistake"), JUDGED)
def test_verdict(plan, fields, expected, factor, mistake):
    found = verdict(plan, **fields)
    assert found.verdict == expected
    assert factor is None or found.factor == pytest.approx(factor, rel=0.01)
    assert (mistake in found.mistakes) if mistake else found.mistakes == ()
    assert found.reason and found.claimed and found.derived
    assert expected != "not_derivable" or "needs" in found.reason


def test_every_kind_is_judged_here():
    assert {fields["kind"] for _, fields, *_ in JUDGED} == set(KINDS)


@pytest.mark.parametrize("plan", [HELIX, TWO, MA, BASE, EP])
@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_is_derived_or_says_what_it_needs(plan, name):
    quantity = QUANTITIES[name]
    operator = ["q_proj", "o_proj"] if name in ("at_once", "in_order") else "q_proj"
    found = verdict(plan, kind=quantity.kind, of=name, operator=operator, claim="nothing")
    assert found.verdict in ("wrong", "not_derivable")
    assert found.derived != "-" or "needs" in found.reason


def test_collectives_left_out_of_a_total_are_told_with_their_share():
    whole = written_total(subject(EP))
    assert verdict(EP, kind="total", claim=f"{whole} + AllToAll(1)").verdict == "holds"
    found = verdict(EP, kind="total", claim=whole)
    assert found.mistakes == ("collectives left out",) and found.factor == pytest.approx(1)
    assert "18." in found.reason


def written_total(plan: Subject) -> str:
    """The work of all layers as an expression, written from the graph."""
    found = []
    for operator in plan.needed("layers"):
        work = plan.slowest((operator,))
        assert work is not None
        p = work.product
        found.append(f"{p.count * sum(plan.layers.values())!r} x Get_Time({p.rows!r}, {p.k!r}, {p.n!r}, op={operator})")
    return " + ".join(found)


@pytest.mark.parametrize("plan", [HELIX, TWO, BASE, EP, "layer_wise:one_layer_per_gpu", "cross_node_ep:baseline_tp8_pp2"])
def test_a_total_written_from_the_graph_holds(plan):
    found = verdict(plan, kind="total", claim=f"{written_total(subject(plan))} + AllReduce(1)")
    assert (found.verdict, found.mistakes) == ("holds", ())
    assert found.seconds is not None and found.seconds > 0


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_term_written_from_the_graph_holds(case: Case):
    """Every product of every GPU of any plan, claimed as it stands in the graph."""
    plan = Subject(case.env, case.sizes, case.choice, "plan")
    claims = []
    for operator in plan.needed("model"):
        for work in plan.works((operator,)):
            p = work.product
            claims.append({
                "id": f"{operator} {work.gpu}", "text": "ours", "kind": "term", "operator": operator, "gpus": work.gpu,
                "claim": f"{p.count!r} x Get_Time({p.rows!r}, {p.k!r}, {p.n!r})",
            })  # fmt: skip
    for judgement in judge(plan, claims_of(claims, "ours"), {}):
        assert (judgement.verdict, judgement.factor) == ("holds", pytest.approx(1)), judgement


def test_findings_warn_and_never_make_a_plan_invalid():
    wrong = verdict(HELIX, id="a", kind="model", of="layers", claim=3)
    right = verdict(HELIX, id="b", kind="model", of="layers", claim=2)
    found = claim_findings([wrong, right])
    assert [(f.code, f.severity) for f in found] == [("CLAIM001", "warning"), ("CLAIM003", "info")]
    assert "1 of 2 claims is wrong: a" in found[0].message
    assert claim_findings([]) == ()


def test_the_command_judges_a_file(tmp_path: Path, capsys):
    claims = [{"id": "heads", "text": "8 heads", "kind": "count", "of": "heads_per_gpu", "claim": 8}]
    path = tmp_path / "claims.yaml"
    path.write_text(
        yaml.safe_dump({"schema": "planner.claims/1", "problem": "helix_two_stage", "plan": "tp8_pp2", "claims": claims})
    )
    assert main(["validate", TWO, "--no-run", "--claims", str(path)]) == 0
    assert "claims: 1 hold, 0 are wrong" in capsys.readouterr().out
    assert main(["validate", TWO, "--no-run", "--json", "--claims", str(path)]) == 0
    assert '"verdict": "holds"' in capsys.readouterr().out
    for other in (HELIX, "helix_two_stage"):
        assert main(["validate", other, "--no-run", "--claims", str(path)]) == 2
        assert str(path) in capsys.readouterr().err
    assert main(["validate", TWO, "--no-run", "--claims", str(tmp_path / "none.yaml")]) == 2


def test_an_unknown_rival_is_refused():
    with pytest.raises(InputError, match="against"):
        verdict(MA, kind="comparison", of="latency", claim="less", against="best")
    assert chosen(MA).name == "ma_12_4"
