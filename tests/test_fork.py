"""Forked children (gunicorn --preload, multiprocessing, celery prefork): they keep tokens, never hang, never mix up."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flavors import VAULT, Flavor

from azure_imds_credential import ImdsCredential, _fork
from azure_imds_credential._endpoint import MAX_PER_WINDOW
from azure_imds_credential._jwt import claims_of
from azure_imds_credential.testing import ImdsEmulator, faults

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

CHILDREN, RESOURCES = 48, 8


@contextmanager
def _forking() -> Iterator[None]:
    """Python 3.12 warns of a fork beside threads, which is what is tried here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _in_child(work: Callable[[], Any], timeout: float = 30.0) -> Any:
    """Run something in a forked child; give what it returned, or raise if it hangs or fails."""
    with _forking():
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=lambda: there.send(work()))
        child.start()
    there.close()
    try:
        assert here.poll(timeout), "the child hangs"
        return here.recv()
    finally:
        child.kill()
        child.join()


def test_tokens_of_the_parent(flavor: Flavor, imds: ImdsEmulator) -> None:
    """No request: a token is valid for the machine, not for a process."""
    token = flavor.ask(imds.endpoint).token
    assert _in_child(lambda: flavor.ask(imds.endpoint).token) == token
    imds.assert_requests(1)


def test_48_children(imds: ImdsEmulator) -> None:
    """After one request of the parent, each asks for one of eight resources, all at once: 48 are right."""
    credential = ImdsCredential(endpoint=imds.endpoint)
    credential.get_token("https://parent.example/.default")
    go_read, go_write = os.pipe()
    answers_read, answers_write = os.pipe()
    children = []
    for number in range(CHILDREN):
        with _forking():
            child = os.fork()
        if child == 0:
            try:
                os.close(go_write)
                os.read(go_read, 1)  # until the parent closes its end
                resource = f"https://resource{number % RESOURCES}.example"
                token = credential.get_token(resource + "/.default").token
                right = claims_of(token)["aud"] == resource
                os.write(answers_write, b"right\n" if right else b"wrong\n")
            except BaseException as error:  # a child must not run on into the suite
                os.write(answers_write, f"{type(error).__name__}\n".encode())
            finally:
                os._exit(0)
        children.append(child)
    os.close(go_write)
    os.close(go_read)
    os.close(answers_write)
    with os.fdopen(answers_read) as answers:
        said = answers.read().split()
    for child in children:
        os.waitpid(child, 0)
    assert said == ["right"] * CHILDREN


