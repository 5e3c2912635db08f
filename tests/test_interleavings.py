"""Every order of a few calls, ends of requests, clears, forks and clock steps: the promises of the cache always hold.

`simulation.py` has the events and the promises. A token is never lost, expired, forgotten or None. A call ends by its
deadline, with an error of its own. A usable token costs an ordinary call neither an error nor a wait, but for 2 s in
the last five minutes. There is one request per key and kind. No line of the log tells an infinite time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from cache_machine import DAY, TIMEOUT
from simulation import (
    Alphabet,
    B,
    Event,
    PerRequest,
    Simulation,
    Steps,
    absent,
    checked_log,
    explore,
    identity_missing,
    run_events,
    stranger,
)


@pytest.fixture(autouse=True)
def _checked_log() -> Iterator[None]:
    with checked_log():
        yield


CALL: dict[str, Event] = {"call": Simulation.call}
FORCE: dict[str, Event] = {"force": partial(Simulation.call, forced=True)}


def _held(life: float, age: float) -> tuple[Event, ...]:
    """Return the events after which a token of this life has this age."""
    return (
        Simulation.call,
        lambda simulation: simulation.token(0, life),
        lambda simulation: simulation.calls[0].go_on(),
        lambda simulation: simulation.time(age),
    )


CLEAR: dict[str, Event] = {"clear": Simulation.clear}
WAIT: dict[str, Event] = {"wait": Simulation.time}
TOKEN: dict[str, PerRequest] = {"token": Simulation.token}
FAILURE: dict[str, PerRequest] = {"failure": Simulation.failure}


def _after(seconds: float) -> Event:
    return partial(Simulation.time, seconds=seconds)


# What may happen, how many events in a row, and below which number of schedules the test would have shrunk.
ALPHABETS = {
    "first token": (
        Alphabet(calls=CALL | FORCE, ends=TOKEN | FAILURE, others=CLEAR, steps=WAIT),
        5,
        3200,
    ),
    "deadline": (
        Alphabet(
            calls=CALL | {"hasty call": partial(Simulation.call, timeout=10.0)},
            ends={
                "timed out": partial(Simulation.failure, timed_out=True),
                "throttled": partial(Simulation.failure, timed_out=True, retry_after=20.0),
                "abandoned": Simulation.abandon,
                "attempt": Simulation.attempt,
            },
            steps=WAIT | {"10.05 s": _after(10.05)},
        ),
        5,
        5000,
    ),
    "forced and timed out": (
        Alphabet(
            start=_held(DAY, 50_000.0),
            calls=CALL | {"hasty force": partial(Simulation.call, forced=True, timeout=10.0)},
            ends=TOKEN | {"timed out": partial(Simulation.failure, timed_out=True), "abandoned": Simulation.abandon},
            steps=WAIT | {"30 s": _after(30.0)},
        ),
        5,
        4300,
    ),
    "refresh": (
        Alphabet(
            start=_held(DAY, 50_000.0),
            calls=CALL | FORCE,
            ends=TOKEN | FAILURE | {"the same again": partial(Simulation.token, life=DAY - 50_000.0, again=True)},
            others=CLEAR,
            steps={"30 s": _after(30.0)},
        ),
        5,
        4700,
    ),
    "last five minutes": (
        Alphabet(
            start=_held(400.0, 390.0),
            calls=CALL | FORCE,
            ends=FAILURE | {"short token": partial(Simulation.token, life=200.0)},
            steps={"1 s": _after(1.0), "31 s": _after(31.0)},
        ),
        5,
        2400,
    ),
    "identity": (
        Alphabet(
            calls=CALL
            | {
                "patient call": partial(Simulation.call, patience=60.0),
                "patient force": partial(Simulation.call, forced=True, patience=7.0),
            },
            ends=TOKEN | {"no identity": identity_missing},
            steps=WAIT,
        ),
        5,
        3200,
    ),
    "identity, in vain": (
        Alphabet(
            calls={"patient call": partial(Simulation.call, patience=TIMEOUT)},
            ends={
                "no identity": identity_missing,
                "timed out": partial(Simulation.failure, timed_out=True),
                "abandoned": Simulation.abandon,
                "dead token": Simulation.dead_token,
            },
            steps=WAIT | {"oversleep": partial(Simulation.oversleep, seconds=200.0)},
        ),
        5,
        900,
    ),
    "dead token": (
        Alphabet(
            calls=CALL | FORCE,
            ends=TOKEN | {"dead token": Simulation.dead_token, "second to live": partial(Simulation.token, life=1.0)},
            steps=WAIT | {"2 s": _after(2.0)},
        ),
        5,
        3600,
    ),
    "clocks": (
        Alphabet(
            start=_held(DAY, 11.0),
            calls=CALL | FORCE,
            ends=TOKEN | FAILURE,
            others={
                "paused for 100 s": partial(Simulation.paused, seconds=100.0),
                "paused for a day": partial(Simulation.paused, seconds=DAY),
            },
            steps={"10 s": _after(10.0), "oversleep": partial(Simulation.oversleep, seconds=50_000.0)},
        ),
        4,
        1600,
    ),
    "clock set": (
        Alphabet(
            start=_held(400.0, 380.0),
            calls=CALL | FORCE,
            ends=TOKEN | FAILURE,
            others={
                "set back": partial(Simulation.set_wall_clock, seconds=-5000.0),
                "set forward": partial(Simulation.set_wall_clock, seconds=5000.0),
            },
            steps={"10 s": _after(10.0)},
        ),
        4,
        1100,
    ),
    "fork": (
        Alphabet(
            start=_held(400.0, 200.0),
            calls=CALL | FORCE,
            ends=TOKEN | FAILURE,
            others=CLEAR | {"fork": Simulation.fork},
            steps={"150 s": _after(150.0)},
        ),
        5,
        6400,
    ),
    "no threads": (
        Alphabet(
            start=_held(400.0, 200.0),
            calls=CALL | FORCE,
            ends=TOKEN | FAILURE,
            others=CLEAR | {"no threads": Simulation.use_no_threads},
            steps={"31 s": _after(31.0), "150 s": _after(150.0)},
        ),
        4,
        1700,
    ),
    "inline": (
        Alphabet(
            start=_held(400.0, 200.0),
            calls=CALL
            | {"inline call": Simulation.inline_call, "inline force": partial(Simulation.inline_call, forced=True)},
            ends=TOKEN | FAILURE,
            others=CLEAR,
            steps={"31 s": _after(31.0), "150 s": _after(150.0)},
        ),
        4,
        1700,
    ),
    "absence": (
        Alphabet(
            calls=CALL | {"call for B": partial(Simulation.call, resource=B)},
            ends=TOKEN | {"absent": absent, "stranger": stranger},
            others={"look: found": partial(Simulation.look_finds, found=True)},
            steps={"1 s": _after(1.0)},
        ),
        5,
        4400,
    ),
}


# The number of schedules again; which calls run at once, and what may come between any two of their steps.
STEPS = {
    "race": (2, Steps(calls=(CALL["call"], CALL["call"]), ends={})),
    "first token": (350, Steps(calls=(CALL["call"], FORCE["force"]), ends=TOKEN | FAILURE, others=CLEAR)),
    "two calls": (
        1400,
        Steps(
            calls=(CALL["call"], CALL["call"]),
            ends=TOKEN | {"abandoned": Simulation.abandon},
            others=CLEAR,
        ),
    ),
    "refresh": (
        1100,
        Steps(
            start=_held(400.0, 200.0),
            calls=(CALL["call"], FORCE["force"]),
            ends=TOKEN | FAILURE,
            others=CLEAR,
            fork=True,
        ),
    ),
    "fork": (130, Steps(calls=(CALL["call"], FORCE["force"]), ends=TOKEN, others=CLEAR, fork=True)),
    "clocks": (
        180,
        Steps(
            start=_held(400.0, 20.0),
            calls=(CALL["call"], FORCE["force"]),
            ends=TOKEN,
            others=CLEAR | {"paused for a day": partial(Simulation.paused, seconds=DAY)},
        ),
    ),
    "absence": (
        72,
        Steps(
            start=(
                CALL["call"],
                lambda simulation: absent(simulation, 0),
                lambda simulation: simulation.calls[0].go_on(),
                _after(1.0),
            ),
            calls=(CALL["call"], CALL["call"]),
            ends=TOKEN,
            others=CLEAR | {"look: found": partial(Simulation.look_finds, found=True)},
        ),
    ),
}


@pytest.mark.parametrize(("alphabet", "depth", "floor"), ALPHABETS.values(), ids=ALPHABETS)
def test_every_order_of_events(alphabet: Alphabet, depth: int, floor: int) -> None:
    """Whatever comes in whatever order, each promise holds after each event."""
    assert explore(partial(run_events, alphabet, depth)) >= floor


@pytest.mark.parametrize(("floor", "steps"), STEPS.values(), ids=STEPS)
def test_every_order_of_steps(floor: int, steps: Steps) -> None:
    """Between any two steps of a call under the lock other calls, ends of requests, a clear and a fork may come."""
    assert explore(steps.run) >= floor


def test_a_pause_is_noticed_after_a_wait() -> None:
    """A VM that its host paused while a call waited: the token that came before the pause has expired."""
    simulation = Simulation()
    try:
        simulation.call()
        simulation.call(forced=True)
        simulation.token(1)
        simulation.paused(DAY)
        simulation.time()
        simulation.calls[0].go_on()
        assert simulation.raised, "the expired token was handed out"
    finally:
        simulation.close()
