"""Libraries in the same process that change what Python does: another event loop, a cache under requests."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from flavors import VAULT

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential.testing import ImdsEmulator


def _needs(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed; the extra `test` has it")


@pytest.mark.parametrize("is_cached", [False, True])
def test_trio_is_told_what_to_do(imds: ImdsEmulator, is_cached: bool) -> None:
    """Under trio the aio class raises TypeError that names the sync class and the thread; nothing is sent."""
    _needs("trio")
    import trio

    sync = azure_imds_credential.ImdsCredential(endpoint=imds.endpoint)
    aio = azure_imds_credential.aio.ImdsCredential(endpoint=imds.endpoint)
    if is_cached:
        sync.get_token(VAULT)
    with pytest.raises(TypeError, match=r"asyncio.*trio.*sync class.*to_thread\.run_sync"):
        trio.run(aio.get_token, VAULT)
    imds.assert_requests(int(is_cached))


def test_sync_class_serves_trio(imds: ImdsEmulator) -> None:
    """What the error advises works: the sync class in a thread of trio's."""
    _needs("trio")
    import trio

    credential = azure_imds_credential.ImdsCredential(endpoint=imds.endpoint)

    async def main() -> str:
        tokens: list[str] = []

        async def ask() -> None:
            tokens.append((await trio.to_thread.run_sync(credential.get_token, VAULT)).token)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
        (token,) = set(tokens)
        return token

    assert trio.run(main) == imds.tokens[0]
    imds.assert_requests(1)


# A caching library puts its own class in place of requests' Session, for the whole process.
CACHED = """
import os, sys
import requests, requests_cache
{before}
from azure_imds_credential import ImdsCredential
{between}
import azure_imds_credential._imds.client
{after}
assert isinstance(requests.Session(), requests_cache.CachedSession)
from azure.core.pipeline.transport import RequestsTransport
credential = ImdsCredential(endpoint={endpoint!r}, transport={transport})
first = credential.get_token("https://vault.azure.net").token
second = credential.get_token("https://vault.azure.net", force_refresh=True).token
assert len(requests_cache.get_cache().responses) == 0, "a token was stored by the cache"
print("both")
"""
INSTALL = "requests_cache.install_cache('tokens', backend='memory', allowable_codes=range(100, 600))"


@pytest.mark.parametrize("transport", ["None", "RequestsTransport()"])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_cache_under_requests_stores_no_token(imds: ImdsEmulator, when: str, transport: str) -> None:
    """Installed before the import, before the first request or after it: no answer is stored or served by it."""
    _needs("requests_cache")
    steps = dict.fromkeys(("before", "between", "after"), "") | {when: INSTALL}
    code = CACHED.format(endpoint=imds.endpoint, transport=transport, **steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "both", done.stderr
    imds.assert_requests(2)


# Tools for tracing and for tests put a function in place of the class.
NO_CLASS = """
import requests, requests.sessions
genuine = requests.Session
requests.Session = requests.sessions.Session = lambda: genuine()
from azure_imds_credential import ImdsCredential
print(ImdsCredential(endpoint={endpoint!r}).get_token("https://vault.azure.net").token)
"""


def test_function_in_place_of_the_session(imds: ImdsEmulator) -> None:
    """A function in place of requests' Session changes nothing: the genuine class is found without it."""
    code = NO_CLASS.format(endpoint=imds.endpoint)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() in imds.tokens, done.stderr


# pyfakefs does the same: what is imported meanwhile is gone afterwards.
FORGOTTEN = """
import sys
from unittest import mock
{before}
from azure_imds_credential import ImdsCredential
with mock.patch.dict(sys.modules, other=mock.MagicMock()):
    print(ImdsCredential(endpoint={endpoint!r}).get_token("https://vault.azure.net").token)
for name in "abc":
    print(ImdsCredential(endpoint={endpoint!r}).get_token(f"https://{{name}}.example").token)
"""


@pytest.mark.parametrize("before", ["", "import azure.keyvault.secrets", "import requests"])
def test_first_request_while_modules_are_patched(imds: ImdsEmulator, before: str) -> None:
    """What the first request imported serves the process, also where a test takes it out of `sys.modules`."""
    code = FORGOTTEN.format(endpoint=imds.endpoint, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == imds.tokens, done.stderr
    imds.assert_requests(4)
