"""Who gets no token from `azure-imds serve`: web pages, proxies, other users; and what costs others no answer."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from raw_http import Raw, send
from serving import TARGET, VAULT, Serving, serving

from azure_imds_credential import __version__
from azure_imds_credential.serve import SERVE_HEADER
from azure_imds_credential.serve._peer import NOT_FOUND, UNKNOWN_USER, peer_uid
from azure_imds_credential.serve._program import ServeOptions, check_addresses
from azure_imds_credential.serve._requests import Hosts
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

ON_LINUX = sys.platform.startswith("linux")


@pytest.fixture
def imds() -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator() as imds:
        yield imds


@pytest.fixture
def serve(imds: ImdsEmulator) -> Iterator[Serving]:
    with serving(imds) as serve:
        yield serve


def bytes_of(serve: Serving, text: str) -> bytes:
    """Return what goes over the wire: HOST stands for where serve is, and lines end as HTTP has it."""
    return text.replace("HOST", serve.host).replace("\n", "\r\n").encode("latin-1")


def statuses(answer: Raw) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/\d\.\d (\d{3}) ", answer.data)]


# Refusals

GET = f"GET {TARGET} HTTP/1.1\nHost: HOST\nMetadata: true\n"
PREFLIGHT = (
    f"OPTIONS {TARGET} HTTP/1.1\nHost: HOST\nOrigin: https://evil.example\nAccess-Control-Request-Method: GET\n"
    "Access-Control-Request-Headers: metadata\nAccess-Control-Request-Private-Network: true\n"
)
REFUSED = {
    "POST": (GET.replace("GET", "POST"), 405),
    "PUT": (GET.replace("GET", "PUT"), 405),
    "DELETE": (GET.replace("GET", "DELETE"), 405),
    "PATCH": (GET.replace("GET", "PATCH"), 405),
    "TRACE": (GET.replace("GET", "TRACE"), 405),
    "OPTIONS": (GET.replace("GET", "OPTIONS"), 405),
    "OPTIONS *": ("OPTIONS * HTTP/1.1\nHost: HOST\n", 405),
    "CONNECT": ("CONNECT 169.254.169.254:80 HTTP/1.1\nHost: HOST\n", 405),
    "preflight": (PREFLIGHT, 405),
    "absolute target": (GET.replace("GET ", "GET http://HOST"), 400),
    "absolute target elsewhere": (GET.replace("GET ", "GET http://169.254.169.254"), 400),
    "target with a fragment": (GET.replace(TARGET, f"{TARGET}#part"), 400),
    "HTTP/2.0": (GET.replace("HTTP/1.1", "HTTP/2.0"), 400),
    "target without slash": (GET.replace(f"GET {TARGET}", "GET metadata"), 400),
    "no Host": (GET.replace("Host: HOST\n", ""), 400),
    "two Hosts": (GET + "Host: HOST\n", 400),
    "two Hosts, one foreign": (GET + "Host: evil.example\n", 400),
    "foreign Host": (GET.replace("HOST", "evil.example"), 403),
    "foreign Host with our port": (GET.replace("Host: HOST", "Host: evil.example:HOST_PORT"), 403),
    "Host that begins as ours": (GET.replace("Host: HOST", "Host: HOST.evil.example"), 403),
    "Host of another port": (GET.replace("Host: HOST", "Host: 127.0.0.1:1"), 403),
    "Host without the port": (GET.replace("Host: HOST", "Host: localhost"), 403),
    "Host of all zeros": (GET.replace("Host: HOST", "Host: 0.0.0.0:HOST_PORT"), 403),
    "Host with a user": (GET.replace("Host: HOST", "Host: HOST@evil.example"), 403),
    "empty Host": (GET.replace("Host: HOST", "Host:"), 403),
    "X-Forwarded-For": (GET + "X-Forwarded-For: 10.0.0.1\n", 400),
    "empty X-Forwarded-For": (GET + "x-forwarded-for:\n", 400),
    "Forwarded": (GET + "Forwarded: for=10.0.0.1\n", 400),
    "Origin": (GET + "Origin: https://evil.example\n", 400),
    "Origin null": (GET + "Origin: null\n", 400),
    "Origin of our own": (GET + "Origin: http://HOST\n", 400),
    "navigation": (GET + "Sec-Fetch-Site: none\nSec-Fetch-Mode: navigate\n", 400),
    "image of a page": (GET + "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors\n", 400),
    "a body": (GET + "Content-Length: 5\n", 400),
    "a body in chunks": (GET + "Transfer-Encoding: chunked\n", 400),
    "a serve": (GET + "User-Agent: azure-imds-serve/0.1.0 azure-imds-credential\n", 421),
}


@pytest.mark.parametrize("name", REFUSED)
def test_serve_refuses(name: str, imds: ImdsEmulator, serve: Serving) -> None:
    """Each is refused and its connection ended, with no token, although one is held and IMDS would give one."""
    token = serve.token()
    imds.clear_requests()
    text, status = REFUSED[name]
    text = text.replace("HOST_PORT", serve.host.partition(":")[2])
    answer = send(serve.url, bytes_of(serve, f"{text}\n"))
    assert statuses(answer) == [status], answer.data
    assert token.encode() not in answer.data
    assert answer.header("Connection") == "close" or answer.data.startswith((b"HTTP/1.0 ", b"HTTP/2.0 "))
    assert answer.header(SERVE_HEADER) == __version__
    assert not [key for key, _ in answer.headers if key.lower().startswith("access-control")]
    assert imds.requests == []


METADATA = ["", "Metadata: false\n", "Metadata: True\n", "Metadata: TRUE\n", "Metadata: true, true\n", "Metadata:\n",
            "Metadata: true\nMetadata: true\n", "Metadata: true\nMetadata: false\n", "X-Metadata: true\n"]  # fmt: skip


@pytest.mark.parametrize("lines", METADATA)
def test_serve_needs_metadata_as_documented(lines: str, serve: Serving) -> None:
    """Only `Metadata: true`, once and in lower case, will do; a page cannot send any without a preflight."""
    serve.token()
    answer = send(serve.url, bytes_of(serve, f"GET {TARGET} HTTP/1.1\nHost: HOST\n{lines}Connection: close\n\n"))
    assert (answer.status, answer.json["error_description"]) == (400, "Required metadata header not specified")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8169", "localhost:8169", "LOCALHOST:8169", "[::1]:8169", "169.254.169.254"]
)
def test_serve_is_asked_by_its_address(host: str) -> None:
    """A Host that names loopback and the port is serve's, and so is IMDS's own where a machine redirects it."""
    assert Hosts(8169).allow(host, "127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.4", "imds.kube-system", "127.0.0.1:80"])
def test_serve_on_port_80_is_asked_without_it(host: str) -> None:
    """Clients leave port 80 out of Host: there, and only there, names alone will do."""
    assert Hosts(80, ["imds.kube-system"]).allow(host, "10.0.0.4")
    assert not Hosts(80).allow("evil.example", "10.0.0.4")
    assert not Hosts(8169).allow("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("local", "host"),
    [("10.0.0.4", "10.0.0.4:8169"), ("::ffff:10.0.0.4", "10.0.0.4:8169"), ("fd00::4", "[fd00::4]:8169")],
)
def test_serve_is_asked_by_the_address_of_the_connection(local: str, host: str) -> None:
    """On a wildcard address the Host may name the address that the client connected to, and no other."""
    assert Hosts(8169).allow(host, local)
    assert not Hosts(8169).allow(host.replace("4]", "5]").replace(".4:", ".5:"), local)


def test_serve_is_asked_by_names_that_were_allowed(imds: ImdsEmulator) -> None:
    """--allow-host adds a name, with serve's port or with one of its own; others stay refused."""
    with serving(imds, allow_hosts=("imds.kube-system", "forwarded:80")) as serve:
        port = serve.host.partition(":")[2]
        for host, status in {f"imds.kube-system:{port}": 200, "IMDS.kube-system": 200, "forwarded:80": 200,
                             "imds.kube-system.evil.example": 403, "forwarded:81": 403}.items():  # fmt: skip
            answer = send(
                serve.url,
                f"GET {TARGET} HTTP/1.1\r\nHost: {host}\r\nMetadata: true\r\nConnection: close\r\n\r\n".encode(),
            )
            assert answer.status == status, host


