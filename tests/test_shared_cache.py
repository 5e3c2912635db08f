"""Tokens shared between processes: one request for a machine, and no caller that waits long or fails because of it.

"A process" is a credential with a cache of its own where that is enough, and a real process where it is not.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flavors import VAULT, Flavor, VirtualTime, eventually

from azure_imds_credential import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsCredential,
    ImdsServiceError,
    ImdsUnavailableError,
    _fork,
    _options,
)
from azure_imds_credential._cache import decision
from azure_imds_credential._request import TokenRequest, TokenResult
from azure_imds_credential._shared import shared_cache
from azure_imds_credential._shared.shared_cache import forget_shared_tokens
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults, forget_tokens

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")

DAY = 86400.0


@pytest.fixture(autouse=True)
def _quiet_start(memory: Path) -> None:
    forget_tokens()


def process(imds: ImdsEmulator, **arguments: Any) -> ImdsCredential:
    """Return a credential that shares with others only what processes share."""
    return ImdsCredential(endpoint=imds.endpoint, shared_cache=True, user_agent="its own cache", **arguments)


def token_of(credential: ImdsCredential, **arguments: Any) -> str:
    return credential.get_token(VAULT, **arguments).token


def child(code: str, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
    """Start a process that runs a Python program, with pipes to its standard input and output."""
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
    """A process in the middle of its request, with the lock, and with a forked child that lives on."""
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
    imds.wait_for_requests(1, timeout=60)
    tell(running, "fork")
    grandchild = int(said(running))
    yield running
    answer.set()
    os.kill(grandchild, signal.SIGKILL)
    end(running)


def test_one_request(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A process without a token takes the one that another stored, with the same expiry, and sends no request."""
    first = flavor.ask(imds.endpoint, shared_cache=True)
    forget_tokens()
    second = flavor.ask(imds.endpoint, shared_cache=True)
    assert second.token == first.token
    assert abs(second.expires_on - first.expires_on) <= 1
    imds.assert_requests(1)


def test_off_by_default(flavor: Flavor, imds: ImdsEmulator, memory: Path) -> None:
    """`shared_cache=False` neither reads nor writes."""
    flavor.ask(imds.endpoint)
    assert not list(memory.rglob("*.token"))
    forget_tokens()
    flavor.ask(imds.endpoint, shared_cache=True)
    forget_tokens()
    flavor.ask(imds.endpoint)
    imds.assert_requests(3)


def test_imports_of_a_reader(imds: ImdsEmulator) -> None:
    """A process that takes a stored token imports no lock library, no msal and no HTTP stack."""
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


def test_processes_that_start_together(imds: ImdsEmulator) -> None:
    """Eight processes that start together send one request."""
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


def test_keys(imds: ImdsEmulator) -> None:
    """A stored token serves no other resource, identity or endpoint."""
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


