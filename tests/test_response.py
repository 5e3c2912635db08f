"""What a response means: each row of the table, without a socket."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from azure_imds_credential import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsThrottledError,
    ImdsUnavailableError,
)
from azure_imds_credential._identity import Identity, identity_from
from azure_imds_credential._imds.response import (
    BROKEN_BODY,
    LARGE_BODY,
    NoResponse,
    Response,
    Situation,
    Verdict,
    compare,
    excerpt,
    judge,
)
from azure_imds_credential._imds.retry import Retry
from azure_imds_credential._jwt import MAX_LIFE

VAULT = "https://vault.azure.net"
NOW = 1_790_000_000.0
DATE = "Mon, 21 Sep 2026 14:13:20 GMT"  # the same instant
GUID = "6a7b8c9d-0000-4000-8000-00000000abcd"
OTHER_GUID = "6a7b8c9d-0000-4000-8000-00000000dcba"
ARM_ID = f"/subscriptions/{GUID}/resourcegroups/Group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app"
IMDS = {"server": "IMDS/150.870.65.1854"}
DEFAULT = identity_from(client_id=None, object_id=None, resource_id=None)
UNSEEN, SEEN = Situation(), Situation(seen=True)
ENTRA: dict[str, Any] = {"error_codes": [500011], "trace_id": GUID}


def jwt(**claims: Any) -> str:
    """Return a dummy token with these claims and no valid signature."""
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join((*encoded, "c2lnbmF0dXJl"))


def response(status: int, payload: Any, headers: Mapping[str, str] = IMDS, fault: str = "") -> Response:
    """Return a response whose body is JSON unless it is given as text, bytes or None."""
    body = payload.encode() if isinstance(payload, str) else payload
    return Response(status, headers, body if isinstance(body, bytes | None) else json.dumps(body).encode(), fault)


def token_response(headers: Mapping[str, str] = IMDS, **members: Any) -> Response:
    """Return a good response with members replaced, added, or (None) left out."""
    document = {"access_token": "good", "expires_in": "3600", "resource": VAULT, "token_type": "Bearer", **members}
    return response(200, {name: value for name, value in document.items() if value is not None}, headers)


def error_response(
    status: int, code: str = "invalid_request", headers: Mapping[str, str] = IMDS, **more: Any
) -> Response:
    """Return an error in IMDS's shape, with words that no code may depend on."""
    return response(status, {"error": code, "error_description": "Worte, die sich ändern", **more}, headers)


def identity(**arguments: Any) -> Identity:
    return identity_from(**{"client_id": None, "object_id": None, "resource_id": None, **arguments})


def judged(
    came_back: Response | NoResponse,
    identity: Identity = DEFAULT,
    resource: str = VAULT,
    situation: Situation = UNSEEN,
) -> Verdict:
    return judge(came_back, identity, resource, situation, NOW)


Meaning = tuple[type[ImdsError] | None, Retry]


class Row(NamedTuple):
    """What comes back, and what it means where the endpoint was never seen and where it was."""

    came_back: Response | NoResponse
    unseen: Meaning
    seen: Meaning | None = None  # None: the same


A_TOKEN = (None, Retry.NEVER)
MALFORMED = (ImdsServiceError, Retry.ONCE)
TRANSIENT = (ImdsServiceError, Retry.TRANSIENT)
GONE = (ImdsServiceError, Retry.GONE)
THROTTLED = (ImdsThrottledError, Retry.THROTTLED)
REFUSED = (ImdsRequestError, Retry.NEVER)
NO_IDENTITY = (IdentityUnavailableError, Retry.NEVER)
MISMATCH = (IdentityMismatchError, Retry.NEVER)
UNAVAILABLE = (ImdsUnavailableError, Retry.NEVER)
UNKNOWN_SERVER = (ImdsUnavailableError, Retry.UNKNOWN_SERVER)
FAULT = (ImdsServiceError, Retry.NEVER)
ENCODED_BODY = "Content-Encoding 'gzip', which was not asked for"

