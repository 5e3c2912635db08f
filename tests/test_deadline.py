"""`timeout` is a hard ceiling, whatever the server does, and a hanging request delays no other call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flavors import VAULT, Flavor
from tcp import listening, never_read

from azure_imds_credential import ImdsError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens
from azure_imds_credential.testing.faults import Fault, Reply, Steps

TIMEOUT = 0.3
THREAD_NAME = "azure-imds-credential"  # of every exchange
# What a call may take beyond its timeout, on a quiet machine and on any.
GRACE = [pytest.param(0.2, marks=pytest.mark.alone), 30.0]
TIMEOUTS = (0.3, 3.0, 30.0)  # timeouts to try in turn: on a busy machine an answer may begin after the first has passed


def half_a_status_line(reply: Reply) -> Steps:
    yield b"HTTP/1.1 2"
    yield 60.0


def endless_headers(reply: Reply) -> Steps:
    yield b"HTTP/1.1 200 OK\r\n"
    for number in range(100_000):
        yield b"X-%d: 1\r\n" % number
        yield 0.01


def endless_drip_of_spaces(reply: Reply) -> Steps:
    yield reply.with_header("Content-Length", str(len(reply.body) + 100_000)).head()
    while True:
        yield b" "
        yield 0.005


def endless_chunks(reply: Reply) -> Steps:
    yield reply.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked").head()
    while True:
        yield b"1\r\n \r\n"
        yield 0.005


def redirect_that_drips(reply: Reply) -> Steps:
    yield b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 100000\r\n\r\n"
    while True:
        yield b"x"
        yield 0.005


SERVERS: dict[str, Fault] = {
    "silence": faults.hang,
    "headers drip": faults.drip(0.02, headers=True),
    "body drips": faults.drip(0.02),
    "body drips for ever": endless_drip_of_spaces,
    "chunks for ever": endless_chunks,
    "100 Continue for ever": faults.endless_100_continue(0.005),
    "half a status line": half_a_status_line,
    "headers for ever": endless_headers,
    "redirect that drips": redirect_that_drips,
    "late": faults.slow(TIMEOUT + 1),
    "throttled": faults.throttled(),
}


@contextmanager
def serving(name: str) -> Iterator[str]:
    """An endpoint that behaves so for ever."""
    if name == "never reads":
        with listening(never_read) as server:
            yield server.url
        return
    with ImdsEmulator() as imds:
        imds.script(SERVERS[name], seconds=600)
        yield imds.endpoint


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a failing call takes."""
    begun = time.monotonic()
    with pytest.raises(ImdsError):
        call()
    return time.monotonic() - begun


@pytest.mark.parametrize("name", [*SERVERS, "never reads"])
@pytest.mark.parametrize("grace", GRACE)
def test_timeout(name: str, flavor: Flavor, grace: float) -> None:
    """A call ends at most 0.2 s after `timeout`, with an error of ours, whatever the server does."""
    with serving(name) as endpoint:
        if flavor.name == "sync":
            assert seconds_of(lambda: flavor.ask(endpoint, timeout=TIMEOUT)) <= TIMEOUT + grace
            return

        async def in_a_loop() -> float:
            begun = time.monotonic()
            with pytest.raises(ImdsError):
                await flavor.ImdsCredential(endpoint=endpoint, timeout=TIMEOUT).get_token(VAULT)
            return time.monotonic() - begun

        assert asyncio.run(in_a_loop()) <= TIMEOUT + grace


@pytest.mark.parametrize("name", ["silence", "body drips", "100 Continue for ever"])
def test_unfinished_response(name: str, flavor: Flavor) -> None:
    """The error of a call that ran out of time says where it was asked and that no whole answer came."""
    with serving(name) as endpoint, pytest.raises(ImdsError) as caught:
        flavor.ask(endpoint, timeout=TIMEOUT)
    error = caught.value
    assert isinstance(error, (ImdsUnavailableError, ImdsServiceError))
    assert error.endpoint == endpoint
    assert error.resource == VAULT
    assert error.hint


@pytest.mark.parametrize("name", ["body drips", "body drips for ever", "chunks for ever"])
def test_endless_response(name: str, flavor: Flavor) -> None:
    """A chain stops at IMDS whose response never ends, since its headers identify it: no other identity is used."""
    told: list[type] = []
    for timeout in TIMEOUTS:
        forget_tokens()
        with serving(name) as endpoint, pytest.raises(ImdsError) as caught:
            flavor.ask(endpoint, timeout=timeout)
        told.append(caught.type)
        if caught.type is ImdsServiceError:
            return
    pytest.fail(f"no timeout brought an ImdsServiceError: {told}")


