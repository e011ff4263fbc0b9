"""What a plan costs, as sections: its stages, where the time goes, the matmul table, the longest path, memory, GPU times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from planner.evaluate.evaluation import DeviceReport, Evaluation, Memory
from planner.insight.serving import PlanServing
from planner.problem import Problem
from planner.report.document import Block, Bullets, Code, Section, Text, table, to_text
from planner.report.serving import serving_sections
from planner.report.show import count, flops, gigabytes, gpus, percent, ranges, seconds, whole
from planner.report.terms import Row, merged_rows, products, work_kind
from planner.report.words import attention_words, batch_words, ffn_words, order_words, stage_layers
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice

TOP_OPERATORS = 8
MOST_ROWS = 400
MOST_CHARACTERS = 20_000
LINE = 116

SOURCES = (
    "fitted: formula with constants fitted to published measurements of this GPU; "
    "roofline: the same formula with constants borrowed from another GPU, nothing measured on this one; "
    "measured: a measured table, at a measured size or between such; extrapolated: the same table beyond its sizes."
)
MATMUL_NOTE = (
    "Each row is one operator of the longest path on one GPU: batch products of an m x k matrix with a k x n matrix. FLOPs are "
    "2 x batch x m x k x n, for one of them. Seconds of a fused attention kernel stand with its first product and cover both."
)
MEMORY_NOTE = (
    "GB are 10^9 bytes. Activations are the peak of one micro-batch in flight; reserve is what the runtime, its libraries and "
    "the allocator keep. GPUs with the same bill share a row; all replicas look like the first."
)
PATH_NOTE = "Operators follow each other along each line; the lines follow each other. Their seconds add up to the latency."
EXPRESSION_NOTE = "Get_Time(m, k, n) is the time of one matrix product on one GPU; N x [...] repeats a sum."
BUSY_NOTE = "Computing, held by collectives and waiting add up to the latency. Sends between stages run beside the computation."
MORE = "... and {count} more; all are in evaluation.json"
ITEMS = (
    ("weights", "weights_bytes"), ("KV cache", "kv_cache_bytes"), ("activations", "activation_bytes"),
    ("scores", "scores_bytes"), ("logits", "logits_bytes"), ("gradients", "gradient_bytes"), ("optimizer", "optimizer_bytes"),
    ("buffers", "communication_buffer_bytes"), ("reserve", "reserve_bytes"), ("total", "total_bytes"),
    ("GPU has", "capacity_bytes"),
)  # fmt: skip


def evaluation_report(evaluation: Evaluation, choice: Choice, problem: Problem, served: PlanServing | None = None) -> str:
    """The price of one plan for the terminal, with its serving figures where there are any."""
    sections = [
        Section("Plan", plan_blocks(choice, problem, evaluation)),
        *serving_sections(served),
        Section("Where the time goes", time_blocks(evaluation, problem)),
        Section("Matrix products of the longest path", matmul_blocks(evaluation)),
        Section("Longest path", path_blocks(evaluation)),
        Section("Get_Time expression of the longest path", expression_blocks(evaluation)),
        Section("Memory of each GPU", memory_blocks(evaluation)),
        Section("Time of each GPU", busy_blocks(evaluation)),
    ]
    return to_text(f"{problem.name}: {evaluation_headline(evaluation, problem)}", sections)


def interval_words(evaluation: Evaluation) -> str:
    """The interval that four of five measured times lie in, in the unit of the time: `2.3-2.7 s`."""
    low, high = (seconds(s) for s in evaluation.interval_s)
    return f"{low.partition(' ')[0]}-{high}" if low.partition(" ")[2] == high.partition(" ")[2] else f"{low} - {high}"


def evaluation_headline(evaluation: Evaluation, problem: Problem) -> str:
    """Latency, throughput, utilization and whether the plan fits, in one line."""
    what = {"prefill": "for the batch", "decode": "for each output token", "training": "for an optimizer step"}[
        problem.workload.phase
    ]
    fits = "fits in memory"
    if evaluation.over_capacity_bytes:
        fits = f"does NOT fit: {gigabytes(evaluation.over_capacity_bytes)} GB over the memory of a GPU"
    return (
        f"{seconds(evaluation.latency_s)} ({interval_words(evaluation)}) {what}, "
        f"{evaluation.throughput_tokens_per_s:,.0f} tokens/s over the whole pass, "
        f"model FLOPs utilization {100 * evaluation.mfu:.1f} %, {fits}"
    )


def plan_blocks(choice: Choice, problem: Problem, evaluation: Evaluation | None = None) -> tuple[Block, ...]:
    """The plan stage by stage, with the fullest GPU of each."""
    sizes = problem.sizes
    bills = {report.rank: report.memory for report in evaluation.devices} if evaluation else {}
    rows: list[list[str]] = []
    for stage, layers in zip(choice.stages, stage_layers(choice), strict=True):
        attention, ffn = "\n".join(attention_words(stage.attention, sizes)), "\n".join(ffn_words(stage, sizes))
        rows.append([str(len(rows)), layers, _where(stage.devices, sizes), attention, ffn, _fullest(stage.devices, bills)])
    used = choice.replicas * sum(len(stage.devices) for stage in choice.stages)
    text = f"{batch_words(choice, sizes)}; {used} of {sizes.devices} GPUs in use."
    text += " GPU numbers are those of the first replica." if choice.replicas > 1 else ""
    text += f" {order_words(sizes)}" if sizes.gpus else ""
    return Text(text), table(("stage", "layers", "GPUs", "attention", "feed-forward", "GB on the\nfullest GPU"), rows)


def _where(devices: Sequence[int], sizes: Sizes) -> str:
    """The ranks of a stage, and which GPUs of the cluster's list they are where that is another order."""
    listed = f"\n= {ranges(sizes.gpus[rank] for rank in devices)} as listed" if sizes.gpus else ""
    return gpus(devices) + listed


