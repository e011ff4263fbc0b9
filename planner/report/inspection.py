"""What inspecting a DOT file found, as sections: findings, operators, products, GPUs, the longest path, what was not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from planner.check.findings import Finding
from planner.inspect.inspection import Inspection
from planner.inspect.prices import STATED
from planner.report.document import Block, Bullets, Section, Text, table, to_text
from planner.report.findings import findings_blocks
from planner.report.show import count, flops, percent, ranges, seconds, whole

MOST_ROWS = 40
MOST_OF_A_CODE = 12
MORE = "... and {count} more; --json lists all."
LOAD_NOTE = "An operator on several GPUs counts on each. FLOPs and seconds are of the operators whose sizes are known."
UNREAD_NOTE = "What these nodes do not say, or say in words that are not known here. Nothing is put in its place."


def inspection_report(found: Inspection) -> str:
    """An inspection for the terminal."""
    sections = [
        Section("Findings", _findings(found.findings)),
        Section("Operators by kind", (table(("kind", "operators"), found.kinds.items(), ("operators",)),)),
        Section("Matrix products", _products(found)),
        Section("GPUs", _gpus(found)),
        Section(f"Longest path on {found.cluster}", _path(found)),
        Section("Not read", _unread(found)),
    ]
    return to_text(f"{found.name}: {_headline(found)}", sections)


def _headline(found: Inspection) -> str:
    """Whose graph it is, its size, whether it is acyclic and fits, and how long it takes."""
    author = {"graph": "a graph of planner dag, ", "drawing": "a drawing of planner dag, "}.get(found.own, "")
    shape = "acyclic" if found.acyclic else f"a CYCLE of {count(len(found.cycle) - 1, 'node')}"
    wrong = sum(finding.severity == "error" and not finding.code.startswith("CYCLE") for finding in found.findings)
    size = f"{count(len(found.dot.nodes), 'node')}, {count(len(found.dot.edges), 'arrow')}"
    time = f"longest path {seconds(found.seconds)}" if found.acyclic else "no longest path"
    unknown = f" with {len(found.unknown):,} of {len(found.prices):,} times unknown, counted as 0" if found.unknown else ""
    return f"{author}{size}, {shape}, {count(wrong, 'mismatch') if wrong else 'no mismatch'}, {time}{unknown}"


def _findings(findings: Sequence[Finding]) -> tuple[Block, ...]:
    """The first findings of every code."""
    seen: Counter[str] = Counter()
    shown = []
    for finding in findings:
        seen[finding.code] += 1
        if seen[finding.code] <= MOST_OF_A_CODE:
            shown.append(finding)
    return (*findings_blocks(shown), *_more(len(findings) - len(shown)))


def _more(number: int) -> tuple[Block, ...]:
    return (Text(MORE.format(count=f"{number:,}")),) if number > 0 else ()


def _products(found: Inspection) -> tuple[Block, ...]:
    if not found.products:
        return (Text("No matrix product states its sizes."),)
    rows = []
    for product, where in found.products[:MOST_ROWS]:
        title, ranks = found.operators[where[0]].title, {rank for index in where for rank in found.operators[index].devices}
        each = max(found.prices[index].seconds for index in where)
        sizes = (whole(product.m), whole(product.k), whole(product.n), whole(product.batch), whole(len(where)))
        rows.append((title, ranges(ranks) or "-", *sizes, flops(product.flops), seconds(each)))
    headers = ("first operator", "GPUs", "m", "k", "n", "batch", "times", "FLOPs each", "seconds each")
    return table(headers, rows, headers[2:]), *_more(len(found.products) - MOST_ROWS)


def _gpus(found: Inspection) -> tuple[Block, ...]:
    """The load of every GPU, equal ones on one row."""
    loads = found.loads
    if not loads:
        return (Text("No node names a GPU."),)
    groups: dict[tuple[str, ...], list[int]] = {}
    for load in loads:
        groups.setdefault((f"{load.operators:,}", flops(load.flops), seconds(load.seconds)), []).append(load.rank)
    rows = [(ranges(ranks), *cells) for cells, ranks in groups.items()]
    most, mean = max(load.flops for load in loads), sum(load.flops for load in loads) / len(loads)
    balance = f"{count(len(loads), 'GPU')}; " + (
        f"the busiest has {most / mean:.3g} times the mean FLOPs." if mean else "no FLOPs are known."
    )
    headers = ("GPUs", "operators", "FLOPs", "seconds")
    return Text(f"{balance} {LOAD_NOTE}"), table(headers, rows[:MOST_ROWS], headers[1:]), *_more(len(rows) - MOST_ROWS)


def _path(found: Inspection) -> tuple[Block, ...]:
    if not found.acyclic:
        return (Text("A graph with a circle never ends, so it has no longest path."),)
    rows = []
    for index in found.path[:MOST_ROWS]:
        operator, price = found.operators[index], found.prices[index]
        share = percent(price.seconds, found.seconds)
        shown = seconds(price.seconds) if price.source else "unknown"
        rows.append((operator.title, operator.id, ranges(operator.devices) or "-", shown, share, price.source or price.missing))
    stated = sum(price.source == STATED for price in found.prices)
    times = "Times are those that the file states." if stated == len(found.prices) else "Assumed in reading and pricing:"
    notes = () if stated == len(found.prices) else (Bullets(found.assumptions),)
    headers = ("operator", "node", "GPUs", "seconds", "share", "source")
    return table(headers, rows, headers[3:5]), *_more(len(found.path) - MOST_ROWS), Text(times), *notes


def _unread(found: Inspection) -> tuple[Block, ...]:
    """What is missing, nodes that miss the same on one row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, missing in found.unread:
        groups.setdefault(missing, []).append(name)
    if not groups:
        return (Text("Every node says what it does, where, and how large it is."),)
    rows = [("\n".join(missing), str(len(names)), _names(names)) for missing, names in groups.items()]
    return Text(UNREAD_NOTE), table(("missing", "nodes", "which"), rows[:MOST_ROWS], ("nodes",)), *_more(len(rows) - MOST_ROWS)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "")
