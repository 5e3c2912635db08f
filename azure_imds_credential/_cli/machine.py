"""What a machine shows of itself unasked: variables, files, names of vendors. Signs explain; none decides."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple

from .._endpoint import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE
from .._imds.machine import has_proxy_agent, plainly_not_azure
from .._source import VARIABLES, ManagedIdentitySource, source_and_evidence

# https://learn.microsoft.com/azure/storage/common/storage-use-azcopy-authorize-managed-identity and
# https://registry.terraform.io/providers/hashicorp/azurerm/latest/docs/guides/managed_service_identity
_OTHER_PROGRAMS = {
    "AZCOPY_MSI_CLIENT_ID": "AzCopy",
    "AZCOPY_MSI_RESOURCE_STRING": "AzCopy",
    "ARM_CLIENT_ID": "Terraform",
    "ARM_MSI_ENDPOINT": "Terraform",
}

Level = Literal["ok", "note", "problem"]

# The asset tag of every Azure VM's chassis, as cloud-init's Azure data source looks for it.
# https://cloudinit.readthedocs.io/en/latest/reference/datasources/azure.html
_AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"
_PROXY_VARIABLES = ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
# All that is looked at here, in capitals.
KNOWN_VARIABLES = frozenset(
    {
        *VARIABLES, *_PROXY_VARIABLES, *_OTHER_PROGRAMS, ENDPOINT_VARIABLE, "HTTPS_PROXY", "KUBERNETES_SERVICE_HOST",
        "WSL_DISTRO_NAME", "AZURE_TOKEN_CREDENTIALS", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET",
        "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_PASSWORD", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
    }
)  # fmt: skip
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


# What shows a container, most telling first: files, and parts of a control group's path.
_CONTAINERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Kubernetes", (), ("kubepods",)),
    ("Podman", ("/run/.containerenv",), ("libpod",)),
    ("Docker", ("/.dockerenv",), ("/docker/", "docker-")),
    ("containerd", (), ("containerd",)),
    ("LXC", (), ("/lxc/", "lxc.payload")),
)


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

    def container(self) -> str | None:
        """Return the kind of container this looks like; None if it is none.

        The files are those that the programs leave in each container. Control groups name the container where their
        namespace is the host's (version 1, and version 2 without a namespace of its own), cgroups(7).
        """
        groups = f"{self.read('/proc/self/cgroup')}\n{self.read('/proc/1/cgroup')}"
        for kind, files, parts in _CONTAINERS:
            if any(map(self.exists, files)) or any(part in groups for part in parts):
                return kind
        return self.read("/run/systemd/container") or None  # https://systemd.io/CONTAINER_INTERFACE

    def place(self) -> Place:
        """Return what kind of machine this looks like."""
        kernel = self.read("/proc/sys/kernel/osrelease").lower()
        container = self.container() is not None
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
    """Yield what there is to see before anything is sent.

    Args:
        around: The machine.
        endpoint: The base URL that the caller named, if any.
    """
    yield _source(around)
    yield from _leftovers(around)
    yield _endpoint(around, endpoint)
    yield _place(around)
    if has_proxy_agent(around.exists):
        yield Finding(
            "in between",
            "note",
            "The Guest Proxy Agent of Metadata Security Protocol is installed here: it decides which processes may ask "
            "IMDS.",
            "Nothing, unless IMDS refuses this process: then see the agent's rules (ProxyAgentSettings of the VM).",
        )
    yield from _proxies(around)
    yield from _other_readers(around)


def _other_readers(around: Surroundings) -> Iterator[Finding]:
    """Yield where other SDKs are led by variables that this package does not read. Their values may be secret.

    DefaultAzureCredential tries them in this order:
    https://learn.microsoft.com/azure/developer/python/sdk/authentication/credential-chains#defaultazurecredential-overview
    """
    environ = {name for name, value in around.environ.items() if value}
    principal = {"AZURE_TENANT_ID", "AZURE_CLIENT_ID"} <= environ
    secret = environ & {"AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_PASSWORD"}
    if "AZURE_TOKEN_CREDENTIALS" in environ:
        yield Finding(
            "other SDKs",
            "note",
            f"AZURE_TOKEN_CREDENTIALS={around.environ['AZURE_TOKEN_CREDENTIALS']} says which credentials "
            "DefaultAzureCredential tries. This package does not read it.",
            "Nothing, unless a program with DefaultAzureCredential gets another identity than you expect.",
        )
    if principal and secret:
        yield Finding(
            "other SDKs",
            "note",
            f"AZURE_CLIENT_ID, AZURE_TENANT_ID, {', '.join(sorted(secret))} are set: DefaultAzureCredential gets "
            "tokens of that service principal, and does not ask IMDS. This package does.",
            "Unset them if both are to speak for the same identity.",
        )
    elif principal and "AZURE_FEDERATED_TOKEN_FILE" in environ:
        yield Finding(
            "other SDKs",
            "note",
            "AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE are set: DefaultAzureCredential gets tokens "
            "of workload identity, and does not ask IMDS. This package does.",
            "Use azure.identity.WorkloadIdentityCredential if that identity is the one you mean.",
        )
    elif "AZURE_CLIENT_ID" in around.environ:
        yield Finding(
            "identity",
            "note",
            "AZURE_CLIENT_ID is set. DefaultAzureCredential reads it; this package does not.",
            "If it names a user-assigned identity, pass it on: client_id=os.environ['AZURE_CLIENT_ID'].",
        )
    for variable, program in _OTHER_PROGRAMS.items():
        if variable in environ:
            yield Finding(
                "other SDKs",
                "note",
                f"{variable} is set. {program} reads it; this package does not.",
                "Nothing, unless that program gets another identity than you expect.",
            )


def other_source(around: Surroundings) -> Finding | None:
    """Return that the environment names another source than IMDS, so that nothing may be sent; None if it does not."""
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
    place, container = around.place(), around.container()
    says = f"This looks like {place.value}{f' ({container})' if container else ''}."
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


def listener_of(port: int) -> str | None:
    """Return the program that listens on a TCP port of this machine; None where that is not known (Linux only).

    /proc/net/tcp has a line per socket: the local address as hex, the state (0A: LISTEN) and the inode, proc(5).
    """
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(table).splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{words[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(each.readlink()) in inodes for each in (process / "fd").iterdir()):
                return f"{_read(f'{process}/comm') or 'a program'} (process {process.name}) listens on it"
        except OSError:  # it has ended, or belongs to another user
            continue
    return None


def cannot_listen(error: OSError, host: str, port: int) -> str:
    """Return why a command cannot listen on an address, and how to go on."""
    if error.errno == errno.EADDRINUSE:
        holder = listener_of(port) or (
            f"perhaps by another `azure-imds serve` or `emulate`; `ss -ltnp sport = :{port}` on Linux and "
            f"`lsof -i :{port}` elsewhere show what listens there"
        )
        return f"port {port} of {host} is taken: {holder}. Choose another with --port, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is for privileged users: choose one from 1024 on with --port"
    return f"cannot listen on {host}: {error.strerror or error}"
