"""The exit codes of `azure-imds` hold in disturbed environments, and an interrupt ends it at any moment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from azure_imds_credential.testing import ImdsEmulator, faults

if sys.platform == "win32":
    pytest.skip("the environments are made by a POSIX shell", allow_module_level=True)

UNKNOWN = "99999999-9999-9999-9999-999999999999"
ENDED, UNAVAILABLE, USAGE, OUTPUT, INTERRUPTED, READER_GONE = 0, 4, 2, 10, 130, 141
SECONDS = 120.0


@dataclass(frozen=True)
class Environment:
    """Something out of the ordinary around a process.

    Args:
        name: What it is.
        script: A shell script that starts the command as "$@".
        variables: Added to the environment; None removes.
        alone: Start with no other variables.
        flags: Of the interpreter.
        streams: What standard output and standard error are: "full", "gone" (a pipe without reader), "socket".
        codes: The exit codes of a command that succeeds, of one without identity (both with --json), and of a
            misspelt one.
    """

    name: str
    script: str = 'exec "$@"'
    variables: dict[str, str | None] = field(default_factory=dict)
    alone: bool = False
    flags: tuple[str, ...] = ()
    streams: dict[str, str] = field(default_factory=dict)
    codes: tuple[int, int, int] = (ENDED, UNAVAILABLE, USAGE)


NO_OUTPUT = (OUTPUT, OUTPUT, USAGE)
ENVIRONMENTS = [
    Environment("closed input", 'exec "$@" <&-'),
    Environment("closed output", 'exec "$@" >&-', codes=NO_OUTPUT),
    Environment("closed error", 'exec "$@" 2>&-'),
    Environment("everything closed", 'exec "$@" <&- >&- 2>&-', codes=NO_OUTPUT),
    Environment("output and error closed", 'exec "$@" >&- 2>&-', codes=NO_OUTPUT),
    Environment("full output", streams={"stdout": "full"}, codes=NO_OUTPUT),
    Environment("full error", streams={"stderr": "full"}),
    Environment("full output and error", streams={"stdout": "full", "stderr": "full"}, codes=NO_OUTPUT),
    Environment(
        "full unbuffered output", variables={"PYTHONUNBUFFERED": "1"}, streams={"stdout": "full"}, codes=NO_OUTPUT
    ),
    Environment("output without reader", streams={"stdout": "gone"}, codes=(READER_GONE, READER_GONE, USAGE)),
    Environment("error without reader", streams={"stderr": "gone"}),
    Environment(
        "nothing with a reader",
        streams={"stdout": "gone", "stderr": "gone"},
        codes=(READER_GONE, READER_GONE, USAGE),
    ),
    Environment("output to a socket", streams={"stdout": "socket"}),
    Environment("ASCII", variables={"PYTHONIOENCODING": "ascii"}),
    Environment("Latin-1", variables={"PYTHONIOENCODING": "latin-1"}),
    Environment("the C locale", variables={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Environment("an unknown locale", variables={"LC_ALL": "xx_XX.UTF-8", "LANG": "nonsense"}),
    Environment("warnings are errors", variables={"PYTHONWARNINGS": "error"}),
    Environment("development mode", variables={"PYTHONDEVMODE": "1"}),
    Environment("no docstrings and no asserts", variables={"PYTHONOPTIMIZE": "2"}),
    Environment("isolated", flags=("-I",)),
    Environment("short integers", variables={"PYTHONINTMAXSTRDIGITS": "640"}),
    Environment("no variables", alone=True),
    Environment("no folder", 'd=$(mktemp -d) && cd "$d" && rmdir "$d" && exec "$@"'),
    Environment("no temporary folder", variables={"TMPDIR": "/nowhere", "XDG_RUNTIME_DIR": "/nowhere"}),
    Environment("no columns", variables={"COLUMNS": "0", "LINES": "-1"}),
    Environment("odd columns", variables={"COLUMNS": "many"}),
    Environment("a dumb terminal", variables={"TERM": "dumb"}),
    Environment("forced colors", variables={"FORCE_COLOR": "1"}),
    Environment("broken proxies", variables={"HTTP_PROXY": "http://[::", "ALL_PROXY": "%%%", "NO_PROXY": "["}),
    Environment("an odd time zone", variables={"TZ": "Nowhere/Land"}),
    Environment("few files", 'ulimit -n 24; exec "$@"'),
    Environment("a small stack", 'ulimit -s 512; exec "$@"'),
    Environment("no files to write", 'ulimit -f 0; exec "$@"', variables={"PYTHONDONTWRITEBYTECODE": "1"}),
    Environment("interrupts ignored", "trap '' INT; exec \"$@\""),
    Environment("signals ignored", "trap '' INT PIPE TERM HUP; exec \"$@\""),
    Environment("a strict umask", 'umask 0777; exec "$@"'),
    Environment("variables that are no text", variables={"AZURE_TOKEN_CREDENTIALS": "\udcff\udcfe", "\udcfe": "1"}),
    Environment("azure-core told nonsense", variables={"AZURE_LOG_LEVEL": "nonsense"}),
]


@pytest.fixture
def imds() -> Iterator[ImdsEmulator]:
    with ImdsEmulator() as imds:
        yield imds


def stream(kind: str | None, stack: ExitStack) -> int | IO[Any]:
    if kind is None:
        return subprocess.PIPE
    if kind == "full":
        return stack.enter_context(Path("/dev/full").open("w"))
    if kind == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        stack.callback(os.close, writing)
        return writing
    here, there = socket.socketpair()
    stack.enter_context(here)
    return stack.enter_context(there).fileno()


def start(environment: Environment, endpoint: str, stack: ExitStack, *argv: str) -> subprocess.Popen[bytes]:
    variables = {} if environment.alone else dict(os.environ)
    for name, value in {**environment.variables, "AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint}.items():
        variables.pop(name, None) if value is None else variables.update({name: value})
    command = [sys.executable, *environment.flags, "-m", "azure_imds_credential", *argv]
    return stack.enter_context(
        subprocess.Popen(
            ["/bin/sh", "-c", environment.script, "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=stream(environment.streams.get("stdout"), stack),
            stderr=stream(environment.streams.get("stderr"), stack),
            env=variables,
        )
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda one: one.name.replace(" ", "-"))
def test_exit_codes_hold(imds: ImdsEmulator, environment: Environment) -> None:
    """In each environment success, an error and a misspelt option have their codes, and what is printed is whole."""
    with ExitStack() as stack:
        running = [
            start(environment, imds.endpoint, stack, *argv)
            for argv in (["whoami", "--json"], ["whoami", "--json", "--client-id", UNKNOWN], ["whoami", "--nonsense"])
        ]
        done = [(*process.communicate(timeout=SECONDS), process.returncode) for process in running]
    assert tuple(code for _, _, code in done) == environment.codes, done
    for out, err, _ in done:
        assert b"Traceback" not in (err or b""), err
        assert not err or err.startswith((b"azure-imds: ", b"\x1b[31mazure-imds:")), err
        assert not out or isinstance(json.loads(out), dict)
    assert done[2][0] in (b"", None), "results only"


def test_thirty_environments_are_tried() -> None:
    """The table has at least thirty environments, each with a name of its own."""
    assert len({environment.name for environment in ENVIRONMENTS}) == len(ENVIRONMENTS) >= 30


# Interrupts

# Runs before the program in its interpreter: sends SIGINT to itself at an event (an import, a file or a socket that is
# opened, ...) after the package's first line, counted by Python's audit hooks. Without a number it counts them.
AT_EVENT = """
import os, signal, sys
at, count, started = int(os.environ["INTERRUPT_AT"]), 0, False