# Smuggling: what hides in a request is never read as one

HIDDEN = f"GET {TARGET} HTTP/1.1\nHost: HOST\nMetadata: true\n\n"
SMUGGLED = {
    "in a body": f"GET /healthz HTTP/1.1\nHost: HOST\nContent-Length: 400\n\n{HIDDEN}",
    "behind length and chunks": (
        f"GET /healthz HTTP/1.1\nHost: HOST\nContent-Length: 4\nTransfer-Encoding: chunked\n\n0\n\n{HIDDEN}"
    ),
    "behind two lengths": f"GET /healthz HTTP/1.1\nHost: HOST\nContent-Length: 0\nContent-Length: 400\n\n{HIDDEN}",
    "behind a list of lengths": f"GET /healthz HTTP/1.1\nHost: HOST\nContent-Length: 0, 400\n\n{HIDDEN}",
    "behind a signed length": f"GET /healthz HTTP/1.1\nHost: HOST\nContent-Length: +0\n\n{HIDDEN}",
    "behind odd chunks": f"GET /healthz HTTP/1.1\nHost: HOST\nTransfer-Encoding: xchunked\n\n{HIDDEN}",
    "behind chunks twice": (
        f"GET /healthz HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n{HIDDEN}"
    ),
    "behind a spaced name": f"GET /healthz HTTP/1.1\nHost: HOST\nContent-Length : 400\n\n{HIDDEN}",
    "behind a folded line": f"GET /healthz HTTP/1.1\nHost: HOST\nX: a\n Content-Length: 400\n\n{HIDDEN}",
    "behind a refused method": f"POST /healthz HTTP/1.1\nHost: HOST\nContent-Length: 0\n\n{HIDDEN}",
    "behind a refused page": f"GET /healthz HTTP/1.1\nHost: HOST\nOrigin: null\n\n{HIDDEN}",
    "behind HTTP/0.9": f"GET /healthz\n{HIDDEN}",
    "behind TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + HIDDEN,
    "behind HTTP/2": f"PRI * HTTP/2.0\n\nSM\n\n{HIDDEN}",
    "in the target": f"GET /healthz?x HTTP/1.1\rHost: HOST {HIDDEN}",
    "in a header": f"GET /healthz HTTP/1.1\nHost: HOST\nX: \0{HIDDEN}",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_serve_reads_no_hidden_request(name: str, serve: Serving) -> None:
    """A request that hides behind or inside a refused one is not answered: the connection ends after the refusal."""
    token = serve.token()
    answer = send(serve.url, bytes_of(serve, SMUGGLED[name]))
    assert len(statuses(answer)) <= 1, answer.data
    assert set(statuses(answer)) <= {400, 405}
    assert token.encode() not in answer.data


@pytest.mark.parametrize(
    "request_",
    [
        f"GET {TARGET}{'x' * 9000} HTTP/1.1\nHost: HOST\nMetadata: true\n\n",
        f"{GET}X: {'x' * 9000}\n\n",
        f"{GET}{'X' * 9000}: x\n\n",
        GET + "".join(f"X-{n}: x\n" for n in range(100)) + "\n",
        "\0" * 100 + "\n\n",
        "GET\n\n",
        f"GET {TARGET} HTTP/9.9\nHost: HOST\nMetadata: true\n\n",
        f"{GET}X\x7f: y\n\n",
    ],
    ids=["long target", "long header", "long name", "many headers", "zeros", "no target", "version", "odd name"],
)
def test_serve_limits_headers(request_: str, serve: Serving) -> None:
    """What is too large or no HTTP gets 400 or nothing, and never a token."""
    token = serve.token()
    answer = send(serve.url, bytes_of(serve, request_))
    assert set(statuses(answer)) <= {400}
    assert token.encode() not in answer.data


def test_serve_answers_what_is_no_http_as_everything_else(serve: Serving) -> None:
    """The answer to bytes that are no request has IMDS's shape and serve's header, repeats none of them, and counts."""
    answer = send(serve.url, bytes_of(serve, "GET /healthz HTTP/1.1\nHost : HOST\n<script>\n\n"))
    assert (answer.status, answer.json["error"]) == (400, "invalid_request")
    assert (answer.header(SERVE_HEADER), answer.header("Server")) == (__version__, "IMDS/azure-imds-serve")
    assert b"<script>" not in answer.data
    assert serve.service.metrics.refusals == {"http": 1}


def test_serve_answers_pipelined_requests(serve: Serving) -> None:
    """Requests that follow each other on a connection are answered in their order."""
    last = "GET /x HTTP/1.1\nHost: HOST\nConnection: close\n\n"
    answer = send(serve.url, bytes_of(serve, f"{GET}\nGET /healthz HTTP/1.1\nHost: HOST\n\n{last}"))
    assert statuses(answer) == [200, 200, 404]


def test_serve_takes_an_offer_of_http2(serve: Serving) -> None:
    """A client that offers to go on with HTTP/2, as Java's does by default, gets its answer in HTTP/1.1."""
    offer = "Connection: Upgrade, HTTP2-Settings, close\nUpgrade: h2c\nHTTP2-Settings: AAEAAEAAAAIAAAAA\n"
    assert statuses(send(serve.url, bytes_of(serve, f"{GET}{offer}\n"))) == [200]


# Slow and many


def ended(connection: socket.socket) -> bool:
    """Say whether the other end ended a connection, once it did; fails after 30 s."""
    connection.settimeout(30)
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def is_cut_off(connection: socket.socket, pieces: list[bytes], pause: float = 0.0) -> bool:
    """Say whether the other end ended a connection before all was sent."""
    try:
        for piece in pieces:
            connection.sendall(piece)
            threading.Event().wait(pause)
    except ConnectionError:
        return True
    return False


def connect(serve: Serving) -> socket.socket:
    host, _, port = serve.host.partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_serve_ends_idle_connections(imds: ImdsEmulator) -> None:
    """A client that says nothing, or not all of its request, or nothing after it, is cut off."""
    with serving(imds, idle_seconds=0.2) as serve, ExitStack() as stack:
        for begun in (b"", b"GET /healthz HT", bytes_of(serve, GET), bytes_of(serve, f"{GET}\n")):
            connection = stack.enter_context(connect(serve))
            connection.sendall(begun)
            assert ended(connection)
        assert serve.call(lambda: len(serve.service._connections)) == 0


def test_serve_ends_dripping_connections(imds: ImdsEmulator) -> None:
    """A client that sends its request byte by byte has the same time for it, however regularly they come."""
    with serving(imds, idle_seconds=0.2) as serve, connect(serve) as connection:
        begun = f"GET /{'x' * 8000} HTTP/1.1".encode()
        assert is_cut_off(connection, [bytes([byte]) for byte in begun], pause=0.01)  # it would take 80 s
        serve.token()


def test_serve_ends_connections_that_are_not_read(imds: ImdsEmulator) -> None:
    """A client that asks and asks and reads no answer is cut off, and costs others nothing."""
    with serving(imds, idle_seconds=0.2) as serve, connect(serve) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = bytes_of(serve, f"{GET}\n") * 100
        assert is_cut_off(connection, [request] * 100_000)  # once the buffers of both ends are full
        serve.token()


def test_serve_waits_for_slow_answers_of_imds(imds: ImdsEmulator) -> None:
    """A request that waits for IMDS is no idle connection, however long it takes."""
    release = threading.Event()
    imds.script(faults.hold(release))
    with serving(imds, idle_seconds=0.2) as serve, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(serve.token)
        imds.wait_for_requests(1)
        with connect(serve) as idle:
            assert ended(idle)  # so the time for idle connections is over
        release.set()
        assert asked.result()


def test_serve_makes_room_for_new_connections(imds: ImdsEmulator) -> None:
    """Of too many connections the one that was idle longest is ended: those that do nothing keep out no client."""
    with serving(imds, max_connections=8) as serve, ExitStack() as stack:
        idle = [stack.enter_context(connect(serve)) for _ in range(40)]
        serve.token()
        assert serve.call(lambda: len(serve.service._connections)) <= 8
        assert ended(idle[0])


@pytest.mark.slow
def test_serve_survives_ten_thousand_connections(imds: ImdsEmulator) -> None:
    """10,000 connections that send half a request are made, kept open, and a client is answered among them."""
    with serving(imds) as serve, ExitStack() as stack:
        token = serve.token()
        for number in range(10_000):
            try:
                connection = connect(serve)
            except OSError as error:
                pytest.skip(f"this machine opens no more than {number} connections: {error}")
            stack.enter_context(connection)
            connection.sendall(b"GET / HTTP/1.1\r\n")
            if number % 2_500 == 0:
                assert serve.token() == token
        assert serve.token() == token
        assert serve.call(lambda: len(serve.service._connections)) <= 256


def test_serve_refuses_connections_when_all_are_busy(imds: ImdsEmulator) -> None:
    """When every connection waits for an answer a further one is ended at once; afterwards all is well."""
    release = threading.Event()
    imds.script(faults.hold(release))
    with serving(imds, max_connections=2) as serve, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(serve.token) for _ in range(2)]
        imds.wait_for_requests(1)
        while serve.call(lambda: len(serve.service._connections._busy)) < 2:
            threading.Event().wait(0.01)
        with connect(serve) as third:
            assert ended(third)
        release.set()
        assert len({each.result() for each in asked}) == 1
        serve.token()


