"""A role with one row per GPU as cells: what is the same for every layer and micro-batch that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.graph.devices import families
from planner.graph.nodes import Node, Piece, ranks_name
from planner.graph.ops import COLLECTIVES, AttentionDims, Kind, Op, Role, Size, Tensor


@dataclass(frozen=True, slots=True)
class Cell:
    """One operator on one GPU, or one collective over a group; `members` are places in the stage.

    `outputs` has what each member holds afterwards. A cell that is not `present` does nothing: whoever reads what it
    would have written reads its first input instead.
    """

    op: Op
    members: tuple[int, ...]
    present: bool
    proto: Node
    outputs: tuple[Piece, ...]


def role_cells(role: Role, devices: tuple[int, ...], stage: int) -> tuple[Cell, ...]:
    """The cells of a role on the GPUs of a stage, in stream order."""
    return tuple(cell for op in role.ops for cell in _cells(op, role.name, devices, stage))


def _cells(op: Op, role: str, devices: tuple[int, ...], stage: int) -> Iterator[Cell]:
    if op.group is None:
        for place in range(len(devices)):
            yield _cell(op, role, stage, devices, (place,), ())
        return
    size, stride = _at(op.group.size, 0), _at(op.group.stride, 0)
    places = tuple(range(len(devices)))
    if size <= 1:
        for place in places:
            yield _cell(op, role, stage, devices, (place,), ())
        return
    groups = families(places, stride, size)
    family = tuple(tuple(devices[p] for p in group) for group in groups)
    for group in groups:
        yield _cell(op, role, stage, devices, group, family)


def _cell(
    op: Op, role: str, stage: int, devices: tuple[int, ...], members: tuple[int, ...], family: tuple[tuple[int, ...], ...]
) -> Cell:
    place = members[0]
    outputs = tuple(piece_at(op.output, p) for p in members)
    ranks = tuple(devices[p] for p in members)
    amount = max(_real(op.bytes, p) for p in members)
    flops = float(_real(op.flops, place))
    attention = None if op.attention is None else _dims(op.attention, place)
    weights = tuple(Piece(w.name, tuple(_at(s, place) for s in w.shape), w.dtype) for w in op.weights)
    exists = any(bool(_real(op.exists, p)) for p in members)
    if op.kind in COLLECTIVES:
        work = amount if len(members) > 1 else 0.0
    elif op.kind in (Kind.MATMUL, Kind.GROUPED, Kind.ATTENTION, Kind.ATTENTION_BACKWARD):
        work = flops
    else:
        work = amount
    proto = Node(
        f"{op.name}@{ranks_name(ranks)}", op.name, op.kind, role, stage, None, 0, ranks, op.stream, (), outputs, op.dtype,
        _at(op.m, place), _at(op.k, place), _at(op.n, place), _at(op.batch, place), attention, amount, flops, weights, family,
        flow=None if op.flows is None else op.flows.at(place),
    )  # fmt: skip
    return Cell(op, members, exists and (work > 0 or any(w.elements for w in weights)), proto, outputs)


def _dims(dims: AttentionDims, place: int) -> AttentionDims:
    batch, heads, kv_heads = (_at(size, place) for size in (dims.batch, dims.heads, dims.kv_heads))
    q_len, kv_len, qk, v = (_at(size, place) for size in (dims.q_len, dims.kv_len, dims.qk_dim, dims.v_dim))
    return AttentionDims(batch, heads, kv_heads, q_len, kv_len, qk, v, dims.causal, dims.shared_kv, dims.kv_dtype)


def piece_at(tensor: Tensor, place: int) -> Piece:
    """A tensor as the GPU at one place of the stage holds it."""
    return Piece(tensor.name, tuple(_at(size, place) for size in tensor.shape), tensor.dtype, tensor.layout)


def _at(value: Size, place: int) -> int:
    return int(value) if isinstance(value, int) or value.ndim == 0 else int(value[place])


def _real(value: object, place: int) -> float:
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else float(array[place if array.size > 1 else 0])
