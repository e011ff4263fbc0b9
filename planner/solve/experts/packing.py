"""Packing of expert copies into the slots of GPUs: longest first, then exchanges that lower the most expensive GPU.

All layers are packed at once: arrays have a leading axis L of layers that have nothing to do with each other. What a copy
weighs has D components (its load; or its routed tokens and its chance of being read), and a cost says what a GPU's sum of
weights comes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Cost = Callable[[Array], Array]
"""From sums of weights [D, ...] to the cost of a GPU [...]; not decreasing in any component."""

STEP = 1e-12
NEAR = 8
"""GPUs that a pair of copies is offered to: those of least cost."""
ROUNDS = 2000
KICKS = 4
"""Random exchanges before a clone is improved again."""


def load_cost(weights: Array) -> Array:
    """The cost of a GPU is its load."""
    return np.asarray(weights[0])


@dataclass
class Packing:
    """Experts in slots: `slots` [L, G, S] (the number of experts where a slot is empty), `weights` [D, L, E + 1] of one copy
    (0 where empty), `sums` [D, L, G], `held` [L, E + 1, G] whether a GPU holds an expert.
    """

    slots: Ints
    weights: Array
    sums: Array
    held: NDArray[np.bool_]

    @property
    def experts(self) -> int:
        """Number of experts, which stands for an empty slot, too."""
        return int(self.weights.shape[2]) - 1

    def placements(self) -> list[tuple[tuple[int, ...], ...]]:
        """The GPUs of every expert, for each layer."""
        return [tuple(tuple(np.nonzero(row)[0].tolist()) for row in layer[:-1]) for layer in self.held]

    def take(self, layers: Ints) -> Packing:
        """Some of the layers."""
        return Packing(self.slots[layers], self.weights[:, layers], self.sums[:, layers], self.held[layers])

    def put(self, layers: Ints, other: Packing) -> None:
        """Some layers as another packing has them."""
        self.slots[layers], self.weights[:, layers] = other.slots, other.weights
        self.sums[:, layers], self.held[layers] = other.sums, other.held


def pack_longest_first(weights: Array, copies: Ints, groups: int, slots: int, cost: Cost, order: Array) -> Packing:
    """Copies in order of falling `order` [L, E], each to the GPU that is cheapest with it, has a free slot and not this expert.

    `weights` [D, L, E] are those of one copy, `copies` [L, E] at most `groups` each and `groups` x `slots` in all.
    """
    layers, experts = copies.shape
    row = np.arange(layers)
    queue = np.full((layers, groups * slots), experts, dtype=np.int64)
    for layer in range(layers):
        ranked = np.argsort(-order[layer], kind="stable")
        items = np.repeat(ranked, copies[layer, ranked])
        queue[layer, : items.size] = items
    padded = np.concatenate([weights, np.zeros((*weights.shape[:2], 1))], axis=2)
    place = np.full((layers, groups, slots), experts, dtype=np.int64)
    sums, count = np.zeros((weights.shape[0], layers, groups)), np.zeros((layers, groups), dtype=np.int64)
    held = np.zeros((layers, experts + 1, groups), dtype=bool)
    for expert in queue.T:
        if (expert == experts).all():
            break
        priced = cost(sums + padded[:, row, expert][:, :, None])
        chosen = np.where((count >= slots) | held[row, expert], np.inf, priced).argmin(axis=1)
        chosen = _make_room(place, sums, count, held, padded, expert, chosen)
        real = np.nonzero(expert < experts)[0]
        at = (real, chosen[real])
        place[(*at, count[at])] = expert[real]
        count[at] += 1
        sums[:, at[0], at[1]] += padded[:, real, expert[real]]
        held[real, expert[real], at[1]] = True
    return Packing(place, padded, sums, held)


def _make_room(
    place: Ints, sums: Array, count: Ints, held: NDArray[np.bool_], weights: Array, expert: Ints, chosen: Ints
) -> Ints:
    """The chosen GPUs; where every GPU with a free slot holds the expert already, another GPU's copy moves there first."""
    layers, groups, slots = place.shape
    row, experts = np.arange(layers), weights.shape[2] - 1
    stuck = np.nonzero((expert < experts) & ((count[row, chosen] >= slots) | held[row, expert, chosen]))[0]
    for layer in stuck:
        free = int(np.nonzero(count[layer] < slots)[0][0])
        givers = [g for g in range(groups) if not held[layer, expert[layer], g]]
        giver, at = next((g, s) for g in givers for s in range(slots) if not held[layer, place[layer, g, s], free])
        moved = place[layer, giver, at]
        place[layer, free, count[layer, free]] = moved
        count[layer, free] += 1
        last = count[layer, giver] - 1
        place[layer, giver, at] = place[layer, giver, last]
        place[layer, giver, last] = experts
        count[layer, giver] = last
        held[layer, moved, free], held[layer, moved, giver] = True, False
        sums[:, layer, free] += weights[:, layer, moved]
        sums[:, layer, giver] -= weights[:, layer, moved]
        chosen[layer] = giver
    return chosen


