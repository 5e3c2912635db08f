"""Hypothesis over what servers may answer and callers may pass: documented errors only, no hang, no wrong token.

FUZZ=20 in the environment tries twenty times as many examples.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import math
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flavors import VAULT, Flavor, VirtualTime
from hypothesis import given, settings
from hypothesis import strategies as st

from azure_imds_credential import ImdsError
from azure_imds_credential._identity import Identity
from azure_imds_credential._imds.response import (
    BROKEN_BODY,
    EXCERPT_LIMIT,
    LARGE_BODY,
    NoResponse,
    Response,
    Situation,
    Verdict,
    judge,
)
from azure_imds_credential._imds.retry import Retry, next_delay
from azure_imds_credential._jwt import MAX_LIFE
from azure_imds_credential._whoami import identity_info
from azure_imds_credential.testing import ImdsEmulator
from azure_imds_credential.testing.faults import End, Reply, Steps

TIMES = int(os.environ.get("FUZZ", "1"))

ids = st.sampled_from([None, "6a7b8c9d-0000-4000-8000-00000000abcd", "6A7B8C9D-0000-4000-8000-00000000ABCD", "x"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ids,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
numbers = st.one_of(
    json_values,
    st.integers(-10, 10**12),
    st.integers(-10, 10**12).map(str),
    st.sampled_from(["86399", 3600, 3599.9, "1e3", "1_000", "nan", 10**400]),
)
tokens = st.sampled_from(["good", "e30.e30.e30", "e30.eyJhcHBpZCI6IngifQ.x", "a b", "a\r\nb", ""]) | json_values
members = st.fixed_dictionaries(
    {},
    optional={
        "access_token": tokens,
        "expires_in": numbers,
        "expires_on": numbers,
        "resource": st.sampled_from([VAULT, VAULT + "/", "https://graph.microsoft.com"]) | json_values,
        "client_id": ids | json_values,
        "error": st.sampled_from(["invalid_request", "invalid_resource"]) | json_values,
        "error_description": json_values,
        "error_codes": json_values,
    },
)
bodies = st.one_of(
    st.none(),
    st.binary(max_size=200),
    members.map(lambda document: json.dumps(document).encode()),
    members.map(lambda document: b"\xef\xbb\xbf" + json.dumps(document).encode()),
    members.map(lambda document: json.dumps(document).encode()[:-3]),
    st.integers(1, 100_000).map(lambda depth: b"[" * depth),
)
header_text = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=30)
headers = st.dictionaries(
    st.sampled_from(["server", "date", "retry-after", "x-ms-request-id", "content-type", "location"]),
    header_text
    | st.sampled_from(["IMDS/1", "Mon, 21 Sep 2026 14:13:20 GMT", "5", "86400", "Mon, 21 Sep 2026 14:13:20", "0" * 50]),
    max_size=5,
)
responses = st.builds(Response, st.integers(100, 999), headers, bodies, st.sampled_from(["", BROKEN_BODY, LARGE_BODY]))
FLAGS = st.booleans()
failures = st.builds(
    NoResponse,
    st.just("connecting failed"),
    is_absent=FLAGS,
    has_listener=FLAGS,
    is_refused=FLAGS,
    is_fault=FLAGS,
    is_shortage=FLAGS,
    is_blocked=FLAGS,
)
situations = st.builds(Situation, seen=FLAGS, is_booting=FLAGS, has_proxy_agent=FLAGS)
identities = st.sampled_from(
    [
        Identity(),
        Identity(must_be_system_assigned=True),
        Identity("client_id", "6a7b8c9d-0000-4000-8000-00000000abcd"),
        Identity("object_id", "x"),
        Identity("resource_id", "/subscriptions/x"),
    ]
)


@settings(max_examples=300 * TIMES, deadline=None)
@given(
    came_back=responses | failures,
    identity=identities,
    situation=situations,
    now=st.floats(0, 1e11),
)
def test_every_response_is_judged(
    came_back: Response | NoResponse, identity: Identity, situation: Situation, now: float
) -> None:
    """Judging never fails, and a token comes only from a 200 with a usable life and no other identity or resource."""
    verdict = judge(came_back, identity, VAULT, situation, now)
    assert (verdict.error is None) == bool(verdict.access_token)
    for shown in (verdict.description, verdict.code, verdict.excerpt, verdict.request_id, verdict.client_id):
        assert shown is None or (len(shown) <= EXCERPT_LIMIT and shown.isprintable())
    assert verdict.reason.isprintable()
    assert verdict.retry_after is None or 0 <= verdict.retry_after < math.inf
    if verdict.error is None:
        assert isinstance(came_back, Response)
        check_token(verdict, came_back, identity)
    elif isinstance(came_back, Response):
        assert verdict.status == came_back.status
        assert not verdict.is_absent
        assert not (verdict.refused_by_agent and came_back.body)


def check_token(verdict: Verdict, response: Response, identity: Identity) -> None:
    """Assert what every token promises."""
    assert response.status == 200
    assert response.body is not None
    document = json.loads(response.body.decode("utf-8-sig"))
    assert document["access_token"] == verdict.access_token
    assert 0 < verdict.life <= MAX_LIFE
    resource, client_id = document.get("resource"), document.get("client_id")
    assert resource in (VAULT, VAULT + "/") or not isinstance(resource, str) or not resource
    if identity.kind == "client_id" and isinstance(client_id, str) and client_id:
        assert client_id.lower().removesuffix("/") == identity.value
    assert not identity.must_be_system_assigned, "no token here has a claim xms_mirid"


@settings(max_examples=200 * TIMES, deadline=None)
@given(
    retry=st.sampled_from(Retry),
    done=st.integers(0, 10**9),
    elapsed=st.floats(0, 1e9),
    retry_after=st.none() | st.floats(0, 1e18),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_every_wait_is_finite(retry: Retry, done: int, elapsed: float, retry_after: float | None, draw: float) -> None:
    """No wait is negative or endless, begins before Retry-After, or ends outside its window."""
    delay = next_delay(retry, done, elapsed, retry_after, lambda: draw)
    if delay is None:
        return
    schedule = retry.value
    assert 0 <= delay < math.inf
    assert done < schedule.retries
    assert elapsed + delay <= schedule.until + 1e-6 * elapsed
    assert delay >= (retry_after or 0)
    assert retry_after is not None or delay <= schedule.cap + schedule.lead


@settings(max_examples=200 * TIMES, deadline=None)
@given(
    st.text(max_size=60) | st.dictionaries(st.sampled_from(["exp", "iat", "oid", "appid"]), json_values).map(json.dumps)
)
def test_any_token_is_decoded(text: str) -> None:
    """Tokens are opaque: whoami takes any text."""
    import base64

    for token in (text, f"{text}.{text}.{text}", f"e30.{base64.urlsafe_b64encode(text.encode()).decode()}.x"):
        info = identity_info(token)
        assert isinstance(info.claims, dict)


wire_heads = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda status, lines: b"HTTP/1.1 %d X\r\n" % status + b"".join(lines),
        st.sampled_from([200, 200, 200, 400, 404, 429, 500, 302, 204, 100, 999]),
        st.lists(
            st.sampled_from(
                [
                    b"Server: IMDS/1\r\n",
                    b"Content-Type: application/json\r\n",
                    b"Content-Length: 0\r\n",
                    b"Content-Length: 20\r\n",
                    b"Content-Length: -1\r\n",
                    b"Content-Length: 99999999999999999999\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"Content-Encoding: gzip\r\n",
                    b"Content-Encoding: br, deflate\r\n",
                    b"Retry-After: 1\r\n",
                    b"Location: //[\r\n",
                    b"Set-Cookie: a=b; expires=never; domain=\xff\r\n",
                    b"Connection: close\r\n",
                    b"\r\n",
                ]
            )
            | st.binary(max_size=20),
            max_size=5,
        ),
    ),
)


# urllib3 leaves a socket to the garbage collector when two Content-Length headers differ.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_stream_of_bytes(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Over a real socket: a token that was sent with a 200, or an error of ours; never a hang."""

    @settings(max_examples=60 * TIMES, deadline=None)
    @given(head=wire_heads, body=bodies.filter(lambda body: body is not None), keep_open=st.booleans())
    def survives(head: bytes, body: bytes, keep_open: bool) -> None:
        def wire(_reply: Reply) -> Steps:
            yield head + b"\r\n" + body
            yield 0.02 if keep_open else End.CLOSE

        imds.clear_faults()
        imds.script(wire, seconds=math.inf)
        with contextlib.suppress(ImdsError):
            token = flavor.ask(imds.endpoint, read_timeout=0.05, timeout=20).token
            assert token.encode() in body
            assert head.startswith(b"HTTP/1.1 200")

    survives()
    gc.collect()  # here, where its warning is expected


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.just([]),
    st.just({}),
)
endpoints = st.one_of(
    anything,
    st.builds(
        lambda scheme, rest: f"{scheme}://{rest}", st.sampled_from(["http", "https", "ftp", ""]), st.text(max_size=20)
    ),
    st.sampled_from(
        ["http://127.0.0.1:9", "http://[::1]:9/x/", "http://[", "http://:80", "http://a:99999", "http://a:b"]
    ),
)
arguments = st.fixed_dictionaries(
    {"endpoint": endpoints},
    optional={
        **dict.fromkeys(
            (
                "client_id",
                "object_id",
                "resource_id",
                "timeout",
                "wait_for_identity",
                "shared_cache",
                "require_system_assigned",
            ),
            anything,
        ),
        **dict.fromkeys(
            ("retry_total", "connection_timeout", "read_timeout", "user_agent", "logging_enable"), anything
        ),
        **dict.fromkeys(("transport", "raw_request_hook", "per_call_policies", "proxies", "tracing_options"), anything),
    },
)


