"""Tokens in the forms of other tools: scripts, kubectl, git and keyring. The tools run in tests/integration."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from azure_imds_credential._cli import main, tools
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, faults, forget_tokens

keyring = pytest.importorskip("keyring")

VAULT = "https://vault.azure.net/.default"
AKS = "6dae42f8-4368-4678-94ff-3960e28e3630"
DEVOPS = "499b84ac-1321-427f-aa17-267ca6975798"
ASKED = "capability[]=authtype\ncapability[]=state\nprotocol=https\nhost=dev.azure.com\nwwwauth[]=Bearer\n\n"
OLDER = "protocol=https\nhost=dev.azure.com\nusername=someone\n\n"
USER = UserAssigned("app")


class Run(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def run(*argv: str, given: str = "") -> Run:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode("utf-8", "surrogateescape"))))
        return Run(main(argv), *capsys.readouterr())

    return run


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator([SystemAssigned(), USER]) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        yield imds


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of this test's own for the cache that processes share."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("nothing is shared where there is no memory-backed folder")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


def claims(token: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False})


# Scripts


def test_raw_prints_the_token_alone(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`token --raw` prints the token and a line feed, so that a script may use it."""
    ran = run("token", VAULT, "--raw")
    assert ran == (0, f"{imds.tokens[0]}\n", "")


def test_raw_prints_nothing_but_a_token(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """Where there is no token, standard output stays empty: a script must not take an error for a password."""
    imds.script(faults.status(400, {"error": "invalid_request", "error_description": "no"}))
    ran = run("token", VAULT, "--raw")
    assert (ran.code, ran.out) == (4, "")


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["token", VAULT, "--raw"], ""),
        (["token", "--for", "kubectl"], ""),
        (["git-credential", "get"], ASKED),
    ],
    ids=["raw", "kubectl", "git"],
)
def test_tools_share_tokens(
    run: Callable[..., Run], imds: ImdsEmulator, shared: None, argv: list[str], given: str
) -> None:
    """With `--shared-cache` the next process costs no request."""
    for _ in range(3):
        forget_tokens()  # of this process, as in another one
        assert run(*argv, "--shared-cache", given=given).code == 0
    imds.assert_requests(1)


# kubectl


