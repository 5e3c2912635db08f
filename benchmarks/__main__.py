"""Measures this library, azure-identity and bare msal side by side, in one run against the emulator.

Exits with 1 when this library misses what it must reach.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from . import crowd, forked, memory, pictures, refresh, serve, startup, warm
from .emulator import EmulatorProcess
from .report import Row, as_json, caption, machine, markdown, table, versions

DOCS = Path(__file__).parent.parent / "docs"
MEASURES = {
    "startup": startup.measure,
    "warm": warm.measure,
    "crowd": crowd.measure,
    "refresh": refresh.measure,
    "forked": forked.measure,
    "memory": memory.measure,
    "serve": serve.measure,
}


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for, and show it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="MEASURE", help=f"some of {', '.join(MEASURES)}; default: all")
    parser.add_argument("--all", action="store_true", help="with the pictures and the fleet, as the README shows them")
    parser.add_argument("--quick", action="store_true", help="fewer runs: for a check that all of it works")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where --all draws; default: docs, --quick: nowhere"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print the table as the README has it")
    options = parser.parse_args(argv)
    unknown = set(options.only) - set(MEASURES)
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")

    with EmulatorProcess() as emulator:

        def measured(name: str) -> list[Row]:
            begun = time.perf_counter()
            rows = MEASURES[name](emulator, quick=options.quick)
            print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            return rows

        names = [name for name in MEASURES if not options.only or name in options.only]
        with ThreadPoolExecutor(2 if options.quick else 1) as pool:  # two at once spoil each other's times a little
            rows = [row for found in pool.map(measured, names) for row in found]

    print(markdown(rows, caption()) if options.markdown else f"{table(rows)}\n\n{caption()}")
    if options.json:
        found = {"versions": versions(), "machine": machine(), "quick": options.quick, "rows": as_json(rows)}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = sum(row.met is False for row in rows)
    if options.all:
        folder = options.pictures or (None if options.quick else DOCS)
        if folder:
            pictures.draw(rows, caption(), folder)
        arguments = [f"--{name}" for name in ("quick", "markdown") if getattr(options, name)]
        arguments += ["--pictures", str(folder)] if folder else []
        arguments += ["--json", str(options.json.with_suffix(".fleet.json"))] if options.json else []
        missed += import_module("benchmarks.fleet").main(arguments)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
