"""Tokens of `azure-imds` in git, kubectl, pip, uv, twine and psql, against loopback servers that verify each token."""

from __future__ import annotations

import base64
import json
import os
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import jwt
import pytest
import trustme
from proving import lacking, run, tool

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned
from azure_imds_credential.testing._vault.tls_proxy import Answer, Request, TlsProxy

BIN = Path(sys.executable).parent
COMMAND = BIN / "azure-imds"
DEVOPS = "499b84ac-1321-427f-aa17-267ca6975798"
AKS = "6dae42f8-4368-4678-94ff-3960e28e3630"
POSTGRES = "https://ossrdbms-aad.database.windows.net"
PROJECT = "https://dev.azure.com/org/project/_git/repository"
FEED = "https://pkgs.dev.azure.com/org/project/_packaging/feed/pypi"
SECONDS = 60.0


@dataclass
class Judge:
    """Verifies tokens as a service does: signature, issuer, audience, expiry; and notes what it found."""

    imds: ImdsEmulator
    audience: str
    verdicts: list[str] = field(default_factory=list)

    def accepts(self, token: str) -> bool:
        try:
            key = jwt.PyJWKClient(self.imds.jwks_uri).get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, ["RS256"], audience=self.audience, issuer=self.imds.issuer)
        except jwt.InvalidTokenError as error:
            self.verdicts.append(type(error).__name__)
            return False
        self.verdicts.append(str(claims["oid"]))
        return True

    def accepts_basic(self, header: str) -> bool:
        """As `accepts`, for a token that is the password of basic authentication."""
        kind, _, encoded = header.partition(" ")
        if kind != "Basic":
            return False
        _, _, password = base64.b64decode(encoded).decode().partition(":")
        return self.accepts(password)


@pytest.fixture
def judge(imds: ImdsEmulator) -> Callable[[str], Judge]:
    return lambda audience: Judge(imds, audience)


