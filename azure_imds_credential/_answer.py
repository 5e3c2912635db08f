"""What an answer means. Pure: bytes in, verdict out; nothing here waits, logs or raises.

The status is judged before the body, shape before words: IMDS's descriptions are localised and change.
"""

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from . import exceptions as e
from ._claims import claims_of
from ._freshness import LONGEST_LIFE
from ._identity import Identity
from ._retry import Retry

BODY_LIMIT = 1 << 20  # bytes; real answers have about 2,000 (imds: 1,669 and 1,906 seen)
SERVER = "IMDS/"  # how its header of that name begins
BROKE_OFF = "the answer broke off"
GUID_LENGTH = 36
EXCERPT_LIMIT = 200  # characters of a foreign answer that an error may show

# Statuses for which the documentation says "ask again", and which another server may give while IMDS restarts.
# https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling
_RESTART_STATUSES = {408, 410, 429, 500, 502, 503, 504}

# Strings: `re` keeps what it compiled, and most processes never need the last two.
_IN_A_HEADER = r"[!-~]+"  # what fits into an Authorization header: no spaces, no control characters
_SECRETS = r'("(?:access|refresh|id)_token"\s*:\s*")[^"]*|([A-Za-z0-9_\-.+/=]{40,})'
_PIECE = r"[A-Za-z0-9_\-+=]{40}"  # in a host name, a path or an ARM ID something ends sooner


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
    token, code, description = (payload.get(name) for name in ("access_token", "error", "error_description"))
    in_shape = isinstance(code, str) and isinstance(description, str)
    is_imds = headers.get("server", "").startswith(SERVER) or in_shape or isinstance(token, str)
    if status == 200 and isinstance(token, str) and re.fullmatch(_IN_A_HEADER, token):
        life = _life(payload, headers, now)
        if 0 < life <= LONGEST_LIFE:
            other = mismatch(payload, token, identity, resource)
            if not other:
                return Verdict(None, "200 with a token", is_imds=True, access_token=token, life=life)
            return _known(reply, payload, now)._replace(
                error=e.IdentityMismatchError, came_back=f"200 with a token {other}", is_imds=True
            )
    known = _known(reply, payload, now)._replace(is_imds=is_imds)

    worth_a_retry = status in _RESTART_STATUSES or (is_imds and (status == 404 or status >= 500))
    if 300 <= status < 400 or (reply.body is None and not worth_a_retry):
        # Never followed, never kept. A connection that broke may hold next time; a redirect or a huge body is no fault.
        broke = reply.body is None and reply.fault == BROKE_OFF
        ours = is_imds or (broke and seen)  # what the body would have shown is lost: no reason for a chain to go on
        return known._replace(
            error=e.ImdsServiceError if ours else e.ImdsUnavailableError,
            retry=Retry.ONCE if ours and broke else Retry.NEVER,
        )
    if not is_imds:
        known = known._replace(excerpt=excerpt((reply.body or b"").decode("utf-8", "replace")) or None)
        if status not in _RESTART_STATUSES:
            return known._replace(error=e.ImdsUnavailableError)
        if not seen:
            return known._replace(error=e.ImdsUnavailableError, retry=Retry.STRANGER)
    if status == 400 and code == "invalid_request" and not {"error_codes", "trace_id"} & payload.keys():
        return known._replace(error=e.IdentityUnavailableError)
    if status == 429:
        return known._replace(error=e.ImdsThrottledError, retry=Retry.THROTTLED)
    if status == 410:
        return known._replace(error=e.ImdsServiceError, retry=Retry.GONE)
    if status in (404, 408) or 500 <= status < 600:
        return known._replace(error=e.ImdsServiceError, retry=Retry.TRANSIENT)
    if 400 <= status < 500:
        return known._replace(error=e.ImdsRequestError)
    return known._replace(error=e.ImdsServiceError, came_back=f"{status} without a usable token", retry=Retry.ONCE)


def _known(reply: Reply, payload: Mapping[str, Any], now: float) -> Verdict:
    """Keep of an answer that is no token what an error may show."""
    code, description = (
        excerpt(payload[name]) if isinstance(payload.get(name), str) else None
        for name in ("error", "error_description")
    )
    words = reply.fault and f", {reply.fault}"
    if code and description:
        words = f" {code}: {description}"[:EXCERPT_LIMIT]
    # Entra's own, at the end of its description, which is cut; its support asks for them.
    for name, member in (("trace ID", "trace_id"), ("correlation ID", "correlation_id")):
        if isinstance(payload.get(member), str):
            words += f", {name} {excerpt(payload[member])[:GUID_LENGTH]}"
    return Verdict(
        None,
        f"{reply.status}{words}",
        status=reply.status,
        code=code,
        description=description,
        request_id=excerpt(reply.headers["x-ms-request-id"]) if "x-ms-request-id" in reply.headers else None,
        retry_after=_seconds_to_wait(reply.headers.get("retry-after"), now),
    )


def mismatch(payload: Mapping[str, Any], token: str, identity: Identity, resource: str) -> str:
    """Say for whom else the answer is, or "". What the answer leaves out is unknown, never a mismatch.

    Compared as Azure does: the case of GUIDs and ARM IDs and one trailing slash do not count.
    """
    pairs = [("resource", resource, [payload.get("resource")])]
    if identity.value is not None:
        told = [payload.get("client_id")] if identity.kind == "client_id" else []
        if not told or not told[0] or not isinstance(told[0], str):
            claims = claims_of(token)
            names = {"client_id": ("appid", "azp"), "object_id": ("oid",), "resource_id": ("xms_mirid",)}
            told = [claims.get(name) for name in names[identity.kind]]
        pairs.append((identity.kind, identity.value, told))
    for name, asked, told in pairs:
        answered = next((each for each in told if isinstance(each, str) and each), asked)
        if answered.casefold().removesuffix("/") != asked.casefold().removesuffix("/"):
            return f"for the {name} {excerpt(answered)!r}"
    return ""


def _life(payload: Mapping[str, Any], headers: Mapping[str, str], now: float) -> float:
    """Seconds the token has left: the server's own difference, so that the guest's clock does not matter.

    Numbers come as strings, ints and floats. 0 for what makes no sense.
    """
    given: dict[str, float] = {}
    for name in ("expires_in", "expires_on"):
        value = payload.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return 0
        try:
            given[name] = float(value)
        except (ValueError, OverflowError):
            return 0
    if not all(map(math.isfinite, given.values())):
        return 0
    date = _epoch(headers["date"]) if len(given) == 2 and "date" in headers else None
    if date is not None:
        return min(given["expires_in"], given["expires_on"] - date)
    return given["expires_in"] if "expires_in" in given else given.get("expires_on", now) - now


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


def _json_object(body: bytes | None) -> dict[str, Any]:
    """Parse whatever the Content-Type says: endpoints that imitate IMDS send JSON as text/plain."""
    try:
        payload = json.loads(body.removeprefix(BOM_UTF8).decode()) if body else None
    except (ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def excerpt(text: object) -> str:
    """Keep what may be shown of a foreign text: printable, on one line, without anything that looks like a token."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: 10 * EXCERPT_LIMIT])
    return " ".join(without_secrets(shown).split())[:EXCERPT_LIMIT]


def without_secrets(text: str) -> str:
    """Take out whatever looks like a token."""

    def replacement(found: re.Match[str]) -> str:
        member, run = found.groups()
        return f"{member or ''}[removed]" if run is None or re.search(_PIECE, run) else run

    return re.sub(_SECRETS, replacement, text)
