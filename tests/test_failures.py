"""What servers do and what callers get: each kind of response over a real socket, through the public classes."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import urllib3.util.connection
from flavors import SYNC, VAULT, Flavor, VirtualTime
from tcp import listening, speak_first

from azure_imds_credential import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsThrottledError,
    ImdsUnavailableError,
    _options,
)
from azure_imds_credential._cache import decision
from azure_imds_credential._imds import retry_policy
from azure_imds_credential._imds.machine import has_proxy_agent
from azure_imds_credential._imds.response import BODY_LIMIT
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults
from azure_imds_credential.testing.faults import End, Fault, Reply, Steps

UNKNOWN_SERVER = {"Server": "nginx", "x-ms-request-id": None}
PAGE = "<html><body>Sign in to the network</body></html>"


def bytes_instead(data: bytes) -> Fault:
    """Send any bytes, then close the connection."""

    def instead(_reply: Reply) -> Steps:
        yield data
        yield End.CLOSE

    return instead


def larger_than_the_limit(reply: Reply) -> Steps:
    """A good response with a mebibyte of spaces behind it."""
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
    """A body that a client which prepares the redirected request would read for ever."""
    yield b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"
    while True:
        yield b"x" * 65536
        yield 0.001


def raw_members(**members: str) -> Fault:
    """A token response from JSON text, for what no mapping can say."""

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
    # Responses with a token, in odd forms
    "well": Row(faults.ok, None, 1),
    "chunked": Row(faults.chunked, None, 1),
    "numbers as int": Row(faults.members(expires_in=3600, expires_on=None), None, 1),
    "a bad expires_in beside a good expires_on": Row(faults.members(expires_in=-1), None, 1),
    "numbers as float": Row(faults.members(expires_in=3599.5, expires_on=None), None, 1),
    "no expires_in": Row(faults.members(expires_in=None), None, 1),
    "no client_id": Row(faults.members(client_id=None), None, 1),
    "late, but in time": Row(faults.slow(0.2), None, 1),
    # From IMDS, malformed
    "wrong length": Row(faults.wrong_length(10), ImdsServiceError, 2, "the body broke off", 200),
    "length too short": Row(length_too_short, ImdsServiceError, 2, "without a usable token", 200),
    "length no number": Row(faults.status(200, "{}", headers={"Content-Length": "abc"}), ImdsServiceError, 2, "", 200),
    "length below zero": Row(
        bytes_instead(b"HTTP/1.1 200 X\r\nServer: IMDS/1\r\nContent-Length: -5\r\n\r\n{}"), ImdsServiceError, 2, "", 200
    ),
    "chunks that are none": Row(
        bytes_instead(b"HTTP/1.1 200 OK\r\nServer: IMDS/1\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n"),
        ImdsServiceError,
        2,
        "the body broke off",
        200,
    ),
    "gzip although refused": Row(faults.gzipped, ImdsServiceError, 2, "Content-Encoding 'gzip'", 200),
    "gzip that is none": Row(
        faults.status(200, "{}", headers={"Content-Encoding": "gzip"}),
        ImdsServiceError,
        2,
        "Content-Encoding 'gzip', which was not asked for",
        200,
    ),
    "gzip with 503": Row(
        faults.status(503, "x", headers={"Content-Encoding": "gzip"}), ImdsServiceError, 6, "Content-Encoding", 503
    ),
    "reset in the body": Row(faults.reset(after=-100), ImdsServiceError, 2, "the body broke off", 200),
    "no JSON": Row(faults.status(200, "no JSON"), ImdsServiceError, 2, "without a usable token", 200),
    "empty": Row(faults.status(200), ImdsServiceError, 2, "without a usable token", 200),
    "deep JSON": Row(faults.status(200, b'{"a":' * 100_000), ImdsServiceError, 2, "", 200),
    "wrong type of token": Row(faults.members(access_token=5), ImdsServiceError, 2, "", 200),
    "wrong type of expiry": Row(faults.members(expires_in={"a": 1}, expires_on=None), ImdsServiceError, 2, "", 200),
    "expiry negative": Row(
        faults.members(expires_in=-1, expires_on=-1), ImdsServiceError, 2, "expires_in=-1, expires_on=-1", 200
    ),
    "expiry absurd": Row(faults.members(expires_in=10**12, expires_on=10**12), ImdsServiceError, 2, "", 200),
    "expiry beyond float": Row(raw_members(expires_in="1" + "0" * 400), ImdsServiceError, 2, "", 200),
    "expiry not a number": Row(raw_members(expires_in="NaN"), ImdsServiceError, 2, "", 200),
    "token with CR and LF": Row(faults.members(access_token="a\r\nX-Evil: 1"), ImdsServiceError, 2, "", 200),
    "token empty": Row(faults.members(access_token=""), ImdsServiceError, 2, "", 200),
    "huge": Row(larger_than_the_limit, ImdsServiceError, 1, "more than", 200),
    "endless": Row(endless, ImdsServiceError, 1, "more than", 200),
    # For another resource
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
    "forbidden": Row(faults.status(403, "no"), ImdsRequestError, 1, "403, it said: no", 403),
    "not JSON at all": Row(faults.status(400, "'a' is an invalid start of a value"), ImdsRequestError, 1, "400", 400),
    # From IMDS, to be asked again
    "404": Row(faults.status(404), ImdsServiceError, 6, "404", 404),
    "408": Row(faults.status(408), ImdsServiceError, 6, "408", 408),
    "500": Row(faults.status(500, "oops"), ImdsServiceError, 6, "500, it said: oops", 500),
    "500 with a token": Row(faults.status(500, {"access_token": "t", "expires_in": "9"}), ImdsServiceError, 6, "", 500),
    "503 that breaks off": Row(
        bytes_instead(b"HTTP/1.1 503 X\r\nServer: IMDS/1\r\nContent-Length: 9\r\n\r\n"), ImdsServiceError, 6, "503", 503
    ),
    "504": Row(faults.status(504), ImdsServiceError, 6, "504", 504),
    # From an unknown server, perhaps while IMDS restarts
    "WireServer": Row(faults.wireserver(), ImdsUnavailableError, 4, "500", 500),
    "bad gateway": Row(faults.html(502, PAGE), ImdsUnavailableError, 4, "Sign in", 502),
    "throttled by a proxy": Row(faults.status(429, headers=UNKNOWN_SERVER), ImdsUnavailableError, 4, "429", 429),
    "410 by an unknown server": Row(faults.status(410, headers=UNKNOWN_SERVER), ImdsUnavailableError, 4, "410", 410),
    # From an unknown server
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
        faults.status(404, "<html><h1>404 - Not Found</h1></html>", headers={**UNKNOWN_SERVER, "Server": "EC2ws"}),
        ImdsUnavailableError,
        1,
        "404 - Not Found",
        404,
    ),
    "EC2 that wants a session": Row(
        faults.status(401, headers={**UNKNOWN_SERVER, "Server": "EC2ws"}), ImdsUnavailableError, 1, "401", 401
    ),
    "Google Compute Engine": Row(
        faults.status(404, PAGE, headers={"Server": "Metadata Server for VM", "Metadata-Flavor": "Google"}),
        ImdsUnavailableError,
        1,
        "404",
        404,
    ),
    "Oracle Cloud": Row(
        faults.status(404, {"code": 404, "message": "HTTP 404 Not Found"}, headers=UNKNOWN_SERVER),
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
    # No response
    "closed at once": Row(bytes_instead(b""), ImdsUnavailableError, 1, "connection broke"),
    "reset at once": Row(faults.reset(), ImdsUnavailableError, 1, "ECONNRESET"),
    "reset in the headers": Row(faults.reset(after=30), ImdsUnavailableError, 1, "connection broke"),
    "another protocol": Row(bytes_instead(b"SSH-2.0-OpenSSH_9.6\r\n"), ImdsUnavailableError, 1, "BadStatusLine"),
    "only accepted": Row(faults.hang, ImdsUnavailableError, 1, "then no response", None, {"read_timeout": 0.2}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_response(name: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A server that always responds so gives a token, or this error after this many requests."""
    row = ROWS[name]
    imds.script(row.fault, seconds=math.inf)
    if row.error is None:
        token = flavor.ask(imds.endpoint, **row.options).token
        assert token in (*imds.tokens, "t")
    else:
        with pytest.raises(row.error) as caught:
            flavor.ask(imds.endpoint, **row.options)
        error = caught.value
        assert type(error) is row.error
        assert row.says in str(error)
        assert (error.status, error.attempts) == (row.status, row.requests)
        assert (error.endpoint, error.identity, error.resource) == (
            imds.endpoint,
            "the machine's default identity",
            VAULT,
        )
        assert error.hint
        assert error.hint in str(error)
        assert len(str(error)) < 1000
        assert error.client_request_id == imds.requests[-1].header("x-ms-client-request-id")
    imds.assert_requests(row.requests)


