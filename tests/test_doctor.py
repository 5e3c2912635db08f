"""`azure-imds doctor` on staged machines: each names the cause and the next step, and whether the identity works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from flavors import StillTime, VirtualTime

from azure_imds_credential import _options
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._cli import doctor
from azure_imds_credential._cli.doctor import Report, examine
from azure_imds_credential._cli.machine import Place, Surroundings
from azure_imds_credential._cli.text import Terminal
from azure_imds_credential.serve import SERVE_HEADER
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, faults

SCOPE = "https://vault.azure.net/.default"
AZURE = {"/sys/class/dmi/id/chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}
EC2 = {"/sys/class/dmi/id/sys_vendor": "Amazon EC2"}
WSL_KERNEL = {"/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2"}
DOCKER_DESKTOP_KERNEL = {"/proc/sys/kernel/osrelease": "6.10.14-linuxkit"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
FEDERATED = {"AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token"}
ARC_AGENT = "/opt/azcmagent/bin/himds"
USER = UserAssigned("app")


@dataclass(frozen=True)
class Machine:
    """A machine, and what the doctor must say of it."""

    name: str
    check: str
    level: str
    says: str
    next: str
    usable: bool = False
    environ: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=lambda: dict(AZURE))
    platform: str = "linux"
    clock_ahead: float = 0.0
    identities: tuple[Any, ...] = (SystemAssigned(),)
    faults: tuple[Any, ...] = ()
    down: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    before: Callable[[ImdsEmulator], None] | None = None
    never: str = ""  # what would be wrong advice
    at_the_usual_address: bool = True  # where the emulator stands for IMDS


def aged(imds: ImdsEmulator) -> None:
    """Have the machine hold a token that was issued 20 h ago."""
    imds.advance(-20 * 3600)
    examine(SCOPE, endpoint=imds.endpoint)
    imds.advance(20 * 3600)


OTHER_IDENTITY = faults.members(client_id="99999999-9999-9999-9999-999999999999")
ALWAYS = 3  # as often as the doctor asks

MACHINES = [
    Machine("a healthy VM", "identity", "ok", "speaks for client ID", "Nothing", usable=True),
    Machine(
        "a VM without an identity", "identity", "problem", "Identity not found", "az vm identity assign", identities=()
    ),
    Machine(
        "several identities, none named",
        "identities",
        "problem",
        "Multiple user assigned",
        "az vm identity show",
        identities=(UserAssigned("a"), UserAssigned("b")),
    ),
    Machine(
        "the only user-assigned identity, not named",
        "identities",
        "note",
        "only user-assigned one",
        "--client-id",
        usable=True,
        identities=(USER,),
    ),
    Machine(
        "a client ID that the VM does not have",
        "identity",
        "problem",
        "Identity not found",
        "Is this --client-id right",
        arguments={"client_id": "99999999-9999-9999-9999-999999999999"},
    ),
    Machine(
        "an answer for another identity",
        "identity",
        "problem",
        "for another identity or resource",
        "name the one you mean",
        identities=(USER,),
        arguments={"client_id": USER.client_id},
        faults=(OTHER_IDENTITY,),
    ),
    Machine(
        "an answer for another resource",
        "identity",
        "problem",
        "for the resource 'https://else.where'",
        "Check what answers there: it does not give what it is asked for.",
        never="identit",
        faults=(faults.members(resource="https://else.where"),),
    ),
    Machine(
        "a resource that does not exist",
        "identity",
        "problem",
        "AADSTS500011",
        "Check the scope",
        arguments={"scope": "nonsense/.default"},
    ),
    Machine(
        "App Service",
        "source",
        "problem",
        "IDENTITY_ENDPOINT, IDENTITY_HEADER",
        "ManagedIdentityCredential",
        environ={"IDENTITY_ENDPOINT": "http://x", "IDENTITY_HEADER": "y"},
    ),
    Machine(
        "Azure Machine Learning",
        "source",
        "problem",
        "MSI_ENDPOINT, MSI_SECRET",
        "ManagedIdentityCredential",
        environ={"MSI_ENDPOINT": "http://x", "MSI_SECRET": "y"},
    ),
    Machine(
        "Cloud Shell",
        "source",
        "problem",
        "Cloud Shell",
        "ManagedIdentityCredential",
        environ={"AZUREPS_HOST_ENVIRONMENT": "cloud-shell/1.0"},
    ),
    Machine(
        "a VM with the Arc agent", "source", "problem", ARC_AGENT, "remove the agent", files={**AZURE, ARC_AGENT: ""}
    ),
    Machine(
        "half of another source",
        "source",
        "note",
        "IDENTITY_ENDPOINT is set",
        "Unset it",
        usable=True,
        environ={"IDENTITY_ENDPOINT": "http://x"},
    ),
    Machine(
        "AZURE_CLIENT_ID alone",
        "identity",
        "note",
        "AZURE_CLIENT_ID is set",
        "pass it on",
        usable=True,
        environ={"AZURE_CLIENT_ID": USER.client_id},
    ),
    Machine(
        "an emulator named by a variable",
        "endpoint",
        "note",
        "http://somewhere:1 is asked",
        "Unset it",
        usable=True,
        environ={"AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://somewhere:1"},
        arguments={"endpoint": None},
    ),
    Machine(
        "a pod that is kept from IMDS",
        "reachable",
        "problem",
        "Nothing answers",
        "AKS's IMDS restriction",
        environ=POD,
        down=True,
    ),
    Machine(
        "a pod with workload identity",
        "machine",
        "note",
        "workload identity is set up",
        "azure.identity.WorkloadIdentityCredential",
        environ={**POD, **FEDERATED},
        down=True,
    ),
    Machine(
        "a pod that has its node's identity",
        "machine",
        "note",
        "every pod there shares",
        "set up workload identity",
        usable=True,
        environ=POD,
    ),
    Machine(
        "Docker Desktop",
        "reachable",
        "problem",
        "Docker Desktop answers in place",
        "azure-imds emulate",
        files={**DOCKER_DESKTOP_KERNEL, "/.dockerenv": ""},
        faults=(faults.docker_desktop_403(),),
    ),
    Machine(
        "Docker Desktop in Norwegian",
        "reachable",
        "problem",
        "Docker Desktop answers in place",
        "azure-imds emulate",
        files={**WSL_KERNEL, "/.dockerenv": ""},
        faults=(faults.docker_desktop_403("En sokkeloperasjon ble forsøkt mot et nettverk som ikke kan nås."),),
    ),
    Machine(
        "Docker Desktop, silent",
        "reachable",
        "problem",
        "Nothing answers",
        "emulate` on the host",
        files={**DOCKER_DESKTOP_KERNEL, "/.dockerenv": ""},
        down=True,
    ),
    Machine("WSL", "reachable", "problem", "Nothing answers", "WSL has no IMDS", files=WSL_KERNEL, down=True),
    Machine(
        "a container on a VM",
        "reachable",
        "problem",
        "Nothing answers",
        "Try from the host",
        files={"/.dockerenv": ""},
        down=True,
    ),
    Machine("another cloud", "reachable", "problem", "Nothing answers", "This is not Azure", files=EC2, down=True),
    Machine("another cloud, named", "machine", "note", "another vendor", "azure-imds emulate", files=EC2, down=True),
    Machine(
        "a Mac", "reachable", "problem", "Nothing answers", "This is not Azure", platform="darwin", files={}, down=True
    ),
    Machine("a VM behind a firewall", "reachable", "problem", "Nothing answers", "iptables", down=True),
    Machine(
        "a machine of unknown kind",
        "reachable",
        "problem",
        "Nothing answers",
        "If this is an Azure VM",
        files={},
        down=True,
    ),
    Machine(
        "an address of one's own",
        "reachable",
        "problem",
        "Nothing answers",
        "not the address of IMDS, http://169.254.169.254,",
        files={"/.dockerenv": ""},
        down=True,
        at_the_usual_address=False,
    ),
    Machine(
        "a page at an address of one's own",
        "reachable",
        "problem",
        "Something that is not IMDS answers",
        "not the address of IMDS, http://169.254.169.254,",
        faults=(faults.html(),) * 3,
        at_the_usual_address=False,
    ),
    Machine(
        "an IMDS whose body breaks off",
        "identity",
        "problem",
        "IMDS is here, but fails: 200, the body broke off",
        "Try again later",
        faults=(faults.wrong_length(),) * ALWAYS,
    ),
    Machine(
        "headers that never end",
        "reachable",
        "problem",
        "Nothing answers: ",
        "iptables",
        arguments={"timeout": 0.5},
        faults=(faults.drip(0.02, headers=True),) * 3,
    ),
    Machine(
        "a policy that keeps this process out",
        "identity",
        "problem",
        "IMDS or Entra refused the request itself: 403",
        "Metadata Security Protocol",
        never="scope",
        faults=(faults.status(403),),
    ),
    Machine(
        "an application that is gone",
        "identity",
        "problem",
        "AADSTS700016",
        "check scope and identity",
        faults=(
            faults.status(
                400,
                {"error": "unauthorized_client", "error_description": "AADSTS700016: gone", "error_codes": [700016]},
            ),
        ),
    ),
    Machine(
        "no response",
        "reachable",
        "problem",
        "Nothing answers: ",
        "iptables",
        faults=(faults.hang,),
        arguments={"timeout": 0.5},
    ),
    Machine("a captive portal", "reachable", "problem", "not IMDS answers", "ip route get", faults=(faults.html(),)),
    Machine(
        "IMDS that restarts",
        "reachable",
        "problem",
        "WireServer",
        "azure-imds wait",
        faults=(faults.wireserver(),) * ALWAYS,
    ),
    Machine(
        "IMDS being updated",
        "identity",
        "problem",
        "but fails",
        "Try again later",
        faults=(faults.status(410),) * ALWAYS,
    ),
    Machine(
        "IMDS updated just now",
        "health",
        "note",
        "410",
        "repeats such requests",
        usable=True,
        faults=(faults.status(410),),
    ),
    Machine(
        "a VM that asks too much",
        "throttling",
        "problem",
        "3 of 3 requests got 429",
        "shared_cache=True",
        faults=(faults.throttled(),) * ALWAYS,
    ),
    Machine(
        "a VM that asks a little too much",
        "throttling",
        "note",
        "1 of 2 requests got 429",
        "shared_cache=True",
        usable=True,
        faults=(faults.throttled(),),
    ),
    Machine(
        "a proxy for everything",
        "proxies",
        "note",
        "HTTP_PROXY is set",
        "NO_PROXY",
        usable=True,
        environ={"HTTP_PROXY": "http://user:password@proxy:3128"},
    ),
    Machine(
        "a proxy that exempts IMDS",
        "proxies",
        "ok",
        "exempts 169.254.169.254",
        "Nothing",
        usable=True,
        environ={"http_proxy": "http://proxy:3128", "no_proxy": "localhost,169.254.169.254"},
    ),
    Machine(
        "a clock an hour ahead", "clock", "note", "s ahead of the host's", "timedatectl", usable=True, clock_ahead=3600
    ),
    Machine(
        "a clock an hour behind", "clock", "note", "s behind the host's", "timedatectl", usable=True, clock_ahead=-3600
    ),
    Machine(
        "a token of yesterday",
        "token age",
        "note",
        "Issued 20.1 h ago",
        "wait for the next token",
        usable=True,
        before=aged,
    ),
]


def with_header(name: str, value: str | None) -> Callable[[faults.Reply], Iterable[bytes]]:
    def fault(reply: faults.Reply) -> Iterable[bytes]:
        yield reply.with_header(name, value).encode()

    return fault


PRINCIPAL = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}
BETWEEN = [
    ("the Guest Proxy Agent", ("x-ms-azure-host-authorization", "value"), "the Guest Proxy Agent of Metadata Security"),
    ("serve", (SERVE_HEADER, "0.1.0"), "`azure-imds serve` 0.1.0"),
    ("the proxy of workload identity", ("Server", "azure-workload-identity/proxy/v1.5.0"), "the proxy sidecar"),
    ("floci", ("Server", "floci/1.0"), "an emulator of Azure (floci/1.0)"),
    ("an unknown program", ("Server", "nginx"), "a program that calls itself nginx"),
]
MACHINES += [
    Machine(
        f"{name} in between",
        "in between",
        "note",
        f"by way of {says}",
        "Its own log",
        usable=True,
        faults=(with_header(*header),),
    )
    for name, header, says in BETWEEN
]
MACHINES += [
    Machine(name, "other SDKs", "note", says, advice, usable=True, environ=environ)
    for name, environ, says, advice in [
        (
            "a service principal in the environment",
            {**PRINCIPAL, "AZURE_CLIENT_SECRET": "password"},
            "AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET are set: DefaultAzureCredential gets tokens of that",
            "Unset them",
        ),
        (
            "a certificate in the environment",
            {**PRINCIPAL, "AZURE_CLIENT_CERTIFICATE_PATH": "/x"},
            "AZURE_CLIENT_CERTIFICATE_PATH are set",
            "Unset them",
        ),
        (
            "workload identity in the environment",
            {**PRINCIPAL, **FEDERATED},
            "gets tokens of workload identity, and does not ask IMDS",
            "WorkloadIdentityCredential",
        ),
        (
            "a choice of credentials",
            {"AZURE_TOKEN_CREDENTIALS": "dev"},
            "AZURE_TOKEN_CREDENTIALS=dev says which",
            "another identity than you expect",
        ),
        ("a variable of AzCopy", {"AZCOPY_MSI_CLIENT_ID": "x"}, "AzCopy reads it", "that program"),
        ("a variable of Terraform", {"ARM_CLIENT_ID": "x"}, "Terraform reads it", "that program"),
    ]
]
MACHINES += [
    Machine(
        "an installed Guest Proxy Agent",
        "in between",
        "note",
        "decides which processes may ask IMDS",
        "ProxyAgentSettings",
        usable=True,
        files={**AZURE, "/usr/sbin/azure-proxy-agent": ""},
    ),
    Machine("a request that is timed", "cost", "ok", "The request for the token took ", "Nothing", usable=True),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts cost nothing here: how long they are is another test's matter."""
    monkeypatch.setattr("azure_imds_credential._options.process_cache", TokenCache(VirtualTime()))


