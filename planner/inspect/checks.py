"""Findings about a DOT graph: circles, dimensions that do not fit, loose ends, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.check.findings import Finding
from planner.inspect.dot import DotGraph
from planner.inspect.labels import label_lines
from planner.inspect.operators import Operator
from planner.inspect.shapes import Tensor, shapes_in
from planner.inspect.walk import Arrows
from planner.inspect.words import INPUT, MOVES

SHOWN = 8  # names of a circle that a message holds


def check_graph(dot: DotGraph, arrows: Arrows, operators: Sequence[Operator]) -> tuple[Finding, ...]:
    """Everything that is wrong or strange, the structure first."""
    return (
        *_notes(dot),
        *_circles(dot, arrows),
        *_loose(dot, arrows),
        *_unreached(arrows, operators),
        *_inside(operators),
        *_across(dot, operators),
        *_misplaced(operators),
    )


def _notes(dot: DotGraph) -> Iterator[Finding]:
    for note in dot.notes:
        yield Finding("DAG006", "warning", note.split(":")[0], note)
    if not dot.directed and dot.edges:
        yield Finding(
            "DAG006", "warning", dot.name or "graph", "the graph has no direction: edges are read as they are written"
        )


def _circles(dot: DotGraph, arrows: Arrows) -> Iterator[Finding]:
    circle = [dot.nodes[index].id for index in arrows.circle()]
    if circle:
        listed = " -> ".join(circle if len(circle) <= SHOWN else [*circle[: SHOWN - 1], "...", circle[-1]])
        message = f"{len(circle) - 1} nodes wait for each other: {listed}"
        yield Finding("CYCLE001", "error", circle[0], message, len(circle) - 1, 0, "turn or remove one of these arrows")


def _loose(dot: DotGraph, arrows: Arrows) -> Iterator[Finding]:
    """Nodes without an arrow, and names that only arrows mention in a file that declares its nodes."""
    for index, node in enumerate(dot.nodes):
        if not arrows.before[index] and not arrows.after[index] and len(dot.nodes) > 1:
            yield Finding(
                "DAG001", "warning", node.id, "no arrow leads to it or from it", fix="draw its arrows, or leave it out"
            )
    declared = sum(node.declared for node in dot.nodes)
    if declared:
        for node in dot.nodes:
            if not node.declared:
                message = f"line {node.line} draws an arrow to it or from it, and nothing declares it"
                yield Finding("DAG002", "warning", node.id, message, fix="declare it, or mend a misspelt name")


def _unreached(arrows: Arrows, operators: Sequence[Operator]) -> Iterator[Finding]:
    """Nodes that no input leads to, in a file that has inputs."""
    inputs = [index for index, operator in enumerate(operators) if operator.kind == INPUT]
    reached = arrows.reached(inputs)
    for index, operator in enumerate(operators):
        if inputs and index not in reached and (arrows.before[index] or arrows.after[index]):
            yield Finding(
                "DAG003", "warning", operator.id, "no path leads here from an input", fix="draw the arrow that feeds it"
            )


def _inside(operators: Sequence[Operator]) -> Iterator[Finding]:
    for operator in operators:
        for code, what, found, expected in operator.wrong:
            yield Finding(code, "error", operator.id, what, found, expected, "correct the sizes in its label")


def _misplaced(operators: Sequence[Operator]) -> Iterator[Finding]:
    for operator in operators:
        if operator.framed and not set(operator.devices) <= set(operator.framed) and operator.kind not in MOVES:
            found, frame = _ranks(operator.devices), _ranks(operator.framed)
            yield Finding("DAG004", "warning", operator.id, "it names other GPUs than the frame around it", found, frame)


def _ranks(devices: tuple[int, ...]) -> str:
    return f"GPU {', '.join(map(str, devices[:8]))}{', ...' if len(devices) > 8 else ''}"


def _across(dot: DotGraph, operators: Sequence[Operator]) -> Iterator[Finding]:
    """What a producer writes against what its reader reads, and against what the arrow says."""
    known = {node.id: operator for node, operator in zip(dot.nodes, operators, strict=True)}
    carried: dict[str, tuple[Tensor, ...]] = {}
    for edge in dot.edges:
        source, target = known[edge.source], known[edge.target]
        if source.own or target.own:
            waits = edge.attributes.get("style") == "dashed" or edge.attributes.get("kind", "data") != "data"
            yield from () if waits else _own_edge(source, target)
            continue
        label = edge.attributes.get("label", "")
        if label not in carried:
            said = shapes_in(label_lines(label))
            carried[label] = (*said.bare, *said.inputs, *said.outputs)
        yield from _foreign_edge(carried[label], source, target)


def _own_edge(source: Operator, target: Operator) -> Iterator[Finding]:
    """Our tensors have names; members of a collective may hold uneven parts, of which a drawing shows the first."""
    if source.kind in MOVES or target.kind in MOVES:
        return
    for read in target.inputs:
        written = [tensor for tensor in source.outputs if tensor.name == read.name]
        if written and all(tensor.dims != read.dims for tensor in written):
            yield _mismatch(source, target, written[0], read)


def _foreign_edge(carried: tuple[Tensor, ...], source: Operator, target: Operator) -> Iterator[Finding]:
    for written, read in (
        ((source.outputs, carried), (carried, target.inputs)) if carried else ((source.outputs, target.inputs),)
    ):
        if not written or not read or {tensor.dims for tensor in written} & {tensor.dims for tensor in read}:
            continue
        alike = [(a, b) for a in written for b in read if a.elements == b.elements]
        if alike:
            message = f"{source.id} writes {alike[0][0].text}, {target.id} reads the same elements as {alike[0][1].text}"
            yield Finding("DAG005", "info", f"{source.id} -> {target.id}", message, alike[0][0].text, alike[0][1].text)
        else:
            yield _mismatch(source, target, written[0], read[0])


def _mismatch(source: Operator, target: Operator, written: Tensor, read: Tensor) -> Finding:
    """An error whose message says how many times larger one side is where that is a whole number."""
    larger, smaller = max(written.elements, read.elements), max(1, min(written.elements, read.elements))
    factor = larger // smaller if larger % smaller == 0 else 0
    how = f", {factor} times {'fewer' if read.elements < written.elements else 'as many'} elements" if factor > 1 else ""
    fix = "a split or a gather is missing between them, or one label is wrong" if factor > 1 else "make both labels agree"
    message = f"{source.id} writes {written.text}, {target.id} reads {read.text}{how}"
    return Finding("SHAPE001", "error", f"{source.id} -> {target.id}", message, written.text, read.text, fix)
