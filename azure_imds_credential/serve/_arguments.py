"""The command line of `azure-imds serve`; imports neither aiohttp nor the credential."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import DEFAULT_PORT

if TYPE_CHECKING:
    from ._program import ServeOptions


def add_arguments(
    parser: argparse.ArgumentParser, *, address: Callable[[str], str], port: Callable[[str], int]
) -> None:
    """Add the options of serve to its parser.

    Args:
        parser: The parser.
        address: Reads an IP address.
        port: Reads a port.
    """
    parser.add_argument(
        "--host", type=address, default="127.0.0.1", help="IP address to listen on, or localhost (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=port,
        default=DEFAULT_PORT,
        help="port to listen on; 0 takes a free one (default: %(default)d)",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        default="http://169.254.169.254",
        help="base URL of IMDS (default: %(default)s, whatever AZURE_POD_IDENTITY_AUTHORITY_HOST says)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long a request waits for IMDS at most (default: %(default)g)",
    )
    parser.add_argument(
        "--shared-cache",
        action="store_true",
        help="share tokens with the processes of this user on this machine, and with the next serve",
    )
    who = parser.add_argument_group("who may ask")
    who.add_argument(
        "--user-only", action="store_true", help="answer only processes of the user that serve runs as (Linux)"
    )
    who.add_argument(
        "--allow-host",
        type=_host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="a name, or NAME:PORT, by which serve may be asked besides its address; repeatable",
    )
    who.add_argument(
        "--i-know-that-others-can-ask",
        action="store_true",
        help="listen on an address that is not loopback: whatever reaches it gets this machine's tokens",
    )


def _host_name(text: str) -> str:
    if not re.fullmatch(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a name such as imds.kube-system, or NAME:PORT, got {text!r}")
    return text


def options_from(arguments: argparse.Namespace) -> ServeOptions:
    """Return the options that a command line gives.

    Raises:
        ImportError: aiohttp is not installed.
    """
    from ._program import ServeOptions

    return ServeOptions(
        host=arguments.host,
        port=arguments.port,
        endpoint=arguments.endpoint,
        timeout=arguments.timeout,
        shared_cache=arguments.shared_cache,
        user_only=arguments.user_only,
        others_can_ask=arguments.i_know_that_others_can_ask,
        allow_hosts=tuple(arguments.allow_host),
        as_json=arguments.json,
    )