ROWS = {
    # 200 with a token
    "a token": Row(token_response(), A_TOKEN),
    "a token, numbers as int": Row(token_response(expires_in=3600), A_TOKEN),
    "a token, numbers as float": Row(token_response(expires_in=3599.9), A_TOKEN),
    "a token without the server header (Container Instances)": Row(token_response({}), A_TOKEN),
    "a token as text/plain": Row(token_response({"content-type": "text/plain"}), A_TOKEN),
    "a token after a byte order mark": Row(response(200, b"\xef\xbb\xbf" + (token_response().body or b"")), A_TOKEN),
    "a token with expires_on only": Row(token_response(expires_in=None, expires_on=str(int(NOW) + 60)), A_TOKEN),
    "the longest life": Row(token_response(expires_in=366 * 86400), A_TOKEN),
    # 200 from IMDS, anything else
    "200 and nothing": Row(response(200, b""), MALFORMED),
    "200 and no JSON": Row(response(200, "no JSON"), MALFORMED),
    "200 and half a JSON": Row(response(200, '{"access_token":"good"'), MALFORMED),
    "200 and a list": Row(response(200, [{"access_token": "good", "expires_in": 3600}]), MALFORMED),
    "200 and null": Row(response(200, "null"), MALFORMED),
    "200 and deep JSON": Row(response(200, "[" * 100_000), MALFORMED),
    "200 and UTF-16": Row(response(200, '{"access_token":"good","expires_in":9}'.encode("utf-16")), MALFORMED),
    "204": Row(response(204, b""), MALFORMED),
    "token empty": Row(token_response(access_token=""), MALFORMED),
    "token a number": Row(token_response(access_token=5), MALFORMED),
    "token a list": Row(token_response(access_token=["good"]), MALFORMED),
    "token null": Row(response(200, {"access_token": None, "expires_in": 3600}), MALFORMED),
    "token with CR and LF": Row(token_response(access_token="good\r\nX-Evil: 1"), MALFORMED),
    "token with LF at its end": Row(token_response(access_token="good\n"), MALFORMED),
    "token with a space": Row(token_response(access_token="go od"), MALFORMED),
    "token with a control character": Row(token_response(access_token="go\x00od"), MALFORMED),
    "token beyond ASCII": Row(token_response(access_token="göd"), MALFORMED),
    "no expiry": Row(token_response(expires_in=None), MALFORMED),
    "expiry zero": Row(token_response(expires_in="0"), MALFORMED),
    "expiry negative": Row(token_response(expires_in=-1), MALFORMED),
    "expiry in the past": Row(token_response(expires_in=None, expires_on=1), MALFORMED),
    "expiry above 366 days": Row(token_response(expires_in=366 * 86400 + 1), MALFORMED),
    "expiry in milliseconds": Row(token_response(expires_in=None, expires_on=int(NOW) * 1000), MALFORMED),
    "expiry not a number": Row(token_response(expires_in=float("nan")), MALFORMED),
    "expiry infinite": Row(token_response(expires_in=float("inf")), MALFORMED),
    "expiry beyond float": Row(token_response(expires_in=10**400), MALFORMED),
    "expiry text": Row(token_response(expires_in="soon"), MALFORMED),
    "expiry a boolean": Row(token_response(expires_in=True), MALFORMED),
    "expiry an object": Row(token_response(expires_in={"seconds": 3600}), MALFORMED),
    # For another resource
    "another resource": Row(token_response(resource="https://graph.microsoft.com"), MISMATCH),
    # 200 with an error: as if its status were 400
    "200 and no such identity": Row(error_response(200), NO_IDENTITY),
    "200 and no such identity, server unnamed": Row(error_response(200, headers={}), NO_IDENTITY),
    "200 and Entra's error": Row(error_response(200, **ENTRA), REFUSED),
    "200 and another code": Row(error_response(200, "invalid_resource"), REFUSED),
    "200 and an error beside a token": Row(error_response(200, access_token="good", expires_in=3600), A_TOKEN),
    "200 and an error beside a bad token": Row(error_response(200, access_token="", expires_in=3600), MALFORMED),
    "200 and an error without description": Row(response(200, {"error": "invalid_request"}), MALFORMED),
    "201 and an error": Row(error_response(201), MALFORMED),
    # 4xx from IMDS
    "no such identity": Row(error_response(400), NO_IDENTITY),
    "no such identity, server unnamed": Row(error_response(400, headers={}), NO_IDENTITY),
    "Entra's invalid_request": Row(error_response(400, **ENTRA), REFUSED),
    "Entra's invalid_request without its codes": Row(error_response(400, trace_id=GUID), REFUSED),
    "no such resource": Row(error_response(400, "invalid_resource", **ENTRA), REFUSED),
    "another code": Row(error_response(400, "bad_request"), REFUSED),
    "400 and no JSON": Row(response(400, "Bad Request"), REFUSED),
    "401": Row(error_response(401, "unauthorized_client"), REFUSED),
    "403": Row(response(403, b""), REFUSED),
    "405": Row(error_response(405, "method_not_allowed"), REFUSED),
    "418": Row(response(418, b""), REFUSED),
    "401 that says invalid_request": Row(error_response(401), REFUSED),
    # Retried statuses from IMDS, whatever the body
    "404": Row(response(404, {"error": "Not Found"}), TRANSIENT),
    "404 in identity's shape, server unnamed": Row(error_response(404, headers={}), TRANSIENT),
    "408": Row(response(408, b""), TRANSIENT),
    "410": Row(response(410, b""), GONE),
    "410 with words": Row(error_response(410), GONE),
    "429": Row(error_response(429), THROTTLED),
    "429 with nothing": Row(response(429, b""), THROTTLED),
    "500": Row(response(500, "oops"), TRANSIENT),
    "500 with a token": Row(response(500, {"access_token": "good", "expires_in": 3600}), TRANSIENT),
    "501": Row(response(501, b""), TRANSIENT),
    "502": Row(response(502, b""), TRANSIENT),
    "503": Row(response(503, b""), TRANSIENT),
    "504": Row(response(504, b""), TRANSIENT),
    "503 whose body broke": Row(response(503, None, fault=BROKEN_BODY), TRANSIENT),
    "429 whose body is too large": Row(response(429, None, fault=LARGE_BODY), THROTTLED),
    # The same from a unknown server
    **{
        f"{status} from an unknown server": Row(response(status, "<html>", {"server": "nginx"}), UNKNOWN_SERVER, seen)
        for status, seen in {
            408: TRANSIENT,
            410: GONE,
            429: THROTTLED,
            500: TRANSIENT,
            502: TRANSIENT,
            503: TRANSIENT,
            504: TRANSIENT,
        }.items()
    },
    "500 by WireServer": Row(response(500, b"", {"server": "Microsoft-IIS/10.0"}), UNKNOWN_SERVER, TRANSIENT),
    # Anything else from an unknown server
    "a page": Row(response(200, "<html>Sign in</html>", {"content-type": "text/html"}), UNAVAILABLE),
    "JSON of another service": Row(response(200, {"status": "ok"}, {}), UNAVAILABLE),
    "Docker Desktop": Row(response(403, "connecting to 169.254.169.254:80: unreachable network", {}), UNAVAILABLE),
    "the same in Norwegian": Row(response(403, "et nettverk som ikke kan nås", {}), UNAVAILABLE),
    "EC2": Row(response(404, "<?xml version='1.0'?><html>Not Found</html>", {"server": "EC2ws"}), UNAVAILABLE),
    "EC2 that wants a session": Row(response(401, b"", {"server": "EC2ws"}), UNAVAILABLE),
    "Google Compute Engine": Row(
        response(404, "<html>", {"server": "Metadata Server for VM", "metadata-flavor": "Google"}), UNAVAILABLE
    ),
    "OpenStack": Row(response(404, "<html><h1>404 Not Found</h1></html>", {}), UNAVAILABLE),
    "Oracle Cloud": Row(response(404, {"code": 404, "message": "HTTP 404 Not Found"}, {}), UNAVAILABLE),
    "Azure ML": Row(response(404, "InternalError - :{ Info: Request failure status code: 404 }", {}), UNAVAILABLE),
    "Pod Identity": Row(response(404, "getting assigned identities failed after 16 attempts", {}), UNAVAILABLE),
    "Service Fabric's shape": Row(response(400, {"error": {"code": "x", "message": "y"}}, {}), UNAVAILABLE),
    "501 by an unknown server": Row(response(501, b"", {}), UNAVAILABLE),
    # The guest agent of the Metadata Security Protocol, where none is installed
    "403 of a guest agent": Row(response(403, b"", {}), UNAVAILABLE, REFUSED),
    "421 of a guest agent": Row(response(421, b"", {}), UNAVAILABLE, REFUSED),
    "403 with a server": Row(response(403, b"", {"server": "nginx"}), UNAVAILABLE),
    "403 with a body": Row(response(403, "no", {}), UNAVAILABLE),
    "404 without a body": Row(response(404, b"", {}), UNAVAILABLE),
    # Redirects, large, broken and encoded bodies
    "redirect from IMDS": Row(response(307, b"", {**IMDS, "location": "http://evil.example/"}), FAULT),
    "redirect with a token": Row(response(302, {"access_token": "good", "expires_in": 3600}), FAULT),
    "redirect by a portal": Row(response(302, b"", {"location": "http://portal.example/"}), UNAVAILABLE),
    "304": Row(response(304, b""), FAULT),
    "too large, from IMDS": Row(response(200, None, fault=LARGE_BODY), FAULT),
    "too large, by an unknown server": Row(response(200, None, {}, LARGE_BODY), UNAVAILABLE),
    "broke off, from IMDS": Row(response(200, None, fault=BROKEN_BODY), MALFORMED),
    "broke off, by an unknown server": Row(response(200, None, {}, BROKEN_BODY), UNAVAILABLE, MALFORMED),
    "encoded, from IMDS": Row(response(200, None, fault=ENCODED_BODY), MALFORMED),
    "encoded, by an unknown server": Row(response(200, None, {}, ENCODED_BODY), UNAVAILABLE, MALFORMED),
    "503, encoded, from IMDS": Row(response(503, None, fault=ENCODED_BODY), TRANSIENT),
    # No response
    "refused": Row(NoResponse("connecting failed", is_absent=True, is_refused=True), UNAVAILABLE, TRANSIENT),
    "connect timeout": Row(NoResponse("connecting timed out", is_absent=True), UNAVAILABLE, TRANSIENT),
    "connected, then no response": Row(
        NoResponse("no response", is_absent=True, has_listener=True), UNAVAILABLE, TRANSIENT
    ),
    "broke before a response": Row(NoResponse("the connection broke", has_listener=True), UNAVAILABLE, TRANSIENT),
    "no descriptors left": Row(NoResponse("EMFILE", is_shortage=True), TRANSIENT),
    "a fault of the transport": Row(NoResponse("TypeError", is_fault=True), FAULT),
    "blocked": Row(NoResponse("connecting failed", is_blocked=True), UNAVAILABLE, FAULT),
}


