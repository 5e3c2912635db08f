"""`azure-imds emulate`: the emulator as a program of its own."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._endpoint import ENDPOINT_VARIABLE
from .._extras import extra_needed
from .machine import cannot_listen
from .output import CommandError, Result, note, show
from .text import is_terminal, to_json

if TYPE_CHECKING:
    from ..testing import AzureCliEmulator, ImdsEmulator
    from ..testing._emulator.identities import Identity


def emulate(arguments: argparse.Namespace) -> Result:
    """Run the emulator until it is interrupted."""
    try:
        from ..testing import RealTokensWarning, run_emulator
    except ImportError as error:
        raise CommandError(extra_needed("`azure-imds emulate`", "testing")) from error
    identities = _identities(arguments)
    say = (lambda _: None) if arguments.quiet else note

    def started(emulator: AzureCliEmulator | ImdsEmulator) -> None:
        where = {ENDPOINT_VARIABLE: emulator.endpoint}
        show(to_json(where, indent=None) if arguments.json else f"export {ENDPOINT_VARIABLE}={emulator.endpoint}")
        for line in _introduction(emulator):
            say(line)

    try:
        with warnings.catch_warnings():
            # Real tokens are worth a sentence in the form of a program, also where warnings are errors.
            warnings.simplefilter("always", RealTokensWarning)
            warnings.showwarning = lambda warning, *_, **__: note(str(warning))
            run_emulator(
                identities,
                host=arguments.host,
                port=arguments.port,
                profile=arguments.profile,
                throttle=arguments.throttle,
                source=arguments.source,
                bridge=arguments.bridge,
                any_user=arguments.any_user,
                say=lambda _: None,
                started=started,
                log=say,
            )
    except OSError as error:
        raise CommandError(cannot_listen(error, arguments.host, arguments.port)) from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    return Result({})


def _identities(arguments: argparse.Namespace) -> list[Identity] | None:
    """Return the identities that the options name; None for those of the profile.

    Raises:
        CommandError: Options contradict each other, or have no effect beside `--from`.
    """
    from ..testing import SystemAssigned, UserAssigned

    named: list[Identity] = [*([SystemAssigned()] if arguments.system_assigned else [])]
    named += map(UserAssigned, arguments.user_assigned)
    if named and arguments.no_identity:
        raise CommandError("--no-identity cannot be combined with --system-assigned or --user-assigned")
    if arguments.bridge is not None and arguments.source is None:
        raise CommandError("--bridge needs --from azure-cli; without it name an address with --host")
    if arguments.any_user and arguments.source is None:
        raise CommandError("--any-user needs --from azure-cli; without it tokens are fakes, for every process")
    if arguments.bridge is not None and "host" in arguments.given:
        raise CommandError("--bridge cannot be combined with --host: the bridge has an address of its own")
    if arguments.source is not None:
        without = ("profile", "no_identity", "system_assigned", "user_assigned", "throttle")
        given = [f"--{name.replace('_', '-')}" for name in without if name in arguments.given]
        if given:
            raise CommandError(f"{', '.join(given)} has no effect with --from {arguments.source}")
    return named or ([] if arguments.no_identity else None)


def _introduction(emulator: AzureCliEmulator | ImdsEmulator) -> Iterator[str]:
    """Yield what a person wants to know at the start."""
    from ..testing import ImdsEmulator

    yield f"answers on {emulator.endpoint}; Ctrl+C ends it"
    if isinstance(emulator, ImdsEmulator):
        if not emulator.identities:
            yield "the machine has no identity"
        for identity in emulator.identities:
            name = getattr(identity, "name", None)
            kind = "system-assigned" if name is None else f"user-assigned {name}"
            yield f"{kind}: client ID {identity.client_id}, object ID {identity.object_id}"
    elif (refusal := _login_refusal()) is not None:
        yield f"there are no tokens yet: {refusal}. Log in with `az login`; this need not be started again"
    if not is_terminal(sys.stdout):  # there it stands already
        yield f"in the shell of a program: export {ENDPOINT_VARIABLE}={emulator.endpoint}"


def _login_refusal() -> str | None:
    """Return why the Azure CLI gives no token now; None if it does."""
    from ..testing._azure_cli.login import token_of_the_cli

    try:
        token_of_the_cli("https://management.azure.com")
    except (LookupError, OSError) as error:
        return str(error).rstrip(".")
    return None
