"""How long a connect attempt may take, and whether one succeeds."""

from __future__ import annotations

import socket
from contextlib import suppress
from urllib.parse import urlsplit

from .machine import is_plainly_not_azure

# What the IMDS team asks of SDKs (https://github.com/Azure/azure-sdk-for-net/issues/31452): it survives one lost SYN.
CONNECT_TIMEOUT = 3.0  # seconds
CONNECT_TIMEOUT_ELSEWHERE = 1.0  # seconds, on a machine that is plainly not Azure


def connect_timeout(*, seen: bool) -> float:
    """Return the seconds that a connect attempt may take.

    Args:
        seen: The endpoint answered as IMDS before.
    """
    return CONNECT_TIMEOUT if seen or not is_plainly_not_azure() else CONNECT_TIMEOUT_ELSEWHERE


def address_count(url: str) -> int:
    """Return how many addresses the host of a base URL has; 1 when it has none.

    They share the time of a connect attempt: sockets try one after the other, each with the whole timeout.
    """
    host, port = _host_and_port(url)
    if ":" in host or host.replace(".", "").isdigit():
        return 1  # an address
    # By position: what tests put in its place often takes no keywords. Whatever it raises, for example for an unknown
    # name, the attempt itself tells of.
    with suppress(Exception):
        return max(1, len(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)))
    return 1


def has_listener(url: str) -> bool:
    """Return whether something accepts a connection at a base URL. Nothing is sent.

    Tools that block the network in tests raise errors of their own, which say no more than those of a socket.
    """
    seconds = connect_timeout(seen=False) / address_count(url)
    with suppress(Exception), socket.create_connection(_host_and_port(url), seconds):
        return True
    return False


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
