"""Ways in which an answer can go wrong. Hand them to `ImdsEmulator.script` or `ImdsEmulator.random_faults`.

A fault is a function of the reply that would have been sent; it gives what happens on the wire instead, step by step:
bytes to send, seconds (or an Event) to wait, and how the connection ends. Your own generator function is as good.

    imds.script(faults.status(410), faults.throttled(retry_after=2), faults.ok)
    imds.script(faults.status(410), seconds=70)
"""

from __future__ import annotations

import gzip as _gzip
import json
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ._http import checks
from ._http.connection import End, Step, Steps
from ._http.messages import TEXT, THROTTLED, Reply, compact

__all__ = [
    "ENDLESS",
    "End",
    "Fault",
    "Reply",
    "Step",
    "Steps",
    "chunked",
    "docker_desktop_403",
    "drip",
    "endless",
    "endless_100_continue",
    "forwarded_by_proxy_agent",
    "gzipped",
    "hang",
    "hold",
    "html",
    "members",
    "nmi_no_identity",
    "ok",
    "redirect",
    "refused_by_proxy_agent",
    "reset",
    "slow",
    "status",
    "throttled",
    "wireserver",
    "workload_identity_refusal",
    "workload_identity_token",
    "wrong_length",
]

Fault = Callable[[Reply], Steps]

RESET_PAUSE = 0.05  # seconds between the last bytes and the RST, which may overtake them in the client's kernel


def describe(fault: Fault) -> str:
    """Return what the journal calls a fault."""
    return getattr(fault, "__name__", repr(fault))


def ok(reply: Reply) -> Steps:
    """No fault: the answer as it is. For a good answer in the middle of a script."""
    yield reply.encode()


def _replaced(name: str, change: Callable[[Reply], Reply], *, close: bool = False) -> Fault:
    def fault(reply: Reply) -> Steps:
        yield change(reply).encode()
        if close:
            yield End.CLOSE

    fault.__name__ = name
    return fault


def _as_bytes(body: str | bytes | Mapping[str, Any]) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else compact(body)


def _with_headers(reply: Reply, headers: Mapping[str, str | None]) -> Reply:
    for name, value in headers.items():
        reply = reply.with_header(name, value)
    return reply


def status(
    code: int,
    body: str | bytes | Mapping[str, Any] = b"",
    *,
    headers: Mapping[str, str | None] | None = None,
    retry_after: float | str | None = None,
    reason: str | None = None,
) -> Fault:
    """Any status with any body, still from a server that calls itself IMDS.

    Args:
        code: The status.
        body: Text, bytes, or a mapping that becomes compact JSON.
        headers: Headers to replace or add; None takes one out (`{"Server": None}`: not IMDS).
        retry_after: Value of a `Retry-After` header: seconds, or an HTTP date or whatever else as text.
        reason: Reason phrase; None for the usual one.
    """
    checks.whole("code", code, 100, 999)
    if retry_after is not None and not isinstance(retry_after, str):
        checks.seconds("retry_after", retry_after, most=checks.CENTURY)

    def change(reply: Reply) -> Reply:
        changed = Reply(code, b"", reply.headers, reason).with_body(_as_bytes(body))
        if isinstance(body, str):
            changed = changed.with_header("Content-Type", TEXT)
        if retry_after is not None:
            changed = changed.with_header("Retry-After", str(retry_after))
        return _with_headers(changed, headers or {})

    return _replaced(f"status {code}", change)


def throttled(retry_after: float | str | None = None) -> Fault:
    """429 in IMDS's own words. Real IMDS was never seen to send Retry-After with it."""
    return status(429, THROTTLED.body, retry_after=retry_after)


def html(code: int = 200, page: str = "<html><body>Sign in to the network</body></html>") -> Fault:
    """Return a page from something that is not IMDS: a captive portal, a proxy, another cloud."""
    return status(code, page.encode(), headers={"Content-Type": "text/html", "Server": None, "x-ms-request-id": None})


def docker_desktop_403(ending: str = "A socket operation was attempted to an unreachable network.") -> Fault:
    """Docker Desktop's proxy in front of no network: HTTP/1.0, the message as reason phrase (captured 2023-09-07).

    Args:
        ending: The last sentence, which is Windows' own and therefore localised.
    """
    where = "connecting to 169.254.169.254:80: "
    message = f"{where}{where}dial tcp 169.254.169.254:80: connectex: {ending}"
    reply = Reply(403, message.encode(), (("Connection", "close"),), message, "HTTP/1.0")
    return _replaced("docker_desktop_403", lambda _: reply, close=True)


