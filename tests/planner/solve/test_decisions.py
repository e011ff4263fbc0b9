"""The table of decisions agrees with the answer: the best plan's own values have the best plan's objective."""

from __future__ import annotations

from dataclasses import replace

from planner.evaluate.setting import setting
from planner.problem import load_problem
from planner.solve.decisions import decision_tables, runner_up
from planner.solve.optimum import SpaceSearch

SMALL = {
    "name": "small", "layers": 4, "hidden": 1024, "attention": {"heads": 8, "kv_heads": 4}, "ffn": {"hidden": 4096},
    "vocab": 1000, "dtype": "bf16",
}  # fmt: skip


def test_a_plan_that_was_improved_after_the_search_has_its_value_in_every_row_of_its_own() -> None:
    """As where experts are placed anew for the tokens of the best plan: the search itself does not know that value."""
    problem = load_problem(model=SMALL, cluster="1x4-h100", workload="prefill:batch=4,prompt=256")
    search = SpaceSearch(setting(problem.model, problem.workload, problem.cluster), problem.space)
    found = search.run()
    better = replace(found, value=0.99 * found.value)
    assert better.choice is not None
    tables = decision_tables(search, better)
    rows = {decision.name: {row.value: row.objective for row in decision.values} for decision in tables}
    own = {
        "replicas": better.choice.replicas, "micro_batches": better.choice.micro_batches, "stages": len(better.choice.stages),
        "attention.batch_parts": better.choice.stages[0].attention.batch_parts, "mlp.ways": better.choice.stages[0].mlp_ways,
    }  # fmt: skip
    assert {name: rows[name][str(value)] for name, value in own.items()} == dict.fromkeys(own, better.value)
    second = runner_up(tables, better.value, 2.0)
    assert second is not None
    assert second.value != str(own.get(second.decision))
    assert second.objective > found.value * (1 - 1e-9)
