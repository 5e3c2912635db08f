"""The sample for Redis, with redis-entraid, against Debian's Redis behind a judge of tokens.

Redis decides by its access control list who may enter. Azure's Redis judges tokens; Debian's cannot. So a judge stands
before it, for TLS as well: PyJWT verifies the token of each AUTH, and only then the judge enters it into the list.
"""

from __future__ import annotations

import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from proving import free_port, lacking, needs, run, sample_environment

from azure_imds_credential.testing import ImdsEmulator

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "redis_client.py"
AUDIENCE = "https://redis.azure.com"


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """Debian's Redis on a loopback port. Without a token only the judge may enter, as `admin`."""
    needs("redis", "redis_entraid")
    server = shutil.which("redis-server")
    if server is None:
        lacking("there is no redis-server on this machine")
    port = free_port()
    configuration = tmp_path / "redis.conf"
    configuration.write_text(
        f'port {port}\nbind 127.0.0.1\nsave ""\ndir {tmp_path}\nuser default off\nuser admin on >admin ~* &* +@all\n'
    )
    with subprocess.Popen([str(server), configuration], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "Ready to accept connections" in line:
                    break
            else:
                pytest.fail(f"redis-server ended with {process.wait()}")
            yield port
        finally:
            process.terminate()


class Judge:
    """A TLS endpoint before Redis that enters good tokens into its access control list; `judged` has each verdict."""

    def __init__(self, imds: ImdsEmulator, redis_port: int, certificate: tuple[str, str]) -> None:
        import redis

        self.judged: list[str] = []
        self.redis_port = redis_port
        self.admin = redis.Redis(port=redis_port, username="admin", password="admin")
        self.keys = jwt.PyJWKClient(imds.jwks_uri)
        self.issuer = imds.issuer
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(*certificate)

    def __enter__(self) -> Judge:
        judge = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                judge.serve(judge.tls.wrap_socket(self.request, server_side=True))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.admin.close()

    def serve(self, client: ssl.SSLSocket) -> None:
        """Judge the first command, which authenticates, and hand everything on."""
        with client, socket.create_connection(("127.0.0.1", self.redis_port)) as redis:
            first = client.recv(1 << 16)
            words = first.split(b"\r\n")[2::2]  # of a RESP array of strings, without their lengths
            at = [word.upper() for word in words].index(b"AUTH")
            self.judge(words[at + 1].decode(), words[at + 2].decode())
            redis.sendall(first)
            answers = threading.Thread(target=pump, args=(redis, client), daemon=True)
            answers.start()
            pump(client, redis)
            answers.join(10)

    def judge(self, user: str, token: str) -> None:
        try:
            key = self.keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, ["RS256"], audience=AUDIENCE, issuer=self.issuer)
        except jwt.InvalidTokenError as error:
            self.judged.append(type(error).__name__)
            return
        assert claims["oid"] == user
        self.admin.acl_setuser(user, enabled=True, passwords=[f"+{token}"], keys=["*"], commands=["+@all"])
        self.judged.append("good")


def pump(source: Any, sink: Any) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has left


@pytest.fixture
def judge(imds: ImdsEmulator, redis_port: int, certificate: tuple[str, str]) -> Iterator[Judge]:
    with Judge(imds, redis_port, certificate) as judge:
        yield judge


def test_redis_takes_the_token(judge: Judge, imds: ImdsEmulator, ca_file: str) -> None:
    """Redis lets the sample in as the object ID of the token; one request to IMDS."""
    url = f"rediss://127.0.0.1:{judge.port}"
    said = run(sys.executable, SAMPLE, url, seconds=60, env=sample_environment(ca_file))
    assert said == f"{imds.identities[0].object_id} b'hello'\n"
    assert set(judge.judged) == {"good"}
    imds.assert_requests(1, resource=AUDIENCE)


@pytest.mark.parametrize(
    ("reason", "audience", "age"),
    [("InvalidAudienceError", "https://vault.azure.net", 0), ("ExpiredSignatureError", AUDIENCE, 86_401)],
)
def test_redis_refuses(judge: Judge, imds: ImdsEmulator, ca_file: str, reason: str, audience: str, age: int) -> None:
    """A token for another audience, or one that has expired, does not open Redis."""
    import redis

    imds.advance(-age)
    token = imds.issue_token(audience)
    imds.advance(age)
    client = redis.Redis(
        port=judge.port, ssl=True, ssl_ca_certs=ca_file, username=imds.identities[0].object_id, password=token
    )
    with client, pytest.raises(redis.AuthenticationError, match="invalid username-password"):
        client.ping()
    assert set(judge.judged) == {reason}
