"""One question to IMDS: msal words it, a pipeline carries it, `judge` reads the answer. The only importer of msal."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msal
from azure.core.pipeline.policies import HTTPPolicy

from . import exceptions as e
from ._answer import Verdict, judge
from ._hints import hint_for, plainly_not_azure
from ._identity import Identity
from ._pipeline import (
    TRANSPORT_ERRORS,
    open_pipeline,
    read_reply,
    request_options,
    silence,
    token_request,
)
from ._retry import Retry, next_delay
from ._slot import Outcome

if TYPE_CHECKING:
    from ._endpoint import Endpoint

# What IMDS's team asks of SDKs (https://github.com/Azure/azure-sdk-for-net/issues/31452): it survives one lost SYN.
CONNECT_SECONDS = 3.0
CONNECT_SECONDS_ELSEWHERE = 1.0  # on a machine that is plainly not Azure
READ_SECONDS = 20.0  # a real IMDS answers within one; while it asks Entra it may take some

_logger = logging.getLogger("azure_imds_credential")


class Question(NamedTuple):
    """What is asked, of whom, and by when."""

    endpoint: Endpoint
    identity: Identity
    resource: str
    deadline: float  # of `clock`
    options: Mapping[str, Any]
    bypass_cache: bool
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    random: Callable[[], float]
    sleep: Callable[[float], None]


def ask(question: Question, progress: Callable[[e.ImdsError], None]) -> Outcome:
    """Ask IMDS for a token, again and again as `_retry` says, until the deadline.

    Args:
        question: What to ask.
        progress: Is told the error of each failed attempt, for callers whose time ends before the exchange does.
    """
    conversation = _Conversation(question, progress)
    client = msal.ManagedIdentityClient(_for_msal(question.identity), http_client=conversation, http_cache={})
    try:
        result = client.acquire_token_for_client(resource=question.resource)
    except e.ImdsError as error:
        error.__traceback__ = error.__context__ = None  # frames hold answers, and answers hold tokens
        outcome = Outcome(error=error, absent=conversation.verdict.absent, out_of_time=conversation.out_of_time)
    else:
        outcome = Outcome(result["access_token"], conversation.sent_at + conversation.verdict.life)
    conversation.log(outcome)
    return outcome


def _for_msal(identity: Identity) -> msal.SystemAssignedManagedIdentity | msal.UserAssignedManagedIdentity:
    if identity.value is None:
        return msal.SystemAssignedManagedIdentity()
    return msal.UserAssignedManagedIdentity(**{identity.kind: identity.value})


class _Answered:
    """The response that msal reads: only a good answer gets this far, so it holds nothing but what msal needs."""

    status_code = 200
    headers: Mapping[str, str] = {}

    def __init__(self, verdict: Verdict, resource: str) -> None:
        self.text = json.dumps(
            {
                "access_token": verdict.access_token,
                "expires_in": max(1, int(verdict.life)),  # msal takes 0 for a missing member
                "resource": resource,
                "token_type": "Bearer",
            }
        )


class _Conversation(HTTPPolicy[Any, Any]):
    """The HTTP client given to msal, and the policy in the pipeline that repeats attempts.

    msal cannot judge an answer (it takes a token from a 500, drops `client_id`, logs odd bodies), so `send` does, and
    raises our errors through msal.
    """

    def __init__(self, question: Question, progress: Callable[[e.ImdsError], None]) -> None:
        self.question = question
        self.progress = progress
        self.started = self.sent_at = question.clock()
        self.attempts = 0
        self.verdict = Verdict(e.ImdsServiceError, "nothing was sent")
        self.out_of_time = False

    def get(self, _url: str, *, params: Mapping[str, str], headers: Mapping[str, str]) -> _Answered:
        """Carry msal's request to our endpoint (msal reads the environment, where another thread may write)."""
        question = self.question
        if headers.get("Metadata") != "true" or "X-IDENTITY-HEADER" in headers:
            raise e.ImdsUnavailableError(
                "the environment began to name another token source while a token was asked for"
            )
        if question.bypass_cache:
            params = {**params, "bypass_cache": "true"}
        with open_pipeline(self, question.options) as pipeline:
            pipeline.run(
                token_request(question.endpoint.url, params, headers),
                **request_options(question.endpoint.url, question.options),
            )
        return _Answered(self.verdict, question.resource)

    def close(self) -> None:
        """Do nothing: the connection ended with `get`. msal asks for the method."""

    def send(self, request: Any) -> Any:
        """Repeat the attempt until it brings a token, deserves no other, or the time is up."""
        question = self.question
        trouble, troubled_since, done = Retry.NEVER, self.started, 0
        while True:
            response = self._attempt(request)
            verdict, now = self.verdict, question.clock()
            if verdict.error is None:
                return response
            if verdict.status == 400 and "bypass_cache=" in request.http_request.url:
                # The parameter is documented, its effect is not: an IMDS that refuses it still has a token.
                request.http_request.url = request.http_request.url.replace("&bypass_cache=true", "")
                continue
            if verdict.retry is not trouble:
                trouble, troubled_since, done = verdict.retry, now, 0
            limit = question.options.get("retry_total")
            delay = None
            if limit is None or self.attempts <= limit:
                delay = next_delay(trouble, done, now - troubled_since, verdict.retry_after, question.random)
            error = self._error()
            self.progress(error)
            if delay is None:
                raise error
            if now + delay >= question.deadline:
                self.out_of_time = True
                raise error
            done += 1
            _logger.info("asking IMDS again in %.1f s: %s", delay, verdict.came_back, extra={"imds_retry_delay": delay})
            question.sleep(delay)

    def _attempt(self, request: Any) -> Any:
        """Send once and judge what came back."""
        question, endpoint = self.question, self.question.endpoint
        response = None
        if not endpoint.gate.enter(self, question.deadline):
            self.out_of_time = True
            self.verdict = Verdict(e.ImdsServiceError, "five other requests of this process kept IMDS busy")
            raise self._error()
        try:
            self.attempts += 1
            self.sent_at = now = question.clock()
            left = max(0.001, question.deadline - now)
            connect, read = self._timeouts()
            request.context.options.update(connection_timeout=min(connect, left), read_timeout=min(read, left))
            response = self.next.send(request)
            reply: Any = read_reply(response.http_response, lambda: question.clock() >= question.deadline)
        except TRANSPORT_ERRORS as error:
            reply = silence(error)
        finally:
            endpoint.gate.leave(self)
        self.verdict = judge(reply, question.identity, question.resource, seen=endpoint.seen, now=question.wall_clock())
        if self.verdict.is_imds:
            endpoint.seen = True
        if self.verdict.error and question.clock() >= question.deadline - 0.05:
            # A wait that the deadline cut short is no sign of absence.
            self.out_of_time = True
            self.verdict = self.verdict._replace(absent=False)
        return response

    def _timeouts(self) -> tuple[float, float]:
        options = self.question.options
        usual = (
            CONNECT_SECONDS_ELSEWHERE if plainly_not_azure() and not self.question.endpoint.seen else CONNECT_SECONDS
        )
        connect = min(usual, options.get("connection_timeout", usual))
        return connect, min(READ_SECONDS, options.get("read_timeout", READ_SECONDS))

    def _error(self) -> e.ImdsError:
        """Build the error of the last attempt: what was asked of whom, what came back, what to do next."""
        verdict, question = self.verdict, self.question
        hint = hint_for(verdict, question.identity)
        cls = verdict.error or e.ImdsServiceError
        return cls(
            f"No token for {question.resource}, asked of {question.endpoint.url} as {question.identity}: "
            f"{verdict.came_back}. {hint}",
            status=verdict.status,
            error_code=verdict.code,
            error_description=verdict.description,
            endpoint=question.endpoint.url,
            identity=str(question.identity),
            resource=question.resource,
            attempts=self.attempts,
            elapsed=question.clock() - self.started,
            request_id=verdict.request_id,
            hint=hint,
        )

    def log(self, outcome: Outcome) -> None:
        """Write the one line of this exchange."""
        question = self.question
        facts = {
            "imds_identity": str(question.identity),
            "imds_resource": question.resource,
            "imds_outcome": "token" if outcome.error is None else type(outcome.error).__name__,
            "imds_attempts": self.attempts,
            "imds_milliseconds": round(1000 * (question.clock() - self.started)),
            "imds_expires_in": round(outcome.expires_at - question.clock()) if outcome.error is None else None,
        }
        _logger.info(
            "IMDS: identity=%(imds_identity)s resource=%(imds_resource)s outcome=%(imds_outcome)s "
            "attempts=%(imds_attempts)d milliseconds=%(imds_milliseconds)d expires_in=%(imds_expires_in)s",
            facts,
            extra=facts,
        )
