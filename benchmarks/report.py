"""Rows of the comparison, and the ways to show them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from .peers import PEERS

LIBRARIES = (*PEERS, "azure-core", "azure-keyvault-secrets", "requests", "urllib3", "aiohttp", "pyperf")

Cell = float | str | None  # None: was not measured, or has no meaning for this library


class Row(NamedTuple):
    """One measure, for each library.

    Attributes:
        measure: What was measured.
        cells: By library.
        target: What this library must reach, in words; "" for none.
        met: Whether it does; None without a target.
        detail: Whatever else was measured, for the JSON.
    """

    measure: str
    cells: Mapping[str, Cell]
    target: str = ""
    met: bool | None = None
    detail: Mapping[str, Any] = {}


def shown(cell: Cell) -> str:
    """Write a cell."""
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"
    return "-" if cell is None else str(cell)


def table(rows: Iterable[Row]) -> str:
    """Write the rows as a table for a terminal."""
    lines: list[tuple[str, ...]] = [("", *PEERS, "must reach", "")]
    lines += [(row.measure, *(shown(row.cells.get(peer)) for peer in PEERS), row.target, _mark(row)) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def markdown(rows: Iterable[Row], caption: str) -> str:
    """Write the rows as a Markdown table with its caption."""
    lines = [f"| | {' | '.join(PEERS)} |", f"|---|{'---|' * len(PEERS)}"]
    lines += [f"| {row.measure} | {' | '.join(shown(row.cells.get(peer)) for peer in PEERS)} |" for row in rows]
    return "\n".join((*lines, "", caption))


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON can hold them."""
    return [row._asdict() for row in rows]


def versions() -> dict[str, str]:
    """Return what was compared."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def machine() -> str:
    """Name the kind of machine."""
    cpus = Path("/proc/cpuinfo")
    models = [line for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    model = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    kernel = platform.release().partition("-")[0]  # what a distribution adds to the number says nothing here
    return f"{os.cpu_count()} x {model}, {platform.system()} {kernel}"


def caption() -> str:
    """Say with what and on what everything was measured."""
    libraries = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"One run of `python -m benchmarks --all` with {libraries}, on {machine()}, against the emulator on loopback."
    )


def _mark(row: Row) -> str:
    return {True: "yes", False: "NO", None: ""}[row.met]
