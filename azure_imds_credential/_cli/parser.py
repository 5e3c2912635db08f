"""The options and arguments of every command."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable
from typing import NoReturn

from .. import __version__
from ..serve._arguments import add_arguments as add_serve_arguments
from . import commands as c
from .output import (
    EXIT_CODES,
    FOUND,
    INTERRUPTED,
    OUTPUT,
    USAGE,
    VAULT,
    CommandError,
    Result,
    show,
)

_EPILOG = f"""\
exit codes:
  0    done; for doctor: the identity can be used
  {FOUND}    scan found something that looks live, or that it cannot read
  {USAGE}    wrong arguments, or an extra is not installed
{"".join(f"  {code}    {cls.__name__}" + chr(10) for cls, code in EXIT_CODES.items())}\
  {VAULT}    the vault refused or cannot be reached
  {OUTPUT}   standard output cannot be written
  {INTERRUPTED}  interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, so that `main` says it in the form that was asked for."""
        raise CommandError(f"{message}\n{self.format_usage().strip()}")

    def _print_message(self, message: str, _file: object = None) -> None:
        """Print help and version as any other result; some Pythons pass over an error here, others die of it."""
        show(message.removesuffix("\n"))


def make_parser() -> _Parser:
    parser = _Parser(
        prog="azure-imds",
        description="Azure managed identity tokens from the Instance Metadata Service (IMDS).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], Result], summary: str, *parents: _Parser) -> _Parser:
        name = run.__name__
        added = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=parents, allow_abbrev=False
        )
        added.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        added.set_defaults(run=run)
        return added

    token = command(c.token, "get a token and show its expiry and claims", _asking(90))
    token.add_argument("scope", metavar="SCOPE", help="for example https://vault.azure.net/.default")
    token.add_argument("--show-token", action="store_true", help="show the token too; whoever sees it can use it")
    _add_shared_cache(token)
    token.add_argument("--force-refresh", action="store_true", help="ask IMDS to bypass its own cache; it may not")

    whoami = command(c.whoami, "say which identity the tokens of this machine speak for", _asking(90))
    _add_scope(whoami)
    _add_shared_cache(whoami)

    wait = command(c.wait, "wait until the identity can be used, for init containers and systemd units", _asking(300))
    _add_scope(wait)

    doctor = command(c.doctor, "find out why there is no token, or what is unusual where there is one", _asking(30))
    _add_scope(doctor)

    secret = command(c.secret, "read a secret from a Key Vault", _asking(90))
    secret.add_argument("vault_url", metavar="VAULT_URL", help="for example https://myvault.vault.azure.net")
    secret.add_argument("name", metavar="NAME", help="name of the secret")
    _add_shared_cache(secret)

    _add_emulate(command(c.emulate, "run an IMDS emulator until it is interrupted"))

    add_serve_arguments(
        command(c.serve, "answer every program's token requests on this machine from one cache"),
        address=_address,
        port=_port,
    )

    scan = command(c.scan, "look for live-looking tokens and secrets in recordings")
    scan.add_argument("paths", metavar="PATH", nargs="+", help="a recording, or a folder of them")

    command(c.forget, "empty the token cache that processes of this user share on this machine")
    return parser


def _add_scope(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scope",
        default="https://management.azure.com/.default",
        help="what to get a token for (default: %(default)s)",
    )


def _add_shared_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shared-cache", action="store_true", help="share tokens between the processes of this user on this machine"
    )


def _asking(timeout: float) -> _Parser:
    """The options of every command that asks IMDS."""
    parent = _Parser(add_help=False)
    parent.add_argument(
        "--endpoint",
        metavar="URL",
        help="base URL of IMDS (default: AZURE_POD_IDENTITY_AUTHORITY_HOST, else http://169.254.169.254)",
    )
    which = parent.add_argument_group("identity", "at most one; with none IMDS chooses")
    which.add_argument("--client-id", metavar="GUID", help="client ID of a user-assigned identity")
    which.add_argument("--object-id", metavar="GUID", help="object (principal) ID of a user-assigned identity")
    which.add_argument("--resource-id", metavar="ARM_ID", help="ARM ID of a user-assigned identity")
    parent.add_argument(
        "--timeout", type=float, default=timeout, metavar="SECONDS", help="when to give up (default: %(default)g)"
    )
    return parent


def _address(text: str) -> str:
    try:
        return "127.0.0.1" if text == "localhost" else str(ipaddress.ip_address(text))  # no name is looked up
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be an IP address such as 127.0.0.1, or localhost, got {text!r}"
        ) from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)


def _add_emulate(emulate: argparse.ArgumentParser) -> None:
    emulate.add_argument(
        "--host",
        type=_address,
        default="127.0.0.1",
        help="IP address to listen on, or localhost (default: %(default)s)",
    )
    emulate.add_argument("--port", type=_port, default=0, help="port to listen on; 0 takes a free one (default: 0)")
    emulate.add_argument("--profile", choices=("vm", "vmss", "aci", "aks"), default="vm", help="kind of machine")
    emulate.add_argument("--no-identity", action="store_true", help="a machine without any identity")
    emulate.add_argument("--system-assigned", action="store_true", help="a system-assigned identity")
    emulate.add_argument(
        "--user-assigned", action="append", default=[], metavar="NAME", help="a user-assigned identity; repeatable"
    )
    emulate.add_argument("--throttle", action="store_true", help="answer 429 beyond 20 requests a second and 5 at once")
    emulate.add_argument(
        "--from",
        dest="source",
        choices=("azure-cli",),
        help="hand out real tokens of the developer's `az login` instead of fake ones",
    )
    emulate.add_argument(
        "--bridge", metavar="NAME", help="with --from: listen on this bridge instead, for example docker0 (Linux)"
    )
