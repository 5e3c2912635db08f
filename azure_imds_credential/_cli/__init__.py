"""The command `azure-imds`: the public API from a shell. Results go to standard output, all else to standard error.

This module imports next to nothing, so that an interrupt or a closed stream is dealt with before the imports that take
time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What stands after the program's name; None for a process whose only work this is.

    Returns:
        The exit code, as `azure-imds --help` lists them.
    """
    if argv is not None:
        from .run import run

        return run(argv)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as after nohup
        signal.signal(signal.SIGINT, _leave)
    _fill_closed_streams()
    from .run import run

    return run(sys.argv[1:])


def _leave(_number: int, _frame: object) -> None:
    """End with what shells give for SIGINT. An exception could get lost: not all code lets every exception through."""
    if os.isatty(2):
        os.write(2, b"\n")  # the prompt of the shell gets a line of its own
    os._exit(130)


def _fill_closed_streams() -> None:
    """Open nothing in place of closed standard streams: a socket with their number would get what is for people."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