@pytest.mark.parametrize("name", ROWS)
def test_meaning(name: str) -> None:
    """The error class and the retry schedule follow from the response and from whether IMDS was seen."""
    row = ROWS[name]
    for situation, expected in ((UNSEEN, row.unseen), (SEEN, row.seen or row.unseen)):
        verdict = judged(row.came_back, situation=situation)
        assert (verdict.error, verdict.retry) == expected, f"{situation}: {verdict}"


@pytest.mark.parametrize("name", ROWS)
def test_token_or_error(name: str) -> None:
    """There is a token exactly where there is no error, and it has a usable life."""
    verdict = judged(ROWS[name].came_back)
    if verdict.error is None:
        assert verdict.access_token == "good"
        assert 0 < verdict.life <= MAX_LIFE
    else:
        assert not verdict.access_token
        assert not verdict.life


@pytest.mark.parametrize("name", ROWS)
def test_absence(name: str) -> None:
    """Only an endpoint without any response is absent, and none that was seen."""
    came_back = ROWS[name].came_back
    assert judged(came_back).is_absent == (isinstance(came_back, NoResponse) and came_back.is_absent)
    assert not judged(came_back, situation=SEEN).is_absent


@pytest.mark.parametrize("status", [403, 421])
@pytest.mark.parametrize(
    ("situation", "headers", "body", "is_refusal"),
    [
        (Situation(has_proxy_agent=True), {}, b"", True),
        (Situation(seen=True), {}, b"", True),
        (Situation(), {}, b"", False),
        (Situation(has_proxy_agent=True), {"server": "nginx"}, b"", False),
        (Situation(has_proxy_agent=True), {}, b"<html>", False),
    ],
    ids=["agent installed", "IMDS seen", "neither", "server named", "with a body"],
)
def test_guest_agent(status: int, situation: Situation, headers: dict[str, str], body: bytes, is_refusal: bool) -> None:
    """The Metadata Security Protocol refuses with 403 or 421, no body and no server: a chain stops."""
    verdict = judged(response(status, body, headers), situation=situation)
    assert verdict.error is (ImdsRequestError if is_refusal else ImdsUnavailableError)
    assert (verdict.refused_by_agent, verdict.retry) == (is_refusal, Retry.NEVER)


@pytest.mark.parametrize("status", [400, 404, 405])
def test_guest_agent_elsewhere(status: int) -> None:
    """Other statuses are no refusal of the guest agent, also where it is installed."""
    verdict = judged(response(status, b"", {}), situation=Situation(seen=True, has_proxy_agent=True))
    assert verdict.error is ImdsUnavailableError
    assert not verdict.refused_by_agent


