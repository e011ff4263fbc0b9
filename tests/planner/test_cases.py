"""Cases people bring: heads that do not divide, layers that do not divide, a slow GPU, memory that nothing fits.

The README lists them with what these problems come to. Loads of experts are tested in `tests/planner/solve/experts`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import pytest

from planner.certify.verify import verify
from planner.certify.write import certificate
from planner.check.validate import check_choice
from planner.evaluate.evaluation import evaluate
from planner.evaluate.setting import setting
from planner.problem import load_problem
from planner.search import Result, search
from search_spaces.stages import Choice
from tests.oracle import latency

DECODE = "decode:batch=64,context=8192"
PREFILL = "prefill:batch=16,prompt=4096"
THIRTY = {
    "name": "thirty-layers", "layers": 30, "hidden": 4096, "attention": {"heads": 32, "kv_heads": 8, "head_dim": 128},
    "ffn": {"hidden": 14336}, "vocab": 128256, "dtype": "bf16",
}  # fmt: skip


def solved(model: object, cluster: object, workload: object, **space: object) -> Result:
    """The proven answer, whose plan is sound and whose value is its graph's."""
    found = search(load_problem(model=model, cluster=cluster, workload=workload, space=space or None), details=False)  # type: ignore[arg-type]
    assert found.status == "optimal", found.status
    problem, choice = found.problem, plan(found)
    env = setting(problem.model, problem.workload, problem.cluster)
    assert not [f for f in check_choice(env, problem.sizes, choice) if f.severity == "error"]
    assert evaluate(env, problem.sizes, choice).latency_s == pytest.approx(value(found), rel=1e-9)
    return found


@lru_cache(maxsize=16)
def open_answer(model: str, cluster: str, workload: str) -> Result:
    """The answer with every decision open."""
    return solved(model, cluster, workload)


def plan(found: Result) -> Choice:
    assert found.choice is not None
    return found.choice


def value(found: Result) -> float:
    assert found.value is not None
    return found.value


def shape(found: Result) -> list[tuple[int, int]]:
    """(layers, GPUs) of every stage."""
    return [(stage.layers, len(stage.devices)) for stage in plan(found).stages]


@pytest.mark.parametrize("workload", [DECODE, PREFILL])
def test_28_heads_with_4_kv_heads_on_8_gpus(workload: str) -> None:
    """Eight head groups: even groups cut KV groups and read two KV heads where one does; other grids are better still."""
    best = open_answer("qwen2.5-7b", "1x8-h100", workload)
    split = {"replicas": 1, "stages": 1, "use_all": True, "micro_batches": 1}
    even, aligned = (
        solved("qwen2.5-7b", "1x8-h100", workload, **split, attention={"heads_per_group": heads, "sequence_parallel": False})
        for heads in ([4, 4, 4, 4, 3, 3, 3, 3], [4, 3] * 4)
    )
    assert value(best) < value(aligned) < value(even)


def test_a_70b_model_on_three_gpus_takes_whole_kv_groups() -> None:
    """24, 24 and 16 heads are three, three and two KV heads; the even 22, 21, 21 read four on one GPU."""
    best = open_answer("llama-3.1-70b", "1x3-h200", DECODE)
    (stage,) = plan(best).stages
    assert stage.attention.heads_per_group == (24, 24, 16)
    split = {"replicas": 1, "stages": 1, "use_all": True, "attention": {"heads_per_group": [22, 21, 21]}}
    assert value(best) < value(solved("llama-3.1-70b", "1x3-h200", DECODE, **split))
    assert verify(certificate(best)).verified


def test_a_70b_model_on_three_gpus_as_a_pipeline() -> None:
    """In prefill two GPUs take 52 layers and one 28, ahead of one stage on all three and of three stages of one."""
    best = open_answer("llama-3.1-70b", "1x3-h100", PREFILL)
    assert sum(layers for layers, _ in shape(best)) == 80
    assert sorted(gpus for _, gpus in shape(best)) == [1, 2]
    for count in (1, 3):
        assert value(best) < value(solved("llama-3.1-70b", "1x3-h100", PREFILL, stages=count))
    assert verify(certificate(best)).verified


def test_a_70b_model_on_seven_gpus() -> None:
    """Decode leaves a GPU idle (seven have no grid as good as six); prefill uses all seven in stages of different sizes."""
    token, prompt = (open_answer("llama-3.1-70b", "1x7-h100", workload) for workload in (DECODE, PREFILL))
    assert shape(token) == [(80, 6)]
    assert value(token) < value(solved("llama-3.1-70b", "1x7-h100", DECODE, use_all=True))
    layers, gpus = zip(*shape(prompt), strict=True)
    assert (sum(layers), sum(gpus)) == (80, 7)
    assert len(set(gpus)) > 1
    per_gpu = [count / width for count, width in shape(prompt)]
    assert max(per_gpu) / min(per_gpu) < 1.1
    assert value(prompt) < value(solved("llama-3.1-70b", "1x7-h100", PREFILL, stages=1))


class Alike(dict[tuple[object, ...], tuple[float, float]]):
    """Prices of stages by all but their first layer: here all layers are alike."""

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and super().__contains__((key[0], *key[2:]))

    def __getitem__(self, key: tuple[object, ...]) -> tuple[float, float]:
        return super().__getitem__((key[0], *key[2:]))

    def __setitem__(self, key: tuple[object, ...], found: tuple[float, float]) -> None:
        super().__setitem__((key[0], *key[2:]), found)


