"""The options and arguments of every command, and what is said where they cannot be understood."""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

from .. import __version__
from .._identity import MANAGEMENT_SCOPE
from ..serve._arguments import add_arguments as add_serve_arguments
from . import commands as c
from .emulate import emulate
from .output import (
    EXIT_CODES,
    FAULT,
    FOUND,
    INTERRUPTED,
    OUTPUT,
    READER_GONE,
    USAGE,
    VAULT,
    CommandError,
    Result,
    show,
)

_EPILOG = f"""\
Options may stand before or after the command. `azure-imds help COMMAND` tells more of one.

exit codes:
  0    done; for doctor: the identity can be used
  {FOUND}    scan found something that looks live, or that it cannot read
  {USAGE}    wrong arguments, or an extra is not installed
{"".join(f"  {code}    {cls.__name__}" + chr(10) for cls, code in EXIT_CODES.items())}\
  {VAULT}    the vault refused or cannot be reached
  {OUTPUT}   standard output cannot be written
  {FAULT}   a fault of this program; --verbose shows where
  {INTERRUPTED}  interrupted; emulate and serve are ended so, with 0
  {READER_GONE}  the reader of standard output ended first
"""


class Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong, so that it is told in the form that was asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.color = False  # Python 3.14 colors help by itself, which would be shown escaped

    def error(self, message: str) -> NoReturn:
        """Raise a sentence with the usage of the command."""
        raise CommandError(f"{message}\n{self.format_usage().strip()}")

    def _print_message(self, message: str, _file: object = None) -> None:
        """Print help and version as any other result; some Pythons pass over an error here, others die of it."""
        show(message.removesuffix("\n"))

    @property
    def options(self) -> dict[str, argparse.Action]:
        """The options by their names."""
        return self._option_string_actions


