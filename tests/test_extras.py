"""What messages say about an extra that is not installed."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from azure_imds_credential import _extras

ROOT = Path(__file__).parent.parent
GIT = "https://git.example/azure-imds-credential"
WHEEL = "file:///home/me/azure_imds_credential-0.1.0-py3-none-any.whl"


class Installed:
    """An installed distribution with this direct_url.json."""

    def __init__(self, record: str | None) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.record


@pytest.mark.parametrize(
    ("record", "source"),
    [
        ({"url": WHEEL, "archive_info": {}}, WHEEL),
        ({"url": "file:///home/me/checkout", "dir_info": {"editable": True}}, "file:///home/me/checkout"),
        ({"url": GIT, "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}, f"git+{GIT}"),
        ({"url": GIT, "vcs_info": {"vcs": "git", "requested_revision": "v0.1.0"}}, f"git+{GIT}@v0.1.0"),
    ],
)
def test_extra_command(record: dict[str, Any], source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command installs from where the package itself was installed."""
    monkeypatch.setattr(_extras, "distribution", lambda _: Installed(json.dumps(record)))
    assert _extras.extra_needed("shared_cache=True", "shared") == (
        "shared_cache=True needs the extra [shared] of azure-imds-credential: "
        f"pip install 'azure-imds-credential[shared] @ {source}'"
    )


@pytest.mark.parametrize("record", [None, "", "null", "[]", '{"url": 1}', "{"])
def test_extra_without_source(record: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip wrote no source down the message names the extra, and no package of an index."""
    monkeypatch.setattr(_extras, "distribution", lambda _: Installed(record))
    message = _extras.extra_needed("shared_cache=True", "shared")
    assert "install azure-imds-credential[shared] from where azure-imds-credential came from" in message
    assert "pip install" not in message


def test_extra_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is imported without being installed has no record either."""

    def missing(name: str) -> Installed:
        raise _extras.PackageNotFoundError(name)

    monkeypatch.setattr(_extras, "distribution", missing)
    assert "from where azure-imds-credential came from" in _extras.extra_needed("x", "shared")


def test_extra_names() -> None:
    """Every extra that the package names in a message is one of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    sources = "".join(path.read_text() for path in (ROOT / "azure_imds_credential").rglob("*.py"))
    named = set(re.findall(r'extra_needed\([^()]*"(\w+)"\)', sources))
    assert named <= set(setup["options.extras_require"])
