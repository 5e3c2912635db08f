"""The developer's own `az login` in the form of IMDS, for containers that cannot see it. Real tokens: off unless asked.

Every rule here keeps one party out: web pages (Metadata header, Origin), names that were rebound to this machine
(Host), what a proxy passes on (X-Forwarded-For), other machines (loopback, or the network of one bridge).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from ..._endpoint import TOKEN_PATH
from .._emulator.journal import Journal, Request
from .._emulator.profiles import PROFILES
from .._emulator.token_endpoint import WRONG_METHOD, WRONG_PATH, header_fault, query_fault
from .._http.connection import Steps
from .._http.messages import THROTTLED, Answer, Received, Reply, identity_error
from .._http.server import Server, address
from .local_users import socket_owner
from .login import in_imds_form, token_of_the_cli

# The name under which Docker Desktop's containers reach this machine. `internal` is a reserved domain.
DOCKER_NAME = "host.docker.internal"
# On Windows az is a batch file, whose arguments the command interpreter reads: nothing that means anything to it.
HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:/@+-]*")

MAX_AZ = 4  # runs of az at once, each a Python of its own
MAX_PENDING = 64  # resources that wait for az or are asked for; more are told to come again later
KEPT = 1000  # requests that are remembered

FOREIGN_HOST = identity_error(403, "The Host header names another machine", "forbidden")
FOREIGN_PEER = identity_error(403, "The request comes from another machine", "forbidden")
FOREIGN_USER = identity_error(403, "Another user of this machine asks, or one unknown: see --any-user", "forbidden")
FROM_A_PAGE = identity_error(403, "The Origin header says that a web page asks", "forbidden")
BAD_RESOURCE = identity_error(400, "The resource is no App ID URI or GUID", "invalid_resource")


class RealTokensWarning(UserWarning):
    """Tokens of a person are handed out."""


def bridge_network(name: str) -> ipaddress.IPv4Interface:
    """Return the address and network of a bridge of this machine, such as docker0. Linux only.

    Raises:
        ValueError: There is no such interface, it is no bridge, or it has no address.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError("bridges are known on Linux only; Docker Desktop's containers reach loopback, so name none")
    if not re.fullmatch(r"[\w.-]{1,15}", name) or not Path(f"/sys/class/net/{name}/bridge").is_dir():
        raise ValueError(f"{name!r} is no bridge of this machine")
    import fcntl

    ask = struct.pack("256s", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            # SIOCGIFADDR and SIOCGIFNETMASK, netdevice(7): the address stands at byte 20 of the answer.
            address, mask = (
                socket.inet_ntoa(fcntl.ioctl(any_socket, request, ask)[20:24]) for request in (0x8915, 0x891B)
            )
        except OSError:
            raise ValueError(f"the bridge {name!r} has no IPv4 address") from None
    return ipaddress.IPv4Interface(f"{address}/{mask}")


@dataclass
class _PendingToken:
    """One call of the CLI, shared by all requests for its resource that come meanwhile."""

    done: threading.Event
    given: dict[str, Any] | None = None
    refusal: str = ""


class AzureCliEmulator:
    """Answers token requests with tokens of the developer who is logged in to the Azure CLI.

    For trying programs in containers of this machine, which cannot see the login. Selectors are taken: the developer
    stands in for the identity, and the answer's `client_id` is the one that was asked for.

    Args:
        host: Loopback address to listen on, or localhost, which is 127.0.0.1.
        port: Port to listen on; 0 takes a free one.
        bridge: Listen on the address of this bridge instead (Linux), for containers of that network alone.
        any_user: Answer processes of other users of this machine too, which Linux can tell apart; root is always
            answered.
        fetch: Gives the CLI's answer for a resource.
        clock: Gives epoch seconds; `time.time` by default.

    Raises:
        ValueError: The address is not loopback, or the bridge does not exist.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        bridge: str | None = None,
        any_user: bool = False,
        fetch: Callable[[str], dict[str, Any]] = token_of_the_cli,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._peers: ipaddress.IPv4Network | None = None
        self._host, self._port = address(host, port)
        if bridge is not None:
            interface = bridge_network(bridge)
            self._host, self._peers = str(interface.ip), interface.network
        elif not ipaddress.ip_address(self._host).is_loopback:
            raise ValueError(f"{host} is not a loopback address: tokens of a person are for this machine, or a bridge")
        self._fetch, self._clock, self._any_user = fetch, clock, any_user
        self._pending: dict[str, _PendingToken] = {}
        self._turns = threading.Semaphore(MAX_AZ)
        self._journal = Journal(KEPT)
        self._server: Server | None = None

    @property
    def endpoint(self) -> str:
        """Base URL, for AZURE_POD_IDENTITY_AUTHORITY_HOST in the container."""
        if self._server is None:
            raise RuntimeError("not running: use it in a `with` block")
        return self._server.url

    @property
    def requests(self) -> list[Request]:
        """Every request so far, refused ones included: who asked for tokens of the developer."""
        return self._journal.all()

    def __enter__(self) -> AzureCliEmulator:
        warnings.warn(
            f"REAL access tokens of the user of the Azure CLI are handed out on {self._host}, to {self._served()}",
            RealTokensWarning,
            stacklevel=2,
        )
        self._server = Server(self._host, self._port, self._respond, self._refuse)
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _served(self) -> str:
        if self._any_user or not sys.platform.startswith("linux"):
            return "every process that can reach it"
        return "your processes and root's" + (f", and to containers of {self._peers}" if self._peers else "")

    def _now(self) -> float:
        return (self._clock or time.time)()

    def _note(self, request: Received, answered: str) -> None:
        self._journal.add(Request(**vars(request), time=self._now(), answered=answered))

    def _refuse(self, request: Received) -> Reply | None:
        """Judge who asks, by the head of the request alone: the body of a stranger's request is not read."""
        refusal = self._stranger(request)
        if refusal is None:
            return None
        self._note(request, str(refusal.status))
        return refusal.reply(self._now())

    def _respond(self, request: Received) -> Steps:
        refusal = self._refusal(request) or self._too_many(request)
        self._note(request, "az" if refusal is None else str(refusal.status))
        if refusal is not None:
            yield refusal.reply(self._now()).encode()
            return
        resource = request.param("resource") or ""
        pending = self._pending.get(resource)
        if pending is None:
            pending = self._pending[resource] = _PendingToken(threading.Event())
            threading.Thread(target=self._fetch_pending, args=(pending, resource), name="az", daemon=True).start()
        yield pending.done
        now = self._now()
        if pending.given is None:
            answer = identity_error(400, pending.refusal)
        else:
            answer = Answer(200, in_imds_form(pending.given, resource, request.param("client_id"), now))
        yield answer.reply(now).encode()

    def _fetch_pending(self, pending: _PendingToken, resource: str) -> None:
        """Run the CLI when it is this resource's turn.

        Nothing is kept: az has its own cache, and a logout is to count at once.
        """
        try:
            with self._turns:
                pending.given = self._fetch(resource)
        except Exception as error:
            pending.refusal = str(error)
        finally:
            self._pending.pop(resource, None)
            pending.done.set()

    def _stranger(self, request: Received) -> Answer | None:
        if not self._is_ours(request.peer):
            return FOREIGN_PEER
        if not self._any_user and not self._is_our_user(request):
            return FOREIGN_USER
        if not self._names_us(request.header("Host")):
            return FOREIGN_HOST
        return None if request.header("Origin") is None else FROM_A_PAGE

    def _refusal(self, request: Received) -> Answer | None:
        if request.path != TOKEN_PATH:
            return WRONG_PATH
        if request.method != "GET":
            return WRONG_METHOD
        if (fault := header_fault(request) or query_fault(request, PROFILES["vm"])) is not None:
            return fault
        return None if HARMLESS.fullmatch(request.param("resource") or "") else BAD_RESOURCE

    def _too_many(self, request: Received) -> Answer | None:
        is_new = request.param("resource") not in self._pending
        return THROTTLED if is_new and len(self._pending) >= MAX_PENDING else None

    def _is_our_user(self, request: Received) -> bool:
        """Return whether the process that asks may: it runs as this user or as root, or is in a container."""
        if not sys.platform.startswith("linux"):
            return True
        assert self._server is not None
        owner = socket_owner((request.peer, request.peer_port), (self._host, self._server.port))
        if owner is None:  # of another network namespace, or gone
            return self._peers is not None
        return owner in (0, os.geteuid())

    def _is_ours(self, peer: str) -> bool:
        address = ipaddress.ip_address(peer.partition("%")[0])
        return address.is_loopback if self._peers is None else address in self._peers

    def _names_us(self, host: str | None) -> bool:
        """Return whether a Host header is our address or one of our names, with our port or none."""
        try:
            named = urlsplit(f"//{host or ''}")
            port = named.port
        except ValueError:
            return False
        names = {self._host, DOCKER_NAME, *({"localhost"} if self._peers is None else ())}
        return named.hostname in names and port in (None, urlsplit(self.endpoint).port) and "@" not in named.netloc
