"""`azure-imds serve` as a process: its output, its signals, its socket, its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from serving import TARGET, serving

from azure_imds_credential._cli import main
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

pytest_plugins = ("in_memory",)
ON_LINUX = sys.platform.startswith("linux")
VARIABLE = "AZURE_POD_IDENTITY_AUTHORITY_HOST"


@pytest.fixture
def imds() -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator() as imds:
        yield imds


@contextmanager
def program(*arguments: str, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """Run serve in a process of its own."""
    command = popen.pop("command", [sys.executable, "-m", "azure_imds_credential"])
    process = subprocess.Popen(
        [*command, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def url(process: subprocess.Popen[str]) -> str:
    name, _, value = line(process).partition("=")
    assert name == VARIABLE
    return value


def ask(url: str, target: str = TARGET) -> int:
    """Ask once, and return the status."""
    try:
        with build_opener(ProxyHandler({})).open(
            Request(url + target, headers={"Metadata": "true"}), timeout=60
        ) as got:
            return int(got.status)
    except HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(["serve", *argv])
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


def test_program_says_where_it_is_first(imds: ImdsEmulator) -> None:
    """The first line is the variable that leads clients to it; then comes a line per request to IMDS, with no token."""
    with program("--endpoint", imds.endpoint) as serve:
        where = url(serve)
        assert where.startswith("http://127.0.0.1:")
        assert [ask(where), ask(where)] == [200, 200]
        told = line(serve)
        assert """ upstream identity="the machine's default identity" resource=https://vault.azure.net""" in told
        assert " outcome=token attempts=1 " in told
        assert imds.tokens[0] not in told
        serve.terminate()
        assert line(serve).endswith(" stopping")
        assert serve.wait(30) == 0
        assert serve.stderr is not None
        assert serve.stderr.read() == ""


def test_program_speaks_json(imds: ImdsEmulator) -> None:
    """With --json every line is an object, the first as that of `emulate`."""
    with program("--endpoint", imds.endpoint, "--json") as serve:
        where = json.loads(line(serve))[VARIABLE]
        ask(where)
        told = json.loads(line(serve))
        assert (told["event"], told["outcome"], told["attempts"]) == ("upstream", "token", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_program_ends_after_the_requests_under_way(number: signal.Signals, imds: ImdsEmulator) -> None:
    """SIGTERM and Ctrl+C end it with 0, and a request that waits for IMDS still gets its answer."""
    release = threading.Event()
    imds.script(faults.hold(release))
    with program("--endpoint", imds.endpoint) as serve, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, url(serve))
        imds.wait_for_requests(1)
        serve.send_signal(number)
        while not line(serve).endswith(" stopping"):
            pass
        release.set()
        assert asked.result() == 200
        assert serve.wait(30) == 0


