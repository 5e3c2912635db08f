"""Real tokens of `az login` in the form of IMDS: what comes out, and above all who is kept out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from flavors import eventually
from raw_http import TOKEN_TARGET, exchange

from azure_imds_credential import IdentityUnavailableError, ImdsCredential
from azure_imds_credential.testing import AzureCliEmulator, RealTokensWarning, UserAssigned, _run_emulator, run_emulator
from azure_imds_credential.testing._azure_cli.local_users import socket_owner

NOON = 1_800_000_000.0
CLAIMS = {"appid": "04b07795-8ddb-461a-bbee-02f9e1bf7b46", "nbf": int(NOON) - 100, "aud": "x"}
TOKEN = jwt.encode(CLAIMS, "0" * 32)


OTHER_USER = 65534


class Az:
    """Stands in for the CLI: says what it was asked, and gives what the test wants."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.expiry: dict[str, Any] = {"expires_on": int(NOON) + 3600}
        self.release = threading.Event()
        self.release.set()
        self.running = self.most = 0
        self.counting = threading.Lock()

    def __call__(self, resource: str) -> dict[str, Any]:
        self.asked.append(resource)
        with self.counting:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.release.wait(10)
        with self.counting:
            self.running -= 1
        return {"accessToken": TOKEN, "tokenType": "Bearer", **self.expiry}


@pytest.fixture
def az() -> Az:
    return Az()


@pytest.fixture
def imds(az: Az) -> Any:
    with (
        pytest.warns(RealTokensWarning, match="REAL access tokens"),
        AzureCliEmulator(fetch=az, clock=lambda: NOON) as emulator,
    ):
        yield emulator


def headers(imds: AzureCliEmulator, **more: str | None) -> dict[str, str]:
    plain: dict[str, str | None] = {"Host": imds.endpoint[7:], "Metadata": "true", "Connection": "close"}
    return {k.replace("_", "-"): v for k, v in {**plain, **more}.items() if v is not None}


def test_token_in_imds_form(imds: AzureCliEmulator, az: Az) -> None:
    """The developer's token comes with the eight members of a virtual machine, all strings, and its real expiry."""
    answer = exchange(imds.endpoint, headers=headers(imds))
    assert answer.json == {
        "access_token": TOKEN,
        "client_id": CLAIMS["appid"],
        "expires_in": "3599",
        "expires_on": str(int(NOON) + 3600),
        "ext_expires_in": "3599",
        "not_before": str(int(NOON) - 100),
        "resource": "https://vault.azure.net",
        "token_type": "Bearer",
    }
    assert az.asked == ["https://vault.azure.net"]
    assert answer.header("Server") == "IMDS/150.870.65.1854"


def test_older_versions_of_the_cli(imds: AzureCliEmulator, az: Az) -> None:
    """A CLI before 2.54 gives only local time, which means the same instant."""
    from datetime import datetime

    az.expiry = {"expiresOn": datetime.fromtimestamp(NOON + 3600).strftime("%Y-%m-%d %H:%M:%S.%f")}
    assert exchange(imds.endpoint, headers=headers(imds)).json["expires_on"] == str(int(NOON) + 3600)


