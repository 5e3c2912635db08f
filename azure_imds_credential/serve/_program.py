"""serve as a program: a socket, a loop, and an end that leaves no request without its answer."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import TracebackType
from urllib.parse import urlsplit

from aiohttp import web
from typing_extensions import Self

from . import DEFAULT_PORT
from ._answers import NOT_HTTP
from ._connections import IDLE_SECONDS, MAX_CONNECTIONS, Connections, Http
from ._handler import Handler
from ._instance import Instance
from ._log import LibraryLog, Tell, teller
from ._metrics import Metrics
from ._peer import UNKNOWN_USER, is_supported
from ._requests import Hosts
from ._tokens import MAX_TOKENS, Tokens

IMDS = "http://169.254.169.254"
REPORT_SECONDS = 60.0
_GRACE = 5.0  # seconds that requests under way have to end, once serve is told to
_LAST_WRITES = 1.0  # seconds for answers to be taken; aiohttp waits twice as long, and systemd's unit 10 s in all
_BACKLOG = 256
# What a request to IMDS is made with. It takes 0.3 s to import, which the first client need not wait for. Answers from
# the shared cache need none of it, so it comes a little later.
_NEEDED_LATER = ("msal", "requests", "azure.core.pipeline.policies", "azure.core.pipeline.transport")
_LATER = 1.0  # seconds
_FIRST_DESCRIPTOR = 3  # https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html


@dataclass(frozen=True)
class ServeOptions:
    """What `azure-imds serve` is told.

    Attributes:
        host: IP address to listen on.
        port: Port to listen on; 0 takes a free one.
        endpoint: Base URL of IMDS. The environment has no say: the variable leads to serve itself.
        timeout: Seconds that a request waits for IMDS at most.
        shared_cache: Share tokens with the processes of this user, and with the next serve.
        user_only: Answer only processes of the user that serve runs as (Linux).
        others_can_ask: The user knows that an address other than loopback is within reach of other machines.
        allow_hosts: Names under which serve may be asked besides its address.
        as_json: Tell in lines of JSON.
        max_connections: How many connections may be open.
        idle_seconds: Seconds after which an idle connection is ended.
        max_tokens: How many tokens are held.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    endpoint: str = IMDS
    timeout: float = 30.0
    shared_cache: bool = False
    user_only: bool = False
    others_can_ask: bool = False
    allow_hosts: tuple[str, ...] = ()
    as_json: bool = False
    max_connections: int = MAX_CONNECTIONS
    idle_seconds: float = IDLE_SECONDS
    max_tokens: int = MAX_TOKENS


def run_serve(options: ServeOptions, write: Callable[[str], None]) -> None:
    """Run until Ctrl+C or SIGTERM; SIGHUP forgets the tokens.

    Args:
        options: What to do.
        write: Writes a line of standard output. The first is the variable that leads clients here.

    Raises:
        ValueError: An option has no usable value; the message names it.
        ImportError: `shared_cache` needs an extra that is not installed.
        OSError: The address cannot be listened on.
    """
    asyncio.run(_run(options, write))


async def _run(options: ServeOptions, write: Callable[[str], None]) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    tell = teller(write, as_json=options.as_json)
    async with Service(options, listening_socket(options), tell) as service:
        signals = {signal.SIGINT: ended.set, signal.SIGTERM: ended.set}
        if hasattr(signal, "SIGHUP"):
            signals[signal.SIGHUP] = service.forget
        for number, react in signals.items():
            try:
                loop.add_signal_handler(number, react)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_, react=react: loop.call_soon_threadsafe(react))
        service.announce(write)
        await ended.wait()
        tell("stopping", {})


