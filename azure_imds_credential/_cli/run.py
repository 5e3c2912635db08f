"""Runs one command: arguments in, output and an exit code out, whatever happens in between."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..exceptions import ImdsError
from .output import (
    EXIT_CODES,
    FAULT,
    INTERRUPTED,
    OUTPUT,
    READER_GONE,
    USAGE,
    CommandError,
    LogHandler,
    OutputError,
    ReaderGoneError,
    Result,
    complain,
    facts_of,
    message_of,
    show,
    show_result,
)
from .parser import make_parser
from .text import to_json


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Args:
        argv: What stands after the program's name.
    """
    try:
        return _run(argv)
    except ReaderGoneError:
        return READER_GONE
    except OutputError as error:
        complain(str(error))
        return OUTPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(argv: Sequence[str]) -> int:
    as_json, verbose = "--json" in argv, False  # also where the rest cannot be understood
    try:
        arguments = make_parser().parse(argv)
        as_json, verbose = arguments.json, arguments.verbose
        with _logging(verbose=verbose):
            result: Result = arguments.run(arguments)
        show_result(result, as_json=arguments.json)
    except ImdsError as error:
        return _failed(message_of(error), EXIT_CODES.get(type(error), USAGE), facts_of(error) if as_json else None)
    except CommandError as error:
        facts = {"error": type(error).__name__, "message": str(error)}
        return _failed(str(error), error.code, facts if as_json else None)
    except SystemExit as end:  # argparse, after the help and the version
        return int(end.code or 0)
    except (OutputError, ReaderGoneError):
        raise
    except Exception as error:
        message = f"this should not happen: {type(error).__name__}: {error}"
        if verbose:
            message = f"{message}\n{traceback.format_exc()}"
        facts = {"error": type(error).__name__, "message": message}
        return _failed(message, FAULT, facts if as_json else None)
    return result.code


def _failed(message: str, code: int, facts: Mapping[str, object] | None) -> int:
    if facts is not None:
        show(to_json(facts))
    complain(message)
    return code


@contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    """Print what this package logs if that is asked for. Of others nothing is printed: errors say what matters."""
    root, ours = logging.getLogger(), logging.getLogger("azure_imds_credential")
    nothing, printing, level = logging.NullHandler(), LogHandler(), ours.level
    root.addHandler(nothing)  # without any handler Python prints warnings itself
    if verbose:
        ours.addHandler(printing)
        ours.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(nothing)
        ours.removeHandler(printing)
        ours.setLevel(level)
