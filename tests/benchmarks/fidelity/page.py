"""The score as a page: Markdown with the tables, and drawings of predicted against measured and of regret by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from planner.files import write_text_atomic
from tests.benchmarks.fidelity.report import Report
from tests.benchmarks.fidelity.score import Scored, group_scores
from tests.benchmarks.fidelity.tables import text

WIDTH, HEIGHT, EDGE = 560, 520, 70
BAR, LABEL = 16, 300
COLOURS = ("#1f6fb2", "#c44e52", "#55a868", "#8172b2", "#ccb974", "#64b5cd", "#8c564b", "#7f7f7f")
STYLE = "text{font:12px sans-serif;fill:#222}.title{font-size:15px}.grid{stroke:#ddd}.same{stroke:#888;stroke-dasharray:4}"
HEAD = "# Predicted and measured\n\nWritten by `python -m tests.benchmarks.fidelity --truth DIR --page results/fidelity`."


def scatter(title: str, unit: str, rows: Sequence[Scored]) -> str:
    """Predicted over measured on logarithmic scales, a colour for what a group's name begins with."""
    values = [v for row in rows for v in (row.measured, row.predicted)]
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1

    def at(value: float) -> float:
        return (math.log10(value) - low) / (high - low)

    kinds = list(dict.fromkeys(row.group.split("-")[0] for row in sorted(rows, key=lambda r: r.group)))
    colour = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
    inner_w, inner_h = WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE
    body = [f'<text class="title" x="{EDGE}" y="24">{escape(title)}</text>']
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, y = EDGE + at(10.0**power) * inner_w, HEIGHT - EDGE - at(10.0**power) * inner_h
        body.append(f'<path class="grid" d="M{x:.1f} {EDGE}V{HEIGHT - EDGE}M{EDGE} {y:.1f}H{WIDTH - EDGE}"/>')
        body.append(f'<text x="{x:.1f}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{10.0**power:g}</text>')
        body.append(f'<text x="{EDGE - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    body.append(f'<path class="same" d="M{EDGE} {HEIGHT - EDGE}L{WIDTH - EDGE} {EDGE}"/>')
    for row in sorted(rows, key=lambda r: r.row_id):
        x, y = EDGE + at(row.measured) * inner_w, HEIGHT - EDGE - at(row.predicted) * inner_h
        shade = colour[row.group.split("-")[0]]
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{shade}" fill-opacity="0.5"/>')
    for i, kind in enumerate(kinds[: len(COLOURS)]):
        body.append(f'<text x="{EDGE + 8}" y="{EDGE + 16 + 16 * i}" style="fill:{colour[kind]}">{escape(kind)}</text>')
    body.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - EDGE + 40}" text-anchor="middle">measured ({unit})</text>')
    body.append(f'<text transform="translate(18 {HEIGHT / 2})rotate(-90)" text-anchor="middle">predicted ({unit})</text>')
    return _svg(WIDTH, HEIGHT, body)


def bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    """One bar for each group."""
    most = max([value for _, value in values] + [0.01])
    height = 50 + BAR * len(values)
    body = [f'<text class="title" x="10" y="24">{escape(title)}</text>']
    for i, (name, value) in enumerate(values):
        y, wide = 40 + BAR * i, (WIDTH - 80) * value / most
        body.append(f'<text x="{LABEL - 6}" y="{y + 11}" text-anchor="end">{escape(name[:44])}</text>')
        body.append(f'<rect x="{LABEL}" y="{y + 2}" width="{wide:.1f}" height="{BAR - 4}" fill="{COLOURS[0]}"/>')
        body.append(f'<text x="{LABEL + wide + 5:.1f}" y="{y + 11}">{value:.1%}</text>')
    return _svg(LABEL + WIDTH, height, body)


def _svg(width: int, height: int, body: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *body, "</svg>", ""])


def write_page(report: Report, folder: Path) -> None:
    """Write `README.md` and the drawings of every part that has rows."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, part in report.parts.items():
        if not part.rows:
            continue
        unit = "tokens/s" if name == "throughput" else "s"
        write_text_atomic(folder / f"{name}.svg", scatter(f"{name}: predicted and measured", unit, part.rows))
        pictures.append(f"![{name}]({name}.svg)")
        ranked = [(group, score["regret_mean"]) for group, score in group_scores(part.rows).items()]
        regrets = [(group, float(value)) for group, value in ranked if value is not None]
        if regrets:
            write_text_atomic(
                folder / f"{name}-regret.svg", bars(f"{name}: mean regret of the first choice, by group", regrets)
            )
            pictures.append(f"![regret of {name}]({name}-regret.svg)")
    write_text_atomic(folder / "README.md", "\n\n".join([HEAD, *pictures, text(report)]) + "\n")