def hook(event, arguments):
    global count, started
    if not started:
        started = event == "exec" and arguments[0].co_filename.endswith("azure_imds_credential/__init__.py")
        return
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
if not at:
    import atexit
    atexit.register(lambda: os.write(int(os.environ["COUNT_TO"]), str(count).encode()))
"""
MOMENTS = 16


@pytest.fixture(scope="module")
def folder_of_hook() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(AT_EVENT)
        yield folder


def run_until(at: int, folder: str, endpoint: str, *, command: list[str], **more: Any) -> tuple[int, str, str]:
    environ = {
        **os.environ,
        "PYTHONPATH": folder,
        "INTERRUPT_AT": str(at),
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint,
        **more.pop("variables", {}),
    }
    done = subprocess.run(
        [*command, "whoami", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        **more,
    )
    return done.returncode, done.stdout, done.stderr


COMMANDS = {
    "module": [sys.executable, "-m", "azure_imds_credential"],
    "script": [str(Path(sys.executable).parent / "azure-imds")],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupt_ends_it_at_any_moment(imds: ImdsEmulator, folder_of_hook: str, command: str) -> None:
    """From the package's first line to the last, an interrupt ends the program with 130 and without a word."""
    reading, writing = os.pipe()
    try:
        run_until(
            0,
            folder_of_hook,
            imds.endpoint,
            command=COMMANDS[command],
            variables={"COUNT_TO": str(writing)},
            pass_fds=[writing],
        )
        os.close(writing)
        count = int(os.read(reading, 100))
    finally:
        os.close(reading)
    assert count > 500, "hardly anything was counted"
    moments = [1, 2, 3, *(1 + each * (count - 1) // MOMENTS for each in range(1, MOMENTS)), count - 1]
    for at in moments:
        code, _, err = run_until(at, folder_of_hook, imds.endpoint, command=COMMANDS[command])
        assert (code, err) == (INTERRUPTED, ""), f"at event {at} of {count}"


@pytest.mark.parametrize("argv", [["whoami"], ["wait"], ["doctor"]], ids=lambda argv: argv[0])
def test_interrupt_ends_a_command_that_waits(imds: ImdsEmulator, argv: list[str]) -> None:
    """While IMDS is silent an interrupt ends the command at once, with 130 and no traceback."""
    imds.script(faults.hang)
    with ExitStack() as stack:
        process = start(Environment("usual"), imds.endpoint, stack, *argv, "--timeout", "80", "--quiet")
        imds.wait_for_requests(1, timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (INTERRUPTED, b"", b"")


def test_interrupt_ends_a_command_that_reads(imds: ImdsEmulator) -> None:
    """While standard input says nothing an interrupt ends the command with 130."""
    command = [sys.executable, "-m", "azure_imds_credential", "whoami", "--token", "-", "-v"]
    code = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until_it_reads(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (INTERRUPTED, b"", b"")


def wait_until_it_reads(pid: int) -> None:
    """Wait until the process sleeps in read(0, ...), as /proc tells."""
    where = Path(f"/proc/{pid}/syscall")
    if not where.exists():
        pytest.skip("this system does not tell in which call a process sleeps")
    for _ in range(int(SECONDS * 50)):
        try:
            if where.read_text().split()[:2] == ["0", "0x0"] and b"azure_imds_credential" in (
                Path(f"/proc/{pid}/cmdline").read_bytes()
            ):
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("the process never read its standard input")


def test_importing_the_package_leaves_interrupts_alone() -> None:
    """In any other program the package changes no handler of SIGINT."""
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); import azure_imds_credential; "
        "assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)
