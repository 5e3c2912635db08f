"""The emulator as a tool: tokens and their cache, clock, limits, journal, and the life of the server."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import jwt
import pytest
from raw_http import TOKEN_TARGET, exchange

from azure_imds_credential.testing import AzureCliEmulator, ImdsEmulator, SystemAssigned, UserAssigned, faults

NOON = 1_800_000_000.0


@pytest.fixture
def imds() -> Any:
    """An emulator whose clock stands still."""
    with ImdsEmulator(clock=lambda: NOON) as emulator:
        yield emulator


def ask(imds: ImdsEmulator, more: str = "", resource: str = "https://vault.azure.net") -> dict[str, str]:
    answer = exchange(imds.endpoint, f"{TOKEN_TARGET.partition('&')[0]}&resource={resource}{more}")
    assert answer.status == 200, answer.data
    document: dict[str, str] = answer.json
    return document


def test_a_new_token_lasts_a_day(imds: ImdsEmulator) -> None:
    """A new token is backdated by five minutes, ends after a day, and has 86399 s left when it arrives."""
    token = ask(imds)
    assert int(token["not_before"]) == NOON - 300
    assert int(token["expires_on"]) == NOON + 86400
    assert token["expires_in"] == token["ext_expires_in"] == "86399"


def test_same_token(imds: ImdsEmulator) -> None:
    """Until its end a token is handed out again: nothing but expires_in moves."""
    first = ask(imds)
    imds.advance(50_000)
    later = ask(imds)
    assert later == first | {"expires_in": str(86399 - 50_000)}
    assert len(imds.tokens) == 1


def test_expired_token(imds: ImdsEmulator) -> None:
    """At its end a token makes room for a new one with a whole life, never for one without any time left."""
    first = ask(imds)
    imds.advance(86398)
    assert ask(imds)["expires_in"] == "1"
    imds.advance(1)
    assert ask(imds)["expires_in"] == "86399"
    assert imds.tokens[0] == first["access_token"] != imds.tokens[1]


def test_renew_before() -> None:
    """With `renew_before`, a token is replaced so many seconds before its end; `token_lifetime` says when that is."""
    with ImdsEmulator(clock=lambda: NOON, token_lifetime=3600, renew_before=600) as imds:
        assert ask(imds)["expires_in"] == "3599"
        imds.advance(2998)
        assert ask(imds)["expires_in"] == "601"
        imds.advance(1)
        assert ask(imds)["expires_in"] == "3599"


def test_one_token_each() -> None:
    """Identity and resource, as written, are the key of the emulator's cache."""
    other = UserAssigned()
    with ImdsEmulator([SystemAssigned(), other]) as imds:
        tokens = [
            ask(imds)["access_token"],
            ask(imds, resource="https://vault.azure.net/")["access_token"],
            ask(imds, f"&client_id={other.client_id}")["access_token"],
        ]
        again = ask(imds, f"&object_id={other.object_id}")["access_token"]
        assert len(set(tokens)) == 3
        assert again == tokens[2]
        assert imds.tokens == tokens


def test_bypass_cache(imds: ImdsEmulator) -> None:
    """bypass_cache=true gives a new token even in the same second, and that one is handed out from then on."""
    old = ask(imds)["access_token"]
    new = ask(imds, "&bypass_cache=true")["access_token"]
    assert new != old
    assert ask(imds)["access_token"] == new


def test_renewed_tokens_are_new(imds: ImdsEmulator) -> None:
    """`renew_tokens` makes the next answer carry a new token."""
    old = ask(imds)["access_token"]
    imds.renew_tokens()
    assert ask(imds)["access_token"] != old


def test_issue_token(imds: ImdsEmulator) -> None:
    """A token of any identity can be had for an answer that is wrong on purpose; it counts as issued."""
    stranger = UserAssigned("stranger")
    token = imds.issue_token("https://vault.azure.net", stranger)
    imds.script(faults.members(access_token=token, client_id=stranger.client_id))
    assert ask(imds)["client_id"] == stranger.client_id
    assert token in imds.tokens


