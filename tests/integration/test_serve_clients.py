"""Clients that others wrote, unchanged, behind one `azure-imds serve`: IMDS is asked once per identity and resource.

Each is set up as its own documentation says: by AZURE_POD_IDENTITY_AUTHORITY_HOST, or by an option with the URL.
"""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from proving import CACHE, HERE, run, tool

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned

VAULT, STORAGE, EVENT_HUBS = "https://vault.azure.net", "https://storage.azure.com", "https://eventhubs.azure.net"
TOKEN_PATH = "/metadata/identity/oauth2/token"
USER = UserAssigned("app")
SECONDS = 240  # for a client on a busy machine


# Clients: each is given the URL of serve, and returns the token that it got


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "AZURE_POD_IDENTITY_AUTHORITY_HOST": url}


def python(code: str) -> Callable[[str], str]:
    """A client that is a Python program of its own, which prints its token."""
    return lambda url: run(sys.executable, "-W", "error", "-c", code, seconds=SECONDS, env=environment(url)).strip()


AZURE_IDENTITY = f"""
from azure.identity import ManagedIdentityCredential
print(ManagedIdentityCredential().get_token("{VAULT}/.default").token)
"""
AZURE_IDENTITY_OF_USER = f"""
from azure.identity import ManagedIdentityCredential
print(ManagedIdentityCredential(client_id="{USER.client_id}").get_token("{VAULT}/.default").token)
"""
AZURE_IDENTITY_DEFAULT = f"""
from azure.identity import DefaultAzureCredential
credential = DefaultAzureCredential(exclude_environment_credential=True, exclude_workload_identity_credential=True)
print(credential.get_token("{VAULT}/.default").token)
"""
AZURE_IDENTITY_AIO = f"""
import asyncio
from azure.identity.aio import ManagedIdentityCredential
async def main():
    async with ManagedIdentityCredential() as credential:
        print((await credential.get_token("{VAULT}/.default")).token)
asyncio.run(main())
"""
MSAL = f"""
import msal, requests
client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=requests.Session())
print(client.acquire_token_for_client(resource="{VAULT}")["access_token"])
"""
JAVASCRIPT = f"""
import {{ ManagedIdentityCredential }} from "@azure/identity";
console.log((await new ManagedIdentityCredential().getToken("{VAULT}/.default")).token);
"""
JAVA = f"""
import com.azure.core.credential.TokenRequestContext;
import com.azure.identity.ManagedIdentityCredentialBuilder;

public class Ask {{
    public static void main(String[] arguments) {{
        TokenRequestContext context = new TokenRequestContext().addScopes("{VAULT}/.default");
        System.out.println(new ManagedIdentityCredentialBuilder().build().getTokenSync(context).getToken());
        System.exit(0);
    }}
}}
"""


