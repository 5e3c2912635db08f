"""What a machine shows of itself unasked: variables, files, names of vendors. Signs explain; none decides."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple

from .._configuration import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE
from .._hints import plainly_not_azure
from .._source import ManagedIdentitySource, source_and_evidence

Level = Literal["ok", "note", "problem"]

# The asset tag of every Azure VM's chassis, as cloud-init's Azure data source looks for it.
# https://cloudinit.readthedocs.io/en/latest/reference/datasources/azure.html
_AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"
_LINK_LOCAL = "169.254.169.254"
_SOURCE_VARIABLES = ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT",
                     "MSI_ENDPOINT", "MSI_SECRET")  # fmt: skip


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        check: What was looked at.
        level: "ok", "note" (unusual, works nevertheless) or "problem" (there is no token because of it).
        says: What was found.
        next: What to do about it.
    """

    check: str
    level: Level
    says: str
    next: str = "Nothing to do."


class Place(Enum):
    """What kind of machine this looks like, most telling first."""

    POD = "a Kubernetes pod"
    DOCKER_DESKTOP = "a container of Docker Desktop"
    WSL = "Windows Subsystem for Linux"
    CONTAINER = "a container"
    AZURE_VM = "an Azure VM"
    ELSEWHERE = "a machine of another vendor"
    UNKNOWN = "a machine that shows nothing of where it is"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Surroundings:
    """Everything that is looked at, so that a test can stage a machine.

    Args:
        environ: The environment.
        platform: As `sys.platform`.
        read: Gives the text of a file, "" where it cannot be read.
        exists: Whether there is a file.
        wall_clock: Epoch seconds.
    """

    environ: Mapping[str, str]
    platform: str = sys.platform
    read: Callable[[str], str] = _read
    exists: Callable[[str], bool] = os.path.exists
    wall_clock: Callable[[], float] = time.time

    def place(self) -> Place:
        """Say what kind of machine this looks like."""
        kernel = self.read("/proc/sys/kernel/osrelease").lower()
        container = self.exists("/.dockerenv") or self.exists("/run/.containerenv")
        if "KUBERNETES_SERVICE_HOST" in self.environ:
            return Place.POD
        if container and ("linuxkit" in kernel or "microsoft" in kernel):
            return Place.DOCKER_DESKTOP
        if "microsoft" in kernel or "WSL_DISTRO_NAME" in self.environ:
            return Place.WSL
        if container:
            return Place.CONTAINER
        if self.read("/sys/class/dmi/id/chassis_asset_tag") == _AZURE_ASSET_TAG:
            return Place.AZURE_VM
        return Place.ELSEWHERE if plainly_not_azure(self.platform, self.read) else Place.UNKNOWN


def signs(around: Surroundings, endpoint: str | None) -> Iterator[Finding]:
    """Say what there is to see before anything is sent.

    Args:
        around: The machine.
        endpoint: The base URL that the caller named, if any.
    """
    yield _source(around)
    yield from _leftovers(around)
    yield _endpoint(around, endpoint)
    yield _place(around)
    yield from _proxies(around)
    if "AZURE_CLIENT_ID" in around.environ:
        yield Finding(
            "identity",
            "note",
            "AZURE_CLIENT_ID is set. DefaultAzureCredential reads it; this package does not.",
            "If it names a user-assigned identity, pass it on: client_id=os.environ['AZURE_CLIENT_ID'].",
        )


def other_source(around: Surroundings) -> Finding | None:
    """Say that the environment names another source than IMDS, so that nothing may be sent; None if it does not."""
    source = _source(around)
    return source if source.level == "problem" else None


def _source(around: Surroundings) -> Finding:
    source, evidence = source_and_evidence(around.environ, around.platform, around.exists)
    if source is ManagedIdentitySource.IMDS:
        return Finding("source", "ok", "No variable names another managed identity source, so it is IMDS.")
    return Finding(
        "source",
        "problem",
        f"{', '.join(evidence)} says that managed identity tokens come from {source.value} here. IMDS was not asked.",
        "Use azure.identity.ManagedIdentityCredential there. On a plain VM unset the variables (or remove the agent).",
    )


def _leftovers(around: Surroundings) -> Iterator[Finding]:
    source, evidence = source_and_evidence(around.environ, around.platform, around.exists)
    left = [name for name in _SOURCE_VARIABLES if name in around.environ and name not in evidence]
    if left and source is ManagedIdentitySource.IMDS:
        yield Finding(
            "source",
            "note",
            f"{', '.join(left)} is set, but not the variables that go with it, so no source is named by it.",
            "Unset it: other libraries may read it otherwise.",
        )


def _endpoint(around: Surroundings, endpoint: str | None) -> Finding:
    if endpoint is not None:
        return Finding("endpoint", "ok", f"{endpoint}, as you asked.")
    if around.environ.get(ENDPOINT_VARIABLE):
        return Finding(
            "endpoint",
            "note",
            f"{around.environ[ENDPOINT_VARIABLE]} is asked instead of {DEFAULT_ENDPOINT}: {ENDPOINT_VARIABLE} says so.",
            "Unset it unless an emulator or a proxy of your own is meant.",
        )
    return Finding("endpoint", "ok", f"{DEFAULT_ENDPOINT}, the address of IMDS on every Azure VM.")


def _place(around: Surroundings) -> Finding:
    place = around.place()
    says = f"This looks like {place.value}."
    if place is Place.AZURE_VM:
        return Finding("machine", "ok", says)
    if place is Place.POD:
        if "AZURE_FEDERATED_TOKEN_FILE" in around.environ:
            return Finding(
                "machine",
                "note",
                f"{says} AZURE_FEDERATED_TOKEN_FILE is set: workload identity is set up for it.",
                "Use azure.identity.WorkloadIdentityCredential: IMDS would give the node's identity, not the pod's.",
            )
        return Finding(
            "machine",
            "note",
            f"{says} IMDS gives it the identities of its node, which every pod there shares.",
            "For an identity of the pod's own set up workload identity.",
        )
    if place in (Place.CONTAINER, Place.UNKNOWN):
        return Finding("machine", "ok", says)
    return Finding(
        "machine",
        "note",
        f"{says} IMDS exists on Azure only.",
        "To develop here run `azure-imds emulate` and set AZURE_POD_IDENTITY_AUTHORITY_HOST to its URL.",
    )


def _proxies(around: Surroundings) -> Iterator[Finding]:
    """Name the variables, not their values: those may hold a password."""
    proxies = [name for name in around.environ if name.lower() in ("http_proxy", "all_proxy") and around.environ[name]]
    if not proxies:
        return
    exempt = ",".join(around.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    if _LINK_LOCAL in exempt or exempt.strip(",") == "*":
        yield Finding("proxies", "ok", f"{', '.join(sorted(proxies))} is set, and NO_PROXY exempts {_LINK_LOCAL}.")
        return
    yield Finding(
        "proxies",
        "note",
        f"{', '.join(sorted(proxies))} is set. Requests to IMDS bypass it here; those of other tools may not.",
        f"Add {_LINK_LOCAL} to NO_PROXY.",
    )
