"""What `azure-imds` prints: hostile text, odd numbers, terminals, and JSON that is always valid."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from azure_imds_credential._cli import main, output, text
from azure_imds_credential._cli.text import (
    Terminal,
    escaped,
    escaped_but_styles,
    escaped_lines,
    hanging,
    instant,
    table,
    to_json,
)
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

pty = pytest.importorskip("pty")

COMMAND = [sys.executable, "-W", "error", "-m", "azure_imds_credential"]
VAULT = "https://vault.azure.net/.default"
SECONDS = 60.0
# What moves a cursor, rings, hides text or turns its direction: C0, C1, DEL, bidi, zero width, separators, surrogates.
CONTROLS = "\x00\x07\x08\x1b[2J\x1b]0;title\x07\r\n\x7f\x85\x9b31m\u202e\u2066\u200b\u2028\u2029\ud800\udcff\ufeff"


def jwt(claims: Any) -> str:
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return f"e30.{base64.urlsafe_b64encode(body).rstrip(b'=').decode()}.c2ln"


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator() as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        yield imds


def whoami(token: str, *options: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, "whoami", "--token", "-", *options],
        input=token.encode(),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        **more,
    )


def is_harmless(printed: bytes) -> bool:
    """Whether nothing but printable text and line feeds would reach a terminal."""
    return all(c == "\n" or c.isprintable() for c in printed.decode())


# Hostile text

HOSTILE = {
    "controls": {"aud": CONTROLS, "oid": CONTROLS, "xms_mirid": CONTROLS, "upn": CONTROLS},
    "control-names": {CONTROLS: CONTROLS, "aud": "a"},
    "milliseconds": {"aud": "a", "iat": 1700000000000, "exp": 1700000000000},
    "400-digits": {"aud": "a", "iat": 10**400, "exp": -(10**400), "nbf": 10**399},
    "not-a-number": b'{"aud": "a", "iat": NaN, "exp": Infinity, "nbf": -Infinity, "x": 1e999}',
    "surrogates": b'{"aud": "\\ud800", "oid": "\\udfff\\ud800", "\\udcff": ["\\ud83d"]}',
    "deep": b'{"aud": "a", "x": ' + b"[" * 400 + b"]" * 400 + b"}",
    "wide": {"aud": "a", "x" * 5000: "y" * 50000},
    "other-types": {"aud": {"a": 1}, "iat": "yesterday", "exp": [1], "oid": None, "tid": True, "appid": 1.5},
    "list": {"aud": ["https://a", "https://b"]},
}


@pytest.mark.parametrize(
    "environ", [{}, {"PYTHONIOENCODING": "ascii"}, {"FORCE_COLOR": "1"}], ids=["usual", "ascii", "color"]
)
@pytest.mark.parametrize("claims", HOSTILE.values(), ids=HOSTILE)
def test_hostile_claims(claims: Any, environ: dict[str, str]) -> None:
    """Whatever claims hold, text shows it escaped, JSON is valid, the exit code is 0 and there is no traceback."""
    plain = whoami(jwt(claims), env={**os.environ, **environ})
    as_json = whoami(jwt(claims), "--json", env={**os.environ, **environ})
    assert (plain.returncode, plain.stderr, as_json.returncode, as_json.stderr) == (0, b"", 0, b"")
    assert is_harmless(plain.stdout)
    assert len(plain.stdout.splitlines()) <= 8, "a line feed of a claim makes no line"
    facts = json.loads(as_json.stdout, parse_constant=pytest.fail)
    as_json.stdout.decode("ascii")
    assert "claims" in facts


@pytest.mark.parametrize("claims", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("command", [["token", VAULT], ["whoami"], ["wait"], ["doctor"]], ids=lambda one: one[0])
def test_hostile_tokens_of_imds(
    imds: ImdsEmulator, capsys: pytest.CaptureFixture[str], claims: Any, command: list[str]
) -> None:
    """The same for tokens that IMDS gives: every command shows them or refuses them, and never ends in a traceback."""
    for as_json in ([], ["--json"]):
        forget_tokens()
        imds.script(*[faults.members(access_token=jwt(claims))] * 3, seconds=600)
        code = main([*command, *as_json, "--timeout", "5"])
        out, err = capsys.readouterr()
        imds.clear_faults()
        assert code in (0, 5), err
        assert is_harmless(out.encode()), out
        assert is_harmless(err.encode()), err
        if as_json:
            json.loads(out, parse_constant=pytest.fail)


def with_server(value: str) -> Callable[[faults.Reply], Iterator[bytes]]:
    def fault(reply: faults.Reply) -> Iterator[bytes]:
        yield reply.with_header("Server", value).encode()

    return fault


@pytest.mark.parametrize("reply", ["error_description", "Server", "body"])
def test_hostile_answers(imds: ImdsEmulator, capsys: pytest.CaptureFixture[str], reply: str) -> None:
    """Words of a server reach the terminal escaped, in the error and in what the doctor says."""
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    fault: Any = {
        "error_description": faults.status(400, {"error": "invalid_request", "error_description": evil}),
        "Server": with_server("\x1b]0;owned\x07"),
        "body": faults.html(400, f"<p>{evil}</p>"),
    }[reply]
    for command in (["whoami", "--timeout", "3"], ["doctor", "--timeout", "3"]):
        for as_json in ([], ["--json"]):
            forget_tokens()
            imds.script(*[fault] * 4, seconds=600)
            main([*command, *as_json])
            out, err = capsys.readouterr()
            imds.clear_faults()
            assert is_harmless(out.encode()), out
            assert is_harmless(err.encode()), err
            if as_json:
                json.loads(out)


def test_hostile_file_names(imds: ImdsEmulator, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Names of files and of members, with control characters, line feeds and bytes that are no text, are escaped."""
    folder = os.fsencode(tmp_path)
    for name in (b"a\x1b[2J\nforged: line", b"\xff\xfe"):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123 # the name is bytes
            file.write(b"access_token: " + imds.issue_token("https://vault.azure.net").encode())
    for as_json in ([], ["--json"]):
        main(["scan", str(tmp_path), *as_json])
        out, err = capsys.readouterr()
        assert is_harmless(out.encode())
        assert err == ""
        if as_json:
            assert len(json.loads(out)["findings"]) >= 2
        else:
            assert not [line for line in out.splitlines() if line.startswith("forged")]