class CommandLine(Parser):
    """The whole program.

    Attributes:
        commands: The parser of each command.
    """

    commands: dict[str, Parser]

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the arguments of a command, and what runs it as `run`.

        Raises:
            CommandError: They cannot be understood.
            SystemExit: Help or the version was asked for and has been printed.
        """
        position = self._position_of_command(argv)
        if position is None:
            self._refuse_unknown(argv)
            # Prints help or the version, or says what is missing.
            self.parse_args([each for each in argv if each != "--"] if argv else ["--help"])
            self.error("a command must stand before --")
        name, options, rest = argv[position], argv[:position], argv[position + 1 :]
        if {"-V", "--version"} & {*options}:
            self.parse_args(["--version"])
        if name == "help":
            name, rest = next((each for each in rest if not each.startswith("-")), "help"), ["--help"]
            if name == "help":
                self.parse_args(["--help"])
        if name not in self.commands:
            self.error(f"there is no command {name!r}{_suggestion(name, [*self.commands, 'help'])}")
        command = self.commands[name]
        arguments, unknown = command.parse_known_args([*options, *rest])
        arguments.given = {name for name, value in vars(arguments).items() if value != command.get_default(name)}
        if unknown:
            near = "".join(_suggestion(each.partition("=")[0], command.options) for each in unknown[:1])
            command.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return arguments

    def _refuse_unknown(self, argv: Sequence[str]) -> None:
        """Refuse an option that no command has; without a command argparse would not."""
        known = {*self.options, *(name for command in self.commands.values() for name in command.options), "--"}
        for argument in argv:
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"unrecognized arguments: {argument}{_suggestion(name, sorted(known))}")

    def _position_of_command(self, argv: Sequence[str]) -> int | None:
        """Return where the command stands: at the first argument that is neither an option nor the value of one."""
        takes_value = {
            name
            for command in self.commands.values()
            for name, action in command.options.items()
            if action.nargs is None  # flags have 0
        }
        is_value = False
        for position, argument in enumerate(argv):
            if is_value:
                is_value = False
            elif argument == "--":
                return None
            elif argument.startswith("-"):
                is_value = argument in takes_value
            else:
                return position
        return None


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def make_parser() -> CommandLine:
    """Return the parser of the program."""
    parser = CommandLine(
        prog="azure-imds",
        description="Azure managed identity tokens from the Instance Metadata Service (IMDS).",
        epilog=_EPILOG,
        # The column of the help: Python 3.13 began to count the indentation of commands for it.
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=18),
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    parser.commands = commands.choices

    def command(run: Callable[[argparse.Namespace], Result], summary: str, *parents: Parser) -> Parser:
        added: Parser = commands.add_parser(
            run.__name__.replace("_", "-"),
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            parents=[*parents, _output_options()],
            allow_abbrev=False,
        )
        added.set_defaults(run=run, parser=added)
        return added

    token = command(c.token, "get a token and show its expiry and claims", _asking(90))
    token.add_argument("scope", metavar="SCOPE", nargs="?", help="for example https://vault.azure.net/.default")
    token.add_argument("--raw", action="store_true", help="print the token alone, for scripts")
    token.add_argument(
        "--for",
        dest="consumer",
        choices=("kubectl",),
        help="print it in the form that kubectl takes; SCOPE is AKS's then if it is left out",
    )
    token.add_argument("--force", action="store_true", help="print it even if standard output is a terminal")
    token.add_argument("--show-token", action="store_true", help="show the token too; every reader of it can use it")
    _add_shared_cache(token)
    token.add_argument("--force-refresh", action="store_true", help="ask IMDS to bypass its own cache; it may not")

    git = command(c.git_credential, "give git a password for Azure DevOps, as a credential helper", _asking(30))
    git.add_argument("operation", metavar="OPERATION", help="get; store and erase do nothing")
    _add_shared_cache(git)

    whoami = command(c.whoami, "say which identity the tokens of this machine speak for", _asking(90))
    _add_scope(whoami)
    _add_shared_cache(whoami)
    whoami.add_argument("--token", metavar="-", help="read a token from standard input instead, of any credential")

    wait = command(c.wait, "wait until the identity can be used, for init containers and systemd units", _asking(300))
    _add_scope(wait)

    doctor = command(c.doctor, "find out why there is no token, or what is unusual where there is one", _asking(30))
    _add_scope(doctor)
    doctor.add_argument(
        "--bundle", metavar="FILE", help="write all of it to a new file, scrubbed of names and IDs, for a bug report"
    )

    secret = command(c.secret, "read a secret from a Key Vault", _asking(90))
    secret.add_argument("vault_url", metavar="VAULT_URL", help="for example https://myvault.vault.azure.net")
    secret.add_argument("name", metavar="NAME", help="name of the secret")
    secret.add_argument("--api-version", metavar="VERSION", help="for vaults that do not know the client's newest")
    secret.add_argument(
        "--no-verify-challenge-resource",
        dest="verify_challenge_resource",
        action="store_false",
        help="trust a server that asks for a token of another resource, such as an emulator of Key Vault",
    )
    _add_shared_cache(secret)

    _add_emulate(command(emulate, "run an IMDS emulator until it is interrupted"))

    add_serve_arguments(
        command(c.serve, "answer every program's token requests on this machine from one cache"),
        address=_address,
        port=_port,
    )

    scan = command(c.scan, "look for live-looking tokens and secrets in recordings")
    scan.add_argument("paths", metavar="PATH", nargs="+", help="a recording, or a folder of them")

    command(c.forget, "empty the token cache that processes of this user share on this machine")

    completion = command(c.completion, "print the script that completes commands and options in a shell")
    completion.set_defaults(whole=parser)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    return parser


def _add_scope(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scope",
        default=MANAGEMENT_SCOPE,
        help="what to get a token for (default: %(default)s)",
    )


def _add_shared_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shared-cache", action="store_true", help="share tokens between the processes of this user on this machine"
    )


def _asking(timeout: float) -> Parser:
    """Return the options of every command that asks IMDS."""
    parent = Parser(add_help=False)
    parent.add_argument(
        "--endpoint",
        metavar="URL",
        help="base URL of IMDS (default: AZURE_POD_IDENTITY_AUTHORITY_HOST, else http://169.254.169.254)",
    )
    which = parent.add_argument_group("identity", "at most one; with none IMDS chooses")
    which.add_argument("--client-id", metavar="GUID", help="client ID of a user-assigned identity")
    which.add_argument("--object-id", metavar="GUID", help="object (principal) ID of a user-assigned identity")
    which.add_argument("--resource-id", metavar="ARM_ID", help="ARM ID of a user-assigned identity")
    which.add_argument(
        "--require-system-assigned",
        action="store_true",
        help="refuse the token of a user-assigned identity, which IMDS may choose",
    )
    parent.add_argument(
        "--timeout", type=_seconds, default=timeout, metavar="SECONDS", help="when to give up (default: %(default)g)"
    )
    return parent


def _output_options() -> Parser:
    """Return the options of every command."""
    parent = Parser(add_help=False)
    output = parent.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    output.add_argument("-v", "--verbose", action="store_true", help="log to standard error")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes, only results and errors")
    return parent


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


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
    emulate.add_argument(
        "--any-user", action="store_true", help="with --from: answer other users of this machine too (Linux)"
    )
