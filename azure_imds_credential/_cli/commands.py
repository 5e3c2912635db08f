"""What the commands of `azure-imds` do. Each takes parsed arguments and returns facts, for people and for programs."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .. import exceptions as e
from .._credential import ImdsCredential
from .._extras import extra_needed
from .._identity import DEVOPS_SCOPE
from .._jwt import claims_of
from .._source import ManagedIdentitySource, detect_source
from .._whoami import IdentityInfo, identity_info
from ..serve._arguments import options_from
from . import tools
from .machine import cannot_listen
from .output import (
    EXIT_CODES,
    FOUND,
    USAGE,
    VAULT,
    CommandError,
    Progress,
    Result,
    facts_of,
    identity_rows,
    in_a_shell,
    show,
)
from .text import Terminal, escaped, instant, is_terminal, table

WAIT_EVERY = 5.0  # seconds between two questions of `wait`, ± 20 % so that the pods of a node drift apart
_IDENTITY = ("client_id", "object_id", "resource_id", "require_system_assigned")
_ASKED = (*_IDENTITY, "endpoint", "timeout")
# What passes by itself: IMDS that is not up yet or fails, a node that asks too much, an assignment on its way.
_PASSING = (e.ImdsUnavailableError, e.IdentityUnavailableError, e.ImdsThrottledError, e.ImdsServiceError)


@dataclass(frozen=True)
class Clocks:
    """The clocks of `wait`, so that tests need none."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = field(default=random.random)


def token(arguments: argparse.Namespace) -> Result:
    """Get a token; show it only when asked to."""
    alone = arguments.raw or arguments.consumer is not None
    if arguments.consumer is not None:
        _refuse(arguments, f"--for {arguments.consumer}", raw="--raw", show_token="--show-token", json="--json")  # noqa: S106 # an option
        arguments.scope = arguments.scope or tools.AKS_SCOPE
    if arguments.raw:
        _refuse(arguments, "--raw", show_token="--show-token", json="--json")  # noqa: S106 # an option
    if arguments.scope is None:
        arguments.parser.error("the following arguments are required: SCOPE")
    if arguments.force and not alone:
        raise CommandError("--force has no effect without --raw or --for")
    if alone and not arguments.force and is_terminal(sys.stdout):
        raise CommandError("standard output is a terminal, which may keep the token: --force prints it nevertheless")
    credential = make_credential(arguments)
    if arguments.force_refresh:
        credential.get_token(arguments.scope, force_refresh=True)
    info = credential.get_token_info(arguments.scope)
    if arguments.raw:
        return Result({}, info.token, exact=True)
    if arguments.consumer is not None:
        return Result({}, tools.exec_credential(info), exact=True)
    claims = claims_of(info.token)
    facts: dict[str, Any] = {"expires_on": info.expires_on, "refresh_on": info.refresh_on, "claims": claims}
    rows = {"expires on": instant(info.expires_on), "refresh on": instant(info.refresh_on or info.expires_on)}
    if arguments.show_token:
        facts["token"] = rows["token"] = info.token
    rows.update({f"claim {name}": value for name, value in claims.items()})
    return Result(facts, lambda terminal: table(rows, terminal))


def git_credential(arguments: argparse.Namespace) -> Result:
    """Answer git, which asks for a password of Azure DevOps."""
    _refuse(arguments, "git-credential, which speaks git's protocol,", json="--json")
    if arguments.operation != "get":
        return Result({})  # git asks helpers to ignore what they do not know, and there is nothing to store or erase
    asked = tools.read_attributes(_standard_input())
    if not tools.is_azure_devops(asked):
        return Result({})
    arguments.scope = DEVOPS_SCOPE
    info = make_credential(arguments).get_token_info(arguments.scope)
    return Result({}, tools.git_answer(asked, info), exact=True)


def whoami(arguments: argparse.Namespace) -> Result:
    """Return who the tokens speak for."""
    if arguments.token is None:
        identity = make_credential(arguments).whoami(arguments.scope)
    else:
        identity = _identity_of_given_token(arguments)
    return Result(identity._asdict(), lambda terminal: table(identity_rows(identity), terminal))