def test_any_identity(imds: AzureCliEmulator) -> None:
    """A program that asks for its user-assigned identity by client ID works with the developer's token."""
    asked_for = UserAssigned("production").client_id
    answer = exchange(imds.endpoint, f"{TOKEN_TARGET}&client_id={asked_for}", headers(imds))
    assert answer.json["client_id"] == asked_for


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Metadata": None}, 400),
        ({"Metadata": "True"}, 400),
        ({"X_Forwarded_For": "10.0.0.1"}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "user@127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:x"}, 403),
        ({"Host": "169.254.169.254"}, 403),
        ({"Host": ""}, 403),
        ({"Host": None}, 403),
    ],
)
def test_who_is_kept_out(imds: AzureCliEmulator, az: Az, changed: dict[str, str | None], status: int) -> None:
    """Pages, forwarded requests and names that were rebound to this machine get no token, and az is not even asked."""
    answer = exchange(imds.endpoint, headers=headers(imds, **changed))
    assert answer.status == status
    assert TOKEN.encode() not in answer.data
    assert az.asked == []


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "host.docker.internal"])
def test_names_of_this_machine(imds: AzureCliEmulator, name: str) -> None:
    """This machine's own names are taken, with the port or without."""
    port = imds.endpoint.rpartition(":")[2]
    for host in (name, f"{name}:{port}"):
        assert exchange(imds.endpoint, headers=headers(imds, Host=host)).status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (TOKEN_TARGET.partition("&")[0], 400),
        (f"{TOKEN_TARGET}&claims=x", 400),
        (f"{TOKEN_TARGET}%20%26calc", 400),
        (TOKEN_TARGET.replace("https", "--help"), 400),
        (TOKEN_TARGET.replace("https%3A%2F%2Fvault.azure.net", "%22%26calc"), 400),
        ("/metadata/instance?api-version=2021-02-01", 404),
        ("/", 404),
    ],
)
def test_refused_requests(imds: AzureCliEmulator, az: Az, target: str, status: int) -> None:
    """Bad queries and other paths are refused, and nothing reaches az that a command interpreter could read."""
    assert exchange(imds.endpoint, target, headers(imds)).status == status
    assert exchange(imds.endpoint, TOKEN_TARGET, headers(imds), method="POST").status == 405
    assert az.asked == []


@pytest.mark.parametrize("changed", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
def test_refused_by_head(imds: AzureCliEmulator, changed: dict[str, str | None]) -> None:
    """Pages and rebound names are refused by the head of their request, while its body is still to come."""
    more: dict[str, str | None] = {"Content_Length": "1000", "Connection": None}
    assert exchange(imds.endpoint, headers=headers(imds, **more, **changed), method="POST").status == 403


def test_four_az_at_once(imds: AzureCliEmulator, az: Az) -> None:
    """At most four az run at once, one for each resource; the others come when one has ended."""
    az.release.clear()
    targets = [f"{TOKEN_TARGET}{number}" for number in range(6)]
    with ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(exchange, imds.endpoint, target, headers(imds)) for target in targets * 2]
        eventually(lambda: len(imds.requests) >= 12)
        az.release.set()
        assert {answer.result().status for answer in waiting} == {200}
    assert az.most == 4
    assert sorted(az.asked) == sorted(set(az.asked))
    assert len(az.asked) == 6


def test_too_many_resources(imds: AzureCliEmulator, az: Az, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resources that wait for az are counted too; one more is told to come again."""
    monkeypatch.setattr("azure_imds_credential.testing._azure_cli.emulator.MAX_PENDING", 1)
    az.release.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(exchange, imds.endpoint, TOKEN_TARGET, headers(imds))
        eventually(lambda: imds.requests)
        assert exchange(imds.endpoint, f"{TOKEN_TARGET}x", headers(imds)).status == 429
        az.release.set()
        assert waiting.result().status == 200


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="users of sockets are known on Linux")
@pytest.mark.parametrize(
    ("host", "dialled"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")]
)
def test_the_owner_of_a_socket(host: str, dialled: str) -> None:
    """Linux says which user has a socket, also one of IPv6 that speaks IPv4; None where there is no such socket."""
    six, dialled_six = (socket.AF_INET6 if ":" in each else socket.AF_INET for each in (host, dialled))
    try:
        server = socket.create_server((host, 0), family=six)
        client = socket.socket(dialled_six)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server, client:
        client.connect((dialled, server.getsockname()[1]))
        local, remote = client.getsockname()[:2], server.getsockname()[:2]
        assert socket_owner(local, remote) == os.geteuid()
        assert socket_owner((host, local[1]), ("127.0.0.9", remote[1])) is None


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables have the machine's byte order")
@pytest.mark.parametrize(("inode", "owner"), [("101", 1000), ("0", None)], ids=["open", "let go"])
def test_a_socket_without_a_process(inode: str, owner: int | None, tmp_path: Path) -> None:
    """A socket that its process has let go of has no owner: the kernel's table says 0 there, which would be root."""
    uid = owner or 0
    table = tmp_path / "tcp"
    table.write_text(
        "sl local remote st tx:rx tr:tm retrnsmt uid timeout inode\n"
        f"0: 0100007F:C350 0100007F:1FE9 01 0:0 00:0 0 {uid} 0 {inode} 1\n"
    )
    assert socket_owner(("127.0.0.1", 0xC350), ("127.0.0.1", 0x1FE9), (str(table),)) == owner


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="users of sockets are known on Linux")
@pytest.mark.parametrize(
    ("owner", "any_user", "status"),
    [(OTHER_USER, False, 403), (OTHER_USER, True, 200), (None, False, 403), (None, True, 200), (0, False, 200)],
)
def test_other_users(az: Az, monkeypatch: pytest.MonkeyPatch, owner: int | None, any_user: bool, status: int) -> None:
    """Other users of the machine get no token, and who cannot be told gets none, unless any user may."""
    monkeypatch.setattr("azure_imds_credential.testing._azure_cli.emulator.socket_owner", lambda *_: owner)
    with (
        pytest.warns(RealTokensWarning, match="every process" if any_user else "your processes"),
        AzureCliEmulator(fetch=az, any_user=any_user) as imds,
    ):
        assert exchange(imds.endpoint, headers=headers(imds)).status == status
    assert len(az.asked) == (status == 200)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, which can be another user")
