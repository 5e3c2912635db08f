"""What an answer means. Pure: bytes in, verdict out; nothing here waits, logs or raises.

The status is judged before the body, shape before words: IMDS's descriptions are localised and change.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from . import exceptions as e
from ._claims import claims_of
from ._identity import Identity
from ._retry import Retry

BODY_LIMIT = 1 << 20  # bytes; real answers have about 2,000 (imds: 1,669 and 1,906 seen)
EXCERPT_LIMIT = 200  # characters of a foreign answer that an error may show
LONGEST_LIFE = 366 * 86400.0  # seconds; managed identity tokens live 24 h today, so this only excludes nonsense

# Statuses for which the documentation says "ask again", and which another server may give while IMDS restarts.
# https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling
_RESTART_STATUSES = {408, 410, 429, 500, 502, 503, 504}

_TOKEN = re.compile(r"[!-~]+")  # what fits into an Authorization header: no spaces, no control characters
_SECRETS = re.compile(r'("(?:access|refresh|id)_token"\s*:\s*")[^"]*|[A-Za-z0-9_\-.+/=]{40,}')


class Reply(NamedTuple):
    """An HTTP answer as it came. `body` is None when it broke off or was larger than `BODY_LIMIT`."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes | None
    fault: str = ""  # why there is no body, or what is wrong with it

    def __repr__(self) -> str:
        return f"Reply(status={self.status})"  # the body may hold a token


class Silence(NamedTuple):
    """No HTTP answer at all."""

    reason: str
    absent: bool  # nothing listens there, or nothing ever speaks: worth remembering for a while


class Verdict(NamedTuple):
    """What an attempt came to: a token, or an error and whether to ask again."""

    error: type[e.ImdsError] | None
    came_back: str
    retry: Retry = Retry.NEVER
    is_imds: bool = False
    absent: bool = False
    status: int | None = None
    code: str | None = None
    description: str | None = None
    excerpt: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    access_token: str = ""
    life: float = 0.0  # seconds from the moment the request was sent

    def __repr__(self) -> str:
        return f"Verdict({self.came_back!r})"


def judge(reply: Reply | Silence, identity: Identity, resource: str, *, seen: bool, now: float) -> Verdict:
    """Say what came back.

    Args:
        reply: What came back, if anything.
        identity: Who was asked for.
        resource: What was asked for.
        seen: Whether this endpoint once answered as IMDS.
        now: Our clock, epoch seconds: only used for an answer without `expires_in`.
    """
    if isinstance(reply, Silence):
        if seen:
            return Verdict(e.ImdsServiceError, reply.reason, Retry.TRANSIENT)
        return Verdict(e.ImdsUnavailableError, reply.reason, absent=reply.absent)

    status, headers = reply.status, reply.headers
    payload = _json_object(reply.body)
    code, description = payload.get("error"), payload.get("error_description")
    in_shape = isinstance(code, str) and isinstance(description, str)
    is_imds = headers.get("server", "").startswith("IMDS/") or in_shape or isinstance(payload.get("access_token"), str)
    known = Verdict(
        None,
        f"{status} {excerpt(code)}: {excerpt(description)}"
        if in_shape
        else f"{status}{reply.fault and ', '}{reply.fault}",
        is_imds=is_imds,
        status=status,
        code=excerpt(code) if isinstance(code, str) else None,
        description=excerpt(description) if isinstance(description, str) else None,
        request_id=excerpt(headers["x-ms-request-id"]) if "x-ms-request-id" in headers else None,
        retry_after=_seconds_to_wait(headers.get("retry-after"), now),
    )
    if not is_imds:
        known = known._replace(excerpt=excerpt((reply.body or b"").decode("utf-8", "replace")) or None)

    if 300 <= status < 400 or reply.body is None:
        # Never followed, never kept. A connection that broke may hold next time; a redirect or a huge body is no fault.
        again = Retry.ONCE if is_imds and reply.fault == "the answer broke off" else Retry.NEVER
        return known._replace(error=e.ImdsServiceError if is_imds else e.ImdsUnavailableError, retry=again)
    if is_imds:
        return _from_imds(known, payload, identity, resource, headers, now)
    if status in _RESTART_STATUSES:
        if seen:
            return known._replace(error=_when_given_up(status), retry=_again(status))
        return known._replace(error=e.ImdsUnavailableError, retry=Retry.STRANGER)
    return known._replace(error=e.ImdsUnavailableError)