def test_thirty_layers_on_four_stages() -> None:
    """The best of all 3,654 ways; 8, 8, 7, 7 is not it, since the last stage also has the head."""
    best = solved(THIRTY, "1x4-h100", "prefill:batch=16,prompt=2048", stages=4, use_all=True, replicas=1, micro_batches=16)
    problem = best.problem
    env = setting(problem.model, problem.workload, problem.cluster)
    known = Alike()
    every = [latency(env, problem.space, choice, known) for choice in problem.space.choices()]
    assert len(every) == math.comb(29, 3)
    assert value(best) == pytest.approx(min(every), rel=1e-9)
    layers = [stage.layers for stage in plan(best).stages]
    assert sum(layers) == 30
    assert layers != [8, 8, 7, 7]
    assert layers[-1] < max(layers)


def one_slow(pace: float, gpus: int) -> dict[str, object]:
    """Two nodes of eight, the last `gpus` of the second at a part of an H100's pace."""
    rest = [{"kind": "h100", "gpus": 8 - gpus}] if gpus < 8 else []
    slow = {"kind": "slow", "gpus": gpus, "same_node": gpus < 8}
    kind = {"like": "h100", "memory_tb_per_s": 3.35 * pace, "peak_tflops": {"bf16": 989 * pace}}
    return {"name": "one-slow", "kinds": {"slow": kind}, "nodes": [{"kind": "h100", "gpus": 8}, *rest, slow]}


def test_one_slow_gpu_in_sixteen_is_left_out_of_decode() -> None:
    """At half pace 15 GPUs are faster than 16 whose second node waits for its slowest."""
    half = solved("llama-3.1-70b", one_slow(0.5, 1), DECODE)
    assert shape(half)[0][1] == 8
    gpus = half.problem.sizes.gpus or tuple(range(16))
    used = [gpus[rank] for stage in plan(half).stages for rank in stage.devices]
    assert 15 not in used and plan(half).replicas == 1
    assert value(half) < value(solved("llama-3.1-70b", one_slow(0.5, 8), DECODE))


def test_a_slow_gpu_gets_fewer_layers_where_it_helps() -> None:
    """A prompt at nine tenths of the pace: the slow GPU is a stage of its own, with fewer layers than its share."""
    found = solved("llama-3.1-70b", one_slow(0.9, 1), PREFILL)
    gpus = found.problem.sizes.gpus or tuple(range(16))
    (own,) = (stage for stage in plan(found).stages if 15 in [gpus[rank] for rank in stage.devices])
    assert len(own.devices) == 1
    assert own.layers < 80 / 16


def with_memory(gpus: int, memory_bytes: int) -> dict[str, object]:
    """H100s with another memory."""
    kind = {"like": "h100", "memory_mib": -(-memory_bytes // 2**20)}
    return {"name": "other-memory", "kinds": {"other": kind}, "nodes": [{"kind": "other", "gpus": gpus}]}


@pytest.mark.parametrize(("gpus", "workload"), [(1, DECODE), (3, DECODE), (1, PREFILL)])
def test_where_nothing_fits_the_change_that_is_named_fits_and_none_smaller(gpus: int, workload: str) -> None:
    asked = search(load_problem(model="llama-3.1-70b", cluster=f"1x{gpus}-h100", workload=workload), details=False)
    assert asked.status == "infeasible"
    assert asked.infeasibility is not None
    assert asked.infeasibility.constraint == "memory of a GPU"
    needed, unit = asked.infeasibility.relaxation.split()[:2]
    assert unit == "GB"
    found = solved("llama-3.1-70b", with_memory(gpus, int(needed) * 10**9), workload)
    assert value(found) == pytest.approx(asked.infeasibility.then_latency_s, rel=1e-9)
    less = load_problem(model="llama-3.1-70b", cluster=with_memory(gpus, (int(needed) - 1) * 10**9), workload=workload)
    assert search(less, details=False).status == "infeasible"


def test_on_a_mixed_cluster_every_gpu_gets_the_memory_that_is_named() -> None:
    """The reserve grows with the memory, so the bytes that are missing are not enough."""
    nodes = [{"kind": "h100", "gpus": 1}, {"kind": "a100-40gb", "gpus": 1}]
    asked = search(load_problem(model="llama-3.1-70b", cluster={"nodes": nodes}, workload=DECODE), details=False)
    assert asked.status == "infeasible"
    assert asked.infeasibility is not None
    assert asked.infeasibility.relaxation.endswith("GB more memory on each GPU")
    more = float(asked.infeasibility.relaxation.split()[0]) * 1e9

    def given(extra: float) -> str:
        kinds = {
            f"more-{name}": {"like": name, "memory_mib": math.ceil((kind.memory_bytes + extra) / 2**20)}
            for name, kind in asked.problem.cluster.kinds.items()
        }
        cluster = {"kinds": kinds, "nodes": [{**node, "kind": f"more-{node['kind']}"} for node in nodes]}
        return search(load_problem(model="llama-3.1-70b", cluster=cluster, workload=DECODE), details=False).status

    assert given(more) == "optimal"
    assert given(more - 1e9) == "infeasible"
