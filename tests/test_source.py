"""Which source the environment names."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msal
import pytest
from flavors import VAULT, Flavor
from msal import managed_identity as msal_sources

from azure_imds_credential import ImdsCredential, ImdsUnavailableError, ManagedIdentitySource, detect_source
from azure_imds_credential._endpoint import RateLimiter
from azure_imds_credential._source import VARIABLES, source_and_evidence
from azure_imds_credential.testing import ImdsEmulator

MSAL_NAMES = {
    ManagedIdentitySource.IMDS: msal_sources.DEFAULT_TO_VM,
    ManagedIdentitySource.APP_SERVICE: msal_sources.APP_SERVICE,
    ManagedIdentitySource.CONTAINER_APPS: msal_sources.APP_SERVICE,
    ManagedIdentitySource.AZURE_ARC: msal_sources.AZURE_ARC,
    ManagedIdentitySource.SERVICE_FABRIC: msal_sources.SERVICE_FABRIC,
    ManagedIdentitySource.CLOUD_SHELL: msal_sources.CLOUD_SHELL,
    ManagedIdentitySource.MACHINE_LEARNING: msal_sources.MACHINE_LEARNING,
}


def environments() -> Iterator[dict[str, str]]:
    """Yield every set of the variables: all empty, with any value, and with Cloud Shell's."""
    for count in range(len(VARIABLES) + 1):
        for names in itertools.combinations(VARIABLES, count):
            yield from (dict.fromkeys(names, value) for value in ("", "x", "cloud-shell/1.0"))


@pytest.mark.parametrize("arc_agent", [False, True])
def test_source_is_that_of_msal(monkeypatch: pytest.MonkeyPatch, arc_agent: bool) -> None:
    """For every combination of the variables, empty ones included, the table and msal agree."""
    monkeypatch.setattr(os.path, "exists", lambda path: arc_agent and "himds" in str(path))
    for environ in environments():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            found = source_and_evidence(exists=os.path.exists)[0]
            assert msal.managed_identity.get_managed_identity_source() is MSAL_NAMES[found], environ


def test_variables() -> None:
    """`VARIABLES`, which test aids remove from the environment, holds every variable that is looked at."""
    looked_at = set()

    class Watched(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            looked_at.add(name)
            return super().__contains__(name)

        def get(self, name: str, default: Any = None) -> Any:
            looked_at.add(name)
            return super().get(name, default)

    for environ in environments():
        source_and_evidence(Watched(environ), "linux", lambda _: False)
    assert looked_at == set(VARIABLES)


def test_imds() -> None:
    """With no other source configured it is IMDS."""
    assert detect_source() is ManagedIdentitySource.IMDS


def test_arc_agent() -> None:
    """The agent's file alone names Arc, on Linux and on Windows, and the file is the evidence."""
    for platform, file in (("linux", "himds"), ("win32", "himds.exe")):
        found, evidence = source_and_evidence({}, platform, lambda path, file=file: path.endswith(file))  # type: ignore[misc] # binds the loop's value
        assert found is ManagedIdentitySource.AZURE_ARC
        assert Path(evidence[0].replace("\\", "/")).name == file
    assert source_and_evidence({}, "darwin", lambda _: True)[0] is ManagedIdentitySource.IMDS


@pytest.mark.parametrize("container_apps", [set(), {"CONTAINER_APP_NAME"}, {"CONTAINER_APP_HOSTNAME"}], ids=repr)
@pytest.mark.parametrize(
    "app_service", [{"IDENTITY_ENDPOINT"}, {"IDENTITY_HEADER"}, {"IDENTITY_ENDPOINT", "IDENTITY_HEADER"}]
)
def test_container_apps(app_service: set[str], container_apps: set[str]) -> None:
    """Container Apps is App Service's two variables with a name or a host name beside them."""
    found, evidence = source_and_evidence(dict.fromkeys(app_service | container_apps, "x"), "linux", lambda _: False)
    if len(app_service) < 2:
        assert found is ManagedIdentitySource.IMDS
    else:
        assert found is (ManagedIdentitySource.CONTAINER_APPS if container_apps else ManagedIdentitySource.APP_SERVICE)
        assert set(evidence) == app_service | container_apps


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"IDENTITY_ENDPOINT": "http://127.0.0.1:1", "IDENTITY_HEADER": "h"}, "App Service"),
        ({"IDENTITY_ENDPOINT": "http://127.0.0.1:1", "IMDS_ENDPOINT": "http://127.0.0.1:2"}, "Azure Arc"),
        (
            {"IDENTITY_ENDPOINT": "https://127.0.0.1:1", "IDENTITY_HEADER": "h", "IDENTITY_SERVER_THUMBPRINT": "t"},
            "Service Fabric",
        ),
        (
            {"IDENTITY_ENDPOINT": "http://127.0.0.1:1", "IDENTITY_HEADER": "h", "CONTAINER_APP_NAME": "shop"},
            "Container Apps",
        ),
        (
            {"IDENTITY_ENDPOINT": "http://127.0.0.1:1", "IDENTITY_HEADER": "h", "CONTAINER_APP_HOSTNAME": "shop.io"},
            "Container Apps",
        ),
        ({"MSI_ENDPOINT": "http://127.0.0.1:1", "MSI_SECRET": "s"}, "Azure Machine Learning"),
        ({"AZUREPS_HOST_ENVIRONMENT": "cloud-shell/1.0"}, "Cloud Shell"),
    ],
)
def test_other_source(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str) -> None:
    """The error names the source and the variables; nothing is sent."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with ImdsEmulator() as imds:
        credential = ImdsCredential(endpoint=imds.endpoint)
        with pytest.raises(ImdsUnavailableError) as caught:
            credential.get_token("https://vault.azure.net/.default")
        imds.assert_requests(0)
    assert named in str(caught.value)
    assert all(name in str(caught.value) for name in environment)
    assert caught.value.attempts == 0
    assert caught.value.hint
    assert caught.value.hint in str(caught.value)


CHAIN = """
import azure.core.credentials, azure.identity, sys
from azure_imds_credential import ImdsCredential
try:
    ImdsCredential().get_token("https://vault.azure.net")
except azure.identity.CredentialUnavailableError:
    print("goes on")
"""


def test_chain_goes_on() -> None:
    """A chain goes on where another source is named, also after the first error of a process."""
    environment = {**os.environ, "IDENTITY_ENDPOINT": "http://127.0.0.1:9", "IDENTITY_HEADER": "x"}
    said = subprocess.run([sys.executable, "-c", CHAIN], env=environment, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "goes on"


def test_source_that_appears_meanwhile(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are set while a request is under way end it, and its error says all that every error says."""
    acquire = RateLimiter.acquire

    def set_variables(limiter: RateLimiter, *args: Any) -> bool:
        monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("IDENTITY_HEADER", "dummy")
        return acquire(limiter, *args)

    monkeypatch.setattr(RateLimiter, "acquire", set_variables)
    with pytest.raises(ImdsUnavailableError, match="began to name another token source") as caught:
        flavor.ask(imds.endpoint)
    error = caught.value
    assert (error.endpoint, error.resource, error.identity) == (imds.endpoint, VAULT, "the machine's default identity")
    assert error.hint
    assert error.hint in str(error)
    imds.assert_requests(0)
