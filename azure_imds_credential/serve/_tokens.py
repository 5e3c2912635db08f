"""The tokens that serve holds: one credential per identity and resource, through the public API alone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .. import __version__
from ..aio import ImdsCredential
from ..exceptions import ImdsError
from . import SERVE_HEADER
from ._answers import JSON, THROTTLED, UPSTREAM_IS_SERVE, Answer, TokenBody, failure, identity_error
from ._requests import AGENT, TokenQuery

MAX_TOKENS = 1000
# Requests that wait for IMDS at once. With the 16 for instance metadata, 32 of the 256 connections are left for tokens
# that are held.
MAX_WAITING = 208
MAX_WITHOUT_TOKEN = 256  # keys that brought no token yet; more than can wait, so that none is dropped while it does
_BODY_LIMIT = 1 << 16  # bytes of an error that are passed on; real ones have at most about 1,000

_Key = tuple[str | None, str | None, str]


class UpstreamIsServeError(Exception):
    """What answered is another serve, or this one."""


class _LastRefusal:
    """IMDS's last answer to a request, if it was an error. A hook of the credential; it never holds a token."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def note(self, response: Any) -> None:
        """Keep IMDS's error as it came; called on the thread of the request."""
        came = response.http_response
        if SERVE_HEADER in came.headers:
            raise UpstreamIsServeError
        self.answer = None
        length = str(came.headers.get("Content-Length", ""))
        if came.status_code >= 400 and length.isdecimal() and int(length) <= _BODY_LIMIT:
            kept = {name: came.headers[name] for name in ("Retry-After", "x-ms-request-id") if name in came.headers}
            self.answer = Answer(came.status_code, came.read(), came.headers.get("Content-Type", JSON), kept)


class _Entry:
    """What is known of one key."""

    __slots__ = ("body", "credential", "refusal")

    def __init__(self, credential: ImdsCredential, refusal: _LastRefusal) -> None:
        self.credential, self.refusal = credential, refusal
        self.body: TokenBody | None = None


class Tokens:
    """Answers requests for tokens.

    Args:
        endpoint: Base URL of IMDS.
        timeout: Seconds that a request waits for IMDS at most.
        shared_cache: Share tokens with the processes of this user, and with the next serve. The credential then
            takes no hook, so that only the beginning of IMDS's words in an error is known.
        max_tokens: How many tokens are held; of more, those that were asked for least recently are dropped.
        wall_clock: Returns epoch seconds.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float,
        shared_cache: bool,
        max_tokens: int = MAX_TOKENS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._options: dict[str, Any] = {
            "endpoint": endpoint,
            "timeout": timeout,
            "shared_cache": shared_cache,
            "user_agent": f"{AGENT}/{__version__}",
        }
        self._max_tokens = max_tokens
        self._wall_clock = wall_clock
        self._held: OrderedDict[_Key, _Entry] = OrderedDict()  # the least recently asked for first
        self._without_token: OrderedDict[_Key, _Entry] = OrderedDict()
        self._waiting = 0
        self._forgotten: set[_Key] = set()  # keys whose next token must be newer than any cache has
        self.last_failure: Answer | None = None  # None while the last answer of IMDS was a token
        self._new_entry(None, None)  # says now what is wrong with the options

    @property
    def count(self) -> int:
        """How many tokens are held that have not expired."""
        now = self._wall_clock()
        return sum(entry.body is not None and entry.body.expires_on > now for entry in self._held.values())

    @property
    def waiting(self) -> int:
        """How many requests wait for IMDS now."""
        return self._waiting

    def forget(self) -> None:
        """Drop every token. Each is asked for anew, and IMDS told to bypass its own cache, when it is wanted next."""
        self._forgotten |= self._held.keys() | self._without_token.keys()
        self._held.clear()
        self._without_token.clear()
        self.last_failure = None

    async def answer(self, query: TokenQuery) -> Answer:
        """Return the token, or why there is none, as IMDS would say it."""
        key = (query.selector, query.value and query.value.lower(), query.resource)  # Azure's identifiers have no case
        try:
            entry = self._entry(key, query)
        except ValueError as error:  # a credential refuses to be made for such an identity
            return identity_error(400, str(error))
        now = self._wall_clock()
        usable = entry.body is not None and entry.body.expires_on > now
        if self._waiting >= MAX_WAITING and (not usable or query.bypass_cache):
            return THROTTLED
        force = query.bypass_cache or key in self._forgotten  # past the shared cache too
        self._waiting += 1
        try:
            body = await self._body(entry, query, force_refresh=force)
        except UpstreamIsServeError:
            self.last_failure = UPSTREAM_IS_SERVE
            return UPSTREAM_IS_SERVE
        except ImdsError as error:
            self.last_failure = failure(error, entry.refusal.answer)
            return self.last_failure
        except ValueError as error:
            return identity_error(400, str(error))
        finally:
            self._waiting -= 1
        if body is not entry.body:
            entry.body, self.last_failure = body, None
            self._keep(key, entry)
        return body.at(self._wall_clock())

    async def _body(self, entry: _Entry, query: TokenQuery, *, force_refresh: bool) -> TokenBody:
        scope = f"{query.resource}/.default"
        token = await entry.credential.get_token(scope, force_refresh=force_refresh)
        body = entry.body
        if body is not None and (body.token, body.expires_on) == (token.token, token.expires_on):
            return body
        asked = query.value if query.selector == "client_id" else None
        identity = await entry.credential.whoami(scope)
        return TokenBody(token.token, query.resource, identity, asked, token.expires_on, self._wall_clock())

    def _entry(self, key: _Key, query: TokenQuery) -> _Entry:
        for entries in (self._held, self._without_token):
            if key in entries:
                entries.move_to_end(key)
                return entries[key]
        entry = self._without_token[key] = self._new_entry(query.selector, query.value)
        if len(self._without_token) > MAX_WITHOUT_TOKEN:
            self._without_token.popitem(last=False)
        return entry

    def _new_entry(self, selector: str | None, value: str | None) -> _Entry:
        refusal, options = _LastRefusal(), dict(self._options)
        if not options["shared_cache"]:
            options["raw_response_hook"] = refusal.note
        if selector:
            options[selector] = value
        # Options give a credential a cache of its own, so that what is dropped here is gone.
        return _Entry(ImdsCredential(**options), refusal)

    def _keep(self, key: _Key, entry: _Entry) -> None:
        """Count an entry among those that hold a token, unless it was forgotten meanwhile."""
        if self._without_token.get(key) is entry:
            self._held[key] = self._without_token.pop(key)
            self._forgotten.discard(key)
        if len(self._held) > self._max_tokens:
            self._held.popitem(last=False)
