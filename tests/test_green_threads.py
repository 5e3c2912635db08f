"""gevent and eventlet replace threads, locks and sockets, often after this package was imported."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azure_imds_credential._calling_thread import has_stopping_hub
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


# A worker of gevent's pool asks, first without a token and then with a stale one; the main thread asks when it expires.
POOL = """
import sys, warnings
warnings.simplefilter("ignore")
from azure_imds_credential import ImdsCredential
from azure_imds_credential._options import process_cache
from gevent import get_hub, monkey
monkey.patch_all()

credential = ImdsCredential(endpoint=sys.argv[1], timeout=30)

def ask():
    return credential.get_token("https://vault.azure.net").token

def age(refresh_in, expires_in):
    now = process_cache.clock.now()
    for entry in process_cache._entries.values():
        entry.cached = entry.cached._replace(
            refresh_at=now + refresh_in, fresh_until=now + refresh_in, expires_at=now + expires_in
        )

pool = get_hub().threadpool
print(pool.apply(ask))
age(-1, 3000)
print(pool.apply(ask))
age(-1, -1)
print(ask(), flush=True)
"""


def test_gevents_pool_leaves_no_request_behind() -> None:
    """A request that a worker of the pool starts would stand still after its task, and later callers would wait."""
    if find_spec("gevent") is None:
        pytest.skip("gevent is not installed; the extra `integration` has it")
    with ImdsEmulator() as imds:
        command = [sys.executable, "-c", POOL, imds.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        first, stale, last = done.stdout.split()
        assert first == stale
        assert {first, last} <= set(imds.tokens)
        imds.assert_requests(2)


@pytest.mark.parametrize(
    ("patched", "main", "stops"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_whose_hub_stops(monkeypatch: pytest.MonkeyPatch, patched: bool, main: bool, stops: bool) -> None:
    """That of a thread which is not the main one, where gevent replaced threads."""
    monkeypatch.delitem(sys.modules, "gevent.monkey", raising=False)
    assert not has_stopping_hub()
    gevent: Any = SimpleNamespace(get_hub=lambda: SimpleNamespace(main_hub=main))
    monkey: Any = SimpleNamespace(is_module_patched=lambda name: patched and name == "threading")
    monkeypatch.setitem(sys.modules, "gevent", gevent)
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    assert has_stopping_hub() is stops
