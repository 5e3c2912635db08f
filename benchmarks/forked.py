"""Forked children after the parent's first request, as gunicorn --preload and celery have them.

    python -m benchmarks.forked LIBRARY

gets a token, forks eight children that ask for eight resources at the same moment, and prints how many of them got
the token of their resource, that of another one, or an error.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .children import run
from .peers import OURS, PEERS, RESOURCE, client
from .report import Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess

CHILDREN = 8
FAMILIES = 6
CHILD_TIMEOUT = 10  # seconds; a child that still waits then counts as an error
RIGHT, WRONG, ERROR = 0, 1, 2  # exit codes of a child


def audience(token: str) -> str:
    """Read whom a token is for."""
    part = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["aud"])


def main(peer: str) -> None:
    """Be one family."""
    get = client(peer)
    get(RESOURCE)
    start, go = os.pipe()
    children = [_child(lambda n=n: audience(get(f"https://child-{n}.example")), f"https://child-{n}.example", start, go)
                for n in range(CHILDREN)]  # fmt: skip
    os.close(start)
    os.close(go)  # the end of this pipe is what the children wait for
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    right, wrong = ends.count(RIGHT), ends.count(WRONG)
    print(json.dumps({"right": right, "wrong": wrong, "errors": CHILDREN - right - wrong}))


def _child(ask: object, resource: str, start: int, go: int) -> int:
    child = os.fork()
    if child:
        return child
    end = ERROR
    try:
        os.close(go)
        signal.alarm(CHILD_TIMEOUT)  # ends the process, whatever it waits for
        os.read(start, 1)
        end = RIGHT if ask() == resource else WRONG  # type: ignore[operator]
    finally:
        os._exit(end)


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Run six families of each library; in the quick form, side by side, one of the peers."""
    machine = emulator.Machine(latency=0.02)  # type: ignore[attr-defined] # registered
    families = [peer for peer in PEERS for _ in range(1 if quick and peer != OURS else FAMILIES)]
    with ThreadPoolExecutor(6 if quick else 2) as pool:
        found = list(pool.map(lambda peer: run("forked", peer, endpoint=machine.endpoint()), families))
    machine.close()
    sums = {
        peer: {
            end: sum(one[end] for family, one in zip(families, found, strict=True) if family == peer)
            for end in ("right", "wrong", "errors")
        }
        for peer in PEERS
    }
    cells = {peer: ", ".join(f"{count} {end}" for end, count in sums[peer].items()) for peer in PEERS}
    total = CHILDREN * FAMILIES
    return [
        Row(
            f"{total} forked children, eight resources at once after a parent's request",
            cells,
            f"{total} right",
            sums[OURS]["right"] == total,
            sums,
        )
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
