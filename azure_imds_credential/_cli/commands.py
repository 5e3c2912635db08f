"""What the commands of `azure-imds` do. Each takes parsed arguments and returns facts, for people and for programs."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .. import exceptions as e
from .._claims import claims_of
from .._credential import ImdsCredential
from .._extras import extra_needed
from .._source import ManagedIdentitySource, detect_source
from ..serve._arguments import options_from
from .output import (
    EXIT_CODES,
    FOUND,
    USAGE,
    VAULT,
    CommandError,
    Result,
    facts_of,
    identity_rows,
    in_a_shell,
    instant,
    show,
    table,
)

WAIT_EVERY = 5.0  # seconds between two questions of `wait`, ± 20 % so that the pods of a node drift apart
_ASKED = ("client_id", "object_id", "resource_id", "endpoint", "timeout")
# What passes by itself: IMDS that is not up yet or ill, a node that asks too much, an assignment on its way.
_PASSING = (e.ImdsUnavailableError, e.IdentityUnavailableError, e.ImdsThrottledError, e.ImdsServiceError)


@dataclass(frozen=True)
class Clocks:
    """The clocks of `wait`, so that tests need none."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = field(default=random.random)


def token(arguments: argparse.Namespace) -> Result:
    """Get a token; show it only when asked to."""
    credential = _credential(arguments)
    if arguments.force_refresh:
        credential.get_token(arguments.scope, force_refresh=True)
    info = credential.get_token_info(arguments.scope)
    claims = claims_of(info.token)
    facts: dict[str, Any] = {"expires_on": info.expires_on, "refresh_on": info.refresh_on, "claims": claims}
    rows = {"expires on": instant(info.expires_on), "refresh on": instant(info.refresh_on or info.expires_on)}
    if arguments.show_token:
        facts["token"] = rows["token"] = info.token
    return Result(facts, table({**rows, **{f"claim {name}": value for name, value in claims.items()}}))


def whoami(arguments: argparse.Namespace) -> Result:
    """Say who the tokens speak for."""
    identity = _credential(arguments).whoami(arguments.scope)
    return Result(identity._asdict(), table(identity_rows(identity)))


def wait(arguments: argparse.Namespace, clocks: Clocks | None = None) -> Result:
    """Ask until there is a token. What does not pass by itself ends the wait at once."""
    _credential(arguments)  # says what is wrong with the options
    clocks = clocks or Clocks()
    started, attempts = clocks.now(), 0
    while True:
        attempts += 1
        left = arguments.timeout - (clocks.now() - started)
        # One request per attempt, with a cache of its own: a remembered "nobody there" must not answer for 30 s.
        credential = _credential(arguments, timeout=max(left, 1.0), retry_total=0)
        try:
            identity = credential.whoami(arguments.scope)
            break
        except e.ImdsError as error:
            pause = WAIT_EVERY * (0.8 + 0.4 * clocks.random())
            elapsed = clocks.now() - started
            lasting = not isinstance(error, _PASSING) or detect_source() is not ManagedIdentitySource.IMDS
            if lasting or elapsed + pause > arguments.timeout:
                raise
            _say(f"still waiting after {elapsed:.0f} s: {str(error).removesuffix(error.hint or '').strip()}")
            clocks.sleep(pause)
    elapsed = clocks.now() - started
    facts = {"usable": True, "attempts": attempts, "elapsed": round(elapsed, 3), "identity": identity._asdict()}
    return Result(facts, f"The identity can be used, after {elapsed:.0f} s.\n{table(identity_rows(identity))}")


def doctor(arguments: argparse.Namespace) -> Result:
    """Look at the machine, ask IMDS once, and explain both."""
    from .doctor import examine

    _credential(arguments)  # says what is wrong with the options
    report = examine(arguments.scope, **{name: getattr(arguments, name) for name in _ASKED})
    code = 0 if report.error is None else EXIT_CODES.get(type(report.error), USAGE)
    facts = {
        "usable": report.error is None,
        "findings": [finding._asdict() for finding in report.findings],
        "identity": report.identity._asdict() if report.identity else None,
        "error": facts_of(report.error) if report.error else None,
    }
    return Result(facts, str(report), code)


def secret(arguments: argparse.Namespace) -> Result:
    """Read a secret with Azure's own client."""
    try:
        from azure.core.exceptions import AzureError
        from azure.keyvault.secrets import SecretClient
    except ImportError as error:
        raise CommandError("reading secrets needs `pip install 'azure-imds-credential[keyvault]'`") from error
    credential = _credential(arguments)
    if not _is_https(arguments.vault_url):
        raise CommandError(
            f"VAULT_URL must be the URL of a Key Vault, such as https://myvault.vault.azure.net, "
            f"got {arguments.vault_url!r}"
        )
    try:
        with SecretClient(arguments.vault_url, credential) as client:
            found = client.get_secret(arguments.name)
    except e.ImdsError:
        raise
    except AzureError as error:
        raise CommandError(_vault_said(error), VAULT) from error
    except ValueError as error:  # of what the command was given, not of what the vault said
        raise CommandError(str(error)) from error
    return Result({"name": found.name, "id": found.id, "value": found.value}, found.value or "")


