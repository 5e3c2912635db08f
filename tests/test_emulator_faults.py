"""Everything that can go wrong on purpose, as it looks on the wire."""

from __future__ import annotations

import gzip
import math
import os
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from raw_http import TOKEN_TARGET, Raw, exchange, send

from azure_imds_credential.testing import ImdsEmulator, faults

NOON = 1_800_000_000.0
REQUEST = f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\nMetadata: true\r\n\r\n".encode()


@pytest.fixture
def imds() -> Any:
    """An emulator whose clock stands still, so that every Date is the same."""
    with ImdsEmulator(clock=lambda: NOON) as emulator:
        yield emulator


def met(imds: ImdsEmulator, fault: faults.Fault, **more: Any) -> Raw:
    """What a client sees of a fault. Another answer follows it, to show that the fault hit one request only."""
    imds.script(fault)
    answer = exchange(imds.endpoint, **more)
    assert imds.faults_left == 0
    assert exchange(imds.endpoint).status == 200
    return answer


def test_any_status_with_any_body(imds: ImdsEmulator) -> None:
    """A status comes with the body, the reason and the headers that were asked for; others stay IMDS's own."""
    plain = met(imds, faults.status(410))
    assert (plain.status_line, plain.body, plain.header("Content-Length")) == ("HTTP/1.1 410 Gone", b"", "0")
    assert plain.header("Server") == "IMDS/150.870.65.1854"
    assert plain.header("Retry-After") is None
    text = met(imds, faults.status(599, "words", reason="Odd", headers={"Server": None, "X": "y"}))
    assert (text.status_line, text.body) == ("HTTP/1.1 599 Odd", b"words")
    assert text.header("Content-Type") == "text/plain; charset=utf-8"
    assert (text.header("Server"), text.header("X")) == (None, "y")
    mapped = met(imds, faults.status(400, {"error": "access_denied"}, headers={"Server": "nginx"}))
    assert (mapped.body, mapped.header("Server")) == (b'{"error":"access_denied"}', "nginx")
    assert met(imds, faults.status(599)).status_line == "HTTP/1.1 599 "


@pytest.mark.parametrize(
    ("given", "sent"), [(2, "2"), (0.5, "0.5"), ("Fri, 15 Jan 2027 08:00:07 GMT", "Fri, 15 Jan 2027 08:00:07 GMT")]
)
def test_retry_after(imds: ImdsEmulator, given: Any, sent: str) -> None:
    """Retry-After comes as seconds or as a date, before the Date header and with the order of the rest kept."""
    answer = met(imds, faults.throttled(retry_after=given))
    assert answer.status == 429
    assert [name for name, _ in answer.headers] == [
        "Content-Type",
        "Server",
        "x-ms-request-id",
        "Retry-After",
        "Date",
        "Content-Length",
    ]
    assert answer.header("Retry-After") == sent


def test_a_script_is_played_in_order(imds: ImdsEmulator) -> None:
    """Faults of a script hit one request each, in order, `ok` lets one through, and then all is well."""
    imds.script(faults.status(410), faults.ok, faults.throttled())
    imds.script(faults.status(503))
    assert imds.faults_left == 4
    assert [exchange(imds.endpoint).status for _ in range(5)] == [410, 200, 429, 503, 200]


def test_a_window_of_time(imds: ImdsEmulator) -> None:
    """With `seconds`, all requests of that time of the emulator's clock meet the faults in turn."""
    imds.script(faults.status(410), faults.status(404), seconds=70)
    assert [exchange(imds.endpoint).status for _ in range(3)] == [410, 404, 410]
    imds.advance(69.9)
    assert exchange(imds.endpoint).status == 404
    imds.advance(0.1)
    assert exchange(imds.endpoint).status == 200


def test_clear_faults(imds: ImdsEmulator) -> None:
    """A window without end lasts until `clear_faults`, which stops random ones as well."""
    imds.script(faults.status(500), seconds=math.inf)
    imds.random_faults(faults.status(503), rate=1, seed=1)
    imds.advance(1e9)
    assert exchange(imds.endpoint).status == 500
    imds.clear_faults()
    assert exchange(imds.endpoint).status == 200


def test_faults_of_another_path(imds: ImdsEmulator) -> None:
    """A fault for another path leaves token requests alone."""
    imds.script(faults.status(500), path="/metadata/versions")
    assert exchange(imds.endpoint).status == 200
    assert exchange(imds.endpoint, "/metadata/versions").status == 500


def test_random_faults() -> None:
    """The same seed gives the same sequence, another one another; the rate is about the share that goes wrong."""

    def sequence(seed: int) -> list[int]:
        with ImdsEmulator() as imds:
            imds.random_faults(faults.status(500), faults.throttled(), rate=0.4, seed=seed)
            return [exchange(imds.endpoint).status for _ in range(60)]

    once, again, other = sequence(7), sequence(7), sequence(8)
    assert once == again != other
    assert {200, 429, 500} == set(once)
    assert 10 <= sum(status != 200 for status in once) <= 38


