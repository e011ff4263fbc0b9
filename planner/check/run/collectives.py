"""Collectives: how data moves between the stores of a group of GPUs, exactly as each one is defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.check.run.attention import square_sums
from planner.check.run.context import key_block
from planner.check.run.kernels import rows_of
from planner.check.run.moe import Routes, per_token, serving
from planner.check.run.segments import softmax_rows
from planner.check.run.site import Fault, Floats, Site, Value
from planner.check.run.split import Split
from planner.graph.ops import Kind

Ints = NDArray[np.int64]
Members = Sequence[Site]
Collective = Callable[[Members], list[Value]]


def contribution(site: Site) -> Value:
    """What a member brings: its tensor, or for some collectives what it computes of its tensors first."""
    if site.node.name == "qk_norm_reduce":
        return square_sums(site)
    if site.node.name.startswith("ring_"):
        return key_block(site)
    return site.read(*site.node.formals)


def _total(members: Members) -> Floats:
    parts = [contribution(site).array for site in members]
    parts = [part for part in parts if part.size] or parts  # who has no heads of its own adds nothing
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise Fault(f"its members bring different shapes: {sorted(map(list, shapes))}")
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def all_reduce(members: Members) -> list[Value]:
    """Every member gets the sum; of tokens it does not go on with, nothing is kept."""
    if members[0].node.name == "loss_max_reduce":
        highest = np.max([contribution(site).array for site in members], axis=0)
        return [Value(highest) for _ in members]
    total = _total(members)
    return [Value(_kept(site, total)) for site in members]


def _kept(site: Site, total: Floats) -> Floats:
    at, place = site.split.at, site.split.place
    if site.node.name in ("score_all_reduce", "qk_norm_reduce", "loss_sum_reduce"):
        return total
    wanted = at.residual(place)
    return total if len(total) == len(wanted) else rows_of(site, total, summed_tokens(site), wanted)


def summed_tokens(site: Site) -> Ints:
    """The tokens of the partial sums that a role adds up."""
    at, place = site.split.at, site.split.place
    if site.role == "attention":
        return at.attention(place).reshape(-1)
    if site.role in ("embedding", "head"):
        return at.vocab_tokens(place)
    return at.network(place) if site.role == "mlp" else at.order


def reduce_scatter(members: Members) -> list[Value]:
    """Every member gets its consecutive part of the sum."""
    total = _total(members)
    if members[0].node.name == "score_reduce_scatter":
        sizes, axis = [len(softmax_rows(site.split)) for site in members], 1
    else:
        after = [
            s.split.at.residual(s.split.place) if s.role == "attention" else s.split.at.own(s.split.place) for s in members
        ]
        sizes, axis = [len(tokens) for tokens in after], 0
    if sum(sizes) != total.shape[axis]:
        raise Fault(f"{total.shape[axis]} rows are scattered in parts of {sizes}")
    return [Value(part) for part in np.split(total, np.cumsum(sizes)[:-1], axis=axis)]


def all_gather(members: Members) -> list[Value]:
    """Every member gets all parts, in the order of the group, along the axis that grows."""
    parts = [contribution(site) for site in members]
    axis = _growing_axis(members[0])
    try:
        array = np.concatenate([part.array for part in parts], axis=axis)
    except ValueError:
        shapes = [list(part.array.shape) for part in parts]
        raise Fault(f"its members bring shapes that do not join: {shapes[:4]}") from None
    names = parts[0].beside.keys() if axis == 0 else ()
    beside = {name: np.concatenate([part.beside[name] for part in parts]) for name in names}
    return [Value(array, beside) for _ in members]


def _growing_axis(site: Site) -> int:
    if site.node.name == "probabilities_all_gather":
        return 1
    before, after = site.node.inputs[0].shape, site.node.outputs[0].shape
    differs = [axis for axis, (b, a) in enumerate(zip(before, after, strict=False)) if b != a]
    return differs[0] if differs else 0


def all_to_all(members: Members) -> list[Value]:
    """Every member gets from each other one the part that is meant for it."""
    name = members[0].node.name
    if name not in EXCHANGES:
        raise Fault(f"an all-to-all called {name} has no definition")
    return EXCHANGES[name](members)


def _swap_columns_for_tokens(members: Members) -> list[Value]:
    """From all tokens and own columns to own tokens and all columns."""
    parts = [contribution(site).array for site in members]
    held = summed_tokens(members[0])
    wanted = [site.split.at.residual(site.split.place) for site in members]
    return [Value(np.concatenate([rows_of(site, part, held, tokens) for part in parts], axis=1))
            for site, tokens in zip(members, wanted, strict=True)]  # fmt: skip


def _swap_context_for_heads(members: Members) -> list[Value]:
    """From all heads over own keys to own heads over all keys, with their log-sum-exp."""
    found = []
    for site in members:
        mine = np.isin(site.split.heads, site.split.own_heads)
        arrays, sums = [], []
        for other in members:
            part = contribution(other)
            dims = part.array.shape[1] // len(other.split.heads)
            arrays.append(part.array[:, np.repeat(mine, dims)])
            sums.append(part.beside["log_sum_exp"][..., mine])
        found.append(Value(np.stack(arrays), {"log_sum_exp": np.stack(sums)}))
    return found


def _dispatch(members: Members) -> list[Value]:
    return send_tokens(members, [site.split for site in members])


def send_tokens(sources: Members, targets: Sequence[Split]) -> list[Value]:
    """Every token goes once to each group of GPUs that serves one of its experts; without routes all go everywhere."""
    arrays = [site.read("xn").array for site in sources]
    tokens = [site.split.at.own(site.split.place) for site in sources]
    for array, own in zip(arrays, tokens, strict=True):
        if len(array) != len(own):
            raise Fault(f"a sender has {len(array)} tokens, and its part is {len(own)}")
    x, numbers = np.concatenate(arrays), np.concatenate(tokens)
    if not all(site.has("routes") for site in sources):
        if any(site.has("routes") for site in sources):
            raise Fault("some tokens come without their routes")
        return [Value(x, {"tokens": numbers}) for _ in targets]
    routes = [Routes.of(site.read("routes")) for site in sources]
    experts, weights = np.concatenate([r.experts for r in routes]), np.concatenate([r.weights for r in routes])
    places = np.repeat([site.split.place for site in sources], [len(own) for own in tokens])
    groups = serving(targets[0], experts, places)
    found = []
    for target in targets:
        rows = (groups == target.expert_group).any(axis=1)
        beside = {"tokens": numbers[rows], "experts": experts[rows], "weights": weights[rows], "groups": groups[rows]}
        found.append(Value(x[rows], beside))
    return found


def _combine(members: Members) -> list[Value]:
    return return_tokens(members, [site.split for site in members])


def return_tokens(sources: Members, targets: Sequence[Split]) -> list[Value]:
    """Every group's sums go back to the GPUs that own the tokens."""
    rows, tokens = [], []
    for site in (site for site in sources if len(site.split.experts)):
        partial = site.read("expert_partial")
        numbers = np.asarray(partial.beside["tokens"], dtype=np.int64)
        served = np.unique(np.asarray(partial.beside["row"], dtype=np.int64))
        rows.append(per_token(partial, len(numbers))[served])
        tokens.append(numbers[served])
    everything, numbers = np.concatenate(rows), np.concatenate(tokens)
    found = []
    for target in targets:
        mine = np.isin(numbers, target.at.own(target.place))
        found.append(Value(everything[mine], {"tokens": numbers[mine]}))
    return found


