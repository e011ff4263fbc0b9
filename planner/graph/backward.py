"""The backward pass of a role, derived from its operators: gradients of inputs, and of weights apart.

Every operator is turned round: a matrix product becomes two, a fused kernel its backward kernel, an element-wise kernel
one that reads what went in and what came back. A collective's gradient depends on how the two sides hold the tensor, so
it is stated by a `Crossing`. What the backward operators read of the forward pass is what memory must keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.graph.context import RoleContext
from planner.graph.ops import COLLECTIVES, Kind, Layout, Op, Role, Size, Store, Tensor

LINEAR = frozenset({"rope", "permute"})
"""Element-wise operators whose gradient needs nothing that went in."""
KEPT_OUTPUTS = frozenset({"softmax"})
"""Element-wise operators whose gradient needs what came out instead of what went in."""
STOPPED = frozenset({"squares", "cache", "picked", "index_scores", "iq", "ik", "ikn", "iw"})
"""Tensors that no gradient passes: what picks sparse keys, and reductions that a training plan never has."""
Gradients = tuple[str, ...]
"""The tensors whose sum is a gradient."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """How the gradient of tensor `output` becomes that of `source`, which collectives made it from.

    `ops` carry it, in order; the first reads the gradient by the name of `output`; none where it is there already. With
    `again` the collective is repeated before the weight gradients, so that only its input is kept.
    """

    output: str
    source: str
    ops: tuple[Op, ...] = ()
    again: bool = False


@dataclass(frozen=True, slots=True)
class Backward:
    """Gradients of inputs (from `dy` to `dx`) and of weights, and the forward tensors that either reads."""

    inputs: Role
    weights: Role
    saved: tuple[str, ...]


def gradient_of(name: str) -> str:
    """Name of the gradient that the backward operator of `name` writes; one tensor for all that the operator read."""
    return f"{name}.grad"


def backward(ctx: RoleContext, role: Role, crossings: Sequence[Crossing], start: Sequence[Op] = ()) -> Backward:
    """The backward pass of a role. `start` makes the first gradients where the role ends in a loss; else `dy` comes in."""
    return _Backward(ctx, role, {c.output: c for c in crossings}).build(start)


class _Backward:
    """Walks the operators of a role backwards, carrying the gradient of every tensor."""

    def __init__(self, ctx: RoleContext, role: Role, crossings: Mapping[str, Crossing]) -> None:
        self.ctx, self.role, self.crossings = ctx, role, crossings
        self.tensors = {op.output.name: op.output for op in reversed(role.ops)}
        if role.x is not None:
            self.tensors[role.x.name] = role.x
        self.made_from = {op.output.name: op for op in role.ops}
        self.found: dict[str, list[str]] = {}
        self.inputs: list[Op] = []
        self.weights: list[Op] = []

    def build(self, start: Sequence[Op]) -> Backward:
        """Both roles and what they keep."""
        if start:
            self.inputs += start
            self.found[start[-1].output.name.removesuffix(".grad")] = [start[-1].output.name]
        else:
            self.found["y"] = ["dy"]
        crossed: set[str] = set()
        for op in reversed(self.role.ops):
            if op.output.name in crossed:
                continue
            crossing = self.crossings.get(op.output.name)
            if crossing is not None:
                crossed |= self._inside(crossing)
                self._cross(crossing)
            elif op.kind in COLLECTIVES - {Kind.SEND}:  # one that no training plan has: what it would have gathered is whole
                for source in op.inputs:
                    self._add(source, tuple(self.found.pop(op.output.name, ())))
            else:
                self._turn(op)
        self._close()
        own = self.role.x
        dy = None if own is None and start else replace(self._like_y(), name="dy")
        repeated = [self._again(c) for c in self.crossings.values() if c.again]
        inputs = Role(f"{self.role.name}_backward", dy, tuple(self.inputs))
        weights = Role(f"{self.role.name}_weights", dy, (*(op for op in repeated if op), *self.weights))
        return Backward(inputs, weights, self._saved())

    def _like_y(self) -> Tensor:
        return self.tensors["y"] if "y" in self.tensors else self.role.ops[-1].output

    def _inside(self, crossing: Crossing) -> set[str]:
        """The tensors between both ends of a crossing, whose collectives it stands for."""
        inside, names = {crossing.output}, [crossing.output]
        while names:
            name = names.pop()
            for op in self.role.ops:
                if op.output.name == name:
                    fresh = [n for n in op.inputs if n != crossing.source and n not in inside and n in self.made_from]
                    inside |= set(fresh)
                    names += fresh
        return inside

    def _cross(self, crossing: Crossing) -> None:
        """Carry a gradient through a crossing."""
        gradient = self.found.pop(crossing.output, None)
        if gradient is None:
            return
        names = tuple(gradient)
        for op in crossing.ops:
            inputs = tuple(n for name in op.inputs for n in (names if name == crossing.output else (name,)))
            self.inputs.append(replace(op, inputs=inputs))
        self._add(crossing.source, (crossing.ops[-1].output.name,) if crossing.ops else names)

    def _turn(self, op: Op) -> None:
        """Turn one operator round."""
        gradient = self.found.pop(op.output.name, None)
        if gradient is None:
            return
        names = tuple(gradient)
        if op.name.endswith("_residual"):
            for source in op.inputs:
                self._add(source, names)
        elif op.kind in (Kind.MATMUL, Kind.GROUPED):
            self._product(op, names)
        elif op.attention is not None:
            self._attention(op, names)
        elif op.kind == Kind.SEND:
            moved = 2.0 * op.output.bytes  # keys and values once more, and their gradients
            output = replace(op.output, name=gradient_of(op.name))
            self.inputs.append(replace(op, name=f"{op.name}_backward", inputs=names, output=output, bytes=moved))
            for source in _real(op, self.made_from):
                self._add(source, (output.name,))
        else:
            self._elementwise(op, names)

    def _product(self, op: Op, names: Gradients) -> None:
        sources = _real(op, self.made_from)
        if not op.weights:  # both operands are activations: one product each
            for source, (m, k, n) in zip(sources[:1] + sources[-1:], _operand_products(op), strict=True):
                output = replace(self.tensors[source], name=f"{gradient_of(op.name)}.{source}", layout=Layout.REPLICATED)
                inputs = (*names, *(s for s in sources if s != source))
                self.inputs.append(
                    replace(op, name=f"{op.name}_backward_{source}", inputs=inputs, output=output, m=m, k=k, n=n)
                )
                self._add(source, (output.name,))
            return
        rows = op.output.shape[0]
        if op.kind == Kind.LOOKUP or not sources:
            return
        output = replace(self.tensors[sources[0]], name=gradient_of(op.name), layout=Layout.PARTIAL, dtype=self.ctx.dtype)
        earlier = self._so_far(sources)
        self.inputs.append(
            replace(op, name=f"{op.name}_dgrad", inputs=(*names, *earlier), output=output, k=op.n, n=op.k, grad_of=op.name)
        )
        self._weights(op, names, rows)
        self.found[sources[0]] = [output.name]

    def _so_far(self, sources: Sequence[str]) -> Gradients:
        """What is known of the gradient of the one input: the next operator adds to it, so that collectives meet one sum."""
        own = self.role.x.name if self.role.x is not None else ""
        return tuple(self.found.pop(sources[0], ())) if len(sources) == 1 and sources[0] != own else ()

    def _weights(self, op: Op, names: Gradients, rows: Size) -> None:
        shard = op.weights[0]
        written = Tensor(f"{op.name}.weight_grad", shard.shape, self.ctx.gradient_dtype, store=Store.GRADIENT)
        self.weights.append(
            replace(op, name=f"{op.name}_wgrad", inputs=(*op.inputs, *names), output=written, m=op.k, k=op.m, weights=(),
                    rows=rows, grad_of=op.name)
        )  # fmt: skip

    def _attention(self, op: Op, names: Gradients) -> None:
        sources = [s for s in _real(op, self.made_from) if s not in STOPPED]
        earlier = [s for s in sources if self.made_from[s].attention is not None]  # a ring's result so far: passed on
        sources = [s for s in sources if s not in earlier]
        output = Tensor(gradient_of(op.name), (_elements([self.tensors[s] for s in sources]),), op.output.dtype)
        reads = (*sources, op.output.name, *names)
        self.inputs.append(
            replace(op, name=f"{op.name}_backward", kind=Kind.ATTENTION_BACKWARD, inputs=reads, output=output, weights=(),
                    grad_of=op.name)
        )  # fmt: skip
        for source in sources:
            self._add(source, (output.name,))
        for source in earlier:
            self._add(source, names)

    def _elementwise(self, op: Op, names: Gradients) -> None:
        """One kernel for the gradients of all inputs: it reads them and the gradient, and writes as much as it read."""
        sources = [s for s in _real(op, self.made_from) if s not in STOPPED]
        if not sources:
            if op.kind == Kind.LOOKUP:
                written = Tensor(f"{op.name}.weight_grad", op.weights[0].shape, self.ctx.gradient_dtype, store=Store.GRADIENT)
                self.weights.append(
                    replace(op, name=f"{op.name}_wgrad", inputs=names, output=written, weights=(), grad_of=op.name)
                )
            return
        like = self.tensors[sources[0]]
        shape = like.shape if len(sources) == 1 else (_elements([self.tensors[s] for s in sources]),)
        output = Tensor(gradient_of(op.name), shape, like.dtype)
        if op.name in LINEAR:
            reads, moved = names, op.bytes
        elif op.name in KEPT_OUTPUTS:
            reads, moved = (op.output.name, *names), 2.0 * op.bytes - op.output.bytes
        else:
            reads, moved = (*sources, *names), 2.0 * op.bytes - op.output.bytes
        earlier = self._so_far(sources)
        moved = moved + len(earlier) * output.bytes
        self.inputs.append(
            replace(op, name=f"{op.name}_backward", inputs=(*reads, *earlier), output=output, bytes=moved, grad_of=op.name)
        )
        if output.name in self.crossings:
            self.found[output.name] = [output.name]
            self._cross(self.crossings[output.name])
            return
        for source in sources:
            self._add(source, (output.name,))

    def _close(self) -> None:
        """The gradient of the role's input: the sum of what came past it and what went through it."""
        own = self.role.x
        if own is None:
            return
        names = tuple(self.found.get(own.name, ()))
        dx = replace(own, name="dx", layout=Layout.REPLICATED, store=Store.ACTIVATION)
        self.inputs.append(
            self.ctx.elementwise("accumulate", names, dx, passes=float(len(names) + 1) if len(names) > 1 else 0.0)
        )

    def _again(self, crossing: Crossing) -> Op | None:
        op = self.made_from.get(crossing.output)
        return None if op is None else replace(op, name=f"{op.name}_again")

    def _add(self, name: str, gradient: Gradients) -> None:
        if name in STOPPED:
            return
        held = self.found.setdefault(name, [])
        held += [g for g in gradient if g not in held]

    def _saved(self) -> tuple[str, ...]:
        again = {c.output: c.source for c in self.crossings.values() if c.again}
        read = dict.fromkeys(again.get(n, n) for op in (*self.inputs, *self.weights) for n in op.inputs if n in self.tensors)
        return tuple(read)


def _real(op: Op, made_from: Mapping[str, Op]) -> list[str]:
    """The tensors that an operator reads, without those that stand for the case that a collective is absent."""
    spare = {
        source
        for name in op.inputs
        if name in made_from and made_from[name].kind in COLLECTIVES - {Kind.SEND}
        and made_from[name].output.layout != Layout.PARTIAL
        for source in made_from[name].inputs
    }  # fmt: skip
    return [name for name in op.inputs if name not in spare]


def _operand_products(op: Op) -> Iterator[tuple[Size, Size, Size]]:
    """(m, k, n) of the gradient of the left operand, then of the right one."""
    yield op.m, op.n, op.k
    yield op.k, op.m, op.n


def _elements(tensors: Sequence[Tensor]) -> Size:
    """Elements of several tensors in all."""
    whole: Size = 0
    for tensor in tensors:
        product: Size = 1
        for size in tensor.shape:
            product = product * size
        whole = whole + product
    return whole
