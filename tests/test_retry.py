"""When IMDS is asked again: the schedules, without a socket or a clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from azure_imds_credential._imds.retry import MIN_ATTEMPT, Retry, Schedule, last_chance, next_delay

LEAST: Callable[[], float] = lambda: 0.0  # noqa: E731 # named like the bound it gives
MOST: Callable[[], float] = lambda: math.nextafter(1.0, 0.0)  # noqa: E731 # as above


def waits(retry: Retry, random: Callable[[], float], retry_after: float | None = None, limit: int = 12) -> list[float]:
    """Return the waits until it stops, where a response takes no time."""
    elapsed, found = 0.0, list[float]()
    while len(found) < limit:
        delay = next_delay(retry, len(found), elapsed, retry_after, random)
        if delay is None:
            break
        found.append(delay)
        elapsed += delay
    return found


@pytest.mark.parametrize(
    ("retry", "least", "most"),
    [
        (Retry.NEVER, [], []),
        (Retry.ONCE, [0], [1]),
        (Retry.UNKNOWN_SERVER, [0, 0, 0], [1, 2, 4]),
        (Retry.BOOTING, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 3.7], [0.2, 0.4, 0.8, 1.6, 3.2, 3.8]),  # 10 s in all
        (Retry.TRANSIENT, [0] * 5, [1, 2, 4, 8, 16]),
        (Retry.GONE, [0] * 12, [1, 2, 4, 8, 16, 16, 16, 12]),  # 75 s in all
        (Retry.THROTTLED, [1, 0.8, 1.6, 3.2, 6.4] + [9.6] * 7, [3, 2, 4, 8, 16] + [24] * 7),
    ],
    ids=lambda value: value.name if isinstance(value, Retry) else None,
)
def test_waits(retry: Retry, least: list[float], most: list[float]) -> None:
    """Each wait lies between a floor and min(cap, base * 2**n) seconds."""
    assert waits(retry, LEAST) == pytest.approx(least)
    assert waits(retry, MOST) == pytest.approx(most)


@pytest.mark.parametrize("retry", [each for each in Retry if each is not Retry.NEVER], ids=lambda retry: retry.name)
def test_jitter_is_uniform(retry: Retry) -> None:
    """A draw in the middle gives the middle of the range, so machines that start together spread out."""
    schedule = retry.value
    least = schedule.lead or schedule.floor * schedule.base
    middle = (least + schedule.lead + schedule.base) / 2
    assert next_delay(retry, 0, 0, None, lambda: 0.5) == pytest.approx(middle)


def test_410_for_75_seconds() -> None:
    """IMDS is promised to be back within 70 s; the last attempt starts at 75."""
    assert sum(waits(Retry.GONE, MOST, limit=1000)) == pytest.approx(75)
    assert next_delay(Retry.GONE, 9, 74.9, None, MOST) == pytest.approx(0.1)
    assert next_delay(Retry.GONE, 9, 75, None, LEAST) is None


def test_unknown_server_for_seven_seconds() -> None:
    """A server that never was IMDS is asked again at most three times, within 7 s."""
    assert sum(waits(Retry.UNKNOWN_SERVER, MOST)) <= 7
    assert next_delay(Retry.UNKNOWN_SERVER, 1, 6.9, None, MOST) == pytest.approx(0.1)
    assert next_delay(Retry.UNKNOWN_SERVER, 1, 7, None, LEAST) is None
    assert next_delay(Retry.UNKNOWN_SERVER, 3, 0, None, LEAST) is None


@pytest.mark.parametrize("retry", [Retry.TRANSIENT, Retry.THROTTLED, Retry.ONCE], ids=lambda retry: retry.name)
def test_retry_after_is_a_floor(retry: Retry) -> None:
    """What the server asks for is waited at least, and the jitter of a longer wait stays."""
    assert next_delay(retry, 0, 0, 30.0, MOST) == 30
    assert next_delay(retry, 0, 0, 0.0, MOST) == pytest.approx(retry.value.lead + retry.value.base)
    assert next_delay(retry, 0, 0, 86400.0, MOST) == 86400  # the caller's deadline ends it, not a cap


@pytest.mark.parametrize("retry", [Retry.GONE, Retry.UNKNOWN_SERVER, Retry.BOOTING], ids=lambda retry: retry.name)
def test_retry_after_beyond_the_window(retry: Retry) -> None:
    """There is no further attempt where the server asks for a longer wait than the schedule has."""
    assert next_delay(retry, 0, 0, retry.value.until, MOST) == retry.value.until
    assert next_delay(retry, 0, 1, retry.value.until, MOST) is None


def test_late_retry_is_finite() -> None:
    """Doubling never overflows."""
    assert next_delay(Retry.THROTTLED, 10**6, 10.0**9, None, MOST) == pytest.approx(24)


@pytest.mark.parametrize(
    ("delay", "left", "least", "most"),
    [
        (5, 20, 5, 5),
        (16, 10, 4.85, 9.7),  # 0.3 s are left for the response
        (9.8, 10, 4.85, 9.7),
        (16, 0.3, 16, 16),
    ],
    ids=["fits", "does not fit", "leaves no time for the response", "nothing would fit"],
)
def test_last_chance(delay: float, left: float, least: float, most: float) -> None:
    """A wait that would outlast the deadline is drawn from what is left, with time for a last attempt."""
    assert last_chance(delay, left, LEAST) == pytest.approx(least)
    assert last_chance(delay, left, MOST) == pytest.approx(most)


def test_a_schedule_by_default() -> None:
    """Full jitter from one second, up to 16 s: what the documentation asks for."""
    numbers = {"retries": 3, "until": 7.0, "base": 1.0, "cap": 16.0, "lead": 0.0, "floor": 0.0}
    assert vars(Schedule(retries=3, until=7.0)) == numbers
    others = {"retries": 1, "until": 2.0, "base": 3.0, "cap": 4.0, "lead": 5.0, "floor": 0.6}
    assert vars(Schedule(**others)) == others


@pytest.mark.parametrize(
    ("delay", "left", "wait"),
    [
        (1.0, 1.0 + MIN_ATTEMPT, 0.5),  # as long as the room: no attempt fits behind it
        (5.0, 2 * MIN_ATTEMPT, MIN_ATTEMPT / 2),  # room for one attempt is room
    ],
)
def test_last_chance_at_the_edge(delay: float, left: float, wait: float) -> None:
    """The wait is shortened where just one attempt fits."""
    assert last_chance(delay, left, LEAST) == pytest.approx(wait)
