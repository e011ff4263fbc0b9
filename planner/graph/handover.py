"""What a stage hands to the next: equal slices of the tokens of a micro-batch."""

from __future__ import annotations

from planner.graph.context import RoleContext


def handover_bytes(ctx: RoleContext, senders: int, receivers: int, tokens: int) -> tuple[float, float]:
    """Bytes that a GPU of the sending stage sends, and one of the receiving stage gets, for one micro-batch."""
    slices = min(senders, receivers)
    amount = float(ctx.tensor("", -(-tokens // slices), ctx.model.hidden).bytes)
    return amount * slices / senders, amount * slices / receivers