class Service:
    """serve on one socket, while its `async with` block runs.

    Args:
        options: What to do.
        listener: The socket; it is closed at the end.
        tell: Writes a line for an event.
    """

    def __init__(self, options: ServeOptions, listener: socket.socket, tell: Tell) -> None:
        self._options, self._listener, self._tell = options, listener, tell
        self.metrics = Metrics()
        address, port = listener.getsockname()[:2]
        with _closed_on_error(listener):
            self._tokens = Tokens(
                options.endpoint,
                timeout=options.timeout,
                shared_cache=options.shared_cache,
                max_tokens=options.max_tokens,
            )
            check_addresses(options, address, port)
        self._instance = Instance(options.endpoint.rstrip("/"), tell)
        hosts = Hosts(port, options.allow_hosts)
        self._handler = Handler(self._tokens, self._instance, hosts, self.metrics)
        self.url = f"http://{_reachable(address)}:{port}"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._instance.__aenter__()
        quiet = logging.getLogger("azure_imds_credential.serve.http")  # what clients send is no event of ours
        quiet.propagate = False
        quiet.setLevel(logging.CRITICAL)
        # aiohttp itself limits the request line and each header to 8,190 bytes. Without lingering, a body that was
        # refused is not read.
        self._http = web.Server(self._handler)
        new_http = partial(
            Http,
            self._http,
            lambda: self._handler.refuse(NOT_HTTP),
            loop=self._loop,
            access_log=None,
            logger=quiet,
            keepalive_timeout=self._options.idle_seconds,
            lingering_time=0.0,
            auto_decompress=False,
        )
        self._connections = self._handler.connections = Connections(
            new_http,
            limit=self._options.max_connections,
            idle_seconds=self._options.idle_seconds,
            only_uid=os.getuid() if self._options.user_only else None,
        )
        self.metrics.gauges = {
            "tokens": lambda: self._tokens.count,
            "connections": lambda: len(self._connections),
            "waiting_requests": lambda: self._tokens.waiting,
        }
        self._log = LibraryLog(self._tell, self._count_upstream)
        library = logging.getLogger("azure_imds_credential")
        self._level_before = library.level
        library.addHandler(self._log)
        library.setLevel(logging.INFO)
        self._server = await self._loop.create_server(self._connections, sock=self._listener, backlog=_BACKLOG)
        self._background = [asyncio.ensure_future(each) for each in (self._report(), _import_what_is_needed_later())]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._background:
            task.cancel()
        self._server.close()
        self._http.pre_shutdown()
        await self._handler.end(_GRACE)
        await self._http.shutdown(_LAST_WRITES)
        self._connections.close()
        await self._instance.__aexit__(exc_type, exc, traceback)
        library = logging.getLogger("azure_imds_credential")
        library.removeHandler(self._log)
        library.setLevel(self._level_before)

    def _count_upstream(self, outcome: str, requests: int) -> None:
        """Count an exchange, from whatever thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.metrics.count_upstream, outcome, requests)

    def announce(self, write: Callable[[str], None]) -> None:
        """Write the variable that leads clients here, as `azure-imds emulate` does."""
        name, value = "AZURE_POD_IDENTITY_AUTHORITY_HOST", self.url
        write(f'{{"{name}": "{value}"}}' if self._options.as_json else f"{name}={value}")

    def forget(self) -> None:
        """Forget the tokens."""
        self._tell("forgot", {"tokens": self._tokens.count})
        self._tokens.forget()

    async def _report(self) -> None:
        """Tell once a minute what was served, if anything was."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.report()

    def report(self) -> None:
        """Tell what was served since the last report, if anything was."""
        since = self.metrics.since_last()
        if since.requests:
            statuses = {f"status_{status}": count for status, count in sorted(since.statuses.items())}
            facts = {"requests": since.requests, **statuses, "upstream": since.upstream, "tokens": self._tokens.count}
            self._tell("served", facts)


async def _import_what_is_needed_later() -> None:
    await asyncio.sleep(_LATER)
    for name in _NEEDED_LATER:
        await asyncio.to_thread(import_module, name)


def listening_socket(options: ServeOptions) -> socket.socket:
    """Return the socket that systemd handed over (socket activation), else a new one.

    Raises:
        OSError: The address cannot be listened on.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        handed_over = socket.socket(fileno=_FIRST_DESCRIPTOR)
        with _closed_on_error(handed_over):
            if handed_over.family not in (socket.AF_INET, socket.AF_INET6):
                raise ValueError("the socket unit must listen on TCP (ListenStream=127.0.0.1:8169)")
        return handed_over
    family = socket.AF_INET6 if ipaddress.ip_address(options.host).version == 6 else socket.AF_INET
    return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)


def check_addresses(options: ServeOptions, address: str, port: int) -> None:
    """Refuse options that would open more than the user said, or lead back here.

    Args:
        options: All of them; the endpoint is known to be a URL.
        address: IP address that serve listens on.
        port: Its port.

    Raises:
        ValueError: They do; the message says what to change.
    """
    listens_on = ipaddress.ip_address(address.partition("%")[0])
    if not listens_on.is_loopback and not options.others_can_ask:
        raise ValueError(
            f"--host {address} lets other machines, or other pods, ask for this machine's tokens; "
            "say --i-know-that-others-can-ask as well if that is meant"
        )
    if options.user_only and not is_supported():
        raise ValueError("--user-only needs /proc/net/tcp, which only Linux has")
    if options.user_only and os.getuid() == UNKNOWN_USER:
        raise ValueError(
            f"--user-only is of no use to the user {UNKNOWN_USER}: Linux shows every user that a container does not "
            "know as that one; run serve as another user"
        )
    upstream = urlsplit(options.endpoint)
    same = (upstream.hostname, upstream.port or 80) in ((address, port), ("localhost", port))
    if same and listens_on.is_loopback:
        raise ValueError(f"--endpoint {options.endpoint} is where serve itself listens; it must be the address of IMDS")


def _reachable(address: str) -> str:
    """Return an address by which this machine reaches what listens on it, as a URL has it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.is_unspecified:
        return "127.0.0.1" if parsed.version == 4 else "[::1]"
    return str(parsed) if parsed.version == 4 else f"[{parsed}]"


@contextmanager
def _closed_on_error(listener: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        listener.close()
        raise
