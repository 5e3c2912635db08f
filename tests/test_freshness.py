"""When a held token is refreshed: the rules of design section 4 as tables."""

from __future__ import annotations

import pytest

from azure_imds_credential._freshness import Phase, next_refresh_after, phase, refresh_delay

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