def test_a_real_other_user(imds: AzureCliEmulator, az: Az) -> None:
    """A process of another user gets no token."""
    if not sys.platform.startswith("linux") or shutil.which("curl") is None:
        pytest.skip("needs Linux and curl")
    command = ["curl", "-s", "-H", "Metadata: true", f"{imds.endpoint}{TOKEN_TARGET}"]
    told = subprocess.run(command, user=OTHER_USER, capture_output=True, check=True, timeout=600).stdout
    assert json.loads(told)["error"] == "forbidden"
    assert az.asked == []
    told = subprocess.run(command, capture_output=True, check=True, timeout=600).stdout
    assert json.loads(told)["access_token"] == TOKEN


def test_one_az_for_many(imds: AzureCliEmulator, az: Az) -> None:
    """Requests for one resource that come while az is busy share its answer, others are not held up; later ones ask."""
    az.release.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(exchange, imds.endpoint, TOKEN_TARGET, headers(imds)) for _ in range(8)]
        eventually(lambda: len(imds.requests) >= 8)
        assert exchange(imds.endpoint, "/", headers(imds)).status == 404
        az.release.set()
        assert {answer.result().status for answer in waiting} == {200}
    assert len(az.asked) == 1
    exchange(imds.endpoint, TOKEN_TARGET, headers(imds))
    assert len(az.asked) == 2
    assert [request.answered for request in imds.requests] == ["az"] * 8 + ["404", "az"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "169.254.169.254", "192.168.1.2"])
def test_other_addresses_refused(host: str) -> None:
    """Real tokens are not handed out on an address that other machines reach."""
    with pytest.raises(ValueError, match="not a loopback address"):
        AzureCliEmulator(host=host)


@pytest.mark.parametrize("bridge", ["lo", "eth0", "nothing", "../lo", ""])
def test_what_is_no_bridge(bridge: str) -> None:
    """Only a bridge of this machine can be named."""
    with pytest.raises(ValueError, match="bridge"):
        AzureCliEmulator(bridge=bridge)


ON_A_BRIDGE = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from raw_http import exchange
from azure_imds_credential.testing import AzureCliEmulator
with AzureCliEmulator(bridge="br7", fetch=lambda r: {"accessToken": "t", "expires_on": 1}) as imds:
    port = imds.endpoint.rpartition(":")[2]
    def asked(host):
        return exchange(imds.endpoint, headers={"Host": host, "Metadata": "true", "Connection": "close"}).status
    print(imds.endpoint.rpartition(":")[0], asked(f"172.30.7.1:{port}"), asked("localhost"))
    imds._peers = type(imds._peers)("172.31.0.0/16")  # as if the request came from another network
    print(asked("172.30.7.1"))
