"""Which user's process is at the other end of a loopback connection (Linux)."""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import suppress
from pathlib import Path

NOT_FOUND = -1
# Who owns what belongs to users that this user namespace has no number for: the default of kernel.overflowuid, which
# no distribution changes (https://docs.kernel.org/admin-guide/sysctl/fs.html).
UNKNOWN_USER = 65534
_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")  # there with systemd's ProcSubset=pid too


def peer_uid(peername: tuple[str, int], sockname: tuple[str, int], tables: tuple[str, ...] = _TABLES) -> int:
    """Return the user ID that owns the peer's socket; NOT_FOUND when no socket of a living process is found.

    A TCP socket does not tell it (SO_PEERCRED is for Unix sockets), but the kernel's tables list every socket of the
    machine with its owner: https://docs.kernel.org/networking/proc_net_tcp.html.

    Args:
        peername: Address and port of the client.
        sockname: Address and port that it connected to.
        tables: Files to read.
    """
    wanted = {(peer, local) for peer in _spellings(peername) for local in _spellings(sockname)}
    for table in tables:
        with suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                # Without an inode the process has let go of its socket, and its owner reads as 0, which is root.
                if (fields[1], fields[2]) in wanted and fields[9] != "0":
                    return int(fields[7])
    return NOT_FOUND


def _spellings(name: tuple[str, int]) -> tuple[str, ...]:
    """Return an address as the tables have it: words of 32 bits in the machine's byte order, in hexadecimal.

    A client's socket for IPv6 may be connected to an IPv4 address, as Java's are; the table for IPv6 then lists it.
    """
    address = ipaddress.ip_address(name[0].partition("%")[0])
    packed = [address.packed]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        packed.append(address.ipv4_mapped.packed)
    elif isinstance(address, ipaddress.IPv4Address):
        packed.append(ipaddress.IPv6Address(f"::ffff:{address}").packed)
    return tuple(f"{_words(each)}:{name[1]:04X}" for each in packed)


def _words(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def is_supported() -> bool:
    """Return whether this machine has the kernel's tables."""
    return sys.platform == "linux" and Path(_TABLES[0]).exists() and hasattr(socket, "AF_INET")
