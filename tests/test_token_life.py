"""The life of a token in a process, seen from outside: what is asked of IMDS, and what callers get meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from colours import VAULT, Colour, VirtualTime

from azure_imds_credential import ImdsError, _configuration
from azure_imds_credential._freshness import World
from azure_imds_credential._token_cache import TokenCache
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults

HOUR = 3600.0


def _token(colour: Colour, credential: Any, **options: Any) -> str:
    token: str = colour.run(credential.get_token(VAULT, **options)).token
    return token


def _eventually(what: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def test_a_held_token_is_not_asked_for_again(colour: Colour, imds: ImdsEmulator) -> None:
    """One request serves every later call, of both methods."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    tokens = {_token(colour, credential) for _ in range(5)}
    tokens.add(colour.run(credential.get_token_info(VAULT)).token)
    assert tokens == {imds.tokens[0]}
    imds.assert_requests(1)


def test_credentials_share_their_tokens(colour: Colour, imds: ImdsEmulator) -> None:
    """Another credential, the other colour, the scope in another form: the key is endpoint, identity and resource."""
    colour.ask(imds.endpoint)
    colour.ask(imds.endpoint + "/", scope=VAULT + "/.default", timeout=5)
    asyncio.run(AsyncImdsCredential(endpoint=imds.endpoint).get_token(VAULT))
    colour.ask(imds.endpoint, wait_for_identity=3)
    imds.assert_requests(1)


@pytest.mark.parametrize("option", [{"retry_total": 5}, {"user_agent": "mine"}, {"read_timeout": 5}], ids=str)
def test_a_credential_that_talks_in_its_own_way_shares_nothing(
    colour: Colour, imds: ImdsEmulator, option: dict[str, Any]
) -> None:
    """A pipeline option makes the cache private: no token goes in or out."""
    colour.ask(imds.endpoint)
    own = colour.ImdsCredential(endpoint=imds.endpoint, **option)
    _token(colour, own)
    _token(colour, own)
    colour.ask(imds.endpoint, **option)
    imds.assert_requests(3)


def test_other_identities_and_resources_have_tokens_of_their_own(colour: Colour) -> None:
    """No token serves for what it is not."""
    one, two = UserAssigned("one"), UserAssigned("two")
    with ImdsEmulator(identities=[one, two]) as imds:
        asked = [{"client_id": one.client_id}, {"object_id": one.object_id}, {"resource_id": two.resource_id}]
        for selector in asked:
            for scope in (VAULT, "https://management.azure.com/", "https://management.azure.com"):
                colour.ask(imds.endpoint, scope=scope, **selector)
                colour.ask(imds.endpoint, scope=scope, **selector)
        imds.assert_requests(9)


