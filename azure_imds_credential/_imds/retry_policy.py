"""Attempts: each is sent, what comes back is judged, and that decides about the next one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import HTTPPolicy
from azure.core.rest import HttpRequest

from .._clock import Clock
from .._endpoint import BOOT_WINDOW, MAX_CONCURRENT, MAX_PER_WINDOW, Endpoint
from .._errors import error_of, reporting, unsent_error
from .._request import TokenRequest, TokenResult
from ..exceptions import ImdsError, ImdsServiceError
from .connect import address_count, connect_timeout
from .hints import hint_for
from .machine import has_proxy_agent
from .pipeline import NETWORK_ERRORS, TRANSPORT_ERRORS, ImdsPipeline, no_response, read_body
from .response import IMDS_SERVER, NoResponse, Response, Situation, Verdict, excerpt, json_object, judge
from .retry import Retry, last_chance, next_delay

READ_TIMEOUT = 20.0  # seconds; a real IMDS answers within one, or within a few where it asks Entra
DEADLINE_MARGIN = 0.05  # seconds before the deadline in which a failed attempt counts as cut off by it

# https://github.com/Azure/azure-rest-api-specs specification/imds/data-plane, 2023-07-01: "must be 'true'".
BYPASS_CACHE = "&bypass_cache=true"
CLIENT_REQUEST_ID = "x-ms-client-request-id"

# Why nothing was sent yet.
RATE_LIMITED = f"this process sends at most {MAX_PER_WINDOW} a second and {MAX_CONCURRENT} at once"
BEING_BUILT = "it was still being built, which the credential's policies and hooks take part in"

# Whether the response names the identity that was selected.
_MATCH = {True: "confirmed", False: "unconfirmed", None: "not selected"}

_logger = logging.getLogger("azure_imds_credential")


class ImdsRetryPolicy(HTTPPolicy[Any, Any]):
    """The policy in the pipeline that sends attempts, judges what comes back, and asks again.

    msal cannot judge a response (it takes a token from a 500, drops `client_id`, logs odd bodies), so this does, and
    raises our errors through msal.

    Args:
        request: What is asked for. It is told the error of each failed attempt.
        endpoint: What is known of the base URL, and its rate limiter.
        options: The credential's pipeline options.
        clock: Clocks, randomness and sleep.
    """

    def __init__(self, request: TokenRequest, endpoint: Endpoint, options: Mapping[str, Any], clock: Clock) -> None:
        self._request, self._endpoint, self._options, self._clock = request, endpoint, options, clock
        self._started = self.sent_at = clock.now()
        self._attempts = self._throttled = 0
        self._timed_out = self._has_seen = False
        self._skipped = 0.0  # seconds of waits that took no time
        self._client_request_id: str | None = None
        self._failures: dict[Retry, tuple[float, int]] = {}  # since when, and how many retries: a server may mix them
        self._pipeline = ImdsPipeline(self, endpoint.url, options, self._seconds_left, self._read, self._note_sent)
        self._answer: Any = None  # the response of the last attempt
        self.verdict = Verdict(ImdsServiceError, "nothing was sent", has_listener=False)

    def acquire_slot(self, error: ImdsError | None = None) -> None:
        """Wait until the rate limit permits an attempt.

        Raises:
            ImdsError: Not before the deadline: the given error, or that nothing could be sent.
        """
        request = self._request
        if request.unsent_because is not None and self._seconds_left() > 0:  # else something before took the time
            request.unsent_because = RATE_LIMITED
        if not self._endpoint.limiter.acquire(request, self._clock):
            self._timed_out = True
            because = request.unsent_because or RATE_LIMITED
            raise error or unsent_error(request.key, because, self._clock.now() - request.started)
        if request.unsent_because is not None:
            request.unsent_because = BEING_BUILT

    def run(self, request: HttpRequest) -> Verdict:
        """Send a request through the pipeline of this policy; return what the response with the token means.

        Raises:
            ImdsError: There is no token; a policy of the user's may have kept the error back.
        """
        answer = getattr(self._pipeline.run(request), "http_response", None)
        if self._attempts == 0 or (
            answer is not None and answer is not self._answer
        ):  # a policy of the user's answered
            self._judge(self._read(answer))
        if self.verdict.error is not None:
            raise self._error()
        return self.verdict

    def send(self, request: Any) -> Any:
        """Repeat the attempt until it brings a token, deserves no other, or the time is up."""
        http_request = request.http_request
        self._client_request_id = http_request.headers.get(CLIENT_REQUEST_ID)
        while True:
            response = self._attempt(request)
            verdict = self.verdict
            if verdict.error is None:
                return response
            if verdict.status == 400 and http_request.url.endswith(BYPASS_CACHE):
                # The parameter is documented, its effect is not: an IMDS that refuses it still has a token.
                http_request.url = http_request.url.removesuffix(BYPASS_CACHE)
                # The 400 was for the parameter, so it says nothing of the identity.
                self.verdict = Verdict(ImdsServiceError, "400 for bypass_cache, and no time was left to ask without it")
                self.acquire_slot(self._error())
                continue
            delay = self._next_delay()
            error = self._error()
            if self._timed_out and verdict.status is None and self._request.attempt_errors:
                error = self._request.attempt_errors[-1]  # the deadline cut this attempt: the one before tells more
            self._request.attempt_errors.append(error)
            if delay is None:
                raise error
            if delay >= self._seconds_left():
                self._timed_out = True
                raise error
            with reporting():
                _logger.info(
                    "asking IMDS again in %.1f s: %s", delay, verdict.reason, extra={"imds_retry_delay": delay}
                )
            self._sleep(delay)
            self.acquire_slot(error)

    def _sleep(self, seconds: float) -> None:
        """Wait between two attempts. Where a test replaced `time.sleep`, the seconds count as passed all the same."""
        ends = self._clock.now() + seconds
        self._clock.sleep(seconds)
        self._skipped += max(0.0, ends - self._clock.now())

    def _note_sent(self) -> None:
        self._request.unsent_because = None

    def _attempt(self, request: Any) -> Any:
        """Send once, with the slot taken, and judge what came back."""
        response = failure = None
        self._pipeline.transport.forget()
        self._attempts += 1
        self.sent_at = self._clock.now()
        request.context.options.update(self._pipeline.per_request | self._timeouts())
        try:
            response = self.next.send(request)
            came_back = self._came_back(response)
        except TRANSPORT_ERRORS as error:
            failure, came_back = error, self._came_back_before(error)
        finally:
            self._pipeline.close_connection()
            self._endpoint.limiter.release(self._request, self._clock)  # others need not wait for our next attempt
        self._judge(came_back)
        if failure is not None and self.verdict.error is None:
            raise failure  # of a hook or a policy, which found fault with a good response
        if self.verdict.error and self._seconds_left() <= DEADLINE_MARGIN:
            # The time ran out, so this does not say whether there is an IMDS.
            self._timed_out = True
            self.verdict = self.verdict._replace(is_absent=False)
        return response

    def _came_back(self, response: Any) -> Response | NoResponse:
        """Return what an attempt brought: the response of the transport, or one that a policy put in its place."""
        transport = self._pipeline.transport
        self._answer = getattr(response, "http_response", None)
        if transport.came_back is not None and (self._answer is None or self._answer is transport.response):
            return transport.came_back
        return self._read(self._answer)

    def _came_back_before(self, error: Exception) -> Response | NoResponse:
        """Return what an attempt brought before an error was raised.

        Raises:
            Exception: The given error, where it is one of a hook or a policy.
        """
        came_back = self._pipeline.transport.came_back
        if isinstance(came_back, NoResponse):
            return came_back
        if came_back is not None:
            # raise_for_status() says no more than the response. What broke off cannot be read by a hook either.
            if isinstance(error, HttpResponseError) or came_back.body is None:
                return came_back
        elif isinstance(error, HttpResponseError) and error.response is not None:
            return self._read(error.response)
        elif isinstance(error, NETWORK_ERRORS):
            return no_response(error)
        raise error

    def _timeouts(self) -> dict[str, float]:
        connect, options = connect_timeout(seen=self._seen()), self._options
        addresses = 1 if options.get("transport") else self._address_count()
        left = max(0.001, self._seconds_left())
        return {
            "connection_timeout": min(connect, left, options.get("connection_timeout", connect)) / addresses,
            "read_timeout": min(READ_TIMEOUT, left, options.get("read_timeout", READ_TIMEOUT)),
        }

    def _address_count(self) -> int:
        unsent_because, self._request.unsent_because = (
            self._request.unsent_because,
            None,
        )  # to look a name up asks already
        try:
            return address_count(self._endpoint.url)
        finally:
            self._request.unsent_because = unsent_because

    def _read(self, response: Any) -> Response | NoResponse:
        try:
            headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
            if headers.get("server", "").startswith(IMDS_SERVER):
                self._note_seen()  # now: callers may leave before the body ends
            body, fault = read_body(response, self._seconds_left)
            encoding = headers.get("content-encoding", "").strip().lower()
            if body and encoding not in ("", "identity") and not json_object(body):
                body, fault = None, f"Content-Encoding {encoding!r:.40}, which was not asked for"
            return Response(int(response.status_code), headers, body, fault)
        except Exception as error:  # what a user's transport returned is no response
            return NoResponse(f"the response of the transport cannot be read ({type(error).__name__})", is_fault=True)
        finally:
            with suppress(Exception):  # what was not read would keep the connection of a user's transport
                response.close()

    def _judge(self, came_back: Response | NoResponse) -> None:
        key = self._request.key
        is_booting = self._endpoint.boot_time_left(self._clock.now()) > 0
        situation = Situation(seen=self._seen(), is_booting=is_booting, has_proxy_agent=has_proxy_agent())
        self.verdict = judge(came_back, key.identity, key.resource, situation, self._clock.wall())
        self._throttled += self.verdict.status == 429
        if self.verdict.is_imds:
            self._note_seen()

    def _seen(self) -> bool:
        """Return whether the endpoint answered as IMDS, also where it was cleared since this request began."""
        return self._has_seen or self._endpoint.seen

    def _note_seen(self) -> None:
        self._has_seen = True
        self._endpoint.note_seen(self._request)

    def _now(self) -> float:
        """Return the time of `Clock.now`, as it would be if each wait had taken its time."""
        return self._clock.now() + self._skipped

    def _seconds_left(self) -> float:
        return self._request.deadline - self._now()

    def _next_delay(self) -> float | None:
        """Return the seconds until the next attempt, None when there is none."""
        verdict, now, clock = self.verdict, self._now(), self._clock
        since, done = self._failures.get(verdict.retry, (now, 0))
        self._failures[verdict.retry] = since, done + 1
        elapsed = now - since
        if verdict.retry is Retry.BOOTING:
            self._endpoint.note_boot_failure(self._request, clock.now())
            # The time is the machine's: it began with the first request that was refused.
            elapsed = max(elapsed, BOOT_WINDOW - self._endpoint.boot_time_left(clock.now()))
            self.verdict = verdict._replace(is_absent=False)  # what is refused now may listen soon
        limit = self._options.get("retry_total")
        if limit is not None and sum(count for _, count in self._failures.values()) > limit:
            return None
        delay = next_delay(verdict.retry, done, elapsed, verdict.retry_after, clock.random)
        if delay is None or verdict.retry_after is not None:
            return delay
        return last_chance(delay, self._seconds_left(), clock.random)

    def _error(self) -> ImdsError:
        """Return the error of the last attempt."""
        verdict, key = self.verdict, self._request.key
        return error_of(
            verdict.error or ImdsServiceError,
            key,
            verdict.reason,
            hint_for(verdict, key.identity),
            excerpt=verdict.excerpt or "",
            status=verdict.status,
            error_code=verdict.code,
            error_description=verdict.description,
            attempts=self._attempts,
            elapsed=self._clock.now() - self._started,
            request_id=verdict.request_id,
            client_request_id=self._client_request_id,
        )

    def fault(self, reason: str) -> ImdsError:
        """Return the error that tells of a user's hook or policy that failed."""
        self.verdict = Verdict(ImdsServiceError, excerpt(reason), is_fault=True)
        return self._error()

    def failure(self, error: ImdsError) -> TokenResult:
        """Return the result of a request that ended with this error."""
        return TokenResult(
            error=error,
            is_absent=self.verdict.is_absent,
            has_listener=self.verdict.has_listener,
            timed_out=self._timed_out,
            retry_after=self.verdict.retry_after or 0.0,
        )

    def log_fields(self, result: TokenResult) -> dict[str, object]:
        """Return what the one log line of the request holds."""
        key, verdict, now = self._request.key, self.verdict, self._clock.now()
        return {
            "imds_identity": str(key.identity),
            "imds_resource": key.resource,
            "imds_outcome": "token" if result.error is None else type(result.error).__name__,
            "imds_attempts": self._attempts,
            "imds_throttled": self._throttled,
            "imds_milliseconds": round(1000 * (now - self._started)),
            "imds_expires_in": round(result.expires_at - now) if result.error is None else None,
            "imds_client_id": verdict.client_id,
            "imds_match": _MATCH[verdict.is_confirmed],
        }