def ring(members: Members) -> list[Value]:
    """Every member gets what the one before it brings."""
    parts = [contribution(site) for site in members]
    return [parts[index - 1] for index in range(len(parts))]


def hand_over(sources: Members, targets: Sequence[Split]) -> list[Value]:
    """The residual stream of one stage in equal slices to the GPUs of the next."""
    found: dict[int, Floats] = {}
    for site in sources:
        held, x = site.split.at.residual(site.split.place), site.array("x")
        if len(held) != len(x):
            raise Fault(f"a sender has {len(x)} tokens, and its part is {len(held)}")
        for token, row in zip(held, x, strict=True):
            found.setdefault(int(token), row)
    values = []
    for target in targets:
        wanted = target.at.own(target.place)
        missing = [int(token) for token in wanted if int(token) not in found]
        if missing:
            raise Fault(f"{len(missing)} tokens that GPU {target.at.stage.devices[target.place]} needs were not sent")
        rows = [found[int(token)] for token in wanted]
        values.append(Value(np.array(rows).reshape(len(rows), target.world.twin.model.hidden)))
    return values


EXCHANGES: dict[str, Collective] = {
    "o_all_to_all": _swap_columns_for_tokens,
    "merge_all_to_all": _swap_context_for_heads,
    "dispatch": _dispatch,
    "combine": _combine,
}

COLLECTIVES: dict[Kind, Collective] = {
    Kind.ALL_REDUCE: all_reduce,
    Kind.ALL_GATHER: all_gather,
    Kind.REDUCE_SCATTER: reduce_scatter,
    Kind.ALL_TO_ALL: all_to_all,
    Kind.SEND: ring,
}
TRANSFERS: dict[str, Callable[[Members, Sequence[Split]], list[Value]]] = {
    "send": hand_over,
    "send_back": hand_over,
    "dispatch": send_tokens,
    "combine": return_tokens,
}