@pytest.mark.parametrize(
    ("failure", "situation", "retry"),
    [
        (NoResponse("refused", is_absent=True, is_refused=True), Situation(is_booting=True), Retry.BOOTING),
        (NoResponse("refused", is_absent=True, is_refused=True), Situation(), Retry.NEVER),
        (NoResponse("timed out", is_absent=True), Situation(is_booting=True), Retry.NEVER),
        (NoResponse("broke", has_listener=True), Situation(is_booting=True), Retry.NEVER),
        (NoResponse("refused", is_refused=True), Situation(seen=True, is_booting=True), Retry.TRANSIENT),
        (NoResponse("EMFILE", is_shortage=True), Situation(is_booting=True), Retry.TRANSIENT),
    ],
    ids=["refused", "long since booted", "timed out", "broke", "seen", "shortage"],
)
def test_booting(failure: NoResponse, situation: Situation, retry: Retry) -> None:
    """What is refused or unreachable is asked again while the machine boots; nothing else is."""
    assert judged(failure, situation=situation).retry is retry


@pytest.mark.parametrize("situation", [UNSEEN, SEEN, Situation(is_booting=True)], ids=["unseen", "seen", "booting"])
def test_shortage(situation: Situation) -> None:
    """A shortage of this machine says nothing of IMDS: never unavailable, never absent, and named."""
    verdict = judged(NoResponse("lacks what a connection needs (EMFILE)", is_shortage=True), situation=situation)
    assert verdict.error is ImdsServiceError
    assert not verdict.is_absent
    assert "EMFILE" in verdict.reason


FLAGS = ("is_fault", "is_shortage", "is_blocked", "is_large")


@pytest.mark.parametrize(
    ("came_back", "flag"),
    [
        (NoResponse("TypeError", is_fault=True), "is_fault"),
        (NoResponse("EMFILE", is_shortage=True), "is_shortage"),
        (NoResponse("SocketBlockedError", is_blocked=True), "is_blocked"),
        (Response(200, IMDS, None, LARGE_BODY), "is_large"),
        (Response(200, IMDS, None, BROKEN_BODY), None),
        (NoResponse("refused", is_absent=True), None),
    ],
    ids=["fault", "shortage", "blocked", "large body", "broken body", "refused"],
)
def test_what_the_hint_is_chosen_by(came_back: Response | NoResponse, flag: str | None) -> None:
    """A user's transport, a shortage, what blocks the network and a large body are no failures of IMDS."""
    verdict = judged(came_back, situation=SEEN)
    assert verdict.has_listener == (not verdict.is_blocked)
    assert [getattr(verdict, name) for name in FLAGS] == [name == flag for name in FLAGS]


IN_AN_HOUR = int(NOW) + 3600
LIVES: dict[str, tuple[float, dict[str, Any]]] = {
    "expires_in": (3600, {"expires_in": "3600"}),
    "expires_on is empty": (3600, {"expires_in": "3600", "expires_on": ""}),
    "a float": (3599.5, {"expires_in": 3599.5}),
    "expires_on is nearer": (3590, {"expires_in": "3600", "expires_on": str(int(NOW) + 3590)}),
    "expires_in is nearer": (3600, {"expires_in": "3600", "expires_on": str(int(NOW) + 9999)}),
    "expires_on alone": (120, {"expires_in": None, "expires_on": int(NOW) + 120}),
    "expires_in is empty": (120, {"expires_in": "", "expires_on": str(int(NOW) + 120)}),
    # A value that makes no sense beside a good one
    "expires_in is 0": (3600, {"expires_in": "0", "expires_on": IN_AN_HOUR}),
    "expires_in is negative": (3600, {"expires_in": -5, "expires_on": IN_AN_HOUR}),
    "expires_in is a text": (3600, {"expires_in": "soon", "expires_on": IN_AN_HOUR}),
    "expires_in is absurd": (3600, {"expires_in": 10**12, "expires_on": IN_AN_HOUR}),
    "expires_in is an epoch": (3600, {"expires_in": IN_AN_HOUR, "expires_on": IN_AN_HOUR}),
    "expires_on is 0": (3600, {"expires_on": 0}),
    "expires_on is past": (3600, {"expires_on": int(NOW) - 1}),
    "expires_on is a date": (3600, {"expires_on": "2026-09-21T15:13:20Z"}),
    "expires_on is a date of App Service": (3600, {"expires_on": "09/21/2026 15:13:20 +00:00"}),
    "expires_on is in milliseconds": (3600, {"expires_on": IN_AN_HOUR * 1000}),
    # A `Date` that lies before the token was issued, by more than clocks differ
    "Date of a clock that is days behind": (
        3600,
        {"expires_on": int(NOW) + 3 * 86400, "access_token": jwt(iat=int(NOW) + 2 * 86400, exp=int(NOW) + 3 * 86400)},
    ),
    "Date of a clock that is minutes behind": (
        172_800,
        {"expires_on": int(NOW) + 172_800, "access_token": jwt(iat=int(NOW) + 300, exp=int(NOW) + 172_801)},
    ),
    "iat is a text": (
        172_800,
        {"expires_on": int(NOW) + 172_800, "access_token": jwt(iat="soon", exp=int(NOW) + 172_801)},
    ),
    # A contradiction of more than a day: the token's own `exp` says which is right
    "exp is for expires_in": (
        3600,
        {"expires_on": int(NOW) + 172_800, "access_token": jwt(exp=int(NOW) + 3601)},
    ),
    "exp is for expires_on": (
        172_800,
        {"expires_on": int(NOW) + 172_800, "access_token": jwt(exp=int(NOW) + 172_801)},
    ),
    "exp for the nearer, expires_on": (
        60,
        {"expires_in": 172_800, "expires_on": int(NOW) + 60, "access_token": jwt(exp=int(NOW) + 60)},
    ),
    "contradiction, opaque token": (3600, {"expires_on": int(NOW) + 172_800}),
    "contradiction, exp of a wrong type": (
        3600,
        {"expires_on": int(NOW) + 172_800, "access_token": jwt(exp=[])},
    ),
    "contradiction, no exp": (3600, {"expires_on": int(NOW) + 172_800, "access_token": jwt(oid=GUID)}),
    "a day is no contradiction": (
        3600,
        {"expires_on": int(NOW) + 3600 + 86400, "access_token": jwt(exp=int(NOW) + 3600 + 86400)},
    ),
}


