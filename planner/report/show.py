"""How amounts and names are shown to a person: units, shares, ranges, and text that can do no harm where it is printed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from planner.units import show_seconds

HARMLESS = re.compile(r"[^A-Za-z0-9._-]")
MARKDOWN = re.compile(r"([\\`*\[\]<|#~&$])")
EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
LINE_START = re.compile(r"^(?:[0-9]{1,9}(?=[.)](?:\s|$))|(?=[-+=>]))")
NAME_LIMIT = 80
TEXT_LIMIT = 2000


def plain(text: object, limit: int = TEXT_LIMIT) -> str:
    """One line without control, format or direction characters, so that a name cannot steer a terminal."""
    spaced = re.sub(r"\s+", " ", str(text)[: 4 * limit]).strip()
    kept = "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp") else c for c in spaced)
    return kept if len(kept) <= limit else kept[: limit - 3] + "..."


def escape_markdown(text: object) -> str:
    """Text that Markdown shows as it is: no markup, links, HTML, math or table borders, no list or quote at its start."""
    return LINE_START.sub(lambda match: match.group() + "\\", escape_cell(text))


def escape_cell(text: object) -> str:
    """Text that Markdown shows as it is inside a line."""
    return EDGE_UNDERSCORE.sub(r"\\_", MARKDOWN.sub(r"\\\1", plain(text)))


def safe_name(name: str) -> str:
    """A name fit for one file or folder: letters, digits, `.`, `_` and `-`, no leading dot, at most 80 characters."""
    safe = HARMLESS.sub("_", name[:NAME_LIMIT]).lstrip(".")
    return safe or "unnamed"


def seconds(value: float) -> str:
    """A duration; a sum of nothing is 0 s."""
    return show_seconds(value) if value else "0 s"


def gigabytes(count: float) -> str:
    """Bytes in decimal GB, two digits after the point."""
    return f"{count / 1e9:,.2f}"


def objective_value(name: str, value: float) -> str:
    """An objective in its own unit."""
    if name == "throughput":
        return f"{value:,.0f} tokens/s" if value >= 1000 else f"{value:.4g} tokens/s"
    if name == "cost":
        return f"{value:.4g} US dollars"
    return seconds(value)


def percent(part: float, whole: float) -> str:
    """A share of a whole."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def difference(value: float, best: float) -> str:
    """How far a value is from the best: `best`, or a signed share."""
    if not best or abs(value - best) <= 1e-9 * abs(best):
        return "best"
    share = 100 * (value - best) / abs(best)
    return f"{share:+.2g} %" if abs(share) < 10 else f"{share:+,.0f} %"


def whole(number: float) -> str:
    """A count with separators; large sizes stay exact."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"


def flops(value: float) -> str:
    """Floating-point operations with an SI prefix."""
    for prefix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.4g} {prefix}FLOP"
    return f"{value:.4g} FLOP"


def count(number: int, thing: str) -> str:
    """A count with its noun: 1 stage, 2 stages, 2 micro-batches."""
    plural = thing if number == 1 else thing + ("es" if thing.endswith(("ch", "s")) else "s")
    return f"{number:,} {plural}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges: 0-3, 8."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def runs(numbers: Sequence[int], noun: str) -> str:
    """Equal neighbours counted: `8 of 3 heads, 4 of 2 heads`."""
    counted: list[list[int]] = []
    for number in numbers:
        if counted and counted[-1][1] == number:
            counted[-1][0] += 1
        else:
            counted.append([1, number])
    return ", ".join(f"{times} of {count(number, noun)}" for times, number in counted)


def gpus(ranks: Iterable[int]) -> str:
    """Ranks with their noun: GPU 3, GPUs 0-7."""
    found = tuple(ranks)
    return f"GPU{'s' if len(found) != 1 else ''} {ranges(found)}"
