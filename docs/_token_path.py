"""Draws token-path.svg, the picture of the README: `python docs/_token_path.py`, with matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

GREEN, BLUE, GREY, INK = "#cfe9dc", "#d5e4f5", "#ececec", "#1d2a35"
FONT_SIZE = 9
# svg.fonttype none keeps text as text: small, searchable, and in the reader's own font.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "token-path", "font.size": FONT_SIZE, "text.color": INK})


def box(axes: plt.Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=INK))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], text: str, above: float = 0.1) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK, shrinkA=0, shrinkB=0))
    axes.text((start[0] + end[0]) / 2, start[1] + above, text, ha="center", va="bottom")


def draw(file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.4, 4.6))
    axes.set_xlim(0, 8.4)
    axes.set_ylim(0, 4.6)
    axes.axis("off")

    box(axes, 0.1, 2.75, 1.9, 1.5, "SecretClient,\nBlobClient, ...\n\nthreads, tasks,\nforked children", GREY)
    box(axes, 3.35, 2.75, 1.9, 1.5, "ImdsCredential\n\none cache for\nthe process", GREEN)
    box(axes, 6.8, 2.75, 1.5, 1.5, "IMDS\n169.254.169.254", BLUE)
    arrow(axes, (2.0, 3.85), (3.35, 3.85), "get_token")
    arrow(axes, (3.35, 3.15), (2.0, 3.15), "cached token")
    arrow(axes, (5.25, 3.85), (6.8, 3.85), "one request\nfor all callers")
    arrow(axes, (6.8, 3.15), (5.25, 3.15), "new token")

    axes.text(0.1, 2.15, "What a caller gets during the 24 hours of a token", ha="left", va="center", weight="bold")
    for x, width, colour, text in (
        (0.1, 3.3, GREEN, "first half:\nthe cached token"),
        (3.4, 3.3, BLUE, "second half: the cached token,\nwhile one thread gets the next one"),
        (6.7, 1.6, GREY, "last 5 minutes:\nwaits up to 2 s"),
    ):
        axes.add_patch(plt.Rectangle((x, 0.95), width, 0.85, facecolor=colour, edgecolor=INK))
        axes.text(x + width / 2, 1.375, text, ha="center", va="center")
    for x, text in ((0.1, "0 h"), (3.4, "12 h ± 10 %"), (8.3, "24 h")):
        axes.text(x, 0.8, text, ha={"0 h": "left", "24 h": "right"}.get(text, "center"), va="top")
    axes.text(0.1, 0.25, "A refresh that fails keeps the token, and is tried again after 30 s to 10 min.", ha="left")

    figure.savefig(file, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).parent / "token-path.svg")
