"""`azure-imds serve`: what programs that ask it are answered, and what IMDS is asked for that."""

from __future__ import annotations

import ast
import asyncio
import math
import re
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from raw_http import exchange
from serving import TARGET, TOKEN_PATH, VAULT, Serving, members, serving

import azure_imds_credential.serve
import azure_imds_credential.serve._instance as serve_instance
import azure_imds_credential.serve._tokens as serve_tokens
from azure_imds_credential import ImdsRequestError, __version__
from azure_imds_credential.aio import ImdsCredential
from azure_imds_credential.serve import SERVE_HEADER
from azure_imds_credential.serve._instance import BODY_LIMIT, KEPT_SECONDS, Instance, next_turn
from azure_imds_credential.serve._program import ServeOptions, check_addresses
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, faults, forget_tokens
from azure_imds_credential.testing._http.connection import End
from azure_imds_credential.testing.faults import Reply, Steps

STORAGE = f"{TOKEN_PATH}?api-version=2018-02-01&resource=https://storage.azure.com/"
USER = UserAssigned("app")


@pytest.fixture
def imds() -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator([SystemAssigned(), USER], throttle=True) as imds:
        yield imds


@pytest.fixture
def serve(imds: ImdsEmulator) -> Iterator[Serving]:
    with serving(imds) as serve:
        yield serve


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The credential asks once: what comes back is told without waiting."""
    monkeypatch.setattr(serve_tokens, "ImdsCredential", partial(ImdsCredential, retry_total=0))


# The shape of answers


def test_serve_answers_as_imds_does(imds: ImdsEmulator, serve: Serving) -> None:
    """Members, their order and their values are IMDS's, every one a string; only the time left may differ."""
    ours, theirs = members(serve.ask()), members(exchange(imds.endpoint, TARGET))
    assert list(ours) == list(theirs)
    assert all(isinstance(value, str) for value in ours.values())
    for name in ("expires_in", "expires_on"):  # the credential rounds down what is left
        assert abs(int(ours.pop(name)) - int(theirs.pop(name))) <= 5, name
    assert ours == theirs


def test_serve_headers_name_imds_and_serve(serve: Serving) -> None:
    """`Server` begins as IMDS's does, and a header of its own says that it is serve."""
    answer = serve.ask()
    assert (answer.header("Server") or "").startswith("IMDS/")
    assert answer.header(SERVE_HEADER) == __version__
    assert answer.header("Content-Type") == "application/json; charset=utf-8"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.header("x-ms-request-id") or "")


def test_serve_counts_the_time_left_down(imds: ImdsEmulator, serve: Serving) -> None:
    """`expires_in` is what is left when the answer is given; `expires_on` stays."""
    body = serve_tokens.TokenBody("a.b.c", VAULT, serve_identity(), None, 5000, 1000.0)
    early, late = (body.at(now).body for now in (1000.0, 4000.5))
    assert b'"expires_in":"4000"' in early
    assert b'"expires_in":"1000"' in late
    assert b'"expires_on":"5000"' in early
    assert b'"expires_on":"5000"' in late


def serve_identity() -> Any:
    from azure_imds_credential import IdentityInfo

    return IdentityInfo(None, None, None, None, None, None, None, {})


def test_serve_invents_no_client_id() -> None:
    """An opaque token of an identity without a client ID comes without that member, as on Container Instances."""
    body = serve_tokens.TokenBody("opaque", VAULT, serve_identity(), None, 5000, 1000.0).at(1000.0).body
    assert b"client_id" not in body
    asked = serve_tokens.TokenBody("opaque", VAULT, serve_identity(), "me", 5000, 1000.0).at(1000.0).body
    assert b'"client_id":"me"' in asked


def test_serve_head_is_get_without_the_body(serve: Serving) -> None:
    """HEAD has GET's status and headers, and no body."""
    get, head = serve.ask(), serve.ask(method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.header("Content-Length") == get.header("Content-Length")


# How often IMDS is asked


def test_serve_asks_once_for_a_crowd(imds: ImdsEmulator, serve: Serving) -> None:
    """However many clients ask at once, IMDS gets one request per identity and resource."""
    release = threading.Event()
    imds.script(faults.hold(release))
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(serve.token) for _ in range(50)]
        imds.wait_for_requests(1)
        release.set()
        assert len({each.result() for each in asked}) == 1
    imds.assert_requests(1)


