"""Nothing leaves this machine: a guard at the level of sockets, by parsed address."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Windows has no sendmsg.
_SENDING = [name for name in ("connect", "connect_ex", "sendmsg", "sendto") if hasattr(socket.socket, name)]
_ASKING = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")
LOOPBACK_NAMES = frozenset({"", "localhost", "ip6-localhost", "ip6-loopback"})


class LeftLoopbackError(BaseException):
    """Something tried to reach another machine.

    Not an Exception: a retry policy or an `except Exception` on the way up would otherwise turn a test that talks to
    the network into one that is merely slow.
    """


@contextmanager
def loopback_only() -> Iterator[list[str]]:
    """Refuses connections to other machines, and the look-up of their names, for the whole process.

    Addresses are parsed, not compared as text: `127.0.0.1.example.com` is no loopback address. Unix sockets are left
    alone. What does not go through Python's `socket` module is not seen: child processes, gRPC, uvloop.

    Yields:
        What was refused so far, one line each, for those who want to know although the error got lost in a thread.

    Raises:
        LeftLoopbackError: Where the connection was tried, in the thread that tried it.
    """
    refused: list[str] = []

    def check(what: str, host: object) -> None:
        if not _is_loopback(host):
            refused.append(f"{what} {host!s}")
            raise LeftLoopbackError(f"{what} {host!s} would leave this machine")

    def connecting(name: str) -> Callable[..., Any]:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, *args: Any) -> Any:
            # The address is the last argument, but the fourth of sendmsg, where it may be left out.
            address = args[-1] if name != "sendmsg" else args[3] if len(args) > 3 else None
            if address is not None and self.family in (socket.AF_INET, socket.AF_INET6):
                check("a connection to", address[0])
            return original(self, *args)

        return call

    def looking_up(name: str) -> Callable[..., Any]:
        original = getattr(socket, name)

        def call(host: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "gethostbyaddr" and host == socket.gethostname():
                raise socket.herror(f"{host} is not looked up")  # http.server asks so, and goes on without an answer
            check("a look-up of", host[0] if name == "getnameinfo" else host)
            return original(host, *args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in _SENDING:
            patches.enter_context(mock.patch.object(socket.socket, name, connecting(name)))
        for name in _ASKING:
            patches.enter_context(mock.patch.object(socket, name, looking_up(name)))
        yield refused


def _is_loopback(host: object) -> bool:
    """Wildcard addresses count: binding to them asks for no other machine, and dialling them reaches this one."""
    if host is None:
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name.lower().rstrip(".") in LOOPBACK_NAMES
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback or address.is_unspecified
