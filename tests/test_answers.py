"""What comes back and what it means: the table of design section 2, without a socket."""

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
from azure_imds_credential._answer import BODY_LIMIT, Reply, Silence, Verdict, excerpt, judge
from azure_imds_credential._freshness import LONGEST_LIFE
from azure_imds_credential._identity import Identity, identity_from
from azure_imds_credential._retry import Retry

VAULT = "https://vault.azure.net"
NOW = 1_790_000_000.0
DATE = "Mon, 21 Sep 2026 14:13:20 GMT"  # the same instant
GUID = "6a7b8c9d-0000-4000-8000-00000000abcd"
OTHER_GUID = "6a7b8c9d-0000-4000-8000-00000000dcba"
ARM_ID = f"/subscriptions/{GUID}/resourcegroups/Group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app"
IMDS = {"server": "IMDS/150.870.65.1854"}
SYSTEM = identity_from(client_id=None, object_id=None, resource_id=None)
ENTRA: dict[str, Any] = {"error_codes": [500011], "trace_id": GUID}


def jwt(**claims: Any) -> str:
    """A dummy token with these claims and no valid signature."""
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join((*encoded, "c2lnbmF0dXJl"))


def answer(status: int, payload: Any, headers: Mapping[str, str] = IMDS, fault: str = "") -> Reply:
    """An answer whose body is JSON unless it is given as text, bytes or None."""
    body = payload.encode() if isinstance(payload, str) else payload
    return Reply(status, headers, body if isinstance(body, bytes | None) else json.dumps(body).encode(), fault)


def token_answer(headers: Mapping[str, str] = IMDS, **members: Any) -> Reply:
    """A good answer with members replaced, added, or (None) left out."""
    document = {"access_token": "good", "expires_in": "3600", "resource": VAULT, "token_type": "Bearer", **members}
    return answer(200, {name: value for name, value in document.items() if value is not None}, headers)


def error_answer(status: int, code: str = "invalid_request", headers: Mapping[str, str] = IMDS, **more: Any) -> Reply:
    return answer(status, {"error": code, "error_description": "Worte, die sich ändern", **more}, headers)


def judged(
    reply: Reply | Silence, identity: Identity = SYSTEM, resource: str = VAULT, *, seen: bool = False
) -> Verdict:
    return judge(reply, identity, resource, seen=seen, now=NOW)


class Row(NamedTuple):
    """One row of the table: what comes back, and what it means to an endpoint never seen and to one that was."""

    reply: Reply | Silence
    unseen: tuple[type[ImdsError] | None, Retry]
    seen: tuple[type[ImdsError] | None, Retry] | None = None  # None: the same


A_TOKEN = (None, Retry.NEVER)
MALFORMED = (ImdsServiceError, Retry.ONCE)
ILL = (ImdsServiceError, Retry.TRANSIENT)
GONE = (ImdsServiceError, Retry.GONE)
THROTTLED = (ImdsThrottledError, Retry.THROTTLED)
REFUSED = (ImdsRequestError, Retry.NEVER)
NO_IDENTITY = (IdentityUnavailableError, Retry.NEVER)
NOT_HERE = (ImdsUnavailableError, Retry.NEVER)
PERHAPS_RESTARTING = (ImdsUnavailableError, Retry.STRANGER)
NOT_FOLLOWED = (ImdsServiceError, Retry.NEVER)
BROKE_OFF = "the answer broke off"
TOO_LONG = f"more than {BODY_LIMIT} bytes"