def _identity_of_given_token(arguments: argparse.Namespace) -> IdentityInfo:
    if arguments.token != "-":  # noqa: S105 # a name for standard input
        raise CommandError(
            "--token takes - only, and reads the token from standard input: other users see the arguments of a process"
        )
    asking = {name: f"--{name.replace('_', '-')}" for name in (*_ASKED, "scope", "shared_cache")}
    _refuse(arguments, "--token", **asking)
    identity = identity_info(_standard_input().decode("utf-8", "replace").strip().removeprefix("Bearer "))
    if not identity.claims:
        raise CommandError("standard input holds no JWT whose claims can be read")
    return identity


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise CommandError("standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        raise CommandError(f"standard input cannot be read: {error}") from error


def wait(arguments: argparse.Namespace, clocks: Clocks | None = None) -> Result:
    """Ask until there is a token. What does not pass by itself ends the wait at once."""
    make_credential(arguments)  # says what is wrong with the options
    clocks = clocks or Clocks()
    started, attempts = clocks.now(), 0
    with Progress(quiet=arguments.quiet) as progress:
        progress.tell("IMDS is asked")
        while True:
            attempts += 1
            left = arguments.timeout - (clocks.now() - started)
            # One request per attempt, with a cache of its own: a remembered absence must not answer for 30 s.
            credential = make_credential(arguments, timeout=max(left, 1.0), retry_total=0)
            try:
                identity = credential.whoami(arguments.scope)
                break
            except e.ImdsError as error:
                pause = WAIT_EVERY * (0.8 + 0.4 * clocks.random())
                lasting = not isinstance(error, _PASSING) or detect_source() is not ManagedIdentitySource.IMDS
                if lasting or clocks.now() - started + pause > arguments.timeout:
                    raise
                progress.tell(error._reason)
                clocks.sleep(pause)
    elapsed = clocks.now() - started
    facts = {"usable": True, "attempts": attempts, "elapsed": round(elapsed, 3), "identity": identity._asdict()}

    def text(terminal: Terminal) -> str:
        return f"The identity can be used, after {elapsed:.0f} s.\n{table(identity_rows(identity), terminal)}"

    return Result(facts, text)


def doctor(arguments: argparse.Namespace) -> Result:
    """Look at the machine, ask IMDS for one token (three attempts at most), and explain both."""
    from .doctor import examine

    make_credential(arguments)  # says what is wrong with the options
    report = examine(arguments.scope, **{name: getattr(arguments, name) for name in _ASKED})
    code = 0 if report.error is None else EXIT_CODES.get(type(report.error), USAGE)
    facts = {
        "usable": report.error is None,
        "findings": [finding._asdict() for finding in report.findings],
        "identity": report.identity._asdict() if report.identity else None,
        "error": facts_of(report.error) if report.error else None,
    }
    if arguments.bundle is not None:
        from .bundle import write_bundle

        named = (arguments.client_id, arguments.object_id, arguments.resource_id)
        write_bundle(arguments.bundle, facts, (*named, arguments.scope.removesuffix("/.default")))
    return Result(facts, report.text, code)


def secret(arguments: argparse.Namespace) -> Result:
    """Read a secret with Azure's own client."""
    try:
        from azure.core.exceptions import AzureError
        from azure.keyvault.secrets import SecretClient
    except ImportError as error:
        raise CommandError(extra_needed("`azure-imds secret`", "keyvault")) from error
    credential = make_credential(arguments)
    if not _is_https(arguments.vault_url):
        raise CommandError(
            f"VAULT_URL must be the URL of a Key Vault, such as https://myvault.vault.azure.net, "
            f"got {arguments.vault_url!r}"
        )
    options: dict[str, Any] = {"verify_challenge_resource": arguments.verify_challenge_resource}
    if arguments.api_version is not None:
        options["api_version"] = arguments.api_version
    try:
        with SecretClient(arguments.vault_url, credential, **options) as client:
            found = client.get_secret(arguments.name)
    except e.ImdsError:
        raise
    except AzureError as error:
        raise CommandError(_vault_refusal(error), VAULT) from error
    except (ValueError, NotImplementedError) as error:
        raise _wrong_for_vault(error) from error
    return Result({"name": found.name, "id": found.id, "value": found.value}, found.value or "", exact=True)


def _vault_refusal(error: Exception) -> str:
    """Return what the vault said, its status first, and what to do about a refusal of the role."""
    status, response = getattr(error, "status_code", None), getattr(error, "response", None)
    told = getattr(error, "error", None)  # ODataV4Error, which azure-core reads from the answer
    code, message = getattr(told, "code", None), getattr(told, "message", None)
    if status is None:
        return str(error).partition("\n")[0]  # no answer: azure-core says why
    words = ": ".join(str(word) for word in (code, message) if word)
    if not words and response is not None:
        with suppress(Exception):  # a body that was not read, or is no text
            words = " ".join(response.text().split())[:200]
    said = f"the vault answered {status} {words or getattr(error, 'reason', None) or 'without a reason'}"
    if status == 403:
        return (
            f"{said.removesuffix('.')}. Give the identity the role Key Vault Secrets User on the vault: `az role "
            "assignment create --role 'Key Vault Secrets User' --assignee-object-id OBJECT_ID --scope VAULT_ID`. "
            "It takes minutes to act."
        )
    return said


def _wrong_for_vault(error: Exception) -> CommandError:
    """Return what is wrong of what the client raises by itself: the challenge of the vault, or an argument."""
    if "challenge" in str(error).lower():  # https://aka.ms/azsdk/blog/vault-uri
        return CommandError(
            "the server asks for a token of another resource than its own name implies, so it got none: "
            f"{str(error).partition(' Disable')[0]} If it is yours, such as an emulator of Key Vault, add "
            "--no-verify-challenge-resource.",
            VAULT,
        )
    return CommandError(str(error))


def serve(arguments: argparse.Namespace) -> Result:
    """Answer token requests until it is interrupted."""
    try:
        from ..serve._program import run_serve
    except ImportError as error:
        raise CommandError(extra_needed("azure-imds serve", "serve")) from error
    try:
        run_serve(options_from(arguments), show)
    except OSError as error:
        raise CommandError(cannot_listen(error, arguments.host, arguments.port)) from error
    except (ValueError, ImportError) as error:
        raise CommandError(in_a_shell(str(error))) from error
    return Result({})


def scan(arguments: argparse.Namespace) -> Result:
    """Look for what should not have been recorded."""
    try:
        from ..testing import scan_recordings
    except ImportError as error:
        raise CommandError(extra_needed("`azure-imds scan`", "testing")) from error
    try:
        findings = scan_recordings(arguments.paths)
    except OSError as error:  # not there, or not ours to read
        raise CommandError(str(error)) from error
    facts = [
        {"path": str(each.path), "where": each.where, "what": each.what, "excerpt": each.excerpt} for each in findings
    ]
    text = "\n".join(escaped(str(finding)) for finding in findings) or "Nothing that looks live."
    return Result({"findings": facts}, text, FOUND if findings else 0)


def forget(_arguments: argparse.Namespace) -> Result:
    """Empty the cache that processes share."""
    from .._shared.shared_cache import forget_shared_tokens

    count = forget_shared_tokens()
    return Result({"forgotten": count}, f"{count} shared token{'' if count == 1 else 's'} of this user removed.")


def completion(arguments: argparse.Namespace) -> Result:
    """Print a script for a shell."""
    try:
        import shtab
    except ImportError as error:
        raise CommandError(extra_needed("`azure-imds completion`", "completion")) from error
    _refuse(arguments, "completion, which prints a script,", json="--json")
    return Result({}, shtab.complete(arguments.whole, arguments.shell), exact=True)


def make_credential(arguments: argparse.Namespace, **options: Any) -> ImdsCredential:
    """Return a credential of a command's options.

    Raises:
        CommandError: Something is wrong with them, or an extra is missing.
    """
    asked = {name: getattr(arguments, name) for name in _ASKED}
    shared = getattr(arguments, "shared_cache", False)  # those that look at IMDS itself have no such option
    try:
        credential = ImdsCredential(**{**asked, "shared_cache": shared, **options})
        if getattr(arguments, "scope", None) is not None:
            with suppress(e.ImdsError):  # another source: asking for the token says so as well
                credential.token_provider(arguments.scope)
    except (ValueError, ImportError) as error:  # an ImportError names the extra that is missing
        raise CommandError(in_a_shell(str(error))) from error
    return credential


def _refuse(arguments: argparse.Namespace, because: str, **options: str) -> None:
    """Refuse options that have no effect beside another one.

    Args:
        arguments: The arguments of the command.
        because: The other option.
        **options: How the options are spelled, by their names in `arguments`.
    """
    given = [spelled for name, spelled in options.items() if name in arguments.given]
    if given:
        raise CommandError(f"{because} cannot be combined with {', '.join(given)}")


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname)
