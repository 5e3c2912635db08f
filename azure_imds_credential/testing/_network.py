"""Nothing leaves this machine: a guard at the level of sockets, by parsed address."""

from __future__ import annotations

import gc
import ipaddress
import re
import site
import socket
import sys
import sysconfig
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# Windows has no sendmsg.
_CONNECTING = [name for name in ("connect", "connect_ex", "sendmsg", "sendto") if hasattr(socket.socket, name)]
_SENDING = ("send", "sendall")
_ASKING = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")
LOOPBACK_NAMES = frozenset({"", "localhost", "ip6-localhost", "ip6-loopback"})

# What a client asks of a proxy: RFC 9110 section 9.3.6, RFC 9112 section 3.2.2; RFC 1928 section 4 (a name, an IPv4
# address).
_HTTP_PROXY = re.compile(rb"(?:CONNECT |[A-Z]{3,10} https?://)(\[[^]\s]+\]|[^\s/:?#]+)[^\r\n]* HTTP/1\.[01]\r\n")
_SOCKS_NAME, _SOCKS_ADDRESS = b"\x05\x01\x00\x03", b"\x05\x01\x00\x01"


class LeftLoopbackError(BaseException):
    """Something tried to reach another machine.

    Not an Exception: a retry policy or an `except Exception` on the way up would otherwise turn a test that talks to
    the network into one that is merely slow.
    """


@contextmanager
def loopback_only() -> Iterator[list[str]]:
    """Refuse connections to other machines, and the look-up of their names, for the whole process.

    Addresses are parsed, not compared as text: `127.0.0.1.example.com` is no loopback address. A proxy on loopback is
    refused too, by the environment's variables and by what is asked of it, unless it listens in this process, as
    doubles of tests do. Unix sockets are left alone. What does not go through Python's `socket` module is not seen:
    child processes, gRPC, uvloop.

    Yields:
        What was refused so far, one line each, with the place in the program that asked for it.

    Raises:
        LeftLoopbackError: Where the connection was tried, in the thread that tried it.
    """
    guard = _Guard()
    with ExitStack() as patches:
        for names, of, replacement in (
            (_CONNECTING, socket.socket, guard.connecting),
            (_SENDING, socket.socket, guard.sending),
            (_ASKING, socket, guard.looking_up),
        ):
            for name in names:
                patches.enter_context(mock.patch.object(of, name, replacement(name, getattr(of, name))))
        yield guard.refused


class _Guard:
    """Functions that stand in for those of `socket`, and what they refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def _refuse(self, what: str) -> None:
        where = _caller()
        self.refused.append(f"{what} ({where})")
        raise LeftLoopbackError(f"{what} would leave this machine ({where})")

    def connecting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method of a socket that takes an address."""

        def call(connection: socket.socket, *args: Any) -> Any:
            if name == "sendmsg":  # its buffers may come from an iterator, as asyncio's do, which is good for one look
                args = ([*args[0]], *args[1:])
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                # The address is the last argument, but the fourth of sendmsg, where it may be left out.
                address: Any = args[-1] if name != "sendmsg" else args[3] if len(args) > 3 else None
                if address is None:
                    self._check_data(connection, b"".join(args[0]))
                else:
                    self._check_address(name, address)
            return original(connection, *args)

        return call

    def sending(self, _name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method of a socket that sends to the other end."""

        def call(connection: socket.socket, data: Any, *args: Any) -> Any:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                self._check_data(connection, data)
            return original(connection, data, *args)

        return call

    def looking_up(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that looks a name or an address up."""

        def call(host: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "gethostbyaddr" and host == socket.gethostname():
                raise socket.herror(f"{host} is not looked up")  # http.server asks so, and goes on without an answer
            asked = host[0] if name == "getnameinfo" else host
            if not _is_loopback(asked):
                self._refuse(f"a look-up of {asked!s}")
            return original(host, *args, **kwargs)

        return call

    def _check_address(self, name: str, address: Any) -> None:
        if not _is_loopback(address[0]):
            self._refuse(f"a connection to {address[0]}")
        if name.startswith("connect") and (proxy := _proxy_at(address[1])):
            self._refuse(f"a connection to the proxy {proxy}")

    def _check_data(self, connection: socket.socket, data: Any) -> None:
        if host := _asked_of_a_proxy(connection, data):
            self._refuse(f"a connection through a proxy to {host}")


def _is_loopback(host: object) -> bool:
    """Return whether a host is this machine.

    Wildcard addresses count: binding to them asks for no other machine, and dialling them reaches this one.
    """
    if host is None:
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name.lower().rstrip(".") in LOOPBACK_NAMES
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback or address.is_unspecified


def _proxy_at(port: int) -> str:
    """Return the proxy that the environment names on a loopback port; empty without one, or if it is ours."""
    for scheme, url in getproxies_environment().items():
        if scheme != "no":
            try:
                named = urlsplit(url if "://" in url else f"//{url}")
                found = named.port == port and _is_loopback(named.hostname) and not _listens_here(port)
            except ValueError:
                continue
            if found:
                return f"{named.hostname}:{port} of {scheme.upper()}_PROXY"
    return ""


def _asked_of_a_proxy(connection: socket.socket, data: Any) -> str:
    """Return the other machine that is asked of a proxy which is not of this process; empty if there is none."""
    start = bytes(memoryview(data)[:2048])
    host = ""
    if match := _HTTP_PROXY.match(start):
        host = match[1].decode("ascii", "replace").strip("[]")
    elif start.startswith(_SOCKS_NAME) and len(start) > 4 and len(start) == 7 + start[4]:
        host = start[5:-2].decode("ascii", "replace")
    elif start.startswith(_SOCKS_ADDRESS) and len(start) == 10:
        host = str(ipaddress.IPv4Address(start[4:8]))
    if not host or _is_loopback(host):
        return ""
    try:
        port = connection.getpeername()[1]
    except OSError:
        return ""
    return "" if _listens_here(port) else host


def _listens_here(port: int) -> bool:
    """Return whether a socket of this process listens on a port. Slow, for the rare case that a proxy is asked."""
    for each in gc.get_objects():
        if issubclass(type(each), socket.socket):
            try:
                if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and each.getsockname()[1] == port:
                    return True
            except (OSError, IndexError, TypeError):  # closed, or of another family
                continue
    return False


def _caller() -> str:
    """Return where in the program the network is asked for: the innermost frame that is of no library."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES) and not file.startswith("<"):
            through = f", through {library}" if library else ""
            return f"{_shown(file)}:{frame.f_lineno} in {frame.f_code.co_name}{through}"
        if not library and file.startswith(_INSTALLED) and not file.startswith(_HERE):
            library = _shown(file)
        frame = frame.f_back
    return f"thread {threading.current_thread().name}{f', through {library}' if library else ''}"


def _shown(file: str) -> str:
    for base in (*_INSTALLED, str(Path.cwd())):
        if file.startswith(f"{base}/"):
            return file[len(base) + 1 :]
    return file


_HERE = str(Path(__file__).parent.parent)
_INSTALLED = tuple({*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")})
# The standard library holds the folder of installed packages as a rule, and a virtual environment does not hold it.
_LIBRARIES = (_HERE, *_INSTALLED, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.base_prefix)