ROWS = {
    # 200 with a token
    "a token": Row(token_answer(), A_TOKEN),
    "a token, numbers as int": Row(token_answer(expires_in=3600), A_TOKEN),
    "a token, numbers as float": Row(token_answer(expires_in=3599.9), A_TOKEN),
    "a token without the server header (Container Instances)": Row(token_answer({}), A_TOKEN),
    "a token as text/plain": Row(token_answer({"content-type": "text/plain"}), A_TOKEN),
    "a token after a byte order mark": Row(answer(200, b"\xef\xbb\xbf" + (token_answer().body or b"")), A_TOKEN),
    "a token with expires_on only": Row(token_answer(expires_in=None, expires_on=str(int(NOW) + 60)), A_TOKEN),
    "the longest life": Row(token_answer(expires_in=366 * 86400), A_TOKEN),
    # 200 from IMDS, anything else
    "200 and nothing": Row(answer(200, b""), MALFORMED),
    "200 and no JSON": Row(answer(200, "no JSON"), MALFORMED),
    "200 and half a JSON": Row(answer(200, '{"access_token":"good"'), MALFORMED),
    "200 and a list": Row(answer(200, [{"access_token": "good", "expires_in": 3600}]), MALFORMED),
    "200 and null": Row(answer(200, "null"), MALFORMED),
    "200 and deep JSON": Row(answer(200, "[" * 100_000), MALFORMED),
    "200 and an error": Row(error_answer(200), MALFORMED),
    "200 and UTF-16": Row(answer(200, '{"access_token":"good","expires_in":9}'.encode("utf-16")), MALFORMED),
    "204": Row(answer(204, b""), MALFORMED),
    "token empty": Row(token_answer(access_token=""), MALFORMED),
    "token a number": Row(token_answer(access_token=5), MALFORMED),
    "token a list": Row(token_answer(access_token=["good"]), MALFORMED),
    "token null": Row(answer(200, {"access_token": None, "expires_in": 3600}), MALFORMED),
    "token with CR and LF": Row(token_answer(access_token="good\r\nX-Evil: 1"), MALFORMED),
    "token with LF at its end": Row(token_answer(access_token="good\n"), MALFORMED),
    "token with a space": Row(token_answer(access_token="go od"), MALFORMED),
    "token with a control character": Row(token_answer(access_token="go\x00od"), MALFORMED),
    "token beyond ASCII": Row(token_answer(access_token="göd"), MALFORMED),
    "no expiry": Row(token_answer(expires_in=None), MALFORMED),
    "expiry zero": Row(token_answer(expires_in="0"), MALFORMED),
    "expiry negative": Row(token_answer(expires_in=-1), MALFORMED),
    "expiry in the past": Row(token_answer(expires_in=None, expires_on=1), MALFORMED),
    "expiry above 366 days": Row(token_answer(expires_in=366 * 86400 + 1), MALFORMED),
    "expiry in milliseconds": Row(token_answer(expires_in=None, expires_on=int(NOW) * 1000), MALFORMED),
    "expiry not a number": Row(token_answer(expires_in=float("nan")), MALFORMED),
    "expiry infinite": Row(token_answer(expires_in=float("inf")), MALFORMED),
    "expiry beyond float": Row(token_answer(expires_in=10**400), MALFORMED),
    "expiry text": Row(token_answer(expires_in="soon"), MALFORMED),
    "expiry a boolean": Row(token_answer(expires_in=True), MALFORMED),
    "expiry an object": Row(token_answer(expires_in={"seconds": 3600}), MALFORMED),
    # For somebody or something else
    "another resource": Row(token_answer(resource="https://graph.microsoft.com"), (IdentityMismatchError, Retry.NEVER)),
    # 4xx from IMDS
    "no such identity": Row(error_answer(400), NO_IDENTITY),
    "no such identity, server unnamed": Row(error_answer(400, headers={}), NO_IDENTITY),
    "Entra's invalid_request": Row(error_answer(400, **ENTRA), REFUSED),
    "Entra's invalid_request without its codes": Row(error_answer(400, trace_id=GUID), REFUSED),
    "no such resource": Row(error_answer(400, "invalid_resource", **ENTRA), REFUSED),
    "another code": Row(error_answer(400, "bad_request"), REFUSED),
    "400 and no JSON": Row(answer(400, "Bad Request"), REFUSED),
    "401": Row(error_answer(401, "unauthorized_client"), REFUSED),
    "403": Row(answer(403, b""), REFUSED),
    "405": Row(error_answer(405, "method_not_allowed"), REFUSED),
    "418": Row(answer(418, b""), REFUSED),
    "401 that says invalid_request": Row(error_answer(401), REFUSED),
    # Retried statuses from IMDS, whatever the body
    "404": Row(answer(404, {"error": "Not Found"}), ILL),
    "404 in identity's shape, server unnamed": Row(error_answer(404, headers={}), ILL),
    "408": Row(answer(408, b""), ILL),
    "410": Row(answer(410, b""), GONE),
    "410 with words": Row(error_answer(410), GONE),
    "429": Row(error_answer(429), THROTTLED),
    "429 with nothing": Row(answer(429, b""), THROTTLED),
    "500": Row(answer(500, "oops"), ILL),
    "500 with a token": Row(answer(500, {"access_token": "good", "expires_in": 3600}), ILL),
    "501": Row(answer(501, b""), ILL),
    "502": Row(answer(502, b""), ILL),
    "503": Row(answer(503, b""), ILL),
    "504": Row(answer(504, b""), ILL),
    "503 whose body broke": Row(answer(503, None, fault=BROKE_OFF), ILL),
    "429 whose body is too long": Row(answer(429, None, fault=TOO_LONG), THROTTLED),
    # The same from a server that does not say who it is
    **{
        f"{status} from a stranger": Row(answer(status, "<html>", {"server": "nginx"}), PERHAPS_RESTARTING, seen)
        for status, seen in {408: ILL, 410: GONE, 429: THROTTLED, 500: ILL, 502: ILL, 503: ILL, 504: ILL}.items()
    },
    "500 by WireServer": Row(answer(500, b"", {"server": "Microsoft-IIS/10.0"}), PERHAPS_RESTARTING, ILL),
    # Anything else from a stranger
    "a page": Row(answer(200, "<html>Sign in</html>", {"content-type": "text/html"}), NOT_HERE),
    "JSON of another service": Row(answer(200, {"status": "ok"}, {}), NOT_HERE),
    "Docker Desktop": Row(answer(403, "connecting to 169.254.169.254:80: unreachable network", {}), NOT_HERE),
    "the same in Norwegian": Row(answer(403, "et nettverk som ikke kan nås", {}), NOT_HERE),
    "EC2": Row(answer(404, "<?xml version='1.0'?><html>Not Found</html>", {"server": "EC2ws"}), NOT_HERE),
    "EC2 that wants a session": Row(answer(401, b"", {"server": "EC2ws"}), NOT_HERE),
    "Google Compute Engine": Row(
        answer(404, "<html>", {"server": "Metadata Server for VM", "metadata-flavor": "Google"}), NOT_HERE
    ),
    "OpenStack": Row(answer(404, "<html><h1>404 Not Found</h1></html>", {}), NOT_HERE),
    "Oracle Cloud": Row(answer(404, {"code": 404, "message": "HTTP 404 Not Found"}, {}), NOT_HERE),
    "Azure ML": Row(answer(404, "InternalError - :{ Info: Request failure status code: 404 }", {}), NOT_HERE),
    "Pod Identity": Row(answer(404, "getting assigned identities failed after 16 attempts", {}), NOT_HERE),
    "Service Fabric's shape": Row(answer(400, {"error": {"code": "x", "message": "y"}}, {}), NOT_HERE),
    "501 by a stranger": Row(answer(501, b"", {}), NOT_HERE),
    # Redirects, over-long and broken answers
    "redirect from IMDS": Row(answer(307, b"", {**IMDS, "location": "http://evil.example/"}), NOT_FOLLOWED),
    "redirect with a token": Row(answer(302, {"access_token": "good", "expires_in": 3600}), NOT_FOLLOWED),
    "redirect by a portal": Row(answer(302, b"", {"location": "http://portal.example/"}), NOT_HERE),
    "304": Row(answer(304, b""), NOT_FOLLOWED),
    "too long, from IMDS": Row(answer(200, None, fault=TOO_LONG), NOT_FOLLOWED),
    "too long, by a stranger": Row(answer(200, None, {}, TOO_LONG), NOT_HERE),
    "broke off, from IMDS": Row(answer(200, None, fault=BROKE_OFF), MALFORMED),
    "broke off, by a stranger": Row(answer(200, None, {}, BROKE_OFF), NOT_HERE, MALFORMED),
    # No answer
    "refused": Row(Silence("connecting failed", absent=True), NOT_HERE, ILL),
    "broke before an answer": Row(Silence("the connection broke", absent=False), NOT_HERE, ILL),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_answer_has_one_meaning(name: str) -> None:
    """The error class and the schedule of retries follow from the answer and from whether IMDS was seen."""
    row = ROWS[name]
    for seen, expected in ((False, row.unseen), (True, row.seen or row.unseen)):
        verdict = judged(row.reply, seen=seen)
        assert (verdict.error, verdict.retry) == expected, f"seen={seen}: {verdict}"


@pytest.mark.parametrize("name", ROWS)
def test_a_verdict_without_error_holds_the_token_and_its_life(name: str) -> None:
    """There is a token exactly when there is no error, and it can be used."""
    verdict = judged(ROWS[name].reply)
    if verdict.error is None:
        assert verdict.access_token == "good"
        assert 0 < verdict.life <= LONGEST_LIFE
    else:
        assert not verdict.access_token
        assert not verdict.life


@pytest.mark.parametrize("name", ROWS)
def test_only_silence_is_absence(name: str) -> None:
    """Whatever answers is there: only a place where nobody speaks is remembered as absent, and no seen one is."""
    reply = ROWS[name].reply
    assert judged(reply).absent == (isinstance(reply, Silence) and reply.absent)
    assert not judged(reply, seen=True).absent


@pytest.mark.parametrize(
    ("expected", "members"),
    [
        (3600, {"expires_in": "3600"}),
        (3600, {"expires_in": "3600", "expires_on": ""}),
        (3599.5, {"expires_in": 3599.5}),
        (3590, {"expires_in": "3600", "expires_on": str(int(NOW) + 3590)}),  # the token's end is nearer than it says
        (3600, {"expires_in": "3600", "expires_on": str(int(NOW) + 9999)}),
        (120, {"expires_in": None, "expires_on": int(NOW) + 120}),
        (120, {"expires_in": "", "expires_on": str(int(NOW) + 120)}),
    ],
)
def test_the_life_of_a_token_is_the_shorter_of_what_the_server_says(expected: float, members: dict[str, Any]) -> None:
    """Life is min(expires_in, expires_on - Date), and expires_on by our clock where expires_in is missing."""
    assert judged(token_answer({**IMDS, "date": DATE}, **members)).life == expected


@pytest.mark.parametrize("date", [None, "yesterday", "Mon, 99 Sep 2026 14:13:20 GMT", "Mon, 21 Sep 20261111 14:13:20"])
def test_expires_in_stands_alone_when_the_server_shows_no_date(date: str | None) -> None:
    """The guest's clock does not matter while `expires_in` is there."""
    headers = IMDS if date is None else {**IMDS, "date": date}
    assert judged(token_answer(headers, expires_in="3600", expires_on="1")).life == 3600


@pytest.mark.parametrize("date", [DATE, DATE.removesuffix(" GMT"), DATE.replace("GMT", "-0000")])
def test_a_date_is_read_as_gmt(monkeypatch: pytest.MonkeyPatch, date: str) -> None:
    """The zone of this machine has no say in an HTTP date, named or not."""
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        reply = token_answer({**IMDS, "date": date}, expires_in="3600", expires_on=str(int(NOW) + 60))
        assert judged(reply).life == 60
    finally:
        monkeypatch.undo()
        time.tzset()


class Asked(NamedTuple):
    """Who was asked for, what came, and whether it fits."""

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
    "system-assigned, whoever it is": Asked({}, {"client_id": OTHER_GUID, "access_token": jwt(oid=GUID)}, True),
    "the resource with a slash": Asked({}, {"resource": VAULT + "/"}, True),
    "the resource without its slash": Asked({}, {"resource": VAULT}, True, VAULT + "/"),
    "two slashes are not one": Asked({}, {"resource": VAULT + "//"}, False),
    "a resource that is a GUID in capitals": Asked({}, {"resource": GUID.upper()}, True, GUID),
    "no resource": Asked({}, {"resource": None}, True),
    "resource of a wrong type": Asked({}, {"resource": 5}, True),
    "a resource that begins like ours": Asked({}, {"resource": VAULT + ".evil.example"}, False),
}


