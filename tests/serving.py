"""serve in a thread of the test's process, for tests of what it answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raw_http import Raw, send

from azure_imds_credential.serve._program import ServeOptions, Service, listening_socket
from azure_imds_credential.testing import ImdsEmulator

TOKEN_PATH = "/metadata/identity/oauth2/token"
VAULT = "https://vault.azure.net"
TARGET = f"{TOKEN_PATH}?api-version=2018-02-01&resource={VAULT}"


@dataclass
class Serving:
    """A running serve, and how to ask it."""

    service: Service
    loop: asyncio.AbstractEventLoop
    told: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def ask(self, target: str = TARGET, *more: str, metadata: bool = True, method: str = "GET") -> Raw:
        """Send one request as a client of IMDS does, with further header lines, and read until the connection ends."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}", *["Metadata: true"] * metadata, *more]
        return send(self.url, "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))

    def token(self, target: str = TARGET) -> str:
        """Ask for a token, and return it."""
        answer = self.ask(target)
        assert answer.status == 200, answer.data
        return str(answer.json["access_token"])

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the loop of serve."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def call(self, function: Any) -> Any:
        """Call a function on the loop of serve."""

        async def called() -> Any:
            return function()

        return self.run(called())


@contextmanager
def serving(imds: ImdsEmulator | str, **options: Any) -> Iterator[Serving]:
    """Run serve before an emulator, or before an URL, on a free port."""
    endpoint = imds if isinstance(imds, str) else imds.endpoint
    chosen = ServeOptions(port=0, endpoint=endpoint, **options)
    ready, ended = threading.Event(), asyncio.Event()
    running: list[Serving] = []
    failed: list[BaseException] = []
    told: list[tuple[str, Mapping[str, Any]]] = []

    async def run() -> None:
        service = Service(chosen, listening_socket(chosen), lambda event, facts: told.append((event, facts)))
        async with service:
            running.append(Serving(service, asyncio.get_running_loop(), told))
            ready.set()
            await ended.wait()

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
            ready.set()

    worker = threading.Thread(target=thread, name="serve")
    worker.start()
    ready.wait(30)
    try:
        if failed:
            raise failed[0]
        yield running[0]
    finally:
        if running:
            running[0].loop.call_soon_threadsafe(ended.set)
        worker.join(30)
        assert not worker.is_alive()


def members(answer: Raw) -> dict[str, Any]:
    """Return the members of an answer in their order; Python's dict keeps it."""
    found = json.loads(answer.body)
    assert isinstance(found, dict)
    return found