def improve(packing: Packing, cost: Cost, goal: Array, *, pairs: bool = True, rounds: int = ROUNDS) -> None:
    """Exchange copies between the most expensive GPU of each layer and others while that lowers it, down to `goal` [L].

    First one copy for one (an empty slot makes it a move); where none helps, two for two if `pairs`.
    """
    alive = np.ones(packing.slots.shape[0], dtype=bool)
    for _ in range(rounds):
        alive &= cost(packing.sums).max(axis=1) > goal
        layers = np.nonzero(alive)[0]
        if not layers.size:
            return
        some = packing.take(layers)
        done = _swap(some, cost)
        left = np.nonzero(~done)[0]
        if left.size and pairs:
            few = some.take(left)
            done[left] = _swap_pairs(few, cost)
            some.put(left, few)
        packing.put(layers, some)
        alive[layers[~done]] = False


def _swap(packing: Packing, cost: Cost) -> NDArray[np.bool_]:
    """The best exchange of one copy of the most expensive GPU for one slot of another; whether there is one, per layer."""
    layers, groups, slots = packing.slots.shape
    row = np.arange(layers)
    priced = cost(packing.sums)
    worst = priced.argmax(axis=1)
    own, other = packing.slots[row, worst], packing.slots.reshape(layers, -1)
    moved = packing.weights[:, row[:, None], own][:, :, :, None] - packing.weights[:, row[:, None], other][:, :, None, :]
    here = cost(packing.sums[:, row, worst][:, :, None, None] - moved)
    there = cost(np.repeat(packing.sums, slots, axis=2)[:, :, None, :] + moved)
    barred = packing.held[row[:, None], other, worst[:, None]][:, None, :] | np.repeat(
        packing.held[row[:, None], own], slots, axis=2
    )
    value = np.where(barred, np.inf, np.maximum(here, there)).reshape(layers, -1)
    pick = value.argmin(axis=1)
    found = np.asarray(value[row, pick] < priced[row, worst] * (1.0 - STEP))
    at = np.nonzero(found)[0]
    mine, slot = np.divmod(pick[at], groups * slots)
    _exchange(packing, at, worst[at], mine, slot // slots, slot % slots)
    return found


def _exchange(packing: Packing, row: Ints, worst: Ints, mine: Ints, other: Ints, theirs: Ints) -> None:
    """Exchange slot `mine` of GPU `worst` and slot `theirs` of GPU `other` in the layers `row`."""
    gone, come = packing.slots[row, worst, mine], packing.slots[row, other, theirs]
    packing.slots[row, worst, mine], packing.slots[row, other, theirs] = come, gone
    moved = packing.weights[:, row, gone] - packing.weights[:, row, come]
    packing.sums[:, row, worst] -= moved
    packing.sums[:, row, other] += moved
    for expert, source, target in ((gone, worst, other), (come, other, worst)):
        packing.held[row, expert, source] = False
        packing.held[row, expert, target] = expert < packing.experts


def _swap_pairs(packing: Packing, cost: Cost) -> NDArray[np.bool_]:
    """The best exchange of two slots of the most expensive GPU for two of one of the cheapest; whether there is one."""
    slots = packing.slots.shape[2]
    first, second = np.triu_indices(slots, 1)
    found = np.zeros(packing.slots.shape[0], dtype=bool)
    for layer in range(found.size) if first.size else ():
        priced = cost(packing.sums[:, layer])
        worst = int(priced.argmax())
        near = np.array([g for g in np.argsort(priced, kind="stable")[:NEAR] if g != worst], dtype=np.int64)
        if not near.size:
            continue
        own, other = packing.slots[layer, worst], packing.slots[layer, near]
        weight, held = packing.weights[:, layer], packing.held[layer]
        mine = weight[:, own[first]] + weight[:, own[second]]
        theirs = weight[:, other[:, first]] + weight[:, other[:, second]]
        moved = mine[:, :, None, None] - theirs[:, None]
        here = cost(packing.sums[:, layer, worst][:, None, None, None] - moved)
        there = cost(packing.sums[:, layer, near][:, None, :, None] + moved)
        goes, comes = held[own][:, near], held[other, worst]
        barred = (goes[first] | goes[second])[:, :, None] | (comes[:, first] | comes[:, second])[None]
        value = np.where(barred, np.inf, np.maximum(here, there))
        pick = tuple(int(x) for x in np.unravel_index(int(value.argmin()), value.shape))
        if value[pick] < priced[worst] * (1.0 - STEP):
            found[layer] = True
            for ours, slot in ((first, first), (second, second)):
                index = (int(ours[pick[0]]), int(near[pick[1]]), int(slot[pick[2]]))
                _exchange(packing, *(np.array([x], dtype=np.int64) for x in (layer, worst, *index)))
    return found


def shake(
    packing: Packing, cost: Cost, goal: Array, clones: int, generations: int, *, pairs: bool = True, seed: int = 0
) -> None:
    """Lift layers above `goal` [L] out of a dead end: clones of each with a few random exchanges, improved, the best kept."""
    rng = np.random.default_rng(seed)
    for _ in range(generations):
        value = cost(packing.sums).max(axis=1)
        layers = np.nonzero(value > goal)[0]
        if not layers.size:
            return
        many = packing.take(np.repeat(layers, clones))
        for _ in range(KICKS):
            _random_exchange(many, cost, rng)
        improve(many, cost, np.repeat(goal[layers], clones), pairs=pairs)
        reached = cost(many.sums).max(axis=1).reshape(-1, clones)
        best = reached.argmin(axis=1)
        better = np.nonzero(reached.min(axis=1) < value[layers] * (1.0 - STEP))[0]
        packing.put(layers[better], many.take(better * clones + best[better]))


def _random_exchange(packing: Packing, cost: Cost, rng: np.random.Generator) -> None:
    """One random exchange per layer where it is legal; one of the two GPUs is among the most expensive."""
    layers, groups, slots = packing.slots.shape
    row = np.arange(layers)
    ranked = np.argsort(-cost(packing.sums), axis=1)
    one = ranked[row, rng.integers(0, max(1, groups // 4), (layers,))]
    other, mine, theirs = (rng.integers(0, high, (layers,)) for high in (groups, slots, slots))
    gone, come = packing.slots[row, one, mine], packing.slots[row, other, theirs]
    legal = (one != other) & ~packing.held[row, gone, other] & ~packing.held[row, come, one]
    at = np.nonzero(legal)[0]
    _exchange(packing, at, one[at], mine[at], other[at], theirs[at])
