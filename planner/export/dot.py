"""DOT and SVG of a graph: boxes framed by GPU and node, the critical path in red, arrows as thick as their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import log10

from planner.export.dag_json import dag_json as dag_json
from planner.export.views import Box, Link, Picture, View, picture
from planner.graph.nodes import Graph

FILL = {
    "compute": "#dbe9f6",
    "attention": "#d9f0e3",
    "memory": "#f4f4f4",
    "collective": "#fde9cf",
    "role": "#e8e6f5",
    "stage": "#ffffff",
}
RED = "#c81e1e"
HEAD = (
    'graph [rankdir=TB, fontname="Helvetica", fontsize=18, labelloc=t, nodesep=0.25, ranksep=0.45, newrank=true];',
    'node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=12, margin="0.12,0.08", color="#555555"];',
    'edge [fontname="Helvetica", fontsize=10, color="#777777", fontcolor="#444444", arrowsize=0.7];',
)


def dag_dot(
    graph: Graph, seconds: dict[str, float], path: Sequence[str], view: View, title: str, domains: Sequence[int] = ()
) -> str:
    """A view of a graph as DOT. `path` are the nodes of its longest path, `domains` the scale-up domain of every rank."""
    shown = picture(graph, seconds, path, view)
    lines = [f"digraph {quoted(title)} {{", f"  label={quoted(title)};", *(f"  {line}" for line in HEAD)]
    lines += [f"  {line}" for line in _frames(shown, domains)]
    lines += [f"  {_arrow(link)}" for link in shown.links]
    return "\n".join([*lines, "}", ""])


def quoted(text: str) -> str:
    """Text as a DOT string: nothing in it can end the string, start an escape, or become markup."""
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def dag_svg(dot: str) -> bytes:
    """A DOT text laid out by Graphviz, without the comments that name its version."""
    return re.sub(rb"<!--.*?-->\s*", b"", _draw(dot, "svg"), flags=re.DOTALL)


def dag_png(dot: str) -> bytes:
    """A DOT text as a picture in pixels."""
    return _draw(dot, "png")


def _draw(dot: str, form: str) -> bytes:
    import pygraphviz  # slow to load, and needed for pictures alone

    drawing = pygraphviz.AGraph(string=dot)
    found: bytes = drawing.draw(format=form, prog="dot")
    drawing.close()
    return found


def _frames(shown: Picture, domains: Sequence[int]) -> Iterator[str]:
    """Boxes inside the frame of their GPU or stage, and that inside the frame of its node."""
    homes: dict[int | None, dict[str, list[Box]]] = {}
    for box in shown.boxes:
        frame = ""
        if shown.stages and box.members[0].role != "send":
            frame = f"stage {box.members[0].stage}"
        elif shown.by_gpu and len(box.devices) == 1:
            frame = f"GPU {box.devices[0]}"
        homes.setdefault(_domain(box, domains, shown), {}).setdefault(frame, []).append(box)
    for domain, frames in sorted(homes.items(), key=lambda item: (item[0] is None, item[0] or 0)):
        if domain is not None:
            yield f"subgraph cluster_node_{domain} {{"
            yield f'label={quoted(f"node {domain}")}; style="rounded"; color="#999999"; bgcolor="#fbfbfb"; fontsize=16;'
        for name, boxes in frames.items():
            if name:
                yield f"subgraph cluster_{re.sub(r'[^a-z0-9]', '_', name.lower())} {{"
                yield f'label={quoted(name)}; style="rounded,filled"; color="#bbbbbb"; fillcolor="#ffffff"; fontsize=14;'
            yield from (_box(box) for box in boxes)
            if name:
                yield "}"
        if domain is not None:
            yield "}"


def _domain(box: Box, domains: Sequence[int], shown: Picture) -> int | None:
    """The node that holds all GPUs of a box, where frames are drawn at all."""
    if not shown.by_gpu or not all(rank < len(domains) for rank in box.devices):
        return None
    found = {domains[rank] for rank in box.devices}
    return found.pop() if len(found) == 1 else None


def _box(box: Box) -> str:
    node = box.members[0]
    attributes = {
        "label": "\n".join(box.lines),
        "fillcolor": FILL[box.style],
        "op": node.kind.value if box.style != "role" else box.style,
        "devices": ",".join(map(str, box.devices)),
        "seconds": f"{box.seconds:.10g}",
    }
    if node.m and box.style != "role":
        attributes |= {"m": str(node.m), "k": str(node.k), "n": str(node.n), "batch": str(node.batch)}
    if box.style == "collective":
        attributes["bytes"] = f"{node.bytes:.10g}"
        attributes["shape"] = "hexagon" if node.transfer is None else "box"
    if box.critical:
        attributes |= {"color": RED, "penwidth": "2.5"}
    return f"{quoted(box.id)} [{_attributes(attributes)}];"


def _arrow(link: Link) -> str:
    attributes = {"label": f"  {link.text}"} if link.text else {}
    if link.bytes > 0:
        attributes["penwidth"] = f"{min(5.0, max(0.8, log10(link.bytes) - 5.0)):.2f}"
        attributes["bytes"] = f"{link.bytes:.10g}"
    if link.critical:
        attributes |= {"color": RED, "fontcolor": RED}
    if link.dashed:
        attributes |= {"style": "dashed", "constraint": "false"}
    return f"{quoted(link.source)} -> {quoted(link.target)} [{_attributes(attributes)}];"


def _attributes(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={quoted(value)}" for name, value in values.items())
