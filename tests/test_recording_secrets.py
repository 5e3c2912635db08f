"""`imds_vcr` fails closed: what an Azure service calls a secret is in no recording, in no encoding; the rest stays."""

from __future__ import annotations

import base64
import hashlib
import html
import http.server
import json
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
import requests
import yaml
from recording_cases import (
    ACCOUNT_KEY,
    FUNCTION_KEY,
    HARMLESS_CASES,
    HEX_32,
    KEY_32,
    OPAQUE,
    PASSWORD,
    REFUSED_CASES,
    SECRET_CASES,
    SUBSCRIPTION,
    TOKEN,
    Case,
    b64url,
)

from azure_imds_credential.testing import UnsafeRecordingError, imds_vcr, scan_recordings
from azure_imds_credential.testing._recording.bodies import crc64
from azure_imds_credential.testing._recording.fakes import is_fake
from azure_imds_credential.testing._recording.live_values import find_live


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    case: Case

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        for name, value in {**self.case.answer_headers, "Content-Length": str(len(self.case.answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.case.answer)

    do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A loopback server that answers as `_Handler.case` says; its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def exchange(url: str, case: Case) -> requests.Response:
    _Handler.case = case
    return requests.request(case.method, url + case.path, data=case.body, headers=case.headers, timeout=10)


def decoded(text: str) -> str:
    """A file and what is written in it in the usual encodings, one after the other."""
    views = [text]

    def add(item: Any) -> None:
        if isinstance(item, dict):
            for name, value in item.items():
                add(name)
                add(value)
        elif isinstance(item, list):
            for value in item:
                add(value)
        elif isinstance(item, bytes):
            for inner in (item, *inflated(item)):
                views.append(inner.decode("latin-1"))
                views.append(inner.replace(b"\0", b"").decode("latin-1"))
        elif isinstance(item, str):
            views.append(item)

    add(yaml.safe_load(text))
    for _ in range(3):
        for view in tuple(views):
            views += [
                unquote(view),
                html.unescape(view),
                re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), view),
            ]
            for run in re.findall(r"[A-Za-z0-9_+/-]{8,}", view):
                content = base64.b64decode(run.translate(str.maketrans("-_", "+/"))[: len(run) // 4 * 4])
                views += [inner.decode("latin-1") for inner in (content, *inflated(content))]
        views = list(dict.fromkeys(views))
    return "\n".join(views)


def inflated(content: bytes) -> list[bytes]:
    found = []
    for window in (15, 31, -15) if content[:1] in (b"\x1f", b"x") else ():
        try:
            found.append(zlib.decompressobj(window).decompress(content))
        except zlib.error:
            continue
    return found


@pytest.mark.parametrize("case", SECRET_CASES, ids=lambda case: case.name)
def test_no_secret_is_readable(tmp_path: Path, server: str, case: Case) -> None:
    """What a session sent or received as a secret is not in the file, however it is decoded; and the scan agrees."""
    path = tmp_path / "a.yaml"
    with imds_vcr(path, record_mode="once"):
        exchange(server, case)
    readable = decoded(path.read_text()).lower()
    assert [needle for needle in case.needles if needle.lower() in readable] == []
    assert scan_recordings([path]) == []
    with imds_vcr(path):
        replayed = exchange(server, case)
    assert int(replayed.headers["Content-Length"]) == len(replayed.content)


@pytest.mark.parametrize("case", HARMLESS_CASES, ids=lambda case: case.name)
def test_what_is_no_secret_stays(tmp_path: Path, server: str, case: Case) -> None:
    """A program sees in a replay, byte for byte, what it saw live."""
    path = tmp_path / "a.yaml"
    with imds_vcr(path, record_mode="once"):
        live = exchange(server, case)
    with imds_vcr(path):
        replayed = exchange(server, case)
    assert replayed.content == live.content == case.answer
    assert {**replayed.headers, "Date": ""} == {**live.headers, "Date": ""}
    assert scan_recordings([path]) == []


@pytest.mark.parametrize("case", REFUSED_CASES, ids=lambda case: case.name)
def test_what_is_not_taken_apart_is_refused(tmp_path: Path, server: str, case: Case) -> None:
    """An encoding that the scrubber does not read fails closed: nothing is written, and the error says so."""
    with pytest.raises(UnsafeRecordingError, match="nothing was written"):
        with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
            exchange(server, case)
    assert list(tmp_path.iterdir()) == []


VM = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/payroll-prod/providers/Microsoft.Compute/virtualMachines/salaries-7"


def walk(get: Any) -> list[Any]:
    """A program that builds each request from what it read before."""
    listed = get("/subscriptions?api-version=2022-12-01")
    subscription = listed["value"][0]["subscriptionId"]
    vm = get(f"/subscriptions/{subscription}/providers/Microsoft.Compute/virtualMachines")["value"][0]
    group = vm["id"].split("/")[4]
    vm_id = (
        f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/virtualMachines/{vm['name']}"
    )
    by_name = get(vm_id)
    assert by_name["id"] == vm_id == vm["id"]
    scoped = get(f"/scopes/{quote(vm_id, safe='')}/roles")
    workspace = get(f"/workspaces/DefaultWorkspace-{subscription}-WEU")
    assert workspace["customerId"] == subscription.upper().replace("-", "")
    page = get(urlsplit(listed["nextLink"]).path + "?" + urlsplit(listed["nextLink"]).query)
    keys = get(f"{vm_id}/listKeys")
    return [listed, vm, by_name, scoped, workspace, page, get("/blob?code=" + keys["primaryKey"])]


def answers(base: str) -> dict[str, Any]:
    vm = {"id": VM, "name": "salaries-7", "tags": {"size": 1.10}}
    return {
        "/subscriptions": {
            "value": [{"id": f"/subscriptions/{SUBSCRIPTION}", "subscriptionId": SUBSCRIPTION}],
            "nextLink": f"{base}/subscriptions/more?$skiptoken={KEY_32.rstrip('=')}",
        },
        f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/virtualMachines": {"value": [vm]},
        VM: vm,
        f"/scopes/{quote(VM, safe='')}/roles": {"roles": ["Reader"]},
        f"/workspaces/DefaultWorkspace-{SUBSCRIPTION}-WEU": {"customerId": SUBSCRIPTION.upper().replace("-", "")},
        "/subscriptions/more": {"value": []},
        f"{VM}/listKeys": {"primaryKey": FUNCTION_KEY},
        "/blob": {"ok": True},
    }


def test_a_path_that_an_answer_repeats(tmp_path: Path, server: str) -> None:
    """A key that was read, sent as a part of a path and repeated there by an answer is one fake in all of them."""
    path, target = tmp_path / "a.yaml", "/api/h/"

    def program(send: Any) -> None:
        key = send("/listKeys")["primaryKey"]
        assert send(target + quote(key, safe=""))["path"] == target + quote(key, safe="")

    def live(where: str) -> Any:
        document = {"primaryKey": FUNCTION_KEY} if where == "/listKeys" else {"path": where}
        return exchange(server, Case("", (), path=where, answer=json.dumps(document).encode())).json()

    with imds_vcr(path, record_mode="once"):
        program(live)
    assert FUNCTION_KEY.rstrip("=") not in decoded(path.read_text())
    with imds_vcr(path):
        program(lambda where: requests.get(server + where, timeout=10).json())


def test_a_program_replays_with_what_it_read(tmp_path: Path, server: str) -> None:
    """Requests that are built from a replay's own fakes are answered: subscription, names, next links and keys."""
    path, known = tmp_path / "a.yaml", answers(server)

    def live(target: str) -> Any:
        case = Case("", (), path=target, answer=json.dumps(known[target.partition("?")[0]]).encode())
        return exchange(server, case).json()

    def replayed(target: str) -> Any:
        return requests.get(server + target, timeout=10).json()

    with imds_vcr(path, record_mode="once"):
        seen = walk(live)
    text = decoded(path.read_text()).lower()
    needles = (SUBSCRIPTION, SUBSCRIPTION.replace("-", ""), "payroll-prod", "salaries-7", FUNCTION_KEY, KEY_32[:20])
    assert [needle for needle in needles if needle.lower() in text] == []
    with imds_vcr(path):
        again = walk(replayed)
    assert shape(again) == shape(seen)


def shape(value: Any) -> Any:
    """A value without the content of its strings; of them the type and, but for faked names, the length."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "text" if isinstance(value, str) else value


@pytest.mark.parametrize(
    "real",
    [
        PASSWORD,
        KEY_32,
        ACCOUNT_KEY,
        HEX_32,
        HEX_32.upper(),
        FUNCTION_KEY,
        OPAQUE,
        TOKEN,
        b64url(bytes(range(64))),
        "k" * 43,
    ],
)
def test_a_fake_has_the_form_of_the_real_value(tmp_path: Path, server: str, real: str) -> None:
    """A fake is as long as the value it stands for, of the same alphabet, and another one."""
    path = tmp_path / "a.yaml"
    case = Case("", (), answer=json.dumps({"password": real, "clientSecret": real, "other": "Paris"}).encode())
    with imds_vcr(path, record_mode="once"):
        exchange(server, case)
    with imds_vcr(path):
        fake = requests.get(server + "/x", timeout=10).json()
    assert fake["password"] == fake["clientSecret"] != real
    assert fake["other"] == "Paris"
    assert abs(len(fake["password"]) - len(real)) <= (8 if real == TOKEN else 0)
    for alphabet in ("[0-9a-f]+", "[0-9A-F]+", "[A-Za-z0-9+/]+=*", "[A-Za-z0-9_-]+=*"):
        if re.fullmatch(alphabet, real):
            assert re.fullmatch(alphabet, fake["password"])
    if real in (KEY_32, ACCOUNT_KEY):
        assert len(base64.b64decode(fake["password"], validate=True)) == len(base64.b64decode(real))


def test_two_recordings_of_one_session_are_alike(tmp_path: Path, server: str) -> None:
    """Who records again sees in a diff what changed, not new fakes."""
    case = Case("", (), answer=json.dumps({"password": PASSWORD, "primaryKey": KEY_32, "id": VM}).encode())
    bodies = []
    for name in ("a.yaml", "b.yaml"):
        with imds_vcr(tmp_path / name, record_mode="once"):
            exchange(server, case)
        bodies.append(yaml.safe_load((tmp_path / name).read_text())["interactions"][0]["response"]["body"])
    assert bodies[0] == bodies[1]


def test_no_fake_tells_a_password_that_can_be_guessed(tmp_path: Path, server: str) -> None:
    """Nothing of a short secret goes into its fake: two passwords of one form have the same fake in the same place."""
    fakes = []
    for number, password in enumerate(("Winter2026!", "Summer2025!")):
        path = tmp_path / f"{number}.yaml"
        with imds_vcr(path, record_mode="once"):
            exchange(server, Case("", (), answer=json.dumps({"password": password}).encode()))
        fakes.append(yaml.safe_load(path.read_text())["interactions"][0]["response"]["body"])
    assert fakes[0] == fakes[1]


@pytest.mark.parametrize("keep", [["password"], [PASSWORD], [re.compile("Hunter2.*")]])
def test_keep_allows_by_name_value_or_pattern(tmp_path: Path, server: str, keep: list[Any]) -> None:
    """What the user says is harmless is written down as it is."""
    path = tmp_path / "a.yaml"
    with imds_vcr(path, record_mode="once", keep=keep):
        exchange(server, Case("", (), answer=json.dumps({"password": PASSWORD}).encode()))
    assert PASSWORD in path.read_text()


@pytest.mark.parametrize(("keep", "error"), [("password", TypeError), ([1], TypeError), ([""], ValueError)])
def test_keep_is_checked(tmp_path: Path, keep: Any, error: type[Exception]) -> None:
    """A wrong `keep` is refused by name before anything is sent."""
    with pytest.raises(error, match="keep must"), imds_vcr(tmp_path / "a.yaml", record_mode="once", keep=keep):
        pytest.fail("the block must not run")


def test_what_was_computed_from_the_body_is_computed_anew(tmp_path: Path, server: str) -> None:
    """Length, MD5 and CRC64 of an answer whose body changed fit the new body, as clients check them."""
    body = json.dumps({"password": PASSWORD, "padding": "x" * 20}).encode()
    headers = {
        "Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode(),
        "x-ms-content-crc64": base64.b64encode(crc64(body).to_bytes(8, "little")).decode(),
        "x-ms-meta-md5": base64.b64encode(hashlib.md5(b"another").digest()).decode(),
    }
    path = tmp_path / "a.yaml"
    with imds_vcr(path, record_mode="once"):
        exchange(server, Case("", (), answer=body, answer_headers=headers))
    with imds_vcr(path):
        again = requests.get(server + "/x", timeout=10)
    assert again.content != body
    assert int(again.headers["Content-Length"]) == len(again.content)
    assert base64.b64decode(again.headers["Content-MD5"]) == hashlib.md5(again.content).digest()
    assert base64.b64decode(again.headers["x-ms-content-crc64"]) == crc64(again.content).to_bytes(8, "little")
    assert again.headers["x-ms-meta-md5"] == headers["x-ms-meta-md5"]
    assert crc64(b"123456789") == 0xAE8B14860A799888  # the check value of CRC-64/NVME


def test_an_unsafe_recording_is_reported_although_the_block_failed(tmp_path: Path, server: str) -> None:
    """The refusal is raised from the block's own error, so that both are seen."""
    case = Case("", (), answer=bytes(range(256)), answer_headers={"Content-Type": "application/x-own"})

    def record() -> None:
        with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
            exchange(server, case)
            raise KeyError("of the block")

    with pytest.raises(UnsafeRecordingError, match="nothing was written") as refused:
        record()
    assert isinstance(refused.value.__cause__, KeyError)


def test_the_last_check_is_independent_of_the_scrubber(tmp_path: Path) -> None:
    """A live value is seen in the text of a recording in any of the usual encodings."""
    secret = "Hunter2-s3cret!"
    hidden = [
        secret,
        quote(quote(secret, safe="")),
        base64.b64encode(f"{secret}.".encode()).decode(),
        base64.b64encode(f"x{secret}".encode()).decode(),
        base64.urlsafe_b64encode(f"xy{secret}".encode()).decode().rstrip("="),
        base64.b64encode(zlib.compress(secret.encode())).decode(),
        base64.b64encode(secret.encode("utf-16")).decode(),
        "".join(f"\\u{ord(char):04x}" for char in secret),
        "".join(f"&#x{ord(char):x};" for char in secret),
        secret.encode().hex(),
        yaml.dump({"a": (secret + " ") * 9}, width=20),
    ]
    assert [
        text for text in hidden if find_live(f"a: {text}\n" if ":" not in text else text, [secret]) != [secret]
    ] == []
    assert find_live("a: Hunter2\n", [secret]) == []


def test_a_recording_grows(tmp_path: Path, server: str) -> None:
    """`new_episodes` adds what is new, scrubbed like the rest, and leaves what was recorded as it is."""
    path = tmp_path / "a.yaml"
    first = Case("", (), path="/first", answer=json.dumps({"password": PASSWORD, "id": VM}).encode())
    second = Case("", (), path="/second", answer=json.dumps({"again": PASSWORD, "password": PASSWORD}).encode())
    with imds_vcr(path, record_mode="new_episodes"):
        exchange(server, first)
    before = yaml.safe_load(path.read_text())["interactions"]
    with imds_vcr(path, record_mode="new_episodes"):
        assert is_fake(exchange(server, first).json()["password"])
        assert exchange(server, second).json()["password"] == PASSWORD  # live, as the program needs it
    after = yaml.safe_load(path.read_text())["interactions"]
    assert after[:1] == before
    assert len(after) == 2
    assert PASSWORD not in decoded(path.read_text())


@pytest.mark.parametrize("encoding", ["br", "zstd"])
def test_compression_that_no_library_reads_is_refused(
    tmp_path: Path, server: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where brotli or zstd cannot be read, the body is refused, and the error names what to install."""
    for name in ("brotli", "brotlicffi", "zstandard", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    case = Case("", (), method="POST", body=bytes(range(200)), headers={"Content-Encoding": encoding})
    with pytest.raises(UnsafeRecordingError, match=r"install (brotli|zstandard)"):
        with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
            exchange(server, case)


def test_what_cannot_be_looked_into_is_refused(tmp_path: Path, server: str) -> None:
    """A body that is neither text nor of a known type is not written; the error says why and how to allow it."""
    case = Case("binary", (), answer=bytes(range(256)), answer_headers={"Content-Type": "application/x-own"})
    path = tmp_path / "a.yaml"
    with pytest.raises(UnsafeRecordingError, match=r"(?s)a body of type application/x-own is neither.*keep=\["):
        with imds_vcr(path, record_mode="once"):
            exchange(server, case)
    assert not path.exists()
    with imds_vcr(path, record_mode="once", keep=["application/x-own"]):
        exchange(server, case)
    with imds_vcr(path):
        assert exchange(server, case).content == bytes(range(256))