def emulate(arguments: argparse.Namespace) -> Result:
    """Run the emulator until it is interrupted."""
    try:
        from ..testing import RealTokensWarning, SystemAssigned, UserAssigned, run_emulator
    except ImportError as error:
        raise CommandError(_TESTING_EXTRA) from error
    system = [SystemAssigned()] if arguments.system_assigned else []
    named: list[SystemAssigned | UserAssigned] = [*system, *map(UserAssigned, arguments.user_assigned)]
    if named and arguments.no_identity:
        raise CommandError("--no-identity cannot be combined with --system-assigned or --user-assigned")
    if arguments.bridge is not None and arguments.source is None:
        raise CommandError("--bridge needs --from azure-cli; without it name an address with --host")

    def say(line: str) -> None:
        name, _, value = line.partition("=")
        show(json.dumps({name: value}) if arguments.json else line)

    try:
        with warnings.catch_warnings():
            # Whoever asked for real tokens is told, in the form of a program, also where warnings are errors.
            warnings.simplefilter("always", RealTokensWarning)
            warnings.showwarning = lambda warning, *_, **__: _say(str(warning))
            run_emulator(
                named or ([] if arguments.no_identity else None),
                host=arguments.host,
                port=arguments.port,
                profile=arguments.profile,
                throttle=arguments.throttle,
                source=arguments.source,
                bridge=arguments.bridge,
                say=say,
            )
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    return Result({}, "")


def serve(arguments: argparse.Namespace) -> Result:
    """Answer token requests until it is interrupted."""
    try:
        from ..serve._program import run_serve
    except ImportError as error:
        raise CommandError(extra_needed("azure-imds serve", "serve")) from error
    try:
        run_serve(options_from(arguments), show)
    except (ValueError, ImportError, OSError) as error:
        raise CommandError(in_a_shell(str(error))) from error
    return Result({}, "")


def scan(arguments: argparse.Namespace) -> Result:
    """Look for what should not have been recorded."""
    try:
        from ..testing import scan_recordings
    except ImportError as error:
        raise CommandError(_TESTING_EXTRA) from error
    try:
        findings = scan_recordings(arguments.paths)
    except OSError as error:  # not there, or not ours to read
        raise CommandError(str(error)) from error
    facts = [
        {"path": str(each.path), "where": each.where, "what": each.what, "excerpt": each.excerpt} for each in findings
    ]
    text = "\n".join(map(str, findings)) or "Nothing that looks live."
    return Result({"findings": facts}, text, FOUND if findings else 0)


def forget(_arguments: argparse.Namespace) -> Result:
    """Empty the cache that processes share."""
    from .._shared_cache import forget_shared_tokens

    count = forget_shared_tokens()
    return Result({"forgotten": count}, f"{count} shared token{'' if count == 1 else 's'} of this user removed.")


_TESTING_EXTRA = "the testing kit needs `pip install 'azure-imds-credential[testing]'`"


def _credential(arguments: argparse.Namespace, **options: Any) -> ImdsCredential:
    """Make a credential of a command's options; what is wrong with them is the user's to read, without a traceback."""
    asked = {name: getattr(arguments, name) for name in _ASKED}
    shared = getattr(arguments, "shared_cache", False)  # those that look at IMDS itself have no such option
    try:
        credential = ImdsCredential(**{**asked, "shared_cache": shared, **options})
        if hasattr(arguments, "scope"):
            with suppress(e.ImdsError):  # another source: asking for the token says so as well
                credential.token_provider(arguments.scope)
    except (ValueError, ImportError) as error:  # an ImportError names the extra that is missing
        raise CommandError(in_a_shell(str(error))) from error
    return credential


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname)


def _vault_said(error: Exception) -> str:
    """Explain a refusal of Key Vault; its own words come first."""
    said = str(error).partition("\n")[0]
    if getattr(error, "status_code", None) == 403:
        return (
            f"{said} Give the identity the role Key Vault Secrets User on the vault: `az role assignment create "
            "--role 'Key Vault Secrets User' --assignee-object-id OBJECT_ID --scope VAULT_ID`. It takes minutes to act."
        )
    return said


def _say(message: str) -> None:
    print(f"azure-imds: {message}", file=sys.stderr, flush=True)  # noqa: T201 # progress is for standard error
