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
from planner.graph.turned import (
    elements,
    gradient_of,
    ring_sends,
    ring_steps,
    turned_attention,
    turned_ring,
    weight_gradient,
)

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
    `again` the collective is repeated before the weight gradients, so that only its input is kept. `also` is another tensor
    whose gradient comes the same way.
    """

    output: str
    source: str
    ops: tuple[Op, ...] = ()
    again: bool = False
    also: str = ""


@dataclass(frozen=True, slots=True)
class Backward:
    """Gradients of inputs (from `dy` to `dx`) and of weights, and the forward tensors that either reads."""

    inputs: Role
    weights: Role
    saved: tuple[str, ...]


def backward(
    ctx: RoleContext, role: Role, crossings: Sequence[Crossing], start: Sequence[Op] = (), scaled: bool = False
) -> Backward:
    """The backward pass of a role. `start` makes the first gradients where the role ends in a loss; else `dy` comes in.

    `scaled`: the weights of a token's experts scale what goes into them, so that their gradient is made there.
    """
    return _Backward(ctx, role, {c.output: c for c in crossings}, scaled).build(start)


class _Backward:
    """Walks the operators of a role backwards, carrying the gradient of every tensor."""

    def __init__(self, ctx: RoleContext, role: Role, crossings: Mapping[str, Crossing], scaled: bool) -> None:
        self.ctx, self.role, self.crossings, self.scaled = ctx, role, crossings, scaled
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
            elif op.attention is not None and len(ring := ring_steps(self.role)) > 1:
                crossed |= {step.output.name for step in (*ring, *ring_sends(self.role))}
                self._ring(op)
            elif op.kind in COLLECTIVES:  # one that no training plan has: what it would have gathered is whole
                for source in op.inputs:
                    self._add(source, tuple(self.found.pop(op.output.name, ())))
            else:
                self._turn(op)
        self._close()
        dy = None if start else replace(self._like_y(), name="dy")
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
                    fresh = [n for n in op.inputs if n != crossing.source and n not in inside and self._gathered(n)]
                    inside |= set(fresh)
                    names += fresh
        return inside

    def _gathered(self, name: str) -> bool:
        """Whether a collective makes a tensor."""
        return name in self.made_from and self.made_from[name].kind in COLLECTIVES

    def _cross(self, crossing: Crossing) -> None:
        """Carry a gradient through a crossing."""
        gradient = self.found.pop(crossing.output, None)
        if gradient is None:
            return
        names = tuple(gradient)
        for op in crossing.ops:
            inputs = tuple(n for name in op.inputs for n in (names if name == crossing.output else (name,)))
            self.inputs.append(replace(op, inputs=inputs))
        found = (crossing.ops[-1].output.name,) if crossing.ops else names
        self._add(crossing.source, found)
        if crossing.also:
            self._add(crossing.also, found)

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
        if not sources:
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
        alone = len(sources) == 1 or (self.scaled and sources[1:] == ["routes_all"])
        return tuple(self.found.pop(sources[0], ())) if alone and sources[0] != own else ()

    def _weights(self, op: Op, names: Gradients, rows: Size) -> None:
        written = weight_gradient(op, self.ctx.gradient_dtype)
        self.weights.append(
            replace(op, name=f"{op.name}_wgrad", inputs=(*op.inputs, *names, written.name), output=written, m=op.k, k=op.m,
                    weights=(), rows=rows, grad_of=op.name)
        )  # fmt: skip

    def _added(self, op: Op, gradient: str) -> None:
        """Add the gradient of a weight that a backward kernel makes beside that of its input to the gradient buffer."""
        if op.weights:
            written = weight_gradient(op, self.ctx.gradient_dtype)
            self.weights.append(
                self.ctx.elementwise(f"{op.name}_wgrad", (gradient, written.name), written, passes=3.0, grad_of=op.name)
            )

    def _attention(self, op: Op, names: Gradients) -> None:
        sources = [s for s in _real(op, self.made_from) if s not in STOPPED]
        output = Tensor(gradient_of(op.name), (elements([self.tensors[s] for s in sources]),), op.output.dtype)
        reads = (*sources, *(s for s in op.inputs if s == "picked"), op.output.name, *names)
        self.inputs.append(turned_attention(op, reads, output))
        self._added(op, output.name)
        for source in sources:
            self._add(source, (output.name,))

    def _ring(self, last: Op) -> None:
        """All steps of ring attention: each is turned round with the whole result, keys and values come round again."""
        names = tuple(self.found.pop(last.output.name, ()))
        turn = turned_ring(self.ctx, self.role, self.tensors, names)
        self.inputs += turn.ops
        self._added(turn.first, gradient_of(turn.first.name))
        for source, gradient in turn.gradients:
            self._add(source, (gradient,))

    def _elementwise(self, op: Op, names: Gradients) -> None:
        """One kernel for the gradients of all inputs: it reads them and the gradient, and writes as much as it read."""
        sources = self._sources(op)
        if not sources:
            if op.kind == Kind.LOOKUP:
                written = weight_gradient(op, self.ctx.gradient_dtype)
                self.weights.append(
                    replace(op, name=f"{op.name}_wgrad", inputs=(*names, written.name), output=written, weights=(),
                            grad_of=op.name)
                )  # fmt: skip
            return
        like = self.tensors[sources[0]]
        shape = like.shape if len(sources) == 1 else (elements([self.tensors[s] for s in sources]),)
        if op.name.endswith("norm") and len(sources) == 1:  # of the tokens that it norms, which may be a part of its input's
            shape = (op.output.shape[0], *like.shape[1:])
        output = Tensor(gradient_of(op.name), shape, like.dtype)
        if op.name in LINEAR:
            own = (op.output.name,) if op.name == "permute" and self.scaled else ()
            reads, moved = (*own, *names), op.bytes
        elif op.name == "unpermute":
            reads, moved = (*self._mixed(sources), *names), 2.0 * op.bytes - op.output.bytes
        elif op.name in KEPT_OUTPUTS:
            reads, moved = (op.output.name, *names), 2.0 * op.bytes - op.output.bytes
        else:
            reads, moved = (*sources, *names), 2.0 * op.bytes - op.output.bytes
        earlier = self._so_far(sources)
        moved = moved + len(earlier) * output.bytes
        self.inputs.append(
            replace(op, name=f"{op.name}_backward", inputs=(*earlier, *reads), output=output, bytes=moved, grad_of=op.name)
        )
        self._added(op, output.name)
        if output.name in self.crossings:
            self.found[output.name] = [output.name]
            self._cross(self.crossings[output.name])
            return
        for source in sources:
            self._add(source, (output.name,))

    def _sources(self, op: Op) -> list[str]:
        """What an element-wise operator passes a gradient to. The weights of a token's experts get theirs where they are used:
        on what goes into the experts, on what comes out of them here, or on the way back to the token's GPU.
        """
        sources = [s for s in _real(op, self.made_from) if s not in STOPPED]
        routes = [s for s in sources if s.startswith("routes")]
        unused = (op.name == "permute" and not self.scaled) or (
            op.name == "unpermute" and (self.scaled or "returned" in sources)
        )
        return [s for s in sources if s not in routes] if unused else sources

    def _mixed(self, sources: Sequence[str]) -> list[str]:
        """Of what is summed up for a token that which the gradient depends on: the parts of weighted sums and their gates."""
        gated = "shared_opening" in sources
        return [s for s in sources if s == "expert_partial" or (gated and s.startswith("shared"))]

    def _close(self) -> None:
        """The gradient of the role's input: the sum of what came past it and what went through it."""
        own = self.role.x
        if own is None:
            return
        names = tuple(self.found.get(own.name, ()))
        dx = replace(own, name="dx", layout=Layout.REPLICATED, store=Store.ACTIVATION)
        several = len(names) > 1
        self.inputs.append(
            self.ctx.elementwise("accumulate", names, dx, passes=len(names) + 1.0 if several else 0.0, exists=int(several))
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
        made = {op.output.name for op in self.inputs}
        named = (n for op in (*self.inputs, *self.weights) for n in op.inputs if n in self.tensors and n not in made)
        return tuple(dict.fromkeys(again.get(n, n) for n in named))


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
