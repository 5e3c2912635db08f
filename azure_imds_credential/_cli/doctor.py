"""Why is there no token? Looks at the machine and asks IMDS for one token, in three attempts at most.

It says of each thing that it finds what it means and what to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from .. import exceptions as e
from .._credential import ImdsCredential
from .._endpoint import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE
from .._imds.hints import several_identities
from .._imds.response import excerpt
from .._jwt import USER_ASSIGNED
from .._whoami import IdentityInfo
from ..serve import SERVE_HEADER
from .machine import Finding, Level, Place, Surroundings, other_source, signs
from .output import in_a_shell
from .text import Terminal, escaped, hanging

SKEW_SECONDS = 300  # from here on services refuse what a clock says; Entra and Kerberos both allow five minutes
OLD_TOKEN_SECONDS = 3600  # an older token may not show an hour-old change
_NOT_THE_USUAL_ADDRESS = (
    f"Look who listens there. It is not the address of IMDS, {DEFAULT_ENDPOINT}, which is asked when neither "
    f"--endpoint nor {ENDPOINT_VARIABLE} names another."
)
_STYLES: dict[Level, str] = {"ok": "good", "note": "warning", "problem": "bad"}
_RETRIES = 2  # enough to tell a passing fault from a standing one; a program has more


class Report(NamedTuple):
    """What `examine` found. There is an error exactly when the identity cannot be used."""

    findings: tuple[Finding, ...]
    identity: IdentityInfo | None = None
    error: e.ImdsError | None = None

    def text(self, terminal: Terminal) -> str:
        """Return the findings for people, what to do below each that is not as usual."""
        lines = []
        for finding in self.findings:
            told = hanging(f"{finding.level:8} {finding.check:12} ", escaped(finding.says), terminal.width)
            lines.append(told.replace(finding.level, terminal.paint(finding.level, _STYLES[finding.level]), 1))
            if finding.level != "ok":
                lines.append(hanging(f"{'':21} -> ", escaped(finding.next), terminal.width))
        verdict = (
            ("The identity can be used.", "good") if self.error is None else ("The identity cannot be used.", "bad")
        )
        lines.append(terminal.paint(*verdict))
        return "\n".join(lines)


@dataclass
class _Answers:
    """What the answers to one question looked like, noted by hooks of the pipeline."""

    wall_clock: Callable[[], float]
    statuses: list[int] = field(default_factory=list)
    server: str = ""
    between: str | None = None  # what stands between this program and IMDS
    skew: float | None = None  # seconds by which our clock is ahead
    seconds: float = 0.0  # that the last request took
    _sent: float = 0.0

    def note_request(self, _request: Any) -> None:
        self._sent = time.monotonic()

    def note(self, response: Any) -> None:
        self.seconds = time.monotonic() - self._sent
        headers = response.http_response.headers
        self.statuses.append(response.http_response.status_code)
        self.server = excerpt(headers.get("Server") or "")
        self.between = _between(headers, self.server)
        try:
            self.skew = self.wall_clock() - parsedate_to_datetime(headers.get("Date") or "").timestamp()
        except (TypeError, ValueError, OverflowError, IndexError):
            self.skew = None


def examine(
    scope: str,
    *,
    around: Surroundings | None = None,
    **asked: Any,
) -> Report:
    """Examine a machine.

    Args:
        scope: What to ask a token for.
        around: What the machine shows; by default this one is looked at.
        **asked: `client_id`, `object_id`, `resource_id`, `require_system_assigned`, `endpoint` and `timeout`, as for
            `ImdsCredential`.
    """
    around = around or Surroundings(os.environ)
    findings = list(signs(around, asked.get("endpoint")))
    if (other := other_source(around)) is not None:
        return Report(tuple(findings), error=e.ImdsUnavailableError(other.says, hint=other.next))
    answers = _Answers(around.wall_clock)
    identity, error = None, None
    try:
        # With a hook the credential has a cache of its own: IMDS is asked, whatever this process holds.
        credential = ImdsCredential(
            **asked, retry_total=_RETRIES, raw_request_hook=answers.note_request, raw_response_hook=answers.note
        )
        identity = credential.whoami(scope)
    except e.ImdsError as raised:
        error = raised
    findings += [_reachable(answers, error, around), *_way(answers), *_clock(answers), *_calm(answers, error)]
    if error is not None and not isinstance(error, e.ImdsUnavailableError):
        findings.append(_unusable(error, heard=bool(answers.statuses)))
    if identity is not None:
        named = any(asked.get(name) for name in ("client_id", "object_id", "resource_id"))
        findings += [*_usable(identity, named=named), _cost(answers), _age(identity, around.wall_clock())]
    return Report(tuple(findings), identity, error)


def _reachable(answers: _Answers, error: e.ImdsError | None, around: Surroundings) -> Finding:
    if not isinstance(error, e.ImdsUnavailableError):
        if not answers.statuses and error is not None:
            return Finding(
                "reachable", "problem", f"No answer: {error._reason}.", in_a_shell(error.hint or "Try again later.")
            )
        who = f"its Server header says {answers.server}" if answers.server else "without a Server header"
        return Finding("reachable", "ok", f"IMDS answers, {who}.")
    if error.attempts == 0:  # the environment has changed since it was looked at
        return Finding("reachable", "problem", f"IMDS was not asked: {error._reason}.", error.hint or "Try again.")
    if not answers.statuses:
        way = _way_to(around) if error.endpoint == DEFAULT_ENDPOINT else _NOT_THE_USUAL_ADDRESS
        return Finding("reachable", "problem", f"Nothing answers: {error._reason}.", way)
    shown = f"{error._reason}, Server: {answers.server or 'none'}"
    said = error._excerpt
    if error.status == 403 and "169.254.169.254" in said:
        return Finding(
            "reachable",
            "problem",
            f"Docker Desktop answers in place of IMDS ({shown}): {said}",
            "There is no IMDS here. Run `azure-imds emulate`, or use a credential for developers.",
        )
    if answers.server.startswith("Microsoft-IIS"):
        return Finding(
            "reachable",
            "problem",
            f"The host's WireServer answers ({shown}), as it does while IMDS restarts.",
            "Try again in a minute; `azure-imds wait` does that.",
        )
    return Finding(
        "reachable",
        "problem",
        f"Something that is not IMDS answers: a proxy, a portal, another cloud ({shown}). It said: {said or 'nothing'}",
        "Find out what has that address: `ip route get 169.254.169.254`. Off Azure use another credential."
        if error.endpoint == DEFAULT_ENDPOINT
        else _NOT_THE_USUAL_ADDRESS,
    )


def _between(headers: Mapping[str, str], server: str) -> str | None:
    """Return what an answer shows of a program that passed it on; None if nothing."""
    if SERVE_HEADER in headers:
        return f"`azure-imds serve` {excerpt(headers[SERVE_HEADER])}"
    # The Guest Proxy Agent adds this header to what it forwards (Azure/GuestProxyAgent, proxy_server.rs).
    if "x-ms-azure-host-authorization" in headers:
        return "the Guest Proxy Agent of Metadata Security Protocol"
    # https://github.com/Azure/azure-workload-identity/tree/main/pkg/proxy
    if server.startswith("azure-workload-identity/proxy"):
        return f"the proxy sidecar of workload identity ({server})"
    if server.lower().startswith("floci"):
        return f"an emulator of Azure ({server})"
    if server and not server.startswith(("IMDS/", "Microsoft-IIS")):
        return f"a program that calls itself {server}"
    return None


def _way(answers: _Answers) -> Iterator[Finding]:
    """Yield what stands between the machine and IMDS."""
    if answers.between is None:
        return
    yield Finding(
        "in between",
        "note",
        f"The answer came by way of {answers.between}.",
        "Nothing if it is meant to be there. Its own log tells more of what it asked IMDS.",
    )


def _cost(answers: _Answers) -> Finding:
    return Finding(
        "cost",
        "ok",
        f"The request for the token took {answers.seconds * 1000:.0f} ms. A process pays that once per token, not per "
        "call.",
    )


def _way_to(around: Surroundings) -> str:
    """Return where to look for what keeps IMDS away, which depends on the machine."""
    return {
        Place.POD: "A network policy or AKS's IMDS restriction blocks pods. Use "
        "azure.identity.WorkloadIdentityCredential, or allow egress to 169.254.169.254/32.",
        Place.DOCKER_DESKTOP: "Docker Desktop has no IMDS: run `azure-imds emulate` on the host.",
        Place.WSL: "WSL has no IMDS: run `azure-imds emulate`, or use azure.identity.AzureCliCredential.",
        Place.CONTAINER: "Try from the host: if IMDS answers there, the container's network blocks 169.254.169.254.",
        Place.AZURE_VM: "Look for a firewall rule (`iptables -S OUTPUT`), a VPN that took the route "
        "(`ip route get 169.254.169.254`), or DHCP switched off on the primary network interface.",
        Place.ELSEWHERE: "This is not Azure: use another credential, or `azure-imds emulate` to develop.",
        Place.UNKNOWN: "If this is an Azure VM look for a firewall rule or a VPN; elsewhere use another credential.",
    }[around.place()]


def _clock(answers: _Answers) -> Iterator[Finding]:
    if answers.skew is None:
        return
    if abs(answers.skew) < SKEW_SECONDS:
        yield Finding("clock", "ok", f"Within {abs(answers.skew) + 1:.0f} s of the host's.")
        return
    direction = "ahead of" if answers.skew > 0 else "behind"
    yield Finding(
        "clock",
        "note",
        f"This machine's clock is {abs(answers.skew):.0f} s {direction} the host's. Tokens are held for the right time "
        "nevertheless; TLS, logs and libraries that compare expiries will err.",
        "Set the clock: `timedatectl status`, `chronyc tracking`.",
    )


def _calm(answers: _Answers, error: e.ImdsError | None) -> Iterator[Finding]:
    """Yield what went wrong on the way to an answer."""
    refused = answers.statuses.count(429)
    if refused:
        yield Finding(
            "throttling",
            "problem" if isinstance(error, e.ImdsThrottledError) else "note",
            f"{refused} of {len(answers.statuses)} requests got 429: some program asks more than 20 times a second, or "
            "more than 5 at once.",
            "Find out which (`ss -tnp dst 169.254.169.254`), and share tokens: one cache per process, shared_cache=True"
            " between processes.",
        )
    elif error is None:
        yield Finding("throttling", "ok", "No 429.")
    hiccups = [status for status in answers.statuses if status not in (200, 400, 429)]
    if hiccups and error is None:
        yield Finding(
            "health",
            "note",
            f"IMDS answered {', '.join(map(str, hiccups))} before it gave a token: it is being updated, or fails.",
            "Nothing, unless it lasts: this package repeats such requests.",
        )


def _unusable(error: e.ImdsError, *, heard: bool) -> Finding:
    meaning = {
        e.IdentityUnavailableError: "IMDS has no identity for this request",
        e.IdentityMismatchError: "IMDS answered for another identity or resource",
        e.ImdsRequestError: "IMDS or Entra refused the request itself",
        e.ImdsThrottledError: "IMDS gets too many requests",
        e.ImdsServiceError: "IMDS is here, but fails" if heard else "There is no token",
    }[type(error)]
    several = isinstance(error, e.IdentityUnavailableError) and several_identities(error.error_description or "")
    return Finding(
        "identities" if several else "identity",
        "problem",
        f"{meaning}: {error._reason}.",
        in_a_shell(error.hint or "Try again later."),
    )


def _usable(identity: IdentityInfo, *, named: bool) -> Iterator[Finding]:
    yield Finding(
        "identity",
        "ok",
        f"A token for {identity.audience} speaks for client ID {identity.client_id}, object ID {identity.object_id}.",
    )
    if not named and USER_ASSIGNED in (identity.resource_id or "").casefold():
        yield Finding(
            "identities",
            "note",
            f"None was named, and IMDS gave the only user-assigned one, {identity.resource_id}. As soon as the machine "
            "gets a second one, or one of its own, that answer changes.",
            f"Name it: --client-id {identity.client_id}.",
        )


def _age(identity: IdentityInfo, now: float) -> Finding:
    if identity.issued_on is None or identity.expires_on is None:
        return Finding("token age", "note", "The token does not say when it was issued.", "Nothing: tokens are opaque.")
    hours = (now - identity.issued_on) / 3600
    if hours * 3600 < OLD_TOKEN_SECONDS:
        return Finding("token age", "ok", f"Issued {hours * 60:.0f} min ago.")
    # https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/managed-identities-faq says so.
    return Finding(
        "token age",
        "note",
        f"Issued {hours:.1f} h ago: IMDS may hand out the same token until it ends, in "
        f"{(identity.expires_on - now) / 3600:.1f} h. It knows no group or app role that was given since.",
        "For a new group or app role wait for the next token. A role assignment (Azure RBAC) is looked up by the "
        "service: it acts within minutes, with the token as it is.",
    )
