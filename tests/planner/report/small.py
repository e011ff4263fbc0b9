"""A tiny search whose answer every report test reads: 4 GPUs in 2 nodes, 2 layers, two hand-designed plans."""

from __future__ import annotations

from functools import cache

from planner.evaluate.setting import Setting, setting
from planner.problem import Problem, load_problem
from planner.search import Result, search


def tiny_problem(**changes) -> Problem:
    """The tiny problem with fields replaced."""
    mapping = {
        "schema": "planner.problem/1",
        "name": "tiny",
        "source": "a note",
        "model": {
            "name": "tiny-2l", "layers": 2, "hidden": 512, "norm_kind": "layer", "vocab": 0, "dtype": "bf16",
            "attention": {"heads": 4, "kv_heads": 4, "head_dim": 128, "causal": False, "rope": "none"},
            "ffn": {"kind": "dense", "hidden": 2048, "activation": "gelu"},
        },
        "workload": {"phase": "prefill", "batch": 16, "prompt": 256, "keep_kv_cache": False, "logits": "none"},
        "cluster": "2x2-h100",
        "space": {"replicas": 1, "attention": {"context_parts": 1, "batch_parts": 1}},
        "plans": {
            "grid": {
                "note": "two head groups, two segments, never summed",
                "stages": [{"layers": 2, "devices": [0, 1, 2, 3]}],
                "attention": {"head_groups": 2, "dimension_segments": 2, "score_reduce": False},
                "mlp": {"ways": 4},
            },
            "pipeline": {"stages": [{"layers": 1, "devices": [0]}, {"layers": 1, "devices": [1]}]},
        },
        "assumptions": ["bf16: nothing is stated"],
    }  # fmt: skip
    return load_problem({**mapping, **changes})


@cache
def tiny_result(objective: str = "latency") -> Result:
    """The answer of the tiny problem."""
    return search(tiny_problem(), objective=objective, top=2)


@cache
def infeasible_result() -> Result:
    """A model that fits on no GPU."""
    model = {
        "name": "wide", "layers": 1, "hidden": 65536, "vocab": 0, "dtype": "bf16",
        "attention": {"heads": 512, "kv_heads": 512, "head_dim": 128, "rope": "none"},
        "ffn": {"kind": "dense", "hidden": 524288},
    }  # fmt: skip
    return search(tiny_problem(model=model, plans={}, cluster="1x1-h100"), details=False)


def env_of(problem: Problem) -> Setting:
    """The setting that prices a problem."""
    return setting(problem.model, problem.workload, problem.cluster)