@pytest.mark.parametrize("name", LIVES)
def test_life(name: str) -> None:
    """A token lives min(expires_in, expires_on - Date) seconds; values that make no sense do not count."""
    life, members = LIVES[name]
    assert judged(token_response({**IMDS, "date": DATE}, **members)).life == life


@pytest.mark.parametrize("date", [None, "yesterday", "Mon, 99 Sep 2026 14:13:20 GMT", "Mon, 21 Sep 20261111 14:13:20"])
def test_life_without_date(date: str | None) -> None:
    """Without a usable `Date` our clock does not matter while `expires_in` is there, and serves where it is not."""
    headers = IMDS if date is None else {**IMDS, "date": date}
    assert judged(token_response(headers, expires_in="3600", expires_on=str(int(NOW) + 60))).life == 3600
    assert judged(token_response(headers, expires_in=None, expires_on=str(int(NOW) + 60))).life == 60


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"expires_in": "-17"}, "expires_in=-17"),
        ({"expires_in": None, "expires_on": "1970-01-02"}, "expires_on=1970-01-02"),
        ({"expires_in": 366 * 86400 + 1}, f"expires_in={366 * 86400 + 1}"),
    ],
)
def test_unusable_life(members: dict[str, Any], told: str) -> None:
    """An unusable life is told with the value that made it so."""
    verdict = judged(token_response(**members))
    assert verdict.error is ImdsServiceError
    assert told in verdict.reason


@pytest.mark.parametrize("date", [DATE, DATE.removesuffix(" GMT"), DATE.replace("GMT", "-0000")])
def test_dates_are_gmt(monkeypatch: pytest.MonkeyPatch, date: str) -> None:
    """An HTTP date is read as GMT, named or not, whatever the zone of this machine."""
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        came_back = token_response({**IMDS, "date": date}, expires_in="3600", expires_on=str(int(NOW) + 60))
        assert judged(came_back).life == 60
    finally:
        monkeypatch.undo()
        time.tzset()


class Asked(NamedTuple):
    """Which identity was asked for, the members of the response, and whether they fit."""

    identity: dict[str, str]
    members: dict[str, Any]
    fits: bool
    resource: str = VAULT


CLIENT, OBJECT, ARM = {"client_id": GUID}, {"object_id": GUID}, {"resource_id": ARM_ID}
MATCHES = {
    "the client": Asked(CLIENT, {"client_id": GUID}, True),
    "the client in capitals": Asked(CLIENT, {"client_id": GUID.upper()}, True),
    "another client": Asked(CLIENT, {"client_id": OTHER_GUID}, False),
    "another client, right token": Asked(CLIENT, {"client_id": OTHER_GUID, "access_token": jwt(appid=GUID)}, False),
    "no client, right appid": Asked(CLIENT, {"access_token": jwt(appid=GUID)}, True),
    "no client, other appid": Asked(CLIENT, {"access_token": jwt(appid=OTHER_GUID)}, False),
    "empty client, other appid": Asked(CLIENT, {"client_id": "", "access_token": jwt(appid=OTHER_GUID)}, False),
    "client of a wrong type, other appid": Asked(
        CLIENT, {"client_id": 5, "access_token": jwt(appid=OTHER_GUID)}, False
    ),
    "appid of a wrong type, other azp": Asked(CLIENT, {"access_token": jwt(appid=5, azp=OTHER_GUID)}, False),
    "no client, other azp": Asked(CLIENT, {"access_token": jwt(azp=OTHER_GUID)}, False),
    "no client, opaque token": Asked(CLIENT, {}, True),
    "no client, token that is three garbled parts": Asked(CLIENT, {"access_token": "a.b.c"}, True),
    "no client, claims no object": Asked(CLIENT, {"access_token": "a.W10.c"}, True),
    "the object": Asked(OBJECT, {"access_token": jwt(oid=GUID), "client_id": OTHER_GUID}, True),
    "another object": Asked(OBJECT, {"access_token": jwt(oid=OTHER_GUID)}, False),
    "an object that the token does not name": Asked(OBJECT, {"access_token": jwt(sub=OTHER_GUID)}, True),
    "an object, opaque token": Asked(OBJECT, {"client_id": OTHER_GUID}, True),
    "the ARM ID in other case": Asked(ARM, {"access_token": jwt(xms_mirid=ARM_ID.lower())}, True),
    "the ARM ID with a slash": Asked(ARM, {"access_token": jwt(xms_mirid=ARM_ID + "/")}, True),
    "another ARM ID": Asked(ARM, {"access_token": jwt(xms_mirid=ARM_ID + "2")}, False),
    "no selector, any identity": Asked({}, {"client_id": OTHER_GUID, "access_token": jwt(oid=GUID)}, True),
    "the resource with a slash": Asked({}, {"resource": VAULT + "/"}, True),
    "the resource without its slash": Asked({}, {"resource": VAULT}, True, VAULT + "/"),
    "two slashes are not one": Asked({}, {"resource": VAULT + "//"}, False),
    "a resource that is a GUID in capitals": Asked({}, {"resource": GUID.upper()}, True, GUID),
    "no resource": Asked({}, {"resource": None}, True),
    "resource of a wrong type": Asked({}, {"resource": 5}, True),
    "a resource that begins like ours": Asked({}, {"resource": VAULT + ".evil.example"}, False),
}


@pytest.mark.parametrize("name", MATCHES)
def test_mismatch(name: str) -> None:
    """What the response names must fit what was asked; what it leaves out is unknown, never a mismatch."""
    asked = MATCHES[name]
    verdict = judged(token_response(**asked.members), identity(**asked.identity), asked.resource)
    assert verdict.error == (None if asked.fits else IdentityMismatchError)
    assert bool(verdict.access_token) == asked.fits


