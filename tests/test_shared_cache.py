"""Tokens shared between processes: one request for a machine, and never a caller who waits or fails because of it.

"A process" is a credential with a cache of its own where that is enough, and a real one where it is not.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from colours import VAULT, Colour, VirtualTime

from azure_imds_credential import IdentityMismatchError, ImdsCredential, ImdsUnavailableError, _fork, _token_cache
from azure_imds_credential._shared_cache import forget_shared_tokens
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults, forget_tokens

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")

DAY = 86400.0


@pytest.fixture(autouse=True)
def _quiet_start(memory: Path) -> None:
    forget_tokens()


def process(imds: ImdsEmulator, **arguments: Any) -> ImdsCredential:
    """Make a credential that shares nothing with others but what processes share."""
    return ImdsCredential(endpoint=imds.endpoint, shared_cache=True, user_agent="its own cache", **arguments)


def token_of(credential: ImdsCredential, **arguments: Any) -> str:
    return credential.get_token(VAULT, **arguments).token


def eventually(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what a background refresh does."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def child(code: str, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
    """Start a process that runs some Python and talks over its standard output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen
    )


def said(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def tell(running: subprocess.Popen[str], line: str) -> None:
    assert running.stdin is not None
    running.stdin.write(f"{line}\n")
    running.stdin.flush()


def end(running: subprocess.Popen[str]) -> None:
    running.kill()
    running.communicate()


@pytest.fixture
def holder(memory: Path, imds: ImdsEmulator) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of its exchange, with the lock, and with a forked child that lives on."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    running = child(
        "import os, sys, threading, time\n"
        "from azure_imds_credential import ImdsCredential\n"
        "get_token = ImdsCredential(endpoint=sys.argv[1], shared_cache=True).get_token\n"
        "threading.Thread(target=get_token, args=('https://vault.azure.net',), daemon=True).start()\n"
        "sys.stdin.readline()\n"
        "grandchild = os.fork()\n"
        "print(grandchild or '', end='\\n' if grandchild else '', flush=True)\n"
        "time.sleep(60)\n",
        imds.endpoint,
    )
    imds.wait_for_requests(1)
    tell(running, "fork")
    grandchild = int(said(running))
    yield running
    answer.set()
    os.kill(grandchild, signal.SIGKILL)
    end(running)


def test_a_machine_asks_once(colour: Colour, imds: ImdsEmulator) -> None:
    """A process that holds nothing takes what another stored: the same token with the same end, and no request."""
    first = colour.ask(imds.endpoint, shared_cache=True)
    forget_tokens()
    second = colour.ask(imds.endpoint, shared_cache=True)
    assert second.token == first.token
    assert abs(second.expires_on - first.expires_on) <= 1
    imds.assert_requests(1)


def test_nothing_is_shared_unless_asked_for(colour: Colour, imds: ImdsEmulator, memory: Path) -> None:
    """`shared_cache=False` neither reads nor writes."""
    colour.ask(imds.endpoint)
    assert not list(memory.rglob("*.token"))
    forget_tokens()
    colour.ask(imds.endpoint, shared_cache=True)
    forget_tokens()
    colour.ask(imds.endpoint)
    imds.assert_requests(3)


def test_a_reader_imports_no_lock_no_msal_and_no_http_stack(imds: ImdsEmulator) -> None:
    """Where another process has a token, a new one starts as if it had none to get."""
    token_of(process(imds))
    reader = child(
        "import sys\n"
        "from azure_imds_credential import ImdsCredential\n"
        "ImdsCredential(endpoint=sys.argv[1], shared_cache=True).get_token('https://vault.azure.net')\n"
        "print(sorted({'aiohttp', 'filelock', 'msal', 'requests', 'urllib3'} & sys.modules.keys()))\n",
        imds.endpoint,
    )
    assert reader.communicate()[0].strip() == "[]"
    imds.assert_requests(1)


def test_cold_processes_share_the_flight(imds: ImdsEmulator) -> None:
    """Eight real processes that start together: one request, no failure."""
    code = (
        "import sys\n"
        "from azure_imds_credential import ImdsCredential\n"
        "credential = ImdsCredential(endpoint=sys.argv[1], shared_cache=True)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(credential.get_token('https://vault.azure.net').token[-20:], flush=True)\n"
    )
    herd = [child(code, imds.endpoint) for _ in range(8)]
    for each in herd:
        assert said(each) == "ready"
    for each in herd:
        tell(each, "go")
    assert len({said(each) for each in herd}) == 1
    for each in herd:
        end(each)
    imds.assert_requests(1)


def test_each_key_has_its_own_token(imds: ImdsEmulator) -> None:
    """Another resource, identity or endpoint is never served with this one's token."""
    user = UserAssigned("reader")
    imds.assign(user)
    plain = token_of(process(imds))
    others = {
        process(imds).get_token("https://management.azure.com/.default").token,
        token_of(process(imds, client_id=user.client_id)),
        token_of(process(imds, object_id=user.object_id)),
    }
    imds.assert_requests(4)
    with ImdsEmulator() as elsewhere:
        others.add(token_of(process(elsewhere)))
        elsewhere.assert_requests(1)
    assert plain not in others