def test_every_argument_is_taken_or_refused(flavor: Flavor) -> None:
    """A constructor raises TypeError or ValueError, or makes a credential that prints, copies and pickles."""

    @settings(max_examples=200 * TIMES, deadline=None)
    @given(arguments)
    def taken_or_refused(given_arguments: dict[str, Any]) -> None:
        try:
            credential = flavor.ImdsCredential(**given_arguments)
        except (TypeError, ValueError):
            return
        again = pickle.loads(pickle.dumps(credential))
        assert repr(again) == repr(copy.copy(credential)) == repr(copy.deepcopy(credential)) == repr(credential)

    taken_or_refused()


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
def test_every_scope_is_asked_for_or_refused(
    method: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A scope gives the token of its resource, or TypeError or ValueError, or an error of ours."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    scopes = anything | st.text(max_size=30).map(lambda text: f"https://{text}/.default")

    @settings(max_examples=60 * TIMES, deadline=None)
    @given(st.lists(scopes, max_size=2) | scopes.map(lambda scope: [scope]))
    def asked_or_refused(given_scopes: list[Any]) -> None:
        imds.clear_requests()
        try:
            token = flavor.run(getattr(credential, method)(*given_scopes)).token
        except (TypeError, ValueError):
            imds.assert_requests(0)
        except ImdsError:
            assert given_scopes[0].removesuffix("/.default")
        else:
            assert token in imds.tokens
            for request in imds.requests:
                assert request.param("resource") == given_scopes[0].removesuffix("/.default")

    asked_or_refused()


@pytest.mark.skipif(not find_spec("atheris"), reason="atheris is not installed: `make fuzz` does it")
def test_coverage_guided(tmp_path: Path) -> None:
    """A bounded run of atheris over `judge` ends without a finding."""
    script = Path(__file__).parent / "fuzz_responses.py"
    run = subprocess.run(
        [
            sys.executable,
            str(script),
            f"-runs={20_000 * TIMES}",
            f"-max_total_time={8 * TIMES}",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + 10 * TIMES,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Done " in run.stderr
