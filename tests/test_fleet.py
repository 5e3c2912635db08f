"""Many pods, and machines over a week, in a simulation of the functions that retry and refresh."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("simpy")

from benchmarks import curves, fleet, pods
from benchmarks.herd import WAYS

SEEDS = 200
LATENCY = fleet.LATENCIES[0]


@pytest.fixture(scope="module")
def simulated() -> dict[tuple[bool, str], dict[str, Any]]:
    """Return all seeds of the required cases, at the latency at which 20 a second is the limit that matters."""
    wanted = {
        (counted, case): number
        for number, (latency, counted, case) in enumerate(fleet.scenarios())
        if latency == LATENCY and case in fleet.REQUIRED
    }
    simulate = partial(fleet.simulate, seeds=SEEDS)
    try:
        pool = ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn"))
    except OSError:  # the semaphores of such a pool are in /dev/shm, which is missing here or cannot be written to
        return {case: simulate(number) for case, number in wanted.items()}
    with pool:
        return dict(zip(wanted, pool.map(simulate, wanted.values()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", fleet.REQUIRED)
@pytest.mark.parametrize("counted", [False, True], ids=["429 free", "429 counted"])
def test_250_pods(simulated: dict[tuple[bool, str], dict[str, Any]], counted: bool, case: str) -> None:
    """No pod of 250 fails, in both models of the limit, with and without 70 s of 410, for each of 200 seeds."""
    assert simulated[counted, case]["failures_most"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", fleet.REQUIRED)
def test_time_of_250_pods(simulated: dict[tuple[bool, str], dict[str, Any]], case: str) -> None:
    """250 pods take at most 2.5 times the optimum: 20 tokens a second from the first start or the end of the 410s."""
    assert simulated[False, case]["optimum"] == pytest.approx(12.5 + fleet.CASES[case][0])
    assert simulated[False, case]["times_optimum"] <= 2.5


@pytest.mark.parametrize("counted", [False, True], ids=["429 free", "429 counted"])
def test_32_processes(counted: bool) -> None:
    """Of 32 processes that start at once none fails; they take at most 2.5 times N/20 s and 65 requests."""
    for seed in range(50):
        herd = pods.pods(pods.OURS, 32, seed, latency=0.02, counted=counted)
        assert herd.failures == 0
        assert herd.last <= 2.5 * 32 / 20
        assert len(herd.requests) <= 65


def test_policies_without_jitter() -> None:
    """The simulation can fail: pods that wait the same times stay together, and most of them get no token."""
    assert pods.pods(pods.IDENTITY, 250, 0, latency=LATENCY).failures > 100
    assert pods.pods(pods.MSAL, 32, 0, latency=LATENCY).failures == 27


@pytest.mark.parametrize(("count", "latency", "best"), [(250, 0.05, 12.5), (250, 1.0, 50.0), (20, 0.5, 2.0)])
def test_optimum(count: int, latency: float, best: float) -> None:
    """The optimum is 20 a second or 5 at once: N/5 seconds at 1 s per response."""
    assert pods.optimum(count, latency) == best


def test_optimum_is_a_bound() -> None:
    """The simulated IMDS serves no more than its limits allow."""
    for seed in range(5):
        for latency in (0.05, 1.0):
            assert pods.pods(pods.OURS, 100, seed, latency=latency).last >= pods.optimum(100, latency) - 1


def test_drift() -> None:
    """Refreshes of machines that start together spread; at a fixed half of the life they stay together."""
    calm, herd = (pods.week(policy, 60, 1, days=5) for policy in (pods.OURS, pods.IDENTITY))
    assert calm.without == herd.without == 0
    assert 3 * calm.peak < herd.peak
    busy = [sum(map(bool, calm.per_minute[day * 1440 :][:1440])) for day in (1, 4)]
    assert busy[1] > 1.2 * busy[0], "the same number of requests, in ever more minutes of the day"


def test_week(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines are without a token where IMDS is away for longer than one lives, and never for a minute."""
    assert pods.week(pods.OURS, 3, 2).without == 0
    monkeypatch.setattr(pods, "GONE_SECONDS", 2 * pods.DAY)
    assert pods.week(pods.OURS, 3, 2).without > 0


def test_pictures(tmp_path: Path) -> None:
    """Each picture is well-formed XML with a title, curves, and no point outside."""
    rows = [{"processes": n, "slowest_from_first_request": n / 10, "failures": 3} for n in (8, 64)]
    rand = Random(1).random
    results = {
        "processes": dict.fromkeys(WAYS, rows),
        "peers": [{"name": "<peer & co>", "failures": 2, "requests_at": [60 * rand() for _ in range(500)]}],
        "week": {"ours": {"machines": 10_000, "per_minute": [int(9 * rand()) for _ in range(10_081)]}},
    }
    for path in fleet.draw(results, tmp_path):
        root = ElementTree.parse(path).getroot()
        assert root.find("{*}title") is not None
        lines = root.findall("{*}polyline")
        assert lines
        for line in lines:
            for point in line.attrib["points"].split():
                across, down = map(float, point.split(","))
                assert curves.LEFT <= across <= curves.WIDTH - curves.RIGHT
                assert curves.TOP - 0.1 <= down <= curves.HEIGHT - curves.BOTTOM


def test_ticks() -> None:
    """Axes have three to seven marks from 0 on."""
    for highest in (0.7, 1, 3.3, 20, 63, 100, 499, 10_000):
        marks = curves.ticks(highest)
        assert marks[0] == 0
        assert 3 <= len(marks) <= 7
        assert marks[-1] <= highest
