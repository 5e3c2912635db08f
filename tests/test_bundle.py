"""`azure-imds doctor --bundle`: what it holds, and what it does not."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from azure_imds_credential._cli import main
from azure_imds_credential._cli.bundle import Scrubber
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, forget_tokens

USER = UserAssigned("payroll-database")
SECRETS = {
    "AZURE_CLIENT_SECRET": "hunter2hunter2",
    "AZURE_TENANT_ID": "33333333-3333-3333-3333-333333333333",
    "HTTP_PROXY": "http://user:hunter2hunter2@proxy.corp.example:3128",
}


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator([SystemAssigned(), USER]) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        yield imds


def bundled(path: Path, *argv: str) -> tuple[int, str, Any]:
    code = main(["doctor", "--bundle", str(path), *argv])
    text = path.read_text()
    return code, text, json.loads(text)


@pytest.mark.parametrize("resource_id", [USER.resource_id, USER.resource_id.upper()], ids=["as-is", "upper"])
@pytest.mark.parametrize("is_assigned", [True, False], ids=["identity", "none"])
def test_bundle_is_scrubbed(imds: ImdsEmulator, tmp_path: Path, is_assigned: bool, resource_id: str) -> None:
    """No identifier, name, token or value of a variable is in the file, whether there is an identity or not."""
    if not is_assigned:
        imds.remove(USER)
    code, text, found = bundled(tmp_path / "bundle.json", "--resource-id", resource_id)
    identifiers = re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", text)
    requests = [found["error"][name] for name in ("request_id", "client_request_id")] if found["error"] else []
    assert code == (0 if is_assigned else 4)
    assert identifiers == requests, "request IDs are for Azure support; nothing else is a GUID"
    lower = text.lower()
    for word in (*SECRETS.values(), "payroll-database", "hunter2", "imds-emulator", "corp.example", *imds.tokens):
        assert word.lower() not in lower, word


@pytest.mark.parametrize("profile", ["vm", "vmss", "aci", "aks"])
def test_bundle_hides_the_machine(imds: ImdsEmulator, tmp_path: Path, profile: str) -> None:
    """The ARM ID of a machine is told without its names, whatever kind of machine it is."""
    with ImdsEmulator([SystemAssigned()], profile=profile) as machine:
        _, _, found = bundled(tmp_path / "bundle.json", "--endpoint", machine.endpoint)
        *_, claims = (decoded(token) for token in machine.tokens)
    names = claims["xms_mirid"].split("/")[2::2]
    told = found["identity"]["resource_id"]
    assert [name for name in names if "." not in name and name in told.split("/")] == []


@pytest.mark.parametrize(
    "argv", [["--client-id", "payroll-app"], ["--resource-id", "payroll-app"], ["--scope", "payroll-app/.default"]]
)
def test_bundle_hides_what_was_typed(
    imds: ImdsEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """A name that was typed is replaced whatever it looks like, and so is the value of a variable."""
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "hunter2")
    code, text, _ = bundled(tmp_path / "bundle.json", *argv)
    assert code != 0
    assert "AZURE_TOKEN_CREDENTIALS=name-" in text
    assert "payroll" not in text
    assert "hunter2" not in text


def decoded(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_bundle_contents(imds: ImdsEmulator, tmp_path: Path) -> None:
    """Findings, versions and names of variables are in the file; the same thing has the same word throughout."""
    _, _, found = bundled(tmp_path / "bundle.json", "--client-id", USER.client_id)
    assert {finding["check"] for finding in found["findings"]} >= {
        "source",
        "endpoint",
        "reachable",
        "identity",
        "cost",
    }
    assert found["usable"] is True
    assert found["versions"]["python"] == sys.version.split()[0]
    assert {"azure-core", "msal", "azure-imds-credential", "platform"} <= set(found["versions"])
    assert set(SECRETS) <= set(found["environment"])
    [told] = [
        finding["says"] for finding in found["findings"] if finding["check"] == "identity" and finding["level"] == "ok"
    ]
    assert f"client ID {found['identity']['client_id']}," in told
    assert found["identity"]["audience"] == "https://management.azure.com"


def test_bundle_mode(imds: ImdsEmulator, tmp_path: Path) -> None:
    """Only the owner can read the file, whatever the umask allows."""
    before = os.umask(0)
    try:
        bundled(tmp_path / "bundle.json")
    finally:
        os.umask(before)
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "bundle.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("where", ["there", "link", "no/folder", "nul\0"])
def test_bundle_overwrites_nothing(
    imds: ImdsEmulator, capsys: pytest.CaptureFixture[str], tmp_path: Path, where: str
) -> None:
    """A file or a link that is there stays as it is; what cannot be written is said, with exit code 2."""
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    code = main(["doctor", "--bundle", f"{tmp_path}/{where}"])
    assert code == 2
    assert capsys.readouterr().err.startswith("azure-imds: --bundle: ")
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("a 11111111-2222-3333-4444-555555555555 b", "a guid-1 b"),
        ("AAAAAAAA-2222-3333-4444-555555555555 aaaaaaaa-2222-3333-4444-555555555555", "guid-1 guid-1"),
        ("eyJ0eXAi.eyJhdWQi.c2ln", "token-1"),
        ("jane.doe+x@corp.example", "mail-1"),
        ("10.1.2.3 and 10.1.2.4 and 10.1.2.3", "address-1 and address-2 and address-1"),
        ("http://169.254.169.254 http://127.0.0.1:80", "http://169.254.169.254 http://127.0.0.1:80"),
        ("http://imds.corp.example:8169/x", "http://host-1:8169/x"),
        ("https://myvault.vault.azure.net/x", "https://host-1/x"),
        ("https://vault.azure.net", "https://vault.azure.net"),
        ("/home/jane/.azure", "/home/user-1/.azure"),
        ("C:\\Users\\jane\\x", "C:\\Users\\user-1\\x"),
        (
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/pay/x/virtualMachines/web-1",
            "/subscriptions/guid-1/resourceGroups/name-1/x/virtualMachines/name-2",
        ),
        (
            "/resourceGroups/pay/providers/Microsoft.ContainerInstance/containerGroups/pay-1/x/web: refused",
            "/resourceGroups/name-1/providers/Microsoft.ContainerInstance/containerGroups/name-2/x/name-3: refused",
        ),
        ("/providers/Microsoft.Web/sites/name-1", "/providers/Microsoft.Web/sites/name-1"),
        ("fe80::1ff:fe23:4567:890a [fd00::4] 00:0d:3a:01:02:03", "address-1 [address-2] address-3"),
        ("at 2026-11-27 00:12:34 UTC, [::1]", "at 2026-11-27 00:12:34 UTC, [::1]"),
        ("tenant contoso.onmicrosoft.com", "tenant host-1.onmicrosoft.com"),
        ("1.2.3", "1.2.3"),
        ("nothing of a user", "nothing of a user"),
    ],
)
def test_scrubbed(text: str, scrubbed: str) -> None:
    """What names a person, an identity or a place becomes a word and a number; addresses of IMDS and scopes stay."""
    assert Scrubber().scrub(text) == scrubbed


def test_scrubbed_values() -> None:
    """Lists and members are scrubbed; of claims only harmless values stay; request IDs stay."""
    guid = "11111111-2222-3333-4444-555555555555"
    value = {"a": [guid, 1, None], "request_id": guid, "claims": {"aud": "x", "oid": guid, "groups": ["g"], "exp": 1}}
    assert Scrubber().scrub(value) == {
        "a": ["guid-1", 1, None],
        "request_id": guid,
        "claims": {"aud": "x", "oid": "...", "groups": "...", "exp": 1},
    }
