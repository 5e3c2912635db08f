"""Where no thread can start, on each Python of this machine: the interpreter's end, sub-interpreters, RLIMIT_NPROC.

A cached token is handed out at once. Without one the call ends within `timeout`, with a token or an ImdsError.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from interpreters import find_interpreters

from azure_imds_credential.testing import ImdsEmulator, faults

INTERPRETERS = find_interpreters()
ROOT = Path(__file__).parent.parent
TIMEOUT = 20.0  # seconds that a call has
AT_ONCE = 10.0  # seconds; below TIMEOUT, and far above what a look into the cache takes
SHORT = 1.0  # seconds that a call has whose answer never ends
LATE = 20.0  # seconds beyond `timeout` that a machine under load is given
HANGS = 240  # seconds after which a program is taken for hung

# What each program begins with. What is used while the interpreter ends is bound early: modules are emptied by then. No
# function of the program stays in the library, or its globals would outlive the finalizers.
PREFACE = """
import asyncio, atexit, json, os, resource, sys, threading, time
import azure_imds_credential, azure_imds_credential.aio
from azure_imds_credential import ImdsCredential, ImdsError
from azure_imds_credential import _options

def grow_old(refresh_in, expires_in):
    now = _options.process_cache.clock.now()
    for entry in _options.process_cache._entries.values():
        entry.cached = entry.cached._replace(
            refresh_at=now + refresh_in, fresh_until=now + min(refresh_in, expires_in), expires_at=now + expires_in
        )

def tell(place, call, json=json, write=os.write, clock=time.monotonic, Error=ImdsError):
    begun = clock()
    try:
        said = call().token[-12:]
    except Error as error:
        said = "ImdsError"
    except BaseException as error:
        said = repr(error)
    write(1, (json.dumps([place, said, clock() - begun]) + "\\n").encode())

credential = ImdsCredential(endpoint=ENDPOINT, timeout=TIMEOUT)
aio = azure_imds_credential.aio.ImdsCredential(endpoint=ENDPOINT, timeout=TIMEOUT)

def warm(credential=ImdsCredential(endpoint=ENDPOINT)):
    return {place: credential.get_token("https://" + place + ".example").token[-12:] for place in PLACES}

def ask(place, credential=credential):
    return credential.get_token("https://" + place + ".example")

def ask_async(place, aio=aio, new_loop=asyncio.new_event_loop):
    loop = new_loop()
    try:
        return loop.run_until_complete(aio.get_token("https://" + place + ".example"))
    finally:
        loop.close()

class AtTheEnd:
    def __init__(self, place):
        self.place = place
    def __del__(self, tell=tell, ask=ask):
        tell(self.place, lambda: ask(self.place))
"""

# Where a call is made, each for a resource of its own -> code that has it made there.
PLACES = {
    "thread": """
        def wait(tell=tell, ask=ask):
            threading.main_thread().join()
            tell("thread", lambda: ask("thread"))
        threading.Thread(target=wait).start()
    """,
    "atexit": "atexit.register(tell, 'atexit', lambda: ask('atexit'))",
    "atexit-aio": "atexit.register(tell, 'atexit-aio', lambda: ask_async('atexit-aio'))",
    "del-cycle": "flush = AtTheEnd('del-cycle'); flush.itself = flush",
    "del-global": "kept = AtTheEnd('del-global')",
    "del-module": "sys.modules['zz'] = type(sys)('zz'); sys.modules['zz'].flush = AtTheEnd('del-module')",
}
ALWAYS = PLACES.keys() - {"del-cycle", "del-global"}  # Python 3.14 drops globals of the program without finalizing them
# What the cache holds -> code that brings it there.
HOLDINGS = {
    "fresh": "held = warm()",
    "stale": "held = warm(); grow_old(-60, 11 * 3600)",
    "expiring": "held = warm(); grow_old(-60, 200)",
    "nothing": "held = {}; import azure_imds_credential._imds.client",
}


@cache
def _bytecode() -> str:
    """Return a folder of these tests, so that the packages are compiled once for each Python."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _packages(version: str) -> str | None:
    """Return where a Python finds the dependencies; those that a request needs are pure Python."""
    folder = sysconfig.get_paths()["purelib"]
    trial = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {folder!r}]; import azure_imds_credential._imds.client"
    command = [INTERPRETERS[version], "-X", f"pycache_prefix={_bytecode()}", "-c", trial]
    return folder if subprocess.run(command, capture_output=True, check=False, timeout=HANGS).returncode == 0 else None


