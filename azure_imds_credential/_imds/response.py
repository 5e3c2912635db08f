"""What a response means. Pure: bytes in, verdict out; nothing here waits, logs or raises.

The status is judged before the body, and shape before words: IMDS's descriptions are localised and change.
"""

# Without `from __future__ import annotations`: it makes each field of a named tuple a string to be compiled.
import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from .._identity import Identity
from .._jwt import MAX_LIFE, TOKEN, USER_ASSIGNED, claims_of
from ..exceptions import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsThrottledError,
    ImdsUnavailableError,
)
from .retry import Retry

BODY_LIMIT = 1 << 20  # bytes; real responses have about 2,000 (1,669 and 1,906 seen)
IMDS_SERVER = "IMDS/"  # how its header `Server` begins
BROKEN_BODY = "the body broke off"
LARGE_BODY = f"more than {BODY_LIMIT} bytes"
GUID_LENGTH = 36
EXCERPT_LIMIT = 200  # characters of a foreign text that an error may show
CONTRADICTION = 86400.0  # seconds by which two lives may differ before the token's own `exp` is asked
CLOCK_SKEW = 300.0  # seconds by which a right `Date` may lie before the token's own `iat`

# Statuses for which the documentation says "ask again", and which another server may give while IMDS restarts.
# https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling
_RESTART_STATUSES = {408, 410, 429, 500, 502, 503, 504}

# How the guest agent of the Metadata Security Protocol refuses a process: an empty body and no `Server`.
# https://github.com/Azure/GuestProxyAgent proxy_agent/src/proxy/proxy_server.rs, `closed_response`
_AGENT_REFUSALS = {403, 421}

# Strings: `re` keeps what it compiled, and most processes never need these.
_NAME = r"(?i:access|refresh|(?<![a-z])id)(?i:[_-]?token)"
# In JSON, Python, YAML or a form, also where that is quoted itself.
_OPENING = r"\\*[\"']?\s*[:=]\s*(?!null\b|None\b)(?:b?\\*[\"'])?"
_VALUE = r"(?:(?<=\")[^\"]*|(?<=')[^']*|[^\s\"'&,;)}\]<>]+)"
_NAMED = rf"({_NAME}{_OPENING}){_VALUE}"
_SECRETS = rf"{_NAMED}|([A-Za-z0-9_\-.+/=]{{40,}})"
_NULS = r"\0|\\x00"  # between the letters of UTF-16 and UTF-32, which are read as UTF-8
_PIECE = r"[A-Za-z0-9_\-+=]{40}"  # in a host name, a path or an ARM ID a piece ends sooner
# Linear in the length of the text. After a tag that is named like a token, the word that it holds goes too.
_TOKEN_TAG = rf"<(?:\w+:)?{_NAME}\b[^<>]*>(?:[^<\s]+|\s+[^<\s]+(?=\s*<))?"
_TAGS = rf"(?is)<(script|style)\b.*?(?:</\1\s*>|\Z)|{_TOKEN_TAG}|<[^<>]*>"
_ENTRA_CODE = r"AADSTS\d+"


