"""Every row of design section 2 over a real socket, through the public class, in both colours."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from colours import SYNC, VAULT, Colour, VirtualTime
from tcp import listening, speak_first

from azure_imds_credential import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsThrottledError,
    ImdsUnavailableError,
    _exchange,
    _flight,
)
from azure_imds_credential._answer import BODY_LIMIT
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults
from azure_imds_credential.testing.faults import End, Fault, Reply, Steps

STRANGER = {"Server": "nginx", "x-ms-request-id": None}
PAGE = "<html><body>Sign in to the network</body></html>"


def bytes_instead(data: bytes) -> Fault:
    """Any bytes, then the end of the connection."""

    def instead(_reply: Reply) -> Steps:
        yield data
        yield End.CLOSE

    return instead


def larger_than_the_limit(reply: Reply) -> Steps:
    """A good answer with a mebibyte of spaces behind it."""
    yield reply.with_body(reply.body + b" " * BODY_LIMIT).encode()


def length_too_short(reply: Reply) -> Steps:
    """What is left over would arrive during the next attempt, were the connection used again."""
    yield reply.with_header("Content-Length", str(len(reply.body) - 10)).with_header("Connection", "close").encode()
    yield End.CLOSE


def endless(reply: Reply) -> Steps:
    """A body without end and without a length."""
    yield reply.with_header("Content-Length", None).head()
    while True:
        yield b"x" * 65536
        yield 0.001


def redirect_with_an_endless_body(reply: Reply) -> Steps:
    """What a client that peeks at the redirected request would read for ever."""
    yield b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"
    while True:
        yield b"x" * 65536
        yield 0.001


def raw_members(**members: str) -> Fault:
    """A token answer from JSON text, for what no mapping can say."""

    def change(reply: Reply) -> Steps:
        written = ",".join(f'"{name}":{text}' for name, text in {"access_token": '"t"', **members}.items())
        yield reply.with_body(f"{{{written}}}".encode()).encode()

    return change


class Row(NamedTuple):
    """What a server does for ever, and what the caller gets: an error after so many requests, or a token."""

    fault: Fault
    error: type[ImdsError] | None
    requests: int
    says: str = ""  # part of the message
    status: int | None = None
    options: Mapping[str, Any] = {}


ROWS: dict[str, Row] = {
    # Answers that hold a token, however oddly they come
    "well": Row(faults.ok, None, 1),
    "chunked": Row(faults.chunked, None, 1),
    "gzip although refused": Row(faults.gzipped, None, 1),
    "numbers as int": Row(faults.members(expires_in=3600, expires_on=None), None, 1),
    "numbers as float": Row(faults.members(expires_in=3599.5, expires_on=None), None, 1),
    "no expires_in": Row(faults.members(expires_in=None), None, 1),
    "no client_id": Row(faults.members(client_id=None), None, 1),
    "late, but in time": Row(faults.slow(0.2), None, 1),
    # From IMDS, malformed
    "wrong length": Row(faults.wrong_length(10), ImdsServiceError, 2, "broke off", 200),
    "length too short": Row(length_too_short, ImdsServiceError, 2, "without a usable token", 200),
    "length no number": Row(faults.status(200, "{}", headers={"Content-Length": "abc"}), ImdsServiceError, 2, "", 200),
    "length below zero": Row(
        bytes_instead(b"HTTP/1.1 200 X\r\nServer: IMDS/1\r\nContent-Length: -5\r\n\r\n{}"), ImdsServiceError, 2, "", 200
    ),
    "chunks that are none": Row(
        bytes_instead(b"HTTP/1.1 200 OK\r\nServer: IMDS/1\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n"),
        ImdsServiceError,
        2,
        "broke off",
        200,
    ),
    "gzip that is none": Row(
        faults.status(200, "{}", headers={"Content-Encoding": "gzip"}), ImdsServiceError, 2, "broke off", 200
    ),
    "reset in the body": Row(faults.reset(after=-100), ImdsServiceError, 2, "broke off", 200),
    "no JSON": Row(faults.status(200, "no JSON"), ImdsServiceError, 2, "without a usable token", 200),
    "empty": Row(faults.status(200), ImdsServiceError, 2, "", 200),
    "deep JSON": Row(faults.status(200, b'{"a":' * 100_000), ImdsServiceError, 2, "", 200),
    "wrong type of token": Row(faults.members(access_token=5), ImdsServiceError, 2, "", 200),
    "wrong type of expiry": Row(faults.members(expires_in={"a": 1}), ImdsServiceError, 2, "", 200),
    "expiry negative": Row(faults.members(expires_in=-1), ImdsServiceError, 2, "", 200),
    "expiry absurd": Row(faults.members(expires_in=10**12, expires_on=10**12), ImdsServiceError, 2, "", 200),
    "expiry beyond float": Row(raw_members(expires_in="1" + "0" * 400), ImdsServiceError, 2, "", 200),
    "expiry not a number": Row(raw_members(expires_in="NaN"), ImdsServiceError, 2, "", 200),
    "token with CR and LF": Row(faults.members(access_token="a\r\nX-Evil: 1"), ImdsServiceError, 2, "", 200),
    "token empty": Row(faults.members(access_token=""), ImdsServiceError, 2, "", 200),
    "huge": Row(larger_than_the_limit, ImdsServiceError, 1, "more than", 200),
    "endless": Row(endless, ImdsServiceError, 1, "more than", 200),
    # For somebody else
    "another resource": Row(
        faults.members(resource="https://graph.microsoft.com"), IdentityMismatchError, 1, "graph.microsoft.com", 200
    ),
    # 4xx
    "no such resource": Row(
        faults.status(400, {"error": "invalid_resource", "error_description": "AADSTS500011", "error_codes": [500011]}),
        ImdsRequestError,
        1,
        "invalid_resource",
        400,
    ),
    "forbidden": Row(faults.status(403, "no"), ImdsRequestError, 1, "403", 403),
    "not JSON at all": Row(faults.status(400, "'a' is an invalid start of a value"), ImdsRequestError, 1, "400", 400),
    # From IMDS, to be asked again
    "404": Row(faults.status(404), ImdsServiceError, 6, "404", 404),
    "408": Row(faults.status(408), ImdsServiceError, 6, "408", 408),
    "500": Row(faults.status(500, "oops"), ImdsServiceError, 6, "500", 500),
    "500 with a token": Row(faults.status(500, {"access_token": "t", "expires_in": "9"}), ImdsServiceError, 6, "", 500),
    "503 that breaks off": Row(
        bytes_instead(b"HTTP/1.1 503 X\r\nServer: IMDS/1\r\nContent-Length: 9\r\n\r\n"), ImdsServiceError, 6, "503", 503
    ),
    "504": Row(faults.status(504), ImdsServiceError, 6, "504", 504),
    # From somebody else, perhaps while IMDS restarts
    "WireServer": Row(faults.wireserver(), ImdsUnavailableError, 4, "500", 500),
    "bad gateway": Row(faults.html(502, PAGE), ImdsUnavailableError, 4, "Sign in", 502),
    "throttled by a proxy": Row(faults.status(429, headers=STRANGER), ImdsUnavailableError, 4, "429", 429),
    "gone, says a stranger": Row(faults.status(410, headers=STRANGER), ImdsUnavailableError, 4, "410", 410),
    # From somebody else
    "HTML with 200": Row(faults.html(200, PAGE), ImdsUnavailableError, 1, "Sign in to the network", 200),
    "Docker Desktop": Row(faults.docker_desktop_403(), ImdsUnavailableError, 1, "unreachable network", 403),
    "Docker Desktop in Norwegian": Row(
        faults.docker_desktop_403("Det ble forsøkt en operasjon på et nettverk som ikke kan nås."),
        ImdsUnavailableError,
        1,
        "nettverk",
        403,
    ),
    "EC2": Row(
        faults.status(404, "<html><h1>404 - Not Found</h1></html>", headers={**STRANGER, "Server": "EC2ws"}),
        ImdsUnavailableError,
        1,
        "404 - Not Found",
        404,
    ),
    "EC2 that wants a session": Row(
        faults.status(401, headers={**STRANGER, "Server": "EC2ws"}), ImdsUnavailableError, 1, "401", 401
    ),
    "Google Compute Engine": Row(
        faults.status(404, PAGE, headers={"Server": "Metadata Server for VM", "Metadata-Flavor": "Google"}),
        ImdsUnavailableError,
        1,
        "404",
        404,
    ),
    "Oracle Cloud": Row(
        faults.status(404, {"code": 404, "message": "HTTP 404 Not Found"}, headers=STRANGER),
        ImdsUnavailableError,
        1,
        "404",
        404,
    ),
    "Pod Identity": Row(faults.nmi_no_identity(), ImdsUnavailableError, 1, "getting assigned identities", 404),
    "huge page": Row(faults.html(200, "x" * 2 * BODY_LIMIT), ImdsUnavailableError, 1, "more than", 200),
    # Redirects
    "redirect": Row(faults.redirect("http://127.0.0.1:9/"), ImdsServiceError, 1, "307", 307),
    "redirect to no URL": Row(faults.redirect("http://["), ImdsServiceError, 1, "307", 307),
    "redirect to no text": Row(faults.redirect("\xe9\xff"), ImdsServiceError, 1, "307", 307),
    "redirect without end": Row(redirect_with_an_endless_body, ImdsUnavailableError, 1, "302", 302),
    # No answer
    "closed at once": Row(bytes_instead(b""), ImdsUnavailableError, 1, "connection broke"),
    "reset at once": Row(faults.reset(), ImdsUnavailableError, 1, "ECONNRESET"),
    "reset in the headers": Row(faults.reset(after=30), ImdsUnavailableError, 1, "connection broke"),
    "another protocol": Row(bytes_instead(b"SSH-2.0-OpenSSH_9.6\r\n"), ImdsUnavailableError, 1, "BadStatusLine"),
    "accepted and silent": Row(faults.hang, ImdsUnavailableError, 1, "then silence", None, {"read_timeout": 0.2}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_row_means_the_same_in_both_colours(
    name: str, colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A server that always answers so gives a token, or this error after this many requests."""
    row = ROWS[name]
    imds.script(row.fault, seconds=math.inf)
    if row.error is None:
        token = colour.ask(imds.endpoint, **row.options).token
        assert token in (*imds.tokens, "t")
    else:
        with pytest.raises(row.error) as caught:
            colour.ask(imds.endpoint, **row.options)
        error = caught.value
        assert type(error) is row.error
        assert row.says in str(error)
        assert (error.status, error.attempts) == (row.status, row.requests)
        assert (error.endpoint, error.identity, error.resource) == (imds.endpoint, "system-assigned", VAULT)
        assert error.hint
        assert error.hint in str(error)
        assert len(str(error)) < 1000
    imds.assert_requests(row.requests)