def test_serve_keeps_identities_and_resources_apart(imds: ImdsEmulator, serve: Serving) -> None:
    """Each (identity, resource) has its own token; the case of an identity's ID does not count."""
    targets = [TARGET, STORAGE, f"{TARGET}&client_id={USER.client_id}", f"{STORAGE}&object_id={USER.object_id}"]
    targets.append(f"{TARGET}&msi_res_id={USER.resource_id}")
    tokens = [serve.token(target) for target in targets]
    assert len(set(tokens)) >= len(targets) - 1  # the emulator gives one token for one identity, however it is named
    again = [serve.token(target.replace(USER.client_id, USER.client_id.upper())) for target in targets]
    again[-1] = serve.token(f"{TARGET}&mi_res_id={USER.resource_id.upper()}")
    assert again == tokens
    imds.assert_requests(len(targets))


def test_serve_honours_bypass_cache(imds: ImdsEmulator, serve: Serving) -> None:
    """`bypass_cache=true` is handed on, once in 30 s however many ask."""
    serve.token()
    for _ in range(3):
        serve.token(f"{TARGET}&bypass_cache=true")
    assert len(imds.token_requests) == 2
    imds.assert_requests(1, bypass_cache="true")


def test_serve_forgets_when_told(imds: ImdsEmulator, serve: Serving) -> None:
    """After `forget` each token is asked for anew, past IMDS's own cache, once."""
    serve.token()
    serve.call(serve.service.forget)
    serve.token()
    serve.token()
    imds.assert_requests(1, bypass_cache=None)
    imds.assert_requests(1, bypass_cache="true")
    assert serve.told[-1][0] == "upstream"
    assert ("forgot", {"tokens": 1}) in serve.told


def test_serve_forgets_what_it_held_and_no_more(imds: ImdsEmulator, serve: Serving) -> None:
    """After `forget` only tokens that were held are asked for past IMDS's own cache, each until it has come."""
    serve.token()
    serve.call(serve.service.forget)
    for resource in ("management.azure.com", "vault.azure.net", "storage.azure.com"):
        serve.token(f"{TOKEN_PATH}?api-version=2018-02-01&resource=https://{resource}")
    asked = [(request.param("resource"), request.param("bypass_cache")) for request in imds.token_requests[1:]]
    assert [bypass for _, bypass in asked] == [None, "true", None]


def test_serve_where_an_error_breaks_off(imds: ImdsEmulator, serve: Serving) -> None:
    """An error of IMDS whose body breaks off is answered as an error of IMDS, and not as one of serve."""

    def broken(reply: Reply) -> Steps:
        yield Reply(403, b"{}", reply.headers).with_header("Content-Length", "20").encode()
        yield End.CLOSE

    imds.script(broken, seconds=600)
    answer = serve.ask(TARGET)
    assert (answer.status, b"broke off" in answer.data) == (403, True)


def test_serve_forgets_what_is_under_way(imds: ImdsEmulator, serve: Serving) -> None:
    """A token that was asked for before `forget` reaches those who wait for it, and is not held for others."""
    release = threading.Event()
    imds.script(faults.hold(release))
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(serve.token)
        imds.wait_for_requests(1)
        serve.call(serve.service.forget)
        after = pool.submit(serve.token)
        imds.wait_for_requests(2)
        release.set()
        assert before.result() in imds.tokens
        assert serve.token() == after.result()
    imds.assert_requests(1, bypass_cache="true")
    assert len(imds.token_requests) == 2


def test_serve_drops_the_least_used(imds: ImdsEmulator) -> None:
    """Of more tokens than it may hold, the one that was asked for least recently is dropped."""
    with serving(imds, max_tokens=2) as serve:
        first, second, third = (f"{TOKEN_PATH}?api-version=2018-02-01&resource=https://r{n}.example" for n in range(3))
        for target in (first, second, first, third):
            serve.token(target)
        imds.clear_requests()
        serve.token(first)
        serve.token(third)
        imds.assert_requests(0)
        serve.token(second)
        imds.assert_requests(1)


