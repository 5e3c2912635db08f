"""A request ends with its deadline, as its callers do: no thread, socket or CPU is left, whatever the server does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests.adapters
from endless_server import KINDS
from flavors import AIO, SYNC, VAULT

from azure_imds_credential import ImdsError
from azure_imds_credential._cache.token_cache import THREAD_NAME
from azure_imds_credential.testing import forget_tokens

TIMEOUT = 0.3  # seconds
# Seconds in which a request must be gone. The rule is one after the deadline; a machine under load is given more. A
# request that does not end with its deadline is there for as long as the server goes on, which is an hour.
GONE_WITHIN = 20.0
CPU_WINDOW = 0.3  # seconds for which CPU is counted

pytestmark = pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files are counted in /dev/fd")


@pytest.fixture(scope="module")
def endless() -> Iterator[dict[str, str]]:
    """The base URLs by kind, and where the certificate of their authority is."""
    program = [sys.executable, str(Path(__file__).with_name("endless_server.py"))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())
        finally:
            server.kill()


def _sockets_to(port: int) -> set[int]:
    """Return the inodes of this process's open sockets whose peer has a port."""
    found = set()
    for name in Path("/dev/fd").iterdir():
        number = int(name.name)
        try:
            status = os.fstat(number)
        except OSError:  # closed meanwhile
            continue
        if not stat.S_ISSOCK(status.st_mode):
            continue
        with socket.socket(fileno=os.dup(number)) as copy, contextlib.suppress(OSError):
            peer = copy.getpeername()
            if isinstance(peer, tuple) and peer[1] == port:
                found.add(status.st_ino)
    return found


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def _refuse_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread of the library start, as where RLIMIT_NPROC is reached."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == THREAD_NAME:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def _ask(where: str, url: str) -> Any:
    if where == "aio":
        return asyncio.run(AIO.ImdsCredential(endpoint=url, timeout=TIMEOUT).get_token(VAULT))
    return SYNC.ImdsCredential(endpoint=url, timeout=TIMEOUT).get_token(VAULT)


@pytest.mark.parametrize("where", ["sync", "aio", "inline"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_request(
    endless: dict[str, str], kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an endless answer, and without a thread too, the call ends with an ImdsError and its request with it."""
    forget_tokens()
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", endless["ca"])
    if where == "inline":
        _refuse_to_start(monkeypatch)
    port = urlsplit(endless[kind]).port
    assert port is not None
    others = _sockets_to(port)  # a client of an earlier test's server may have had this port
    begun = time.monotonic()
    with pytest.raises(ImdsError):
        _ask(where, endless[kind])
    for thread in _threads():
        thread.join(GONE_WITHIN)
    assert time.monotonic() - begun < TIMEOUT + GONE_WITHIN
    assert not _threads()
    assert _sockets_to(port) <= others
    used = time.process_time()
    threading.Event().wait(CPU_WINDOW)
    assert time.process_time() - used < CPU_WINDOW / 2
