"""Which user of this machine is at the other end of a connection. Linux, proc_net_tcp(5)."""

from __future__ import annotations

import ipaddress
import sys
from contextlib import suppress
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def socket_owner(local: tuple[str, int], remote: tuple[str, int], tables: tuple[str, ...] = TABLES) -> int | None:
    """Return the user ID of the socket with these two ends, or None when this network namespace has no such socket.

    Args:
        local: Address and port of the socket's own end, which is the peer of a server.
        remote: Address and port that it is connected to, those of the server.
        tables: Files to read.
    """
    wanted = [(_plain(ipaddress.ip_address(host.partition("%")[0])), port) for host, port in (local, remote)]
    for table in tables:
        with suppress(OSError):  # a machine without IPv6 has no tcp6
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                # Without an inode the process has let go of its socket, and its owner reads as 0, which is root.
                if [_end(fields[1]), _end(fields[2])] == wanted and fields[9] != "0":
                    return int(fields[7])
    return None


def _end(text: str) -> tuple[Address, int]:
    """Return the address and the port that `0100007F:1F90` stands for: words of 32 bits in this machine's order."""
    address, _, port = text.partition(":")
    raw = bytes.fromhex(address)
    words = (raw[start : start + 4] for start in range(0, len(raw), 4))
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return _plain(ipaddress.ip_address(packed)), int(port, 16)


def _plain(address: Address) -> Address:
    """Return ::ffff:127.0.0.1, as which a socket of IPv6 knows an address of IPv4, as that address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