@pytest.fixture(scope="session")
def java(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """azure-identity for Java, with what it needs from Maven Central."""
    maven, program, project = tool("mvn"), tool("java"), HERE / "java"
    CACHE.mkdir(exist_ok=True)
    classpath, source = CACHE / "java.classpath", tmp_path_factory.mktemp("java") / "Ask.java"
    with (CACHE / "java.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be installing
        if not classpath.exists() or classpath.stat().st_mtime < (project / "pom.xml").stat().st_mtime:
            run(maven, "-q", "-B", "dependency:build-classpath", f"-Dmdep.outputFile={classpath}", cwd=project)
    source.write_text(JAVA)
    command = [program, "-cp", classpath.read_text(), str(source)]

    def ask(url: str) -> str:
        # Its log goes to standard output too, through slf4j's fallback; the token is the last line.
        return run(*command, seconds=SECONDS, env=environment(url)).split()[-1]

    return ask


@pytest.fixture
def javascript(peers: Path) -> Callable[[str], str]:
    """@azure/identity from npm."""
    command = [tool("node"), "--input-type=module", "-e", JAVASCRIPT]
    return lambda url: run(*command, cwd=peers.parent, seconds=SECONDS, env=environment(url)).strip()


class Storage(http.server.BaseHTTPRequestHandler):
    """A blob service that holds nothing, and remembers by whose token it was asked."""

    tokens: list[str]

    def do_GET(self) -> None:
        scheme, _, token = (self.headers["Authorization"] or "").partition(" ")
        self.tokens.append(token if scheme == "Bearer" else "")
        empty = b'<?xml version="1.0"?><EnumerationResults><Blobs/></EnumerationResults>'
        listing = "comp=list" in self.path
        self.send_response(200 if listing else 404)
        self.send_header("Content-Length", str(len(empty) if listing else 0))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(empty if listing else b"")

    do_HEAD = do_GET  # noqa: N815 # the name that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


DELTA = """
import sys
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
options = {
    "account_name": "account",
    "endpoint": sys.argv[1],
    "allow_http": "true",
    "msi_endpoint": sys.argv[2],
}
try:
    DeltaTable("az://container/table", storage_options=options)
except TableNotFoundError:
    print("not there")
"""


def delta(url: str) -> str:
    """delta-rs, whose object store asks for a token itself and takes the whole URL as an option."""
    pytest.importorskip("deltalake")
    tokens: list[str] = []
    handler = type("Handler", (Storage,), {"tokens": tokens})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}/account"
        command = [sys.executable, "-c", DELTA, endpoint, url + TOKEN_PATH]
        assert run(*command, seconds=SECONDS) == "not there\n"
        server.shutdown()
    (token,) = set(tokens)
    return token


@dataclass
class Broker:
    """So much of a Kafka broker that a client logs in: https://kafka.apache.org/protocol."""

    port: int = 0
    token: str = ""
    came: threading.Event = field(default_factory=threading.Event)

    VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36  # keys of the requests

    def talk(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while head := stream.read(4):
            request = stream.read(struct.unpack(">i", head)[0])
            key, version, correlation = struct.unpack(">hhi", request[:8])
            body = self.answer(key, version, request)
            connection.sendall(struct.pack(">ii", 4 + len(body), correlation) + body)

    def answer(self, key: int, version: int, request: bytes) -> bytes:
        if key == self.VERSIONS:  # error 35 for any version but the first: then the client asks with that
            known = ((self.VERSIONS, 0, 0), (self.HANDSHAKE, 0, 1), (self.AUTHENTICATE, 0, 0), (3, 0, 1), (0, 0, 3))
            ranges = b"".join(struct.pack(">hhh", *each) for each in known)
            return struct.pack(">hi", 35 if version else 0, len(known)) + ranges
        if key == self.HANDSHAKE:
            name = b"OAUTHBEARER"
            return struct.pack(">hih", 0, 1, len(name)) + name
        assert key == self.AUTHENTICATE, key
        # RFC 7628, section 3.1: "n,,^Aauth=Bearer TOKEN^A^A".
        self.token = request.partition(b"auth=Bearer ")[2].partition(b"\x01")[0].decode()
        self.came.set()
        return struct.pack(">hhi", 0, -1, 0)


@contextmanager
def broker() -> Iterator[Broker]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Broker(listener.getsockname()[1])

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError, AssertionError):
                running.talk(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield running


def kafka(url: str) -> str:
    """librdkafka, whose login asks IMDS itself, and takes query and URL as options."""
    confluent = pytest.importorskip("confluent_kafka")
    said: list[str] = []
    with broker() as server:
        producer = confluent.Producer(
            {
                "bootstrap.servers": f"127.0.0.1:{server.port}",
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanisms": "OAUTHBEARER",
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.metadata.authentication.type": "azure_imds",
                "sasl.oauthbearer.config": f"query=api-version=2018-02-01&resource={quote(EVENT_HUBS, safe='')}",
                "sasl.oauthbearer.token.endpoint.url": url + TOKEN_PATH,
                "error_cb": lambda error: said.append(str(error)),
            }
        )
        for _ in range(10 * SECONDS):
            producer.poll(0.1)
            if server.came.is_set():
                break
        assert server.token, said
    return server.token


# One serve for all


@pytest.fixture
def machine() -> Iterator[tuple[ImdsEmulator, str]]:
    """An IMDS with the documented limits, and the URL of a serve before it, which is a process of its own."""
    with ImdsEmulator([SystemAssigned(), USER], throttle=True, latency=0.05) as imds:
        serve = [sys.executable, "-m", "azure_imds_credential", "serve", "--port", "0", "--endpoint", imds.endpoint]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield imds, process.stdout.readline().strip().partition("=")[2]
            process.terminate()


def asked_for(imds: ImdsEmulator) -> list[tuple[str | None, str | None]]:
    return sorted((each.param("client_id") or "", each.param("resource")) for each in imds.token_requests)


CLIENTS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "azure-identity": (python(AZURE_IDENTITY), "", VAULT),
    "azure-identity, aio": (python(AZURE_IDENTITY_AIO), "", VAULT),
    "azure-identity, a chain": (python(AZURE_IDENTITY_DEFAULT), "", VAULT),
    "azure-identity, user-assigned": (python(AZURE_IDENTITY_OF_USER), USER.client_id, VAULT),
    "msal": (python(MSAL), "", VAULT),
    "delta-rs": (delta, "", STORAGE),
    "librdkafka": (kafka, "", EVENT_HUBS),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_client_gets_its_token_from_serve(name: str, machine: tuple[ImdsEmulator, str]) -> None:
    """Each client gets the token that IMDS issued for its identity and resource."""
    imds, url = machine
    ask, client_id, resource = CLIENTS[name]
    assert ask(url) == imds.tokens[-1]
    assert asked_for(imds) == [(client_id, resource)]


def test_javascript_gets_its_token_from_serve(
    javascript: Callable[[str], str], machine: tuple[ImdsEmulator, str]
) -> None:
    """So does @azure/identity."""
    imds, url = machine
    assert javascript(url) == imds.tokens[-1]


def test_java_gets_its_token_from_serve(java: Callable[[str], str], machine: tuple[ImdsEmulator, str]) -> None:
    """So does azure-identity for Java."""
    imds, url = machine
    assert java(url) == imds.tokens[-1]


def test_all_clients_together_cost_one_request_per_token(
    java: Callable[[str], str], javascript: Callable[[str], str], machine: tuple[ImdsEmulator, str]
) -> None:
    """All clients at once, three of each, ask IMDS once per identity and resource, and it refuses none."""
    imds, url = machine
    clients = {**CLIENTS, "@azure/identity": (javascript, "", VAULT), "azure-identity for Java": (java, "", VAULT)}
    with ThreadPoolExecutor(3 * len(clients)) as pool:
        asked = {name: [pool.submit(ask, url) for _ in range(3)] for name, (ask, _, _) in clients.items()}
        tokens = {name: {each.result() for each in each_asked} for name, each_asked in asked.items()}
    assert asked_for(imds) == sorted({(client_id, resource) for _, client_id, resource in clients.values()})
    assert [each.answered for each in imds.token_requests if each.answered != "200"] == []
    assert {name: len(each) for name, each in tokens.items()} == dict.fromkeys(clients, 1)
    assert json.dumps(sorted(imds.tokens)) == json.dumps(sorted({token for each in tokens.values() for token in each}))