def _from_imds(
    known: Verdict, payload: dict[str, Any], identity: Identity, resource: str, headers: Mapping[str, str], now: float
) -> Verdict:
    """Read the rows of the table that begin with "from IMDS"."""
    status = known.status or 0
    if status == 200:
        token, life = payload.get("access_token"), _life(payload, headers, now)
        if isinstance(token, str) and _TOKEN.fullmatch(token) and life is not None and 0 < life <= LONGEST_LIFE:
            other = mismatch(payload, token, identity, resource)
            if other:
                return known._replace(error=e.IdentityMismatchError, came_back=f"200 with a token {other}")
            return known._replace(came_back="200 with a token", access_token=token, life=life)
    if status == 400 and known.code == "invalid_request" and "error_codes" not in payload:
        return known._replace(error=e.IdentityUnavailableError)
    if status == 404 or status in _RESTART_STATUSES or 500 <= status < 600:
        return known._replace(error=_when_given_up(status), retry=_again(status))
    if 400 <= status < 500:
        return known._replace(error=e.ImdsRequestError)
    return known._replace(error=e.ImdsServiceError, came_back=f"{status} without a usable token", retry=Retry.ONCE)


def _again(status: int) -> Retry:
    return {410: Retry.GONE, 429: Retry.THROTTLED}.get(status, Retry.TRANSIENT)


def _when_given_up(status: int) -> type[e.ImdsError]:
    return e.ImdsThrottledError if status == 429 else e.ImdsServiceError


def mismatch(payload: Mapping[str, Any], token: str, identity: Identity, resource: str) -> str:
    """Say for whom else the answer is, or "". What the answer leaves out is unknown, never a mismatch."""
    answered = payload.get("resource")
    if isinstance(answered, str) and answered and not _same(answered, resource):
        return f"for the resource {excerpt(answered)!r}"
    if identity.kind == "system-assigned":
        return ""
    claims = claims_of(token)
    answered = {
        "client_id": payload.get("client_id") or claims.get("appid") or claims.get("azp"),
        "object_id": claims.get("oid"),
        "resource_id": claims.get("xms_mirid"),
    }[identity.kind]
    if isinstance(answered, str) and answered and not _same(answered, identity.value or ""):
        return f"for the {identity.kind} {excerpt(answered)!r}"
    return ""


def _same(one: str, other: str) -> bool:
    """Compare as Azure does: the case of GUIDs and ARM IDs and one trailing slash do not count."""
    return one.casefold().removesuffix("/") == other.casefold().removesuffix("/")


def _life(payload: Mapping[str, Any], headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the token has left: the server's own difference, so that the guest's clock does not matter."""
    try:
        expires_in, expires_on = _number(payload.get("expires_in")), _number(payload.get("expires_on"))
    except ValueError:
        return None
    if expires_in is None:
        return None if expires_on is None else expires_on - now
    date = _epoch(headers.get("date"))
    if expires_on is None or date is None:
        return expires_in
    return min(expires_in, expires_on - date)


def _number(value: object) -> float | None:
    """Read a count of seconds, which comes as string, int or float."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(type(value).__name__)
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("too large") from error
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _seconds_to_wait(retry_after: str | None, now: float) -> float | None:
    """Read `Retry-After`: seconds or a date (RFC 9110, section 10.2.3). Nonsense is as good as none."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,18}\s*", retry_after):
        return float(retry_after)
    date = _epoch(retry_after)
    return None if date is None else max(0.0, date - now)


def _epoch(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def _json_object(body: bytes | None) -> dict[str, Any]:
    """Parse whatever the Content-Type says: endpoints that imitate IMDS send JSON as text/plain."""
    try:
        payload = json.loads(body.decode("utf-8-sig")) if body else None
    except (ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def excerpt(text: object) -> str:
    """Keep what may be shown of a foreign text: printable, on one line, without anything that looks like a token."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: 10 * EXCERPT_LIMIT])
    return " ".join(_SECRETS.sub(r"\1[removed]", shown).split())[:EXCERPT_LIMIT]
