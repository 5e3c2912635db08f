"""Pictures of a few curves as SVG, small enough to read in a diff."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 216, 44, 46
FONT = "font-family='system-ui, sans-serif'"
# Okabe and Ito's flavors, which people with any flavor vision can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Point = tuple[float, float]


class Curve(NamedTuple):
    """A line with its name.

    Attributes:
        name: As the legend has it.
        points: From left to right.
        dashed: For limits and optima, which were not measured. They are grey.
        marks: Draw the points too: for few of them.
        width: Of the line.
    """

    name: str
    points: Sequence[Point]
    dashed: bool = False
    marks: bool = False
    width: float = 2.0


def draw(
    path: Path, title: str, x: str, y: str, curves: Sequence[Curve], *, note: str = "", highest: float | None = None
) -> None:
    """Write a picture.

    Args:
        path: Where to.
        title: Above it.
        x: What the horizontal axis shows, with its unit.
        y: What the vertical axis shows, with its unit.
        curves: What is drawn, the most important one first.
        note: A line below the legend.
        highest: Where the vertical axis ends; by default above the highest point.
    """
    right = max(px for curve in curves for px, _ in curve.points)
    top = highest or 1.05 * max(py for curve in curves for _, py in curve.points)

    def at(point: Point) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / right
        return f"{across:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(point[1], top) / top:.1f}"

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' {FONT} font-size='12' role='img'>",
        f"<title>{escape(title)}</title><rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>",
        f"<text x='{LEFT}' y='24' font-size='15' font-weight='600' fill='#222'>{escape(title)}</text>",
    ]
    for value in ticks(top):
        across, down = at((0, value)).split(",")
        parts.append(f"<line x1='{across}' x2='{WIDTH - RIGHT}' y1='{down}' y2='{down}' stroke='#e4e4e4'/>")
        parts.append(f"<text x='{LEFT - 8}' y='{float(down) + 4:.1f}' text-anchor='end' fill='#555'>{value:g}</text>")
    for value in ticks(right):
        across, down = at((value, 0)).split(",")
        parts.append(f"<text x='{across}' y='{float(down) + 18:.1f}' text-anchor='middle' fill='#555'>{value:g}</text>")
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{HEIGHT - 8}' text-anchor='middle' fill='#222'>{escape(x)}</text>")
    parts.append(
        f"<text transform='translate(16 {TOP + (HEIGHT - TOP - BOTTOM) / 2}) rotate(-90)' text-anchor='middle' "
        f"fill='#222'>{escape(y)}</text>"
    )
    flavors = iter(COLOURS)
    legend: list[str] = []
    lines: list[str] = []
    for number, curve in enumerate(curves):
        flavor = "#777777" if curve.dashed else next(flavors)
        stroke = f"stroke='{flavor}' stroke-width='{curve.width}' fill='none' stroke-linejoin='round'"
        stroke += " stroke-dasharray='6 4'" if curve.dashed else ""
        lines.append(f"<polyline {stroke} points='{' '.join(map(at, curve.points))}'/>")
        if curve.marks:
            for point in curve.points:
                across, down = at(point).split(",")
                lines.append(f"<circle cx='{across}' cy='{down}' r='3.5' fill='{flavor}'/>")
        down_to = TOP + 12 + 20 * number
        legend.append(
            f"<line x1='{WIDTH - RIGHT + 14}' x2='{WIDTH - RIGHT + 38}' y1='{down_to}' y2='{down_to}' {stroke}/>"
        )
        legend.append(f"<text x='{WIDTH - RIGHT + 44}' y='{down_to + 4}' fill='#222'>{escape(curve.name)}</text>")
    parts += [*reversed(lines), *legend]
    for number, line in enumerate(note.splitlines()):
        down_to = TOP + 20 * len(curves) + 18 + 15 * number
        parts.append(f"<text x='{WIDTH - RIGHT + 14}' y='{down_to}' font-size='11' fill='#555'>{escape(line)}</text>")
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def ticks(highest: float) -> list[float]:
    """Choose about five round values from 0 to `highest`."""
    step = 10 ** math.floor(math.log10(highest / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if highest / (step * factor) <= 6)
    return [round(number * step, 10) for number in range(int(highest / step + 1e-9) + 1)]


def per_second(times: Sequence[float], seconds: int) -> list[Point]:
    """Count what happens in each second, as points in the middle of it."""
    counts = [0] * seconds
    for each in times:
        if 0 <= each < seconds:
            counts[int(each)] += 1
    return [(second + 0.5, float(count)) for second, count in enumerate(counts)]