def examined(machine: Machine, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> Report:
    around = Surroundings(
        environ=machine.environ,
        platform=machine.platform,
        read=lambda path: machine.files.get(path, ""),
        exists=lambda path: path in machine.files,
        wall_clock=lambda: time.time() + machine.clock_ahead,
    )
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
    if machine.at_the_usual_address:
        monkeypatch.setattr(doctor, "DEFAULT_ENDPOINT", imds.endpoint)
    if machine.before:
        machine.before(imds)
    if machine.faults:
        imds.script(*machine.faults)
    with imds.down() if machine.down else nullcontext():
        return examine(**{"scope": SCOPE, "endpoint": imds.endpoint, "around": around, **machine.arguments})


@pytest.mark.parametrize("machine", MACHINES, ids=[machine.name.replace(" ", "-") for machine in MACHINES])
def test_doctor_names_cause_and_next_step(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every staged machine one finding names the cause and the next step, and the verdict is right."""
    with ImdsEmulator(machine.identities) as imds:
        report = examined(machine, imds, monkeypatch)
    told = [f for f in report.findings if f.check == machine.check and f.level == machine.level]
    assert not any(machine.never and machine.never in finding.next for finding in told), report.text(Terminal())
    assert any(machine.says in finding.says and machine.next in finding.next for finding in told), report.text(
        Terminal()
    )
    assert (report.error is None) is machine.usable
    assert (report.identity is not None) is machine.usable


@pytest.mark.parametrize("machine", MACHINES, ids=[machine.name.replace(" ", "-") for machine in MACHINES])
def test_problem_means_unusable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a problem among the findings exactly when the identity cannot be used; every finding has a next step."""
    with ImdsEmulator(machine.identities) as imds:
        report = examined(machine, imds, monkeypatch)
    assert any(finding.level == "problem" for finding in report.findings) is (report.error is not None)
    assert all(finding.says and finding.next for finding in report.findings)


def test_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names another source, the doctor sends nothing; its error says what the finding says."""
    machine = next(machine for machine in MACHINES if machine.name == "App Service")
    with ImdsEmulator() as imds:
        report = examined(machine, imds, monkeypatch)
        imds.assert_requests(0)
    [problem] = [finding for finding in report.findings if finding.level == "problem"]
    assert report.error is not None
    assert (problem.check, str(report.error), report.error.hint) == ("source", problem.says, problem.next)


def test_source_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no request was sent, since the environment changed meanwhile, the doctor says what the error says."""
    with ImdsEmulator() as imds:
        for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        report = examine(SCOPE, endpoint=imds.endpoint, around=Surroundings({}))
        imds.assert_requests(0)
    [problem] = [finding for finding in report.findings if finding.level == "problem"]
    assert problem.says.startswith("IMDS was not asked: ")
    assert "App Service here, not from IMDS. Nothing was sent." in problem.says


@pytest.mark.parametrize("environ", [{**PRINCIPAL, "AZURE_CLIENT_SECRET": "password"}, {"ARM_CLIENT_ID": "password"}])
def test_variable_values_are_hidden(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """Of variables that may hold a secret only the names are told."""
    with ImdsEmulator() as imds:
        report = examined(Machine("x", "", "", "", "", environ=environ), imds, monkeypatch)
    assert "password" not in report.text(Terminal())


def test_nothing_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where IMDS answers itself, or an answer has no Server header, nothing is said to be in between."""
    for fault in ((), (with_header("Server", None),)):
        with ImdsEmulator() as imds:
            report = examined(Machine("x", "", "", "", "", faults=fault), imds, monkeypatch)
        assert "in between" not in [finding.check for finding in report.findings]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, None),
        ({"/.dockerenv": ""}, "Docker"),
        ({"/run/.containerenv": ""}, "Podman"),
        ({"/proc/self/cgroup": "0::/"}, None),
        ({"/proc/self/cgroup": "12:pids:/docker/0123"}, "Docker"),
        ({"/proc/1/cgroup": "0::/system.slice/docker-0123.scope"}, "Docker"),
        ({"/proc/self/cgroup": "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope"}, "Kubernetes"),
        ({"/proc/self/cgroup": "0::/kubepods/besteffort/pod1/2", "/.dockerenv": ""}, "Kubernetes"),
        ({"/proc/self/cgroup": "0::/machine.slice/libpod-0123.scope"}, "Podman"),
        ({"/proc/1/cgroup": "0::/system.slice/containerd.service/default"}, "containerd"),
        ({"/proc/1/cgroup": "0::/lxc.payload.name"}, "LXC"),
        ({"/run/systemd/container": "systemd-nspawn"}, "systemd-nspawn"),
        ({"/proc/self/cgroup": "0::/user.slice/user-0.slice/session-1.scope"}, None),
    ],
)
def test_container(files: dict[str, str], kind: str | None) -> None:
    """The kind of a container follows from what each runtime leaves in it, and from its control group."""
    around = Surroundings({}, "linux", lambda path: files.get(path, ""), files.__contains__)
    assert around.container() == kind
    assert (around.place() is Place.CONTAINER) is (kind is not None)


def test_proxy_values_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's URL may hold a password, so only the variable is named."""
    machine = next(machine for machine in MACHINES if machine.name == "a proxy for everything")
    with ImdsEmulator() as imds:
        report = examined(machine, imds, monkeypatch)
    assert "password" not in report.text(Terminal())


def test_no_time_to_ask(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where loading takes all the time the report says so, and nothing of an IMDS that was never asked."""
    clock, load = StillTime(), _options._import_client

    def slowly() -> Any:
        clock.skip(30)
        return load()

    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    monkeypatch.setattr(_options, "_import_client", slowly)
    report = examine(SCOPE, endpoint=imds.endpoint, timeout=10).text(Terminal())
    assert "msal and the HTTP stack were being loaded" in report
    assert "IMDS is here" not in report


def test_report_has_no_token() -> None:
    """No token that was issued is in a report, in any of its forms."""
    with ImdsEmulator() as imds:
        report = examine(SCOPE, endpoint=imds.endpoint)
        (token,) = imds.tokens
    assert token not in repr(report) + report.text(Terminal())


@pytest.mark.parametrize(
    ("environ", "files", "platform", "place"),
    [
        (POD, {"/.dockerenv": ""}, "linux", Place.POD),
        ({}, {**WSL_KERNEL, "/.dockerenv": ""}, "linux", Place.DOCKER_DESKTOP),
        ({}, WSL_KERNEL, "linux", Place.WSL),
        ({"WSL_DISTRO_NAME": "Ubuntu"}, {}, "linux", Place.WSL),
        ({}, {**AZURE, "/run/.containerenv": ""}, "linux", Place.CONTAINER),
        ({}, AZURE, "linux", Place.AZURE_VM),
        ({}, EC2, "linux", Place.ELSEWHERE),
        ({}, {}, "darwin", Place.ELSEWHERE),
        ({}, {"/sys/class/dmi/id/sys_vendor": "Microsoft Corporation"}, "linux", Place.UNKNOWN),
        ({}, {}, "win32", Place.UNKNOWN),
    ],
)
def test_place(environ: dict[str, str], files: dict[str, str], platform: str, place: Place) -> None:
    """What a machine looks like follows from its variables and files, the most telling sign first."""
    around = Surroundings(environ, platform, lambda path: files.get(path, ""), files.__contains__)
    assert around.place() is place


def test_unreadable_dates() -> None:
    """An answer without a Date, or with nonsense in its place, says nothing of the clock."""
    for date in (None, "yesterday"):
        with ImdsEmulator() as imds:
            imds.script(with_header("Date", date))
            report = examine(SCOPE, endpoint=imds.endpoint)
        assert "clock" not in [finding.check for finding in report.findings]


def test_machine_names() -> None:
    """The table has at least a dozen machines, and its faults last as long as the doctor asks."""
    assert len({machine.name for machine in MACHINES}) == len(MACHINES) >= 12
    assert doctor._RETRIES + 1 == ALWAYS