@pytest.mark.parametrize(
    "argv",
    [
        ["\x1b[2J"],
        ["token", "\udcff"],
        ["token", VAULT, "--\x1b[2J"],
        ["whoami", "--client-id", "\x1b[2J"],
        ["whoami", "--endpoint", "http://\udcff/"],
        ["whoami", "--timeout", "1e999"],
        ["whoami", "--timeout", "nan"],
        ["whoami", "--timeout", "9" * 400],
        ["emulate", "--port", "٣"],
        ["emulate", "--host", "\ud800"],
        ["scan", "/nowhere/\x1b[2J"],
        ["scan", "\x00"],
        ["secret", "https://\x1b[2J", "x"],
        ["doctor", "--bundle", "/nowhere/\x1b[2J"],
        ["help", "\x1b[2J"],
        ["whoami", "--token", "secret"],
        ["completion", "tcsh"],
    ],
    ids=ascii,
)
def test_odd_arguments(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Odd arguments end with 2 and a sentence, escaped; with `--json` as one object."""
    os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = "http://127.0.0.1:9"
    for as_json in ([], ["--json"]):
        code = main([*argv, *as_json])
        out, err = capsys.readouterr()
        assert code == output.USAGE or argv[0] == "doctor", err
        assert is_harmless(err.encode()), err
        assert "Traceback" not in err
        assert "should not happen" not in err
        if as_json:
            assert json.loads(out)["message"] in err or json.loads(out)["message"]
        else:
            assert out == "" or argv[0] == "doctor"


def test_secret_is_exact_but_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is written as it is, line feeds and control characters included; a terminal gets it escaped."""
    value = "line\n\x1b[31mred\ud83d\ude00"
    value = value.encode("utf-16", "surrogatepass").decode("utf-16")
    for is_terminal, expected in ((False, value), (True, "line\n\\x1b[31mred\U0001f600")):
        stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        output.show_result(output.Result({}, value, exact=True), as_json=False)
        assert stream.buffer.getvalue().decode() == f"{expected}\n"


def test_secret_that_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret with a character that the encoding of standard output lacks is refused, not changed."""
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(output.OutputError, match="ascii, lacks a character of the result: use --json"):
        output.show_result(output.Result({}, "grün", exact=True), as_json=False)
    assert stream.buffer.getvalue() == b""


def test_unforeseen_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nothing foresees ends with 70 and a sentence, a traceback with `--verbose`, JSON with `--json`."""

    def fail(*_: Any) -> None:
        raise RuntimeError("\x1b[2J")

    monkeypatch.setattr("azure_imds_credential._cli.commands.make_credential", fail)
    code = main(["whoami"])
    assert (code, *capsys.readouterr()) == (70, "", "azure-imds: this should not happen: RuntimeError: \\x1b[2J\n")
    main(["whoami", "--verbose"])
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    main(["whoami", "--json"])
    assert json.loads(capsys.readouterr().out)["error"] == "RuntimeError"


# Layout


def test_escaped() -> None:
    """What is not printable is escaped as in Python; text, accents and emoji stay."""
    assert escaped("grün 日本 😀 \\") == "grün 日本 😀 \\"
    assert escaped("\x1b\n\u202e\ud800\x9b") == "\\x1b\\n\\u202e\\ud800\\x9b"
    assert escaped_lines("a\nb\x1b[1m") == "a\nb\\x1b[1m"
    painted = Terminal(color=True).paint("ok", "good")
    assert escaped_but_styles(painted) == painted != "ok"
    assert "\x1b" not in escaped_lines(painted)


def test_to_json() -> None:
    """JSON has no NaN, no infinity, no lone surrogate, no depth without end, and only ASCII."""
    value = {"\ud800": [float("nan"), -float("inf"), "\udcff", "ü", (1,)], "n": None, "big": 10**400}
    found = json.loads(to_json(value), parse_constant=pytest.fail)
    assert found == {"\\ud800": ["NaN", "-Infinity", "\\udcff", "ü", [1]], "n": None, "big": 10**400}
    assert to_json(value).isascii()
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in to_json(deep)


def test_table_fits_the_terminal() -> None:
    """On a terminal values are broken below each other; elsewhere a row is a line."""
    rows = {"name": "word " * 30, "resource ID": "/subscriptions/" + "x" * 200, "empty": ""}
    for width in (40, 80, 200):
        lines = table(rows, Terminal(width)).splitlines()
        assert max(map(len, lines)) <= width
        assert "".join(line[13:] for line in lines if "x" in line).endswith("x" * (200 % (width - 13) or 1))
    assert len(table(rows, Terminal()).splitlines()) == 3
    assert len(table(rows, Terminal(15)).splitlines()) == 3, "too narrow for two columns"


def test_hanging() -> None:
    """Further lines of a paragraph stand below its first."""
    assert hanging("ok  ", "one two three four five six", 28) == "ok  one two three four five\n    six"
    assert hanging("ok  ", "", 40) == "ok  "


@pytest.mark.parametrize("odd", [1700000000000, 10**400, -(10**400), float("nan"), float("inf"), 1e300])
def test_instant_of_odd_numbers(odd: float) -> None:
    """A number that is no time is shown as it is."""
    assert instant(odd) == f"{odd}, which is no time in seconds"
    assert instant(0) == "1970-01-01 00:00:00+00:00"


# Terminals


@pytest.mark.parametrize(
    ("environ", "color"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
    ],
)
def test_color_on_a_terminal(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], color: bool) -> None:
    """A terminal gets colors unless it is dumb; NO_COLOR and FORCE_COLOR decide where they are set and not empty."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    parent, child = pty.openpty()
    try:
        with os.fdopen(child, "w", closefd=False) as stream:
            assert text.terminal_of(stream).color is color
            assert text.terminal_of(stream).width is not None
    finally:
        os.close(parent)
        os.close(child)
    with Path(os.devnull).open("w") as stream:
        assert text.terminal_of(stream) == Terminal(
            None, environ.get("FORCE_COLOR") == "1" and not environ.get("NO_COLOR")
        )


def on_terminal(
    argv: list[str], columns: int = 60, *, until: Callable[[bytes], bool] | None = None, **environ: str
) -> tuple[int, bytes]:
    """Run a command with a terminal as standard output and error; return its exit code and what the terminal got."""
    parent, child = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [*COMMAND, *argv],
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
        env={**clean, "TERM": "xterm", "COLUMNS": str(columns), **environ},
    )
    os.close(child)
    got = b""
    try:
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # Linux says EIO when the last writer has closed it
                break
            if not part:
                break
            got += part
            if until is not None and until(got):
                process.terminate()
                until = None
        return process.wait(SECONDS), got
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def test_whoami_on_a_terminal(imds: ImdsEmulator) -> None:
    """On a narrow terminal no line is longer than it."""
    code, got = on_terminal(["whoami"], columns=50)
    assert code == 0
    assert max(map(len, got.decode().split("\r\n"))) <= 50


def test_doctor_on_a_terminal(imds: ImdsEmulator) -> None:
    """The doctor's levels are colored on a terminal, and plain with NO_COLOR."""
    _, got = on_terminal(["doctor"])
    assert b"\x1b[32mok\x1b[0m" in got
    _, got = on_terminal(["doctor"], NO_COLOR="1")
    assert b"\x1b" not in got


