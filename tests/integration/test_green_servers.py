"""Real servers and workers that patch Python: one request to IMDS, and others are served while it is waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from proving import HERE, free_port, lacking, needs

from azure_imds_credential.testing import ImdsEmulator, faults

BIN = Path(sys.executable).parent
LIMIT = 120.0  # seconds for a server to come up, or for an answer of one that is not frozen
CALLERS = 5


@contextlib.contextmanager
def running(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a process group of its own, and end the group."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), **variables}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=HERE, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT) as response:
        return str(response.read().decode())


def wait_until_it_listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail(f"nothing listens: {log.read_text()}")


SERVERS = {
    "gunicorn, gevent": ["gunicorn", "-k", "gevent", "-w", "1", "-b", "127.0.0.1:{port}", "web_app:application"],
    "gunicorn, gevent, preload": [
        "gunicorn", "-k", "gevent", "--preload", "-w", "1", "-b", "127.0.0.1:{port}", "web_app:application"
    ],
    "uwsgi, gevent": [
        "uwsgi", "--http-socket", "127.0.0.1:{port}", "--gevent", "20", "--gevent-monkey-patch", "--master",
        "--processes", "1", "--die-on-term", "--module", "web_app:application"
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SERVERS)
def test_web_server(name: str, imds: ImdsEmulator, tmp_path: Path) -> None:
    """Five requests at once cost one request to IMDS, and the worker answers others until it comes."""
    program, *arguments = SERVERS[name]
    needs("gevent")
    if not (BIN / program).exists():
        lacking(f"{program} is not installed; the extra `integration` has it")
    release, port, log = threading.Event(), free_port(), tmp_path / "log"
    imds.script(*[faults.hold(release)] * 3)
    command = [str(BIN / program), *(argument.format(port=port) for argument in arguments)]
    with running(command, log) as process:
        wait_until_it_listens(port, process, log)
        with ThreadPoolExecutor(CALLERS) as pool:
            try:
                tokens = [pool.submit(get, f"http://127.0.0.1:{port}/token") for _ in range(CALLERS)]
                imds.wait_for_requests(1, timeout=LIMIT)
                assert get(f"http://127.0.0.1:{port}/ping") == "pong"
                assert not any(token.done() for token in tokens)
            finally:
                release.set()
            assert {token.result(LIMIT) for token in tokens} == {imds.tokens[0][-12:]}, log.read_text()
    imds.assert_requests(1)


@pytest.mark.parametrize("pool", ["gevent", "prefork"])
def test_celery_worker(pool: str, imds: ImdsEmulator, tmp_path: Path) -> None:
    """Three tasks cost one request to IMDS; with gevent another task is done while it is waited for."""
    needs("celery", "gevent")
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    release, log = threading.Event(), tmp_path / "log"
    imds.script(*[faults.hold(release)] * 3)
    size = "10" if pool == "gevent" else "1"
    command = [str(BIN / "celery"), "-A", "task_app", "worker", "-P", pool, "-c", size, "--loglevel", "INFO"]
    send = (
        "import task_app; tokens = [task_app.token.delay() for _ in '123']; ping = task_app.ping.delay(); "
        "{ping}; print(*sorted({{token.get(timeout=100) for token in tokens}}))"
    )
    wait = "print(ping.get(timeout=100), flush=True)"
    program = send.format(ping=wait if pool == "gevent" else "print('pong', flush=True)")
    with running(command, log, QUEUE_FOLDER=str(tmp_path)):
        environment = {**os.environ, "PYTHONPATH": str(HERE), "QUEUE_FOLDER": str(tmp_path)}
        caller = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE
        )
        assert caller.stdout is not None
        with caller:
            try:
                imds.wait_for_requests(1, timeout=LIMIT)
                assert caller.stdout.readline() == "pong\n", log.read_text()
            finally:
                release.set()
            assert caller.stdout.readline().split() == [imds.tokens[0][-12:]], log.read_text()
    imds.assert_requests(1)


WAITING = """
import json, sys, time
from azure_imds_credential import ImdsCredential, ImdsError
credential = ImdsCredential(endpoint=sys.argv[1])
print("asking", flush=True)
while True:
    try:
        credential.get_token("https://vault.azure.net/.default")
        print(time.monotonic(), flush=True)
        break
    except ImdsError:
        time.sleep(1)
"""
# Seconds. A connect attempt a second looks whether something listens, and the program asks every second.
AFTER_IMDS = 2.0
TRIES = 5  # a machine under load may delay one, not each


def test_program_that_starts_before_imds() -> None:
    """A program that retries every second has its token within two seconds of IMDS's first answer."""
    taken = []
    for _ in range(TRIES):
        port = free_port()
        command = [sys.executable, "-c", WAITING, f"http://127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"asking\n"
            time.sleep(3.5)  # beyond the first call, whose error is remembered
            with ImdsEmulator(port=port):
                begun = time.monotonic()
                taken.append(float(child.stdout.readline()) - begun)
        if taken[-1] <= AFTER_IMDS:
            break
    assert min(taken) <= AFTER_IMDS, taken