def _fullest(devices: Sequence[int], bills: dict[int, Memory]) -> str:
    if not bills:
        return "-"
    worst = max((bills[rank] for rank in devices), key=lambda m: m.total_bytes / m.capacity_bytes)
    return f"{gigabytes(worst.total_bytes)} of {gigabytes(worst.capacity_bytes)}"


def time_blocks(evaluation: Evaluation, problem: Problem) -> tuple[Block, ...]:
    """Shares of the longest path by kind of work, then its largest operators."""
    rows = merged_rows(evaluation.critical_path)
    total = sum(row.seconds for row in rows)
    by_kind: dict[str, float] = {}
    for row in rows:
        kind = work_kind(row.term).words(problem.cluster)
        by_kind[kind] = by_kind.get(kind, 0.0) + row.seconds
    kinds = sorted(by_kind.items(), key=lambda pair: -pair[1])
    top = sorted(rows, key=lambda row: -row.seconds)[:TOP_OPERATORS]
    return (
        table(("kind of work on the longest path", "seconds", "share"),
              [(kind, seconds(s), percent(s, total)) for kind, s in kinds], ("seconds", "share"), wide=90),
        table(("largest operators", "layers", "GPUs", "times", "seconds", "share", "kind of work", "source"),
              [(r.op, r.layers or "-", r.device, whole(r.count), seconds(r.seconds), percent(r.seconds, total),
                work_kind(r.term), r.source) for r in top], ("times", "seconds", "share")),
        Text(SOURCES),
    )  # fmt: skip


def matmul_blocks(evaluation: Evaluation) -> tuple[Block, ...]:
    """The matrix products of the longest path: sizes, FLOPs, seconds, share, source."""
    rows = merged_rows(evaluation.critical_path)
    total = sum(row.seconds for row in rows)
    found = [cells for row in rows for cells in _product_cells(row, total)]
    headers = ("operator", "layers", "GPUs", "m", "k", "n", "batch", "times", "FLOPs each", "seconds each", "seconds", "share",
               "source")  # fmt: skip
    return Text(MATMUL_NOTE), table(headers, found[:MOST_ROWS], headers[3:12]), *_more(len(found)), Text(SOURCES)