def test_serve_ends_with_an_answer_for_those_that_wait(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that still waits when the time for the end is over gets 503, not a connection without an answer."""
    monkeypatch.setattr("azure_imds_credential.serve._program._GRACE", 0.1)
    release = threading.Event()
    imds.script(faults.hold(release))
    with ThreadPoolExecutor(1) as pool:
        with serving(imds) as serve:
            asked = pool.submit(serve.ask)
            imds.wait_for_requests(1)
        release.set()
        answer = asked.result()
    assert answer.status == 503
    assert "is being ended" in answer.json["error_description"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_program_forgets_on_sighup(imds: ImdsEmulator) -> None:
    """SIGHUP forgets the tokens; the next request asks IMDS, past its own cache."""
    with program("--endpoint", imds.endpoint) as serve:
        where = url(serve)
        ask(where)
        line(serve)
        serve.send_signal(signal.SIGHUP)
        assert line(serve).endswith(" forgot tokens=1")
        ask(where)
        imds.assert_requests(1, bypass_cache="true")
        assert serve.poll() is None


# As systemd does it: descriptor 3, and the process's own number in a variable.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "azure_imds_credential", *sys.argv[2:]])
"""


def handed_over(listener: socket.socket) -> dict[str, Any]:
    number = listener.fileno()
    return {"command": [sys.executable, "-c", HAND_OVER, str(number)], "pass_fds": [number]}


@pytest.mark.skipif(not ON_LINUX, reason="systemd")
def test_program_takes_the_socket_of_systemd(imds: ImdsEmulator) -> None:
    """With socket activation it serves the socket that it was handed, also clients that came before it started."""
    with socket.create_server(("127.0.0.1", 0)) as handed, ThreadPoolExecutor(1) as pool:
        where = f"http://127.0.0.1:{handed.getsockname()[1]}"
        early = pool.submit(ask, where)
        with program("--endpoint", imds.endpoint, **handed_over(handed)) as serve:
            assert url(serve) == where
            assert early.result() == 200


@pytest.mark.skipif(not ON_LINUX, reason="systemd")
def test_program_takes_no_open_socket_of_systemd(imds: ImdsEmulator) -> None:
    """A handed over socket on another address than loopback is refused as --host would be."""
    with socket.create_server(("0.0.0.0", 0)) as handed:
        with program(**handed_over(handed)) as serve:
            assert serve.wait(30) == 2
            assert serve.stderr is not None
            assert "--i-know-that-others-can-ask" in serve.stderr.read()


@pytest.mark.usefixtures("memory")
@pytest.mark.skipif(not ON_LINUX, reason="tokens are shared on Linux only, for now")
def test_program_starts_with_the_tokens_of_the_last(imds: ImdsEmulator) -> None:
    """With --shared-cache a restart, even after a kill, costs no request: the token comes while IMDS is down."""
    arguments = ("--endpoint", imds.endpoint, "--shared-cache")
    with program(*arguments) as serve:
        assert ask(url(serve)) == 200
        serve.kill()
    with imds.down(), program(*arguments) as serve:
        assert ask(url(serve)) == 200
    imds.assert_requests(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--i-know-that-others-can-ask"),
        (["--host", "imds.example"], "must be an IP address"),
        (["--port", "x"], "must be a number from 0 to 65535"),
        (["--endpoint", "nonsense"], " --endpoint must"),
        (["--endpoint", "http://127.0.0.1:99999"], " --endpoint must"),
        (["--timeout", "0"], " --timeout must"),
        (["--host", "192.0.2.1", "--i-know-that-others-can-ask"], "cannot listen on 192.0.2.1: "),
        (["--allow-host", ""], "argument --allow-host: must be a name"),
        (["--allow-host", "http://imds"], "argument --allow-host: must be a name"),
        (["--endpoint", "http://127.0.0.1:PORT", "--port", "PORT"], "where serve itself listens"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_program_refuses_wrong_arguments(
    arguments: list[str], words: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Wrong arguments end it with 2 and a sentence that names them, before it says that it is there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    arguments = [argument.replace("PORT", port) for argument in arguments]
    code, out, err = run(*([] if "--port" in arguments else ["--port", "0"]), *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_program_says_that_the_port_is_taken(run: Callable[..., tuple[int, str, str]]) -> None:
    """A port that another program has ends it with 2, and says how to go on, as `emulate` does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("--port", str(port))
    assert code == 2
    assert f"port {port} of 127.0.0.1 is taken: " in err
    assert "--port, or 0 for a free one" in err


def test_program_names_the_missing_extra(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without aiohttp it says which extra to install."""
    for name in [name for name in sys.modules if name.startswith("azure_imds_credential.serve._")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    code, _, err = run()
    assert code == 2
    assert "azure-imds serve needs the extra [serve]" in err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
def test_program_keeps_its_size(imds: ImdsEmulator) -> None:
    """Its memory after 6,000 more requests is at most 1.2 times that after 1,000."""

    def many(where: str, count: int) -> None:
        for _ in range(count // 100):
            connection = HTTPConnection(where.removeprefix("http://"))
            for _ in range(100):
                connection.request("GET", TARGET, headers={"Metadata": "true"})
                assert connection.getresponse().read().startswith(b'{"access_token":')
            connection.close()

    def resident(process: subprocess.Popen[str]) -> int:
        (found,) = [
            row for row in Path(f"/proc/{process.pid}/status").read_text().splitlines() if row.startswith("VmRSS:")
        ]
        return int(found.split()[1])

    with program("--endpoint", imds.endpoint) as serve:
        where = url(serve)
        many(where, 1_000)
        before = resident(serve)
        many(where, 6_000)
        assert resident(serve) <= 1.2 * before
    imds.assert_requests(1)


@pytest.mark.skipif(not ON_LINUX, reason="elsewhere a pipe has no size that can be chosen")
def test_program_goes_on_while_its_reader_does_not_read(imds: ImdsEmulator) -> None:
    """When its output is a pipe that is full, as behind a stopped pager, tokens are served all the same."""
    with program("--endpoint", imds.endpoint, "--timeout", "5", pipesize=4096) as serve:
        where = url(serve)
        for number in range(20):  # each is refused by IMDS, and told in more than 400 bytes
            assert ask(where, f"{TARGET.partition('&resource=')[0]}&resource=nonsense-{number}-{'x' * 300}") == 400
        assert ask(where) == 200
        assert ask(where) == 200
        assert serve.poll() is None
        serve.terminate()
        assert serve.wait(30) == 0


def test_program_goes_on_without_a_reader(imds: ImdsEmulator) -> None:
    """When its output has no reader any more, tokens are served all the same."""
    with program("--endpoint", imds.endpoint) as serve:
        where = url(serve)
        assert serve.stdout is not None
        serve.stdout.close()
        assert ask(where) == 200
        assert ask(where, TARGET + "x") == 200
        assert serve.poll() is None
        serve.stdout = None
