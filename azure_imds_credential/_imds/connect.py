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


def has_listener(url: str) -> bool:
    """Return whether something accepts a connection at a base URL. Nothing is sent."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with suppress(OSError), socket.create_connection((parts.hostname, port), connect_timeout(seen=False)):
        return True
    return False
