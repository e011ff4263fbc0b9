"""Single operators turned round for the backward pass: attention kernels, rings, where weight gradients are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.graph.context import RoleContext
from planner.graph.ops import Kind, Op, Role, Size, Store, Tensor


def gradient_of(name: str) -> str:
    """Name of the gradient that the backward operator of `name` writes; one tensor for all that the operator read."""
    return f"{name}.grad"


def weight_gradient(op: Op, dtype: str) -> Tensor:
    """Where the gradients of an operator's weights are added up over micro-batches: a weight, with its bias or alone."""
    shapes = [shard.shape for shard in op.weights]
    shape = shapes[0] if len(shapes) == 1 else (elements(op.weights),)
    return Tensor(f"{op.name}.weight_grad", shape, dtype, store=Store.GRADIENT)


def elements(tensors: Sequence[object]) -> Size:
    """Elements of several tensors or weights in all."""
    whole: Size = 0
    for tensor in tensors:
        product: Size = 1
        for size in tensor.shape:  # type: ignore[attr-defined]
            product = product * size
        whole = whole + product
    return whole


def turned_attention(op: Op, reads: tuple[str, ...], output: Tensor) -> Op:
    """The backward kernel of a fused attention kernel."""
    return replace(op, name=f"{op.name}_backward", kind=Kind.ATTENTION_BACKWARD, inputs=reads, output=output, grad_of=op.name)


@dataclass(frozen=True, slots=True)
class RingTurn:
    """Ring attention turned round: its operators, its first forward kernel, and who gets which gradient."""

    ops: tuple[Op, ...]
    first: Op
    gradients: tuple[tuple[str, str], ...]


def ring_steps(role: Role) -> list[Op]:
    """The kernels of ring attention, in order; one alone where there is no ring."""
    return [op for op in role.ops if op.attention is not None]


def ring_sends(role: Role) -> list[Op]:
    """The hand-overs of keys and values between them."""
    return [op for op in role.ops if op.kind == Kind.SEND]


def turned_ring(ctx: RoleContext, role: Role, tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> RingTurn:
    """Keys and values come round once more; the gradients of a block follow it, and go home at the end.

    Every kernel needs the whole result and its log-sum-exp, not those of its step, so nothing of a step is kept (Liu et al.,
    Ring Attention, arXiv:2310.01889). Blocks travel ahead of the gradients, which wait for the kernel before.
    """
    steps, sends = ring_steps(role), ring_sends(role)
    own = steps[0].inputs
    queries = tuple(name for name in steps[1].inputs if name in own)
    whole, block = steps[-1].output.name, sends[0].output
    ops: list[Op] = [replace(sends[0], name="ring_1_again")]
    for number, step in enumerate(steps):
        passed = f"kv{number}"
        reads = (*(own if number == 0 else (*queries, passed)), whole, *names)
        width = elements([tensors[name] for name in (own if number == 0 else queries)])
        output = Tensor(gradient_of(step.name), (width if number == 0 else width + elements([block]),), step.output.dtype)
        ops.append(turned_attention(step, reads, output))
        if 1 <= number + 1 < len(sends):
            ops.append(replace(sends[number + 1], name=f"ring_{number + 2}_again"))
        if number:
            before = (f"ring_{number - 1}.grad",) if number > 1 else ()
            travels = replace(block, name=f"ring_{number}.grad", dtype=ctx.dtype)
            ops.append(
                replace(sends[0], name=f"ring_{number}_backward", inputs=(gradient_of(step.name), *before), output=travels,
                        grad_of=f"ring_{number}")
            )  # fmt: skip
    home = f"ring_{len(steps) - 1}.grad"
    gradients = [(name, gradient_of(steps[0].name)) for name in own]
    gradients += [(name, gradient_of(step.name)) for step in steps[1:] for name in queries]
    gradients += [(name, home) for name in own if name != "q"]
    return RingTurn(tuple(ops), steps[0], tuple(gradients))