@pytest.mark.parametrize("name", MATCHES)
def test_a_token_for_somebody_else_is_refused(name: str) -> None:
    """What the answer names must fit what was asked; what it leaves out is unknown, never a mismatch."""
    asked = MATCHES[name]
    identity = identity_from(**{"client_id": None, "object_id": None, "resource_id": None, **asked.identity})
    verdict = judged(token_answer(**asked.members), identity, asked.resource)
    assert verdict.error == (None if asked.fits else IdentityMismatchError)
    assert bool(verdict.access_token) == asked.fits


def test_a_mismatch_names_whom_the_token_is_for() -> None:
    """ARM IDs and GUIDs are no secrets: the message shows them whole."""
    rows: list[tuple[dict[str, str], dict[str, Any], str]] = [
        (CLIENT, {"client_id": OTHER_GUID}, OTHER_GUID),
        (ARM, {"access_token": jwt(xms_mirid=ARM_ID + "2")}, ARM_ID + "2"),
        ({}, {"resource": "https://graph.microsoft.com"}, "https://graph.microsoft.com"),
    ]
    for identity, members, shown in rows:
        asked = identity_from(**{"client_id": None, "object_id": None, "resource_id": None, **identity})
        assert shown in judged(token_answer(**members), asked).came_back


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
def test_retry_after_is_seconds_or_a_date(value: str, expected: float | None) -> None:
    """Nonsense in Retry-After is as good as none."""
    assert judged(error_answer(429, headers={**IMDS, "retry-after": value})).retry_after == expected