@pytest.fixture
def environ(imds: ImdsEmulator, tmp_path: Path) -> dict[str, str]:
    """The environment of a user with a home of its own, in which only the emulator answers."""
    home = tmp_path / "home"
    home.mkdir()
    settings = ("CURL_", "GIT_", "KEYRING_", "KUBE", "PG", "PIP_", "REQUESTS_", "SSL_", "TWINE_", "UV_")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(settings) and not name.lower().endswith("_proxy")
    }
    return {
        **clean,
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


@contextmanager
def host(authority: trustme.CA, name: str, answer: Callable[[Request], Answer]) -> Iterator[str]:
    """A server under a name of Azure's; gives the URL of the proxy that leads to it, and nowhere else."""
    with TlsProxy(authority, [name], answer) as proxy:
        yield proxy.url


def refused() -> Answer:
    return Answer(401, {"WWW-Authenticate": 'Basic realm="https://dev.azure.com/"'}, b"")


# git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with one commit, as files that a plain web server can serve."""
    git, work, bare = tool("git"), tmp_path / "work", tmp_path / "bare.git"
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    run(git, "init", "--quiet", "--initial-branch=main", str(work))
    (work / "file").write_text("content\n")
    run(git, "-C", str(work), "add", "file")
    run(git, *who, "-C", str(work), "commit", "--quiet", "-m", "First")
    run(git, "clone", "--quiet", "--bare", str(work), str(bare))
    run(git, "-C", str(bare), "update-server-info")
    return bare


def git_clone(environ: Mapping[str, str], proxy: str, ca_file: str, target: Path, *options: str) -> Any:
    helper = f"!{COMMAND} git-credential {' '.join(options)}"
    command = [
        tool("git"),
        *("-c", f"http.proxy={proxy}", "-c", f"http.sslCAInfo={ca_file}"),
        *("-c", f"credential.https://dev.azure.com.helper={helper}"),
        *("clone", "--quiet", PROJECT, str(target)),
    ]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_git_clones_with_the_identity(
    judge: Any, environ: dict[str, str], authority: trustme.CA, ca_file: str, repository: Path, tmp_path: Path
) -> None:
    """Git clones from a server named dev.azure.com that takes only a token of the identity for Azure DevOps."""
    devops: Judge = judge(DEVOPS)

    def answer(request: Request) -> Answer:
        if not devops.accepts_basic(request.headers.get("Authorization", "")):
            return refused()
        name = request.target.partition("?")[0].removeprefix("/org/project/_git/repository/")
        file = repository / name
        return Answer(200, {}, file.read_bytes()) if file.is_file() else Answer(404, {}, b"")

    with host(authority, "dev.azure.com", answer) as proxy:
        done = git_clone(environ, proxy, ca_file, tmp_path / "clone")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clone/file").read_text() == "content\n"
    assert set(devops.verdicts) == {SystemAssigned().object_id}


def test_git_is_told_when_there_is_no_identity(
    imds: ImdsEmulator,
    environ: dict[str, str],
    authority: trustme.CA,
    ca_file: str,
    repository: Path,
    tmp_path: Path,
) -> None:
    """Without an identity the clone fails, and says why in the words of `azure-imds`."""
    imds.remove(SystemAssigned())
    with host(authority, "dev.azure.com", lambda _: refused()) as proxy:
        done = git_clone(environ, proxy, ca_file, tmp_path / "clone")
    assert done.returncode != 0
    assert "Identity not found" in done.stderr


def test_git_gives_no_token_to_another_server(environ: dict[str, str], imds: ImdsEmulator) -> None:
    """Git asks the helper about another server and about plain HTTP, and gets nothing; IMDS is not asked."""
    git = tool("git")
    for url in ("https://github.com/org/repository", "http://dev.azure.com/org/repository"):
        command = [git, "-c", f"credential.helper=!{COMMAND} git-credential", "credential", "fill"]
        done = subprocess.run(
            command, input=f"url={url}\n\n", env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert "password=" not in done.stdout
    imds.assert_requests(0)


# kubectl


class Cluster(BaseHTTPRequestHandler):
    """The part of a Kubernetes API server that `kubectl get --raw` needs."""

    judge: ClassVar[Judge]

    def do_GET(self) -> None:
        good = self.judge.accepts(self.headers.get("Authorization", "").removeprefix("Bearer "))
        status, kind = (200, "Version") if good else (401, "Status")
        body = json.dumps({"kind": kind, "apiVersion": "v1", "path": self.path}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def cluster(judge: Judge, certificate: tuple[str, str]) -> Iterator[str]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Judging", (Cluster,), {"judge": judge}))
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("version", ["v1beta1", "v1"])
@pytest.mark.parametrize(
    ("scope", "status"), [((), 0), (("https://vault.azure.net/.default",), 1)], ids=["aks", "other"]
)
def test_kubectl_runs_it_as_a_plugin(
    judge: Any,
    environ: dict[str, str],
    certificate: tuple[str, str],
    ca_file: str,
    tmp_path: Path,
    scope: tuple[str, ...],
    status: int,
    version: str,
) -> None:
    """Kubectl gets the token by itself and the server takes it; a token for another resource is refused."""
    kubectl, aks = tool("kubectl"), judge(AKS)
    plugin = {
        "apiVersion": f"client.authentication.k8s.io/{version}",
        "command": str(COMMAND),
        "args": ["token", *scope, "--for", "kubectl"],
        "interactiveMode": "Never",
    }
    with cluster(aks, certificate) as server:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": ca_file}}],
            "users": [{"name": "u", "user": {"exec": plugin}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        done = subprocess.run(
            [kubectl, "--kubeconfig", str(tmp_path / "config"), "get", "--raw", "/version"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert (done.returncode, '"kind": "Version"' in done.stdout) == (status, status == 0), done.stderr
    assert set(aks.verdicts) == {SystemAssigned().object_id if status == 0 else "InvalidAudienceError"}


# pip, uv and twine, through keyring


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr(
            "thing-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    return path


@dataclass
class Feed:
    """A feed in the name of Azure Artifacts with one package, for clients with a good token."""

    judge: Judge
    wheel: Path
    proxy: str = ""
    uploads: int = 0

    def answer(self, request: Request) -> Answer:
        if not self.judge.accepts_basic(request.headers.get("Authorization", "")):
            return refused()
        if request.method == "POST":
            self.uploads += request.body.count(b"PK\x03\x04") > 0
            return Answer(200, {}, b"")
        if request.target.endswith("/simple/thing/"):
            link = f'<a href="{FEED}/download/{self.wheel.name}">{self.wheel.name}</a>'
            return Answer(200, {"Content-Type": "text/html"}, f"<!DOCTYPE html>{link}".encode())
        if request.target.endswith(self.wheel.name):
            return Answer(200, {"Content-Type": "application/octet-stream"}, self.wheel.read_bytes())
        return Answer(404, {}, b"")


@pytest.fixture
def feed(judge: Any, authority: trustme.CA, wheel: Path) -> Iterator[Feed]:
    if find_spec("keyring") is None or find_spec("pip") is None:
        lacking("the extra [integration] is not installed")
    feed = Feed(judge(DEVOPS), wheel)
    with host(authority, "pkgs.dev.azure.com", feed.answer) as feed.proxy:
        yield feed


def test_pip_installs_from_a_feed(feed: Feed, environ: dict[str, str], ca_file: str, tmp_path: Path) -> None:
    """Pip asks keyring, which gives the identity's token for Azure Artifacts; the feed takes nothing else."""
    run(
        *(sys.executable, "-m", "pip", "--proxy", feed.proxy, "--cert", ca_file, "--no-cache-dir"),
        *("download", "--keyring-provider", "import", "--no-deps", "--dest", str(tmp_path / "out")),
        *("--index-url", f"{FEED}/simple/", "thing"),
        env=environ,
        seconds=SECONDS,
    )
    assert [each.name for each in (tmp_path / "out").iterdir()] == [feed.wheel.name]
    assert set(feed.judge.verdicts) == {SystemAssigned().object_id}


def test_uv_installs_from_a_feed(feed: Feed, environ: dict[str, str], ca_file: str, tmp_path: Path) -> None:
    """Uv runs the program `keyring`, which gives the identity's token; the feed takes nothing else."""
    uv = tool(str(BIN / "uv"))
    run(
        *(uv, "pip", "install", "--no-cache", "--keyring-provider", "subprocess", "--no-deps"),
        *("--python", sys.executable, "--target", str(tmp_path / "out")),
        *("--index-url", f"{FEED.replace('https://', 'https://VssSessionToken@')}/simple/", "thing"),
        env={**environ, "HTTPS_PROXY": feed.proxy, "SSL_CERT_FILE": ca_file},
        seconds=SECONDS,
    )
    assert (tmp_path / "out/thing.py").exists()
    # The name in the URL makes uv try an empty password first.
    assert {*feed.judge.verdicts} - {"DecodeError"} == {SystemAssigned().object_id}


def test_twine_uploads_to_a_feed(feed: Feed, environ: dict[str, str], ca_file: str) -> None:
    """Twine asks keyring as well."""
    run(
        *(tool(str(BIN / "twine")), "upload", "--non-interactive", "--disable-progress-bar"),
        *("--repository-url", f"{FEED}/upload/", str(feed.wheel)),
        env={**environ, "HTTPS_PROXY": feed.proxy, "REQUESTS_CA_BUNDLE": ca_file},
        seconds=SECONDS,
    )
    assert feed.uploads == 1
    assert set(feed.judge.verdicts) == {SystemAssigned().object_id}


# psql


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


class Database(socketserver.StreamRequestHandler):
    """As much of PostgreSQL as one login with a password and one answer need.

    https://www.postgresql.org/docs/current/protocol-flow.html
    """

    judge: ClassVar[Judge]

    def handle(self) -> None:
        (length,) = struct.unpack("!i", self.rfile.read(4))
        self.rfile.read(length - 4)  # version and parameters
        self.wfile.write(message(b"R", struct.pack("!i", 3)))  # AuthenticationCleartextPassword
        assert self.rfile.read(1) == b"p"
        (length,) = struct.unpack("!i", self.rfile.read(4))
        password = self.rfile.read(length - 4).rstrip(b"\0").decode()
        if not self.judge.accepts(password):
            self.wfile.write(message(b"E", b"SFATAL\0C28P01\0Mthe token was refused\0\0"))
            return
        ready = message(b"Z", b"I")
        self.wfile.write(message(b"R", struct.pack("!i", 0)) + ready)
        assert self.rfile.read(1) == b"Q"
        (length,) = struct.unpack("!i", self.rfile.read(4))
        self.rfile.read(length - 4)
        column = b"answer\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)
        row = message(b"T", struct.pack("!h", 1) + column) + message(b"D", struct.pack("!hi", 1, 2) + b"42")
        self.wfile.write(row + message(b"C", b"SELECT 1\0") + ready)


@pytest.mark.parametrize(
    ("scope", "code", "out"),
    [(f"{POSTGRES}/.default", 0, "42\n"), ("https://vault.azure.net/.default", 2, "")],
    ids=["postgres", "other"],
)
def test_psql_takes_the_raw_token_as_password(
    judge: Any, environ: dict[str, str], scope: str, code: int, out: str
) -> None:
    """`PGPASSWORD=$(azure-imds token SCOPE --raw) psql` logs in; a token for another resource is refused."""
    tool("psql")
    database: Judge = judge(POSTGRES)
    with ExitStack() as stack:
        server = stack.enter_context(
            socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Judging", (Database,), {"judge": database}))
        )
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        port = server.server_address[1]
        where = f"host=127.0.0.1 port={port} user=app dbname=app sslmode=disable gssencmode=disable"
        script = f"PGPASSWORD=$(azure-imds token {scope} --raw) psql -At '{where}' -c 'select 42'"
        done = subprocess.run(
            ["/bin/sh", "-c", script], env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert database.verdicts == [SystemAssigned().object_id if code == 0 else "InvalidAudienceError"]