def test_one_refresh(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """When a cached token is due for a refresh, one process asks IMDS and the others find its token."""
    processes = [process(imds) for _ in range(3)]
    old = {token_of(each) for each in processes}
    imds.assert_requests(1)
    virtual_time.skip(0.6 * DAY)
    imds.renew_tokens()
    answer = threading.Event()
    imds.script(faults.hold(answer))
    assert {token_of(each) for each in processes} == old, "the cached token is handed out meanwhile"
    answer.set()
    for each in processes:
        eventually(lambda each=each: token_of(each) not in old)  # type: ignore[misc] # binds the loop's value
    imds.assert_requests(2)


def test_same_token_again(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Where IMDS hands back the token it gave before, one process asks, not each of them."""
    processes = [process(imds) for _ in range(3)]
    before = [each.get_token_info(VAULT).refresh_on for each in processes]
    virtual_time.skip(0.6 * DAY)
    for each, stale in zip(processes, before, strict=True):
        eventually(
            lambda each=each, stale=stale: each.get_token_info(VAULT).refresh_on != stale  # type: ignore[misc] # as above
        )
    imds.assert_requests(2)


def test_refresh_waits_for_another(
    virtual_time: VirtualTime,
    imds: ImdsEmulator,
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a token, a refresh waits for that of another process, then backs off like one that failed."""
    monkeypatch.setattr(decision, "REFRESH_TIMEOUT", 1.0)
    credential = process(imds)
    held = token_of(credential)
    virtual_time.skip(0.6 * DAY)
    with lock_of(memory):
        assert token_of(credential) == held
        eventually(lambda: "Another process of this user" in caplog.text)
        assert token_of(credential) == held
    imds.assert_requests(1)


def lock_of(memory: Path) -> Any:
    """Take the lock of the only token there is."""
    from filelock import FileLock

    (found,) = memory.rglob("*.lock")
    return FileLock(found).acquire(timeout=5)


def test_stopped_holder(imds: ImdsEmulator, memory: Path) -> None:
    """A process that is stopped keeps its lock: a caller asks by itself after half of its time."""
    process(imds).get_token(VAULT)
    forget_in(memory)
    with lock_of(memory):
        begun = time.monotonic()
        token_of(process(imds, timeout=12.0))
        assert time.monotonic() - begun >= 5.9
    imds.assert_requests(2)
    token_of(process(imds))  # its token is there for the others
    imds.assert_requests(2)


def forget_in(memory: Path) -> None:
    for token in memory.rglob("*.token"):
        token.unlink()


def test_killed_holder(imds: ImdsEmulator, holder: subprocess.Popen[str]) -> None:
    """A killed process releases its lock, also while a child that it forked lives on."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    begun = time.monotonic()
    assert token_of(process(imds, timeout=180.0))
    assert time.monotonic() - begun < 60, "half of its time would be 90 s"
    imds.assert_requests(2)


def test_failing_holders(imds: ImdsEmulator) -> None:
    """Processes that each fail after three seconds do not fail one after the other."""
    imds.script(faults.hang, seconds=60)
    errors: list[BaseException] = []

    def fail() -> None:
        with pytest.raises(ImdsUnavailableError) as caught:
            token_of(process(imds, read_timeout=3.0))
        errors.append(caught.value)

    threads = [threading.Thread(target=fail) for _ in range(10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(errors) == 10
    times = [request.time for request in imds.requests]
    apart = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert sorted(apart)[len(apart) // 2] < 3.0, "most asked when the one before had failed"


def test_refused_holders() -> None:
    """Where IMDS answers each process with an error, they ask one after the other, within its limits."""
    with ImdsEmulator(identities=[], latency=1.0) as imds, ThreadPoolExecutor(6) as pool:
        refusals = [pool.submit(process(imds, timeout=180.0).get_token, VAULT) for _ in range(6)]
        for each in refusals:
            with pytest.raises(IdentityUnavailableError):
                each.result()
        times = [request.time for request in imds.assert_requests(6)]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 1.0


def test_watchers(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start while the first one asks wait for its token without taking the lock."""
    import filelock

    answer, locks, looks = threading.Event(), [], []
    lock_class, look = filelock.FileLock, shared_cache.SharedLease._look

    def counted_lock(*args: Any, **kwargs: Any) -> Any:
        locks.append(args)
        return lock_class(*args, **kwargs)

    def counted_look(lease: shared_cache.SharedLease) -> Any:
        looks.append(lease)
        return look(lease)

    monkeypatch.setattr(filelock, "FileLock", counted_lock)
    monkeypatch.setattr(shared_cache, "HEAD_START", 60.0)
    imds.script(faults.hold(answer))
    with ThreadPoolExecutor(4) as pool:
        tokens = [pool.submit(token_of, process(imds))]
        imds.wait_for_requests(1)
        monkeypatch.setattr(shared_cache.SharedLease, "_look", counted_look)
        tokens += [pool.submit(token_of, process(imds)) for _ in range(3)]
        eventually(lambda: len(looks) >= 9)  # each looks once before it waits
        answer.set()
        assert len({each.result() for each in tokens}) == 1
    assert len(locks) == 1
    imds.assert_requests(1)


def test_watchers_of_a_refusal(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that wait for the first one's token ask as soon as its request has failed."""
    monkeypatch.setattr(shared_cache, "HEAD_START", 600.0)
    imds.script(faults.status(400, {"error": "invalid_request", "error_description": "no"}))
    with pytest.raises(IdentityUnavailableError):
        token_of(process(imds))
    begun = time.monotonic()
    assert token_of(process(imds, timeout=900.0))
    assert time.monotonic() - begun < 300


def test_force_refresh(imds: ImdsEmulator) -> None:
    """A forced request is not served by a stored token, and its token replaces that one."""
    old = token_of(process(imds))
    imds.renew_tokens()
    new = token_of(process(imds), force_refresh=True)
    assert new != old
    assert token_of(process(imds)) == new
    assert [request.param("bypass_cache") for request in imds.assert_requests(2)] == [None, "true"]


def test_last_minutes(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """In the last minutes of a stored token a new process asks for a better one first."""
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


def test_log_of_a_failed_refresh(
    virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that fails leaves its record, also where a shared token in its last minutes serves."""
    token = token_of(process(imds))
    virtual_time.skip(DAY - 200)
    imds.script(faults.status(400))
    caplog.clear()
    with caplog.at_level(logging.INFO, "azure_imds_credential"):
        assert token_of(process(imds)) == token
    outcomes = [record.imds_outcome for record in caplog.records if hasattr(record, "imds_outcome")]
    assert outcomes == ["ImdsRequestError"]


def test_last_minutes_where_nothing_can_be_sent(
    virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a request that fails before it is sent leaves a stored token in its last minutes to serve."""
    old = token_of(process(imds))
    virtual_time.skip(DAY - 200)

    def fail(*_: object) -> None:
        raise ImdsServiceError("msal cannot be imported")

    monkeypatch.setattr(_options.CredentialOptions, "_fetch_from_imds", fail)
    assert token_of(process(imds)) == old


def test_no_time_for_the_lock(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose time is over does not wait for the lock, which filelock would do without end."""
    import filelock

    waits: list[float] = []

    def refuse(_path: str, timeout: float, *_args: Any, **_kwargs: Any) -> None:
        waits.append(timeout)
        raise RuntimeError("no locks today")

    monkeypatch.setattr(filelock, "FileLock", refuse)
    credential = process(imds)
    entry, now = credential._options.entry((VAULT,)), credential._options.cache.clock.now()
    credential._options.fetch(
        TokenRequest(entry.key, now - 2, now - 1), entry.endpoint, credential._options.cache.clock
    )
    assert waits == [0.0]


def test_expired(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """No process gets an expired token from the shared cache."""
    old = token_of(process(imds))
    virtual_time.skip(DAY + 1)
    assert token_of(process(imds)) != old


def test_future(virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A token that is dated in the future is ignored, with a warning."""
    virtual_time.skip(1000)
    token_of(process(imds))
    virtual_time.skip(-1000)
    token_of(process(imds))
    imds.assert_requests(2)
    assert "future" in caplog.text


def test_stored_token_is_no_sight(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """An endpoint does not count as seen by a stored token: a chain goes on where it then fails."""
    token_of(process(imds))
    forget_tokens()  # also what this process has seen
    reader = process(imds)
    token_of(reader)
    imds.assert_requests(1)
    virtual_time.skip(DAY + 1)
    with imds.down(), pytest.raises(ImdsUnavailableError):
        token_of(reader)


def test_mismatch(imds: ImdsEmulator, memory: Path) -> None:
    """A token for another identity is not stored."""
    user = UserAssigned("reader")
    imds.assign(user)
    imds.script(faults.members(client_id="00000000-0000-0000-0000-00000000000b"))
    with pytest.raises(IdentityMismatchError):
        token_of(process(imds, client_id=user.client_id))
    assert not list(memory.rglob("*.token"))


def test_stored_while_waiting(imds: ImdsEmulator, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for the lock takes a token that is stored meanwhile, whoever has the lock."""
    import filelock

    token = token_of(process(imds))
    (stored,) = memory.rglob("*.token")
    aside = stored.rename(stored.with_name("aside"))
    waits, lock_class = threading.Event(), filelock.FileLock

    class WatchedLock(lock_class):  # type: ignore[misc, valid-type] # a class for each platform
        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            waits.set()
            return super().acquire(*args, **kwargs)

    with lock_of(memory), ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(filelock, "FileLock", WatchedLock)
        waiting = pool.submit(token_of, process(imds, timeout=900.0))
        assert waits.wait(60)
        aside.rename(stored)
        assert waiting.result() == token
    imds.assert_requests(1)


def test_replaced_directory(
    imds: ImdsEmulator, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock on a file in another directory than the tokens' counts for nothing: the process asks, with a warning."""
    import filelock

    token_of(process(imds))
    forget_in(memory)
    lock_class = filelock.FileLock

    def lock_elsewhere(path: str, *args: Any, **kwargs: Any) -> Any:
        folder = Path(path).parent
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir(0o700)
        return lock_class(path, *args, **kwargs)

    monkeypatch.setattr(filelock, "FileLock", lock_elsewhere)
    token_of(process(imds))
    monkeypatch.undo()
    assert "replaced while it was locked" in caplog.text
    (lock,) = memory.glob("azure-imds-credential/*.lock")
    lock_class(lock).acquire(timeout=0).lock.release()
    imds.assert_requests(2)


def test_directory_removed_without_the_lock(imds: ImdsEmulator, memory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that asks without the lock keeps its token if the directory is gone when it would store it."""
    credential = process(imds)
    token_of(credential)
    forget_in(memory)
    clock = credential._options.cache.clock
    now = clock.now()
    hurried = TokenRequest(credential._options.entry((VAULT,)).key, now - 2, now - 1)
    with lock_of(memory), shared_cache.SharedLease(hurried, clock) as lease:
        assert lease.result is None
        shutil.rmtree(memory / "azure-imds-credential")
        assert lease.share(TokenResult("dummy-secret-1", now + DAY)).access_token == "dummy-secret-1"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_forget(imds: ImdsEmulator) -> None:
    """Forgetting removes the tokens and counts them."""
    token_of(process(imds))
    process(imds).get_token("https://management.azure.com/.default")
    assert forget_shared_tokens() == 2
    assert forget_shared_tokens() == 0
    token_of(process(imds))
    imds.assert_requests(3)


def test_forget_during_a_request(imds: ImdsEmulator) -> None:
    """The token of a request that is under way when tokens are forgotten is not stored."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    caller = threading.Thread(target=token_of, args=(process(imds),))
    caller.start()
    imds.wait_for_requests(1)
    forget_shared_tokens()
    answer.set()
    caller.join()
    assert forget_shared_tokens() == 0


def test_missing_filelock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without filelock the constructor raises, naming the extra that brings it."""
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r"azure-imds-credential\[shared\]"):
        ImdsCredential(shared_cache=True)
    ImdsCredential()


def test_reader_while_msal_loads(flavor: Flavor, imds: ImdsEmulator) -> None:
    """To make a credential and to read a stored token waits for no thread that imports msal."""
    stored = flavor.ask(imds.endpoint, shared_cache=True).token
    forget_tokens()
    with ThreadPoolExecutor(1) as pool, _fork.import_lock:
        assert pool.submit(flavor.ask, imds.endpoint, shared_cache=True).result(10).token == stored


@pytest.mark.parametrize(
    "way", ["transport", "per_call_policies", "per_retry_policies", "raw_request_hook", "raw_response_hook"]
)
def test_own_transport_or_hook(way: str) -> None:
    """With a transport, policy or hook, which may make up responses, `shared_cache` is a ValueError."""

    class Way:
        def send(self, request: Any) -> Any: ...
        def __call__(self, request: Any) -> Any: ...

    options: dict[str, Any] = {way: Way()}
    with pytest.raises(ValueError, match=way):
        ImdsCredential(shared_cache=True, **options)


def test_failing_lock(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the lock library raises, the process asks by itself, with one warning."""
    import filelock

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no locks today")

    monkeypatch.setattr(filelock, "FileLock", refuse)
    token_of(process(imds))
    assert [r.levelno for r in caplog.records if "no locks today" in r.message] == [logging.WARNING]


def test_other_platforms(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """On macOS and Windows there is one warning in the life of a process, and a request each."""
    monkeypatch.setattr(sys, "platform", "darwin")
    for _ in range(3):
        token_of(process(imds))
    monkeypatch.undo()
    imds.assert_requests(3)
    assert sum("tokens are not shared" in record.message for record in caplog.records) == 1