def test_serve_failures_push_out_no_token(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that bring no token have a place of their own, so that a flood of them costs no held token."""
    monkeypatch.setattr(serve_tokens, "MAX_WITHOUT_TOKEN", 2)
    with serving(imds, max_tokens=2) as serve:
        serve.token()
        for number in range(5):
            assert serve.ask(f"{TARGET}&client_id=unknown-{number}").status == 400
        imds.clear_requests()
        serve.token()
        imds.assert_requests(0)


# Errors


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize(
    "fault",
    [
        faults.status(400, {"error": "invalid_request", "error_description": "Identity not found"}),
        faults.status(403, {"error": "forbidden", "error_description": "No"}),
        faults.status(404, {"error": "not_found", "error_description": "Updating"}),
        faults.status(410, {"error": "gone", "error_description": "Updating"}),
        faults.throttled(),
        faults.status(500, {"error": "server_error", "error_description": "Ill"}),
        faults.status(503, {"error": "service_unavailable", "error_description": "Ill"}),
    ],
    ids=["400", "403", "404", "410", "429", "500", "503"],
)
def test_serve_errors_keep_status_and_body(
    fault: faults.Fault, *, shared: bool, imds: ImdsEmulator, request: pytest.FixtureRequest
) -> None:
    """What IMDS answers to the last attempt is what the client gets, byte by byte."""
    if shared:
        request.getfixturevalue("memory")
    imds.script(fault, seconds=math.inf)
    with serving(imds, shared_cache=shared) as serve:
        ours, theirs = serve.ask(), exchange(imds.endpoint, TARGET)
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    assert len(imds.token_requests) == 2


def test_hooks_may_read_the_body(imds: ImdsEmulator) -> None:
    """A hook that reads a response, as serve's does, takes nothing from the credential: an error stays what it is."""
    imds.script(faults.status(400, {"error": "invalid_resource", "error_description": "AADSTS500011: none"}))
    credential = ImdsCredential(endpoint=imds.endpoint, raw_response_hook=lambda came: came.http_response.read())
    with pytest.raises(ImdsRequestError, match="AADSTS500011"):
        asyncio.run(credential.get_token(VAULT))
    assert asyncio.run(credential.get_token(VAULT)).token == imds.tokens[0]
    assert len(imds.token_requests) == 2


def test_serve_hands_on_all_of_entras_words(imds: ImdsEmulator, serve: Serving) -> None:
    """Entra's refusal comes with its codes, trace ID and whole description."""
    target = f"{TOKEN_PATH}?api-version=2018-02-01&resource=nowhere"
    ours, theirs = members(serve.ask(target)), members(exchange(imds.endpoint, target))
    assert list(ours) == list(theirs)
    assert ours["error_codes"] == [500011]
    assert len(ours["error_description"]) == len(theirs["error_description"])
    assert serve.ask(target).status == 400


@pytest.mark.usefixtures("no_retries")
def test_serve_hands_on_retry_after(imds: ImdsEmulator) -> None:
    """A Retry-After of IMDS's last answer reaches the client."""
    imds.script(faults.throttled(retry_after=7), seconds=math.inf)
    with serving(imds) as serve:
        answer = serve.ask()
    assert (answer.status, answer.header("Retry-After")) == (429, "7")


@pytest.mark.parametrize(
    "fault",
    [faults.html(), faults.docker_desktop_403(), faults.members(resource="https://other.example")],
    ids=["html", "docker desktop", "another resource"],
)
def test_serve_gives_no_token_of_others(fault: faults.Fault, imds: ImdsEmulator, serve: Serving) -> None:
    """Where something else than IMDS answers, or for something else, the client gets 502 or 503 that says so."""
    imds.script(fault)
    answer = serve.ask()
    assert answer.status in (502, 503)
    assert set(members(answer)) == {"error", "error_description"}


def test_serve_without_imds_says_so() -> None:
    """Nothing upstream is 503 with a body that says it: serve cannot refuse the connection itself."""
    forget_tokens()
    with socket.socket() as taken:  # bound and not listening, so that nothing else can answer there
        taken.bind(("127.0.0.1", 0))
        with serving(f"http://127.0.0.1:{taken.getsockname()[1]}") as serve:
            answer = serve.ask()
    assert answer.status == 503
    assert answer.json["error"] == "service_unavailable"
    assert "no IMDS behind it" in answer.json["error_description"]


def test_serve_answers_while_imds_is_down(imds: ImdsEmulator, serve: Serving) -> None:
    """A held token is handed out whatever becomes of IMDS."""
    token = serve.token()
    with imds.down():
        assert serve.token() == token
        assert serve.ask("/healthz", metadata=False).status == 200


def test_serve_answers_dying_tokens_while_imds_is_down() -> None:
    """A token in its last minutes, which every caller tries to refresh, is handed out too while it lasts."""
    forget_tokens()
    with ImdsEmulator(token_lifetime=290) as imds, serving(imds) as serve:
        token = serve.token()
        with imds.down():
            assert serve.token() == token


@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
def test_serve_behind_serve_is_refused(
    *, shared: bool, imds: ImdsEmulator, serve: Serving, request: pytest.FixtureRequest
) -> None:
    """Serve takes no answer of a serve, so that it never asks itself: the token of the inner one is not handed on."""
    if shared:
        request.getfixturevalue("memory")
    with serving(serve.url, shared_cache=shared) as outer:
        for target in (TARGET, "/metadata/versions"):
            answer = outer.ask(target)
            assert answer.status == 503
            assert "another azure-imds serve" in answer.json["error_description"]
    imds.assert_requests(0)


def test_serve_refuses_answers_of_serve(imds: ImdsEmulator, serve: Serving) -> None:
    """A token that comes with serve's header is thrown away, whatever server sent it."""
    imds.script(faults.status(200, {"access_token": "x"}, headers={SERVE_HEADER: "9"}))
    answer = serve.ask()
    assert answer.status == 503
    assert "another azure-imds serve" in answer.json["error_description"]


def test_serve_never_asks_the_variable(imds: ImdsEmulator, serve: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, which leads to serve itself for the whole machine, does not decide whom serve asks."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", serve.url)
    serve.token()
    imds.assert_requests(1)


def test_serve_refuses_its_own_address() -> None:
    """--endpoint with the address that serve listens on is refused at the start."""
    options = ServeOptions(endpoint="http://127.0.0.1:8169")
    with pytest.raises(ValueError, match="where serve itself listens"):
        check_addresses(options, "127.0.0.1", 8169)


def test_serve_stands_on_the_public_api() -> None:
    """Outside its own package serve imports public names only, and nothing of the testing kit."""
    package = Path(azure_imds_credential.serve.__file__).parent
    found = set()
    for file in package.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                found |= {f"{node.module}.{name.name}" if node.module else name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                assert not [name for name in names if name.startswith("azure_imds_credential")], file
    assert "aio.ImdsCredential" in found
    assert [name for name in found if name.startswith(("_", "testing")) and name != "__version__"] == []


# Probes and wrong questions


@pytest.mark.parametrize("target", [TARGET, TOKEN_PATH], ids=["with query", "without"])
def test_serve_answers_probes(target: str, imds: ImdsEmulator, serve: Serving) -> None:
    """A request without Metadata gets IMDS's own 400, and IMDS hears nothing of it."""
    ours, theirs = serve.ask(target, metadata=False), exchange(imds.endpoint, target, {"Connection": "close"})
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    assert len(imds.requests) == 1


@pytest.mark.parametrize(
    "query",
    [
        "resource=https://vault.azure.net",
        "api-version=2018-02-01",
        "api-version=2018-02-01&resource=",
        "api-version=2017-04-02&resource=https://vault.azure.net",
        "api-version=next&resource=https://vault.azure.net",
        "api-version=2018-02-01&resource=https://vault.azure.net&resource=https://graph.microsoft.com",
        "api-version=2018-02-01&resource=https://vault.azure.net&secret=1",
        "api-version=2018-02-01&resource=https://vault.azure.net&bypass_cache=1",
        "api-version=2018-02-01&resource=https://vault.azure.net&client_id=a&object_id=b",
    ],
)
def test_serve_refuses_wrong_queries(query: str, imds: ImdsEmulator, serve: Serving) -> None:
    """Wrong questions get what the emulator of IMDS answers, without a request to it."""
    ours, theirs = serve.ask(f"{TOKEN_PATH}?{query}"), exchange(imds.endpoint, f"{TOKEN_PATH}?{query}")
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    assert len(imds.requests) == 1


@pytest.mark.parametrize(
    "query",
    [
        "&client_id=",
        "&authority=https://login.microsoftonline.com/other",
        "&x=1" * 20,
        "&client_id=%ff",
        "&client_id=%20",
        "&object_id=%00",
        "&msi_res_id=%0d%0aX:%20y",
        "%20with%20spaces",
        "%0d%0aX:%20y",
    ],
)
def test_serve_refuses_odd_queries(query: str, imds: ImdsEmulator, serve: Serving) -> None:
    """What IMDS has no published answer to is 400 in its shape, without a request to IMDS."""
    answer = serve.ask(TARGET + query)
    assert answer.status == 400
    assert answer.json["error"] == "invalid_request"
    assert imds.requests == []


@pytest.mark.parametrize("path", ["/", "/metadata", f"{TOKEN_PATH}//", "/metadata/identity/info", "/x"])
def test_serve_knows_no_other_paths(path: str, imds: ImdsEmulator, serve: Serving) -> None:
    """Other paths are 404 in IMDS's words."""
    answer = serve.ask(path)
    assert (answer.status, answer.body) == (404, b'{"error":"Not Found"}')
    assert imds.requests == []


def test_serve_takes_slashes_at_the_ends(serve: Serving) -> None:
    """msal4j before 1.26 begins the path with two slashes, and msal-node ends it with one: both are understood."""
    assert serve.ask(f"/{TARGET}").status == 200
    assert serve.ask(TARGET.replace("?", "/?")).status == 200


# The rest of IMDS


@pytest.mark.parametrize(
    "target", ["/metadata/versions", "/metadata/instance?api-version=2021-02-01", "/metadata/instance"]
)
def test_serve_hands_instance_metadata_through(target: str) -> None:
    """/metadata/instance and /metadata/versions are IMDS's, asked for once a minute however many ask."""
    with ImdsEmulator() as imds, serving(imds) as serve:
        ours, theirs = serve.ask(target), exchange(imds.endpoint, target)
        assert (ours.status, ours.body, ours.header("Content-Type")) == (
            theirs.status,
            theirs.body,
            theirs.header("Content-Type"),
        )
        imds.clear_requests()
        with ThreadPoolExecutor(8) as pool:
            assert {each.body for each in pool.map(lambda _, at=target: serve.ask(at), range(8))} == {ours.body}
        assert imds.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/metadata/instance/../identity/oauth2/token",
        "/metadata/instance/..%2fidentity/oauth2/token",
        "/metadata/instance/%2e%2e/identity/oauth2/token",
        "/metadata/instance/compute/%2E./../../identity/oauth2/token",
        "/metadata/instance/./../identity/oauth2/token",
        "/metadata/instance/..;/identity/oauth2/token",
        "/metadata/instance//../../identity/oauth2/token",
        "/metadata/instance%2f..%2fidentity/oauth2/token",
        "/metadata/instance/\xe9",
        "/metadata/instance/\\..\\identity",
    ],
)
def test_serve_instance_paths_lead_nowhere_else(path: str, imds: ImdsEmulator, serve: Serving) -> None:
    """What is handed through stays below /metadata/instance: no path leads to the token endpoint past the cache."""
    answer = serve.ask(f"{path}?api-version=2018-02-01&resource={VAULT}")
    assert answer.status in (400, 404)
    assert b"access_token" not in answer.data
    assert imds.requests == []


