"""The makespan of a linear pipeline, and the hand-over of a micro-batch from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.evaluate.setting import Setting
from planner.graph.handover import handover_bytes

TOKEN_ID_BYTES = 4


def makespan(stages: Sequence[float], sends: Sequence[float], micro_batches: int, decode: bool) -> float:
    """Seconds of one pass of all micro-batches through stages of fixed times.

    Prefill: the time until the last micro-batch leaves, sum(T + c) + (M - 1) max(T, c). Decode: the time per output
    token in steady state, max(sum(T + c), M max(T, c)), since a sequence's next token waits for its last; `sends` then
    include the way of the sampled tokens from the last stage to the first.
    """
    chain, slowest = sum(stages) + sum(sends), max((*stages, *sends))
    if decode:
        return max(chain, micro_batches * slowest)
    return chain + (micro_batches - 1) * slowest


def send_seconds(env: Setting, source: tuple[int, ...], target: tuple[int, ...], sequences: int) -> float:
    """Seconds to hand a micro-batch over: every sender passes equal slices of the tokens on (scatter-gather of Megatron-LM)."""
    return _transfer(env, source, target, *transfer_bytes(env, source, target, sequences))


def transfer_bytes(env: Setting, source: tuple[int, ...], target: tuple[int, ...], sequences: int) -> tuple[float, float]:
    """Bytes that a GPU of the sending stage sends, and one of the receiving stage gets, for one micro-batch."""
    return handover_bytes(env.context, len(source), len(target), sequences * env.query_length)


def feedback_seconds(env: Setting, source: tuple[int, ...], target: tuple[int, ...], sequences: int) -> float:
    """Seconds for the sampled token ids to get from the last GPU of the last stage to the first GPU of the first, in decode."""
    amount = float(sequences * TOKEN_ID_BYTES)
    return _transfer(env, source[-1:], target[:1], amount, amount)


def _transfer(env: Setting, source: tuple[int, ...], target: tuple[int, ...], sent: float, received: float) -> float:
    fraction = crossing_fraction(env.cluster.domain_of, source, target)
    return float(env.pricer.collectives.m2n_time(sent, received, len(source), len(target), fraction))


@lru_cache(maxsize=65536)
def crossing_fraction(domain_of: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]) -> float:
    """Largest share of any GPU's slices that leaves its domain; see `crossing_share`."""
    used = max(*source, *target) + 1
    return crossing_share(np.asarray(domain_of[:used]), source, target)


def crossing_share(domains: NDArray[np.int64], source: Sequence[int], target: Sequence[int]) -> float:
    """Largest share of any GPU's slices that leaves its domain, given the domain of each rank; the sets have no rank in common,
    or are one rank and the same.

    Slice t of max(senders, receivers) goes from sender t * senders // slices to receiver t * receivers // slices.
    """
    slices = max(len(source), len(target))
    ends = [np.arange(slices) * len(side) // slices for side in (source, target)]
    near, far = (domains[np.asarray(side)][end] for side, end in zip((source, target), ends, strict=True))
    shares = [np.bincount(end, near != far) / np.bincount(end) for end in ends]
    return float(max(share.max() for share in shares))
