"""The command `azure-imds`: the public API from a shell. Results go to standard output, all else to standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from ..exceptions import ImdsError
from .output import (
    EXIT_CODES,
    INTERRUPTED,
    OUTPUT,
    USAGE,
    CommandError,
    OutputError,
    Result,
    facts_of,
    message_of,
    show,
)
from .parser import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What stands after the program's name; None for the arguments of the process.

    Returns:
        The exit code, as `azure-imds --help` lists them.
    """
    # What libraries warn of in their logs would stand between the lines of standard error, with no word of whose it is.
    logging.basicConfig(handlers=[logging.NullHandler()])
    try:
        return _run(argv)
    except OutputError as error:
        _complain(str(error))
        return OUTPUT


def _run(argv: Sequence[str] | None) -> int:
    as_json = "--json" in (sys.argv[1:] if argv is None else argv)  # also where the rest cannot be understood
    try:
        arguments = make_parser().parse_args(argv)
        result: Result = arguments.run(arguments)
    except ImdsError as error:
        return _failed(as_json, message_of(error), EXIT_CODES.get(type(error), USAGE), facts_of(error))
    except CommandError as error:
        return _failed(as_json, str(error), error.code, {"error": type(error).__name__, "message": str(error)})
    except KeyboardInterrupt:
        return INTERRUPTED
    if result.facts:
        show(json.dumps(result.facts, indent=2) if as_json else result.text)
    return result.code


def _failed(as_json: bool, message: str, code: int, facts: dict[str, object]) -> int:
    if as_json:
        show(json.dumps(facts, indent=2))
    _complain(message)
    return code


def _complain(message: str) -> None:
    print(f"azure-imds: {message}", file=sys.stderr)  # noqa: T201 # its job