class Response:
    """An HTTP response as it came.

    Args:
        status: The status.
        headers: The headers, names in lower case.
        body: The body; None when it broke off or was larger than `BODY_LIMIT`.
        fault: Why there is no body, or what is wrong with it.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes | None, fault: str = "") -> None:
        self.status, self.headers, self.body, self.fault = status, headers, body, fault

    def __repr__(self) -> str:
        return f"Response(status={self.status})"  # the body may hold a token


class NoResponse:
    """No HTTP response at all.

    Args:
        reason: Why.
        is_absent: Nothing listens there, or nothing ever answers: worth remembering for a while.
        has_listener: Something accepted the connection.
        is_refused: Refused or unreachable, as while a machine boots.
        is_fault: A user's transport failed in a way that is no matter of the network.
        is_shortage: This machine lacks descriptors, ports, buffers or memory: it says nothing of IMDS.
        is_blocked: Something else in this process kept the request from the network.
    """

    def __init__(
        self,
        reason: str,
        *,
        is_absent: bool = False,
        has_listener: bool = False,
        is_refused: bool = False,
        is_fault: bool = False,
        is_shortage: bool = False,
        is_blocked: bool = False,
    ) -> None:
        self.reason, self.is_absent, self.has_listener = reason, is_absent, has_listener
        self.is_refused, self.is_fault = is_refused, is_fault
        self.is_shortage, self.is_blocked = is_shortage, is_blocked


class Situation:
    """What is known beside the response.

    Args:
        seen: The endpoint answered as IMDS before.
        is_booting: The machine started moments ago: what is refused now may listen soon.
        has_proxy_agent: The guest agent of the Metadata Security Protocol is on this machine.
    """

    def __init__(self, *, seen: bool = False, is_booting: bool = False, has_proxy_agent: bool = False) -> None:
        self.seen, self.is_booting, self.has_proxy_agent = seen, is_booting, has_proxy_agent


class Verdict(NamedTuple):
    """What an attempt came to: a token, or an error and whether to ask again."""

    error: type[ImdsError] | None
    reason: str
    retry: Retry = Retry.NEVER
    is_imds: bool = False
    is_absent: bool = False
    has_listener: bool = True
    refused_by_agent: bool = False
    is_fault: bool = False  # a transport, a hook or a policy of the user's failed
    is_shortage: bool = False  # of this machine
    is_blocked: bool = False  # by something else in this process, such as a tool of tests
    is_large: bool = False  # a response of IMDS that is larger than any real one
    status: int | None = None
    code: str | None = None
    description: str | None = None
    excerpt: str | None = None  # the beginning of a response that is not IMDS's
    request_id: str | None = None
    retry_after: float | None = None
    access_token: str = ""
    life: float = 0.0  # seconds from the moment the request was sent
    client_id: str | None = None  # of the identity that the response names
    is_confirmed: bool | None = None  # the response names the identity that was asked for; None without a selector

    def __repr__(self) -> str:
        return f"Verdict({self.reason!r})"


class _Payload:
    """The members of the body that decide."""

    def __init__(self, body: bytes | None) -> None:
        self.members = json_object(body)
        self.token: Any = self.members.get("access_token")
        self.code, self.description = self.members.get("error"), self.members.get("error_description")
        # It has the shape of IMDS's errors.
        self.is_error = isinstance(self.code, str) and isinstance(self.description, str)


def judge(
    response: Response | NoResponse, identity: Identity, resource: str, situation: Situation, now: float
) -> Verdict:
    """Return what a response means.

    Args:
        response: What came back, if anything.
        identity: Which identity was asked for.
        resource: What the token was asked for.
        situation: What is known beside the response.
        now: Our clock, epoch seconds: only used for a response without `expires_in`.
    """
    if isinstance(response, NoResponse):
        return _judge_no_response(response, situation)
    payload = _Payload(response.body)
    is_imds = (
        response.headers.get("server", "").startswith(IMDS_SERVER) or payload.is_error or isinstance(payload.token, str)
    )
    if response.status == 200 and isinstance(payload.token, str) and re.fullmatch(TOKEN, payload.token):
        return _judge_token(response, payload, identity, resource, now)
    known = _known(response, payload, now)._replace(is_imds=is_imds)
    if response.body is None or 300 <= response.status < 400:
        unread = _judge_unread(response, known, situation)
        if unread is not None:
            return unread
    if not is_imds:
        foreign = _judge_foreign(response, known, situation)
        if foreign is not None:
            return foreign
    # Simulators put IMDS's errors into a 200; they mean what IMDS's 400 means.
    status = 400 if response.status == 200 and payload.is_error and payload.token is None else response.status
    return _judge_refusal(status, payload, known)


def _judge_no_response(failure: NoResponse, situation: Situation) -> Verdict:
    if failure.is_fault:
        return Verdict(ImdsServiceError, failure.reason, is_fault=True)
    if failure.is_blocked:  # it is no passing fault, and it may be over with the next test
        error = ImdsServiceError if situation.seen else ImdsUnavailableError
        return Verdict(error, failure.reason, has_listener=False, is_blocked=True)
    if failure.is_shortage or situation.seen:
        return Verdict(ImdsServiceError, failure.reason, Retry.TRANSIENT, is_shortage=failure.is_shortage)
    return Verdict(
        ImdsUnavailableError,
        failure.reason,
        Retry.BOOTING if failure.is_refused and situation.is_booting else Retry.NEVER,
        is_absent=failure.is_absent,
        has_listener=failure.has_listener,
    )


def _judge_token(response: Response, payload: _Payload, identity: Identity, resource: str, now: float) -> Verdict:
    """Judge a 200 with a token: whose it is, and how long it lives."""
    claims = claims_of(payload.token)
    life = _life(payload.members, claims, response.headers, now)
    other, is_confirmed = compare(payload.members, claims, identity, resource)
    if not 0 < life <= MAX_LIFE:
        told = ", ".join(f"{name}={excerpt(payload.members.get(name))}" for name in ("expires_in", "expires_on"))
        return _known(response, payload, now)._replace(
            error=ImdsServiceError,
            reason=f"200 with a token whose life is unusable ({told})",
            retry=Retry.ONCE,
            is_imds=True,
        )
    if other:
        return _known(response, payload, now)._replace(
            error=IdentityMismatchError, reason=f"200 with a token {other}", is_imds=True
        )
    client_id = payload.members.get("client_id") or claims.get("appid") or claims.get("azp")
    return Verdict(
        None,
        "200 with a token",
        is_imds=True,
        access_token=payload.token,
        life=life,
        client_id=excerpt(client_id) if isinstance(client_id, str) else None,
        is_confirmed=is_confirmed,
    )


def _judge_unread(response: Response, known: Verdict, situation: Situation) -> Verdict | None:
    """Judge a redirect, which is never followed, or a body that was not kept."""
    is_restart = response.status in _RESTART_STATUSES or (
        known.is_imds and (response.status == 404 or response.status >= 500)
    )
    if response.body is None and is_restart:
        return None  # the status says enough
    # A connection that broke may hold next time; a redirect or a huge body is no passing fault.
    broke = response.body is None and response.fault != LARGE_BODY
    # What the body would have shown is lost: no reason for a chain to go on.
    ours = known.is_imds or (broke and situation.seen)
    return known._replace(
        error=ImdsServiceError if ours else ImdsUnavailableError,
        retry=Retry.ONCE if ours and broke else Retry.NEVER,
        is_large=response.fault == LARGE_BODY,
    )


def _judge_foreign(response: Response, known: Verdict, situation: Situation) -> Verdict | None:
    """Judge a response of a server that does not answer as IMDS; None: it may stand in for a seen IMDS."""
    if (
        response.status in _AGENT_REFUSALS
        and not response.body
        and "server" not in response.headers
        and (situation.seen or situation.has_proxy_agent)
    ):
        return known._replace(error=ImdsRequestError, refused_by_agent=True)
    known = known._replace(excerpt=excerpt((response.body or b"").decode("utf-8", "replace")) or None)
    if response.status not in _RESTART_STATUSES:
        return known._replace(error=ImdsUnavailableError)
    if not situation.seen:
        return known._replace(error=ImdsUnavailableError, retry=Retry.UNKNOWN_SERVER)
    return None


def _judge_refusal(status: int, payload: _Payload, known: Verdict) -> Verdict:
    """Judge an error of IMDS, or of a server that stands in for it."""
    from_entra = any(payload.members.get(name) for name in ("error_codes", "trace_id"))
    if status == 400 and payload.code == "invalid_request" and not from_entra:
        return known._replace(error=IdentityUnavailableError)
    if status == 429:
        return known._replace(error=ImdsThrottledError, retry=Retry.THROTTLED)
    if status == 410:
        return known._replace(error=ImdsServiceError, retry=Retry.GONE)
    if status in (404, 408) or 500 <= status < 600:
        return known._replace(error=ImdsServiceError, retry=Retry.TRANSIENT)
    if 400 <= status < 500:
        return known._replace(error=ImdsRequestError)
    return known._replace(error=ImdsServiceError, retry=Retry.ONCE)


def _known(response: Response, payload: _Payload, now: float) -> Verdict:
    """Keep of a response that is no good token what an error may show."""
    code, description = (
        excerpt(value) if isinstance(value, str) else None for value in (payload.code, payload.description)
    )
    if code and description:
        words = f" {_cut(f'{code}: {description}')}"
    elif payload.token is not None or not response.body:
        words = response.fault and f", {response.fault}"
    else:
        shown = excerpt(response.body.decode("utf-8", "replace"))
        words = f", it said: {shown}" if shown else ""
    if 200 <= response.status < 300 and response.body is not None and not (payload.is_error and payload.token is None):
        words = f" without a usable token{words}"
    # Entra's own, at the end of its description, which is cut; its support asks for them.
    for name, member in (("trace ID", "trace_id"), ("correlation ID", "correlation_id")):
        if isinstance(payload.members.get(member), str):
            words += f", {name} {excerpt(payload.members[member])[:GUID_LENGTH]}"
    return Verdict(
        None,
        f"{response.status}{words}",
        status=response.status,
        code=code,
        description=description,
        request_id=excerpt(response.headers["x-ms-request-id"]) if "x-ms-request-id" in response.headers else None,
        retry_after=_seconds_to_wait(response.headers.get("retry-after"), now),
    )


def compare(
    members: Mapping[str, Any], claims: Mapping[str, Any], identity: Identity, resource: str
) -> tuple[str, bool | None]:
    """Compare a response with what was asked for.

    As in Azure, the case of GUIDs and ARM IDs and one trailing slash do not count. What the response leaves out is
    unknown, never a mismatch; only `require_system_assigned` refuses what it cannot see.

    Returns:
        For what else the response is, or ""; and whether it names the identity that was asked for (None without a
        selector).
    """
    other = _other_value("resource", resource, [members.get("resource")])
    if other:
        return other, None
    if identity.must_be_system_assigned:
        arm_id = claims.get("xms_mirid")
        if not isinstance(arm_id, str) or not arm_id:
            return "that does not say whether it is for the system-assigned identity (no claim xms_mirid)", False
        is_user_assigned = USER_ASSIGNED in arm_id.casefold()
        return (f"for the user-assigned identity {excerpt(arm_id)!r}", False) if is_user_assigned else ("", True)
    if identity.value is None:
        return "", None
    told = [members.get("client_id")] if identity.kind == "client_id" else []
    names = {"client_id": ("appid", "azp"), "object_id": ("oid",), "resource_id": ("xms_mirid",)}
    told += [claims.get(name) for name in names[identity.kind]]
    is_named = any(isinstance(each, str) and each for each in told)
    return _other_value(identity.kind, identity.value, told), is_named


def _other_value(name: str, asked: str, told: list[object]) -> str:
    answered = next((each for each in told if isinstance(each, str) and each), asked)
    if answered.casefold().removesuffix("/") == asked.casefold().removesuffix("/"):
        return ""
    return f"for the {name} {excerpt(answered)!r}"


def _life(members: Mapping[str, Any], claims: Mapping[str, Any], headers: Mapping[str, str], now: float) -> float:
    """Return the seconds that the token has left, 0 when no member says so.

    It is the server's own difference, so that this machine's clock does not matter. A value that makes no sense does
    not count.
    """
    date = _epoch(headers.get("date"))
    if date is not None and date < _number(claims.get("iat")) - CLOCK_SKEW:
        date = None  # of a clock that is wrong: the token was issued later
    expires_in, expires_on = _number(members.get("expires_in")), _number(members.get("expires_on"))
    lives = [expires_in] if _is_life(expires_in) else []
    if date is not None or not lives:
        remaining = expires_on - (now if date is None else date)
        lives += [remaining] if _is_life(remaining) else []
    if len(lives) == 2 and abs(lives[0] - lives[1]) > CONTRADICTION:
        own = _number(claims.get("exp")) - (now if date is None else date)
        if math.isfinite(own):
            return min(lives, key=lambda life: abs(life - own))
    return min(lives, default=0.0)


def _is_life(seconds: float) -> bool:
    return 0 < seconds <= MAX_LIFE  # not for a NaN


def _number(value: object) -> float:
    """Read a number, which comes as a string, an int or a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _seconds_to_wait(retry_after: str | None, now: float) -> float | None:
    """Read `Retry-After`: seconds or a date (RFC 9110, section 10.2.3). Nonsense is as good as none."""
    if retry_after is None:
        return None
    if re.fullmatch("[0-9]{1,18}", retry_after.strip()):
        return float(retry_after.strip())  # float() strips less than this
    date = _epoch(retry_after)
    return None if date is None else max(0.0, date - now)


