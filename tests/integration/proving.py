"""Tools that may be missing, commands, and Azure's clients in both flavors."""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import azure_imds_credential
import azure_imds_credential.aio

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
INSTALL_SECONDS = 600  # for a registry on a slow day


def lacking(reason: str) -> None:
    """Fail in CI, where everything must be tried; skip elsewhere, where a tool may well be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI tries everything", pytrace=False)
    pytest.skip(reason)


def needs(*modules: str) -> None:
    """Go on only where these are installed."""
    for module in modules:
        if find_spec(module) is None:
            lacking(f"{module} is not installed; the extra `adapters` has it")


def sample_environment(ca_file: str) -> dict[str, str]:
    """Return the environment of a sample whose libraries trust this authority."""
    return {**os.environ, **dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), ca_file)}


def free_port() -> int:
    """Return a port on which nothing listens now.

    It is below those that a system gives to outgoing connections and to who binds to 0: one of those may be taken
    before the server starts. Hypothesis seeds `random`, so the choice is the system's.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("a hundred ports were taken")


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        lacking(f"there is no {name} on this machine")
    assert path is not None
    return path


def run(*command: str | Path, seconds: float = INSTALL_SECONDS, **more: Any) -> str:
    """Run a command to its end and return what it printed; its words are in the failure if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, **more)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return str(done.stdout)


class Flavor:
    """The sync or the async half of a package, so that one test reads the same for both."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.credential: Any = (azure_imds_credential if name == "sync" else azure_imds_credential.aio).ImdsCredential

    def module(self, package: str) -> Any:
        return import_module(package if self.name == "sync" else f"{package}.aio")

    def run(self, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a story; sync clients are told in it as well, with nothing to wait for."""
        asyncio.run(story())


async def settled(value: Any) -> Any:
    """What a client's method gave: awaited when it is awaitable, the end of it when it is a poller."""
    if inspect.isawaitable(value):
        value = await value
    if hasattr(value, "result") and hasattr(value, "done"):
        value = await settled(value.result())
    return value


@asynccontextmanager
async def opened(client: Any) -> AsyncIterator[Any]:
    """A client of either flavor, closed in the end."""
    try:
        yield client
    finally:
        await settled(client.close())


async def listed(pages: Any) -> list[Any]:
    return [one async for one in pages] if hasattr(pages, "__aiter__") else list(pages)
