"""What proofs against other people's software need: the servers, their certificates, an emulator that is found."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from environment import MACHINE
from proving import CACHE, HERE, Flavor, run, tool

from azure_imds_credential.testing import ImdsEmulator, forget_tokens


@pytest.fixture(params=["sync", "aio"])
def flavor(request: pytest.FixtureRequest) -> Flavor:
    return Flavor(request.param)


@pytest.fixture(autouse=True)
def _no_tokens_of_others() -> None:
    forget_tokens()


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    """An emulator that credentials without an endpoint find."""
    with ImdsEmulator() as emulator:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", emulator.endpoint)
        yield emulator


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of this run: what is signed by it is verified as on Azure, never waved through."""
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate chain and key of a server on this machine."""
    folder = tmp_path_factory.mktemp("server")
    chain, key = folder / "chain.pem", folder / "key.pem"
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)
    return str(chain), str(key)


@pytest.fixture(scope="session")
def peers() -> Path:
    """The servers from npm, installed as the lock file says, once per lock file."""
    folder = HERE / "peers"
    stamp, wanted = folder / "node_modules" / ".installed-from", (folder / "package-lock.json").read_text()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be installing
        if not stamp.exists() or stamp.read_text() != wanted:
            tool("node")
            run(tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder, env=MACHINE)
            stamp.write_text(wanted)
    return folder / "node_modules"
