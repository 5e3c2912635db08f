"""How long it takes to say that there is no IMDS, and for how long that is remembered.

Packets can only be swallowed where there is a network that swallows them: a namespace of its own, with a veth pair on
whose other end nothing answers. Where the system permits none, those tests are skipped.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from flavors import VAULT, Flavor, StillTime, VirtualTime, eventually
from tcp import Listener, listening, never_read

from azure_imds_credential import ImdsServiceError, ImdsUnavailableError, _endpoint, _options
from azure_imds_credential._cache import token_cache
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._endpoint import ABSENCE_MEMORY, BOOT_TIME, BOOT_WINDOW, Absence, Endpoint, UrlState
from azure_imds_credential._identity import Identity
from azure_imds_credential._imds import connect, retry_policy
from azure_imds_credential._imds.machine import plainly_not_azure
from azure_imds_credential._request import TokenKey
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

NAMESPACE = """
    set -e
    ip link set lo up
    ip link add imds0 type veth peer name imds1
    ip address add 10.255.0.1/24 dev imds0
    ip link set imds0 up
    ip link set imds1 up
    for host in $(seq 2 9); do ip neighbour add 10.255.0.$host lladdr 02:00:00:00:00:0$host dev imds0; done
    exec "$0" -c "$1"
"""


def in_a_network_that_swallows(program: str) -> Any:
    """Run a program where 10.255.0.2 to .9 swallow every packet and every other address is unreachable.

    It finds `ask(kind, url, **arguments)` and `said(call)`, which gives the error's class name, text, and seconds.
    """
    common = """
        import asyncio, json, threading, time
        import azure_imds_credential, azure_imds_credential.aio
        from azure_imds_credential import _endpoint
        from azure_imds_credential._imds import connect

        _endpoint.BOOT_TIME = 0  # also on a machine that has just started

        def ask(kind, url, **arguments):
            package = azure_imds_credential.aio if kind == "aio" else azure_imds_credential
            token = package.ImdsCredential(endpoint=url, **arguments).get_token("https://vault.azure.net")
            return asyncio.run(token) if kind == "aio" else token

        def said(*args, clock=time.perf_counter, **arguments):
            begun = clock()
            try:
                ask(*args, **arguments)
            except azure_imds_credential.ImdsError as error:
                return type(error).__name__, str(error), clock() - begun

        def at_once(**calls):
            told = {}
            threads = [threading.Thread(target=lambda n=n, c=c: told.update({n: c()})) for n, c in calls.items()]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            return told
    """
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("no network namespace here: unshare or ip is not installed")
    unshare = ["unshare", "--net"]
    for prefix in (unshare, ["unshare", "--map-root-user", "--net"]):
        trial = subprocess.run([*prefix, "sh", "-c", NAMESPACE, "true"], capture_output=True, text=True, check=False)
        if trial.returncode == 0:
            break
    else:
        pytest.skip(f"no network namespace here: {trial.stderr.strip()}")
    child = subprocess.run(
        [*prefix, "sh", "-c", NAMESPACE, sys.executable, textwrap.dedent(common) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.fixture(scope="module")
def swallowed() -> dict[str, Any]:
    """What both flavors say where SYNs are swallowed; measured again, twice at most, if this machine was too busy."""
    measured = in_a_network_that_swallows(
        """
        from azure_imds_credential.testing import forget_tokens

        def quickest(limit, **calls):
            best = {}
            for _ in range(3):
                forget_tokens()
                for name, told in at_once(**calls).items():
                    best[name] = min(best.get(name, told), told, key=lambda told: told[2])
                if all(seconds <= limit for *_, seconds in best.values()):
                    break
            return best

        told = quickest(
            3.3, sync=lambda: said("sync", "http://10.255.0.2"), aio=lambda: said("aio", "http://10.255.0.3")
        )
        for kind, host in (("sync", 2), ("aio", 3)):
            told[kind + " again"] = [
                said(kind, f"http://10.255.0.{host}", clock=time.thread_time) for _ in range(50)
            ]
        told["sync unreachable"] = said("sync", "http://10.254.0.1")
        told["aio unreachable"] = said("aio", "http://10.254.0.2")
        connect.is_plainly_not_azure = lambda: True
        told |= quickest(1.3, **{
            "sync elsewhere": lambda: said("sync", "http://10.255.0.4"),
            "aio elsewhere": lambda: said("aio", "http://10.255.0.5"),
        })
        print(json.dumps(told))
        """
    )
    assert isinstance(measured, dict)
    return measured


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_lost_packets_within_3_3_seconds(swallowed: dict[str, Any], kind: str) -> None:
    """One connect budget of 3 s, which survives one lost SYN, and no retry."""
    name, text, seconds = swallowed[kind]
    assert name == "ImdsUnavailableError"
    assert "connecting timed out" in text
    assert "Is this an Azure VM" in text
    assert 2.9 <= seconds <= 3.3


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_other_vendor_within_1_3_seconds(swallowed: dict[str, Any], kind: str) -> None:
    """Where the hardware is known to be another vendor's, the budget is 1 s."""
    name, _, seconds = swallowed[f"{kind} elsewhere"]
    assert name == "ImdsUnavailableError"
    assert 0.9 <= seconds <= 1.3


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_lost_packets(swallowed: dict[str, Any], kind: str) -> None:
    """The connect budget ends the wait, on any machine, and what is remembered of it is told again."""
    name, text, seconds = swallowed[kind]
    assert name == "ImdsUnavailableError"
    assert "connecting timed out" in text
    assert 2.9 <= seconds < 60, "the operating system takes 130 s to give up"
    assert all(
        text.startswith(swallowed[kind][1]) and "remembered" in text for _, text, _ in swallowed[f"{kind} again"]
    )
    assert 0.9 <= swallowed[f"{kind} elsewhere"][2] < 60


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_unreachable_network(swallowed: dict[str, Any], kind: str) -> None:
    """No route: the operating system says so, and so does the error."""
    name, text, seconds = swallowed[f"{kind} unreachable"]
    assert name == "ImdsUnavailableError"
    assert "ENETUNREACH: Network is unreachable" in text
    assert seconds < 60, "the operating system takes 130 s to give up"


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_remembered_absence_is_fast(swallowed: dict[str, Any], kind: str) -> None:
    """Asked again, the same is said from memory, a new event loop for each call of the aio flavor included."""
    again = swallowed[f"{kind} again"]
    assert {name for name, _, _ in again} == {swallowed[kind][0]}
    assert all(text.startswith(swallowed[kind][1]) and "remembered" in text for _, text, _ in again)
    assert sorted(seconds for *_, seconds in again)[len(again) // 2] < 0.001


def test_absence_per_endpoint(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent endpoint is not asked again while callers come often; another endpoint is another matter."""
    clock = StillTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    with imds.down(), pytest.raises(ImdsUnavailableError) as first:
        flavor.run(credential.get_token(VAULT))
    # It is there again; for a second no look is made.
    clock.skip(0.9)
    with pytest.raises(ImdsUnavailableError, match="remembered") as remembered:
        flavor.run(credential.get_token("https://management.azure.com"))
    told = str(first.value).replace("https://vault.azure.net", "https://management.azure.com")
    assert str(remembered.value).startswith(told)
    imds.assert_requests(0)
    with ImdsEmulator() as other:
        assert flavor.ask(other.endpoint).token in other.tokens
    clock.skip(ABSENCE_MEMORY)
    assert flavor.run(credential.get_token(VAULT)).token in imds.tokens


def test_listener(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a caller asked, connect attempts go on; when one succeeds, the next call gets its token."""
    monkeypatch.setattr(token_cache, "PROBE_INTERVAL", 0.01)
    looks = []
    has_listener = connect.has_listener

    def look(url: str) -> bool:
        looks.append(has_listener(url))
        return looks[-1]

    monkeypatch.setattr(connect, "has_listener", look)
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    with imds.down():
        for remembered in (False, True):
            with pytest.raises(ImdsUnavailableError) as caught:
                flavor.run(credential.get_token(VAULT))
            assert ("remembered" in str(caught.value)) is remembered
        eventually(lambda: len(looks) >= 3)
        assert not any(looks)
    eventually(lambda: any(looks) and _endpoint_of(credential).absence is None)
    imds.assert_requests(0)
    assert flavor.run(credential.get_token(VAULT)).token in imds.tokens
    count = len(looks)
    flavor.run(credential.get_token(VAULT))
    assert len(looks) == count, "looks go on"


def _endpoint_of(credential: Any) -> Endpoint:
    endpoint: Endpoint = credential._options.entry((VAULT,)).endpoint
    return endpoint


@pytest.mark.parametrize("option", [{"force_refresh": True}, {"wait_for_identity": 5}], ids=str)
def test_urgent_calls(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, option: dict[str, Any]) -> None:
    """`force_refresh` and `wait_for_identity` never use remembered absence."""
    with imds.down(), pytest.raises(ImdsUnavailableError):
        flavor.ask(imds.endpoint)
    arguments = dict(option)
    force = arguments.pop("force_refresh", False)
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, **arguments)
    assert flavor.run(credential.get_token(VAULT, force_refresh=force)).token in imds.tokens


def test_machine_that_just_started(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused address is tried again for up to 10 s, once; a program that starts before IMDS gets its token."""
    clock = StillTime(now=30.0)
    monkeypatch.setattr(_endpoint, "BOOT_TIME", BOOT_TIME)
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    with ImdsEmulator(clock=clock.wall) as imds, imds.down():
        with pytest.raises(ImdsUnavailableError) as caught:
            flavor.ask(imds.endpoint)
        waited = clock.now() - 30.0
        assert 9.0 < waited <= 10.0
        assert caught.value.attempts >= 5
        clock.skip(ABSENCE_MEMORY)
        before = clock.now()
        with pytest.raises(ImdsUnavailableError):
            flavor.ask(imds.endpoint)
        assert clock.now() == before, "given time twice"


def test_every_request_in_the_boot_window(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request before its end is given time until then, and absence is remembered only after it."""
    clock = StillTime(now=30.0)
    monkeypatch.setattr(_endpoint, "BOOT_TIME", BOOT_TIME)
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    with ImdsEmulator(clock=clock.wall) as imds, imds.down():
        for timeout in (3.0, 4.0):  # their time is up before the window is
            begun = clock.now()
            with pytest.raises(ImdsUnavailableError) as caught:
                flavor.ask(imds.endpoint, timeout=timeout)
            assert begun + timeout / 2 < clock.now() < begun + timeout
            assert "remembered" not in str(caught.value)
        before = clock.now()
        assert before < 30.0 + BOOT_WINDOW - 1.0
        with pytest.raises(ImdsUnavailableError) as caught:
            flavor.ask(imds.endpoint, scope="https://other.example")
        assert caught.value.attempts >= 2
        assert clock.now() == pytest.approx(30.0 + BOOT_WINDOW)
        with pytest.raises(ImdsUnavailableError, match="remembered"):
            flavor.ask(imds.endpoint)
        clock.skip(ABSENCE_MEMORY)
        before = clock.now()
        with pytest.raises(ImdsUnavailableError) as caught:
            flavor.ask(imds.endpoint)
        assert caught.value.attempts == 1
        assert clock.now() == before, "given time twice"


def _booting(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, *, until: float) -> StillTime:
    """Return the clock of a machine that started 30 s ago, and whose IMDS answers after a sleep beyond this time."""
    down = imds.down()

    class Booting(StillTime):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.now() > until:
                down.__exit__(None, None, None)

    clock = Booting(now=30.0)
    monkeypatch.setattr(_endpoint, "BOOT_TIME", BOOT_TIME)
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    down.__enter__()
    return clock


def test_a_request_that_begins_late_in_the_boot_window(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its token when IMDS answers before the end of the window, though another one began it."""
    with ImdsEmulator() as imds:
        clock = _booting(imds, monkeypatch, until=38.0)
        with pytest.raises(ImdsUnavailableError):
            flavor.ask(imds.endpoint, timeout=3.0)
        clock.skip(2.0)
        assert flavor.ask(imds.endpoint, scope="https://other.example").token in imds.tokens


@pytest.mark.parametrize(("up", "forgets"), [(30.0, True), (BOOT_TIME, False)])
def test_a_child_of_a_machine_that_boots(monkeypatch: pytest.MonkeyPatch, up: float, forgets: bool) -> None:
    """It gives IMDS time of its own, and inherits no absence from then; later it inherits what its parent knows."""
    monkeypatch.setattr(_endpoint, "BOOT_TIME", BOOT_TIME)
    clock, urls = StillTime(now=up), dict[str, UrlState]()
    cache = TokenCache(clock, urls)
    endpoint = cache.entry(TokenKey("http://127.0.0.1", Identity(), VAULT)).endpoint
    urls[endpoint.url].boot_window_from = up - BOOT_WINDOW
    endpoint.note_unavailable(ImdsUnavailableError("no"), up, is_absent=True, has_listener=False)
    assert endpoint.boot_time_left(up) == 0.0
    cache.reset_after_fork()
    assert endpoint.boot_time_left(up) == (BOOT_WINDOW if forgets else 0.0)
    assert (endpoint.known_absence(up) is None) is forgets


def test_imds_after_boot(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call gets its token when IMDS answers seconds after the program began."""
    with ImdsEmulator() as imds:
        _booting(imds, monkeypatch, until=34.0)
        assert flavor.ask(imds.endpoint).token in imds.tokens


def test_no_response(flavor: Flavor, virtual_time: VirtualTime) -> None:
    """A place that accepts and never speaks costs one read timeout, not one per call."""
    with listening(never_read) as server:
        credential = flavor.ImdsCredential(endpoint=server.url, read_timeout=0.2)
        for _ in range(3):
            with pytest.raises(ImdsUnavailableError, match="connected, then no response"):
                flavor.run(credential.get_token(VAULT))
        assert server.accepted == 1


def test_other_server(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Something else answered: the next call may find IMDS in its place."""
    imds.script(faults.html())
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(ImdsUnavailableError):
        flavor.run(credential.get_token(VAULT))
    assert flavor.run(credential.get_token(VAULT)).token in imds.tokens


def test_short_timeout(flavor: Flavor, virtual_time: VirtualTime) -> None:
    """A caller with little time learns nothing about the endpoint that others could use."""

    def begin_after_the_deadline(connection: socket.socket, _: Listener) -> None:
        virtual_time.skip(5)
        connection.sendall(b"H")
        connection.recv(65536)

    with listening(begin_after_the_deadline) as server:
        for asked in (1, 2):
            with pytest.raises(ImdsUnavailableError):
                flavor.ask(server.url, timeout=5)
            assert server.accepted == asked


def test_seen_endpoint(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A process that has seen IMDS takes the same symptoms for a passing fault, and never remembers absence."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token(VAULT))
    with imds.down():
        for _ in range(2):
            with pytest.raises(ImdsServiceError) as caught:
                flavor.run(credential.get_token("https://management.azure.com"))
            assert caught.value.attempts == 6
    assert flavor.run(credential.get_token("https://management.azure.com")).token in imds.tokens


def test_restart(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """The connection breaks, WireServer answers, the connection breaks again, then IMDS answers and gives the token."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token(VAULT))
    imds.script(faults.reset(), faults.wireserver(), faults.reset())
    assert flavor.run(credential.get_token("https://management.azure.com")).token in imds.tokens


def test_looks_keep_no_context(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks may go on for long: what the caller's context holds is not theirs."""
    held: ContextVar[str] = ContextVar("held", default="nothing")
    found: list[str] = []
    monkeypatch.setattr(token_cache, "PROBE_INTERVAL", 0.01)
    monkeypatch.setattr(connect, "has_listener", lambda _url: bool(found.append(held.get())))
    token = held.set("a request of the caller")
    try:
        with imds.down():
            for _ in range(2):
                with pytest.raises(ImdsUnavailableError):
                    flavor.ask(imds.endpoint)
            eventually(lambda: len(found) >= 2)
    finally:
        held.reset(token)
    assert set(found) == {"nothing"}


def test_a_remembered_absence_names_the_request_at_hand(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Absence is remembered of the address; what was asked for, and as whom, is this call's."""
    with imds.down():
        for selector, resource in (({}, "https://a.example"), ({"client_id": "6a7b"}, "https://b.example")):
            credential = flavor.ImdsCredential(endpoint=imds.endpoint, **selector)
            with pytest.raises(ImdsUnavailableError) as caught:
                flavor.run(credential.get_token(resource))
            identity = "client_id 6a7b" if selector else "the machine's default identity"
            assert (caught.value.resource, caught.value.identity) == (resource, identity)
            expected = f"No token for {resource}, asked of {imds.endpoint} as {identity}: connecting failed"
            assert str(caught.value).startswith(expected)
    assert "remembered" in str(caught.value)


def test_absence_in_a_private_cache(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """What a credential with its own transport options remembers of an endpoint is not used by other credentials."""
    with imds.down(), pytest.raises(ImdsUnavailableError):
        flavor.ask(imds.endpoint, retry_total=0)
    assert flavor.ask(imds.endpoint).token in imds.tokens


@pytest.mark.parametrize(
    ("platform", "vendor", "expected"),
    [
        ("linux", "Amazon EC2", True),
        ("linux", "Google", True),
        ("linux", "QEMU", False),
        ("linux", "Microsoft Corporation", False),
        ("linux", "", False),
        ("darwin", "", True),
        ("win32", "", False),
    ],
)
def test_known_vendors(platform: str, vendor: str, expected: bool) -> None:
    """An unknown vendor says nothing: nested and rebranded machines on Azure exist."""
    assert plainly_not_azure(platform, lambda path: vendor) is expected


def test_imds_on_other_hardware(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """IMDS on hardware that cannot be Azure (an emulator on a Mac) is IMDS."""
    monkeypatch.setattr(connect, "is_plainly_not_azure", lambda: True)
    imds.script(faults.slow(1.2), seconds=math.inf)  # longer than the shortened budget for connecting
    assert flavor.ask(imds.endpoint).token in imds.tokens


def test_forget_tokens(flavor: Flavor, imds: ImdsEmulator) -> None:
    """After `forget_tokens` no token is held, no absence is remembered, and no endpoint was ever seen."""
    with imds.down(), pytest.raises(ImdsUnavailableError):
        flavor.ask(imds.endpoint)
    forget_tokens()
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    assert flavor.run(credential.get_token(VAULT)).token in imds.tokens
    forget_tokens()
    assert flavor.run(credential.get_token(VAULT)).token in imds.tokens
    imds.assert_requests(2)
    forget_tokens()
    with imds.down(), pytest.raises(ImdsUnavailableError):
        flavor.ask(imds.endpoint, timeout=2)


def test_absence_and_a_cached_token(flavor: Flavor, virtual_time: VirtualTime) -> None:
    """Where absence is known, a token that came before it is still handed out."""
    with ImdsEmulator(clock=virtual_time.wall) as imds:
        credential = flavor.ImdsCredential(endpoint=imds.endpoint)
        token = flavor.run(credential.get_token(VAULT)).token
        endpoint = _endpoint_of(credential)
        endpoint._seen_by.seen = False  # as where the token came from another process
        virtual_time.skip(14 * 3600)
        now = virtual_time.now()
        endpoint.absence = Absence(ImdsUnavailableError("nothing answers"), now, now + ABSENCE_MEMORY, can_probe=False)
        assert flavor.run(credential.get_token(VAULT)).token == token


@pytest.mark.parametrize("option", [{}, {"raw_response_hook": lambda _: None}], ids=["shared", "own way"])
def test_a_request_from_before_forget_tokens(flavor: Flavor, imds: ImdsEmulator, option: dict[str, Any]) -> None:
    """Its response, which comes after, makes nothing seen; its caller gets a token of a request of the new time."""
    answers = [threading.Event(), threading.Event()]
    imds.script(*map(faults.hold, answers))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, **option)
    endpoint = credential._options.entry((VAULT,)).endpoint
    with ThreadPoolExecutor(1) as pool:
        try:
            call = pool.submit(lambda: flavor.run(credential.get_token(VAULT)).token)
            imds.wait_for_requests(1)
            forget_tokens()
            answers[0].set()
            imds.wait_for_requests(2)  # the first response has been judged, and its token dropped
            assert not endpoint.seen
            answers[1].set()
            assert call.result(30) in imds.tokens
        finally:
            for answer in answers:
                answer.set()
    assert endpoint.seen
    imds.assert_requests(2)


def test_a_boot_retry_from_before_forget_tokens(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has just started is given time once more after `forget_tokens`, whatever still runs."""
    cleared = list[float]()

    class Booting(StillTime):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if not cleared:
                cleared.append(self.now())
                forget_tokens()

    clock = Booting(now=30.0)
    monkeypatch.setattr(_endpoint, "BOOT_TIME", BOOT_TIME)
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    with ImdsEmulator(clock=clock.wall) as imds, imds.down():
        credential = flavor.ImdsCredential(endpoint=imds.endpoint)
        endpoint = credential._options.entry((VAULT,)).endpoint
        original, begun = retry_policy.next_delay, list[float | None]()

        def watched(*arguments: Any) -> float | None:
            if cleared:
                begun.append(endpoint._shared.boot_window_from)
            return original(*arguments)

        monkeypatch.setattr(retry_policy, "next_delay", watched)
        with pytest.raises(ImdsUnavailableError):
            flavor.run(credential.get_token(VAULT))
    assert begun
    assert begun == [None] * len(begun)