# Where it listens


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.4", "192.168.1.1", "fd00::1", "169.254.1.1"])
def test_serve_listens_on_loopback_only(address: str) -> None:
    """Another address than loopback needs a second word of the user."""
    with pytest.raises(ValueError, match="--i-know-that-others-can-ask"):
        check_addresses(ServeOptions(host=address), address, 8169)
    check_addresses(ServeOptions(host=address, others_can_ask=True), address, 8169)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.1.69", "::1"])
def test_serve_listens_on_any_loopback_address(address: str) -> None:
    """Every loopback address needs no further word."""
    check_addresses(ServeOptions(host=address), address, 8169)


# --user-only


@pytest.mark.skipif(not ON_LINUX, reason="/proc/net/tcp")
def test_serve_answers_its_own_user(imds: ImdsEmulator) -> None:
    """With --user-only processes of serve's own user are answered, also those that speak IPv4 over an IPv6 socket."""
    with serving(imds, user_only=True) as serve:
        serve.token()
        if socket.has_dualstack_ipv6():
            with socket.socket(socket.AF_INET6) as java:
                java.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                java.connect(("::ffff:127.0.0.1", int(serve.host.partition(":")[2])))
                java.sendall(bytes_of(serve, f"{GET}\n"))
                assert java.recv(65536).startswith(b"HTTP/1.1 200 ")


