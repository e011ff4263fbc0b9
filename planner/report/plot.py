"""Points of two quantities as a drawing: an SVG of our own, and a sketch of characters for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from planner.report.show import plain

WIDTH, HEIGHT = 720, 460
LEFT, RIGHT, TOP, BOTTOM = 92, 24, 48, 64
COLUMNS, ROWS = 64, 16
LOGARITHMIC = 20.0
"""An axis whose largest value is more times the least has a logarithmic scale."""
TITLE_SIZE = 15
LETTER = 0.55
"""Width of a letter of a sans-serif font, on the mean, in sizes of the font."""
MARGIN = 0.06
MOST_TICKS = 7
STYLE = (
    f"text{{font:13px sans-serif;fill:#222}}.title{{font-size:{TITLE_SIZE}px}}.axis{{stroke:#222}}.grid{{stroke:#ddd}}"
    ".front{fill:none;stroke:#1f6fb2;stroke-width:1.5}.proven{fill:#1f6fb2}.open{fill:#fff;stroke:#1f6fb2;stroke-width:1.5}"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: its two values, what it is, and whether it is drawn filled."""

    x: float
    y: float
    label: str
    filled: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from `low` to `high`, linear or logarithmic, with its ticks; values are positive."""

    title: str
    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(title: str, values: Sequence[float]) -> Axis:
    """An axis on which all values lie, with some room at its ends."""
    least, most = min(values), max(values)
    if most > least * LOGARITHMIC:
        room = (most / least) ** MARGIN
        low, high = least / room, most * room
        return Axis(title, low, high, True, _log_ticks(low, high))
    room = (most - least) * MARGIN or abs(most) * MARGIN
    low, high = least - room, most + room
    return Axis(title, low, high, False, _linear_ticks(low, high))


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten, at most `MOST_TICKS`."""
    power = 10.0 ** math.floor(math.log10((high - low) / MOST_TICKS))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= MOST_TICKS - 1)
    return tuple(step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, with their multiples by 2 and 5 where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = tuple(m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high)
        if len(ticks) <= MOST_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]


def tick_texts(scale: Axis) -> list[tuple[float, str]]:
    """The ticks with their numbers, on a linear axis all with as many digits after the point."""
    if scale.log or len(scale.ticks) < 2:
        return [(tick, f"{tick:,.0f}" if tick >= 1000 else f"{tick:.6g}") for tick in scale.ticks]
    digits = max(0, -math.floor(math.log10((scale.ticks[1] - scale.ticks[0]) * 1.001)))
    return [(tick, f"{tick:,.{digits}f}") for tick in scale.ticks]


def svg(title: str, across: Axis, up: Axis, marks: Sequence[Mark], *, more: bool = False) -> str:
    """A drawing of the marks, joined by the steps that show what is reached; `more`: more of the level axis is better."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{_text(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text class="title" x="{LEFT}" y="{TOP - 20}"{_smaller(title)}>{_text(title)}</text>',
        *_axes(across, up),
        _steps([(_x(across, m.x), _y(up, m.y)) for m in sorted(marks, key=lambda m: m.x)], more),
        *(
            f'<circle class="{"proven" if m.filled else "open"}" cx="{_x(across, m.x)}" cy="{_y(up, m.y)}" r="4">'
            f"<title>{_text(m.label)}</title></circle>"
            for m in marks
        ),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _text(text: str) -> str:
    return escape(plain(text), quote=True)


def _x(across: Axis, value: float) -> str:
    return f"{LEFT + across.at(value) * (WIDTH - LEFT - RIGHT):.2f}"


def _y(up: Axis, value: float) -> str:
    return f"{HEIGHT - BOTTOM - up.at(value) * (HEIGHT - TOP - BOTTOM):.2f}"


def _smaller(title: str) -> str:
    """A smaller font for a title that would not fit the width."""
    size = (WIDTH - LEFT - RIGHT) / (LETTER * max(1, len(title)))
    return f' style="font-size:{size:.1f}px"' if size < TITLE_SIZE else ""


def _axes(across: Axis, up: Axis) -> list[str]:
    """Grid, ticks and titles of both axes."""
    floor, end, middle = HEIGHT - BOTTOM, WIDTH - RIGHT, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for tick, number in tick_texts(across):
        x = _x(across, tick)
        parts.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{floor}"/>')
        parts.append(f'<text x="{x}" y="{floor + 20}" text-anchor="middle">{number}</text>')
    for tick, number in tick_texts(up):
        y = _y(up, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{end}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y}" dy="0.35em" text-anchor="end">{number}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{floor}H{end}"/>')
    parts.append(f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 18}" text-anchor="middle">{_text(across.title)}</text>')
    turned = f'transform="translate(22 {middle}) rotate(-90)" text-anchor="middle"'
    return [*parts, f"<text {turned}>{_text(up.title)}</text>"]


def _steps(places: Sequence[tuple[str, str]], plumb_first: bool) -> str:
    """A path that goes from point to point by level and plumb lines."""
    if len(places) < 2:
        return ""
    (x, y), *rest = places
    return f'<path class="front" d="M{x} {y}' + "".join(f"V{b}H{a}" if plumb_first else f"H{a}V{b}" for a, b in rest) + '"/>'


def sketch(across: Axis, up: Axis, marks: Sequence[Mark]) -> str:
    """The same points as characters, with the ends of both axes."""
    grid = [[" "] * COLUMNS for _ in range(ROWS)]
    for mark in marks:
        row, column = round((1 - up.at(mark.y)) * (ROWS - 1)), round(across.at(mark.x) * (COLUMNS - 1))
        grid[row][column] = "*" if mark.filled else "o"
    labels = {round((1 - up.at(tick)) * (ROWS - 1)): number for tick, number in tick_texts(up)}
    wide = max(map(len, labels.values()), default=0)
    lines = [f"{labels.get(at, ''):>{wide}} |{''.join(row)}".rstrip() for at, row in enumerate(grid)]
    return "\n".join([up.title, *lines, f"{'':>{wide}} +{'-' * COLUMNS}", _under(across, wide + 2), across.title])


def _under(across: Axis, indent: int) -> str:
    """The numbers below the level axis, those left out that would touch another."""
    line = [" "] * (indent + COLUMNS + 8)
    free = 0
    for tick, text in tick_texts(across):
        start = max(indent + round(across.at(tick) * (COLUMNS - 1)) - len(text) // 2, 0)
        if start >= free:
            line[start : start + len(text)] = text
            free = start + len(text) + 1
    return "".join(line).rstrip()