def _product_cells(row: Row, total: float) -> Iterable[tuple[str, ...]]:
    for at, p in enumerate(products(row.term)):
        name = f"{row.op}: {p.part}" if p.part else row.op
        own = (seconds(row.each_s), seconds(row.seconds), percent(row.seconds, total)) if at == 0 else ('"', '"', '"')
        sizes = (whole(p.m), whole(p.k), whole(p.n), whole(p.batch), whole(row.count), flops(p.flops))
        yield (name, row.layers or "-", row.device, *sizes, *own, row.source)


def _more(number: int) -> tuple[Block, ...]:
    return (Text(MORE.format(count=number - MOST_ROWS)),) if number > MOST_ROWS else ()


def path_blocks(evaluation: Evaluation) -> tuple[Block, ...]:
    """The longest path in order, one line for operators of the same layers that run equally often, one after another."""
    alike = groupby(evaluation.critical_path, key=lambda item: (item.stage, item.device, item.layer, item.count))
    runs = [(key, list(items)) for key, items in alike]
    lines = []
    for (device, layer, names), same in groupby(runs, key=lambda run: (*run[0][1:3], " -> ".join(i.op for i in run[1]))):
        again = list(same)
        times, total = sum(key[3] for key, _ in again), sum(item.seconds for _, items in again for item in items)
        several, often = "s" if "-" in layer else "", f", {count(times, 'time')}" if times > 1 else ""
        where = f"layer{several} {layer}" if layer[:1].isdigit() else layer or "between stages"
        lines.append(f"{where} on GPUs {device}{often}: {names} = {seconds(total)}")
    return Text(PATH_NOTE), Bullets(tuple(lines[:MOST_ROWS])), *_more(len(lines))


def expression_blocks(evaluation: Evaluation) -> tuple[Block, ...]:
    """The expression, broken at its plus signs."""
    text, note = evaluation.expression, EXPRESSION_NOTE
    if len(text) > MOST_CHARACTERS:
        end = text.rfind(" + ", 0, MOST_CHARACTERS)
        text, note = text[: max(end, 1)] + " + ...", note + " Shortened here; evaluation.json has all of it."
    lines = [""]
    for part in text.replace(" + ", "\n+ ").split("\n"):
        if len(lines[-1]) + len(part) + 1 > LINE:
            lines.append("")
        lines[-1] += f" {part}" if lines[-1] else part
    return Text(note), Code("\n".join(lines))


def memory_blocks(evaluation: Evaluation) -> tuple[Block, ...]:
    """The memory bill of every GPU in GB, equal bills on one row; items that no GPU has are left out."""
    items = [(title, field) for title, field in ITEMS if any(getattr(d.memory, field) for d in evaluation.devices)]
    groups: dict[Memory, list[int]] = {}
    for report in evaluation.devices:
        groups.setdefault(report.memory, []).append(report.rank)
    rows = [(ranges(ranks), *(gigabytes(getattr(bill, field)) for _, field in items)) for bill, ranks in groups.items()]
    titles = tuple(title for title, _ in items)
    return Text(MEMORY_NOTE), table(("GPUs", *titles), rows, titles)


def busy_blocks(evaluation: Evaluation) -> tuple[Block, ...]:
    """How long every GPU computes, communicates and waits; equal GPUs on one row."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for report in evaluation.devices:
        groups.setdefault(_busy_cells(report, evaluation.latency_s), []).append(report.rank)
    headers = ("GPUs", "computing", "share", "in collectives", "share ", "waiting", "share  ")
    return Text(BUSY_NOTE), table(headers, [(ranges(ranks), *cells) for cells, ranks in groups.items()], headers[1:])


def _busy_cells(report: DeviceReport, latency: float) -> tuple[str, ...]:
    found = (report.busy_s, report.communication_s, report.idle_s)
    return tuple(text for value in found for text in (seconds(value), percent(value, latency)))
