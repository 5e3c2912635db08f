"""The emulator as a program of its own: what `azure-imds emulate` runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from ._azure_cli.emulator import AzureCliEmulator
from ._emulator.emulator import ImdsEmulator
from ._emulator.identities import Identity
from ._emulator.journal import Request
from ._emulator.profiles import ProfileName

KEPT = 1000  # requests and tokens: such an emulator may run for weeks


def run_emulator(
    identities: Iterable[Identity] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    profile: ProfileName = "vm",
    throttle: bool = False,
    source: Literal["azure-cli"] | None = None,
    bridge: str | None = None,
    any_user: bool = False,
    say: Callable[[str], None] = print,
    started: Callable[[AzureCliEmulator | ImdsEmulator], None] | None = None,
    log: Callable[[str], None] | None = None,
    until: threading.Event | None = None,
) -> None:
    """Run an emulator until it is interrupted (Ctrl+C, SIGTERM).

    Args:
        identities: What the machine has; None: what the profile has.
        host: IP address to listen on, or localhost.
        port: Port to listen on; 0 takes a free one.
        profile: The kind of machine.
        throttle: Refuse more than 20 requests a second and 5 at once.
        source: "azure-cli": hand out real tokens of the developer's `az login` instead, which leaves identities,
            profile and throttle without meaning. Warns (`RealTokensWarning`).
        bridge: With "azure-cli": listen on this bridge of the machine, for example docker0.
        any_user: With "azure-cli": hand out tokens to other users of this machine too.
        say: Gets one line when the emulator answers: the environment variable that leads clients to it.
        started: Gets the emulator when it answers.
        log: Gets a line for each request, within half a second.
        until: Ends it as well.

    Raises:
        ValueError: An address that real tokens may not be handed out on, or a bridge without "azure-cli".
        OSError: The port is taken.
    """
    if bridge is not None and source is None:
        raise ValueError("a bridge is for tokens of the Azure CLI only: name a host instead")
    if any_user and source is None:
        raise ValueError("any_user is for tokens of the Azure CLI only: the others are fakes")
    emulator: AzureCliEmulator | ImdsEmulator
    if source == "azure-cli":
        emulator = AzureCliEmulator(host=host, port=port, bridge=bridge, any_user=any_user)
    else:
        emulator = ImdsEmulator(identities, host=host, port=port, profile=profile, throttle=throttle, keep=KEPT)
    until = until or threading.Event()
    with _interruptions() as interruptions, emulator:
        say(f"AZURE_POD_IDENTITY_AUTHORITY_HOST={emulator.endpoint}")
        if started is not None:
            started(emulator)
        last: Request | None = None
        while not interruptions and not until.wait(0.5):  # a wait without end cannot be interrupted on Windows
            for request in _after(last, emulator.requests):
                last = request
                if log is not None:
                    log(str(request))


def _after(last: Request | None, requests: list[Request]) -> list[Request]:
    """Return the requests that came after one that may be forgotten by now; of those only the newest are kept."""
    for position in range(len(requests), 0, -1):
        if requests[position - 1] is last:
            return requests[position:]
    return requests


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; process 1 of a container ignores the latter unless it is handled.

    In a list: a handler runs between two steps of the main thread, which may hold the lock of an event just then.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
