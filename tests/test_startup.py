"""What importing the package loads: modules are counted, since times differ from machine to machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from azure_imds_credential.testing import ImdsEmulator

# Each of these takes longer to import than this whole package.
HEAVY = ("aiohttp", "asyncio", "concurrent.futures", "cryptography", "dataclasses", "msal", "requests", "urllib3")
# What every client of Azure's SDK has loaded anyway, and what this package builds on.
GROUND = "import azure.core.credentials, azure.core.credentials_async, azure.core.exceptions"
CLASSES = ("from azure_imds_credential import ImdsCredential", "from azure_imds_credential.aio import ImdsCredential")


def loaded_by(statement: str, ground: str = GROUND) -> set[str]:
    """Run a statement in a fresh interpreter and return the modules that it loaded beyond the ground."""
    code = f"import json, sys\n{ground}\nbefore = set(sys.modules)\n{statement}\n"
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("statement", CLASSES)
def test_nothing_heavy(statement: str) -> None:
    """Importing a credential class loads neither msal nor an HTTP stack nor an event loop."""
    loaded = loaded_by(statement, "import traceback")  # which azure-core loads; in Python 3.14 it needs dataclasses
    assert "azure_imds_credential._options" in loaded
    assert not [name for name in loaded for heavy in HEAVY if name == heavy or name.startswith(f"{heavy}.")]


@pytest.mark.parametrize("statement", CLASSES)
def test_little_else(statement: str) -> None:
    """Beside azure-core, importing a credential class loads this package's own modules and next to nothing else."""
    loaded = loaded_by(statement)
    own = {name for name in loaded if name.partition(".")[0] == "azure_imds_credential"}
    assert loaded - own <= {"_contextvars", "contextvars", "_weakrefset", "weakref", "gc"}
    assert not [name for name in own if name.startswith("azure_imds_credential.testing")]


def test_constructor() -> None:
    """Making a credential, and asking which source there is, load neither msal nor an HTTP stack."""
    loaded = loaded_by(
        "from azure_imds_credential import ImdsCredential, detect_source\nImdsCredential()\ndetect_source()"
    )
    assert not loaded & set(HEAVY)


def test_first_token() -> None:
    """The first request loads msal and requests, but no event loop, no aiohttp and nothing of the testing kit."""
    with ImdsEmulator() as imds:
        statement = "from azure_imds_credential import ImdsCredential\n"
        statement += f"ImdsCredential(endpoint={imds.endpoint!r}).get_token('https://vault.azure.net/.default')"
        loaded = loaded_by(statement)
    assert {"msal", "requests"} <= loaded
    assert not loaded & {"asyncio", "aiohttp", "azure.identity"}
    assert not [name for name in loaded if name.startswith("azure_imds_credential.testing")]


def test_cached_token() -> None:
    """A call that a cached token serves imports nothing at all."""
    with ImdsEmulator() as imds:
        ground = "from azure_imds_credential import ImdsCredential\n"
        ground += f"credential = ImdsCredential(endpoint={imds.endpoint!r})\n"
        ground += "credential.get_token('https://vault.azure.net/.default')"
        assert loaded_by("credential.get_token('https://vault.azure.net/.default')", ground) == set()
