"""The races, tried hard: many keys, threads, tasks, failures and cancellations at once, for some seconds."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from flavors import VirtualTime

from azure_imds_credential import ImdsCredential, ImdsError, _options
from azure_imds_credential._jwt import claims_of
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults

SECONDS = 6.0
THREADS, LOOPS, TASKS = 12, 3, 30
LONG_TIMEOUT = 20 * 86400.0  # seconds of a time that makes leaps of a day


@pytest.mark.slow
def test_right_tokens(virtual_time: VirtualTime) -> None:
    """Every token is for who and what was asked and has life left; every failure is one that IMDS really had.

    Time is put forward by hours while callers ask, tokens age and expire, IMDS fails one request in five, tasks are
    cancelled and callers give up early. One request per key at a time: so many callers cost few requests.
    """
    users = [UserAssigned("one"), UserAssigned("two")]
    resources = [f"https://r{number}.example" for number in range(4)]
    got: Counter[str] = Counter()
    wrong: list[str] = []

    def check(user: UserAssigned, resource: str, token: str, expires_on: int, asked_at: float) -> None:
        claims = claims_of(token)
        if claims["aud"] != resource or claims["appid"] != user.client_id:
            wrong.append(f"asked {user.name} {resource}, got {claims['appid']} {claims['aud']}")
        if expires_on <= asked_at - 1:
            wrong.append(f"dead for {asked_at - expires_on:.0f} s when it was asked for")
        got["token"] += 1

    with ImdsEmulator(identities=users, clock=virtual_time.wall, latency=0.005) as imds:
        imds.random_faults(
            faults.status(500, b"", headers={"Server": "IMDS/1"}), faults.reset(), faults.html(), rate=0.2, seed=7
        )
        end = time.monotonic() + SECONDS
        steps = 0

        def goes_on() -> bool:
            """For its time, and on a busy machine until enough happened."""
            now = time.monotonic()
            return now < end or (now < end + 300 and (got["token"] <= 1000 or not got["cancelled"]))

        def thread(number: int) -> None:
            dice = random.Random(number)
            while goes_on():
                user, resource, now = dice.choice(users), dice.choice(resources), virtual_time.wall()
                credential = ImdsCredential(
                    client_id=user.client_id, endpoint=imds.endpoint, timeout=dice.choice((0.05, LONG_TIMEOUT))
                )
                try:
                    token = credential.get_token(resource, force_refresh=dice.random() < 0.01)
                    check(user, resource, *token, now)
                except ImdsError as error:
                    got[type(error).__name__] += 1

        async def task(number: int) -> None:
            dice = random.Random(1000 + number)
            while goes_on():
                user, resource, now = dice.choice(users), dice.choice(resources), virtual_time.wall()
                credential = AsyncImdsCredential(client_id=user.client_id, endpoint=imds.endpoint, timeout=LONG_TIMEOUT)
                try:
                    token = await asyncio.wait_for(credential.get_token(resource), dice.choice((0.003, 5)))
                    check(user, resource, *token, now)
                except ImdsError as error:
                    got[type(error).__name__] += 1
                except asyncio.TimeoutError:
                    got["cancelled"] += 1
                await asyncio.sleep(0.001)

        async def loop(number: int) -> None:
            await asyncio.gather(*(task(number * TASKS + one) for one in range(TASKS)))

        def put_time_forward() -> None:
            nonlocal steps
            dice = random.Random(3)
            while goes_on():
                time.sleep(0.05)
                steps += 1
                virtual_time.skip(dice.choice((60.0, 1800.0, 7200.0, 90000.0)))

        before = threading.active_count()
        with ThreadPoolExecutor(THREADS + LOOPS + 1) as pool:
            work = [pool.submit(thread, number) for number in range(THREADS)]
            work += [pool.submit(asyncio.run, loop(number)) for number in range(LOOPS)]
            work.append(pool.submit(put_time_forward))
            for done in work:
                done.result(600)

        assert not wrong, wrong[:5]
        assert got["token"] > 1000, got
        assert set(got) <= {"token", "cancelled", "ImdsServiceError", "ImdsUnavailableError"}, got
        assert got["cancelled"], got
        # Two identities and four resources, each aged or expired at most once per step of the clock.
        assert len(imds.requests) < 8 * 3 * (steps + 1), (len(imds.requests), steps, got)
        deadline = time.monotonic() + 60
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() <= before, "threads of ended requests are left"
        for entry in _options.process_cache._entries.values():
            assert entry.plain_request is None
            assert entry.forced_request is None
            assert not entry.calls
            assert not entry.endpoint.limiter.active
