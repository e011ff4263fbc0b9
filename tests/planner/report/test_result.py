from dataclasses import replace

import pytest

from planner.check.findings import Finding
from planner.evaluate.evaluation import evaluate
from planner.report import evaluation_report, findings_report, markdown_report, search_report
from planner.report.evaluation import path_blocks
from planner.report.show import objective_value, seconds
from planner.search import search
from planner.solve.answer import Limits
from planner.solve.objective import TIE_RULE, Caps
from tests.planner.report.small import env_of, infeasible_result, tiny_problem, tiny_result


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("report", [search_report, markdown_report])
def test_the_answer_is_told_with_its_proof(report):
    result = tiny_result()
    text = flat(report(result))
    assert f"tiny: {objective_value('latency', result.value)}, optimal (bound" in text
    assert "of 4 GPUs" in text and "fitted" in text and "all 4 heads" in text
    assert f"{int(result.space_size):,} plans in the space" in text
    for rule in result.problem.restrictions:
        assert rule.split(":")[0] in text
    assert "bf16: nothing is stated" in text


@pytest.mark.parametrize("report", [search_report, markdown_report])
def test_hand_designed_plans_are_judged(report):
    result = tiny_result()
    text = flat(report(result))
    grid, pipeline = result.hand_designed
    assert f"{grid.ratio_to_best:.3f}" in text and f"{pipeline.ratio_to_best:.3f}" in text
    assert "NUM001 (error)" in text and "not summed before the softmax" in text
    assert "two head groups, two segments, never summed" in text


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost"])
def test_units_follow_the_objective(objective):
    result = tiny_result(objective)
    unit = {"latency": " us", "throughput": " tokens/s", "cost": " US dollars"}[objective]
    first = search_report(result).splitlines()[0]
    assert unit in first
    assert f"{objective_value(objective, result.value)} (best)" in flat(search_report(result))


def test_the_command_that_draws_names_the_problem():
    assert "planner dag 'my problems/tiny.yaml' --view model --as svg -o tiny.svg" in search_report(
        tiny_result(), "my problems/tiny.yaml"
    )


def test_the_report_shows_the_matmul_table_and_the_path():
    result = tiny_result()
    text = flat(markdown_report(result))
    assert "Matrix products of the longest path" in text and "4,096" in text and "scores Q x K^T" in text
    assert "attention_norm -> " in text and result.evaluation.expression.split(" + ")[0] in text
    assert "Memory of each GPU" in text and "reserve" in text and "## Sources" in markdown_report(result)


def test_an_infeasible_problem_says_what_would_help():
    for report in (search_report, markdown_report):
        text = flat(report(infeasible_result()))
        assert "infeasible" in text and "memory of a GPU" in text and "GB more" in text and "would then reach" in text


def test_an_evaluation_is_told():
    problem, choice = tiny_problem(), tiny_result().choice
    text = flat(evaluation_report(evaluate(env_of(problem), problem.sizes, choice), choice, problem))
    assert "fits in memory" in text and "GET_TIME EXPRESSION" in text and "Get_Time(" in text and "tokens/s" in text


def test_a_plan_that_does_not_fit_says_by_how_much():
    problem, choice = tiny_problem(), tiny_result().choice
    found = replace(evaluate(env_of(problem), problem.sizes, choice), over_capacity_bytes=12_340_000_000)
    assert "does NOT fit: 12.34 GB over" in flat(evaluation_report(found, choice, problem))


def test_findings_are_listed_errors_first():
    found = [
        Finding("STRUCT003", "info", "stages", "ranks 2-3 stay idle"),
        Finding("MEM001", "error", "stages[0]", "too full", 91.5, 80, "use more micro-batches"),
    ]
    text = findings_report(found)
    assert text.startswith("invalid: 1 error, 1 other finding") and text.index("MEM001") < text.index("STRUCT003")
    assert "91.5" in text and "use more" in text
    assert findings_report([]).startswith("valid: 0 errors")


def test_reports_are_the_same_every_time():
    tiny_result.cache_clear()
    first = tiny_result()
    tiny_result.cache_clear()
    second = tiny_result()
    assert first is not second
    assert search_report(first) == search_report(second) and markdown_report(first) == markdown_report(second)


def test_a_hostile_name_steers_neither_terminal_nor_markdown():
    problem = replace(tiny_result().problem, name="\x1b[2J<img src=x>|`rm`\n# x", assumptions=("\x1b]0;title\x07 <b>",))
    result = replace(tiny_result(), problem=problem)
    assert "\x1b" not in search_report(result) and "\x07" not in search_report(result)
    markdown = markdown_report(result)
    assert "\x1b" not in markdown and "<img" not in markdown.replace("\\<img", "") and "\n# x" not in markdown


def test_limits_and_the_rule_for_ties_are_told():
    caps = Caps(latency_s=tiny_result().value * 1.2, gpus=tiny_result().evaluation.devices[-1].rank + 1)
    result = search(tiny_problem(), limits=Limits(caps=caps))
    text = flat(search_report(result))
    assert result.status == "optimal" and f"At most: latency {seconds(caps.latency_s)}" in text
    assert f"Ties: {TIE_RULE}." in text and result.to_dict()["space"]["ties"] == TIE_RULE
    grid = result.hand_designed[0]
    assert grid.as_written.choice is not None, "what its author wrote is read without the limits"
    if grid.best_completion.choice is None:
        assert "no completion meets the limits" in text


def test_what_no_limit_allows_is_the_headline():
    result = search(tiny_problem(), limits=Limits(caps=Caps(latency_s=1e-6)))
    assert search_report(result).splitlines()[0].startswith("tiny: infeasible: no plan is under 1 us: the fastest takes")
    assert result.infeasibility.then_latency_s == pytest.approx(tiny_result().value, rel=1e-9)


def test_an_interrupt_before_a_plan_is_not_called_a_time_limit():
    none = replace(infeasible_result(), status="timeout", infeasibility=None)
    assert search_report(none).startswith("tiny: no plan found before the time limit")
    assert search_report(replace(none, interrupted=True)).startswith("tiny: interrupted before a plan was found")


def test_what_follows_itself_on_the_longest_path_is_one_line():
    """The micro-batches of a single stage: the first, and the others."""
    result = tiny_result()
    found = evaluate(env_of(result.problem), result.problem.sizes, replace(result.choice, micro_batches=4))
    assert {item.count for item in found.critical_path} == {2, 6}
    _, bullets = path_blocks(found)
    (told,) = bullets.items
    assert told.startswith("layers 0-1 on GPUs 0, 8 times: attention_norm -> ")
    assert told.endswith(f" = {seconds(found.latency_s)}")
