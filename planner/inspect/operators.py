"""Operators of a DOT graph: what each node says of its kind, GPUs, shapes and sizes, and what it does not say.

Our own attributes come first, then the words of the label, then the node's name, then the frames around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.export.attributes import from_attributes
from planner.export.full import NODE_NAMES
from planner.graph.nodes import Node
from planner.graph.ops import AttentionDims, Kind
from planner.inspect.dot import DotGraph, DotNode
from planner.inspect.labels import label_lines, unescaped
from planner.inspect.own import is_own
from planner.inspect.shapes import Product, Shapes, Tensor, shapes_in
from planner.inspect.sizes import Sized, sized
from planner.inspect.words import (
    BLOCK,
    ELEMENTWISE,
    ENDS,
    MOVES,
    PRODUCTS,
    bytes_in,
    devices_in,
    dtype_in,
    kind_of,
    names_every_gpu,
    names_two_ends,
    ranks_in,
    stated_kind,
)

Groups = tuple[tuple[int, ...], ...]
MOST_PLACES = 2_000_000
"""GPUs summed over all nodes."""
MOST_TEXT = 10_000_000
"""Characters of all labels that differ; a default with the node's name in it is another label for every node."""
KIND_KEYS = ("op", "kind", "op_type", "type")
DEVICE_KEYS = ("devices", "device", "gpus", "gpu", "ranks", "rank", "device_id", "gpu_id")
NUMBERS = ("m", "k", "n", "batch")
SPEAKING = re.compile(r"(?:in|input|output|out|weight|xlabel|bytes)(?:s|_.*)?", re.IGNORECASE)
"""Attributes that are read like lines of the label."""
_N = r"(\d{1,15})"
ATTENTION = re.compile(rf"(?<!\d){_N} x {_N} heads \({_N} KV\), {_N} x {_N}, dims {_N}/{_N}(, causal)?")
"""Sizes of a fused kernel as our drawings write them."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A node as an operator. `groups` are the sets of GPUs that it names: the two ends where it is a `transfer`, else the
    groups of a collective. `framed` are the GPUs of the frame around it. `seconds` are those that our own file states.
    `missing` says what could not be read, `wrong` where the node contradicts itself (code, what, found, expected).
    """

    id: str
    title: str
    line: int
    kind: str
    devices: tuple[int, ...] = ()
    groups: Groups = ()
    transfer: bool = False
    framed: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    product: Product | None = None
    attention: AttentionDims | None = None
    bytes: float | None = None
    stated_flops: float | None = None
    seconds: float | None = None
    dtype: str = ""
    own: bool = False
    assumed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wrong: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def flops(self) -> float | None:
        """Floating-point operations on each of its GPUs; None where its sizes are not known, 0 where it multiplies nothing."""
        if self.stated_flops is not None:
            return self.stated_flops
        if self.product is not None:
            return self.product.flops
        if self.attention is not None:
            return float(self.attention.flops)
        return 0.0 if self.kind in MOVES | ELEMENTWISE | ENDS | {Kind.BARRIER.value} else None


def operators_of(dot: DotGraph, source: str = "") -> tuple[Operator, ...]:
    """Every node as an operator. Raises `InputError` where a file that says it is ours is not, or names too many GPUs."""
    full, reader = is_own(dot), _Reader(dot)
    found, places = [], 0
    for node in dot.nodes:
        found.append(_own_operator(node, source) if full and "op" in node.attributes else reader.operator(node))
        places += len(found[-1].devices)
        if places > MOST_PLACES:
            raise InputError(f"line {node.line}", f"node {node.id}", f"at most {MOST_PLACES:,} GPUs over all nodes", source)
    return reader.everywhere(found)