def wireserver() -> Fault:
    """500 from the server that answers while IMDS restarts: no "IMDS/" in `Server`. Its body was never published."""
    headers = {"Server": "Microsoft-IIS/10.0", "x-ms-request-id": None}
    return status(500, "Internal Server Error", headers=headers)


def nmi_no_identity(pod: str = "default/app") -> Fault:
    """404 of the archived AAD Pod Identity for a pod without an identity (captured 2021-12-21; took 80 s to come)."""
    text = f"getting assigned identities for pod {pod} in CREATED state failed after 16 attempts, retry duration [5]s, "
    return status(404, f"{text}error: <nil>\n", headers={"Server": None, "x-ms-request-id": None})


# The guest agent of Metadata Security Protocol stands between a process and IMDS. Its refusals were recorded on
# 2026-11-26 from Azure/GuestProxyAgent 729e2a8; the header on what it forwards is from its source (proxy_server.rs).
PROXY_AGENT_HEADER = "x-ms-azure-host-authorization"


def refused_by_proxy_agent(code: int = 403) -> Fault:
    """Return the refusal of a process by Metadata Security Protocol: an empty answer without `Server`, and the end.

    Args:
        code: 403 for a process without permission, 421 for a connection that did not come through the agent.
    """
    if code not in (403, 421):
        raise ValueError(f"code must be 403 or 421, got {code!r}")

    def change(reply: Reply) -> Reply:
        return Reply(
            code, b"", (("content-length", "0"), ("connection", "close"), ("date", reply.header("Date") or ""))
        )

    return _replaced(f"refused_by_proxy_agent {code}", change, close=True)


def forwarded_by_proxy_agent(reply: Reply) -> Steps:
    """Return the answer of IMDS as the agent of Metadata Security Protocol passes it on: with a header of its own."""
    yield reply.with_header(PROXY_AGENT_HEADER, "value").encode()


# The proxy sidecar of workload identity, which stands in for IMDS in pods: Azure/azure-workload-identity 04d01a2,
# pkg/proxy/proxy.go, run on 2026-11-26. The number of the version is made up.
_WORKLOAD_IDENTITY = {"Server": "azure-workload-identity/proxy/v1.5.1 (linux/amd64)", "x-ms-request-id": None}


def workload_identity_token(*, older: bool = False) -> Fault:
    """Return the answer of workload identity's proxy: other types than those of IMDS, and no client ID.

    Args:
        older: As older releases sent it: `expires_in` is 0, and only `expires_on` says how long the token lasts.
    """

    def change(reply: Reply) -> Reply:
        told = json.loads(reply.body)
        document = {
            "access_token": told["access_token"],
            "refresh_token": "",
            "expires_in": 0 if older else int(told["expires_in"]),
            "expires_on": told["expires_on"],
            "not_before": 0,
            "resource": told["resource"],
            "token_type": "Bearer",
        }
        changed = reply.with_body(compact(document) + b"\n").with_header("Content-Type", "application/json")
        return _with_headers(changed, _WORKLOAD_IDENTITY)

    return _replaced("workload_identity_token", change)


def workload_identity_refusal(code: str = "AADSTS700016", words: str = "Application was not found.") -> Fault:
    """Return what workload identity's proxy makes of a refusal by Entra: 500, text, with Entra's own JSON in it.

    Args:
        code: Entra's code of the error.
        words: What Entra says after it.
    """
    described = json.dumps({"error": "unauthorized_client", "error_description": f"{code}: {words}"})
    return status(500, f"failed to acquire token: 400 Bad Request: {described}\n", headers=_WORKLOAD_IDENTITY)


def redirect(location: str, code: int = 307) -> Fault:
    """Return a redirect, which no client of IMDS may follow."""
    return status(code, headers={"Location": location})


def members(**changes: Any) -> Fault:
    """Return the answer with members of its JSON replaced, added, or (None) left out.

    `members(expires_in=3600, client_id=None)` sends a number and no client ID.
    """

    def change(reply: Reply) -> Reply:
        document = {**json.loads(reply.body), **changes}
        return reply.with_body(compact({k: v for k, v in document.items() if v is not None}))

    return _replaced("members " + ", ".join(changes), change)


def hang(_reply: Reply) -> Steps:
    """Silence until the client gives up."""
    yield math.inf


def slow(seconds: float) -> Fault:
    """Return the answer after some seconds of silence; `hang` is silence without end."""
    checks.seconds("seconds", seconds)

    def slow(reply: Reply) -> Steps:
        yield seconds
        yield reply.encode()

    return slow