ASK_AS = """
import encodings.idna, os, socket, sys
os.setgid(65534), os.setuid(65534)  # before it connects; what it imports is there already
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(sys.argv[2].encode())
    print(connection.recv(65536).decode().split()[1])
"""


@pytest.mark.skipif(not ON_LINUX or os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("user_only", "status"), [(True, "403\n"), (False, "200\n")])
def test_serve_refuses_other_users(*, user_only: bool, status: str, imds: ImdsEmulator) -> None:
    """With --user-only a process of another user gets 403, and without it a token."""
    with serving(imds, user_only=user_only) as serve:
        command = [sys.executable, "-c", ASK_AS, serve.host.partition(":")[2], bytes_of(serve, f"{GET}\n").decode()]
        said = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    assert said == status
    assert len(imds.requests) == (not user_only)


def test_user_only_is_not_for_the_unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container each user that it does not know has one number: serve under that number could not tell them."""
    monkeypatch.setattr("azure_imds_credential.serve._program.is_supported", lambda: True)
    monkeypatch.setattr("os.getuid", lambda: UNKNOWN_USER, raising=False)
    with pytest.raises(ValueError, match="--user-only"):
        check_addresses(ServeOptions(user_only=True), "127.0.0.1", 8169)
    check_addresses(ServeOptions(), "127.0.0.1", 8169)


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1FE9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1
   1: 0100007F:C350 0100007F:1FE9 01 00000000:00000000 00:00000000 00000000  1000        0 101 1
   2: 0100007F:1FE9 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 102 1
   3: 0100007F:C351 0100007F:1FE9 06 00000000:00000000 03:00000000 00000000     0        0 0 3
"""
TABLE6 = """\
  sl  local_address                         remote_address                        st tx rx tr tm->when retrnsmt uid timeout inode
   0: 0000000000000000FFFF00000100007F:C352 0000000000000000FFFF00000100007F:1FE9 01 0:0 00:0 0  1001        0 103 1
   1: 00000000000000000000000001000000:C353 00000000000000000000000001000000:1FE9 01 0:0 00:0 0  1002        0 104 1
"""  # noqa: E501


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables have the machine's byte order")
@pytest.mark.parametrize(
    ("peer", "local", "uid"),
    [
        (("127.0.0.1", 50000), ("127.0.0.1", 8169), 1000),
        (("127.0.0.1", 50001), ("127.0.0.1", 8169), NOT_FOUND),  # its process is gone: 0 would be root
        (("127.0.0.1", 50002), ("127.0.0.1", 8169), 1001),
        (("::1", 50003), ("::1", 8169), 1002),
        (("::ffff:127.0.0.1", 50000), ("::ffff:127.0.0.1", 8169), 1000),
        (("127.0.0.1", 50009), ("127.0.0.1", 8169), NOT_FOUND),
        (("127.0.0.2", 50000), ("127.0.0.1", 8169), NOT_FOUND),
    ],
    ids=["IPv4", "gone", "IPv4 over IPv6", "IPv6", "mapped", "another port", "another address"],
)
def test_peer_is_found_in_the_kernels_tables(
    peer: tuple[str, int], local: tuple[str, int], uid: int, tmp_path: Path
) -> None:
    """The owner of the peer's socket is read from the kernel's tables, whichever of the two lists it."""
    files = tmp_path / "tcp", tmp_path / "tcp6"
    for file, table in zip(files, (TABLE, TABLE6), strict=True):
        file.write_text(table)
    assert peer_uid(peer, local, tuple(map(str, files))) == uid
    assert peer_uid(peer, local, (str(tmp_path / "none"),)) == NOT_FOUND


