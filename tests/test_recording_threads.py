"""Recordings beside other threads, other tasks and other tokens of the machine."""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest
import requests
import yaml

from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator, IncompleteRecordingError, forget_tokens, imds_vcr

VAULT = "https://vault.azure.net/.default"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing: the tests know what they send."""


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield str(server.server_address[0]), server.server_port
        server.shutdown()
        thread.join()


def test_lost_exchanges(server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one thread sends while another opens its connection is lost to vcrpy: nothing is written, and it is told."""
    import urllib3

    opening, sent = threading.Event(), threading.Event()
    connect = urllib3.util.connection.create_connection

    def held(*args: object, **kwargs: object) -> object:
        opening.set()
        assert sent.wait(30)
        return connect(*args, **kwargs)  # type: ignore[arg-type] # as it came

    monkeypatch.setattr(urllib3.util.connection, "create_connection", held)
    path = tmp_path / "lost.yaml"
    expected = rf"vcrpy did not see 1 exchange\(s\):\n  127\.0\.0\.1:{server[1]} in MainThread\n"
    with pytest.raises(IncompleteRecordingError, match=expected), imds_vcr(path, record_mode="once") as cassette:  # noqa: PT012 - the session is the block
        thread = threading.Thread(target=requests.get, args=("http://{}:{}/kept".format(*server),))
        thread.start()
        assert opening.wait(30)
        connection = http.client.HTTPConnection(*server)
        connection.request("GET", "/lost")
        connection.getresponse().read()
        connection.close()
        sent.set()
        thread.join()
        assert [request.path for request in cassette.requests] == ["/kept"]
    assert not path.exists()


def test_recordings_of_many_threads(server: tuple[str, int], tmp_path: Path) -> None:
    """Of many threads at once everything is recorded, or nothing and the recording fails."""
    path = tmp_path / "many.yaml"
    told = ""
    try:
        with imds_vcr(path, record_mode="once"), ThreadPoolExecutor(8) as threads:
            for number in range(40):
                threads.submit(requests.get, "http://{}:{}/{}".format(*server, number))
    except IncompleteRecordingError as error:
        told = str(error)
    kept = len(yaml.safe_load(path.read_text())["interactions"]) if path.exists() else 0
    assert kept == 40 or (kept == 0 and "vcrpy did not see" in told)


@pytest.mark.parametrize("client", ["requests", "http.client", "aiohttp"])
def test_recordings_of_one_thread(server: tuple[str, int], tmp_path: Path, client: str) -> None:
    """One request after the other is recorded whole, whichever client sends it, also over one connection."""
    path = tmp_path / "one.yaml"
    url = "http://{}:{}/".format(*server)

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            for number in range(3):
                async with session.get(f"{url}{number}") as answer:
                    await answer.read()

    with imds_vcr(path, record_mode="once"):
        if client == "aiohttp":
            asyncio.run(ask())
        elif client == "requests":
            with requests.Session() as session:
                for number in range(3):
                    session.get(f"{url}{number}").json()
        else:
            connection = http.client.HTTPConnection(*server)
            for number in range(3):
                connection.request("GET", f"/{number}")
                connection.getresponse().read()
            connection.close()
    assert len(yaml.safe_load(path.read_text())["interactions"]) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only")
def test_the_users_shared_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session neither finds tokens that the user's processes share, when it is recorded, nor leaves dummies there."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("this machine has no /dev/shm")
    path = tmp_path / "shared.yaml"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as real, ImdsEmulator() as imds:
        monkeypatch.setenv("XDG_RUNTIME_DIR", real)

        def token() -> str:
            forget_tokens()
            return ImdsCredential(endpoint=imds.endpoint, shared_cache=True).get_token(VAULT).token

        users = token()
        with imds_vcr(path, record_mode="once") as cassette:
            token()
            assert len(cassette) == 1
        with imds_vcr(path) as cassette:
            assert token() != users
            assert cassette.play_count == 1
        imds.clear_requests()
        assert token() == users
        imds.assert_requests(0)