def test_serve_instance_answers_age(imds: ImdsEmulator) -> None:
    """After a minute IMDS is asked again."""
    now = [0.0]

    async def asked_at(*seconds: float) -> None:
        async with Instance(imds.endpoint, lambda *_: None, lambda: now[0]) as instance:
            for moment in seconds:
                now[0] = moment
                assert (await instance.answer("/metadata/versions")).status == 200

    asyncio.run(asked_at(0.0, KEPT_SECONDS - 1, KEPT_SECONDS, KEPT_SECONDS + 1))
    assert len(imds.requests) == 2


def test_serve_instance_requests_take_turns() -> None:
    """At most 5 requests in any second go to the rest of IMDS."""
    turns: deque[float] = deque(maxlen=5)
    for _ in range(12):
        turns.append(next_turn(turns, 100.0))
        if len(turns) == 5:
            assert turns[-1] - turns[0] in (0.0, pytest.approx(1.1))
    assert turns[-1] == pytest.approx(102.2)


def test_serve_instance_needs_metadata(imds: ImdsEmulator, serve: Serving) -> None:
    """The rest of IMDS needs the Metadata header as well."""
    assert serve.ask("/metadata/instance?api-version=2021-02-01", metadata=False).status == 400
    assert imds.requests == []


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (faults.redirect("http://127.0.0.1:1/"), 502),
        (faults.status(200, b"x" * (BODY_LIMIT + 1)), 502),
        (faults.wrong_length(), 503),
        (faults.throttled(), 429),
        (faults.drip(0.0001), 200),
    ],
    ids=["redirect", "too large", "broken", "throttled", "slow"],
)
def test_serve_instance_faults(fault: faults.Fault, status: int, imds: ImdsEmulator, serve: Serving) -> None:
    """A redirect is not followed, a broken answer is 503, and neither is kept; one that comes in pieces is whole."""
    imds.script(fault, path="/metadata/versions")
    assert serve.ask("/metadata/versions").status == status
    assert serve.ask("/metadata/versions").status == 200