def run(version: str, endpoint: str, *parts: str, timeout: float = TIMEOUT) -> list[Any]:
    """Run a program on a Python and return what it told, line by line."""
    folder = _packages(version)
    if folder is None:
        pytest.skip(f"the packages of this environment cannot be imported by Python {version}")
    names = {"ENDPOINT": endpoint, "TIMEOUT": timeout, "PLACES": list(PLACES)}
    code = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    code += "\n".join(("", PREFACE, *map(textwrap.dedent, parts)))
    done = subprocess.run(
        [INTERPRETERS[version], "-X", f"pycache_prefix={_bytecode()}", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


VERSIONS = pytest.mark.parametrize("version", INTERPRETERS)


@pytest.mark.parametrize("holding", HOLDINGS)
@VERSIONS
def test_calls_while_the_interpreter_ends(version: str, holding: str) -> None:
    """In atexit, in threads that outlive the main one and in finalizers: a cached token at once, whatever its age."""
    with ImdsEmulator() as imds:
        held, *told = run(
            version, imds.endpoint, HOLDINGS[holding], "print(json.dumps(held), flush=True)", *PLACES.values()
        )
        issued = {token[-12:] for token in imds.tokens}
    assert {place for place, _, _ in told} >= ALWAYS
    for place, said, seconds in told:
        if held:
            # A thread can still be started in a thread, so an expiring token may be refreshed first.
            assert said == held[place] or (holding == "expiring" and said in issued), place
            assert seconds < AT_ONCE + (LATE if holding == "expiring" else 0), place
        else:
            assert said in {"ImdsError", *issued}, place
            assert seconds < TIMEOUT + LATE, place


@pytest.mark.parametrize("place", ["thread", "atexit", "del-module"])
@VERSIONS
def test_first_call_while_the_interpreter_ends(version: str, place: str) -> None:
    """Where nothing can be imported any more the call ends with an ImdsError, not with ImportError."""
    with ImdsEmulator() as imds:
        ((_, said, seconds),) = run(version, imds.endpoint, PLACES[place])
        issued = {token[-12:] for token in imds.tokens}
    assert said in {"ImdsError", *issued}
    assert seconds < TIMEOUT + LATE


@pytest.mark.parametrize("place", ["atexit", "del-module"])
@VERSIONS
def test_endless_answer_while_the_interpreter_ends(version: str, place: str) -> None:
    """`timeout` holds there too, whatever the server does."""
    with ImdsEmulator() as imds:
        imds.script(faults.endless("100 Continue", 0.01), seconds=3600)
        ((_, said, seconds),) = run(version, imds.endpoint, HOLDINGS["nothing"], PLACES[place], timeout=SHORT)
    assert said == "ImdsError"
    assert seconds < SHORT + LATE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")
@VERSIONS
def test_shared_cache_while_the_interpreter_ends(version: str, tmp_path: Path) -> None:
    """A thread that holds the lock for imports then never lets go of it, and is not waited for."""
    program = f"""
        import azure_imds_credential._imds.client, azure_imds_credential._shared.shared_cache
        from azure_imds_credential._fork import import_lock
        os.environ["AZURE_IMDS_CREDENTIAL_TEST_FOLDER"] = {str(tmp_path)!r}
        shared = ImdsCredential(endpoint=ENDPOINT, timeout=TIMEOUT, shared_cache=True)
        held = threading.Event()
        def hold():
            with import_lock:
                held.set()
                threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        def ask(place, shared=shared):
            return shared.get_token("https://" + place + ".example")
        class AtTheEnd:
            def __del__(self, tell=tell, ask=ask):
                tell("del-module", lambda: ask("del-module"))
    """
    with ImdsEmulator() as imds:
        ((_, said, seconds),) = run(version, imds.endpoint, program, "sys.modules['zz'] = AtTheEnd()")
        issued = {token[-12:] for token in imds.tokens}
    assert said in {"ImdsError", *issued}
    assert seconds < TIMEOUT + LATE


# The limit is the user's, and root has none.
LIMITED = """
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=int).start()
    print(json.dumps("threads start"), flush=True)
except RuntimeError:
    print(json.dumps(held), flush=True)
for place in PLACES:
    tell(place, lambda: (ask_async if "aio" in place else ask)(place))
"""


@pytest.mark.parametrize("holding", ["stale", "expiring", "nothing"])
@VERSIONS
def test_calls_where_no_thread_can_start(version: str, holding: str) -> None:
    """Under RLIMIT_NPROC a cached token never costs a wait; without one the request runs in the caller."""
    with ImdsEmulator() as imds:
        held, *told = run(version, imds.endpoint, HOLDINGS[holding], LIMITED)
        issued = {token[-12:] for token in imds.tokens}
    if held == "threads start":
        pytest.skip("this system starts threads beyond RLIMIT_NPROC")
    assert len(told) == len(PLACES)
    for place, said, seconds in told:
        assert said == held[place] if held else said in issued, place
        assert seconds < (AT_ONCE if held else TIMEOUT + LATE), place


@VERSIONS
def test_endless_answer_where_no_thread_can_start(version: str) -> None:
    """`timeout` is kept by the request itself."""
    with ImdsEmulator() as imds:
        imds.script(faults.endless("headers", 0.01), seconds=3600)
        code = LIMITED.replace("in PLACES", "in PLACES[:2]")
        held, *told = run(version, imds.endpoint, HOLDINGS["nothing"], code, timeout=SHORT)
    if held == "threads start":
        pytest.skip("this system starts threads beyond RLIMIT_NPROC")
    assert [said for _, said, _ in told] == ["ImdsError"] * 2
    assert max(seconds for _, _, seconds in told) < SHORT + LATE


# What runs code in an isolated sub-interpreter, where daemon threads are refused.
ISOLATED = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
number = interpreters.create("isolated") if sys.version_info >= (3, 13) else interpreters.create(isolated=True)
failure = interpreters.run_string(number, f"import sys; sys.path[:] = {sys.path!r}" + chr(10) + INNER)
if failure is not None:
    raise SystemExit(str(failure))
os._exit(0)  # Python 3.12.1 crashes as it ends a sub-interpreter that has imported ssl
"""
INNER = """
import json, os, time
from azure_imds_credential import ImdsCredential
begun = time.monotonic()
credential = ImdsCredential(endpoint=%r, timeout=%r)
said = [credential.get_token("https://a.example").token[-12:] for _ in "12"]
os.write(1, (json.dumps([said, time.monotonic() - begun]) + chr(10)).encode())
"""


@VERSIONS
def test_isolated_sub_interpreter(version: str) -> None:
    """From 3.12 on daemon threads are refused there; the request runs in the caller."""
    if tuple(map(int, version.rstrip("t").split("."))) < (3, 12):
        pytest.skip("sub-interpreters of older Pythons are not isolated")
    with ImdsEmulator() as imds:
        inner = INNER % (imds.endpoint, TIMEOUT)
        ((said, seconds),) = run(version, imds.endpoint, f"INNER = {inner!r}", ISOLATED)
        assert said == [imds.tokens[0][-12:]] * 2
    assert seconds < TIMEOUT + LATE
