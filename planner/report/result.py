"""The answer of a search, for the terminal and as the Markdown report of a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from planner.evaluate.setting import setting
from planner.insight.serving import plan_serving
from planner.problem import Problem, library_names
from planner.report.comparison import hand_designed_blocks, unrestricted_text
from planner.report.decisions import decision_blocks
from planner.report.document import Block, Bullets, Code, Section, Text, table, to_markdown, to_text
from planner.report.evaluation import (
    busy_blocks,
    evaluation_headline,
    expression_blocks,
    matmul_blocks,
    memory_blocks,
    path_blocks,
    plan_blocks,
    time_blocks,
)
from planner.report.experts import expert_blocks
from planner.report.findings import findings_blocks
from planner.report.serving import serving_sections
from planner.report.show import count, difference, objective_value, plain, safe_name, seconds
from planner.report.words import plan_words
from planner.search import Result
from planner.solve.decisions import MOST_GPUS, enumerated
from planner.solve.objective import INF, Caps
from planner.solve.searcher import tie_rule
from planner.solve.training_decisions import MOST_FRAMES
from search_spaces.orders import in_ranges

HEADLINE = "{name}: {value}, {status} (bound {bound}, gap {gap:.2g}), {used} of {devices} GPUs"
INFEASIBLE = "{name}: infeasible: no plan of the space fits"
TIMEOUT = "{name}: no plan found before the time limit"
INTERRUPTED = "{name}: interrupted before a plan was found"
STATUS = {
    "optimal": "No plan of the space is better than the bound: it is proven, under the rules listed below.",
    "feasible": "The search stopped before the proof was complete: a better plan may exist, but none better than the bound.",
    "infeasible": "Every plan of the space was ruled out.",
    "timeout": "The search stopped before it found a plan.",
}
PLACED = (
    "Every plan with one of the expert placements that were found is ruled out or no better; the bound holds for any placement "
    "of the experts, so that no plan at all is below it."
)
FEWER_ORDERS = (
    "The search stopped before all orders of the GPUs were gone through: the bound holds for {some} of {all} of them, a better "
    "plan may exist in the others."
)
OBJECTIVES = {
    "latency": {
        "prefill": "latency of the whole batch",
        "decode": "latency of one output token",
        "training": "time of an optimizer step",
    },
    "throughput": {
        "prefill": "tokens per second of a steady stream of batches",
        "decode": "output tokens per second",
        "training": "tokens trained per second",
    },
    "cost": {
        "prefill": "price of the GPU time of the batch",
        "decode": "price of the GPU time of one step",
        "training": "price of the GPU time of an optimizer step",
    },
}
RULES = "The proof and the size of the space are relative to these rules:"
DRAW = "planner dag {ref} --view model --as svg -o {file}"


def search_report(result: Result, ref: str | None = None) -> str:
    """The answer for the terminal; `ref` is the problem as the reader wrote it, for the command at the end."""
    return to_text(headline(result), terminal_sections(result, ref))


def markdown_report(result: Result) -> str:
    """The report of a run folder: everything a reader may ask, without times or host facts."""
    return to_markdown(plain(result.problem.name), headline(result), markdown_sections(result))


def headline(result: Result) -> str:
    """Problem, objective, status, bound and GPUs in one line."""
    name, sizes = plain(result.problem.name), result.problem.sizes
    if result.choice is None and result.infeasibility is not None and not result.caps.none:
        return f"{name}: infeasible: {result.infeasibility.constraint}"
    if result.choice is None or result.value is None or result.bound is None:
        if result.interrupted and result.status == "timeout":
            return INTERRUPTED.format(name=name)
        return (TIMEOUT if result.status == "timeout" else INFEASIBLE).format(name=name)
    used = result.choice.replicas * sum(len(stage.devices) for stage in result.choice.stages)
    value, bound = (objective_value(result.objective, x) for x in (result.value, result.bound))
    text = HEADLINE.format(name=name, value=value, status=result.status, bound=bound, gap=result.gap or 0.0, used=used,
                           devices=sizes.devices)  # fmt: skip
    return text + (", interrupted" if result.interrupted else "")


def terminal_sections(result: Result, ref: str | None) -> Iterator[Section]:
    """Sections for the terminal."""
    problem = result.problem
    yield Section("Question", (Text(question(result)), Text(verdict(result))))
    if result.choice is None or result.evaluation is None:
        yield from _no_plan(result)
    else:
        yield Section("Best plan", (*plan_blocks(result.choice, problem, result.evaluation), *order_blocks(result)))
        time = (Text(evaluation_headline(result.evaluation, problem)), *time_blocks(result.evaluation, problem))
        yield Section("Where the time goes", (*time, *_rival(result)))
        yield from _serving(result)
        yield from _comparisons(result)
    yield Section("Search space", space_blocks(result))
    if problem.assumptions:
        yield Section("Assumptions of the problem", (Bullets(problem.assumptions),))
    if result.choice is not None:
        yield Section("Draw its operator graph", (Code(draw_command(problem, ref)),))


def markdown_sections(result: Result) -> Iterator[Section]:
    """Sections of the Markdown report."""
    problem, found = result.problem, result.evaluation
    yield Section("Question", (Text(question(result)), Text(verdict(result))))
    if result.choice is None or found is None:
        yield from _no_plan(result)
    else:
        plan = (*plan_blocks(result.choice, problem, found), *order_blocks(result))
        yield Section("Best plan", (*plan, Text(evaluation_headline(found, problem))))
        yield Section("Where the time goes", time_blocks(found, problem))
        yield from _serving(result)
        yield Section("Matrix products of the longest path", matmul_blocks(found))
        yield Section("Longest path", path_blocks(found))
        yield Section("Get_Time expression of the longest path", expression_blocks(found))
        yield Section("Memory of each GPU", memory_blocks(found))
        yield Section("Time of each GPU", busy_blocks(found))
        yield from _comparisons(result)
        for hand in result.hand_designed:
            if hand.findings:
                yield Section(f"Findings about {hand.name}", findings_blocks(hand.findings))
    yield Section("Search space", space_blocks(result))
    if problem.assumptions:
        yield Section("Assumptions of the problem", (Bullets(problem.assumptions),))
    yield Section("Sources", (source_table(problem),))


def order_blocks(result: Result) -> Iterator[Text]:
    """What the order of the GPUs is worth, where there is a choice."""
    if len(result.orders) < 2 or result.value is None:
        return
    listed, own = result.orders[0].value, in_ranges(result.problem.sizes.gpus)
    text = f"The order of the GPUs is the best of {len(result.orders)} that were searched"
    if not own:
        text += ": as the cluster lists them."
    elif listed is None:
        text += "; as the cluster lists them no plan fits."
    else:
        value = f"{objective_value(result.objective, listed)}, {difference(listed, result.value)}"
        text += f"; as the cluster lists them the best plan comes to {value}."
    yield Text(f"{text} What is told below of other plans holds for this order alone, but for plans that people designed.")


def _serving(result: Result) -> Iterator[Section]:
    """TTFT, TPOT, rates and capacity of the best plan."""
    problem = result.problem
    if result.choice is not None and result.evaluation is not None:
        env = setting(problem.model, problem.workload, problem.cluster)
        yield from serving_sections(plan_serving(env, result.choice, result.evaluation))


def _no_plan(result: Result) -> Iterator[Section]:
    why = result.infeasibility
    if why is None:
        return
    lines = [f"What rules every plan out: {why.constraint}.", f"Smallest change that would let a plan fit: {why.relaxation}."]
    if why.then_latency_s is not None:
        lines.append(f"The best plan would then reach {objective_value(result.objective, why.then_latency_s)}.")
    yield Section("Why there is no plan", (Bullets(tuple(lines)),))


def verdict(result: Result) -> str:
    """What the status means for this search."""
    every = len(result.problem.orders.gpus)
    if result.status == "feasible" and len(result.orders) < every:
        return FEWER_ORDERS.format(some=len(result.orders), all=every)
    if result.status == "feasible" and result.optimum.complete and result.experts:
        return PLACED
    return STATUS[result.status]


def _rival(result: Result) -> Iterator[Text]:
    """The closest other plan, where a measurement may turn both round."""
    other = result.runner_up
    if other is None or not other.within_interval or result.value is None:
        return
    best, value = objective_value(result.objective, result.value), objective_value(result.objective, other.objective)
    yield Text(
        f"The runner-up, with {other.decision} = {other.value}, comes to {value}, within the interval of the best plan's "
        f"{best}: measure both before you choose."
    )


def _comparisons(result: Result) -> Iterator[Section]:
    """Other plans beside the best one."""
    if result.experts:
        yield Section("Where the experts are", expert_blocks(result))
    if result.alternatives:
        rows = [
            (str(at), seconds(a.evaluation.latency_s), plan_words(a.choice, result.problem.sizes))
            for at, a in enumerate(result.alternatives, 2)
        ]
        yield Section("Next best plans", (table(("rank", "latency", "plan"), rows, ("rank", "latency"), wide=90),))
    if result.hand_designed:
        yield Section("Hand-designed plans", hand_designed_blocks(result))
    if result.unrestricted is not None:
        yield Section("With the number of replicas open", (Text(unrestricted_text(result)),))
    if result.decisions:
        yield Section("Every decision", decision_blocks(result))
    elif not enumerated(result.problem.space):
        yield Section("Every decision", (Text(f"Not enumerated on clusters of more than {MOST_GPUS} GPUs."),))
    elif result.problem.workload.phase == "training" and not result.problem.space.layout:
        yield Section("Every decision", (Text(f"Not enumerated for more than {MOST_FRAMES:,} frames, or out of time."),))


def question(result: Result) -> str:
    """What was asked: model, workload, cluster and objective."""
    problem = result.problem
    text = f"{workload_text(problem)} Objective: {OBJECTIVES[result.objective][problem.workload.phase]}."
    text += "" if result.caps.none else f" {limits_text(result.caps)}"
    return text + (f" Transcribed from {problem.source}." if problem.source else "")


def workload_text(problem: Problem) -> str:
    """Model, workload and cluster in one sentence."""
    work, model, cluster = problem.workload, problem.model, problem.cluster
    tokens = f"{work.prompt:,} tokens each" if work.phase != "decode" else f"{work.context:,} tokens of context each"
    return (
        f"{model.name} ({count(len(model.layers), 'layer')}, {model.parameters:,} parameters), {work.phase} of "
        f"{count(work.batch, 'sequence')} with {tokens}, on {cluster.name} ({count(cluster.size, 'GPU')})."
    )


def limits_text(caps: Caps) -> str:
    """What a plan may not exceed, in one sentence."""
    parts = [f"latency {seconds(caps.latency_s)}"] if caps.latency_s < INF else []
    parts += [f"{caps.memory_bytes / 1e9:g} GB on each GPU"] if caps.memory_bytes < INF else []
    parts += [count(int(caps.gpus), "GPU")] if caps.gpus < INF else []
    return f"At most: {', '.join(parts)}." if parts else "No limits."


def space_blocks(result: Result) -> tuple[Block, ...]:
    """What was searched, what was left out and why, and the rules that the answer is relative to."""
    counts = result.optimum.counts
    every = sum(len(order.closings) for order in result.orders) or len(result.problem.space.branches)
    opened = f"{counts.branches} of {count(every, 'branch')} (replicas x micro-batches) opened"
    training = result.problem.workload.phase == "training"
    solved = f"{count(counts.iterations, 'CP-SAT model')} solved, {count(counts.cuts, 'cut')}"
    if training:
        opened = f"{count(counts.branches, 'frame')} (replicas x micro-batches x stages and their split) opened"
        solved = f"{count(counts.iterations, 'pipeline')} laid out in time"
    lines = [
        f"{int(result.space_size):,} plans in the space; {counts.priced:,} stage options priced; {opened}; {solved}; "
        f"seed {result.seed}.",
    ]
    dropped = ", ".join(f"{number:,} x {reason}" for reason, number in sorted(counts.dropped.items()))
    lines += [f"Settled without {'laying it out' if training else 'a CP-SAT model'}: {dropped}."] if dropped else []
    rules = Text(RULES), Bullets(result.problem.restrictions), Text(f"Ties: {tie_rule(result.problem.space)}.")
    return *(Text(line) for line in lines), *rules


def draw_command(problem: Problem, ref: str | None) -> str:
    """The command that draws the best plan's operator graph."""
    named = ref or (problem.name if problem.name in library_names() else f"{safe_name(problem.name)}.yaml")
    return DRAW.format(ref=shlex.quote(plain(named)), file=shlex.quote(f"{safe_name(problem.name)}.svg"))


def source_table(problem: Problem) -> Block:
    """Where the facts of the model and the cluster come from."""
    cluster, rows = problem.cluster, [("model", problem.model.name, problem.model.source or "given in the problem")]
    rows += [("GPU", kind.name, kind.source) for kind in cluster.kinds.values()]
    rows += [("price", kind.name, kind.price_source) for kind in cluster.kinds.values() if kind.price_per_hour]
    links = dict.fromkeys(domain.link for domain in cluster.domains)
    rows += [("link inside a node", link.name, link.source) for link in links]
    rows += [("network between nodes", cluster.network.name, cluster.network.source)]
    rows += [("cluster", cluster.name, source) for source in cluster.sources]
    return table(("fact", "of", "source"), rows)
