"""/metadata/instance and /metadata/versions, handed through from IMDS and kept for a minute."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType

import aiohttp
from typing_extensions import Self

from .. import __version__
from . import SERVE_HEADER
from ._answers import JSON, THROTTLED, UPSTREAM_IS_SERVE, Answer, identity_error
from ._log import Tell
from ._requests import AGENT

KEPT_SECONDS = 60.0
KEPT_ANSWERS = 64
# https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting: 5 a second for all but
# managed identities. The window is a little longer than theirs, since requests do not take equally long to get there.
PER_WINDOW, WINDOW = 5, 1.1
MAX_WAITING = 16  # requests that wait for IMDS at once, also for the same answer
LONGEST_TURN = 5.0  # seconds that a request waits for its turn; beyond them it gets IMDS's 429
BODY_LIMIT = 1 << 18  # bytes; a document has about 5,000, and at most 64 KiB of user data in base64
_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)


class Instance:
    """Hands requests through.

    Args:
        endpoint: Base URL of IMDS.
        tell: Writes a line for an event.
        clock: Returns seconds that only go forward.
    """

    def __init__(self, endpoint: str, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._endpoint, self._tell, self._clock = endpoint, tell, clock
        self._kept: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._waiting = 0
        self._turns: deque[float] = deque(maxlen=PER_WINDOW)  # when the latest requests were or will be sent
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # IMDS uses no proxy, sets no cookie and sends no redirects.
        self._session = aiohttp.ClientSession(
            trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), timeout=_TIMEOUT, auto_decompress=False
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._under_way.values():
            task.cancel()
        await self._session.close()

    async def answer(self, target: str) -> Answer:
        """Return what IMDS says of this target (path and query), from the last minute if it is known."""
        now = self._clock()
        if target in self._kept and now - self._kept[target][0] < KEPT_SECONDS:
            return self._kept[target][1]
        if self._waiting >= MAX_WAITING:
            return THROTTLED
        task = self._under_way.get(target)
        if task is None:
            turn = next_turn(self._turns, now)
            if turn - now > LONGEST_TURN:
                return THROTTLED
            self._turns.append(turn)
            task = self._under_way[target] = asyncio.ensure_future(self._fetch(target, turn - now))
            task.add_done_callback(lambda _: self._under_way.pop(target, None))
        self._waiting += 1
        try:
            return await asyncio.shield(task)  # a client that leaves does not end the request of the others
        finally:
            self._waiting -= 1

    async def _fetch(self, target: str, wait: float) -> Answer:
        await asyncio.sleep(wait)
        begun = self._clock()
        answer = await self._asked(target)
        milliseconds = round(1000 * (self._clock() - begun))
        path = target.partition("?")[0]
        self._tell("upstream", {"path": path, "status": answer.status, "milliseconds": milliseconds})
        return answer

    async def _asked(self, target: str) -> Answer:
        headers = {"Metadata": "true", "User-Agent": f"{AGENT}/{__version__}", "Accept-Encoding": "identity"}
        try:
            async with self._session.get(self._endpoint + target, headers=headers, allow_redirects=False) as response:
                if SERVE_HEADER in response.headers:
                    return UPSTREAM_IS_SERVE
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > BODY_LIMIT:
                        break
                if len(body) > BODY_LIMIT or 300 <= response.status < 400:
                    return identity_error(502, "IMDS gave an answer that is not handed through", "server_error")
                answer = Answer(response.status, bytes(body), response.headers.get("Content-Type", JSON))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            reason = f"azure-imds serve has no IMDS behind it: {type(error).__name__}"
            return identity_error(503, reason, "service_unavailable")
        if answer.status in (200, 400):  # what else there is passes
            self._kept[target] = self._clock(), answer
            self._kept.move_to_end(target)
            if len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)
        return answer


def next_turn(turns: deque[float], now: float) -> float:
    """Return when the next request may be sent, given when the latest ones were or will be."""
    return max(now, turns[0] + WINDOW) if len(turns) == turns.maxlen else now
