"""The error tree: wrong input raises, an infeasible problem is an answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlannerError(Exception):
    """Root of every error the planner raises on purpose; its text is fit to show to a person."""


class InputError(PlannerError):
    """Wrong input: says which file and field, the value found, and what is allowed.

    Parameters
    ----------
    field: the path of the field inside its file, such as ``space.attention.head_groups``
    value: what was found there (None: nothing)
    allowed: what may stand there, as a short phrase
    source: the file or the argument that the field was read from

    """

    def __init__(self, field: str, value: object, allowed: str, source: str = "") -> None:
        self.field, self.value, self.allowed, self.source = field, value, allowed, source
        place = f"{source}: {field}" if source else field
        super().__init__(f"{place} is {'missing' if value is None else shown(value)}; allowed: {allowed}")

    def within(self, source: str, prefix: str = "") -> InputError:
        """The same error, told with the file it came from and the path above its field."""
        field = f"{prefix}.{self.field}" if prefix else self.field
        return InputError(field, self.value, self.allowed, self.source or source)


def shown(value: object, limit: int = 80) -> str:
    """`repr` of a value cut to `limit` characters, so that a message stays one line."""
    try:
        text = repr(value)
    except ValueError:  # integers of more than 4300 digits refuse to be printed
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def unknown_name(field: str, value: object, known: Iterable[str], source: str = "") -> InputError:
    """An `InputError` for a name that is in no catalog, with its near matches."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value)[:100], names, n=3, cutoff=0.5)
    allowed = f"did you mean {' or '.join(near)}?" if near else "one of " + ", ".join(names)
    return InputError(field, value, allowed, source)
