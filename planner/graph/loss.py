"""The loss of a training step: vocabulary-parallel cross entropy over the logits that a head leaves on its GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.graph.context import RoleContext
from planner.graph.ops import Group, Kind, Layout, Op, Role, Tensor
from planner.graph.rows import FfnRows


def loss_role(ctx: RoleContext, head: Role, rows: FfnRows) -> Role:
    """The head role with the loss after it: each GPU reduces its columns, maxima and sums are exchanged per token.

    Cross entropy over a split vocabulary (Shoeybi et al., Megatron-LM, arXiv:1909.08053, section 3): what travels is the
    maximum of every token, then the sum of its exponentials and the logit of its target, not the logits.
    """
    return replace(head, name="loss", ops=(*head.ops, *_cross_entropy(ctx, head.ops[-1].output, rows)))


def loss_gradient(role: Role) -> Op:
    """The first operator of the backward pass: softmax minus target, from the logits and each token's sums."""
    logits = next(op.output for op in role.ops if op.name == "lm_head")
    written = replace(logits, name="logits.grad")
    return Op("loss_backward", Kind.ELEMENTWISE, ("logits", "loss_maximum", "loss_sums"), written, logits.dtype,
              bytes=2.0 * logits.bytes, grad_of="loss")  # fmt: skip


def _cross_entropy(ctx: RoleContext, logits: Tensor, rows: FfnRows) -> Iterator[Op]:
    tokens, stage = logits.shape[0], Group("stage", 1, rows.ways)
    own = Tensor("own_maximum", (tokens, 1), "fp32", Layout.PARTIAL)
    yield Op("loss_max", Kind.ELEMENTWISE, ("logits",), own, "fp32", bytes=logits.bytes)
    maximum = replace(own, name="loss_maximum", layout=Layout.REPLICATED)
    yield Op("loss_max_reduce", Kind.ALL_REDUCE, ("own_maximum",), maximum, "fp32", bytes=own.bytes, group=stage)
    parts = Tensor("own_sums", (tokens, 2), "fp32", Layout.PARTIAL)
    yield Op("loss_sum", Kind.ELEMENTWISE, ("logits", "loss_maximum"), parts, "fp32", bytes=2.0 * logits.bytes)
    sums = replace(parts, name="loss_sums", layout=Layout.REPLICATED)
    yield Op("loss_sum_reduce", Kind.ALL_REDUCE, ("own_sums",), sums, "fp32", bytes=parts.bytes, group=stage)
    yield ctx.elementwise("loss", ("loss_sums", "loss_maximum"), Tensor("y", (tokens, 1), "fp32"))