"""


def test_a_bridge_of_this_machine() -> None:
    """On a bridge, the containers of its network are answered, and no others."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs Linux with unshare and ip")
    steps = (
        "mount -t sysfs bridges /sys",  # shows the interfaces of the new namespace
        "ip link add br7 type bridge",
        "ip addr add 172.30.7.1/24 dev br7",
        "ip link set br7 up",
        "ip link set lo up",
        'exec "$0" -c "$1" "$2"',
    )
    unshare = ["unshare", "--net", "--mount", "--map-root-user", "sh", "-c", " && ".join(steps)]
    command = [*unshare, sys.executable, ON_A_BRIDGE, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode and "ermitted" in done.stderr:
        pytest.skip(f"no network namespace to be had: {done.stderr.strip()}")
    assert done.stdout.splitlines() == ["http://172.30.7.1 200 403", "403"], done.stderr


# Python by way of sh, since a first line cannot name an interpreter whose path has a space. To Python it is a string.
FAKE_AZ = """#!/bin/sh
''':'
exec "{python}" "$0" "$@"
'''
import json, sys
assert sys.argv[1:3] == ["account", "get-access-token"], sys.argv
if "--resource=https://nothing.example" in sys.argv:
    print("ERROR: Please run 'az login' to setup account.\\nmore", file=sys.stderr)
    sys.exit(1)
assert "--resource=https://vault.azure.net" in sys.argv and "--output=json" in sys.argv, sys.argv
print(json.dumps({{"accessToken": "{token}", "expires_on": 4102444800, "tokenType": "Bearer"}}))
"""


@pytest.fixture
def az_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named az that takes the CLI's arguments."""
    if os.name == "nt":
        pytest.skip("the stand-in for az is a script")
    program = tmp_path / "az"
    program.write_text(FAKE_AZ.format(python=sys.executable, token=TOKEN))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("az_on_path")
@pytest.mark.filterwarnings("ignore::azure_imds_credential.testing.RealTokensWarning")
def test_the_real_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CLI is run with the arguments it documents; what it complains about reaches the program that asked."""
    with (
        AzureCliEmulator(clock=lambda: 4102444800 - 3600) as imds,
        ImdsCredential(endpoint=imds.endpoint) as credential,
    ):
        assert credential.get_token("https://vault.azure.net/.default").token == TOKEN
        with pytest.raises(IdentityUnavailableError, match="az ended with 1: ERROR: Please run 'az login'"):
            credential.get_token("https://nothing.example/.default")
        monkeypatch.setenv("PATH", "")
        with pytest.raises(IdentityUnavailableError, match=r"the Azure CLI \(az\) is not installed"):
            credential.get_token("https://storage.azure.com/.default")


@pytest.mark.parametrize("source", [None, "azure-cli"])
@pytest.mark.filterwarnings("ignore::azure_imds_credential.testing.RealTokensWarning")
def test_run_until_it_is_over(source: Any) -> None:
    """The emulator as a program says where it is in the form a shell takes, and ends when it is told to."""
    over, said = threading.Event(), []

    def say(line: str) -> None:
        said.append(line)
        name, _, endpoint = line.partition("=")
        assert name == "AZURE_POD_IDENTITY_AUTHORITY_HOST"
        assert exchange(endpoint, "/metadata/nothing").status in (403, 404)
        over.set()

    run_emulator(source=source, say=say, until=over)
    assert len(said) == 1


def test_bridge_needs_source() -> None:
    """A bridge without the Azure CLI is a mistake and said so."""
    with pytest.raises(ValueError, match="a bridge is for tokens of the Azure CLI"):
        run_emulator(bridge="docker0")


def test_burst_of_signals() -> None:
    """Supervisors repeat themselves: signals that come while one is handled do no harm."""
    with _run_emulator._interruptions() as came:
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGTERM)
    assert set(came) == {signal.SIGTERM}
    program = "from azure_imds_credential.testing import run_emulator; run_emulator(); print('over')"
    child = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("AZURE_POD_IDENTITY_AUTHORITY_HOST=")
        for _ in range(50):
            child.send_signal(signal.SIGTERM)
        # A signal after the handlers are put back ends it, too, in its own way.
        assert child.wait(20) in (0, -signal.SIGTERM)
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it(name: str) -> None:
    """Ctrl+C and SIGTERM end the program in order, with exit code 0."""
    program = "from azure_imds_credential.testing import run_emulator; run_emulator(say=lambda s: print(s, flush=True))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        endpoint = child.stdout.readline().strip().partition("=")[2]
        assert exchange(endpoint).status == 200
        child.send_signal(getattr(signal, name))
        assert child.wait(timeout=600) == 0