# Health and metrics


def test_serve_health_asks_when_nothing_is_known(imds: ImdsEmulator, serve: Serving) -> None:
    """/healthz says whether a token could be had: it asks IMDS for one when none was asked for yet, once."""
    for _ in range(3):
        assert serve.ask("/healthz", metadata=False).status == 200
    imds.assert_requests(1)


def test_serve_health_tells_failures(imds: ImdsEmulator) -> None:
    """Without a token /healthz is 503 with the reason, and does not ask IMDS at every probe."""
    refusal = {
        "error": "invalid_resource",
        "error_description": "AADSTS500011: no such resource",
        "error_codes": [500011],
    }
    imds.script(faults.status(400, refusal), seconds=math.inf)
    with serving(imds) as serve:
        for _ in range(3):
            answer = serve.ask("/healthz", metadata=False)
            assert answer.status == 503
            assert b"AADSTS500011" in answer.body
        imds.assert_requests(1)
        imds.clear_faults()
        serve.token()
        assert serve.ask("/healthz", metadata=False).status == 200


def test_serve_metrics_count(imds: ImdsEmulator, serve: Serving) -> None:
    """/metrics tells in Prometheus's form what was asked, refused, and asked of IMDS."""
    serve.token()
    serve.token()
    serve.ask(metadata=False)
    serve.ask(TARGET, "Origin: https://evil.example")
    text = serve.ask("/metrics", metadata=False).body.decode()
    for line in (
        'azure_imds_serve_requests_total{path="token",status="200"} 2.0',
        'azure_imds_serve_requests_total{path="token",status="400"} 1.0',
        'azure_imds_serve_requests_total{path="refused",status="400"} 1.0',
        'azure_imds_serve_refused_requests_total{reason="metadata"} 1.0',
        'azure_imds_serve_refused_requests_total{reason="browser"} 1.0',
        'azure_imds_serve_upstream_requests_total{outcome="token"} 1.0',
        "azure_imds_serve_tokens 1.0",
    ):
        assert line in text.splitlines()