def test_last_error(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A call that ends during a wait or a second attempt tells what the attempt before it brought."""
    told: list[str] = []
    for timeout in (1.2, 12.0, 60.0):
        imds.clear_faults()
        imds.script(faults.status(503, {"error": "server_error", "error_description": "unwell"}))
        imds.script(faults.endless_100_continue(), seconds=600)
        with pytest.raises(ImdsError) as caught:
            flavor.ask(imds.endpoint, timeout=timeout)
        if isinstance(caught.value, ImdsServiceError) and "unwell" in str(caught.value):
            assert caught.value.status == 503
            return
        told.append(str(caught.value))
    pytest.fail(f"the trouble was never told: {told}")


def test_own_deadlines(imds: ImdsEmulator, flavor: Flavor) -> None:
    """A waiting caller times out at its own deadline; one with a later deadline gets the token."""
    release = threading.Event()
    imds.script(faults.hold(release))
    tokens: list[str] = []
    patient = threading.Thread(target=lambda: tokens.append(flavor.ask(imds.endpoint, timeout=120).token))
    patient.start()
    try:
        imds.wait_for_requests(1)
        assert seconds_of(lambda: flavor.ask(imds.endpoint, timeout=TIMEOUT)) < 60, "it stayed as long as the other"
    finally:
        release.set()
        patient.join()
    assert tokens == imds.tokens
    imds.assert_requests(1)


def test_hanging_requests_and_slots(imds: ImdsEmulator, flavor: Flavor) -> None:
    """Ten requests that hang leave room for the eleventh."""
    imds.script(*[faults.endless_100_continue(0.005)] * 10)
    callers = [
        threading.Thread(target=_fails, args=(flavor, imds.endpoint, f"https://{number}.example"))
        for number in range(10)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    imds.clear_faults()
    assert flavor.ask(imds.endpoint, timeout=90).token in imds.tokens


def test_silent_server(flavor: Flavor) -> None:
    """The thread of a request to a silent server ends at the deadline of the caller that started it."""
    with listening(never_read) as server:
        with pytest.raises(ImdsError):
            flavor.ask(server.url, timeout=TIMEOUT)
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME and server.accepted:
                thread.join(60)
        assert THREAD_NAME not in [thread.name for thread in threading.enumerate()]


def _fails(flavor: Flavor, endpoint: str, scope: str) -> None:
    with pytest.raises(ImdsError):
        flavor.ask(endpoint, scope=scope, timeout=TIMEOUT)


CHILDREN = {
    "sync": """
        try:
            azure_imds_credential.ImdsCredential(endpoint=endpoint, timeout=1).get_token("https://vault.azure.net")
        except azure_imds_credential.ImdsError:
            pass
    """,
    "sync in a thread that is left": """
        credential = azure_imds_credential.ImdsCredential(endpoint=endpoint)
        threading.Thread(target=credential.get_token, args=("https://vault.azure.net",), daemon=True).start()
        time.sleep(1)
    """,
    "aio": """
        async def main():
            credential = azure_imds_credential.aio.ImdsCredential(endpoint=endpoint)
            try:
                await asyncio.wait_for(credential.get_token("https://vault.azure.net"), 1)
            except asyncio.TimeoutError:
                pass
        asyncio.run(main())
    """,
    "aio with a task that is left": """
        async def main():
            credential = azure_imds_credential.aio.ImdsCredential(endpoint=endpoint)
            left = asyncio.create_task(credential.get_token("https://vault.azure.net"))
            await asyncio.sleep(1)
        asyncio.run(main())
    """,
}


def test_exit_during_a_request() -> None:
    """`asyncio.run` and the interpreter end while the request still hangs, and say nothing."""
    preface = (
        "import asyncio, sys, threading, time\nimport azure_imds_credential.aio, azure_imds_credential._imds.client\n"
    )
    with ImdsEmulator() as imds:
        imds.script(faults.endless_100_continue(), seconds=600)
        running = {}
        for name, program in CHILDREN.items():
            code = f"{preface}endpoint = {imds.endpoint!r}\n{textwrap.dedent(program)}"
            running[name] = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        try:
            for name, child in running.items():
                said, _ = child.communicate(timeout=300)  # a held-up one would go on for the 600 s of the server
                assert (name, child.returncode, said) == (name, 0, "")
        finally:
            for child in running.values():
                child.kill()
                child.communicate()
        imds.assert_requests(len(CHILDREN))


def test_hanging_imds(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A chain must not go on to another credential because an IMDS that is known was slow once."""
    flavor.ask(imds.endpoint)
    imds.script(faults.endless_100_continue(0.005))
    with pytest.raises(ImdsServiceError):
        flavor.ask(imds.endpoint, scope="https://other.example", timeout=TIMEOUT)
