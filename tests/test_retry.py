"""When IMDS is asked again: the table of design section 3, without a socket or a clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from azure_imds_credential._retry import Retry, last_chance, next_delay

LEAST: Callable[[], float] = lambda: 0.0  # noqa: E731 # named like the bound it gives
MOST: Callable[[], float] = lambda: math.nextafter(1.0, 0.0)  # noqa: E731 # as above


def waits(retry: Retry, random: Callable[[], float], retry_after: float | None = None, limit: int = 12) -> list[float]:
    """The waits until it stops, in a world where answers take no time."""
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
        (Retry.STRANGER, [0, 0, 0], [1, 2, 4]),
        (Retry.TRANSIENT, [0] * 5, [1, 2, 4, 8, 16]),
        (Retry.GONE, [0] * 12, [1, 2, 4, 8, 16, 16, 16, 12]),  # 75 s in all
        (Retry.THROTTLED, [1, 0.8, 1.6, 3.2, 6.4] + [9.6] * 7, [3, 2, 4, 8, 16] + [24] * 7),
    ],
    ids=lambda value: value.name if isinstance(value, Retry) else None,
)
def test_waits_are_drawn_between_a_floor_and_a_doubling_cap(
    retry: Retry, least: list[float], most: list[float]
) -> None:
    """Each wait lies between 0 and min(16, base * 2**n) seconds; after a 429 between 0.4 and 1 of min(24, ...)."""
    assert waits(retry, LEAST) == pytest.approx(least)
    assert waits(retry, MOST) == pytest.approx(most)


@pytest.mark.parametrize("retry", [each for each in Retry if each is not Retry.NEVER], ids=lambda retry: retry.name)
def test_jitter_is_uniform(retry: Retry) -> None:
    """A draw in the middle gives the middle of the range: machines that start together spread out."""
    assert next_delay(retry, 0, 0, None, lambda: 0.5) == pytest.approx(retry.value.lead + retry.value.base / 2)


def test_410_is_asked_until_75_seconds_have_passed() -> None:
    """IMDS promises to be back within 70 s; the last attempt starts at 75."""
    assert sum(waits(Retry.GONE, MOST, limit=1000)) == pytest.approx(75)
    assert next_delay(Retry.GONE, 9, 74.9, None, MOST) == pytest.approx(0.1)
    assert next_delay(Retry.GONE, 9, 75, None, LEAST) is None


def test_a_stranger_is_asked_at_most_three_times_in_seven_seconds() -> None:
    """Whatever is drawn, a server that never was IMDS costs no more than 7 s of waiting."""
    assert sum(waits(Retry.STRANGER, MOST)) <= 7
    assert next_delay(Retry.STRANGER, 1, 6.9, None, MOST) == pytest.approx(0.1)
    assert next_delay(Retry.STRANGER, 1, 7, None, LEAST) is None
    assert next_delay(Retry.STRANGER, 3, 0, None, LEAST) is None


@pytest.mark.parametrize("retry", [Retry.TRANSIENT, Retry.THROTTLED, Retry.ONCE], ids=lambda retry: retry.name)
def test_retry_after_is_a_floor(retry: Retry) -> None:
    """What the server asks for is waited at least, and the jitter of a longer wait stays."""
    assert next_delay(retry, 0, 0, 30.0, MOST) == 30
    assert next_delay(retry, 0, 0, 0.0, MOST) == pytest.approx(retry.value.lead + retry.value.base)
    assert next_delay(retry, 0, 0, 86400.0, MOST) == 86400  # the caller's deadline ends it, not a cap


@pytest.mark.parametrize("retry", [Retry.GONE, Retry.STRANGER], ids=lambda retry: retry.name)
def test_retry_after_beyond_the_window_ends_the_asking(retry: Retry) -> None:
    """Asking before the server wants it would only add load."""
    assert next_delay(retry, 0, 0, retry.value.until, MOST) == retry.value.until
    assert next_delay(retry, 0, 1, retry.value.until, MOST) is None


def test_a_thousandth_retry_still_has_a_finite_wait() -> None:
    """Doubling never overflows."""
    assert next_delay(Retry.THROTTLED, 10**6, 10.0**9, None, MOST) == pytest.approx(24)


@pytest.mark.parametrize(
    ("delay", "left", "least", "most"),
    [
        (5, 20, 5, 5),
        (16, 10, 4.85, 9.7),  # 0.3 s are left for the answer
        (9.8, 10, 4.85, 9.7),
        (16, 0.3, 16, 16),
    ],
    ids=["fits", "does not fit", "leaves no time for the answer", "nothing would fit"],
)
def test_a_wait_that_outlasts_the_caller_is_drawn_from_what_is_left(
    delay: float, left: float, least: float, most: float
) -> None:
    """Nobody gives up with seconds in hand because the wait that was drawn is longer than they are."""
    assert last_chance(delay, left, LEAST) == pytest.approx(least)
    assert last_chance(delay, left, MOST) == pytest.approx(most)