def test_an_error_keeps_what_identifies_the_answer() -> None:
    """Status, code, description and request id reach the verdict."""
    verdict = judged(error_answer(400, headers={**IMDS, "x-ms-request-id": GUID}))
    assert (verdict.status, verdict.code, verdict.description, verdict.request_id) == (
        400,
        "invalid_request",
        "Worte, die sich ändern",
        GUID,
    )


def test_a_stranger_is_quoted_briefly() -> None:
    """At most 200 characters of what is not IMDS are shown, on one line."""
    verdict = judged(answer(403, "<p>\r\n\x1b[31m" + "word " * 500, {}))
    assert verdict.excerpt is not None
    assert len(verdict.excerpt) <= 200
    assert verdict.excerpt.isprintable()
    assert verdict.excerpt.startswith("<p> [31mword word")


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
def test_what_looks_like_a_token_is_never_quoted(text: str) -> None:
    """An excerpt shows no token, not even one that a proxy echoes or that comes half."""
    shown = excerpt(text)
    assert "[removed]" in shown
    assert "short" not in shown
    assert "eyJ" not in shown


@pytest.mark.parametrize("text", [ARM_ID, f"https://westus2.login.microsoft.com/error?code=500011 {GUID}", VAULT])
def test_names_are_quoted_whole(text: str) -> None:
    """Host names, paths, GUIDs and ARM IDs are no tokens."""
    assert excerpt(text) == text


def test_nothing_that_holds_a_token_shows_it() -> None:
    """The reprs that a traceback with locals would print are without body and token."""
    reply = token_answer(access_token="dummy-secret-value")
    verdict = judged(reply)
    assert verdict.access_token == "dummy-secret-value"
    for shown in (repr(reply), str(reply), repr(verdict), str(verdict), f"{[verdict, reply]}"):
        assert "dummy-secret" not in shown


def test_entras_ids_for_its_support_outlive_the_cut() -> None:
    """They stand at the end of a description that is longer than an error may show; so they are told beside it."""
    capture = Path(__file__).parent / "captures" / "vm-400-invalid-resource-aadsts500011-2022-11-10.json"
    body = json.loads(capture.read_text(encoding="utf-8"))["body"]
    verdict = judged(answer(400, body))
    assert body["trace_id"] not in (verdict.description or "")
    assert verdict.came_back.endswith(f", trace ID {body['trace_id']}, correlation ID {body['correlation_id']}")
