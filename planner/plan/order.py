"""The order in which a plan counts the GPUs of its cluster: `gpus`, the GPU of the cluster's list that every rank is."""

from __future__ import annotations

import re

from planner.fields import Fields
from search_spaces.orders import in_ranges
from search_spaces.sizes import Sizes

GPUS = "gpus"
ALLOWED = "every GPU of the cluster once, as ranges in the order of the ranks, such as 8-15, 0-7"
PART = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
MOST_TEXT, MOST_GPUS = 400_000, 10**6


def read_gpus(fields: Fields) -> tuple[int, ...]:
    """The GPUs rank by rank; nothing where ranks count them as the cluster lists them."""
    value = fields.raw(GPUS)
    if value is None:
        return ()
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise fields.error(GPUS, ALLOWED)
    found: list[int] = []
    for part in value.split(","):
        match = PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or len(found) + last - first >= MOST_GPUS:
            raise fields.error(GPUS, ALLOWED)
        found += range(first, last + 1)
    return tuple(found)


def check_gpus(fields: Fields, sizes: Sizes) -> None:
    """Refuse a plan whose ranks count the GPUs in another order than the space does that it is read for."""
    own = sizes.gpus or tuple(range(sizes.devices))
    if fields.has(GPUS) and read_gpus(fields) != own:
        raise fields.error(GPUS, f"{in_ranges(own)}: only a plan in a file of its own, or in a result, counts them differently")