@pytest.mark.parametrize("version", ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1", None])
def test_exec_credential(
    run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    """`token --for kubectl` is an ExecCredential of the version that kubectl asks for, with a token for AKS."""
    monkeypatch.delenv("KUBERNETES_EXEC_INFO", raising=False)
    if version is not None:
        monkeypatch.setenv("KUBERNETES_EXEC_INFO", json.dumps({"apiVersion": version, "kind": "ExecCredential"}))
    ran = run("token", "--for", "kubectl")
    document = json.loads(ran.out)
    assert (ran.code, ran.err, document["kind"]) == (0, "", "ExecCredential")
    assert document["apiVersion"] == (version or "client.authentication.k8s.io/v1beta1")
    expiry = datetime.fromisoformat(document["status"]["expirationTimestamp"].replace("Z", "+00:00")).timestamp()
    assert document["status"]["expirationTimestamp"].endswith("Z")
    assert abs(expiry - claims(document["status"]["token"])["exp"]) <= 2
    assert claims(document["status"]["token"])["aud"] == AKS


@pytest.mark.parametrize(
    "info", ["", "nonsense", "[]", "{}", '{"apiVersion": 1}', "[" * 100_000], ids=lambda one: one[:9]
)
def test_exec_info_of_any_kind(run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: Any, info: str) -> None:
    """A variable that says nothing of the version is as good as none."""
    monkeypatch.setenv("KUBERNETES_EXEC_INFO", info)
    assert json.loads(run("token", "--for", "kubectl").out)["apiVersion"] == "client.authentication.k8s.io/v1beta1"


def test_kubectl_for_another_scope(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """SCOPE names another application, for clusters that have their own."""
    token = json.loads(run("token", VAULT, "--for", "kubectl", "--client-id", USER.client_id).out)["status"]["token"]
    assert (claims(token)["aud"], claims(token)["oid"]) == ("https://vault.azure.net", USER.object_id)


# git


def answered(out: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in out.splitlines())


def test_git_gets_a_bearer_token(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """Git that can send a Bearer token gets one for Azure DevOps, which no other helper is to store."""
    ran = run("git-credential", "get", given=ASKED)
    answer = answered(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert answer.pop("credential") in imds.tokens
    assert abs(int(answer.pop("password_expiry_utc")) - time.time() - 86400) < 60
    assert answer == {"capability[]": "authtype", "authtype": "Bearer", "ephemeral": "1"}
    imds.assert_requests(1, resource=DEVOPS)


def test_older_git_gets_a_password(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """Git before 2.46 gets the token as password."""
    answer = answered(run("git-credential", "get", "--client-id", USER.client_id, given=OLDER).out)
    assert (answer["username"], claims(answer["password"])["oid"]) == ("VssSessionToken", USER.object_id)


@pytest.mark.parametrize(
    ("protocol", "host", "is_answered"),
    [
        ("https", "dev.azure.com", True),
        ("https", "DEV.AZURE.COM", True),
        ("https", "org@dev.azure.com", False),
        ("https", "dev.azure.com:443", True),
        ("https", "org.visualstudio.com", True),
        ("https", "ssh.dev.azure.com", True),
        ("http", "dev.azure.com", False),
        ("https", "visualstudio.com", False),
        ("https", "dev.azure.com.evil.example", False),
        ("https", "evildev.azure.com", False),
        ("https", "evil-visualstudio.com", False),
        ("https", "dev.azure.com:x@evil.example", False),
        ("https", "evil.example#.visualstudio.com", False),
        ("https", "evil.example/.visualstudio.com", False),
        ("https", "github.com", False),
        ("https", "", False),
        ("ssh", "dev.azure.com", False),
    ],
)
def test_git_hosts(run: Callable[..., Run], imds: ImdsEmulator, protocol: str, host: str, is_answered: bool) -> None:
    """Only Azure DevOps over TLS gets a token; for anything else IMDS is not even asked."""
    ran = run("git-credential", "get", given=f"protocol={protocol}\nhost={host}\n\n")
    assert (ran.code, ran.err, bool(ran.out)) == (0, "", is_answered)
    imds.assert_requests(int(is_answered))


@pytest.mark.parametrize("operation", ["store", "erase", "capability", "of-the-future"])
def test_git_operations_that_do_nothing(run: Callable[..., Run], imds: ImdsEmulator, operation: str) -> None:
    """There is nothing to store or erase, and what git may ask one day is passed over, as git wants it."""
    assert run("git-credential", operation, given=ASKED) == (0, "", "")
    imds.assert_requests(0)


@pytest.mark.parametrize("given", ["", "\n", "host", "=\n\n", "\udcff=\udcff\nprotocol=https\nhost=\udcff\n\n", "a\0b"])
def test_git_input_of_any_kind(run: Callable[..., Run], imds: ImdsEmulator, given: str) -> None:
    """Input that says nothing of Azure DevOps gets nothing."""
    assert run("git-credential", "get", given=given) == (0, "", "")


def test_git_attributes() -> None:
    """Attributes end at an empty line; the last of several counts, and lists keep all."""
    read = tools.read_attributes(b"host=a\nhost=b\nwwwauth[]=1\nwwwauth[]=2=3\n\nhost=c\n")
    assert read == {"host": ["a", "b"], "wwwauth[]": ["1", "2=3"]}


def test_git_error_is_told(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """Where there is no token git gets nothing, and the reason stands on standard error."""
    imds.script(faults.status(400, {"error": "invalid_request", "error_description": "no"}))
    ran = run("git-credential", "get", given=OLDER)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("azure-imds: No token for ")


# whoami of a given token


def test_token_of_another_credential(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`whoami --token -` reads a token from standard input, and sends nothing."""
    token = imds.issue_token("https://vault.azure.net")
    for given in (token, f"{token}\n", f"Bearer {token}\r\n"):
        ran = run("whoami", "--token", "-", "--json", given=given)
        assert json.loads(ran.out)["object_id"] == SystemAssigned().object_id
    imds.assert_requests(0)


@pytest.mark.parametrize("given", ["", "opaque", "a.b.c", "e30.W10.x", "\udcff.\udcff.x"], ids=ascii)
def test_what_is_no_token(run: Callable[..., Run], given: str) -> None:
    """What has no claims is a wrong argument."""
    ran = run("whoami", "--token", "-", given=given)
    assert (ran.code, ran.out) == (2, "")
    assert "standard input holds no JWT" in ran.err


# keyring


@pytest.fixture
def backend() -> Any:
    from azure_imds_credential._keyring import AzureArtifactsKeyring

    return AzureArtifactsKeyring()


FEED = "https://pkgs.dev.azure.com/org/project/_packaging/feed/pypi/simple/"


@pytest.mark.parametrize(
    "service", [FEED, "pkgs.dev.azure.com", "https://org.pkgs.visualstudio.com/x", "PKGS.dev.azure.com"]
)
def test_keyring_answers_for_feeds(imds: ImdsEmulator, shared: None, backend: Any, service: str) -> None:
    """A feed of Azure Artifacts gets a token for Azure DevOps, by URL or by host."""
    assert claims(backend.get_password(service, "any"))["aud"] == DEVOPS
    credential = backend.get_credential(service, None)
    assert (credential.username, credential.password) == ("VssSessionToken", imds.tokens[0])
    assert backend.get_credential(service, "me").username == "me"
    imds.assert_requests(1)


@pytest.mark.parametrize(
    "service",
    [
        "https://pypi.org/simple/",
        "http://pkgs.dev.azure.com/org",
        "https://dev.azure.com/org",
        "https://pkgs.dev.azure.com.evil.example/",
        "https://pkgs.dev.azure.com@evil.example/",
        "https://evil.example/pkgs.dev.azure.com",
        "https://pkgs.visualstudio.com/",
        "https://[pkgs.dev.azure.com",
        "https://evil.example\\.pkgs.visualstudio.com/",
        "https://evil.example#.pkgs.visualstudio.com/",
        "login",
        "",
    ],
)
def test_keyring_leaves_others_alone(imds: ImdsEmulator, backend: Any, service: str) -> None:
    """Any other service, and a feed without TLS, gets nothing, and IMDS is not asked."""
    assert backend.get_password(service, "me") is None
    assert backend.get_credential(service, None) is None
    imds.assert_requests(0)


def test_keyring_stores_nothing(backend: Any) -> None:
    """Storing and deleting are refused in the ways that keyring has for it."""
    with pytest.raises(keyring.errors.PasswordSetError):
        backend.set_password(FEED, "me", "secret")
    with pytest.raises(keyring.errors.PasswordDeleteError):
        backend.delete_password(FEED, "me")


def test_keyring_is_below_others(backend: Any) -> None:
    """Recommended backends have 1 or more and are asked first; one with 0 or less would never be asked in a chain."""
    assert 0 < backend.priority < 1


def test_keyring_without_identity(imds: ImdsEmulator, backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without an identity there is no password, and a warning says why; the program may ask a person then."""
    for identity in imds.identities:
        imds.remove(identity)
    assert backend.get_password(FEED, "me") is None
    assert "No password for pkgs.dev.azure.com" in caplog.text


@pytest.mark.parametrize(
    "variable", [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "localhost"), ("KEYRING_PROPERTY_CLIENT_ID", " ")]
)
def test_keyring_survives_wrong_variables(
    imds: ImdsEmulator,
    shared: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: tuple[str, str],
) -> None:
    """A variable without a usable value is a warning: pip, uv and twine go on without a password."""
    from azure_imds_credential._keyring import AzureArtifactsKeyring

    monkeypatch.setenv(*variable)
    assert AzureArtifactsKeyring().get_password(FEED, "me") is None
    assert "No password for pkgs.dev.azure.com" in caplog.text
    assert imds.requests == []


def test_keyring_names_an_identity(imds: ImdsEmulator, shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """KEYRING_PROPERTY_CLIENT_ID names a user-assigned identity."""
    from azure_imds_credential._keyring import AzureArtifactsKeyring

    monkeypatch.setenv("KEYRING_PROPERTY_CLIENT_ID", USER.client_id)
    assert claims(AzureArtifactsKeyring().get_password(FEED, "me"))["oid"] == USER.object_id


def test_keyring_works_without_shared_cache(imds: ImdsEmulator, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without filelock the backend asks IMDS in each process."""
    monkeypatch.setitem(sys.modules, "filelock", None)
    assert backend.get_password(FEED, "me") in imds.tokens


def test_keyring_finds_the_backend_and_loads_little() -> None:
    """Keyring loads the backend by its entry point; neither msal nor the credential is imported for that."""
    code = (
        "import sys, keyring.backend; names = {type(each).__name__ for each in keyring.backend.get_all_keyring()}; "
        "assert 'AzureArtifactsKeyring' in names, names; "
        "assert not {'msal', 'requests', 'azure.core', 'azure_imds_credential._credential'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=600, check=True)
