"""One question to IMDS: msal words it, a pipeline carries it, `judge` reads the answer. The only importer of msal."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msal
from azure.core.pipeline.policies import HTTPPolicy
from azure.core.rest import HttpRequest

from . import exceptions as e
from ._answer import BODY_LIMIT, BROKE_OFF, SERVER, Reply, Silence, Verdict, judge
from ._endpoint import PER_SECOND, SECOND
from ._flight import Outcome
from ._hints import hint_for, this_machine_is_plainly_not_azure
from ._pipeline import TRANSPORT_ERRORS, build_pipeline, silence
from ._retry import Retry, last_chance, next_delay

if TYPE_CHECKING:
    from requests import Session

    from ._flight import Flight
    from ._freshness import Slot, World

# What IMDS's team asks of SDKs (https://github.com/Azure/azure-sdk-for-net/issues/31452): it survives one lost SYN.
CONNECT_SECONDS = 3.0
CONNECT_SECONDS_ELSEWHERE = 1.0  # on a machine that is plainly not Azure
READ_SECONDS = 20.0  # a real IMDS answers within one; while it asks Entra it may take some

_WORDS = msal.UserAssignedManagedIdentity  # its attributes spell the dict in which msal takes an identity
_MSAL_TYPES = {
    "system-assigned": _WORDS.SYSTEM_ASSIGNED,
    "client_id": _WORDS.CLIENT_ID,
    "object_id": _WORDS.OBJECT_ID,
    "resource_id": _WORDS.RESOURCE_ID,
}

# https://github.com/Azure/azure-rest-api-specs specification/imds/data-plane, 2023-07-01: "must be 'true'".
_BYPASS = "&bypass_cache=true"

_logger = logging.getLogger("azure_imds_credential")


def ask(slot: Slot, flight: Flight, options: Mapping[str, Any], world: World) -> Outcome:
    """Ask IMDS for a token, again and again as `_retry` says, until the flight's deadline.

    Args:
        slot: Whom to ask, for which identity and resource.
        flight: Is told the error of each failed attempt.
        options: The credential's pipeline options.
        world: Clocks, randomness and sleep.
    """
    conversation = _Conversation(slot, flight, options, world)
    identity = {
        _WORDS.ID_TYPE: _MSAL_TYPES[slot.identity.kind],
        _WORDS.ID: slot.identity.value,
    }
    client = msal.ManagedIdentityClient(identity, http_client=conversation, http_cache={})
    try:
        access_token = client.acquire_token_for_client(resource=slot.resource)["access_token"]
        outcome = Outcome(access_token, conversation.sent_at + conversation.verdict.life)
    except e.ImdsError as error:
        error.__traceback__ = error.__context__ = None  # frames hold answers, and answers hold tokens
        outcome = Outcome(
            error=error,
            absent=conversation.verdict.absent,
            out_of_time=conversation.out_of_time,
            retry_after=conversation.verdict.retry_after or 0.0,
        )
    facts = {
        "imds_identity": " ".join(filter(None, slot.identity)),
        "imds_resource": slot.resource,
        "imds_outcome": "token" if outcome.error is None else type(outcome.error).__name__,
        "imds_attempts": conversation.attempts,
        "imds_milliseconds": round(1000 * (world.clock() - conversation.started)),
        "imds_expires_in": round(outcome.expires_at - world.clock()) if outcome.error is None else None,
    }
    return outcome._replace(facts=facts)


class _Conversation(HTTPPolicy[Any, Any]):
    """The HTTP client given to msal, and the policy in the pipeline that repeats attempts.

    msal cannot judge an answer (it takes a token from a 500, drops `client_id`, logs odd bodies), so `send` does, and
    raises our errors through msal.
    """

    def __init__(self, slot: Slot, flight: Flight, options: Mapping[str, Any], world: World) -> None:
        self.slot, self.flight, self.options, self.world = slot, flight, options, world
        self.started = self.sent_at = world.clock()
        self.attempts = 0
        error = e.ImdsServiceError if slot.endpoint.gate.answered else e.ImdsUnavailableError
        self.verdict = Verdict(error, "nothing was sent")
        self.out_of_time = False
        self.session: Session | None = None  # our own

    def get(self, _url: str, *, params: Mapping[str, str], headers: Mapping[str, str]) -> SimpleNamespace:
        """Carry msal's request to our endpoint (msal reads the environment, where another thread may write).

        What msal gets to read is only ever a good answer, put in its terms.
        """
        if headers.get("Metadata") != "true" or "X-IDENTITY-HEADER" in headers:
            raise e.ImdsUnavailableError("The environment began to name another token source while IMDS was asked.")
        request = HttpRequest(
            "GET",
            f"{self.slot.endpoint.url}/metadata/identity/oauth2/token",
            params=params,
            headers={**headers, "Accept-Encoding": "identity"},  # so that its size is what it says
        )
        if self.flight.bypass:
            request.url += _BYPASS
        pipeline, self.session, per_request = build_pipeline(self, self.slot.endpoint.url, self.options)
        pipeline.run(request, **per_request)
        token = {"access_token": self.verdict.access_token, "expires_in": max(1, int(self.verdict.life))}
        return SimpleNamespace(status_code=200, headers={}, text=json.dumps(token))

    def close(self) -> None:
        """Do nothing: the connection ended with `get`. msal asks for the method."""

    def send(self, request: Any) -> Any:
        """Repeat the attempt until it brings a token, deserves no other, or the time is up."""
        world, deadline = self.world, self.flight.deadline
        troubles: dict[Retry, tuple[float, int]] = {}  # since when, and how many retries: a server may mix them
        limit = self.options.get("retry_total")
        while True:
            response = self._attempt(request)
            verdict, now = self.verdict, world.clock()
            if verdict.error is None:
                return response
            if verdict.status == 400 and request.http_request.url.endswith(_BYPASS):
                # The parameter is documented, its effect is not: an IMDS that refuses it still has a token.
                request.http_request.url = request.http_request.url.removesuffix(_BYPASS)
                continue
            since, done = troubles.get(verdict.retry, (now, 0))
            troubles[verdict.retry] = since, done + 1
            delay = None
            if limit is None or self.attempts <= limit:
                delay = next_delay(verdict.retry, done, now - since, verdict.retry_after, world.random)
            if delay is not None and verdict.retry_after is None:
                delay = last_chance(delay, deadline - now, world.random)
            error = self._error()
            self.flight.troubles.append(error)
            if delay is None:
                raise error
            if now + delay >= deadline:
                self.out_of_time = True
                raise error
            # Others need not wait for this wait, and a log handler that asks for a token neither.
            self.slot.endpoint.gate.leave(self.flight)
            _logger.info("asking IMDS again in %.1f s: %s", delay, verdict.came_back, extra={"imds_retry_delay": delay})
            world.sleep(delay)
            if not self.slot.endpoint.gate.enter(self.flight, world.clock):
                self.out_of_time = True
                raise error

    def _attempt(self, request: Any) -> Any:
        """Send once and judge what came back."""
        world, endpoint, options = self.world, self.slot.endpoint, self.options
        gate = endpoint.gate
        # IMDS takes 20 requests a second from a whole machine; a process that needs more tokens than that takes turns.
        while True:
            now = world.clock()
            with gate.pace:
                turn = max(now, gate.starts[0] + SECOND) if len(gate.starts) == PER_SECOND else now
                if turn == now < self.flight.deadline:
                    gate.starts.append(now)  # now, not sooner: who sleeps may be woken late
                    break
            if turn >= self.flight.deadline:  # a turn that nobody can use would be lost to those who have time
                self.out_of_time = True
                raise self._error()
            world.sleep(turn - now)
        self.attempts += 1
        self.sent_at = now
        left = max(0.001, self.flight.deadline - self.sent_at)
        connect = (
            CONNECT_SECONDS_ELSEWHERE if this_machine_is_plainly_not_azure() and not endpoint.seen else CONNECT_SECONDS
        )
        request.context.options.update(
            connection_timeout=min(connect, left, options.get("connection_timeout", connect)),
            read_timeout=min(READ_SECONDS, left, options.get("read_timeout", READ_SECONDS)),
        )
        response, body, fault = None, bytearray(), ""
        reply: Reply | Silence
        try:
            response = self.next.send(request)
            answer = response.http_response
            if str(answer.headers.get("Server", "")).startswith(SERVER):
                endpoint.seen = endpoint.gate.answered = True  # now: callers may leave before the body ends
            try:
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > BODY_LIMIT:
                        fault = f"more than {BODY_LIMIT} bytes"
                        break
                    if world.clock() >= self.flight.deadline:
                        fault = "still dripping when the time was up"
                        break
            except (*TRANSPORT_ERRORS, ValueError):  # azure-core trips over a Content-Length that is no number
                fault = BROKE_OFF
            finally:
                with suppress(*TRANSPORT_ERRORS):
                    answer.close()  # what was not read would keep the connection of a user's transport
            headers = {str(name).lower(): str(value) for name, value in answer.headers.items()}
            reply = Reply(answer.status_code, headers, None if fault else bytes(body), fault)
        except TRANSPORT_ERRORS as error:
            reply = silence(error)
        finally:
            if self.session is not None:
                self.session.close()  # a connection that brought a bad answer must not carry the next question
        self.verdict = judge(reply, self.slot.identity, self.slot.resource, seen=endpoint.seen, now=world.wall_clock())
        if self.verdict.is_imds:
            endpoint.seen = endpoint.gate.answered = True
        if self.verdict.error and world.clock() >= self.flight.deadline - 0.05:
            # The time ran out, so this says nothing of whether anybody is there.
            self.out_of_time = True
            self.verdict = self.verdict._replace(absent=False)
        return response

    def _error(self) -> e.ImdsError:
        """Build the error of the last attempt: what was asked of whom, what came back, what to do next."""
        verdict, slot = self.verdict, self.slot
        hint = hint_for(verdict, slot.identity)
        cls = verdict.error or e.ImdsServiceError
        error = cls(
            f"No token for {slot.resource}, asked of {slot.endpoint.url} as {slot.identity}: "
            f"{verdict.came_back}. {hint}",
            status=verdict.status,
            error_code=verdict.code,
            error_description=verdict.description,
            endpoint=slot.endpoint.url,
            identity=str(slot.identity),
            resource=slot.resource,
            attempts=self.attempts,
            elapsed=self.world.clock() - self.started,
            request_id=verdict.request_id,
            hint=hint,
        )
        error._came_back, error._excerpt = verdict.came_back, verdict.excerpt or ""
        return error