def hold(until: threading.Event) -> Fault:
    """Return the answer, held back until the test sets the event."""

    def hold(reply: Reply) -> Steps:
        yield until
        yield reply.encode()

    return hold


def drip(interval: float = 0.05, *, headers: bool = False) -> Fault:
    """Return the answer a byte at a time: each byte comes within any read timeout, the whole never in time.

    Args:
        interval: Seconds between two bytes.
        headers: Drip from the first header on; otherwise the headers come at once and only the body drips.
    """
    checks.seconds("interval", interval)

    def drip(reply: Reply) -> Steps:
        whole = reply.encode()
        at_once = 0 if headers else len(reply.head())
        yield whole[:at_once]
        for position in range(at_once, len(whole)):
            yield interval
            yield whole[position : position + 1]

    return drip


def endless_100_continue(interval: float = 0.05) -> Fault:
    """`100 Continue` for ever, which keeps a naive client reading for ever."""
    checks.seconds("interval", interval)

    def endless_100_continue(_reply: Reply) -> Steps:
        while True:
            yield b"HTTP/1.1 100 Continue\r\n\r\n"
            yield interval

    return endless_100_continue


# What each endless answer begins with, and what comes again and again. None stands for the head of the reply itself.
_ENDLESS: dict[str, tuple[bytes | None, bytes]] = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 Early Hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "empty lines": (b"", b"\r\n"),
    "status line": (b"HTTP/1.1 200 ", b"O"),
    "header name": (b"HTTP/1.1 200 OK\r\n", b"X"),
    "header value": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Again: and again\r\n"),
    "folded header": (b"HTTP/1.1 200 OK\r\nX: x\r\n", b" x\r\n"),
    "interim headers": (b"HTTP/1.1 100 Continue\r\n", b"X-Again: and again\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b" "),
    "body without length": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" "),
    "body of an error": (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1000000000\r\n\r\n", b" "),
    "body of a redirect": (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 9999999\r\n\r\n", b" "),
    "body of the reply": (None, b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3b9aca00\r\n", b" "),
    "chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunk extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Again: and again\r\n"),
    "gzip header": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\3",
        b"n",  # of the name of the file, which ends with a zero byte: no byte of the body is ever decoded
    ),
    "gzip blocks": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\3",
        b"\0\0\0\xff\xff",  # a stored block of no bytes
    ),
}
ENDLESS = tuple(_ENDLESS)
"""The kinds of answers that `endless` can give."""


def endless(kind: str, interval: float = 0.05, *, times: int = 1) -> Fault:
    """Return an answer that never ends, though each part of it comes within any read timeout.

    Args:
        kind: One of `faults.ENDLESS`: the part of the answer that is repeated.
        interval: Seconds between two repetitions. 0: as fast as the client reads.
        times: How often the part comes at once. Many at once keep the client busy.
    """
    if kind not in _ENDLESS:
        raise ValueError(f"kind must be one of {', '.join(ENDLESS)}; got {kind!r}")
    checks.seconds("interval", interval)
    checks.whole("times", times, 1)
    beginning, again = _ENDLESS[kind]

    def endless(reply: Reply) -> Steps:
        if beginning is None:
            yield reply.with_header("Content-Length", "1000000000").encode()
        else:
            yield beginning
        while True:
            yield again * times
            yield interval

    endless.__name__ = f"endless {kind}"
    return endless


def reset(after: int = 0) -> Fault:
    """Reset the connection.

    Args:
        after: How many bytes of the answer come first. 0: none. Negative: all but so many.
    """
    checks.whole("after", after, least=None)

    def reset(reply: Reply) -> Steps:
        if after:
            yield reply.encode()[:after]
            yield RESET_PAUSE
        yield End.RESET

    return reset


def chunked(reply: Reply) -> Steps:
    """Return the answer in chunks, with no Content-Length."""
    yield reply.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked").head()
    for start in range(0, len(reply.body), 100):
        piece = reply.body[start : start + 100]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def gzipped(reply: Reply) -> Steps:
    """Return the answer compressed, whether the client takes that or not."""
    yield reply.with_body(_gzip.compress(reply.body)).with_header("Content-Encoding", "gzip").encode()


def wrong_length(more: int = 10) -> Fault:
    """Return the answer with a Content-Length that is not its length; the connection ends after what there is.

    Args:
        more: How many bytes the header promises beyond the body; negative for fewer.
    """
    checks.whole("more", more, least=None)
    return _replaced(
        "wrong_length", lambda r: r.with_header("Content-Length", str(max(0, len(r.body) + more))), close=True
    )