def test_validators_accept() -> None:
    """PyJWT's own JWKS client validates a token with nothing but the published configuration."""
    with ImdsEmulator() as imds:
        token = ask(imds, resource="api://my-api")["access_token"]
        found = exchange(
            imds.endpoint,
            f"/{imds.tenant_id}/.well-known/openid-configuration",
            {"Host": imds.endpoint[7:], "Connection": "close"},
        ).json
        key = jwt.PyJWKClient(found["jwks_uri"]).get_signing_key_from_jwt(token)
        claims = jwt.decode(token, key, algorithms=["RS256"], audience="api://my-api", issuer=found["issuer"])
        assert claims["tid"] == imds.tenant_id
        assert imds.requests[1:] == []
        assert found["jwks_uri"] == imds.jwks_uri
        assert imds.openid_configuration_url.startswith(imds.endpoint)


def test_forged_token(imds: ImdsEmulator) -> None:
    """A token whose claims were changed does not fit the published key: the signatures are real."""
    header, claims, signature = ask(imds)["access_token"].split(".")
    flipped = claims[:-2] + ("AA" if claims[-2:] != "AA" else "BB")
    key = jwt.PyJWKClient(imds.jwks_uri).get_signing_key_from_jwt(f"{header}.{claims}.{signature}")
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(f"{header}.{flipped}.{signature}", key, algorithms=["RS256"], audience="https://vault.azure.net")


def test_twenty_requests_a_second() -> None:
    """With `throttle`, the 21st request of a second is refused as IMDS does it: no Retry-After, invalid_request."""
    with ImdsEmulator(throttle=True, clock=lambda: NOON) as imds:
        statuses = [exchange(imds.endpoint).status for _ in range(22)]
        assert statuses == [200] * 20 + [429] * 2
        refused = exchange(imds.endpoint)
        assert refused.json["error_description"] == "Temporarily throttled, too many requests"
        assert refused.header("Retry-After") is None
        imds.advance(1)
        assert exchange(imds.endpoint).status == 200


