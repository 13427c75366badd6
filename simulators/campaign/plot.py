"""Owns the drawing of a campaign's histograms as one SVG: no plotting library for three bar charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

import numpy as np

ACROSS: Final = 4
WIDTH: Final = 360
HEIGHT: Final = 240
LEFT: Final = 44
RIGHT: Final = 14
TOP: Final = 40
BOTTOM: Final = 46
BINS: Final = 36
BAR: Final = "#3b6ea8"
BAD: Final = "#b8442f"


@dataclass(frozen=True, slots=True)
class Panel:
    """One histogram; values outside are counted in its end bins, those below ``mark`` are shown in another colour."""

    title: str
    label: str
    values: Sequence[float]
    low: float
    high: float
    mark: float | None = None


def svg_of(panels: Sequence[Panel]) -> str:
    """Return the panels in rows of at most ``ACROSS``."""
    width, height = WIDTH * min(len(panels), ACROSS), HEIGHT * -(-len(panels) // ACROSS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        row, column = divmod(i, ACROSS)
        parts += [f'<g transform="translate({column * WIDTH},{row * HEIGHT})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    edges = np.linspace(panel.low, panel.high, BINS + 1)
    counts, _ = np.histogram(np.clip(panel.values, panel.low, panel.high), edges)
    most = max(int(counts.max()), 1)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(value: float) -> float:
        return LEFT + wide * (value - panel.low) / (panel.high - panel.low)

    parts = [f'<text x="{LEFT}" y="22" font-size="13" font-weight="bold">{escape(panel.title)}</text>']
    for part in (0.5, 1.0):
        y = TOP + high * (1.0 - part)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{round(most * part):,}</text>'
        )
    for count, start, end in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            tall = high * count / most
            colour = BAD if panel.mark is not None and end <= panel.mark + 1e-9 else BAR
            parts.append(
                f'<rect x="{x_of(start):.1f}" y="{TOP + high - tall:.1f}" width="{wide / BINS - 1:.1f}"'
                f' height="{tall:.1f}" fill="{colour}"/>'
            )
    bottom = TOP + high
    parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{bottom}" y2="{bottom}" stroke="#333"/>')
    step = (panel.high - panel.low) / 6.0
    for tick in np.arange(panel.low, panel.high + 1e-9, step).tolist():
        where = f'x="{x_of(tick):.1f}" y="{bottom + 15}" text-anchor="middle" fill="#555"'
        parts.append(f"<text {where}>{round(tick, 2) + 0.0:g}</text>")
    if panel.mark is not None:
        at = x_of(panel.mark)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}" stroke="#333" stroke-dasharray="3 3"/>'
        )
    said = f"{panel.label}; n = {len(panel.values):,}"
    parts.append(f'<text x="{LEFT + wide / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(said)}</text>')
    return parts
