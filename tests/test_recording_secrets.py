"""`imds_vcr` fails closed: what an Azure service calls a secret is in no recording, in no encoding; the rest stays."""

from __future__ import annotations

import base64
import html
import http.server
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
import yaml
from recording_cases import HARMLESS_CASES, SECRET_CASES, Case

from azure_imds_credential.testing import UnsafeRecordingError, imds_vcr, scan_recordings


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