def test_an_empty_script_is_an_error(imds: ImdsEmulator) -> None:
    """A script without faults is a mistake of the test and says so."""
    with pytest.raises(ValueError, match="at least one fault"):
        imds.script(seconds=5)


def test_silence(imds: ImdsEmulator) -> None:
    """A hanging answer never comes; the emulator ends at once all the same."""
    imds.script(faults.hang)
    with pytest.raises(TimeoutError):
        exchange(imds.endpoint, timeout=0.1)
    imds.assert_requests(1)


def test_clients_that_gave_up() -> None:
    """An answer that hangs is over when its client is gone: it is no longer one of the five at once."""
    with ImdsEmulator(throttle=True) as imds:
        imds.script(*[faults.hang] * 5)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                exchange(imds.endpoint, timeout=0.02)
        deadline = time.monotonic() + 60
        while (status := exchange(imds.endpoint).status) == 429 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status == 200


def test_closing_ends_what_hangs() -> None:
    """`close` does not wait for answers that hang, drip or are held back, nor for a restart that is not over."""
    request = f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\n\r\n".encode()
    with ImdsEmulator() as imds, ExitStack() as connections:
        imds.script(faults.hang, faults.drip(60), faults.hold(threading.Event()))
        for _ in range(3):
            connections.enter_context(socket.create_connection(("127.0.0.1", imds.port))).sendall(request)
        imds.wait_for_requests(3)
        imds.restart(refused=60)
        started = time.monotonic()
        imds.close()
        assert time.monotonic() - started < 30, "an answer that drips, or a restart, takes 60 s"


def test_held_answer(imds: ImdsEmulator) -> None:
    """An answer is held back until the test says so: concurrency without sleeping."""
    release = threading.Event()
    imds.script(faults.hold(release))
    answers: list[Raw] = []
    client = threading.Thread(target=lambda: answers.append(exchange(imds.endpoint)))
    client.start()
    imds.wait_for_requests(1)
    assert exchange(imds.endpoint).status == 200
    assert answers == []
    release.set()
    client.join()
    assert answers[0].status == 200


def test_a_slow_answer(imds: ImdsEmulator) -> None:
    """A slow answer takes at least its time and is whole."""
    imds.script(faults.slow(0.1))
    started = time.monotonic()
    assert exchange(imds.endpoint).status == 200
    assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("headers", [True, False])
def test_dripping(imds: ImdsEmulator, headers: bool) -> None:
    """A dripping answer comes byte by byte, from the headers on or from the body on, and is right when whole."""
    refused = {"Connection": "close"}  # the shortest answer there is
    imds.script(faults.drip(0.0001, headers=headers))
    dripped = exchange(imds.endpoint, headers=refused)
    assert dripped.body == exchange(imds.endpoint, headers=refused).body
    imds.script(faults.drip(60, headers=headers))
    with pytest.raises(TimeoutError):
        exchange(imds.endpoint, timeout=0.1)


