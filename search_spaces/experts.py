"""ExpertPlacement: where the experts of a mixture live, and how tokens reach them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from search_spaces.sizes import Sizes, divisors, share

Form = Literal["local", "dispatch", "separate"]
Placement = tuple[tuple[int, ...], ...]
"""The groups that hold each expert."""
Placed = Placement | tuple[Placement, ...]
"""A placement for all layers, or one for every layer with experts in turn."""
RouterSide = Literal["attention", "expert"]

FORMS: tuple[Form, ...] = ("local", "dispatch")
ROUTER_SIDES: tuple[RouterSide, ...] = ("attention", "expert")


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """Experts over groups of `tensor_ways` consecutive GPUs.

    local: every GPU sees all tokens and computes its own experts, the partial outputs are summed. dispatch: tokens are
    split over the GPUs and travel to their experts and back. separate: the experts have GPUs of their own, `devices` of
    them, after the attention GPUs of the stage. `placement[e]` lists the groups that hold expert e (several = replicas
    that share its load); empty means consecutive experts, as even as can be, larger groups first. A placement by layer has
    one such list for every layer of the model that has experts; `at` says what it is in one of them. Dispatched tokens of each
    `serve_within` consecutive GPUs of the stage go to the copies among them where there are any (0: to all copies in turn).
    """

    form: Form = "local"
    tensor_ways: int = 1
    devices: int = 0
    placement: Placed = ()
    router_side: RouterSide = "attention"
    serve_within: int = 0

    @property
    def by_layer(self) -> bool:
        """Whether every layer has a placement of its own."""
        return is_by_layer(self.placement)

    def at(self, row: int) -> ExpertPlacement:
        """The same in the `row`-th layer with experts."""
        return replace(self, placement=of_row(self.placement, row)) if self.by_layer else self

    def groups(self, experts: int, ways: int) -> Placement:
        """The groups of every expert, the default placement spelled out; `ways` GPUs hold experts. Of one by layer: those of
        the first.
        """
        return of_row(self.placement, 0) or contiguous_placement(experts, ways // self.tensor_ways)


def is_by_layer(placed: Placed) -> bool:
    """Whether a placement has one list of experts for every layer."""
    return bool(placed) and bool(placed[0]) and not isinstance(placed[0][0], int)


def of_row(placed: Placed, row: int) -> Placement:
    """A placement in the `row`-th layer with experts."""
    return placed[row] if is_by_layer(placed) else placed  # type: ignore[return-value]


def rows_of(placed: Placed) -> tuple[Placement, ...]:
    """The placements of the layers in turn; of one for all layers that one alone."""
    return placed if is_by_layer(placed) else (placed,)  # type: ignore[return-value]


def has_copies(placed: Placed) -> bool:
    """Whether any expert of any layer has more than one copy."""
    return any(len(held) > 1 for row in dict.fromkeys(rows_of(placed)) for held in row)


def serves(within: int, tensor_ways: int, ways: int) -> bool:
    """Whether `within` consecutive of the GPUs of a stage are whole groups, and not all of them."""
    return 0 < within < ways and within % tensor_ways == 0


def contiguous_placement(experts: int, groups: int) -> Placement:
    """Consecutive experts per group, as even as can be, the larger groups first."""
    placed: list[tuple[int, ...]] = []
    for group in range(groups):
        placed += [(group,)] * share(experts, groups, group)
    return tuple(placed)


@dataclass(frozen=True, slots=True)
class ExpertDomain:
    """The values that stay open for each field of an expert placement; None means every legal value.

    There are too many placements to list: where they are open, that is the default one, and besides it what `searched` has
    for a number of groups, as (groups, placements) pairs. Where `serve_within` is open, that is 0 and, with copies, the
    `neighbours` GPUs of a scale-up domain.
    """

    form: tuple[Form, ...] | None = None
    tensor_ways: tuple[int, ...] | None = None
    devices: tuple[int, ...] | None = None
    placement: tuple[Placed, ...] | None = None
    router_side: tuple[RouterSide, ...] | None = None
    serve_within: tuple[int, ...] | None = None
    searched: tuple[tuple[int, tuple[Placed, ...]], ...] = ()
    neighbours: int = 0

    def shared(self, sizes: Sizes, ways: int) -> Iterator[ExpertPlacement]:
        """Placements on the GPUs of a stage that computes attention and experts, in a fixed order."""
        for form in FORMS:
            if (self.form is None or form in self.form) and not (form == "dispatch" and ways == 1):
                yield from self._placed(sizes, ways, form, 0, "attention")

    def separate(self, sizes: Sizes, ways: int) -> Iterator[ExpertPlacement]:
        """Placements on `ways` GPUs that hold experts alone, in a fixed order."""
        if (self.form is not None and "separate" not in self.form) or (self.devices is not None and ways not in self.devices):
            return
        for side in ROUTER_SIDES:
            if self.router_side is None or side in self.router_side:
                yield from self._placed(sizes, ways, "separate", ways, side)

    def _placed(self, sizes: Sizes, ways: int, form: Form, devices: int, side: RouterSide) -> Iterator[ExpertPlacement]:
        for tensor_ways in divisors(ways):
            groups = ways // tensor_ways
            if (self.tensor_ways is not None and tensor_ways not in self.tensor_ways) or tensor_ways > sizes.expert_hidden:
                continue
            for placement in self._placements(sizes, groups):
                for within in self._served(form, placement, tensor_ways, ways):
                    yield ExpertPlacement(form, tensor_ways, devices, placement, side, within)

    def _served(self, form: Form, placement: Placed, tensor_ways: int, ways: int) -> tuple[int, ...]:
        """The legal numbers of GPUs that serve one another's tokens; 0 alone where there is no choice of copies."""
        values = (0, self.neighbours) if self.serve_within is None else self.serve_within
        copied = form == "dispatch" and has_copies(placement)
        return tuple(dict.fromkeys(value for value in values if not value or (copied and serves(value, tensor_ways, ways))))

    def _placements(self, sizes: Sizes, groups: int) -> list[Placed]:
        """The legal placements on `groups` groups, the default one as the empty tuple, each once."""
        if self.placement is None:
            return [(), *dict(self.searched).get(groups, ())] if groups <= sizes.experts else []
        default = contiguous_placement(sizes.experts, groups)
        legal = (p or default for p in self.placement)
        return list(dict.fromkeys(() if p == default else p for p in legal if legal_placed(p, sizes, groups)))