SEEN = {
    "refused": (None, ImdsServiceError, 6),
    "reset at once": (faults.reset(), ImdsServiceError, 6),
    "accepted and silent": (faults.hang, ImdsServiceError, 6),
    "WireServer": (faults.wireserver(), ImdsServiceError, 6),
    "gone, says a stranger": (faults.status(410, headers=STRANGER), ImdsServiceError, None),
    "throttled by a stranger": (faults.status(429, headers=STRANGER), ImdsThrottledError, None),
    "broke off, nameless": (bytes_instead(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"), ImdsServiceError, 2),
    "HTML with 200": (faults.html(), ImdsUnavailableError, 1),
    "a stranger's 404": (faults.status(404, headers=STRANGER), ImdsUnavailableError, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_an_endpoint_that_was_imds_is_believed_to_be_ill_rather_than_absent(
    name: str, colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once IMDS has answered, its absence is transient: no chain may go on because of it."""
    fault, error, requests = SEEN[name]
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.get_token("https://management.azure.com"))
    if fault is faults.hang:
        monkeypatch.setattr(_exchange, "READ_SECONDS", 0.1)
    imds.clear_requests()
    if fault is None:
        with imds.down(), pytest.raises(error) as caught:
            colour.run(credential.get_token(VAULT))
        assert caught.value.attempts == requests
        return
    imds.script(fault, seconds=math.inf)
    with pytest.raises(error) as caught:
        colour.run(credential.get_token(VAULT))
    assert type(caught.value) is error
    assert requests in (None, caught.value.attempts)
    imds.assert_requests(caught.value.attempts)


RECOVERIES: dict[str, tuple[tuple[Fault, ...], int]] = {
    "malformed once": ((faults.members(access_token=""),), 2),
    "broken once": ((faults.reset(after=-100),), 2),
    "500 five times": ((faults.status(500),) * 5, 6),
    "WireServer three times": ((faults.wireserver(),) * 3, 4),
    "throttled six times": ((faults.throttled(),) * 6, 7),
    "throttled with Retry-After": ((faults.throttled(3),), 2),
    "404 while updating": ((faults.status(404),) * 2, 3),
    "each kind in turn": (
        (faults.status(500), faults.throttled(), faults.status(410), faults.reset(after=-9), faults.status(504)), 6
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOVERIES)
def test_trouble_that_passes_is_waited_out(
    name: str, colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """The caller gets a token as soon as IMDS gives one, and waits between attempts."""
    troubles, requests = RECOVERIES[name]
    imds.script(*troubles)
    assert colour.ask(imds.endpoint).token in imds.tokens
    imds.assert_requests(requests)
    assert len(virtual_time.slept) == requests - 1


def test_410_for_70_seconds_is_waited_out(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """While IMDS is updated, which takes up to 70 s, callers wait and then get their token."""
    imds.script(faults.status(410), seconds=70)
    assert colour.ask(imds.endpoint).token in imds.tokens
    assert 70 <= sum(virtual_time.slept) <= 76


def test_410_for_longer_than_promised_is_given_up(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """After 75 s the update is taken for a fault, with time of the budget left."""
    imds.script(faults.status(410), seconds=math.inf)
    with pytest.raises(ImdsServiceError) as caught:
        colour.ask(imds.endpoint, timeout=300)
    assert caught.value.status == 410
    assert 74 <= sum(virtual_time.slept) <= 75.1
    assert caught.value.elapsed == pytest.approx(75, abs=2)


def test_throttling_is_waited_out_until_the_budget_is_spent(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A 429 without Retry-After is asked again until `timeout`, with ever longer waits."""
    imds.script(faults.throttled(), seconds=math.inf)
    with pytest.raises(ImdsThrottledError) as caught:
        colour.ask(imds.endpoint, timeout=60)
    assert 30 < sum(virtual_time.slept) < 60
    assert caught.value.attempts == len(virtual_time.slept) + 1 > 5
    assert caught.value.error_description == "Temporarily throttled, too many requests"
    assert virtual_time.slept[0] >= 0.5


@pytest.mark.parametrize(("retry_after", "waits"), [(20, [20]), ("0", [])])
def test_retry_after_is_honoured(
    retry_after: float | str, waits: list[float], colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """The server's wait is a floor under ours."""
    imds.script(faults.throttled(retry_after))
    colour.ask(imds.endpoint)
    assert len(virtual_time.slept) == 1
    assert virtual_time.slept[0] >= sum(waits)
    assert virtual_time.slept[0] < 23


@pytest.mark.parametrize("fault", [faults.throttled(86400), faults.status(503, retry_after=86400)], ids=["429", "503"])
def test_retry_after_of_a_day_ends_the_call_at_once(
    fault: Fault, colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Nobody waits for what will not come within the budget, and nobody asks earlier than told."""
    imds.script(fault, seconds=math.inf)
    with pytest.raises((ImdsThrottledError, ImdsServiceError)):
        colour.ask(imds.endpoint)
    assert virtual_time.slept == []
    imds.assert_requests(1)


def test_alternating_troubles_do_not_start_each_other_anew(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Five retries are five, although other answers come in between."""
    imds.script(faults.status(500), faults.members(access_token=""), seconds=math.inf)
    with pytest.raises(ImdsServiceError):
        colour.ask(imds.endpoint)
    assert len(imds.token_requests) <= 8


def test_retry_total_zero_asks_once(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """`retry_total` caps the retries of every kind."""
    for total in (0, 2):
        imds.clear_requests()
        imds.clear_faults()
        imds.script(faults.status(503), seconds=math.inf)
        with pytest.raises(ImdsServiceError) as caught:
            colour.ask(imds.endpoint, retry_total=total)
        assert caught.value.attempts == total + 1
        imds.assert_requests(total + 1)


def test_a_refused_connection_is_said_at_once_with_its_reason(colour: Colour, imds: ImdsEmulator) -> None:
    """Nothing listens: one attempt, and the operating system's word for it."""
    with imds.down(), pytest.raises(ImdsUnavailableError) as caught:
        colour.ask(imds.endpoint)
    assert caught.value.attempts == 1
    assert "ECONNREFUSED: Connection refused" in str(caught.value)
    assert caught.value.status is None


def test_a_name_that_does_not_resolve_is_said(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's own words reach the message; here they are ours, since the suite refuses look-ups."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ImdsUnavailableError, match=r"connecting failed \(gaierror: Name or service not known\)"):
        colour.ask("http://imds.invalid")


def test_an_endpoint_that_speaks_no_tls_is_said(colour: Colour) -> None:
    """An https endpoint on a plain port names TLS as the reason, not a wrong errno."""
    with listening(speak_first) as server, pytest.raises(ImdsUnavailableError, match=r"SSL.*WRONG_VERSION_NUMBER"):
        colour.ask(f"https://127.0.0.1:{server.port}")


IDENTITIES = {
    "client_id": "00000000-0000-4000-8000-000000000001",
    "object_id": "00000000-0000-4000-8000-000000000002",
    "resource_id": "/subscriptions/0/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x",
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_an_identity_that_is_not_assigned_is_named_with_the_command_that_assigns_it(
    kind: str, colour: Colour, imds: ImdsEmulator
) -> None:
    """The error says which identity is missing and what to type."""
    with pytest.raises(IdentityUnavailableError) as caught:
        colour.ask(imds.endpoint, **{kind: IDENTITIES[kind]})
    error = caught.value
    assert error.identity == f"{kind} {IDENTITIES[kind]}"
    assert error.identity in str(error)
    assert (error.status, error.error_code, error.error_description) == (400, "invalid_request", "Identity not found")
    assert error.request_id
    assert "az vm identity assign" in str(error)
    imds.assert_requests(1)


@pytest.mark.parametrize("kind", IDENTITIES)
def test_a_token_for_another_identity_is_thrown_away(kind: str, colour: Colour, imds: ImdsEmulator) -> None:
    """IMDS answers for somebody else than was asked: no caller gets that token, now or later."""
    mine, other = UserAssigned("mine"), UserAssigned("other")
    imds.assign(mine)
    imds.assign(other)
    foreign = imds.issue_token(VAULT, other)
    imds.script(faults.members(access_token=foreign, client_id=other.client_id))
    credential = colour.ImdsCredential(endpoint=imds.endpoint, **{kind: getattr(mine, kind)})
    with pytest.raises(IdentityMismatchError) as caught:
        colour.run(credential.get_token(VAULT))
    assert getattr(other, kind) in str(caught.value)
    assert colour.run(credential.get_token(VAULT)).token != foreign
    imds.assert_requests(2)


@pytest.fixture
def late(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> UserAssigned:
    """An identity that arrives with the third answer; who waits for one asks twenty times a second."""
    monkeypatch.setattr(_flight, "ASK_FOR_IDENTITY_EVERY", 0.05)
    identity = UserAssigned("late")

    def arrive(reply: Reply) -> Steps:
        if len(imds.requests) == 3:
            imds.assign(identity)
        yield reply.encode()

    imds.script(arrive, seconds=math.inf)
    return identity


def test_wait_for_identity_asks_until_it_arrives(colour: Colour, imds: ImdsEmulator, late: UserAssigned) -> None:
    """A new assignment takes minutes to arrive: a caller that was told to wait gets its token then."""
    token = colour.ask(imds.endpoint, client_id=late.client_id, wait_for_identity=30, timeout=60)
    assert token.token in imds.tokens
    imds.assert_requests(4, client_id=late.client_id)


def test_a_forced_refresh_waits_for_an_identity_too(colour: Colour, imds: ImdsEmulator, late: UserAssigned) -> None:
    """The limit of one forced refresh in 30 s is not held against the call that is still asking."""
    credential = colour.ImdsCredential(
        endpoint=imds.endpoint, client_id=late.client_id, wait_for_identity=30, timeout=60
    )
    assert colour.run(credential.get_token(VAULT, force_refresh=True)).token in imds.tokens


def test_wait_for_identity_ends_with_its_time(
    colour: Colour, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity does not arrive: the error is that of the last answer, after about the time given."""
    monkeypatch.setattr(_flight, "ASK_FOR_IDENTITY_EVERY", 0.1)
    with pytest.raises(IdentityUnavailableError):
        colour.ask(imds.endpoint, client_id=IDENTITIES["client_id"], wait_for_identity=0.5, timeout=60)
    assert 3 <= len(imds.requests) <= 7


def test_wait_for_identity_asks_every_five_seconds_and_at_the_end(
    virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """What both colours wait between two questions, and when the last one is asked."""
    configuration = SYNC.ImdsCredential(
        endpoint=imds.endpoint, client_id=IDENTITIES["client_id"], wait_for_identity=12, timeout=60
    )._configuration
    slot, pauses = configuration.slot((VAULT,)), list[float]()

    def ask() -> None:
        for flight, seconds in configuration.cache.steps(slot, configuration, forced=False):
            if flight is None:
                pauses.append(seconds)
                virtual_time.skip(seconds)
            else:
                until = time.monotonic() + 10
                while not flight.landed:
                    assert time.monotonic() < until, "it does not land"
                    time.sleep(0.005)

    with pytest.raises(IdentityUnavailableError):
        ask()
    assert pauses == pytest.approx([5, 5, 2], abs=0.5)
    assert max(pauses) <= 5
    imds.assert_requests(4)


def test_other_errors_are_not_waited_for(colour: Colour, imds: ImdsEmulator) -> None:
    """`wait_for_identity` waits for an identity and for nothing else."""
    imds.script(faults.status(403))
    with pytest.raises(ImdsRequestError):
        colour.ask(imds.endpoint, wait_for_identity=30)
    imds.assert_requests(1)


def test_a_refused_bypass_is_asked_once_more_without(colour: Colour, imds: ImdsEmulator) -> None:
    """IMDS's 400 for `bypass_cache` costs one request; the forced caller still gets a token."""

    def unsupported(reply: Reply) -> Steps:
        bypass = imds.requests[-1].param("bypass_cache")
        refusal = {"error": "invalid_request", "error_description": "Unsupported query variables"}
        yield from (faults.status(400, refusal) if bypass else faults.ok)(reply)

    imds.script(unsupported, seconds=math.inf)
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    assert colour.run(credential.get_token(VAULT, force_refresh=True)).token in imds.tokens
    imds.assert_requests(1, bypass_cache="true")
    imds.assert_requests(1, bypass_cache=None)


def test_a_standing_400_ends_a_forced_call(colour: Colour, imds: ImdsEmulator) -> None:
    """A 400 that has nothing to do with `bypass_cache` is told after one more look."""
    imds.script(faults.status(400, "no"), seconds=math.inf)
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(ImdsRequestError):
        colour.run(credential.get_token(VAULT, force_refresh=True))
    imds.assert_requests(2)
