"""A token cache whose requests end when the test says so, and callers that are advanced by hand. No thread runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flavors import StillTime

from azure_imds_credential import ImdsError
from azure_imds_credential._cache import token_cache as cache_module
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._cache.token_entry import CachedToken, TokenEntry
from azure_imds_credential._clock import Clock
from azure_imds_credential._endpoint import Endpoint
from azure_imds_credential._identity import Identity
from azure_imds_credential._request import TokenKey, TokenRequest, TokenResult

URL = "http://127.0.0.1"
TIMEOUT = 90.0
DAY = 86400.0


class Caller:
    """One `get_token` under way, advanced by hand."""

    def __init__(
        self,
        machine: CacheMachine,
        resource: str = "https://a",
        *,
        forced: bool = False,
        timeout: float = TIMEOUT,
        patience: float = 0.0,
    ) -> None:
        self.machine, self.resource, self.forced = machine, resource, forced
        self.begun = machine.now
        self.cached_at_start = machine.entry(resource).usable(machine.now)
        self.entry = machine.entry(resource)
        options: Any = SimpleNamespace(
            timeout=timeout,
            wait_for_identity=patience,
            runs_hooks=False,
            fetch=machine.fetch,
            has_listener=machine.has_listener,
        )
        filling = machine.cache.fill(self.entry, options, force_refresh=forced)
        self._filling = filling
        self.waiting: TokenRequest | None = None
        self.until = machine.now
        self.done = False
        self.cached: CachedToken | None = None
        self.error: BaseException | None = None
        self.go_on()

    @property
    def token(self) -> str | None:
        """The token that it got."""
        return None if self.cached is None else self.cached.token.token

    def is_due(self) -> bool:
        """Return whether its wait is over."""
        return (self.waiting is not None and self.waiting.done()) or self.machine.now >= self.until

    def go_on(self) -> None:
        """Run until it waits for a request that has not ended, or ends."""
        try:
            for _ in range(1000):  # more would be a loop
                self.waiting, seconds = next(self._filling)
                self.until = self.machine.now + seconds
                if not self.is_due():
                    return
            raise AssertionError("a call that never waits")
        except StopIteration:
            self.done, self.cached = True, self._filling.cached
        except ImdsError as error:
            self.done, self.error = True, error

    def leave(self) -> None:
        """End the call, as an interrupt or a cancellation does."""
        self._filling.close()


class CacheMachine:
    """A cache in still time, the requests under way, and what they may bring."""

    def __init__(self) -> None:
        self.clock = StillTime()
        self.cache = TokenCache(self.clock)
        self.under_way: list[tuple[TokenEntry, TokenRequest]] = []
        self.started = 0  # requests so far
        self.ends: dict[str, float] = {}  # when each token that was brought expires
        self.numbers = itertools.count()
        self.listens = False
        self.looks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(cache_module, "_start_thread", self._start_thread)

    def _start_thread(self, function: Callable[..., None], *args: Any) -> bool:
        """Keep the request, instead of running it, until the test ends it."""
        if function.__name__ == "_run":
            entry, _, request = args
            self.under_way.append((entry, request))
            self.started += 1
        else:
            self.looks.append((function, args))
        return True

    def close(self) -> None:
        """Take back what was replaced."""
        self.patch.undo()

    @property
    def now(self) -> float:
        """Time of `Clock.now`."""
        return self.clock.now()

    def fetch(self, request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        """Get a token where no thread can start."""
        raise NotImplementedError

    def has_listener(self, url: str) -> bool:
        """Return what a connect attempt would find."""
        return self.listens

    def look(self) -> None:
        """Run the connect attempts that are under way."""
        looks, self.looks = self.looks, []
        for function, (endpoint, absence, options, _) in looks:
            function(endpoint, absence, options, 0.0)

    def entry(self, resource: str = "https://a") -> TokenEntry:
        """Return the cache entry of a resource."""
        return self.cache.entry(TokenKey(URL, Identity(), resource))

    def end(self, result: TokenResult | None, *callers: Caller, index: int = 0) -> TokenEntry:
        """End a request under way, and let callers go on."""
        entry, request = self.under_way.pop(index)
        self.cache._finish(entry, request, result)
        for caller in callers:
            caller.go_on()
        return entry

    def fail(self, error: BaseException, *callers: Caller, index: int = 0, **members: Any) -> TokenEntry:
        """End a request with an error."""
        return self.end(TokenResult(error=error, **members), *callers, index=index)

    def bring(self, token: str, life: float, *callers: Caller, index: int = 0) -> TokenEntry:
        """End a request with a token."""
        self.ends[token] = self.now + life
        return self.end(TokenResult(token, self.now + life), *callers, index=index)

    def first_token(self, token: str = "https://a#first", life: float = DAY) -> TokenEntry:
        """Cache a token."""
        caller = Caller(self)
        entry = self.bring(token, life, caller)
        assert caller.token == token
        return entry

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.skip(seconds)