def spare_slots(experts: int, groups: int) -> tuple[int, ...]:
    """More experts than an even share that a group may hold where placements are searched: none, one, a quarter of it."""
    return tuple(dict.fromkeys((0, 1, -(-experts // groups // 4))))


def most_held(experts: int, groups: int) -> int:
    """Most experts that a group may hold where placements are searched."""
    return -(-experts // groups) + max(spare_slots(experts, groups))


def legal_placed(placed: Placed, sizes: Sizes, groups: int) -> bool:
    """Whether a placement is legal in every layer, and alike where loads are."""
    rows = dict.fromkeys(rows_of(placed))
    return all(legal_placement(row, sizes.experts, groups) for row in rows) and (
        not is_by_layer(placed) or matches_rows(placed, sizes)
    )


def legal_placement(placement: Placement, experts: int, groups: int) -> bool:
    """Whether every expert has at least one group and no group twice."""
    return len(placement) == experts and all(
        held and len(set(held)) == len(held) and all(0 <= g < groups for g in held) for held in placement
    )


def matches_rows(placed: Placed, sizes: Sizes) -> bool:
    """Whether a placement by layer has one for every layer with experts, the same where the loads are the same."""
    rows = rows_of(placed)
    return len(rows) == len(sizes.expert_rows) and all(rows[row] == rows[first] for row, first in enumerate(sizes.expert_rows))