def test_request_of_a_child(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The parent's request hangs; it ends in the parent alone, so the child sends its own."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    thread = threading.Thread(target=flavor.ask, args=(imds.endpoint,))
    thread.start()
    try:
        imds.wait_for_requests(1)
        assert _in_child(lambda: flavor.ask(imds.endpoint).token)
        imds.assert_requests(2)
    finally:
        answer.set()
        thread.join()


@pytest.fixture
def _silent() -> Iterator[None]:
    """No logging: a file that another thread is writing a log record to at the fork stays locked in the child.

    https://github.com/python/cpython/issues/50970: it is so for every program whose threads log while it forks.
    """
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_silent")
def test_busy_parent(imds: ImdsEmulator) -> None:
    """Threads take and give back every lock there is while the parent forks, again and again."""
    stop = threading.Event()

    def busy(number: int) -> None:
        credential = ImdsCredential(endpoint=imds.endpoint)
        turn = 0
        while not stop.is_set():
            turn += 1
            credential.get_token(f"https://busy{number}.example/{turn % 20}/.default")

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(12):
            scope = f"https://child{number}.example"
            assert _in_child(lambda scope=scope: ImdsCredential(endpoint=imds.endpoint).get_token(scope).token)  # type: ignore[misc] # binds the loop's value
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# Forks while another thread is in the middle of importing msal and the HTTP stack: without a lock that fork waits for,
# the child would inherit an import that never ends.
FORK_DURING_IMPORT = """
import json, os, select, sys, threading, time
from azure_imds_credential import ImdsCredential

delay, endpoint = float(sys.argv[1]), sys.argv[2]
credential = ImdsCredential(endpoint=endpoint, timeout=20)
thread = threading.Thread(target=credential.get_token, args=("https://parent.example/.default",))
thread.start()
while "msal" not in sys.modules:
    time.sleep(0)
time.sleep(delay)
half_done = "msal.managed_identity" not in sys.modules or thread.is_alive()
read, write = os.pipe()
child = os.fork()
if child == 0:
    token = credential.get_token("https://child.example/.default").token
    os.write(write, b"token" if token else b"none")
    os._exit(0)
os.close(write)
ready, _, _ = select.select([read], [], [], 15)
said = os.read(read, 10).decode() if ready else "hangs"
os.kill(child, 9)
os.waitpid(child, 0)
thread.join()
print(json.dumps([half_done, said]))
"""


def test_fork_during_import(imds: ImdsEmulator) -> None:
    """At six moments of the import: the child gets its token every time."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK_DURING_IMPORT]
    results = [
        json.loads(subprocess.run([*command, str(n * 0.008), imds.endpoint], check=True, capture_output=True).stdout)
        for n in range(6)
    ]
    assert [said for _, said in results] == ["token"] * 6
    assert sum(half_done for half_done, _ in results) >= 3, "the forks came too late to show anything"


# Stops the import of one module for a moment, in which the main thread forks.
FORK_WHILE_A_MODULE_IS_LOADED = """
import os, select, sys, threading, time
from azure_imds_credential import ImdsCredential

name, endpoint = sys.argv[1:]
loading = threading.Event()

class Stop:
    def find_spec(self, wanted, path=None, target=None):
        if wanted == name:
            loading.set()
            time.sleep(0.5)  # time for a fork that waits for nothing

sys.meta_path.insert(0, Stop())
credential = ImdsCredential(endpoint=endpoint, timeout=20)
thread = threading.Thread(target=credential.get_token, args=("https://parent.example/.default",))
thread.start()
assert loading.wait(10), "it is not loaded at all"
read, write = os.pipe()
child = os.fork()
if child == 0:
    token = credential.get_token("https://child.example/.default").token
    os.write(write, b"token" if token else b"none")
    os._exit(0)
os.close(write)
ready, _, _ = select.select([read], [], [], 10)
print(os.read(read, 10).decode() if ready else "hangs")
os.kill(child, 9)
os.waitpid(child, 0)
thread.join()
"""


@pytest.mark.parametrize("module", ["msal.managed_identity", "requests.sessions"])
def test_fork_waits_for_an_import(imds: ImdsEmulator, module: str) -> None:
    """No child inherits an import that never ends."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK_WHILE_A_MODULE_IS_LOADED]
    done = subprocess.run([*command, module, imds.endpoint], check=True, capture_output=True, text=True, timeout=600)
    assert done.stdout == "token\n"


# Asks in fork handlers that were registered before the package was imported, so that its own come first before a fork
# and last after it. Another thread holds the locks of the cache meanwhile.
FORK_HANDLERS = """
import os, signal, sys, threading

def hold():
    def hold_locks():
        with cache._lock, state.limiter.lock:
            held.set()
            over.wait()
    threading.Thread(target=hold_locks, daemon=True).start()
    held.wait()

def ask(place):
    signal.alarm(120)  # for a child that hangs
    try:
        told = flavor.ask(endpoint, scope=f"https://{place}.example", timeout=60).token
    except Exception as error:
        told = repr(error)
    os.write(1, f"{place} {told}\\n".encode())

held, over = threading.Event(), threading.Event()
os.register_at_fork(before=hold, after_in_parent=over.set)
os.register_at_fork(
    before=lambda: ask("before"), after_in_parent=lambda: ask("parent"), after_in_child=lambda: ask("child")
)

from azure_imds_credential._endpoint import UrlState
from azure_imds_credential._options import process_cache as cache
from flavors import AIO, SYNC

name, endpoint = sys.argv[1:]
flavor = {"sync": SYNC, "aio": AIO}[name]
state = cache._urls.setdefault(endpoint, UrlState())
child = os.fork()
for place in ("before", "late child" if child == 0 else "late parent"):
    ask(place.replace(" ", "-"))
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""


def test_fork_handlers_that_ask(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Fork handlers of others get tokens at each moment of a fork, whatever other threads of the parent hold."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK_HANDLERS, flavor.name, imds.endpoint]
    folder = Path(__file__).parent
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert {place for place, _ in told} == {"before", "parent", "child", "late-parent", "late-child"}
    assert {token for _, token in told} == set(imds.tokens)
    assert len({token for place, token in told if place == "before"}) == 1, "the tokens of the parent are kept"


def test_child_with_the_number_of_its_parent(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process namespace of its own a child may have its parent's number: it is reset all the same."""
    monkeypatch.setattr(_fork, "os", SimpleNamespace(getpid=lambda: 1))
    monkeypatch.setattr(_fork, "_process", 1)
    cache = ImdsCredential(endpoint=imds.endpoint)._options.cache
    lock = cache._lock
    assert _in_child(lambda: cache._lock is not lock)


def test_forced_request_of_a_child(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A forced refresh of the parent hangs; the child that forces one sends its own."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=10)
    thread = threading.Thread(target=lambda: flavor.run(credential.get_token(VAULT, force_refresh=True)))
    thread.start()
    try:
        imds.wait_for_requests(1)
        assert _in_child(lambda: flavor.run(credential.get_token(VAULT, force_refresh=True)).token)
        imds.assert_requests(2, bypass_cache="true")
    finally:
        answer.set()
        thread.join()


@pytest.mark.usefixtures("_silent")
def test_private_cache_in_a_child(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A lock that is held at the fork, and turns that the parent takes: the child of any cache has its own."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=5, retry_total=0)
    flavor.run(credential.get_token(VAULT))
    limiter = credential._entries[(VAULT,)].endpoint.limiter
    limiter.recent.extend([float("inf")] * MAX_PER_WINDOW)  # as if the parent asked for ever
    with credential._options.cache._lock, limiter.lock:
        token, active = _in_child(
            lambda: (flavor.run(credential.get_token("https://other.example")), len(limiter.active))
        )
    limiter.reset()
    assert token.token in imds.tokens
    assert active == 0


def test_unused_cache() -> None:
    """Credentials with options come and go: each one's cache goes with it."""
    credential = ImdsCredential(retry_total=0)
    cache = weakref.ref(credential._options.cache)
    assert cache() in _fork.caches()
    del credential
    gc.collect()
    assert cache() is None