def test_endless_100_continue(imds: ImdsEmulator) -> None:
    """100 Continue comes again and again and nothing after it, for as long as the client listens."""
    imds.script(faults.endless_100_continue(0.001))
    with socket.create_connection(("127.0.0.1", imds.port), 10) as connection:
        connection.sendall(f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\n\r\n".encode())
        seen = b""
        while len(seen) < 2000:
            seen += connection.recv(4096)
    assert set(seen.split(b"\r\n\r\n")[:-1]) == {b"HTTP/1.1 100 Continue"}


@pytest.mark.parametrize("after", [0, 10, 250, -1])
def test_resets(imds: ImdsEmulator, after: int) -> None:
    """A reset is a reset (no orderly end), before the answer or in the middle of it."""
    with pytest.raises(ConnectionResetError):
        met(imds, faults.reset(after))
    assert exchange(imds.endpoint).status == 200


def test_what_other_servers_answer(imds: ImdsEmulator) -> None:
    """HTML, redirects, WireServer and AAD Pod Identity carry no sign of IMDS beyond what the real ones do."""
    html = met(imds, faults.html(403))
    assert (html.status, html.header("Content-Type"), html.header("Server")) == (403, "text/html", None)
    assert html.body.startswith(b"<html>")
    redirect = met(imds, faults.redirect("http://elsewhere.example/"))
    assert (redirect.status, redirect.header("Location")) == (307, "http://elsewhere.example/")
    wireserver = met(imds, faults.wireserver())
    assert (wireserver.status, wireserver.header("Server")) == (500, "Microsoft-IIS/10.0")
    assert wireserver.header("Content-Type") == "text/plain; charset=utf-8"
    nmi = met(imds, faults.nmi_no_identity())
    assert (nmi.status, nmi.header("Server")) == (404, None)
    localised = met(imds, faults.docker_desktop_403("Et forsøk ble gjort."))
    assert localised.status_line.endswith("Et forsøk ble gjort.")


def test_members(imds: ImdsEmulator) -> None:
    """Members of the answer can be changed in type and value, added, or left out; the order of the rest stays."""
    answer = met(imds, faults.members(expires_in=3600, client_id=None, extra=[1]))
    assert list(answer.json) == [
        "access_token",
        "expires_in",
        "expires_on",
        "ext_expires_in",
        "not_before",
        "resource",
        "token_type",
        "extra",
    ]
    assert (answer.json["expires_in"], answer.json["extra"]) == (3600, [1])
    assert answer.header("Content-Length") == str(len(answer.body))


def test_other_framings(imds: ImdsEmulator) -> None:
    """The same body in chunks, compressed, or under a length that is wrong in either direction."""
    whole = exchange(imds.endpoint).body
    chunked = met(imds, faults.chunked)
    assert (chunked.header("Transfer-Encoding"), chunked.header("Content-Length")) == ("chunked", None)
    pieces = chunked.body.split(b"\r\n")
    assert pieces[-3:] == [b"0", b"", b""]
    assert [int(size, 16) for size in pieces[:-3:2]] == [len(piece) for piece in pieces[1:-3:2]]
    assert b"".join(pieces[1:-3:2]) == whole
    compressed = met(imds, faults.gzipped)
    assert compressed.header("Content-Encoding") == "gzip"
    assert gzip.decompress(compressed.body) == whole
    for more in (10, -10):
        wrong = met(imds, faults.wrong_length(more))
        assert int(wrong.header("Content-Length") or 0) == len(whole) + more
        assert wrong.body == whole


def test_a_fault_of_your_own(imds: ImdsEmulator) -> None:
    """A generator function is a fault: it sees the reply that would have been and says what happens instead."""

    def swapped_case(reply: faults.Reply) -> faults.Steps:
        yield reply.with_body(reply.body.swapcase()).encode()
        yield faults.End.CLOSE

    assert met(imds, swapped_case, headers={"Metadata": "true"}).body.startswith(b'{"ACCESS_TOKEN":')
    assert imds.requests[0].answered == "swapped_case"


@pytest.mark.parametrize("waits", [False, True])
def test_failing_fault(imds: ImdsEmulator, waits: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in a fault of your own is logged and ends that connection instead of hanging the client."""

    def broken(_reply: faults.Reply) -> faults.Steps:
        if waits:
            yield 0.01
        raise ZeroDivisionError

    imds.script(broken)
    assert exchange(imds.endpoint).data == b""
    assert "ZeroDivisionError" in caplog.text
    assert exchange(imds.endpoint).status == 200


def test_nothing_listens(imds: ImdsEmulator) -> None:
    """Inside `down` connections are refused, open ones are cut, and the port is the same afterwards."""
    imds.script(faults.hang)
    with socket.create_connection(("127.0.0.1", imds.port), 10) as waiting:
        waiting.sendall(f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\n\r\n".encode())
        imds.wait_for_requests(1)
        with imds.down():
            assert waiting.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                exchange(imds.endpoint)
    assert exchange(imds.endpoint).status == 200
    assert imds.requests[0].answered == "hang"


def test_down_cuts_new_connections(imds: ImdsEmulator) -> None:
    """A connection that was accepted but not looked at yet is cut as well: inside `down` there is none."""
    release = threading.Event()

    def busy(reply: faults.Reply) -> faults.Steps:
        release.wait(10)  # keeps the emulator's thread from looking at the connections that come meanwhile
        yield reply.encode()

    imds.script(busy)
    with ExitStack() as connections:
        first, *late = (
            connections.enter_context(socket.create_connection(("127.0.0.1", imds.port), 10)) for _ in range(20)
        )
        first.sendall(f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\n\r\n".encode())
        imds.wait_for_requests(1)
        late += [connections.enter_context(socket.create_connection(("127.0.0.1", imds.port), 10)) for _ in range(20)]
        threading.Timer(0.2, release.set).start()
        with imds.down():
            for connection in late:
                with suppress(ConnectionResetError):
                    assert connection.recv(1) == b""


def test_a_restart(imds: ImdsEmulator) -> None:
    """A restart refuses connections for a while, then another server answers with 500, then IMDS is back."""
    imds.restart(refused=0.2, wireserver=2)
    with pytest.raises(ConnectionRefusedError):
        exchange(imds.endpoint)
    statuses: list[int] = []
    deadline = time.monotonic() + 60
    while len(statuses) < 3:
        try:
            statuses.append(exchange(imds.endpoint).status)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "it never came back"
            time.sleep(0.01)
    assert statuses == [500, 500, 200]


@pytest.mark.parametrize("kind", faults.ENDLESS)
def test_endless_answers(imds: ImdsEmulator, kind: str) -> None:
    """Each kind of endless answer goes on as it began, for as long as the client listens."""
    imds.script(faults.endless(kind, 0, times=10))
    with socket.create_connection(("127.0.0.1", imds.port), timeout=10) as connection:
        connection.sendall(REQUEST)
        received = b""
        while len(received) < 5000:
            piece = connection.recv(65536)
            assert piece, "the answer ended"
            received += piece
    repeated = received[2500:]
    assert any(repeated[:-period] == repeated[period:] for period in range(1, 100))


def test_unknown_endless_kind() -> None:
    """A kind that does not exist is refused with those that do."""
    with pytest.raises(ValueError, match=r"kind must be one of 100 Continue, .*; got 'bodies'"):
        faults.endless("bodies")


@pytest.mark.parametrize(("code", "reason"), [(403, "Forbidden"), (421, "Misdirected Request")])
def test_refused_by_proxy_agent(imds: ImdsEmulator, code: int, reason: str) -> None:
    """The agent of Metadata Security Protocol refuses with an empty answer that names no server, and hangs up."""
    imds.script(faults.refused_by_proxy_agent(code))
    answer = send(imds.endpoint, REQUEST)
    assert answer.status_line == f"HTTP/1.1 {code} {reason}"
    assert [name for name, _ in answer.headers] == ["content-length", "connection", "date"]
    assert (answer.header("Content-Length"), answer.body) == ("0", b"")


def test_forwarded_by_proxy_agent(imds: ImdsEmulator) -> None:
    """What that agent passes on is the answer of IMDS with one header more."""
    imds.script(faults.forwarded_by_proxy_agent)
    answer = exchange(imds.endpoint)
    assert (answer.status, answer.json["access_token"]) == (200, imds.tokens[0])
    assert answer.header("x-ms-azure-host-authorization") == "value"
    assert (answer.header("Server") or "").startswith("IMDS/")


@pytest.mark.parametrize("code", [200, 404, "403", None])
def test_no_code_of_the_proxy_agent(code: Any) -> None:
    """That agent refuses with 403 or 421."""
    with pytest.raises(ValueError, match="code must be 403 or 421, got"):
        faults.refused_by_proxy_agent(code)


@pytest.mark.parametrize(("older", "life"), [(False, 86399), (True, 0)])
def test_workload_identity_token(imds: ImdsEmulator, older: bool, life: int) -> None:
    """Workload identity's proxy sends numbers where IMDS sends strings, no client ID, and calls itself by its name."""
    imds.script(faults.workload_identity_token(older=older))
    answer = exchange(imds.endpoint)
    assert answer.json == {
        "access_token": imds.tokens[0],
        "refresh_token": "",
        "expires_in": life,
        "expires_on": str(int(NOON) + 86400),
        "not_before": 0,
        "resource": "https://vault.azure.net",
        "token_type": "Bearer",
    }
    assert (answer.header("Server") or "").startswith("azure-workload-identity/proxy/")


def test_workload_identity_refusal(imds: ImdsEmulator) -> None:
    """What Entra refuses comes from workload identity's proxy as 500 and text, with Entra's code in it."""
    imds.script(faults.workload_identity_refusal("AADSTS70021", "No matching federated identity record found."))
    answer = exchange(imds.endpoint)
    assert (answer.status, answer.header("Content-Type")) == (500, "text/plain; charset=utf-8")
    assert b"AADSTS70021: No matching federated identity record found." in answer.body
    assert (answer.header("Server") or "").startswith("azure-workload-identity/proxy/")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child calls nothing
def test_restart_beside_a_forked_child(imds: ImdsEmulator) -> None:
    """A child that was forked while connections were open keeps none of them open, nor the port."""
    imds.script(faults.hang)
    end, child_end = os.pipe()
    with socket.create_connection(("127.0.0.1", imds.port), timeout=10) as waiting:
        waiting.sendall(REQUEST)
        imds.wait_for_requests(1)
        child = os.fork()
        if not child:
            os.close(child_end)
            os.read(end, 1)  # until the parent lets go, or ends
            os._exit(0)
        try:
            with imds.down():
                with suppress(ConnectionResetError):
                    assert waiting.recv(1) == b""
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", imds.port), timeout=10).close()
            assert exchange(imds.endpoint).status == 200
        finally:
            os.close(child_end)
            os.close(end)
            os.waitpid(child, 0)
