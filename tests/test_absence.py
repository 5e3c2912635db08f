"""How long it takes to say that there is no IMDS, and for how long that is remembered.

Packets can only be swallowed where there is a network that swallows them: a namespace of its own, with a veth pair on
whose other end nobody answers. Where the system permits none, those tests are skipped.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import pytest
from colours import VAULT, Colour, VirtualTime
from tcp import listening, never_read

from azure_imds_credential import ImdsServiceError, ImdsUnavailableError, _exchange
from azure_imds_credential._endpoint import ABSENT_SECONDS, Endpoint, Gate
from azure_imds_credential._hints import plainly_not_azure
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
        from azure_imds_credential import _exchange

        def ask(kind, url, **arguments):
            package = azure_imds_credential.aio if kind == "aio" else azure_imds_credential
            token = package.ImdsCredential(endpoint=url, **arguments).get_token("https://vault.azure.net")
            return asyncio.run(token) if kind == "aio" else token

        def said(*args, **arguments):
            begun = time.perf_counter()
            try:
                ask(*args, **arguments)
            except azure_imds_credential.ImdsError as error:
                return type(error).__name__, str(error), time.perf_counter() - begun

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
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.fixture(scope="module")
def swallowed() -> dict[str, Any]:
    """What both colours say where SYNs are swallowed; measured again, twice at most, if this machine was too busy."""
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
            told[kind + " again"] = [said(kind, f"http://10.255.0.{host}") for _ in range(50)]
        told["sync unreachable"] = said("sync", "http://10.254.0.1")
        told["aio unreachable"] = said("aio", "http://10.254.0.2")
        _exchange.this_machine_is_plainly_not_azure = lambda: True
        told |= quickest(1.3, **{
            "sync elsewhere": lambda: said("sync", "http://10.255.0.4"),
            "aio elsewhere": lambda: said("aio", "http://10.255.0.5"),
        })
        print(json.dumps(told))
        """
    )
    assert isinstance(measured, dict)
    return measured


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_absence_behind_a_swallowed_syn_is_said_within_3_3_seconds(swallowed: dict[str, Any], kind: str) -> None:
    """One connect budget of 3 s, which survives one lost SYN, and no retry."""
    name, text, seconds = swallowed[kind]
    assert name == "ImdsUnavailableError"
    assert "connecting timed out" in text
    assert "Is this an Azure VM" in text
    assert 2.9 <= seconds <= 3.3


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_a_machine_that_is_plainly_not_azure_says_so_within_1_3_seconds(swallowed: dict[str, Any], kind: str) -> None:
    """Where the hardware is known to be another vendor's, the budget is 1 s."""
    name, _, seconds = swallowed[f"{kind} elsewhere"]
    assert name == "ImdsUnavailableError"
    assert 0.9 <= seconds <= 1.3


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_an_unreachable_network_is_said_at_once(swallowed: dict[str, Any], kind: str) -> None:
    """No route: the operating system says so, and so does the error."""
    name, text, seconds = swallowed[f"{kind} unreachable"]
    assert name == "ImdsUnavailableError"
    assert "ENETUNREACH: Network is unreachable" in text
    assert seconds < 2


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_known_absence_costs_under_a_millisecond(swallowed: dict[str, Any], kind: str) -> None:
    """Asked again, the same is said from memory, a new event loop for each call of the aio colour included."""
    again = swallowed[f"{kind} again"]
    assert {(name, text) for name, text, _ in again} == {tuple(swallowed[kind][:2])}
    assert sorted(seconds for *_, seconds in again)[len(again) // 2] < 0.001


def timed(call: Callable[[], Any]) -> float:
    """The median of what an immediate failure takes."""
    taken = []
    for _ in range(25):
        begun = time.perf_counter()
        with pytest.raises(ImdsUnavailableError):
            call()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def test_absence_is_remembered_for_30_seconds_per_endpoint(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Nobody asks an absent endpoint again until 30 s have passed; another endpoint is another matter."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)

    async def repeatedly() -> float:
        taken = []
        for _ in range(25):
            begun = time.perf_counter()
            with pytest.raises(ImdsUnavailableError):
                await credential.get_token(VAULT)
            taken.append(time.perf_counter() - begun)
        return sorted(taken)[len(taken) // 2]

    with imds.down(), pytest.raises(ImdsUnavailableError) as first:
        colour.run(credential.get_token(VAULT))
    # It is there again, and nobody looks.
    taken = asyncio.run(repeatedly()) if colour.name == "aio" else timed(lambda: credential.get_token(VAULT))
    assert taken < 0.001
    virtual_time.skip(29)
    with pytest.raises(ImdsUnavailableError) as remembered:
        colour.run(credential.get_token("https://management.azure.com"))
    assert str(remembered.value) == str(first.value)
    assert remembered.value is not first.value
    imds.assert_requests(0)
    with ImdsEmulator() as other:
        assert colour.ask(other.endpoint).token in other.tokens
    virtual_time.skip(2)
    assert colour.run(credential.get_token(VAULT)).token in imds.tokens


def test_silence_after_the_connection_is_remembered_too(colour: Colour, virtual_time: VirtualTime) -> None:
    """A place that accepts and never speaks costs one read timeout, not one per call."""
    with listening(never_read) as server:
        credential = colour.ImdsCredential(endpoint=server.url, read_timeout=0.2)
        for _ in range(3):
            with pytest.raises(ImdsUnavailableError, match="connected, then silence"):
                colour.run(credential.get_token(VAULT))
        assert server.accepted == 1


def test_a_stranger_is_not_remembered(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Something else answered: the next call may find IMDS in its place."""
    imds.script(faults.html())
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(ImdsUnavailableError):
        colour.run(credential.get_token(VAULT))
    assert colour.run(credential.get_token(VAULT)).token in imds.tokens


def test_a_wait_that_the_deadline_cut_short_is_not_remembered(colour: Colour, virtual_time: VirtualTime) -> None:
    """A caller with little time learns nothing about the endpoint that others could use."""
    with listening(never_read) as server:
        for asked in (1, 2):
            with pytest.raises(ImdsUnavailableError):
                colour.ask(server.url, timeout=0.2)
            assert server.accepted == asked


def test_an_endpoint_once_seen_is_asked_again_and_again(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A process that has seen IMDS takes the same symptoms for a passing fault, and never remembers absence."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.get_token(VAULT))
    with imds.down():
        for _ in range(2):
            with pytest.raises(ImdsServiceError) as caught:
                colour.run(credential.get_token("https://management.azure.com"))
            assert caught.value.attempts == 6
    assert colour.run(credential.get_token("https://management.azure.com")).token in imds.tokens


def test_one_answer_ends_what_was_remembered() -> None:
    """A request under way while absence was noted may still be answered: from then on IMDS is there."""
    endpoint = Endpoint("http://127.0.0.1:9", Gate())
    endpoint.note_absence(ImdsUnavailableError("nobody"), now=100.0)
    assert endpoint.known_absence(now=101.0) is not None
    endpoint.seen = True
    assert endpoint.known_absence(now=101.0) is None
    endpoint.note_absence(ImdsUnavailableError("nobody"), now=200.0)
    endpoint.seen = False
    assert endpoint.known_absence(now=201.0) is None


def test_a_restart_is_ridden_out(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Refused, then WireServer in its place, then IMDS again: a process that knows it gets its token."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.get_token(VAULT))
    imds.script(faults.reset(), faults.wireserver(), faults.reset())
    assert colour.run(credential.get_token("https://management.azure.com")).token in imds.tokens


def test_private_caches_learn_for_themselves(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """What a credential with its own transport options learns of an endpoint binds nobody else."""
    with imds.down(), pytest.raises(ImdsUnavailableError):
        colour.ask(imds.endpoint, retry_total=0)
    assert colour.ask(imds.endpoint).token in imds.tokens


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
def test_only_known_other_vendors_shorten_the_wait(platform: str, vendor: str, expected: bool) -> None:
    """An unknown vendor says nothing: nested and rebranded machines on Azure exist."""
    assert plainly_not_azure(platform, lambda path: vendor) is expected


def test_signs_of_the_machine_only_shorten_the_wait(
    colour: Colour, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IMDS on hardware that cannot be Azure (an emulator on a Mac) is IMDS."""
    monkeypatch.setattr(_exchange, "this_machine_is_plainly_not_azure", lambda: True)
    imds.script(faults.slow(1.2), seconds=math.inf)  # longer than the shortened budget for connecting
    assert colour.ask(imds.endpoint).token in imds.tokens


def test_what_is_forgotten_is_learned_anew(colour: Colour, imds: ImdsEmulator) -> None:
    """After `forget_tokens` no token is held, no absence is remembered, and no endpoint was ever seen."""
    with imds.down(), pytest.raises(ImdsUnavailableError):
        colour.ask(imds.endpoint)
    forget_tokens()
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    assert colour.run(credential.get_token(VAULT)).token in imds.tokens
    forget_tokens()
    assert colour.run(credential.get_token(VAULT)).token in imds.tokens
    imds.assert_requests(2)
    forget_tokens()
    with imds.down(), pytest.raises(ImdsUnavailableError):
        colour.ask(imds.endpoint, timeout=2)


def test_absence_costs_nobody_a_held_token(colour: Colour, virtual_time: VirtualTime) -> None:
    """Where absence is known, a token that came before it is still handed out."""
    with ImdsEmulator(clock=virtual_time.wall_clock) as imds:
        credential = colour.ImdsCredential(endpoint=imds.endpoint)
        token = colour.run(credential.get_token(VAULT)).token
        endpoint = credential._slots[VAULT].endpoint
        endpoint.seen = False  # as where the token came from another process
        endpoint.note_absence(ImdsUnavailableError("nobody"), virtual_time.clock())
        virtual_time.skip(14 * 3600)
        endpoint.absent_until = virtual_time.clock() + ABSENT_SECONDS
        assert colour.run(credential.get_token(VAULT)).token == token
