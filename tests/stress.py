"""Run the suite again and again, in random order, beside busy loops: `make test-stress`.

A run that fails is shown with its seed, and with the command that runs the same order again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

BUSY = (
    "import sys, threading\nthreading.Thread(target=sys.stdin.read).start()\nwhile threading.active_count() > 1: pass"
)


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep this many processes busy. They end with this one, however it ends: they wait for their standard input."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


def run_suite(name: str, seed: int, arguments: Sequence[str]) -> bool:
    """Run the suite once, in the order of this seed, print how that went, and return whether it passed."""
    order = ["--random-order-bucket=global", f"--random-order-seed={seed}"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *order, *arguments]
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    last = re.sub("^=* | =*$", "", done.stdout.rstrip().rpartition("\n")[2])
    load = f"{os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else "unknown"
    lines = [f"{name}, seed {seed}: {last}; load {load}, {time.monotonic() - begun:.0f} s in all"]
    if done.returncode:
        lines += [done.stdout, f"The same order again: {' '.join(command)}"]
    print("\n".join(lines), flush=True)
    return done.returncode == 0


def main() -> int:
    """Run, and return the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how often (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=4, help="busy loops beside it (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the first run; the next one has the next number (default: any)")
    options, arguments = parser.parse_known_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    with busy_loops(options.busy), ThreadPoolExecutor(options.at_once) as pool:
        runs = [
            pool.submit(run_suite, f"run {number + 1} of {options.runs}", seed + number, arguments)
            for number in range(options.runs)
        ]
        try:
            passed = sum(run.result() for run in runs)
        except BaseException:  # an interrupt: no other run may start
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(f"{passed} of {options.runs} runs passed, {options.at_once} at a time, beside {options.busy} busy loops.")
    return options.runs - passed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
