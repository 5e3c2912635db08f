"""Nothing leaves this machine: a guard at the level of sockets, by parsed address."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    alone.

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

    def connecting(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *args: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check("a connection to", args[-1][0])  # the address is the last argument of sendto, too
            return original(self, *args)

        return call

    def looking_up(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(host: Any, *args: Any, **kwargs: Any) -> Any:
            check("a look-up of", host)
            return original(host, *args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in ("connect", "connect_ex", "sendto"):
            patches.enter_context(mock.patch.object(socket.socket, name, connecting(getattr(socket.socket, name))))
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            patches.enter_context(mock.patch.object(socket, name, looking_up(getattr(socket, name))))
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
