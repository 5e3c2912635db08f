"""From a request to its answer: refuse, route, count."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web

from ._answers import ENDING, NOT_FOUND, TEXT, Answer, identity_error
from ._connections import Connections
from ._instance import Instance
from ._metrics import CONTENT_TYPE, Metrics, rendered
from ._requests import (
    TOKEN_PATH,
    Hosts,
    TokenQuery,
    is_instance_path,
    metadata_refusal,
    refusal,
    split_target,
    token_query,
)
from ._tokens import Tokens

_NO_PROMETHEUS = Answer(501, b"/metrics needs `pip install prometheus-client`\n", TEXT)
_WRONG_USER = identity_error(403, "Only processes of the user of azure-imds serve may ask", "forbidden", reason="user")
_BROKEN = identity_error(500, "azure-imds serve failed; its log says why", "server_error")
# What is asked to know whether a token could be had, when nothing was asked yet.
_HEALTH_QUERY = TokenQuery(None, None, "https://management.azure.com", bypass_cache=False)

_HEALTH_SECONDS = 10.0  # between two requests that /healthz sends while there is no token

_logger = logging.getLogger("azure_imds_credential.serve")


class Handler:
    """Answers requests.

    Args:
        tokens: Answers those for tokens.
        instance: Answers those for the rest of IMDS.
        hosts: The Host headers that are this machine's.
        metrics: Counts.
        clock: Returns seconds that only go forward.
    """

    def __init__(
        self,
        tokens: Tokens,
        instance: Instance,
        hosts: Hosts,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens, self._instance, self._hosts, self._metrics = tokens, instance, hosts, metrics
        self._clock, self._health_asked = clock, -_HEALTH_SECONDS
        self._under_way: set[asyncio.Task[object]] = set()
        self._is_ending = False
        self.connections: Connections

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        """Answer one request."""
        connection = self.connections.begin(request.protocol)
        if connection is None or request.transport is None:
            return NOT_FOUND.response(close=True)  # no client is there to read it
        task = asyncio.current_task()
        assert task is not None  # aiohttp makes one per request
        self._under_way.add(task)
        try:
            local_address = request.transport.get_extra_info("sockname")[0]
            target = request.raw_path
            refused = refusal(request.version, request.method, target, request.headers, self._hosts, local_address)
            if refused is None and not await self.connections.may_ask(connection):
                refused = _WRONG_USER
            if refused is not None:
                return self.refuse(refused)
            kind, answer = await self._routed(target, request)
            self._metrics.answers[kind, answer.status] += 1
            if answer.reason:
                self._metrics.refusals[answer.reason] += 1
            return answer.response()
        except asyncio.CancelledError:
            if not self._is_ending:
                raise
            return ENDING.response(close=True)
        except Exception:
            _logger.exception("a request failed")
            return _BROKEN.response(close=True)
        finally:
            self._under_way.discard(task)
            self.connections.finish(connection)

    def refuse(self, refused: Answer) -> web.Response:
        """Count a refusal, and return its response, after which the connection ends."""
        self._metrics.refusals[refused.reason] += 1
        self._metrics.answers["refused", refused.status] += 1
        return refused.response(close=True)

    async def end(self, seconds: float) -> None:
        """Wait so long for the answers of requests under way; those that still have none get 503."""
        self._is_ending = True
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=seconds)
        for task in self._under_way:
            task.cancel()

    async def _routed(self, target: str, request: web.BaseRequest) -> tuple[str, Answer]:
        path, query = split_target(target)
        if path == TOKEN_PATH:
            asked = metadata_refusal(request.headers) or token_query(query)
            return "token", await self._tokens.answer(asked) if isinstance(asked, TokenQuery) else asked
        if is_instance_path(path):
            refused = metadata_refusal(request.headers)
            return "instance", refused or await self._instance.answer(f"{path}?{query}" if query else path)
        if path == "/healthz":
            return "healthz", await self._health()
        if path == "/metrics":
            text = rendered(self._metrics)
            return "metrics", _NO_PROMETHEUS if text is None else Answer(200, text, CONTENT_TYPE)
        return "other", NOT_FOUND

    async def _health(self) -> Answer:
        """Return whether a token could be had: one is cached, or, where nothing was asked yet, IMDS gives one."""
        if self._tokens.count:
            return Answer(200, b"a token is held\n", TEXT)
        now = self._clock()
        if self._tokens.last_failure is None or now >= self._health_asked + _HEALTH_SECONDS:
            self._health_asked = now
            answer = await self._tokens.answer(_HEALTH_QUERY)
            if answer.status == 200:
                return Answer(200, b"IMDS gave a token\n", TEXT)
        failed = self._tokens.last_failure
        return Answer(503, b"no token: " + (failed.body if failed else b"not asked") + b"\n", TEXT)