def test_an_aging_token_is_handed_out_while_it_is_refreshed(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Past half of its life nobody waits for the refresh, and one refresh serves all."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    virtual_time.skip(14 * HOUR)
    imds.renew_tokens()
    answer = threading.Event()
    imds.script(faults.hold(answer))
    begun = time.monotonic()
    assert [_token(colour, credential) for _ in range(20)] == [first] * 20
    assert time.monotonic() - begun < 1.5, "a caller waited for IMDS, which says nothing"
    answer.set()
    _eventually(lambda: _token(colour, credential) != first)
    assert _token(colour, credential) == imds.tokens[-1]
    imds.assert_requests(2)


def test_a_token_that_imds_hands_out_again_is_asked_for_more_often_near_its_end(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """IMDS has a cache of its own: at half of what is left we ask again, but not more than every 30 s."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    asked = []
    for _ in range(200):
        info = colour.run(credential.get_token_info(VAULT))
        left = info.expires_on - virtual_time.wall_clock()
        if left < 400:
            break
        virtual_time.skip(info.refresh_on - virtual_time.wall_clock() + 1)
        before = len(imds.requests)
        assert _token(colour, credential) == first
        imds.wait_for_requests(before + 1)
        _eventually(lambda: credential._slots[VAULT].plain is None)
        asked.append(left)
    assert 7 <= len(asked) <= 12, asked  # 24 h halved until some minutes are left; one day would be 2,880 times 30 s
    ratios = [later / earlier for earlier, later in pairwise(asked)]
    assert all(0.4 < ratio < 0.6 for ratio in ratios), ratios


def test_a_failed_refresh_keeps_the_token_warns_once_and_backs_off(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers see nothing of it; the next try comes after 30 s, then 60 s, and it ends with the first success."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    virtual_time.skip(14 * HOUR)
    imds.renew_tokens()
    for number, pause in enumerate((30.0, 60.0)):
        imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'))
        with caplog.at_level(logging.WARNING, "azure_imds_credential"):
            assert _token(colour, credential) == first
            _eventually(lambda: any("held one serves" in record.getMessage() for record in caplog.records))
        assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
        caplog.clear()
        virtual_time.skip(pause - 5)
        assert _token(colour, credential) == first
        _eventually(lambda: credential._slots[VAULT].plain is None)  # what set out all the same has asked by then
        assert len(imds.requests) == 2 + number, "it asked again too early"
        virtual_time.skip(6)
    _eventually(lambda: _token(colour, credential) != first)
    imds.assert_requests(4)


def test_in_the_last_minutes_a_caller_gives_the_refresh_two_seconds_once(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A refresh that answers is waited for; one that hangs delays one caller, and the held token is handed out."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    virtual_time.skip(24 * HOUR - 200)
    answer = threading.Event()
    imds.renew_tokens()
    imds.script(faults.hold(answer))
    begun = time.monotonic()
    assert _token(colour, credential) == first
    assert 1.5 < time.monotonic() - begun < 3.5
    begun = time.monotonic()
    assert [_token(colour, credential) for _ in range(10)] == [first] * 10
    assert time.monotonic() - begun < 1.5, "a second caller waited for the same refresh"
    answer.set()
    _eventually(lambda: _token(colour, credential) != first)
    imds.assert_requests(2)


def test_in_the_last_minutes_the_first_caller_gets_the_new_token(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """With an IMDS in good health nobody gets a token that is about to expire."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    virtual_time.skip(24 * HOUR - 200)
    imds.renew_tokens()
    assert _token(colour, credential) != first


def test_an_expired_token_is_never_handed_out(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """After its end callers wait for the next one, or get the error."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    virtual_time.skip(24 * HOUR + 1)
    imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'))
    with pytest.raises(ImdsError):
        _token(colour, credential)
    assert _token(colour, credential) != first
    imds.assert_requests(3)


@pytest.mark.parametrize("jump", [5 * HOUR, -5 * HOUR, 400 * 24 * HOUR], ids=["forward", "back", "far forward"])
def test_a_wall_clock_that_is_set_changes_no_life(
    colour: Colour, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Age is measured by a clock that no one sets; `expires_on` follows the wall clock, as it is read by callers."""
    passing, walls = [0.0], [1_800_000_000.0]
    cache = TokenCache(World(lambda: passing[0], lambda: walls[0], partial(float, 0.5)))
    monkeypatch.setattr(_configuration, "process_cache", cache)
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    before = colour.run(credential.get_token_info(VAULT))
    walls[0] += jump
    passing[0] += 61  # by then it is noticed
    walls[0] += 61
    after = colour.run(credential.get_token_info(VAULT))
    assert after.token == before.token
    assert after.expires_on - before.expires_on == pytest.approx(jump, abs=2)
    assert after.refresh_on - before.refresh_on == pytest.approx(jump, abs=2)
    imds.assert_requests(1)


def test_a_machine_that_slept_past_the_end_asks_again(
    colour: Colour, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hibernated VM finds its token expired: the clock goes on meanwhile."""
    passing = [0.0]
    monkeypatch.setattr(_configuration, "process_cache", TokenCache(World(lambda: passing[0])))
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    _token(colour, credential)
    passing[0] += 3 * 24 * HOUR
    imds.renew_tokens()
    assert _token(colour, credential) == imds.tokens[-1]
    imds.assert_requests(2)


@pytest.mark.parametrize("option", [{"force_refresh": True}, {"claims": '{"access_token":{}}'}], ids=str)
def test_a_forced_refresh_asks_imds_to_bypass_its_cache_and_serves_everybody(
    colour: Colour, imds: ImdsEmulator, option: dict[str, Any]
) -> None:
    """Claims or `force_refresh=True`: one request with bypass_cache, whose token all credentials hold from then on."""
    credential, other = colour.ImdsCredential(endpoint=imds.endpoint), colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    assert _token(colour, other) == first
    newer = _token(colour, credential, **option)
    assert newer != first
    assert _token(colour, other) == newer
    assert [request.param("bypass_cache") for request in imds.requests] == [None, "true"]
    assert imds.requests[-1].param("claims") is None


def test_forced_refreshes_happen_once_in_30_seconds(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A storm of claims challenges costs one request; half a minute later it may be forced again."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    tokens = {_token(colour, credential, force_refresh=True) for _ in range(10)}
    assert len(tokens) == 1
    virtual_time.skip(25)
    assert {_token(colour, credential, force_refresh=True)} == tokens
    imds.assert_requests(1)
    virtual_time.skip(6)
    assert _token(colour, credential, force_refresh=True) not in tokens
    imds.assert_requests(2)


def test_an_imds_that_refuses_to_bypass_its_cache_is_asked_without(colour: Colour, imds: ImdsEmulator) -> None:
    """The effect of the parameter in production is unknown; a 400 to it costs one more request, not the token."""
    imds.script(faults.status(400, b'{"error":"invalid_request","error_description":"Unsupported query variables"}'))
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    assert _token(colour, credential, force_refresh=True) == imds.tokens[-1]
    assert [request.param("bypass_cache") for request in imds.requests] == ["true", None]


def test_a_forced_refresh_that_fails_costs_nobody_the_held_token(colour: Colour, imds: ImdsEmulator) -> None:
    """Who forced it gets the error; all others go on with what is held."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'))
    with pytest.raises(ImdsError):
        _token(colour, credential, force_refresh=True)
    assert _token(colour, credential) == first


def test_the_token_provider_gives_the_token_alone(colour: Colour, imds: ImdsEmulator) -> None:
    """It asks as `get_token` does, and tells a bad scope when it is made."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    provider = credential.token_provider(VAULT + "/.default")
    imds.assert_requests(0)
    assert [colour.run(provider()), colour.run(provider())] == [imds.tokens[0]] * 2
    imds.assert_requests(1)
    with pytest.raises(ValueError, match="exactly one scope"):
        credential.token_provider()


def test_whoami_reads_the_token(colour: Colour, imds: ImdsEmulator) -> None:
    """The identity that a token speaks for, from its claims."""
    info = colour.run(colour.ImdsCredential(endpoint=imds.endpoint).whoami())
    (identity,) = imds.identities
    assert (info.client_id, info.object_id) == (identity.client_id, identity.object_id)
    assert info.tenant_id == imds.tenant_id
    assert info.audience == "https://management.azure.com"
    assert info.claims["oid"] == info.object_id
    assert info.issued_on is not None
    assert info.expires_on is not None
    assert info.issued_on < time.time() < info.expires_on


def test_a_closed_credential_goes_on(colour: Colour, imds: ImdsEmulator) -> None:
    """Closing does nothing, as often as it is done, and the credential stays usable."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.close())
    colour.run(credential.close())
    assert _token(colour, credential)


def test_other_keywords_of_sdk_clients_mean_nothing(colour: Colour, imds: ImdsEmulator) -> None:
    """`tenant_id`, `enable_cae` and whatever comes with them neither change the request nor the key."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    _token(colour, credential, tenant_id="11111111-1111-1111-1111-111111111111", enable_cae=True, unheard_of=1)
    colour.run(credential.get_token_info(VAULT, options={"tenant_id": "x", "enable_cae": True}))
    (request,) = imds.assert_requests(1)
    assert request.param("tenant_id") is None


def test_the_time_of_a_caller_does_not_limit_the_refresh_that_he_set_off(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A refresh behind the callers' backs has 90 s, however short the `timeout` of the caller who noticed."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint, timeout=5)
    first = _token(colour, credential)
    virtual_time.skip(14 * HOUR)
    imds.renew_tokens()
    answer = threading.Event()
    imds.script(faults.hold(answer))
    assert _token(colour, credential) == first
    imds.wait_for_requests(2)
    virtual_time.skip(60)
    answer.set()
    _eventually(lambda: _token(colour, credential) != first)
    imds.assert_requests(2)


def test_in_the_last_minutes_a_caller_waits_no_longer_than_he_has_time(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """The two seconds that a refresh is given never outlast `timeout`."""
    first = colour.ask(imds.endpoint)
    virtual_time.skip(24 * HOUR - 200)
    answer = threading.Event()
    imds.script(faults.hold(answer))
    begun = time.monotonic()
    try:
        assert colour.ask(imds.endpoint, timeout=0.2).token == first.token
        assert time.monotonic() - begun < 1.2
    finally:
        answer.set()


def test_a_bypass_is_not_repeated_within_30_s_though_the_token_is_dead(
    colour: Colour, virtual_time: VirtualTime
) -> None:
    """A forced call whose predecessor's token expired at once asks in the ordinary way; later ones bypass again."""
    with ImdsEmulator(clock=virtual_time.wall_clock, token_lifetime=10) as imds:
        credential = colour.ImdsCredential(endpoint=imds.endpoint)
        _token(colour, credential, force_refresh=True)
        for seconds in (11, 11, 11):
            virtual_time.skip(seconds)
            _token(colour, credential, force_refresh=True)
        assert [request.param("bypass_cache") for request in imds.requests] == ["true", None, None, "true"]


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
def test_a_second_scope_is_refused_though_a_token_is_held(colour: Colour, imds: ImdsEmulator, method: str) -> None:
    """The fast way to a held token does not overlook what is wrong with a call."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    _token(colour, credential)
    with pytest.raises(ValueError, match="exactly one scope"):
        colour.run(getattr(credential, method)(VAULT, "https://other.example"))


def test_claims_force_a_refresh_in_get_token_info_too(colour: Colour, imds: ImdsEmulator) -> None:
    """Its options carry the challenge that `get_token` takes as an argument."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    first = _token(colour, credential)
    newer = colour.run(credential.get_token_info(VAULT, options={"claims": '{"access_token":{}}'}))
    assert newer.token != first
    assert [request.param("bypass_cache") for request in imds.requests] == [None, "true"]