def test_mismatch_names_the_other() -> None:
    """ARM IDs and GUIDs are no secrets: the message shows them whole."""
    rows: list[tuple[dict[str, str], dict[str, Any], str]] = [
        (CLIENT, {"client_id": OTHER_GUID}, OTHER_GUID),
        (ARM, {"access_token": jwt(xms_mirid=ARM_ID + "2")}, ARM_ID + "2"),
        ({}, {"resource": "https://graph.microsoft.com"}, "https://graph.microsoft.com"),
    ]
    for selector, members, shown in rows:
        assert shown in judged(token_response(**members), identity(**selector)).reason


VM_ID = f"/subscriptions/{GUID}/resourcegroups/Group/providers/Microsoft.Compute/virtualMachines/vm"


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (jwt(xms_mirid=VM_ID), None),
        (jwt(xms_mirid=ARM_ID), ARM_ID),
        (jwt(xms_mirid=ARM_ID.lower()), ARM_ID.lower()),
        (jwt(oid=GUID), "no claim xms_mirid"),
        (jwt(xms_mirid=""), "no claim xms_mirid"),
        (jwt(xms_mirid=5), "no claim xms_mirid"),
        ("opaque", "no claim xms_mirid"),
    ],
    ids=["the VM", "user-assigned", "user-assigned in lower case", "absent", "empty", "a number", "opaque"],
)
def test_require_system_assigned(token: str, told: str | None) -> None:
    """With `require_system_assigned` a user-assigned identity is refused, and a token that does not say."""
    verdict = judged(token_response(access_token=token), identity(require_system_assigned=True))
    assert verdict.error is (None if told is None else IdentityMismatchError)
    assert told is None or told in verdict.reason