def _epoch(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        parsed = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    # HTTP's dates are in GMT (RFC 9110, section 5.6.7); without a zone Python would take this machine's.
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()


def json_object(body: bytes | None) -> dict[str, Any]:
    """Return the members of a body, {} when it is no JSON object.

    Its Content-Type does not count: endpoints that imitate IMDS send JSON as text/plain.
    """
    try:
        payload = json.loads(body.removeprefix(BOM_UTF8).decode()) if body else None
    except (ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def excerpt(text: object) -> str:
    """Return what may be shown of a foreign text.

    It is printable, on one line, without tags or anything that looks like a token, and cut after a whole word. Where
    the text holds an error code of Entra, it begins there.
    """
    raw = str(text)
    if len(raw) <= GUID_LENGTH and raw.isascii() and raw.replace("-", "").isalnum():
        return raw  # each response has a client ID; to compile the patterns would take longer than to judge it
    raw = re.sub(_TAGS, " ", re.sub(_NULS, "", raw))
    code = re.search(_ENTRA_CODE, raw)
    raw = raw[code.start() :] if code else raw
    shown = "".join(c if c.isprintable() else " " for c in raw[: 10 * EXCERPT_LIMIT])
    return _cut(" ".join(without_secrets(shown).split()))


def _cut(text: str) -> str:
    """Return the whole words at the beginning that fit into `EXCERPT_LIMIT`."""
    if len(text) <= EXCERPT_LIMIT:
        return text
    return text[: EXCERPT_LIMIT + 1].rpartition(" ")[0] or text[:EXCERPT_LIMIT]


def without_secrets(text: str) -> str:
    """Return the text without anything that looks like a token."""

    def replacement(found: re.Match[str]) -> str:
        opening, run = found.groups()
        if run is not None:
            return "[removed]" if re.search(_PIECE, run) else re.sub(_NAMED, r"\1[removed]", run)
        return f"{opening}[removed]"

    return re.sub(_SECRETS, replacement, re.sub(_NULS, "", text))