@pytest.mark.parametrize("how", [["--raw"], ["--for", "kubectl"]], ids=" ".join)
def test_raw_token_refuses_a_terminal(imds: ImdsEmulator, how: list[str]) -> None:
    """A raw token is not printed on a terminal, and not even asked for, unless `--force` says so."""
    code, got = on_terminal(["token", VAULT, *how])
    assert code == output.USAGE
    assert b"--force prints it nevertheless" in got
    imds.assert_requests(0)
    code, got = on_terminal(["token", VAULT, *how, "--force"], columns=10000)
    assert code == 0
    assert imds.tokens[-1].encode() in got


def test_wait_on_a_terminal(imds: ImdsEmulator) -> None:
    """On a terminal `wait` shows one line that moves, with the seconds and the reason, and removes it at the end."""
    imds.script(*[faults.status(500)] * 100)
    line = re.compile(rb"waiting \d+ s: 500")
    code, got = on_terminal(["wait", "--timeout", "60"], until=lambda got: line.search(got) is not None)
    assert line.search(got)
    assert code != 0
    assert b"\n" not in line.split(got)[0], "one line"
    imds.clear_faults()
    code, got = on_terminal(["wait"])
    assert code == 0
    assert b"\r\x1b[KThe identity can be used" in got
    assert on_terminal(["wait", "--quiet"])[1].startswith(b"The identity can be used")