def test_five_a_second_elsewhere() -> None:
    """The other categories take 5 requests a second, counted apart."""
    with ImdsEmulator(throttle=True, clock=lambda: NOON) as imds:
        statuses = [exchange(imds.endpoint, "/metadata/versions").status for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        assert exchange(imds.endpoint).status == 200


def test_five_at_once() -> None:
    """With `throttle`, the sixth request while five are being answered is refused; the five are not."""
    with ImdsEmulator(throttle=True) as imds, ThreadPoolExecutor(5) as threads:
        release = threading.Event()
        imds.script(*[faults.hold(release)] * 5)
        held = [threads.submit(exchange, imds.endpoint) for _ in range(5)]
        imds.wait_for_requests(5)
        assert exchange(imds.endpoint).status == 429
        release.set()
        assert [answer.result().status for answer in held] == [200] * 5
        assert exchange(imds.endpoint).status == 200


def test_five_at_once_by_category() -> None:
    """Requests of other categories take none of the five places."""
    with ImdsEmulator(throttle=True) as imds, ThreadPoolExecutor(10) as threads:
        release = threading.Event()
        imds.script(*[faults.hold(release)] * 4, path="/metadata/versions")
        imds.script(*[faults.hold(release)] * 4)
        held = [threads.submit(exchange, imds.endpoint, "/metadata/versions") for _ in range(4)]
        held += [threads.submit(exchange, imds.endpoint) for _ in range(4)]
        imds.wait_for_requests(8)
        assert exchange(imds.endpoint).status == 200
        release.set()
        assert [answer.result().status for answer in held] == [200] * 8


def test_refused_do_not_count() -> None:
    """Refused requests, whose answers take time as well, are none of the five: these leave, and there is a place."""
    request = f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\nMetadata: true\r\n\r\n".encode()
    with ImdsEmulator(throttle=True, latency=60, clock=lambda: NOON) as imds, ExitStack() as connections:

        def fate() -> tuple[socket.socket, str]:
            """What becomes of one more request, before its answer comes."""
            came = len(imds.requests)
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", imds.port)))
            connection.sendall(request)
            return connection, imds.wait_for_requests(came + 1)[-1].answered

        first = [fate() for _ in range(5)]
        assert [told for _, told in first] == ["200"] * 5
        assert [fate()[1] for _ in range(6)] == ["429 (throttled)"] * 6
        for connection, _ in first:
            connection.close()
        assert fate()[1] == "200"


def test_over_before_known() -> None:
    """A request counts as over before its client has the last byte of the answer: five at once, again and again."""
    most = 0

    def answered(reply: faults.Reply) -> faults.Steps:
        nonlocal most
        most = max(most, imds._imds.in_flight)
        yield 0.0
        yield reply.encode()

    with ImdsEmulator() as imds, ThreadPoolExecutor(5) as threads:
        imds.script(answered, seconds=math.inf)
        answers = list(threads.map(lambda _: (exchange(imds.endpoint).status, imds._imds.in_flight), range(200)))
    assert {status for status, _ in answers} == {200}
    assert most <= 5
    assert max(in_flight for _, in_flight in answers) <= 4  # whose own request is over sees those of the others


def test_no_limits_unless_asked(imds: ImdsEmulator) -> None:
    """Without `throttle` any number of requests is answered."""
    assert {exchange(imds.endpoint).status for _ in range(40)} == {200}


def test_latency() -> None:
    """`latency` delays every answer, side by side and not one after the other."""
    with ImdsEmulator(latency=0.2) as imds, ThreadPoolExecutor(20) as threads:
        with pytest.raises(TimeoutError):
            exchange(imds.endpoint, timeout=0.05)
        answers = list(threads.map(lambda _: exchange(imds.endpoint, timeout=3.5), range(20)))  # 20 x 0.2 s = 4 s
    assert {answer.status for answer in answers} == {200}


def test_the_journal_knows_what_came(imds: ImdsEmulator) -> None:
    """A journal entry has method, path, query with all values, headers in any case, and the emulator's time."""
    imds.advance(5)
    exchange(imds.endpoint, "/metadata/x?a=1&a=2&b=", {"mEtadata": "true", "Connection": "close"})
    (request,) = imds.requests
    assert (request.method, request.path, request.time) == ("GET", "/metadata/x", NOON + 5)
    assert request.query == {"a": ("1", "2"), "b": ("",)}
    assert (request.param("a"), request.param("c")) == ("1", None)
    assert (request.header("METADATA"), request.header("Accept")) == ("true", None)


def test_probes(imds: ImdsEmulator) -> None:
    """`requests` has everything, `token_requests` what asked for a token with the header that probes leave out."""
    exchange(imds.endpoint, TOKEN_TARGET, {"Connection": "close"})
    exchange(imds.endpoint)
    exchange(imds.endpoint, "/metadata/versions")
    assert len(imds.requests) == 3
    assert [request.header("Metadata") for request in imds.token_requests] == ["true"]


def test_failed_count(imds: ImdsEmulator) -> None:
    """The message of a failed assert says what was expected and lists all that came and what became of it."""
    imds.script(faults.status(410))
    exchange(imds.endpoint)
    exchange(imds.endpoint, TOKEN_TARGET + "&client_id=abc", {"Connection": "close"})
    with pytest.raises(AssertionError) as failure:
        imds.assert_requests(1, client_id=None, resource="https://storage.azure.com")
    lines = str(failure.value).splitlines()
    assert lines[0] == (
        "expected 1 IMDS request(s) with client_id=None, resource=https://storage.azure.com, found 0. All that came:"
    )
    assert lines[1].endswith(f"GET {TOKEN_TARGET} (Metadata: true) -> status 410")
    assert lines[2].endswith("&client_id=abc (no Metadata header) -> 400")


def test_only_the_newest_are_kept() -> None:
    """With `keep` an emulator remembers so many requests and tokens, and goes on handing out the token it kept last."""
    with ImdsEmulator(keep=3) as imds:
        tokens = [ask(imds, resource=f"https://{number}.example")["access_token"] for number in range(5)]
        assert imds.tokens == tokens[2:]
        assert [request.param("resource") for request in imds.requests] == [f"https://{n}.example" for n in (2, 3, 4)]
        assert ask(imds, resource="https://4.example")["access_token"] == tokens[4]
        assert ask(imds, resource="https://0.example")["access_token"] not in tokens


def _claims(imds: ImdsEmulator, resource: str) -> dict[str, Any]:
    return jwt.decode(ask(imds, resource=resource)["access_token"], options={"verify_signature": False})


def test_changed_claims() -> None:
    """`claims` replaces, adds and (None) leaves out claims, for all tokens or by resource."""
    changes = {"xms_mirid": None, "roles": ["Reader"], "appidacr": "1"}
    with ImdsEmulator(claims=changes) as imds:
        changed = _claims(imds, "https://vault.azure.net")
        assert "xms_mirid" not in changed
        assert (changed["roles"], changed["appidacr"]) == (["Reader"], "1")
        assert jwt.decode(imds.issue_token("api://app"), options={"verify_signature": False})["roles"] == ["Reader"]
    with ImdsEmulator(claims=lambda resource: changes if "storage" in resource else {}) as imds:
        assert "xms_mirid" in _claims(imds, "https://vault.azure.net")
        assert "xms_mirid" not in _claims(imds, "https://storage.azure.com")


@pytest.mark.parametrize("claims", ["xms_mirid", ["xms_mirid"], 1])
def test_claims_that_are_no_mapping(claims: Any) -> None:
    """What is no mapping and no function is refused by name."""
    with pytest.raises(TypeError, match="claims must be a mapping or a function of the resource, got"):
        ImdsEmulator(claims=claims)


def test_counting_requests(imds: ImdsEmulator) -> None:
    """`assert_requests` counts all requests, or those whose query has the given values, and gives them back."""
    imds.assert_requests(0)
    exchange(imds.endpoint)
    exchange(imds.endpoint, TOKEN_TARGET + "&client_id=abc")
    imds.assert_requests(2)
    imds.assert_requests(1, client_id=None)
    assert imds.assert_requests(1, client_id="abc", resource="https://vault.azure.net")[0].param("client_id") == "abc"
    imds.clear_requests()
    imds.assert_requests(0)
    with pytest.raises(AssertionError, match=r"expected 1 or more IMDS request\(s\) within 0.01 s, found 0"):
        imds.wait_for_requests(1, timeout=0.01)


def test_separate_emulators() -> None:
    """Several emulators run side by side, each with its own port, identities, tokens, faults and journal."""
    with ImdsEmulator() as one, ImdsEmulator([UserAssigned()]) as two:
        two.script(faults.status(500))
        assert one.port != two.port
        ask(one)
        two.assert_requests(0)
        assert two.tokens == []
        assert exchange(two.endpoint).status == 500


def test_a_hundred_at_once(imds: ImdsEmulator) -> None:
    """Hundreds of connections that are open together all get their answer, and one token serves them all."""
    with ThreadPoolExecutor(100) as threads:
        answers = list(threads.map(lambda _: ask(imds)["access_token"], range(300)))
    assert set(answers) == set(imds.tokens)
    assert len(imds.tokens) == 1
    imds.assert_requests(300)


def test_close() -> None:
    """After `close` nothing listens, open connections are over, and the port can be taken again; again is harmless."""
    imds = ImdsEmulator().start()
    port = imds.port
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: imds\r\nMetadata: true\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        imds.close()
        assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    imds.close()
    with ImdsEmulator(port=port) as again:
        assert again.port == port


def test_not_running() -> None:
    """The endpoint of an emulator that was not started is an error that says what to do."""
    imds = ImdsEmulator()
    with pytest.raises(RuntimeError, match="use it in a `with` block"):
        _ = imds.endpoint
    assert repr(imds) == "<ImdsEmulator vm not started>"
    with imds:
        assert repr(imds) == f"<ImdsEmulator vm {imds.endpoint}>"


def test_taken_port() -> None:
    """Two emulators cannot have the same port: the second says so when it starts."""
    with ImdsEmulator() as imds, pytest.raises(OSError, match="in use"):
        ImdsEmulator(port=imds.port).start()


@pytest.mark.parametrize(
    ("mistake", "error", "said"),
    [
        (lambda imds: imds.script(410), TypeError, r"faults.status\(410\); got 410"),
        (lambda imds: imds.script(faults.drip), TypeError, r"faults.drip\(...\)"),
        (lambda imds: imds.script(), ValueError, "at least one"),
        (lambda imds: imds.random_faults(faults.status, rate=0.5, seed=1), TypeError, r"faults.status\(...\)"),
        (lambda imds: imds.random_faults(faults.ok, rate=5, seed=1), ValueError, "rate must be a share from 0 to 1"),
        (lambda imds: imds.random_faults(rate=0.5, seed=1), ValueError, "at least one"),
        (lambda imds: imds.assign("app"), TypeError, "UserAssigned.*got 'app'"),
        (lambda _: ImdsEmulator(identities=["app"]), TypeError, "UserAssigned.*got 'app'"),  # type: ignore[list-item] # that is the point
        (lambda _: ImdsEmulator(profile="nope"), ValueError, "profile must be one of vm, vmss, aci, aks"),  # type: ignore[arg-type] # as above
    ],
    ids=lambda value: None if callable(value) else str(value)[:40],
)
def test_mistakes_are_raised(mistake: Callable[[Any], object], error: type[Exception], said: str) -> None:
    """What is no fault, no identity and no share is refused where it is given, not on the server's thread."""
    with ImdsEmulator() as imds, pytest.raises(error, match=said):
        mistake(imds)


@pytest.mark.parametrize("name", [name for name in faults.__all__ if name.islower()])
def test_uncalled_faults(name: str) -> None:
    """Those that are faults are taken as they are, those that make faults say that they want to be called."""
    as_it_is = name in ("chunked", "forwarded_by_proxy_agent", "gzipped", "hang", "ok")
    with ImdsEmulator() as imds, nullcontext() if as_it_is else pytest.raises(TypeError, match=name):
        imds.script(getattr(faults, name))


# What a number must be: where it is given, its name, what the message expects, and what is no such number.
NO_TIMES = (-1, -0.1, math.nan, math.inf, 30 * 86400 + 1, True, "1", None)
NO_COUNTS = (-1, 1.0, math.nan, math.inf, True, "1", None)
NO_WHOLE = (1.5, math.nan, math.inf, True, "1", None)
NUMBERS: list[tuple[Callable[[ImdsEmulator, Any], object], str, tuple[object, ...]]] = [
    (lambda _, x: ImdsEmulator(port=x), "port must be a whole number from 0 to 65535", (*NO_COUNTS, 65536)),
    (lambda _, x: AzureCliEmulator(port=x), "port must be a whole number from 0 to 65535", (*NO_COUNTS, 65536)),
    (lambda _, x: ImdsEmulator(latency=x), "latency must be a number of seconds from 0 to 2592000", NO_TIMES),
    (lambda _, x: ImdsEmulator(token_lifetime=x), "token_lifetime must be a whole number from 1 to", (0, *NO_COUNTS)),
    (
        lambda _, x: ImdsEmulator(renew_before=x),
        "renew_before must be a number of seconds from 0",
        (-1, math.nan, math.inf, True, "1", None),
    ),
    (
        lambda imds, x: imds.advance(x),
        "seconds must be a number of seconds from -3155760000 to 3155760000",
        (-1e10, 1e10, math.nan, math.inf, True, "1", None),
    ),
    (lambda imds, x: imds.restart(refused=x), "refused must be a number of seconds from 0", NO_TIMES),
    (lambda imds, x: imds.restart(wireserver=x), "wireserver must be a whole number from 0", NO_COUNTS),
    (
        lambda imds, x: imds.script(faults.ok, seconds=x),
        "seconds must be a number of seconds from 0 to inf",
        (-1, math.nan, -math.inf, True, "1"),
    ),
    (
        lambda imds, x: imds.random_faults(faults.ok, rate=x, seed=1),
        "rate must be a share from 0 to 1",
        (-0.1, 1.1, math.nan, math.inf, True, "1", None),
    ),
    (lambda imds, x: imds.random_faults(faults.ok, rate=1, seed=x), "seed must be a whole number", NO_WHOLE),
    (lambda imds, x: imds.wait_for_requests(x), "count must be a whole number from 0", NO_COUNTS),
    (lambda imds, x: imds.wait_for_requests(0, x), "timeout must be a number of seconds from 0", NO_TIMES),
    (lambda imds, x: imds.assert_requests(x), "count must be a whole number from 0", NO_COUNTS),
    (lambda _, x: faults.status(x), "code must be a whole number from 100 to 999", (*NO_COUNTS, 99, 1000)),
    (
        lambda _, x: faults.throttled(x),
        "retry_after must be a number of seconds from 0",
        (-1, math.nan, math.inf, True, [1]),
    ),
    (lambda _, x: faults.slow(x), "seconds must be a number of seconds from 0", NO_TIMES),
    (lambda _, x: faults.drip(x), "interval must be a number of seconds from 0", NO_TIMES),
    (lambda _, x: faults.endless_100_continue(x), "interval must be a number of seconds from 0", NO_TIMES),
    (lambda _, x: faults.endless("body", x), "interval must be a number of seconds from 0", NO_TIMES),
    (lambda _, x: faults.endless("body", times=x), "times must be a whole number from 1", (*NO_COUNTS, 0)),
    (lambda _, x: ImdsEmulator(keep=x), "keep must be a whole number from 1", (-1, 0, 1.0, math.nan, True, "1")),
    (lambda _, x: faults.reset(x), "after must be a whole number", NO_WHOLE),
    (lambda _, x: faults.wrong_length(x), "more must be a whole number", NO_WHOLE),
]


@pytest.mark.parametrize(
    ("give", "said", "value"),
    [
        pytest.param(give, said, value, id=f"{number} {said.split()[0]}={value!r}")
        for number, (give, said, values) in enumerate(NUMBERS, 1)
        for value in values
    ],
)
def test_bad_numbers(imds: ImdsEmulator, give: Callable[[ImdsEmulator, Any], object], said: str, value: Any) -> None:
    """What is negative, endless, NaN, a bool or text where it must not be is refused at once; nothing changes by it."""
    right_type = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = right_type and (isinstance(value, int) or "whole" not in said)
    with pytest.raises(ValueError if whole else TypeError, match=f"^{said}.*, got {re.escape(repr(value))}$"):
        give(imds, value)
    assert (imds.now(), imds.faults_left) == (NOON, 0)
    assert exchange(imds.endpoint).status == 200


@pytest.mark.parametrize("emulator", [ImdsEmulator, AzureCliEmulator])
@pytest.mark.parametrize(
    ("host", "error"),
    [("nowhere", ValueError), ("", ValueError), ("127.0.0.1:80", ValueError), (b"::1", TypeError), (1, TypeError)],
)
def test_bad_host(emulator: Any, host: Any, error: type[Exception]) -> None:
    """No name is looked up; the message says what is expected."""
    expected = f"host must be an IP address such as 127.0.0.1, or localhost, got {host!r}"
    with pytest.raises(error, match=f"^{re.escape(expected)}$"):
        emulator(host=host)


@pytest.mark.filterwarnings("ignore::azure_imds_credential.testing.RealTokensWarning")
@pytest.mark.parametrize("emulator", [ImdsEmulator, AzureCliEmulator])
def test_localhost(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is 127.0.0.1, and neither a file of hosts nor a name server is asked."""

    def asked(*_: Any) -> Any:
        raise AssertionError("the name was looked up")

    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, asked)
    with emulator(host="localhost") as imds:
        assert imds.endpoint.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(("host", "dialled"), [("::1", "[::1]"), ("0.0.0.0", "127.0.0.1")])
def test_other_addresses(host: str, dialled: str) -> None:
    """IPv6 works, and the endpoint of a wildcard address is one that can be dialled."""
    try:
        imds = ImdsEmulator(host=host).start()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with imds:
        assert imds.endpoint == f"http://{dialled}:{imds.port}"
        assert exchange(imds.endpoint).status == 200


FORKING = """
import os, warnings
from azure_imds_credential.testing import ImdsEmulator
from raw_http import exchange
warnings.simplefilter("ignore")  # 3.12 warns of forks beside threads
with ImdsEmulator() as imds:
    child = os.fork()
    if child == 0:
        assert exchange(imds.endpoint).status == 200
    else:
        assert os.waitpid(child, 0)[1] == 0
        assert exchange(imds.endpoint).status == 200
        imds.assert_requests(2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child() -> None:
    """A child that leaves the `with` block it was born in ends at once, and its parent's emulator goes on."""
    command = [sys.executable, "-c", FORKING]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_lazy_imports() -> None:
    """Importing the kit, its emulator and its plugin loads neither cryptography nor vcrpy, msal or an HTTP stack."""
    program = (
        "import sys, azure_imds_credential.testing as t; t.ImdsEmulator; t.faults;"
        "import azure_imds_credential.testing._plugin;"
        "print(sorted({'cryptography', 'vcr', 'msal', 'requests', 'jwt'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


LACKING = """
import sys
import azure_imds_credential.testing as kit
for name, library in {"ImdsEmulator": "cryptography", "imds_vcr": "vcr", "VaultDouble": "trustme"}.items():
    sys.modules[library] = None  # as good as not installed
    try:
        getattr(kit, name)
    except ImportError as error:
        print(error)
"""


def test_missing_library() -> None:
    """An aid whose library is missing names the extra that brings it."""
    done = subprocess.run([sys.executable, "-c", LACKING], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, (name, library) in zip(
        lines, (("ImdsEmulator", "cryptography"), ("imds_vcr", "vcr"), ("VaultDouble", "trustme")), strict=True
    ):
        assert line.startswith(f"{name} needs {library}, which the extra [testing] of azure-imds-credential installs")


def test_stable_identities() -> None:
    """Fake names are derived from the identity's own, so that failures look the same each time; any can be given."""
    assert SystemAssigned() == SystemAssigned()
    assert UserAssigned("a") == UserAssigned("a") != UserAssigned("b")
    assert UserAssigned("a").resource_id.endswith("/Microsoft.ManagedIdentity/userAssignedIdentities/a")
    assert UserAssigned("a", client_id="c", object_id="o", resource_id="r").client_id == "c"