def test_serve_metrics_need_prometheus_client(serve: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client /metrics says what is missing; everything else works."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = serve.ask("/metrics", metadata=False)
    assert (answer.status, b"prometheus-client" in answer.body) == (501, True)
    serve.token()


# Told on standard output


def test_serve_tells_of_upstream_requests(imds: ImdsEmulator, serve: Serving) -> None:
    """Each exchange with IMDS is one event with its facts; requests that are answered from memory are none."""
    serve.token()
    serve.token()
    ((event, facts),) = serve.told
    assert event == "upstream"
    assert (facts["identity"], facts["resource"], facts["outcome"], facts["attempts"]) == (
        "the machine's default identity",
        VAULT,
        "token",
        1,
    )


def test_serve_tells_of_instance_requests(serve: Serving) -> None:
    """So is a request to the rest of IMDS, by its path; one that is answered from the last minute is none."""
    for _ in range(2):
        serve.ask("/metadata/instance/compute?api-version=2021-02-01")
    ((event, facts),) = serve.told
    assert (event, facts["path"], facts["status"]) == ("upstream", "/metadata/instance/compute", 200)
    assert facts["milliseconds"] >= 0


def test_serve_tells_what_was_served(imds: ImdsEmulator, serve: Serving) -> None:
    """The report of a minute says what was served in it; a minute without requests has none."""
    serve.token()
    serve.token()
    serve.ask(metadata=False)
    serve.call(serve.service.report)
    serve.call(serve.service.report)
    reports = [facts for event, facts in serve.told if event == "served"]
    assert reports == [{"requests": 3, "status_200": 2, "status_400": 1, "upstream": 1, "tokens": 1}]


# When many wait


def test_serve_keeps_places_for_held_tokens(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """When as many wait for IMDS as may, further ones get 429 at once, and held tokens are still handed out."""
    monkeypatch.setattr(serve_tokens, "MAX_WAITING", 3)
    release = threading.Event()
    with serving(imds) as serve, ThreadPoolExecutor(3) as pool:
        token = serve.token()
        imds.script(*[faults.hold(release)] * 3)
        asked = [pool.submit(serve.ask, f"{TARGET}{n}") for n in range(3)]
        imds.wait_for_requests(4)
        assert serve.ask(STORAGE).status == 429
        assert serve.token() == token
        release.set()
        assert [each.result().status for each in asked] == [200] * 3
        assert serve.ask(STORAGE).status == 200


def test_serve_instance_requests_keep_no_client_from_its_token(
    imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When as many wait for instance metadata as may, also for the same answer, a further one gets 429 at once."""
    monkeypatch.setattr(serve_instance, "MAX_WAITING", 2)
    release = threading.Event()
    imds.script(faults.hold(release), path="/metadata/versions")
    with serving(imds) as serve, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(serve.ask, "/metadata/versions") for _ in range(2)]
        while serve.call(lambda: serve.service._instance._waiting) < 2:
            threading.Event().wait(0.01)
        assert serve.ask("/metadata/versions").status == 429
        serve.token()
        release.set()
        assert [each.result().status for each in asked] == [200] * 2
        assert serve.ask("/metadata/instance").status == 400  # IMDS's words: no api-version


def test_serve_goes_on_when_clients_leave(imds: ImdsEmulator, serve: Serving) -> None:
    """A client that leaves while IMDS is asked takes the token from no other client."""
    import socket
    from urllib.parse import urlsplit

    release = threading.Event()
    imds.script(faults.hold(release))
    place = urlsplit(serve.url)
    with socket.create_connection((place.hostname, place.port)) as leaving:
        leaving.sendall(f"GET {TARGET} HTTP/1.1\r\nHost: {serve.host}\r\nMetadata: true\r\n\r\n".encode())
        imds.wait_for_requests(1)
    release.set()
    serve.token()
    imds.assert_requests(1)


# A new serve


@pytest.mark.usefixtures("memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")
def test_serve_restarts_with_shared_tokens(imds: ImdsEmulator) -> None:
    """With --shared-cache the next serve hands out what the one before it held, while IMDS is down."""
    with serving(imds, shared_cache=True) as serve:
        token = serve.token()
    with imds.down(), serving(imds, shared_cache=True) as serve:
        assert serve.token() == token
    imds.assert_requests(1)


@pytest.mark.usefixtures("memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")
def test_serve_forgets_shared_tokens_too(imds: ImdsEmulator) -> None:
    """After `forget` a token in the shared cache counts as little as one in memory."""
    with serving(imds, shared_cache=True) as serve:
        serve.token()
        imds.renew_tokens()
        serve.call(serve.service.forget)
        serve.token()
    imds.assert_requests(1, bypass_cache="true")


@pytest.mark.parametrize("endpoint", ["169.254.169.254", "ftp://127.0.0.1", "http://"])
def test_serve_refuses_wrong_endpoints(endpoint: str) -> None:
    """--endpoint must be a URL, and that is said at the start."""
    with pytest.raises(ValueError, match="endpoint"), serving(endpoint):
        pass