def test_progress_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot erase a line (TERM=dumb) gets a line for each change, without an escape sequence."""
    parent, child = pty.openpty()
    monkeypatch.setenv("TERM", "dumb")
    try:
        with os.fdopen(child, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with output.Progress() as progress:
                progress.tell("no answer")
                progress.tell("no answer")
            stream.write("end")
            stream.flush()
        got = b""
        while not got.endswith(b"end"):
            got += os.read(parent, 4096)
    finally:
        os.close(parent)
        os.close(child)
    assert got == b"azure-imds: waiting: no answer\r\nend"


def test_progress_line_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moving line is cut to the width, escaped, and does not outlive the wait."""
    parent, child = pty.openpty()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    try:
        with os.fdopen(child, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with output.Progress() as progress:
                progress.tell("\x1b[2J" + "x" * 100)
                got = b""
                deadline = time.monotonic() + SECONDS
                while b"xxx" not in got:
                    assert time.monotonic() < deadline
                    got += os.read(parent, 4096)
            while not got.endswith(b"\r\x1b[K"):
                got += os.read(parent, 4096)
    finally:
        os.close(parent)
        os.close(child)
    lines = got.decode().split("\r\x1b[K")
    assert max(map(len, lines)) == 39
    assert "\\x1b[2J" in "".join(lines)
