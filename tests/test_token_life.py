"""The life of a token in a process, seen from outside: what is asked of IMDS, and what callers get meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from flavors import VAULT, Flavor, StillTime, VirtualTime, eventually

from azure_imds_credential import ImdsError, ImdsServiceError, _options
from azure_imds_credential._cache import decision
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._endpoint import MAX_PER_WINDOW
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults
from azure_imds_credential.testing.faults import Reply, Steps

HOUR = 3600.0


def _token(flavor: Flavor, credential: Any, **options: Any) -> str:
    token: str = flavor.run(credential.get_token(VAULT, **options)).token
    return token


def test_cached_token(flavor: Flavor, imds: ImdsEmulator) -> None:
    """One request serves every later call, of both methods."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    tokens = {_token(flavor, credential) for _ in range(5)}
    tokens.add(flavor.run(credential.get_token_info(VAULT)).token)
    assert tokens == {imds.tokens[0]}
    imds.assert_requests(1)


def test_shared_tokens(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Another credential, the other flavor, the scope in another form: the key is endpoint, identity and resource."""
    flavor.ask(imds.endpoint)
    flavor.ask(imds.endpoint + "/", scope=VAULT + "/.default", timeout=5)
    asyncio.run(AsyncImdsCredential(endpoint=imds.endpoint).get_token(VAULT))
    flavor.ask(imds.endpoint, wait_for_identity=3)
    imds.assert_requests(1)


@pytest.mark.parametrize("option", [{"retry_total": 5}, {"user_agent": "mine"}, {"read_timeout": 5}], ids=str)
def test_private_cache(flavor: Flavor, imds: ImdsEmulator, option: dict[str, Any]) -> None:
    """A pipeline option makes the cache private: no token goes in or out."""
    flavor.ask(imds.endpoint)
    own = flavor.ImdsCredential(endpoint=imds.endpoint, **option)
    _token(flavor, own)
    _token(flavor, own)
    flavor.ask(imds.endpoint, **option)
    imds.assert_requests(3)


def test_cache_keys(flavor: Flavor) -> None:
    """No token serves for what it is not."""
    one, two = UserAssigned("one"), UserAssigned("two")
    with ImdsEmulator(identities=[one, two]) as imds:
        asked = [{"client_id": one.client_id}, {"object_id": one.object_id}, {"resource_id": two.resource_id}]
        for selector in asked:
            for scope in (VAULT, "https://management.azure.com/", "https://management.azure.com"):
                flavor.ask(imds.endpoint, scope=scope, **selector)
                flavor.ask(imds.endpoint, scope=scope, **selector)
        imds.assert_requests(9)


def test_token_during_its_refresh(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past half of the token's life, calls return the cached token during one refresh that serves all."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    virtual_time.skip(14 * HOUR)
    imds.renew_tokens()
    answer = threading.Event()
    imds.script(faults.hold(answer))
    monkeypatch.setattr(decision, "REFRESH_WAIT", 300.0)
    begun = time.monotonic()
    assert [_token(flavor, credential) for _ in range(20)] == [first] * 20
    assert time.monotonic() - begun < 60, "a caller waited for IMDS, which says nothing"
    answer.set()
    eventually(lambda: _token(flavor, credential) != first)
    assert _token(flavor, credential) == imds.tokens[-1]
    imds.assert_requests(2)


def test_same_token_again(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """IMDS has a cache of its own: at half of what is left we ask again, but not more than every 30 s."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    asked = []
    for _ in range(200):
        info = flavor.run(credential.get_token_info(VAULT))
        left = info.expires_on - virtual_time.wall()
        if left < 400:
            break
        virtual_time.skip(info.refresh_on - virtual_time.wall() + 1)
        before = len(imds.requests)
        assert _token(flavor, credential) == first
        imds.wait_for_requests(before + 1)
        eventually(lambda: credential._entries[(VAULT,)].plain_request is None)
        asked.append(left)
    assert 7 <= len(asked) <= 12, asked  # 24 h halved until some minutes are left; one day would be 2,880 times 30 s
    ratios = [later / earlier for earlier, later in pairwise(asked)]
    assert all(0.4 < ratio < 0.6 for ratio in ratios), ratios


def test_failed_refresh(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers see nothing of it; the next try comes after 30 s, then 60 s, and it ends with the first success."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    virtual_time.skip(14 * HOUR)
    imds.renew_tokens()
    for number, pause in enumerate((30.0, 60.0)):
        imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'))
        with caplog.at_level(logging.WARNING, "azure_imds_credential"):
            assert _token(flavor, credential) == first
            eventually(lambda: any("cached one serves" in record.getMessage() for record in caplog.records))
        assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
        caplog.clear()
        virtual_time.skip(pause - 5)
        assert _token(flavor, credential) == first
        eventually(
            lambda: credential._entries[(VAULT,)].plain_request is None
        )  # what set out all the same has asked by then
        assert len(imds.requests) == 2 + number, "it asked again too early"
        virtual_time.skip(6)
    eventually(lambda: _token(flavor, credential) != first)
    imds.assert_requests(4)


def test_wait_in_the_last_minutes(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A refresh that answers is waited for; one that hangs delays one caller, and the held token is handed out."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    virtual_time.skip(24 * HOUR - 200)
    answer = threading.Event()
    imds.renew_tokens()
    imds.script(faults.hold(answer))
    begun = time.monotonic()
    assert _token(flavor, credential) == first
    assert 1.5 < time.monotonic() - begun < 60, "it would wait until its timeout"
    begun = time.monotonic()
    assert [_token(flavor, credential) for _ in range(10)] == [first] * 10
    assert time.monotonic() - begun < 15, "each waited for the same refresh, which takes 20 s"
    answer.set()
    eventually(lambda: _token(flavor, credential) != first)
    imds.assert_requests(2)


def test_new_token_in_the_last_minutes(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """When IMDS answers, no caller gets a token that is about to expire."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    virtual_time.skip(24 * HOUR - 200)
    imds.renew_tokens()
    assert _token(flavor, credential) != first


def test_expired_token(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """After its end callers wait for the next one, or get the error."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    virtual_time.skip(24 * HOUR + 1)
    imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'))
    with pytest.raises(ImdsError):
        _token(flavor, credential)
    assert _token(flavor, credential) != first
    imds.assert_requests(3)


@pytest.mark.parametrize("seconds", [29.0, -29.0])
def test_expires_on(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Age is measured by a clock that is never set; a wall clock that is kept in step moves what callers are told."""
    clock = StillTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    before = flavor.run(credential.get_token_info(VAULT))
    clock.wall_at += seconds
    clock.skip(61)  # by then it is noticed
    after = flavor.run(credential.get_token_info(VAULT))
    assert after.token == before.token
    assert (after.expires_on - before.expires_on, after.refresh_on - before.refresh_on) == (seconds, seconds)
    imds.assert_requests(1)


@pytest.mark.parametrize("jump", [5 * HOUR, -5 * HOUR, 400 * 24 * HOUR], ids=["forward", "back", "far forward"])
def test_wall_clock_set(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """It may be a VM that its host paused, so the earlier expiry counts until IMDS has told the life anew."""
    clock = StillTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    before = flavor.run(credential.get_token(VAULT))
    clock.wall_at += jump
    clock.skip(61)
    after = flavor.run(credential.get_token(VAULT))
    assert after.expires_on <= max(before.expires_on, clock.wall() + 24 * HOUR)
    imds.wait_for_requests(2)
    eventually(lambda: credential._entries[(VAULT,)].plain_request is None)
    assert flavor.run(credential.get_token(VAULT)).expires_on == pytest.approx(clock.wall() + 24 * HOUR, abs=61)
    imds.assert_requests(2)


def test_hibernation(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hibernated VM finds its token expired: the boot clock goes on meanwhile."""
    clock = StillTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    _token(flavor, credential)
    clock.skip(3 * 24 * HOUR)
    imds.renew_tokens()
    assert _token(flavor, credential) == imds.tokens[-1]
    imds.assert_requests(2)


@pytest.mark.parametrize("option", [{"force_refresh": True}, {"claims": '{"access_token":{}}'}], ids=str)
def test_forced_refresh(flavor: Flavor, imds: ImdsEmulator, option: dict[str, Any]) -> None:
    """Claims or `force_refresh=True`: one request with bypass_cache, whose token all credentials hold from then on."""
    credential, other = flavor.ImdsCredential(endpoint=imds.endpoint), flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    assert _token(flavor, other) == first
    newer = _token(flavor, credential, **option)
    assert newer != first
    assert _token(flavor, other) == newer
    assert [request.param("bypass_cache") for request in imds.requests] == [None, "true"]
    assert imds.requests[-1].param("claims") is None


def test_rate_of_forced_refreshes(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A storm of claims challenges costs one request; half a minute later it may be forced again."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    tokens = {_token(flavor, credential, force_refresh=True) for _ in range(10)}
    assert len(tokens) == 1
    virtual_time.skip(25)
    assert {_token(flavor, credential, force_refresh=True)} == tokens
    imds.assert_requests(1)
    virtual_time.skip(6)
    assert _token(flavor, credential, force_refresh=True) not in tokens
    imds.assert_requests(2)


def test_refused_bypass(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The effect of the parameter in production is unknown; a 400 to it costs one more request, not the token."""
    imds.script(faults.status(400, b'{"error":"invalid_request","error_description":"Unsupported query variables"}'))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    assert _token(flavor, credential, force_refresh=True) == imds.tokens[-1]
    assert [request.param("bypass_cache") for request in imds.requests] == ["true", None]


UNSUPPORTED = {"error": "invalid_request", "error_description": "Unsupported query variables"}


@pytest.mark.usefixtures("virtual_time")
def test_refused_bypass_is_no_retry(flavor: Flavor, imds: ImdsEmulator) -> None:
    """`retry_total` counts the retries after a failure, not the request without the parameter."""
    imds.script(faults.status(400, UNSUPPORTED), faults.status(503))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, retry_total=1)
    assert _token(flavor, credential, force_refresh=True) == imds.tokens[-1]
    imds.assert_requests(3)


def test_refused_bypass_without_a_slot(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A 400 for the parameter says nothing of the identity: where no time is left to ask without it, a chain stops."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=5)
    limiter = credential._options.entry((VAULT,)).endpoint.limiter

    def refuse(reply: Reply) -> Steps:
        limiter.recent.extend([credential._now() + 60] * MAX_PER_WINDOW)
        yield from faults.status(400, UNSUPPORTED)(reply)

    imds.script(refuse)
    with pytest.raises(ImdsServiceError, match="bypass_cache"):
        _token(flavor, credential, force_refresh=True)
    imds.assert_requests(1)


def test_failed_forced_refresh(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The caller that forced the refresh gets the error; the others get the cached token."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'))
    with pytest.raises(ImdsError):
        _token(flavor, credential, force_refresh=True)
    assert _token(flavor, credential) == first


def test_token_provider(flavor: Flavor, imds: ImdsEmulator) -> None:
    """It asks as `get_token` does, and tells a bad scope when it is made."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    provider = credential.token_provider(VAULT + "/.default")
    imds.assert_requests(0)
    assert [flavor.run(provider()), flavor.run(provider())] == [imds.tokens[0]] * 2
    imds.assert_requests(1)
    with pytest.raises(ValueError, match="exactly one scope"):
        credential.token_provider()


def test_whoami(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The identity that a token speaks for, from its claims."""
    info = flavor.run(flavor.ImdsCredential(endpoint=imds.endpoint).whoami())
    (identity,) = imds.identities
    assert (info.client_id, info.object_id) == (identity.client_id, identity.object_id)
    assert info.tenant_id == imds.tenant_id
    assert info.audience == "https://management.azure.com"
    assert info.claims["oid"] == info.object_id
    assert info.issued_on is not None
    assert info.expires_on is not None
    assert info.issued_on < time.time() < info.expires_on


def test_closed_credential(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Closing does nothing, as often as it is done, and the credential stays usable."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.close())
    flavor.run(credential.close())
    assert _token(flavor, credential)


def test_other_keywords(flavor: Flavor, imds: ImdsEmulator) -> None:
    """`tenant_id`, `enable_cae` and whatever comes with them neither change the request nor the key."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    _token(flavor, credential, tenant_id="11111111-1111-1111-1111-111111111111", enable_cae=True, unheard_of=1)
    flavor.run(credential.get_token_info(VAULT, options={"tenant_id": "x", "enable_cae": True}))
    (request,) = imds.assert_requests(1)
    assert request.param("tenant_id") is None


def test_timeout_of_a_refresh(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A refresh behind the callers' backs has 90 s, however short the `timeout` of the caller who noticed."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=5)
    first = _token(flavor, credential)
    virtual_time.skip(14 * HOUR)
    imds.renew_tokens()
    answer = threading.Event()
    imds.script(faults.hold(answer))
    assert _token(flavor, credential) == first
    imds.wait_for_requests(2)
    virtual_time.skip(60)
    answer.set()
    eventually(lambda: _token(flavor, credential) != first)
    imds.assert_requests(2)


def test_timeout_in_the_last_minutes(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two seconds that a refresh is given never outlast `timeout`."""
    first = flavor.ask(imds.endpoint)
    virtual_time.skip(24 * HOUR - 200)
    answer = threading.Event()
    imds.script(faults.hold(answer))
    monkeypatch.setattr(decision, "REFRESH_WAIT", 300.0)
    begun = time.monotonic()
    try:
        assert flavor.ask(imds.endpoint, timeout=0.2).token == first.token
        assert time.monotonic() - begun < 60
    finally:
        answer.set()


def test_rate_of_bypasses(flavor: Flavor, virtual_time: VirtualTime) -> None:
    """A forced call whose predecessor's token expired at once asks in the ordinary way; later ones bypass again."""
    with ImdsEmulator(clock=virtual_time.wall, token_lifetime=10) as imds:
        credential = flavor.ImdsCredential(endpoint=imds.endpoint)
        _token(flavor, credential, force_refresh=True)
        for seconds in (11, 11, 11):
            virtual_time.skip(seconds)
            _token(flavor, credential, force_refresh=True)
        assert [request.param("bypass_cache") for request in imds.requests] == ["true", None, None, "true"]


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
def test_second_scope(flavor: Flavor, imds: ImdsEmulator, method: str) -> None:
    """The fast way to a held token does not overlook what is wrong with a call."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    _token(flavor, credential)
    with pytest.raises(ValueError, match="exactly one scope"):
        flavor.run(getattr(credential, method)(VAULT, "https://other.example"))


def test_claims_in_get_token_info(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Its options carry the challenge that `get_token` takes as an argument."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = _token(flavor, credential)
    newer = flavor.run(credential.get_token_info(VAULT, options={"claims": '{"access_token":{}}'}))
    assert newer.token != first
    assert [request.param("bypass_cache") for request in imds.requests] == [None, "true"]
