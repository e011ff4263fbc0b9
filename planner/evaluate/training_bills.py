"""What a role costs in training, per row: seconds of its passes, bytes that are kept and bytes that pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from planner.costs.pricer import Sites, live_peak, longest_path
from planner.costs.training import CLASSES, CORE, COUNTS, class_of
from planner.evaluate.setting import Setting
from planner.graph.ops import Kind, Op, Role, Store, Tensor
from planner.graph.trained import Trained
from planner.units import DTYPE_BITS, dtype_bytes

Array = NDArray[np.float64]
PRODUCTS = (Kind.MATMUL, Kind.GROUPED)


@dataclass(frozen=True, slots=True)
class PassRows:
    """Per row [rows]: seconds of the forward pass, of the gradients of inputs and of weights, of the attention core; bytes kept
    for the backward pass, those of them that the core can make again, those of the role's input; most bytes that live for
    a moment in the backward pass, those of logits among them; FLOPs of all three passes. `spent` [rows, pass, class]: GPU
    seconds of each pass (forward, inputs, weights, the core) by the classes of `planner/costs/training.py`, and last how
    many operators the host issues, of dense roles and of mixtures.
    """

    forward_s: Array
    inputs_s: Array
    weights_s: Array
    core_s: Array
    saved_bytes: Array
    core_bytes: Array
    input_bytes: Array
    transient_bytes: Array
    logits_bytes: Array
    flops: Array
    spent: Array = field(kw_only=True)

    def at(self, rows: NDArray[np.int64]) -> PassRows:
        """Some of the rows."""
        return PassRows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def pass_rows(env: Setting, sites: Sites, trained: Trained) -> PassRows:
    """The bill of a role's passes on every row."""
    forward, inputs, weights = trained.forward, trained.backward.inputs, trained.backward.weights
    rows = sites.index.shape
    durations = [
        [np.broadcast_to(env.pricer.seconds(op, sites), rows) for op in role.ops] for role in (forward, inputs, weights)
    ]
    seconds = [longest_path(role, own) for role, own in zip((forward, inputs, weights), durations, strict=True)]
    core = [op for op in forward.ops if op.name in CORE]
    mixture = any(op.kind == Kind.GROUPED for op in forward.ops)
    spent = [by_class(role.ops, own, rows, mixture) for role, own in zip((forward, inputs, weights), durations, strict=True)]
    own_core = [s for op, s in zip(forward.ops, durations[0], strict=True) if op.name in CORE]
    core_s = sum(own_core, np.zeros(rows))
    spent.append(by_class(core, own_core, rows))
    again = {op.output.name for op in core if op.name != "attention_value"}
    saved = kept_bytes(forward, trained.backward.saved, rows, narrowed(weights, inputs))
    if env.context.training is not None and env.context.training.dropout:
        saved = saved + dropout_bytes(forward)
    core_bytes = kept_bytes(forward, tuple(n for n in trained.backward.saved if n in again), rows)
    own = np.zeros(()) if forward.x is None else forward.x.bytes
    logits = [op.output.bytes for op in inputs.ops if op.output.store == Store.LOGITS]
    flops = sum((op.flops for role in (forward, inputs, weights) for op in role.ops), np.zeros(()))
    most = np.max([np.broadcast_to(b, rows) for b in logits], axis=0) if logits else np.zeros(rows)
    columns = (*seconds, core_s, saved, core_bytes, own, live_peak(inputs, rows)[0], most, flops)
    found = (np.array(np.broadcast_to(column, rows), dtype=np.float64) for column in columns)
    return PassRows(*found, spent=np.stack(spent, axis=1))


def by_class(ops: Sequence[Op], durations: Sequence[Array], rows: tuple[int, ...], mixture: bool = False) -> Array:
    """Seconds of operators by class, and how many there are (of dense roles, of mixtures): [rows, class]."""
    found = np.zeros((len(CLASSES) + COUNTS, *rows))
    for op, seconds in zip(ops, durations, strict=True):
        found[CLASSES.index(class_of(op))] += seconds
        found[len(CLASSES) + mixture] += seconds > 0.0
    return found.T


def narrowed(weights: Role, inputs: Role) -> dict[str, str]:
    """Forward tensors that only narrow products read in the backward pass, which keeps them as those do: name and dtype."""
    found = {n: op.dtype for op in weights.ops if op.kind in PRODUCTS and DTYPE_BITS[op.dtype] <= 8 for n in op.inputs}
    for op in weights.ops:  # what is gathered again is kept as the part that was there
        if op.kind not in PRODUCTS and op.output.name in found:
            found |= dict.fromkeys(op.inputs, found[op.output.name])
    wide = {name for op in inputs.ops for name in op.inputs}
    wide |= {name for op in weights.ops if op.kind in PRODUCTS and DTYPE_BITS[op.dtype] > 8 for name in op.inputs}
    return {name: dtype for name, dtype in found.items() if name not in wide}


def kept_bytes(role: Role, names: tuple[str, ...], rows: tuple[int, ...], narrow: Mapping[str, str] | None = None) -> Array:
    """Bytes [rows] of forward tensors that are kept until the backward pass; one that no operator wrote is not there."""
    total, dtypes = np.zeros(rows), narrow or {}
    for name in names:
        writers = [op for op in role.ops if op.output.name == name]
        if writers:
            own = np.max([np.broadcast_to(_written(op), rows) for op in writers], axis=0)
            stored = dtype_bytes(writers[0].output.dtype)
            total = total + own * min(1.0, dtype_bytes(dtypes[name]) / stored if name in dtypes else 1.0)
        elif role.x is not None and role.x.name == name:
            total = total + role.x.bytes
    return total


def dropout_bytes(role: Role) -> Array:
    """One byte for each element that a residual branch drops."""
    return np.asarray(sum(_elements(op.output) for op in role.ops if op.name.endswith("_residual")))


def rows_of(role: Role) -> int:
    """How many rows the sizes of a role have."""
    sizes: Iterator[int] = (np.size(value) for op in role.ops for value in (op.exists, op.m, op.n, op.bytes, *op.output.shape))
    return max(sizes, default=1)


def _written(op: Op) -> Array:
    present = np.asarray(op.exists, dtype=np.float64)
    if op.group is not None:
        present = present * (np.asarray(op.group.size) > 1)
    return np.asarray(op.output.bytes * present)


def _elements(tensor: Tensor) -> Array:
    total = np.asarray(1.0)
    for size in tensor.shape:
        total = total * np.asarray(size, dtype=np.float64)
    return total
