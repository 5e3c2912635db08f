"""The comparison as bars, one block for each measure that is a number."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from .peers import PEERS
from .report import Row, shown

FILE = "comparison.svg"

# Pixels.
WIDTH, LEFT, LONGEST, BAR, HEAD, MARGIN = 760, 190, 480, 14, 26, 16
INK = {PEERS[0]: "#0a6b4d", PEERS[1]: "#7a8794", PEERS[2]: "#b4bcc4"}


def draw(rows: Iterable[Row], caption: str, folder: Path) -> Path:
    """Draw the rows of numbers; the longest bar of each block is as long as the others' longest."""
    lines: list[str] = []
    y = MARGIN
    for row in rows:
        numbers = {peer: cell for peer, cell in row.cells.items() if isinstance(cell, int | float)}
        if len(numbers) < 2:
            continue
        lines.append(f'<text x="{MARGIN}" y="{y + 14}" font-weight="bold">{escape(row.measure)}</text>')
        y += HEAD
        for peer, number in numbers.items():
            length = max(1.0, LONGEST * number / max(numbers.values()))
            lines.append(f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{peer}</text>')
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{INK[peer]}"/>')
            lines.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 11}">{shown(number)}</text>')
            y += BAR
        y += MARGIN
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12" '
        f'role="img"><title>Less is better, in every block</title><desc>{escape(caption)}</desc>'
        f'<rect width="{WIDTH}" height="{y}" fill="white"/>'
    )
    folder.mkdir(exist_ok=True)
    file = folder / FILE
    file.write_text("\n".join((svg, *lines, "</svg>", "")), encoding="utf-8")
    return file
