"""`planner pareto`, and limits on the command line of it and of `search`."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

TINY = ("--model", "gpt2", "--workload", "prefill:batch=4,prompt=64", "--cluster", "1x2-h100", "--set", "model.layers=2")


def test_a_front_as_text_with_its_drawing(planner, tmp_path):
    file = tmp_path / "front.svg"
    code, out, _ = planner("pareto", *TINY, "--out", file)
    assert code == 0 and "all proven, complete" in out.splitlines()[0] and str(file) in out and "runtime_s" in out
    assert ElementTree.fromstring(file.read_text()).tag.endswith("svg")


def test_a_front_as_json_is_json_alone(planner, tmp_path):
    code, out, _ = planner("pareto", *TINY, "--objectives", "throughput, latency", "--json", "--out", tmp_path / "a.svg")
    told = json.loads(out)
    assert (code, told["schema"], told["objectives"]) == (0, "planner.pareto/1", ["throughput", "latency"])
    values = [point["values"]["throughput"] for point in told["points"]]
    assert values == sorted(values, reverse=True) and (tmp_path / "a.svg").exists()


def test_limits_bind_the_search(planner):
    code, out, _ = planner("search", *TINY, "--gpus-at-most", 1, "--json")
    told = json.loads(out)
    assert (code, told["status"], told["constraints"]["gpus_at_most"]) == (0, "optimal", 1)
    assert sum(len(stage["devices"]) for stage in told["plan"]["stages"]) * told["plan"]["replicas"] == 1
    free = json.loads(planner("search", *TINY, "--json")[1])
    assert free["constraints"] == {"max_latency_ms": None, "max_memory_gb": None, "gpus_at_most": None}
    assert "GPUs" in free["space"]["ties"]


@pytest.mark.parametrize("verb", ["search", "pareto"])
def test_a_limit_that_leaves_nothing_is_a_sound_no(planner, verb, tmp_path):
    code, out, _ = planner(verb, *TINY, "--max-latency-ms", 0.0001)
    assert code == 1 and "no plan is under 100 ns: the fastest takes" in out.splitlines()[0]
    code, out, _ = planner(verb, *TINY, "--max-memory-gb", 0.5, "--json")
    told = json.loads(out)
    assert (code, told["status"]) == (1, "infeasible") and "0.5 GB" in told["infeasibility"]["constraint"]
    if verb == "pareto":
        file = tmp_path / "none.svg"
        code, _, err = planner(verb, *TINY, "--max-memory-gb", 0.5, "--json", "--out", file)
        assert code == 1 and not file.exists() and "is not written" in err


def test_what_a_relaxation_names_can_be_asked_for(planner):
    _, out, _ = planner("search", *TINY, "--max-latency-ms", 0.0001, "--json")
    needed = json.loads(out)["infeasibility"]["relaxation"].split()[3]
    assert planner("search", *TINY, "--max-latency-ms", needed)[0] == 0


def test_no_time_for_a_front(planner):
    code, out, _ = planner("pareto", *TINY, "--time-limit", 1e-9)
    assert code == 3 and "before the time limit" in out


@pytest.mark.parametrize("verb", ["search", "pareto"])
@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-latency-ms", v) for v in ("-1", "0", "nan", "inf", "soon")]
    + [("--max-memory-gb", v) for v in ("-1", "0", "nan")]
    + [("--gpus-at-most", v) for v in ("0", "-2", "1.5")]
    + [("--time-limit", v) for v in ("0", "nan")],
)
def test_limits_that_are_none(planner, verb, option, value):
    code, out, err = planner(verb, *TINY, f"{option}={value}")
    assert (code, out) == (2, "") and err.startswith("error: ") and option in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--objectives", "latency"), "objectives"),
        (("--objectives", "cost,cost"), "objectives"),
        (("--objectives", "latency,speed"), "speed"),
        (("--objectives", ""), "objectives"),
        (("--points", "1"), "points"),
        (("--points", "many"), "--points"),
        (("--out", "front.png"), "--out"),
        (("--out", "/nowhere/front.svg"), "--out"),
    ],
)
def test_what_pareto_refuses(planner, arguments, named):
    code, out, err = planner("pareto", *TINY, *arguments)
    assert (code, out) == (2, "") and named in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_front_needs_a_problem(planner):
    code, out, err = planner("pareto")
    assert (code, out) == (2, "") and "PROBLEM" in err