def _own_operator(node: DotNode, source: str) -> Operator:
    """A node that `planner dag --view full` wrote."""
    name, given = unescaped(node.id), {key: unescaped(value) for key, value in node.attributes.items()}
    try:
        own = from_attributes(Node, given | {"id": name}, NODE_NAMES)
    except InputError as error:
        raise error.within(source, f"line {node.line}, node {name}") from None
    product = Product(own.m, own.k, own.n, own.batch) if own.m else None
    groups = (own.transfer.source, own.transfer.target) if own.transfer else own.family
    inputs, outputs = (
        tuple(dict.fromkeys(Tensor(piece.shape, piece.name) for piece in pieces)) for pieces in (own.inputs, own.outputs)
    )
    seconds = _number(given.get("seconds"))
    return Operator(
        name, own.name, node.line, own.kind.value, own.devices, groups, own.transfer is not None, (), inputs, outputs, product,
        own.attention, own.bytes, own.flops, seconds, own.dtype, own=True,
    )  # fmt: skip


def _number(text: str | None) -> float | None:
    """A number from 0 up, None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e300 else None


@dataclass(frozen=True, slots=True)
class _Words:
    """What the lines of a label say."""

    kind: str
    groups: Groups
    listed: bool
    two_ends: bool
    every: bool
    shapes: Shapes
    bytes: float | None
    dtype: str
    attention: AttentionDims | None


class _Reader:
    """Reads nodes that are not ours, or of which we drew a picture only."""

    def __init__(self, dot: DotGraph) -> None:
        self.dot = dot
        self._words: dict[tuple[str, ...], _Words] = {}
        self._frames: dict[int, tuple[int, ...]] = {}
        self._every: set[str] = set()
        self._text = 0

    def operator(self, node: DotNode) -> Operator:
        """One node as an operator."""
        given = {key.lower(): value for key, value in node.attributes.items()}
        label = given.get("label", "\\N")
        lines = label_lines(label, given.get("shape", ""), node.id, self.dot.name)
        spoken = tuple(
            f"{key.replace('_', ' ')}: {unescaped(value)}" for key, value in given.items() if SPEAKING.fullmatch(key)
        )
        said, name = self._read((*lines, *spoken)), " ".join(node.id.replace("_", " ").split())
        stated = next((given[key] for key in KIND_KEYS if key in given), "")
        kind = stated_kind(stated) or said.kind or kind_of(name)
        own = bool(stated) and {"op", "devices", "seconds"} <= given.keys()
        groups, framed = self._places(given, said, name, kind), self._framed(node)
        devices = tuple(sorted({rank for group in groups for rank in group})) or framed
        known = sized(kind, said.shapes, _product(given), own, lines[0] if lines else "")
        moved = _number(given.get("bytes")) or (said.bytes if kind in MOVES else None)
        every = not devices and said.every
        if every:
            self._every.add(node.id)
        missing = self._missing(node, kind, devices, every, said, known, moved)
        seconds = _number(given.get("seconds")) if own else None
        return Operator(
            node.id, lines[0] if lines else node.id, node.line, kind, devices, groups,
            kind == Kind.SEND and not said.listed and _apart(groups), framed, known.inputs, known.outputs, known.product,
            said.attention, moved, _number(given.get("flops")), seconds, said.dtype, own, known.assumed,
            missing if seconds is None else (), known.wrong,
        )  # fmt: skip

    def everywhere(self, found: list[Operator]) -> tuple[Operator, ...]:
        """Nodes on `all GPUs` are put on every GPU that another node names."""
        if not self._every:
            return tuple(found)
        ranks = tuple(sorted({rank for operator in found for rank in operator.devices}))
        if len(ranks) * len(self._every) > MOST_PLACES:
            raise InputError(
                "all GPUs", f"{len(self._every):,} nodes on {len(ranks):,} GPUs", f"at most {MOST_PLACES:,} together"
            )
        return tuple(_moved(operator, ranks) if operator.id in self._every else operator for operator in found)

    def _read(self, lines: tuple[str, ...]) -> _Words:
        if lines not in self._words:
            text = "\n".join(lines)
            self._text += len(text)
            if self._text > MOST_TEXT:
                raise InputError(
                    "labels", f"more than {MOST_TEXT:,} characters", f"at most {MOST_TEXT:,} characters in all labels"
                )
            sizes = ATTENTION.search(text)
            attention = None
            if sizes and not (sizes[3] == "1" and sizes[6] != sizes[7]):  # one latent for keys and values is not told apart
                batch, heads, kv, q_len, kv_len, qk, v = (int(size) for size in sizes.groups()[:7])
                attention = AttentionDims(batch, heads, kv, q_len, kv_len, qk, v, bool(sizes[8]))
            groups = tuple(group for line in lines for group in devices_in(line))
            two_ends, every = any(map(names_two_ends, lines)), any(map(names_every_gpu, lines))
            kind = kind_of(lines[0]) if lines else ""
            shapes = shapes_in([line for line in lines if not ATTENTION.search(line)])
            self._words[lines] = _Words(
                kind, groups, "|" in text, two_ends, every, shapes, bytes_in(text), dtype_in(text), attention
            )
        return self._words[lines]

    def _places(self, given: Mapping[str, str], said: _Words, name: str, kind: str) -> Groups:
        """Sets of GPUs that a node names itself. Where our drawing lists the groups of a collective, the label has more."""
        stated = next((given[key] for key in DEVICE_KEYS if key in given), "").strip()
        if stated[:1].isdigit() or stated[:1] in ("[", "(", "{"):
            ranks = ranks_in(stated)
            together = {rank for group in said.groups for rank in group}
            return said.groups if together == set(ranks) else (ranks,) if ranks else ()
        if stated and (groups := devices_in(f"GPU {stated}") or devices_in(stated)):
            return groups
        if said.two_ends and kind != Kind.SEND:
            return ()
        return said.groups or devices_in(name)

    def _framed(self, node: DotNode) -> tuple[int, ...]:
        """The GPUs that the innermost frame which names any is for."""
        if node.home not in self._frames:
            found: tuple[int, ...] = ()
            for frame in self.dot.frames(node):
                lines = label_lines(frame.attributes.get("label", ""))
                groups = [group for line in lines for group in devices_in(line)] or devices_in(frame.name.replace("_", " "))
                found = tuple(sorted({rank for group in groups for rank in group}))
                if found:
                    break
            self._frames[node.home] = found
        return self._frames[node.home]

    def _missing(
        self, node: DotNode, kind: str, devices: tuple[int, ...], every: bool, said: _Words, known: Sized, moved: float | None
    ) -> tuple[str, ...]:
        """What a node does not say, or says in words that are not known."""
        found = []
        if not node.declared and "label" not in node.attributes:
            found.append("all but its name: the file only draws arrows to it or from it")
        elif not kind:
            found.append("what it does")
        if not devices and not every and kind not in ENDS:
            two = said.two_ends and kind != Kind.SEND
            found.append("its GPUs: two are named, which may be ends or a range" if two else "its GPUs")
        if kind in PRODUCTS and known.product is None:
            found.append("the sizes of its product (m, k, n)")
        if (kind == BLOCK and known.product is None) or (kind == Kind.ATTENTION and said.attention is None):
            found.append("the operators inside it, with their sizes")
        if kind in ELEMENTWISE | MOVES and moved is None and not (known.inputs or known.outputs):
            found.append("its bytes, or a shape")
        return (*found, *known.unread)


def _apart(groups: Groups) -> bool:
    """Whether groups can be the two ends of a transfer."""
    return len(groups) == 2 and not set(groups[0]) & set(groups[1])


def _product(given: Mapping[str, str]) -> Product | None:
    """The product that attributes m, k, n and batch state."""
    sizes = {name: given[name].strip() for name in NUMBERS if name in given}
    if not all(re.fullmatch(r"0*[1-9]\d{0,14}", size) for size in sizes.values()) or not {"m", "k", "n"} <= sizes.keys():
        return None
    return Product(int(sizes["m"]), int(sizes["k"]), int(sizes["n"]), int(sizes.get("batch", "1")))


def _moved(operator: Operator, ranks: tuple[int, ...]) -> Operator:
    missing = operator.missing if ranks else (*operator.missing, "its GPUs: all of them, and no node names any")
    return replace(operator, devices=ranks, groups=(ranks,) if ranks else (), missing=missing)