def test_one_process_refreshes_and_the_others_pick_it_up(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A held token that ages sends its process to look; the first of them asks IMDS, the rest find what it brought."""
    processes = [process(imds) for _ in range(3)]
    old = {token_of(each) for each in processes}
    imds.assert_requests(1)
    virtual_time.skip(0.6 * DAY)
    imds.renew_tokens()
    assert {token_of(each) for each in processes} == old, "the held token is handed out meanwhile"
    for each in processes:
        eventually(lambda each=each: token_of(each) not in old)
    imds.assert_requests(2)


def test_the_same_token_again_counts_as_an_answer(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """IMDS may hand back the token it gave. One process hears that, not each of them."""
    processes = [process(imds) for _ in range(3)]
    before = [each.get_token_info(VAULT).refresh_on for each in processes]
    virtual_time.skip(0.6 * DAY)
    for each, stale in zip(processes, before, strict=True):
        eventually(lambda each=each, stale=stale: each.get_token_info(VAULT).refresh_on != stale)
    imds.assert_requests(2)


def test_nobody_with_a_token_asks_while_another_does(
    virtual_time: VirtualTime,
    imds: ImdsEmulator,
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own refresh waits for the other's, then backs off like any refresh that failed."""
    monkeypatch.setattr(_token_cache, "REFRESH_SECONDS", 1.0)
    credential = process(imds)
    held = token_of(credential)
    virtual_time.skip(0.6 * DAY)
    with lock_of(memory):
        assert token_of(credential) == held
        eventually(lambda: "another process of this user" in caplog.text)
        assert token_of(credential) == held
    imds.assert_requests(1)


def lock_of(memory: Path) -> Any:
    """Take the lock of the only token there is."""
    from filelock import FileLock

    (found,) = memory.rglob("*.lock")
    return FileLock(found).acquire(timeout=5)


def test_whoever_has_no_token_does_not_wait_for_ever(imds: ImdsEmulator, memory: Path) -> None:
    """A holder that is stopped keeps its lock: after half of its time a caller asks by itself."""
    process(imds).get_token(VAULT)
    forget_in(memory)
    with lock_of(memory):
        begun = time.monotonic()
        token_of(process(imds, timeout=3.0))
        assert 1.4 <= time.monotonic() - begun < 3
    imds.assert_requests(2)
    token_of(process(imds))  # and what it heard is there for the others
    imds.assert_requests(2)


def forget_in(memory: Path) -> None:
    for token in memory.rglob("*.token"):
        token.unlink()


def test_a_holder_that_dies_lets_go(imds: ImdsEmulator, holder: subprocess.Popen[str]) -> None:
    """Killed in the middle of its exchange, with a forked child that lives on: the next one asks within a moment."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    begun = time.monotonic()
    assert token_of(process(imds, timeout=30.0))
    assert time.monotonic() - begun < 10, "half of its time would be 15 s"
    imds.assert_requests(2)


def test_a_holder_that_fails_does_not_make_others_fail_in_a_row(imds: ImdsEmulator) -> None:
    """Six processes of which each would fail after a second: all have failed after three, not after six."""
    imds.script(faults.hang, seconds=60)
    errors: list[BaseException] = []

    def fail() -> None:
        with pytest.raises(ImdsUnavailableError) as caught:
            token_of(process(imds, read_timeout=1.0))
        errors.append(caught.value)

    begun = time.monotonic()
    threads = [threading.Thread(target=fail) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(errors) == 6
    assert time.monotonic() - begun < 5.5


def test_force_asks_and_serves_everybody(imds: ImdsEmulator) -> None:
    """`force_refresh` is not satisfied with what is stored, and what it brings replaces it."""
    old = token_of(process(imds))
    imds.renew_tokens()
    new = token_of(process(imds), force_refresh=True)
    assert new != old
    assert token_of(process(imds)) == new
    assert [request.param("bypass_cache") for request in imds.assert_requests(2)] == [None, "true"]


def test_in_the_last_minutes_the_shared_token_is_a_spare(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A new process asks for a better one first; if it cannot be had, the one about to expire serves."""
    old = token_of(process(imds))
    virtual_time.skip(DAY - 200)
    imds.script(faults.status(400, {"error": "invalid_request", "error_description": "no"}))
    assert token_of(process(imds)) == old
    imds.assert_requests(2)
    for _ in range(3):  # IMDS answers again, with the token that it gave before: once is enough
        assert token_of(process(imds)) == old
    imds.assert_requests(3)
    virtual_time.skip(31)
    imds.renew_tokens()
    assert token_of(process(imds)) != old
    imds.assert_requests(4)


def test_an_expired_token_is_none(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Nobody gets a token past its end from the shared cache, and there is nothing to warn of."""
    old = token_of(process(imds))
    virtual_time.skip(DAY + 1)
    assert token_of(process(imds)) != old


@pytest.mark.parametrize("jump", [-400 * DAY, -3600.0, 3600.0, 400 * DAY])
def test_a_wall_clock_that_jumps_changes_nothing(
    virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """What is shared is dated by a clock that nobody sets: it neither dies nor revives when the wall clock is set."""
    process(imds).get_token(VAULT)
    truth, time_of_day = virtual_time.clock(), virtual_time.wall_clock
    jumped = process(imds)
    # One process whose machine was set between the two.
    monkeypatch.setattr(jumped._configuration.cache.world, "wall_clock", lambda: time_of_day() + jump)
    token = jumped.get_token(VAULT)
    assert token.expires_on == pytest.approx(time_of_day() + jump + DAY, abs=5)
    virtual_time.skip(truth + DAY - virtual_time.clock() + 1)
    jumped.get_token(VAULT)
    imds.assert_requests(2)


def test_content_from_the_future_is_not_believed(
    virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A stored time that has not come yet means another machine, another boot or a lie: warned of, and asked anew."""
    virtual_time.skip(1000)
    token_of(process(imds))
    virtual_time.skip(-1000)
    token_of(process(imds))
    imds.assert_requests(2)
    assert "future" in caplog.text


def test_a_shared_token_is_no_sight_of_the_endpoint(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A process that only ever read says of a dead endpoint that IMDS is not here, which lets a chain go on."""
    token_of(process(imds))
    reader = process(imds)
    token_of(reader)
    virtual_time.skip(DAY + 1)
    with imds.down(), pytest.raises(ImdsUnavailableError):
        token_of(reader)


def test_an_answer_for_somebody_else_is_not_shared(imds: ImdsEmulator, memory: Path) -> None:
    """Only what was judged is stored."""
    user = UserAssigned("reader")
    imds.assign(user)
    imds.script(faults.members(client_id="00000000-0000-0000-0000-00000000000b"))
    with pytest.raises(IdentityMismatchError):
        token_of(process(imds, client_id=user.client_id))
    assert not list(memory.rglob("*.token"))


def test_forget_empties_it(imds: ImdsEmulator) -> None:
    """Tokens are counted; the next process asks."""
    token_of(process(imds))
    process(imds).get_token("https://management.azure.com/.default")
    assert forget_shared_tokens() == 2
    assert forget_shared_tokens() == 0
    token_of(process(imds))
    imds.assert_requests(3)


def test_what_is_under_way_when_all_is_forgotten_is_not_stored(imds: ImdsEmulator) -> None:
    """Otherwise `forget` would leave the old identity's token behind."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    caller = threading.Thread(target=token_of, args=(process(imds),))
    caller.start()
    imds.wait_for_requests(1)
    forget_shared_tokens()
    answer.set()
    caller.join()
    assert forget_shared_tokens() == 0


def test_a_missing_lock_library_is_told_where_the_mistake_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, with the extra that brings it: a packaging mistake should not wait for production."""
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r"azure-imds-credential\[shared\]"):
        ImdsCredential(shared_cache=True)
    ImdsCredential()


def test_nobody_waits_for_who_loads_msal(colour: Colour, imds: ImdsEmulator) -> None:
    """To make a credential that shares, and to read a shared token, needs nothing that another thread is importing."""
    stored = colour.ask(imds.endpoint, shared_cache=True).token
    forget_tokens()
    with ThreadPoolExecutor(1) as pool, _fork.imports:
        assert pool.submit(colour.ask, imds.endpoint, shared_cache=True).result(10).token == stored


@pytest.mark.parametrize(
    "way", ["transport", "per_call_policies", "per_retry_policies", "raw_request_hook", "raw_response_hook"]
)
def test_what_is_heard_in_a_way_of_its_own_is_not_shared(way: str) -> None:
    """A transport or hook may make up answers (tests do); other processes must not get them."""

    class Way:
        def send(self, request: Any) -> Any: ...
        def __call__(self, request: Any) -> Any: ...

    with pytest.raises(ValueError, match=way):
        ImdsCredential(shared_cache=True, **{way: Way()})


def test_trouble_with_the_lock_costs_nobody_the_token(
    imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the lock library raises: one warning, and the process asks by itself."""
    import filelock

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no locks today")

    monkeypatch.setattr(filelock, "FileLock", refuse)
    token_of(process(imds))
    assert [r.levelno for r in caplog.records if "no locks today" in r.message] == [logging.WARNING]


def test_elsewhere_processes_work_alone(
    imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On macOS and Windows: one warning in the life of a process, and a request each."""
    monkeypatch.setattr(sys, "platform", "darwin")
    for _ in range(3):
        token_of(process(imds))
    monkeypatch.undo()
    imds.assert_requests(3)
    assert sum("tokens are not shared" in record.message for record in caplog.records) == 1
