"""`--gemm-table` and `--comm-table`: measured times lay over the prices of every verb, and go with what is stored."""

from __future__ import annotations

import json

import pytest

TINY = ("--model", "gpt2", "--workload", "prefill:batch=4,prompt=64", "--cluster", "1x2-h100", "--set", "model.layers=2")
TABLE = """op,m,k,n,dtype,ranks,bytes,time_us,gpu,torch
gemm,1,1,1,bf16,,,1000,slow,2.0
gemm,100000,100000,100000,bf16,,,2000,slow,2.0
all_reduce,,,,,2,1,5000,slow,2.0
all_reduce,,,,,2,10000000,6000,slow,2.0
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "slow.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def products(evaluation: dict) -> list[dict]:
    return [item for item in evaluation["critical_path"] if item["term"].startswith("Get_Time")]


def test_a_search_is_priced_by_the_table_and_its_result_stays_so(planner, table, tmp_path):
    code, out, _ = planner("search", *TINY, "--gemm-table", table, "--out", tmp_path / "runs", "--json")
    found = json.loads(out)
    assert (code, found["status"]) == (0, "optimal")
    paths = products(found["evaluation"])
    assert paths and {item["source"] for item in paths} == {"measured"}
    assert all(item["seconds"] / item["count"] >= 1e-3 for item in paths)
    table.unlink()  # what was stored holds the rows
    result = next((tmp_path / "runs").rglob("result.json"))
    code, out, _ = planner("evaluate", result, "--json")
    again = json.loads(out)
    assert code == 0 and again["latency_s"] == pytest.approx(found["evaluation"]["latency_s"], rel=1e-9)
    assert {item["source"] for item in products(again)} == {"measured"}


def test_a_certificate_of_a_table_is_checked_without_the_file(planner, table, tmp_path):
    proof = tmp_path / "proof.json"
    code, _, _ = planner("search", *TINY, "--gemm-table", table, "--comm-table", table, "--certificate", proof)
    assert code == 0
    table.unlink()
    code, out, _ = planner("verify", proof)
    assert code == 0, out


def test_measured_collectives_change_the_plan_that_is_best(planner, table):
    pinned = (*TINY, "--set", "plan.replicas=1", "--json")
    ways = []
    for extra in ((), ("--comm-table", table)):
        code, out, _ = planner("search", *pinned, *extra)
        found = json.loads(out)
        assert code == 0
        ways.append({item["source"] for item in found["evaluation"]["critical_path"] if "AllReduce" in item["term"]})
    assert "measured" not in ways[0] and "fitted" not in ways[1]  # 5 ms a collective: it is avoided, or measured


@pytest.mark.parametrize("verb", [("evaluate",), ("validate", "--no-run"), ("compare",), ("explain", "--time-limit", "1")])
def test_every_verb_about_plans_takes_tables(planner, table, tmp_path, verb):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "problem: {model: gpt2, workload: 'prefill:batch=4,prompt=64', cluster: 1x2-h100, name: tiny}\n"
        "stages: [{layers: 12, devices: [0, 1]}]\nmicro_batches: 1\n",
        encoding="utf-8",
    )
    plans = (plan, plan) if verb[0] == "compare" else (plan,)
    code, out, err = planner(verb[0], *plans, *verb[1:], "--gemm-table", table, "--json")
    assert code in (0, 1), err
    told = json.loads(out)
    latency = told["latency_s"] if verb[0] == "evaluate" else None
    assert latency is None or latency > 12 * 4e-3  # four products a layer, a millisecond each


def test_a_mixed_cluster_has_a_table_by_kind(planner, table):
    mixed = ("--model", "gpt2", "--workload", "prefill:batch=4,prompt=64", "--cluster", "1x1-h100+1x1-a100-80gb")
    code, _, err = planner("search", *mixed, "--set", "model.layers=2", "--gemm-table", table)
    assert code == 2 and "a table by GPU kind: h100, a100-80gb" in err
    code, out, err = planner("search", *mixed, "--set", "model.layers=2", "--gemm-table", f"a100-80gb={table}", "--json")
    assert code == 0, err
    assert {item["source"] for item in products(json.loads(out)["evaluation"])} == {"fitted"}  # the H100 is faster now


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cluster.gemm_table is"),
        ("m,k,n,dtype,time_us\n1,1,1,bf16,fast\n", "slow.csv:2: time_us is 'fast'"),
        ("op,ranks,bytes,time_us\nall_reduce,2,8,1\n", "a table with rows of products or attention"),
    ],
)
def test_a_bad_table_ends_with_two_and_names_the_place(planner, table, text, said):
    table.unlink() if text is None else table.write_text(text, encoding="utf-8")
    code, _, err = planner("search", *TINY, "--gemm-table", table)
    assert code == 2 and said in err.replace("\n", " ")
    assert "Traceback" not in err


def test_tables_of_a_package_that_is_not_installed_say_how_to_get_it(planner):
    from importlib.util import find_spec

    if find_spec("aiconfigurator_core"):
        pytest.skip("aiconfigurator-core is installed")
    code, _, err = planner("search", *TINY, "--gemm-table", "silicon")
    assert code == 2 and "pip install 'parallelism-planner[silicon]'" in err
