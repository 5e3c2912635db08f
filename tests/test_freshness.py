"""When a held token is refreshed: the rules of design section 4 as tables."""

from __future__ import annotations

import time

import pytest

from azure_imds_credential._flight import Flight
from azure_imds_credential._freshness import Phase, Slot, World, boot_clock, next_refresh_after, phase, refresh_delay

DAY = 86400.0


@pytest.mark.parametrize(
    ("life", "same_again", "random", "delay"),
    [
        (DAY, False, 0.5, DAY / 2),  # half of a long life
        (DAY, False, 0.0, DAY / 2 * 0.9),  # 10 % earlier at most
        (DAY, False, 1.0, DAY / 2 * 1.1),  # 10 % later at most
        (7200.0, False, 0.5, 3600.0),  # two hours is the first long life
        (7199.0, False, 0.5, 6899.0),  # below: five minutes before the end
        (600.0, False, 0.0, 300.0),  # no jitter there
        (320.0, False, 0.5, 30.0),  # never sooner than 30 s
        (10.0, False, 0.5, 30.0),  # however short: it then simply expires first
        (40000.0, True, 0.5, 20000.0),  # IMDS's own cache: half of what is left
        (1000.0, True, 0.5, 500.0),  # also of a short life
        (40.0, True, 0.5, 30.0),  # but never under 30 s
    ],
)
def test_a_refresh_is_planned_by_what_is_left_of_the_token(
    life: float, same_again: bool, random: float, delay: float
) -> None:
    """Half of two hours or more with 10 % jitter, else five minutes before the end, never under 30 s."""
    assert refresh_delay(life, same_again=same_again, random=lambda: random) == pytest.approx(delay)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.0, Phase.FRESH),
        (999.9, Phase.FRESH),
        (1000.0, Phase.AGING),
        (1699.9, Phase.AGING),
        (1700.0, Phase.CLOSING),
        (1999.9, Phase.CLOSING),
        (2000.0, Phase.EXPIRED),
        (1e9, Phase.EXPIRED),
    ],
)
def test_a_token_goes_through_four_phases(now: float, expected: Phase) -> None:
    """Fresh until its refresh is due, aging after, closing in the last five minutes, expired at its end."""
    assert phase(now, refresh_at=1000.0, expires_at=2000.0) is expected


def test_a_fresh_token_may_be_in_its_last_minutes() -> None:
    """A token that came with little life is not asked for again at every call."""
    assert phase(0.0, refresh_at=30.0, expires_at=200.0) is Phase.FRESH


@pytest.mark.parametrize(
    ("failures", "left", "wait"),
    [
        (1, DAY, 30.0),
        (2, DAY, 60.0),
        (3, DAY, 120.0),
        (5, DAY, 480.0),
        (6, DAY, 600.0),  # the longest back-off
        (1000, DAY, 600.0),
        (6, 500.0, 200.0),  # but not past the beginning of the last five minutes
        (6, 310.0, 30.0),
        (6, 100.0, 30.0),  # where it is 30 s
        (6, -5.0, 30.0),
    ],
)
def test_failed_refreshes_back_off(failures: int, left: float, wait: float) -> None:
    """30 s doubling to 10 min, with a try at the beginning of the last five minutes and every 30 s in them."""
    assert next_refresh_after(failures, 1000.0, 1000.0 + left) == pytest.approx(1000.0 + wait)


def test_at_no_moment_does_a_time_outlast_the_token_that_stands_beside_it() -> None:
    """A fork may leave a child with the first few assignments of a new token: none of them revives the old one."""
    moments = []

    class Watched(Slot):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if self.token is None or self.token.token == "old":
                moments.append(max(self.fresh_until, self.expires_at))

    slot, world = Watched(), World(wall_clock=lambda: 0.0, random=lambda: 0.5)
    slot.hold("old", 1000.0, 0.0, world)
    slot.hold("new", 9000.0, 990.0, world)
    assert slot.expires_at == 9000.0
    assert max(moments[:-1]) <= 1000.0
    assert moments[0] == float("-inf"), "a time was told before there was a token"


def test_what_serves_again_later_is_told_by_the_clock_that_goes_on_while_the_machine_sleeps() -> None:
    """CLOCK_BOOTTIME where there is one: a monotonic clock stands still while a VM hibernates."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("no CLOCK_BOOTTIME here")
    assert World().clock is boot_clock
    assert boot_clock.args == (time.CLOCK_BOOTTIME,)  # type: ignore[attr-defined] # a partial, where the clock exists


def test_only_the_same_token_again_is_asked_for_at_half_of_a_short_life() -> None:
    """Another token of less than two hours is refreshed five minutes before its end."""
    slot, world = Slot(), World(wall_clock=lambda: 0.0, random=lambda: 0.5)
    slot.hold("one", 3600.0, 0.0, world)
    slot.hold("two", 3700.0, 100.0, world)
    assert slot.refresh_at == 3400.0
    slot.hold("two", 3700.0, 200.0, world)
    assert slot.refresh_at == 1950.0


def test_a_refresh_is_never_told_for_after_the_end() -> None:
    """A token with seconds to live: `refresh_on` is its expiry, though it is not asked for again before that."""
    slot = Slot()
    slot.hold("short", 10.0, 0.0, World(wall_clock=lambda: 1000.0, random=lambda: 0.5))
    assert slot.info is not None
    assert (slot.info.refresh_on, slot.info.expires_on) == (1010, 1010)


def test_a_forgotten_slot_is_a_new_one() -> None:
    """But for the time at which it was forgotten: what set out before that is not kept."""
    slot, world = Slot(), World(wall_clock=lambda: 0.0, random=lambda: 0.5)
    slot.hold("token", 86400.0, 0.0, world)
    slot.failures, slot.retry_at, slot.forced_at, slot.forced_error = 3, 900.0, 800.0, KeyError()
    slot.no_identity_at = 700.0
    slot.plain = slot.forced = Flight([], [], 900.0, 990.0, True, True, [])
    slot.clear(1000.0)
    assert slot.stored_at == slot.cleared_at == 1000.0
    names = ("token", "info", "fresh_until", "refresh_at", "expires_at", "retry_at", "failures", "forced_at")
    for name in (*names, "forced_error", "plain", "forced", "no_identity_at"):
        assert getattr(slot, name) == getattr(Slot, name), name