@pytest.mark.parametrize(
    ("selector", "members", "client_id", "is_confirmed"),
    [
        ({}, {"client_id": GUID}, GUID, None),
        ({}, {"access_token": jwt(appid=GUID)}, GUID, None),
        ({}, {}, None, None),
        (CLIENT, {"client_id": GUID.upper()}, GUID.upper(), True),
        (CLIENT, {}, None, False),
        (OBJECT, {"client_id": OTHER_GUID}, OTHER_GUID, False),
        (OBJECT, {"access_token": jwt(oid=GUID)}, None, True),
        (ARM, {"access_token": jwt(xms_mirid=ARM_ID)}, None, True),
        ({"require_system_assigned": True}, {"access_token": jwt(xms_mirid=VM_ID)}, None, True),
    ],
)
def test_confirmed(
    selector: dict[str, Any], members: dict[str, Any], client_id: str | None, is_confirmed: bool | None
) -> None:
    """A verdict holds the client ID that the response names, and whether it names the identity that was selected."""
    verdict = judged(token_response(**members), identity(**selector))
    assert (verdict.client_id, verdict.is_confirmed) == (client_id, is_confirmed)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("2", 2.0),
        (" 120 ", 120.0),
        ("120\x1d", 120.0),
        ("86400", 86400.0),
        (DATE, 0.0),
        ("Mon, 21 Sep 2026 14:14:20 GMT", 60.0),
        ("Mon, 21 Sep 2026 14:12:20 GMT", 0.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("²", None),
        ("2, 2", None),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    """Retry-After is seconds or a date; anything else is as good as none."""
    assert judged(error_response(429, headers={**IMDS, "retry-after": value})).retry_after == expected


def test_error_facts() -> None:
    """Status, code, description and request ID reach the verdict."""
    verdict = judged(error_response(400, headers={**IMDS, "x-ms-request-id": GUID}))
    assert (verdict.status, verdict.code, verdict.description, verdict.request_id) == (
        400,
        "invalid_request",
        "Worte, die sich ändern",
        GUID,
    )


PAGE = "<html><head><title>Oops</title><style>p {color: red}</style></head><script>alert(1)</script><p>No&nbsp;entry"
REASONS: dict[str, tuple[Response, str]] = {
    "IMDS's error": (error_response(400), "400 invalid_request: Worte, die sich ändern"),
    "an error in a 200": (error_response(200), "200 invalid_request: Worte, die sich ändern"),
    "a page with 503": (response(503, PAGE), "503, it said: Oops No&nbsp;entry"),
    "a page by an unknown server": (response(403, PAGE, {}), "403, it said: Oops No&nbsp;entry"),
    "text": (response(400, "  Bad\r\nRequest "), "400, it said: Bad Request"),
    "JSON of another shape": (response(404, '{"error":"Not Found"}'), '404, it said: {"error":"Not Found"}'),
    "nothing": (response(404, b""), "404"),
    "no JSON with 200": (response(200, "no JSON"), "200 without a usable token, it said: no JSON"),
    "nothing with 204": (response(204, b""), "204 without a usable token"),
    "a bad token": (token_response(access_token="dummy-secret-a b"), "200 without a usable token"),
    "a broken body": (response(200, None, fault=BROKEN_BODY), "200, the body broke off"),
    "a large body": (response(503, None, fault=LARGE_BODY), "503, more than 1048576 bytes"),
    "Entra's code on a page": (
        response(502, f"<html><h1>{'Sign in ' * 50}</h1><p>AADSTS50173: expired <br>Trace", {}),
        "502, it said: AADSTS50173: expired Trace",
    ),
    "Entra's code in a description": (
        response(400, {"error": "e", "error_description": f"{'words ' * 99}AADSTS7000: why"}),
        "400 e: AADSTS7000: why",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reason(name: str) -> None:
    """A reason shows the response's own words, without tags and from an error code of Entra on."""
    came_back, reason = REASONS[name]
    assert judged(came_back).reason == reason


def test_reason_ends_after_a_word() -> None:
    """At most 200 characters are shown, on one line, of whole words."""
    verdict = judged(response(403, "<p>\r\n\x1b[31m" + "word " * 500, {}))
    assert verdict.excerpt is not None
    assert 195 < len(verdict.excerpt) <= 200
    assert verdict.excerpt.isprintable()
    assert verdict.excerpt.startswith("[31mword word")
    assert verdict.excerpt.endswith(" word")
    assert len(excerpt("ü" * 500)) == 200


@pytest.mark.parametrize(
    "text", ["<script " * 100_000, "<" * 1_000_000, "</script " * 100_000, "<a" * 500_000, "<id_token " * 100_000]
)
def test_tags_of_a_hostile_page(text: str) -> None:
    """Tags that are never closed are read in one go; a quadratic search would outlast the suite."""
    assert len(excerpt(text)) <= 200


@pytest.mark.parametrize(
    "text",
    [
        '{"access_token":"short"}',
        '{ "refresh_token" : "short"',
        f"Bearer {jwt(oid=GUID, aud=VAULT, iss='https://sts.windows.net/', appid=GUID)}",
        "Zm9vYmFyYmF6" * 10 + "short",
        '{"id_token":"short\nshort',
    ],
)
def test_secrets(text: str) -> None:
    """An excerpt shows nothing that looks like a token, not even a part of one."""
    shown = excerpt(text)
    assert "[removed]" in shown
    assert "short" not in shown
    assert "eyJ" not in shown


LEAKED = '{"access_token": "short", "expires_in": "3599"}'
REMOVED = '{"access_token": "[removed]", "expires_in": "3599"}'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (str(json.loads(LEAKED)), "{'access_token': '[removed]', 'expires_in': '3599'}"),
        ("{'access_token': b'short'}", "{'access_token': b'[removed]'}"),
        ("access_token=short&token_type=bearer", "access_token=[removed]&token_type=bearer"),
        ("access_token: short\nexpires_in: 3599", "access_token: [removed] expires_in: 3599"),
        ("Access-Token: short, and more", "Access-Token: [removed], and more"),
        ('{"accessToken":"short"', '{"accessToken":"[removed]"'),
        ('{"refreshToken" : "short", "idToken": "short"}', '{"refreshToken" : "[removed]", "idToken": "[removed]"}'),
        (json.dumps({"body": '{"access_token":"short"}'}), '{"body": "{\\"access_token\\":\\"[removed]"}"}'),
        ("<r><access_token>short</access_token><a>more</a></r>", "more"),
        ("<ns:accessToken type='x'>short", ""),
        ("<id_token> short </id_token> more", "more"),
        ("send Bearer <access_token> instead", "send Bearer instead"),  # no value, but what stands for one
        ("send Bearer <access_token>. AADSTS50000: no", "AADSTS50000: no"),
        (f"/{'a.long/path.' * 5}access_token=short", f"/{'a.long/path.' * 5}access_token=[removed]"),
        (LEAKED.encode("utf-16-le").decode("utf-8", "replace"), REMOVED),
        (LEAKED.encode("utf-32-le").decode("utf-8", "replace"), REMOVED),
        (LEAKED.encode("utf-16").decode("utf-8", "replace"), f"\ufffd\ufffd{REMOVED}"),
        (str(LEAKED.encode("utf-16-be")), f"b'{REMOVED}'"),  # as http.client quotes what it cannot read
        ('{"access_token": null, "token_type": "Bearer"}', '{"access_token": null, "token_type": "Bearer"}'),
        ("not a valid token: try again", "not a valid token: try again"),
        ("invalidtoken=short", "invalidtoken=short"),
    ],
)
def test_short_tokens(text: str, shown: str) -> None:
    """A token that is too short to be known by its form is known by its name, in whatever shape it comes."""
    assert excerpt(text) == shown


@pytest.mark.parametrize("text", [ARM_ID, f"https://westus2.login.microsoft.com/error?code=500011 {GUID}", VAULT])
def test_names_are_shown_whole(text: str) -> None:
    """Host names, paths, GUIDs and ARM IDs are no tokens."""
    assert excerpt(text) == text


def test_reprs() -> None:
    """The reprs that a traceback with locals prints are without body and token."""
    came_back = token_response(access_token="dummy-secret-value")
    verdict = judged(came_back)
    assert verdict.access_token == "dummy-secret-value"
    for shown in (repr(came_back), str(came_back), repr(verdict), str(verdict), f"{[verdict, came_back]}"):
        assert "dummy-secret" not in shown


def test_ids_of_entra() -> None:
    """Trace ID and correlation ID are told beside a description that is cut before them."""
    capture = Path(__file__).parent / "captures" / "vm-400-invalid-resource-aadsts500011-2022-11-10.json"
    body = json.loads(capture.read_text(encoding="utf-8"))["body"]
    verdict = judged(response(400, body))
    assert body["trace_id"] not in (verdict.description or "")
    assert verdict.reason.endswith(f", trace ID {body['trace_id']}, correlation ID {body['correlation_id']}")


@pytest.mark.parametrize("situation", [UNSEEN, SEEN], ids=["unseen", "seen"])
@pytest.mark.parametrize("members", [{}, {"is_fault": True}, {"is_shortage": True}, {"is_blocked": True}], ids=str)
def test_no_response_is_told(situation: Situation, members: dict[str, Any]) -> None:
    """The reason is told as it is, whatever it means."""
    assert judged(NoResponse("reset by peer", **members), situation=situation).reason == "reset by peer"


@pytest.mark.parametrize("has_listener", [False, True])
def test_who_listens(has_listener: bool) -> None:
    """Whether something accepted the connection decides whether a later connect attempt would tell anything."""
    assert judged(NoResponse("silence", is_absent=True, has_listener=has_listener)).has_listener is has_listener


def test_a_token_is_told() -> None:
    """A good response has no error, and comes from IMDS whatever its `Server`."""
    verdict = judged(token_response({}))
    assert (verdict.reason, verdict.is_imds, verdict.error) == ("200 with a token", True, None)


@pytest.mark.parametrize("came_back", [token_response({}, expires_in="0"), token_response({}, resource="https://b")])
def test_a_refused_token_is_from_imds(came_back: Response) -> None:
    """One whose life is unusable, or that is for another resource: only IMDS hands out tokens."""
    assert judged(came_back).is_imds is True


@pytest.mark.parametrize("life", ["0.5", "1"])
def test_the_shortest_life(life: str) -> None:
    """Each life above zero is one."""
    assert judged(token_response(expires_in=life)).life == float(life)


def test_retry_after_with_an_unusable_token() -> None:
    """A date there is compared with our clock as everywhere."""
    later = {"retry-after": "Mon, 21 Sep 2026 14:13:50 GMT"}
    assert judged(token_response(IMDS | later, expires_in="0")).retry_after == 30.0


@pytest.mark.parametrize("claim", ["appid", "azp"])
def test_client_id_of_the_token(claim: str) -> None:
    """Where the response does not name the identity its token may."""
    assert judged(token_response(access_token=jwt(**{claim: GUID}))).client_id == GUID


@pytest.mark.parametrize("status", [404, 405, 500, 501, 505])
def test_a_broken_body_of_imds(status: int) -> None:
    """404 and each 5xx say enough without their body; another status is read once more."""
    expected = Retry.ONCE if status == 405 else Retry.TRANSIENT
    assert judged(response(status, None, fault=BROKEN_BODY)).retry is expected


@pytest.mark.parametrize(("body", "shown"), [(b"", None), (b"caf\xe9 closed", "caf\ufffd closed")])
def test_excerpt_of_a_foreign_body(body: bytes, shown: str | None) -> None:
    """Bytes that are no UTF-8 are replaced; an empty body shows nothing."""
    assert judged(Response(401, {}, body)).excerpt == shown


@pytest.mark.parametrize(
    ("came_back", "told"),
    [
        (token_response(resource="https://b"), "for the resource 'https://b'"),
        (token_response(client_id=OTHER_GUID), f"for the client_id '{OTHER_GUID}'"),
    ],
)
def test_a_mismatch_is_named(came_back: Response, told: str) -> None:
    """The message says what differs, and which other one came."""
    assert told in judged(came_back, identity(client_id=GUID)).reason


@pytest.mark.parametrize(
    ("claims", "is_confirmed"),
    [({}, False), ({"xms_mirid": ARM_ID}, False), ({"xms_mirid": "/subscriptions/x/virtualMachines/vm"}, True)],
    ids=["no claim", "user-assigned", "system-assigned"],
)
def test_system_assigned_is_confirmed(claims: dict[str, str], is_confirmed: bool) -> None:
    """Only by the claim that names the machine itself."""
    wanted = identity(require_system_assigned=True)
    _, confirmed = compare({}, claims, wanted, VAULT)
    assert confirmed is is_confirmed


@pytest.mark.parametrize(("told", "is_named"), [(7, False), ("", False), (GUID, True)])
def test_only_a_name_confirms(told: object, is_named: bool) -> None:
    """A value that is no text, or an empty one, is as good as none."""
    assert compare({"client_id": told}, {}, identity(client_id=GUID), VAULT) == ("", is_named)


def test_life_by_the_servers_clock() -> None:
    """`expires_on` counts from the response's `Date`, though this machine's clock is an hour off."""
    came_back = token_response(IMDS | {"date": DATE}, expires_in=None, expires_on=str(int(NOW) + 600))
    assert judge(came_back, DEFAULT, VAULT, UNSEEN, NOW - 3600).life == 600.0


def test_a_contradiction_by_the_servers_clock() -> None:
    """The token's own `exp` decides, counted from the response's `Date` though this machine's clock is days off."""
    came_back = token_response(
        IMDS | {"date": DATE},
        access_token=jwt(exp=int(NOW) + 600),
        expires_in="600",
        expires_on=str(int(NOW) + 3 * 86400),
    )
    assert judge(came_back, DEFAULT, VAULT, UNSEEN, NOW - 3 * 86400).life == 600.0


def test_a_date_with_a_zone() -> None:
    """HTTP's dates are in GMT; one that names another zone is read as it is."""
    headers = IMDS | {"retry-after": "Mon, 21 Sep 2026 16:13:50 +0200"}
    assert judged(error_response(429, headers=headers)).retry_after == 30.0


@pytest.mark.parametrize(("status", "retry"), [(599, Retry.TRANSIENT), (600, Retry.ONCE)])
def test_the_last_server_error(status: int, retry: Retry) -> None:
    """A status of IMDS beyond those of HTTP is malformed."""
    assert judged(response(status, "odd")).retry is retry


def test_only_a_success_lacks_a_token() -> None:
    """A redirect is not told as a response without a usable token, and not asked for again."""
    redirect = judged(response(300, "elsewhere"))
    assert (redirect.reason, redirect.retry) == ("300, it said: elsewhere", Retry.NEVER)
    assert judged(response(299, "odd")).reason == "299 without a usable token, it said: odd"


def test_a_body_without_words() -> None:
    """It said nothing, so nothing is told of it."""
    assert judged(response(401, "<br>\n<br>")).reason == "401"


@pytest.mark.parametrize(("last", "shown"), [("abcde", 40), ("abcdef", 39)])
def test_words_that_just_fit(last: str, shown: int) -> None:
    """A word that ends at the 200th character is shown, one that ends after it is not."""
    words = [*["abcd"] * 39, last]
    assert len(" ".join(words)) == 240 - shown
    assert excerpt(" ".join([*words, "more"])) == " ".join(words[:shown])
    assert excerpt(" ".join(words)) == " ".join(words[:shown])


def test_only_the_beginning_is_read() -> None:
    """A page that begins with 2,000 blanks shows nothing, so that a huge one costs little."""
    assert excerpt(" " * 1990 + "late") == "late"
    assert excerpt(" " * 2000 + "late") == ""


def test_the_member_of_a_secret_is_shown() -> None:
    """Its name stays, and its value goes, however short."""
    assert excerpt('{"access_token": "dummy", "a": 1}') == '{"access_token": "[removed]", "a": 1}'


def test_our_clock_where_the_servers_is_wrong() -> None:
    """A `Date` from before the token was issued does not count: with `expires_on` alone our clock does."""
    came_back = token_response(
        IMDS | {"date": DATE},
        access_token=jwt(iat=int(NOW) + 10 * 86400, exp=int(NOW) + 11 * 86400),
        expires_in=None,
        expires_on=str(int(NOW) + 11 * 86400),
    )
    assert judge(came_back, DEFAULT, VAULT, UNSEEN, NOW + 10 * 86400 + 60).life == 86400.0 - 60