def test_nothing_a_page_sends_gets_a_token(imds: ImdsEmulator, serve: Serving) -> None:
    """The headers that a page may set without a preflight, with each way of a browser to send them, get no token."""
    token = serve.token()
    imds.clear_requests()
    # https://fetch.spec.whatwg.org/#cors-safelisted-request-header, and what browsers add.
    safelisted = "Accept: */*\nAccept-Language: en\nContent-Language: en\nRange: bytes=0-\n"
    for method, body in (("GET", ""), ("HEAD", ""), ("POST", "Content-Type: text/plain\nContent-Length: 14\n")):
        for added in ("", "Origin: https://evil.example\n", "Origin: null\n", "Sec-Fetch-Site: same-origin\n"):
            for host in ("HOST", "evil.example", f"evil.example:{serve.host.partition(':')[2]}"):
                for metadata in ("", "Metadata: true\n"):
                    if metadata and not added and host == "HOST" and method != "POST":
                        continue  # no browser: a page cannot add Metadata without a preflight
                    lines = f"{method} {TARGET} HTTP/1.1\nHost: {host}\n{safelisted}{added}{body}{metadata}"
                    sent = bytes_of(serve, f"{lines}Connection: close\n\n" + ("Metadata: true" if body else ""))
                    answer = send(serve.url, sent)
                    assert answer.status in (400, 403, 405), lines
                    assert token.encode() not in answer.data
    assert imds.requests == []
    assert VAULT in TARGET