SEEN = {
    "refused": (None, ImdsServiceError, 6),
    "reset at once": (faults.reset(), ImdsServiceError, 6),
    "only accepted": (faults.hang, ImdsServiceError, 6),
    "WireServer": (faults.wireserver(), ImdsServiceError, 6),
    "410 by an unknown server": (faults.status(410, headers=UNKNOWN_SERVER), ImdsServiceError, None),
    "429 by an unknown server": (faults.status(429, headers=UNKNOWN_SERVER), ImdsThrottledError, None),
    "broke off, nameless": (bytes_instead(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"), ImdsServiceError, 2),
    "HTML with 200": (faults.html(), ImdsUnavailableError, 1),
    "404 by an unknown server": (faults.status(404, headers=UNKNOWN_SERVER), ImdsUnavailableError, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_seen(
    name: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one response of IMDS its absence is transient: no chain may go on because of it."""
    fault, error, requests = SEEN[name]
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token("https://management.azure.com"))
    if fault is faults.hang:
        monkeypatch.setattr(retry_policy, "READ_TIMEOUT", 0.1)
    imds.clear_requests()
    if fault is None:
        with imds.down(), pytest.raises(error) as caught:
            flavor.run(credential.get_token(VAULT))
        assert caught.value.attempts == requests
        return
    imds.script(fault, seconds=math.inf)
    with pytest.raises(error) as caught:
        flavor.run(credential.get_token(VAULT))
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
def test_recovery(name: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A caller gets a token as soon as IMDS gives one, with a wait before each further attempt."""
    failures, requests = RECOVERIES[name]
    imds.script(*failures)
    assert flavor.ask(imds.endpoint).token in imds.tokens
    imds.assert_requests(requests)
    assert len(virtual_time.slept) == requests - 1


def test_410_for_70_seconds(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """While IMDS is updated, which takes up to 70 s, callers wait and then get their token."""
    begun = virtual_time.now()
    imds.script(faults.status(410), seconds=70)
    assert flavor.ask(imds.endpoint).token in imds.tokens
    assert virtual_time.now() - begun >= 70
    assert sum(virtual_time.slept) <= 76


def test_410_for_longer(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """After 75 s a 410 is an error, also where the call has more time."""
    imds.script(faults.status(410), seconds=math.inf)
    with pytest.raises(ImdsServiceError) as caught:
        flavor.ask(imds.endpoint, timeout=300)
    assert caught.value.status == 410
    assert sum(virtual_time.slept) <= 75.1
    assert 75 <= caught.value.elapsed < 300


def test_throttled(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A 429 without Retry-After is asked again until `timeout`, with ever longer waits."""
    imds.script(faults.throttled(), seconds=math.inf)
    with pytest.raises(ImdsThrottledError) as caught:
        flavor.ask(imds.endpoint, timeout=60)
    assert 30 < sum(virtual_time.slept) < 60
    assert caught.value.attempts == len(virtual_time.slept) + 1 > 5
    assert caught.value.error_description == "Temporarily throttled, too many requests"
    assert virtual_time.slept[0] >= 0.5


@pytest.mark.parametrize(("retry_after", "waits"), [(20, [20]), ("0", [])])
def test_retry_after(
    retry_after: float | str, waits: list[float], flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A wait is at least as long as the server asks for."""
    imds.script(faults.throttled(retry_after))
    flavor.ask(imds.endpoint)
    assert len(virtual_time.slept) == 1
    assert virtual_time.slept[0] >= sum(waits)
    assert virtual_time.slept[0] < 23


@pytest.mark.parametrize("fault", [faults.throttled(86400), faults.status(503, retry_after=86400)], ids=["429", "503"])
def test_retry_after_of_a_day(fault: Fault, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A Retry-After beyond the deadline ends the call at once."""
    imds.script(fault, seconds=math.inf)
    with pytest.raises((ImdsThrottledError, ImdsServiceError)):
        flavor.ask(imds.endpoint)
    assert virtual_time.slept == []
    imds.assert_requests(1)


def test_alternating_failures(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """The retries of a kind are counted also when other failures come in between."""
    imds.script(faults.status(500), faults.members(access_token=""), seconds=math.inf)
    with pytest.raises(ImdsServiceError):
        flavor.ask(imds.endpoint)
    assert len(imds.token_requests) <= 8


def test_retry_total(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """`retry_total` caps the retries of every kind."""
    for total in (0, 2):
        imds.clear_requests()
        imds.clear_faults()
        imds.script(faults.status(503), seconds=math.inf)
        with pytest.raises(ImdsServiceError) as caught:
            flavor.ask(imds.endpoint, retry_total=total)
        assert caught.value.attempts == total + 1
        imds.assert_requests(total + 1)


def test_refused(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Where nothing listens there is one attempt, and the operating system's reason in the message."""
    with imds.down(), pytest.raises(ImdsUnavailableError) as caught:
        flavor.ask(imds.endpoint)
    assert caught.value.attempts == 1
    assert "ECONNREFUSED: Connection refused" in str(caught.value)
    assert caught.value.status is None


def test_unknown_host(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's words reach the message. They are made here, since the suite refuses look-ups."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ImdsUnavailableError, match=r"connecting failed \(gaierror: Name or service not known\)"):
        flavor.ask("http://imds.invalid")


def test_no_tls(flavor: Flavor) -> None:
    """An https endpoint on a plain port names TLS as the reason, not a wrong errno."""
    with listening(speak_first) as server, pytest.raises(ImdsUnavailableError, match=r"SSL.*WRONG_VERSION_NUMBER"):
        flavor.ask(f"https://127.0.0.1:{server.port}")


IDENTITIES = {
    "client_id": "00000000-0000-4000-8000-000000000001",
    "object_id": "00000000-0000-4000-8000-000000000002",
    "resource_id": "/subscriptions/0/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x",
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_no_identity(kind: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """The error names the identity that is missing and the command that assigns it."""
    with pytest.raises(IdentityUnavailableError) as caught:
        flavor.ask(imds.endpoint, **{kind: IDENTITIES[kind]})
    error = caught.value
    assert error.identity == f"{kind} {IDENTITIES[kind]}"
    assert error.identity in str(error)
    assert (error.status, error.error_code, error.error_description) == (400, "invalid_request", "Identity not found")
    assert error.request_id
    assert "az vm identity assign" in str(error)
    imds.assert_requests(1)


@pytest.mark.parametrize("kind", IDENTITIES)
def test_other_identity(kind: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """A token for another identity than was asked reaches no caller, now or later."""
    mine, other = UserAssigned("mine"), UserAssigned("other")
    imds.assign(mine)
    imds.assign(other)
    foreign = imds.issue_token(VAULT, other)
    imds.script(faults.members(access_token=foreign, client_id=other.client_id))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, **{kind: getattr(mine, kind)})
    with pytest.raises(IdentityMismatchError) as caught:
        flavor.run(credential.get_token(VAULT))
    assert getattr(other, kind) in str(caught.value)
    assert flavor.run(credential.get_token(VAULT)).token != foreign
    imds.assert_requests(2)


@pytest.fixture
def late(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> UserAssigned:
    """An identity that arrives with the third response; callers that wait for it ask twenty times a second."""
    monkeypatch.setattr(decision, "IDENTITY_INTERVAL", 0.05)
    identity = UserAssigned("late")

    def arrive(reply: Reply) -> Steps:
        if len(imds.requests) == 3:
            imds.assign(identity)
        yield reply.encode()

    imds.script(arrive, seconds=math.inf)
    return identity


def test_wait_for_identity(flavor: Flavor, imds: ImdsEmulator, late: UserAssigned) -> None:
    """With `wait_for_identity` a call gets its token when the assignment arrives."""
    token = flavor.ask(imds.endpoint, client_id=late.client_id, wait_for_identity=30, timeout=60)
    assert token.token in imds.tokens
    imds.assert_requests(4, client_id=late.client_id)


def test_forced_wait_for_identity(flavor: Flavor, imds: ImdsEmulator, late: UserAssigned) -> None:
    """The limit of one forced request in 30 s does not end a call that waits for its identity."""
    credential = flavor.ImdsCredential(
        endpoint=imds.endpoint, client_id=late.client_id, wait_for_identity=30, timeout=60
    )
    assert flavor.run(credential.get_token(VAULT, force_refresh=True)).token in imds.tokens


def test_end_of_wait_for_identity(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the identity does not arrive the error is that of the last response."""
    monkeypatch.setattr(decision, "IDENTITY_INTERVAL", 0.1)

    def numbered(reply: Reply) -> Steps:
        members = {"error": "invalid_request", "error_description": f"asked {len(imds.requests)} times"}
        yield reply.with_body(json.dumps(members).encode()).encode()

    imds.script(numbered, seconds=math.inf)
    with pytest.raises(IdentityUnavailableError) as caught:
        flavor.ask(imds.endpoint, client_id=IDENTITIES["client_id"], wait_for_identity=0.5, timeout=60)
    assert caught.value.error_description == f"asked {len(imds.requests)} times"


def test_pauses_of_wait_for_identity(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """There is one request every 5 s, and one at the end."""
    options = SYNC.ImdsCredential(
        endpoint=imds.endpoint, client_id=IDENTITIES["client_id"], wait_for_identity=12, timeout=60
    )._options
    entry, pauses = options.entry((VAULT,)), list[float]()

    def ask() -> None:
        for wait in options.cache.fill(entry, options, force_refresh=False):
            if wait.request is None:
                pauses.append(wait.seconds)
                virtual_time.skip(wait.seconds)
            else:
                wait.block()

    with pytest.raises(IdentityUnavailableError):
        ask()
    assert pauses == pytest.approx([5, 5, 2], abs=0.5)
    assert max(pauses) <= 5
    imds.assert_requests(4)


def test_wait_for_identity_and_other_errors(flavor: Flavor, imds: ImdsEmulator) -> None:
    """`wait_for_identity` waits after "no such identity" and after no other error."""
    imds.script(faults.status(403))
    with pytest.raises(ImdsRequestError):
        flavor.ask(imds.endpoint, wait_for_identity=30)
    imds.assert_requests(1)


def test_refused_bypass(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A 400 for `bypass_cache` is followed by one request without it; the forced caller gets a token."""

    def unsupported(reply: Reply) -> Steps:
        bypass = imds.requests[-1].param("bypass_cache")
        refusal = {"error": "invalid_request", "error_description": "Unsupported query variables"}
        yield from (faults.status(400, refusal) if bypass else faults.ok)(reply)

    imds.script(unsupported, seconds=math.inf)
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    assert flavor.run(credential.get_token(VAULT, force_refresh=True)).token in imds.tokens
    imds.assert_requests(1, bypass_cache="true")
    imds.assert_requests(1, bypass_cache=None)


def test_standing_400(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A 400 that has nothing to do with `bypass_cache` ends a forced call after one more request."""
    imds.script(faults.status(400, "no"), seconds=math.inf)
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(ImdsRequestError):
        flavor.run(credential.get_token(VAULT, force_refresh=True))
    imds.assert_requests(2)


def test_error_in_a_200(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A 200 with an error means what the error says, as if its status were 400."""
    refusal = {"error": "invalid_request", "error_description": "Identity not found"}
    imds.script(faults.status(200, refusal), seconds=math.inf)
    with pytest.raises(IdentityUnavailableError) as caught:
        flavor.ask(imds.endpoint)
    assert (caught.value.status, caught.value.error_code) == (200, "invalid_request")
    assert "200 invalid_request: Identity not found" in str(caught.value)
    imds.assert_requests(1)


@pytest.mark.parametrize("status", [403, 421])
def test_guest_agent(status: int, flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by the guest agent of the Metadata Security Protocol is told as such, where the agent is installed."""
    imds.script(faults.status(status, headers=UNKNOWN_SERVER | {"Server": None}), seconds=math.inf)
    with pytest.raises(ImdsUnavailableError):
        flavor.ask(imds.endpoint)
    monkeypatch.setattr(retry_policy, "has_proxy_agent", lambda: True)
    with pytest.raises(ImdsRequestError, match=r"azure-proxy-agent") as caught:
        flavor.ask(imds.endpoint)
    assert caught.value.status == status
    imds.assert_requests(2)


@pytest.mark.parametrize(
    ("files", "found"),
    [((), False), (("/usr/sbin/azure-proxy-agent",), True), (("/etc/azure/proxy-agent.json",), True)],
    ids=["none", "program", "configuration"],
)
def test_signs_of_the_guest_agent(files: tuple[str, ...], found: bool) -> None:
    """The guest agent is known by its program or its configuration."""
    assert has_proxy_agent(files.__contains__) is found


def test_guest_agent_after_imds(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The same refusal by an endpoint that was seen needs no sign of the agent."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token("https://management.azure.com"))
    imds.script(faults.status(403, headers=UNKNOWN_SERVER | {"Server": None}), seconds=math.inf)
    with pytest.raises(ImdsRequestError, match="Metadata Security Protocol"):
        flavor.run(credential.get_token(VAULT))
    imds.assert_requests(2)


SHORTAGES = ["EMFILE", "ENFILE", "ENOBUFS", "EADDRNOTAVAIL", "ENOMEM"]


@pytest.mark.parametrize("name", [*SHORTAGES, "MemoryError, ENOMEM"])
def test_shortage(
    name: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shortage of this machine is asked again like a transient failure, named, and never taken for absence."""
    number = getattr(errno, name.rpartition(" ")[2])

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError if name not in SHORTAGES else OSError(number, os.strerror(number))

    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    with monkeypatch.context() as patch:
        patch.setattr("urllib3.util.connection.create_connection", refuse)
        with pytest.raises(ImdsServiceError, match=f"this machine lacks what a connection needs.*{name}") as caught:
            flavor.run(credential.get_token(VAULT))
    assert (caught.value.attempts, len(virtual_time.slept)) == (6, 5)
    assert flavor.run(credential.get_token(VAULT)).token in imds.tokens
    imds.assert_requests(1)


def test_shortage_that_passes(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller gets its token when descriptors are free again."""
    connect, failures = urllib3.util.connection.create_connection, iter([errno.EMFILE, errno.ENOBUFS])

    def refuse_twice(*arguments: Any, **keywords: Any) -> socket.socket:
        number = next(failures, None)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return connect(*arguments, **keywords)

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse_twice)
    assert flavor.ask(imds.endpoint).token in imds.tokens
    assert len(virtual_time.slept) == 2


def _of_an_import(name: str) -> list[Exception]:
    """Return what an import raises where this machine lacks something."""
    number = getattr(errno, name)
    plain = OSError(number, os.strerror(number), "module.py")
    caused = ImportError("cannot import name 'a' from 'b'")
    caused.__cause__ = plain
    loader = ImportError(f"module.so: cannot open shared object file: {os.strerror(number)}")
    return [plain, caused, loader, *([MemoryError()] if name == "ENOMEM" else [])]


@pytest.fixture
def importing_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[Exception]], None]:
    """What has the imports of the first request raise errors, one after the other."""
    load = _options._import_client

    def fail(errors: Iterable[Exception]) -> None:
        remaining = iter(errors)

        def load_or_fail() -> Any:
            error = next(remaining, None)
            if error is not None:
                raise error
            return load()

        monkeypatch.setattr(_options, "_import_client", load_or_fail)

    return fail


@pytest.mark.parametrize("name", SHORTAGES)
def test_shortage_at_the_first_request(
    name: str,
    flavor: Flavor,
    virtual_time: VirtualTime,
    imds: ImdsEmulator,
    importing_fails: Callable[[Iterable[Exception]], None],
) -> None:
    """Where msal cannot be imported for lack of something, that is tried again until the time is up, and named."""
    importing_fails(itertools.cycle(_of_an_import(name)))
    with pytest.raises(ImdsServiceError, match=f"his machine lacks what a connection needs.*{name}") as caught:
        flavor.ask(imds.endpoint)
    assert "raise the limit" in (caught.value.hint or "")
    assert sum(virtual_time.slept) >= 89.0
    imds.assert_requests(0)


def test_shortage_at_the_first_request_that_passes(
    flavor: Flavor,
    virtual_time: VirtualTime,
    imds: ImdsEmulator,
    importing_fails: Callable[[Iterable[Exception]], None],
) -> None:
    """A caller gets its token when descriptors are free again."""
    importing_fails(_of_an_import("EMFILE"))
    assert flavor.ask(imds.endpoint).token in imds.tokens
    assert virtual_time.slept == [0.5] * 3


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module named 'msal'", name="msal"), "ModuleNotFoundError: msal"),
        (ImportError("cannot import name 'a' from 'b' (unknown location)", name="b"), "ImportError: b"),
        (PermissionError(errno.EACCES, "Permission denied", "b.py"), "PermissionError, raised in .* in load_or_fail"),
        (AttributeError("a module that a test replaced"), "AttributeError, raised in .*"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_import_that_fails_otherwise(
    error: Exception,
    told: str,
    flavor: Flavor,
    virtual_time: VirtualTime,
    imds: ImdsEmulator,
    importing_fails: Callable[[Iterable[Exception]], None],
) -> None:
    """It is no shortage, and not tried again by this call: a chain stops, and the message names what is missing."""
    importing_fails([error])
    with pytest.raises(ImdsServiceError, match=rf"could not be imported \({told}\)") as caught:
        flavor.ask(imds.endpoint)
    assert "before privileges or paths change" in (caught.value.hint or "")
    assert not virtual_time.slept
    assert flavor.ask(imds.endpoint).token in imds.tokens


# A process without descriptors that has not imported msal so far. It gets them back after a few tries.
NO_DESCRIPTORS = """
import asyncio, os, resource, sys
import azure_imds_credential, azure_imds_credential.aio
from azure_imds_credential._options import process_cache

package = {"sync": azure_imds_credential, "aio": azure_imds_credential.aio}[sys.argv[1]]
credential = package.ImdsCredential(endpoint=sys.argv[2])
loop, held, tries = asyncio.new_event_loop(), [], []

class Clock(type(process_cache.clock)):
    def sleep(self, seconds):
        tries.append(seconds)
        if len(tries) == 3:
            for descriptor in held:
                os.close(descriptor)

process_cache.clock = Clock()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    token = credential.get_token("https://vault.azure.net")
    if sys.argv[1] == "aio":
        token = loop.run_until_complete(token)
    print(len(tries), token.token)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_no_descriptors_at_the_first_request(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The first call of a process gets its token as soon as modules can be read."""
    command = [sys.executable, "-c", NO_DESCRIPTORS, flavor.name, imds.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    tries, token = done.stdout.split()
    assert tries == "3"
    assert token in imds.tokens


def test_client_request_id_without_response(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Where there is no response the error has the ID that went out with the request."""
    imds.script(faults.reset(), seconds=math.inf)
    with pytest.raises(ImdsUnavailableError) as caught:
        flavor.ask(imds.endpoint)
    assert caught.value.request_id is None
    assert caught.value.client_request_id
    assert caught.value.client_request_id == imds.requests[0].header("x-ms-client-request-id")


def test_require_system_assigned(flavor: Flavor) -> None:
    """Without a selector IMDS chooses; `require_system_assigned` refuses a user-assigned identity."""
    app = UserAssigned("app")
    with ImdsEmulator(identities=[app]) as imds:
        assert flavor.ask(imds.endpoint).token in imds.tokens
        with pytest.raises(IdentityMismatchError) as caught:
            flavor.ask(imds.endpoint, require_system_assigned=True)
        assert app.resource_id.casefold() in str(caught.value).casefold()
        assert caught.value.identity == "the machine's system-assigned identity"
        assert "leave require_system_assigned out" in str(caught.value)
        imds.assert_requests(2)


def test_system_assigned(flavor: Flavor, imds: ImdsEmulator) -> None:
    """`require_system_assigned` takes the token of the system-assigned identity, and has its own place in the cache."""
    first = flavor.ask(imds.endpoint, require_system_assigned=True)
    assert flavor.ask(imds.endpoint, require_system_assigned=True).token == first.token
    imds.assert_requests(1)
    flavor.ask(imds.endpoint)
    imds.assert_requests(2)


@pytest.mark.parametrize(
    ("fault", "cls", "hint"),
    [
        (larger_than_the_limit, ImdsServiceError, "a real IMDS have some 2,000 bytes"),
        (
            faults.status(200, b" " * (BODY_LIMIT + 1), headers=UNKNOWN_SERVER),
            ImdsUnavailableError,
            "not IMDS answered",
        ),
        (faults.status(503), ImdsServiceError, "fails or is being updated"),
    ],
    ids=["large, from IMDS", "large, by another server", "503"],
)
def test_hint_of_a_response(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, fault: Fault, cls: type[ImdsError], hint: str
) -> None:
    """That IMDS is being updated is told only where it may be."""
    imds.script(fault, seconds=math.inf)
    with pytest.raises(cls, match=hint) as caught:
        flavor.ask(imds.endpoint)
    assert hint in str(caught.value.hint)


def test_hint_of_a_shortage(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is about this machine, not about IMDS."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    with pytest.raises(ImdsServiceError, match="raise the limit"):
        flavor.ask(imds.endpoint)
