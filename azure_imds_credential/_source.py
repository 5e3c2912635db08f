"""Which managed identity source the environment names. IMDS is the one that is left when it names none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from enum import Enum

# Where the Azure Arc agent lives, as msal.get_managed_identity_source() looks for it.
_ARC_AGENTS = {
    "linux": "/opt/azcmagent/bin/himds",
    "win32": r"${ProgramFiles}\AzureConnectedMachineAgent\himds.exe",
}


class ManagedIdentitySource(Enum):
    """Where this environment says that managed identity tokens come from."""

    IMDS = "the Instance Metadata Service"
    APP_SERVICE = "App Service"
    CONTAINER_APPS = "Container Apps"
    AZURE_ARC = "Azure Arc"
    SERVICE_FABRIC = "Service Fabric"
    CLOUD_SHELL = "Cloud Shell"
    MACHINE_LEARNING = "Azure Machine Learning"


# The first row whose variables are all set wins, empty ones too: msal looks at them so, and a test compares the two.
_SOURCES = (
    (ManagedIdentitySource.SERVICE_FABRIC, ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT")),
    # Container Apps speaks App Service's protocol, so msal does not tell the two apart. Jobs have no host name:
    # https://learn.microsoft.com/azure/container-apps/environment-variables#built-in-environment-variables
    (ManagedIdentitySource.CONTAINER_APPS, ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "CONTAINER_APP_NAME")),
    (ManagedIdentitySource.CONTAINER_APPS, ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "CONTAINER_APP_HOSTNAME")),
    (ManagedIdentitySource.APP_SERVICE, ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")),
    (ManagedIdentitySource.MACHINE_LEARNING, ("MSI_ENDPOINT", "MSI_SECRET")),
)

# All that is looked at. azure-identity and msal look at the same ones, but for those of Container Apps.
VARIABLES = (
    "AZUREPS_HOST_ENVIRONMENT",
    "CONTAINER_APP_HOSTNAME",
    "CONTAINER_APP_NAME",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "IDENTITY_SERVER_THUMBPRINT",
    "IMDS_ENDPOINT",
    "MSI_ENDPOINT",
    "MSI_SECRET",
)


def source_and_evidence(
    environ: Mapping[str, str] | None = None,
    platform: str = sys.platform,
    exists: Callable[[str], bool] = os.path.exists,
) -> tuple[ManagedIdentitySource, tuple[str, ...]]:
    """Return which source is named, and by which variables or file."""
    environ = os.environ if environ is None else environ
    for source, variables in _SOURCES:
        if all(name in environ for name in variables):
            return source, variables
    if "IDENTITY_ENDPOINT" in environ and "IMDS_ENDPOINT" in environ:
        if environ["IDENTITY_ENDPOINT"]:
            return ManagedIdentitySource.AZURE_ARC, ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT")
    elif platform in _ARC_AGENTS and exists(os.path.expandvars(_ARC_AGENTS[platform])):
        return ManagedIdentitySource.AZURE_ARC, (os.path.expandvars(_ARC_AGENTS[platform]),)
    if environ.get("AZUREPS_HOST_ENVIRONMENT", "").startswith("cloud-shell"):
        return ManagedIdentitySource.CLOUD_SHELL, ("AZUREPS_HOST_ENVIRONMENT",)
    return ManagedIdentitySource.IMDS, ()


def detect_source() -> ManagedIdentitySource:
    """Return which managed identity source the environment names, without a request.

    Returns:
        `ManagedIdentitySource.IMDS` when no other source is configured; only then does a credential ask IMDS.
    """
    return source_and_evidence()[0]
