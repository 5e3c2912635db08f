"""gevent and eventlet replace threads, locks and sockets, often after this package was imported."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from azure_imds_credential.testing import ImdsEmulator
from azure_imds_credential.testing.faults import Reply, Steps

PROGRAM = str(Path(__file__).with_name("green_program.py"))
HANGS = 120  # seconds after which a program is taken for frozen


@pytest.mark.parametrize("when", ["before", "after", "late"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_green_threads_run_on(library: str, when: str) -> None:
    """Patched before the import, after it or after a request: each call gets its token, and others run meanwhile."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed; the extra `integration` has it")
    turning = threading.Event()
    with ImdsEmulator() as imds:

        def answer(reply: Reply) -> Steps:
            if "silent" in imds.requests[-1].target:
                yield 600.0
            if "first" not in imds.requests[-1].target:
                yield turning
            yield reply.encode()

        imds.script(answer, seconds=3600)
        command = [sys.executable, "-W", "ignore", PROGRAM, library, when, imds.endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            watchdog = threading.Timer(HANGS, child.kill)
            watchdog.start()
            assert child.stdout is not None
            assert child.stdout.readline() == "turning\n"
            turning.set()
            told = json.loads(child.stdout.readline())
            watchdog.cancel()
        tokens = set(imds.tokens)
    assert len(set(told["tokens"])) == 3
    assert {*told["tokens"], *told["joined"]} <= tokens
    assert told["again"] == told["tokens"]
    assert len(set(told["joined"])) == 1, "one request served no other green thread"
    assert told["turns"] >= 20
    assert told["error"] in ("ImdsServiceError", "ImdsUnavailableError")
    assert told["seconds"] < 0.5 + 20
    assert told["turns while silent"] >= 1
    imds.assert_requests(3 + 1 + 1 + (when == "late"))
