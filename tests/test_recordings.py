"""`imds_vcr`: what is written down, what comes back later, and that a replay never reaches the network."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
import yaml
from azure.keyvault.secrets import SecretClient
from azure.keyvault.secrets.aio import SecretClient as AsyncSecretClient
from vcr.patch import force_reset  # type: ignore[import-untyped] # vcrpy ships no types

from azure_imds_credential import ImdsCredential
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import (
    ImdsEmulator,
    ReplayError,
    SystemAssigned,
    UserAssigned,
    VaultDouble,
    forget_tokens,
    imds_vcr,
    scan_recordings,
)
from azure_imds_credential.testing._network import LeftLoopbackError, loopback_only
from azure_imds_credential.testing._recording.fakes import is_dummy_token, is_fake

RECORDINGS = Path(__file__).parent.parent / "recordings"
SCOPE = "https://vault.azure.net/.default"
FIVE_YEARS = 5 * 365 * 86400  # seconds
SYSTEM_VAULT = "https://demo-system-assigned.vault.azure.net"
GREETING_FAKE = "fakee"  # what stands for "hello"
GREETING = f"{SYSTEM_VAULT}/secrets/greeting/"


@pytest.fixture(autouse=True)
def _no_tokens_held() -> None:
    forget_tokens()


def claims_of(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def exchanges(recording: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(recording.read_text())["interactions"]
    return found


def token_request(endpoint: str = "http://127.0.0.1:9", **query: str) -> requests.Response:
    """One request as any client of IMDS sends it."""
    params = {"api-version": "2018-02-01", "resource": "https://vault.azure.net", **query}
    url = f"{endpoint}/metadata/identity/oauth2/token"
    return requests.get(url, params=params, headers={"Metadata": "true"}, timeout=10)


# What is written down


REAL = UserAssigned(
    "payroll",
    client_id="6a7b1f0c-94c5-4d5e-8d1c-0b6a5a1c9e11",
    object_id="0c4cf5b6-3d44-4f64-9a4b-6b6c2f6a7d22",
    resource_id="/subscriptions/5f0c2a3e-7f55-4a3c-9f0a-1d2e3f4a5b6c/resourceGroups/Payroll-Prod"
    "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/payroll",
)
PRIVATE = ("6a7b1f0c", "0c4cf5b6", "5f0c2a3e", "payroll-prod", "userassignedidentities/payroll", "hunter2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A session of an identity with real-looking names, recorded; and the token that it was given."""
    recording = tmp_path_factory.mktemp("recordings") / "made.yaml"
    forget_tokens()
    with ImdsEmulator([REAL]) as imds, VaultDouble("made", {"password": "hunter2"}) as vault:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in vault.environment().items():
                environment.setenv(name, value)
            with imds_vcr(recording, record_mode="once"):
                credential = ImdsCredential(endpoint=imds.endpoint, resource_id=REAL.resource_id)
                assert SecretClient(vault.url, credential).get_secret("password").value == "hunter2"
        return recording, imds.tokens[0]


def test_a_recording_names_nobody_and_holds_no_secret(made: tuple[Path, str]) -> None:
    """Neither the token, nor the names of identity, subscription and group, nor the secret's value are in the file."""
    recording, token = made
    text = recording.read_text().lower()
    assert [part for part in (*PRIVATE, *token.lower().split(".")) if part in text] == []
    assert "authorization:\n" not in text
    assert scan_recordings([recording]) == []


def test_a_dummy_token_keeps_the_claims_shape(made: tuple[Path, str]) -> None:
    """The token in the file has the names and types of the real one's claims, and a signature that says what it is."""
    recording, real = made
    dummy = json.loads(exchanges(recording)[-2]["response"]["body"]["string"])["access_token"]
    shape = {name: type(value) for name, value in claims_of(real).items()}
    assert {name: type(value) for name, value in claims_of(dummy).items()} == shape
    assert is_dummy_token(dummy)
    assert not is_dummy_token(real)


def test_one_identity_has_one_fake_wherever_it_is_named(made: tuple[Path, str]) -> None:
    """Query, answer and claims agree on the fakes, so that a replayed answer is for the identity that was asked."""
    asked, _ = exchanges(made[0])[-2:]
    answer = json.loads(asked["response"]["body"]["string"])
    claims = claims_of(answer["access_token"])
    assert claims["appid"] == answer["client_id"] != REAL.client_id
    named = re.search(r"msi_res_id=([^&]+)", asked["request"]["uri"])
    assert named
    assert unquote(named[1]).lower() == claims["xms_mirid"].lower()


def test_the_order_of_requests_does_not_change_the_fakes(tmp_path: Path) -> None:
    """Two recordings that meet two identities in opposite order hold the same fakes for them."""
    one, other = UserAssigned("one"), UserAssigned("other")
    seen = []
    with ImdsEmulator([one, other]) as imds:
        for order in ([one, other], [other, one]):
            recording = tmp_path / f"{order[0].name}.yaml"
            with imds_vcr(recording, record_mode="all"):
                for identity in order:
                    token_request(imds.endpoint, client_id=identity.client_id)
            answers = [json.loads(e["response"]["body"]["string"])["client_id"] for e in exchanges(recording)]
            seen.append(dict(zip([i.name for i in order], answers, strict=True)))
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == 2


@pytest.fixture
def says() -> Iterator[Callable[[bytes, dict[str, str]], str]]:
    """A loopback server that answers with what it is told to; gives its URL."""
    told: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in {**told["headers"], "Content-Length": str(len(told["body"]))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told["body"])

        do_POST = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()

        def says(body: bytes, headers: dict[str, str]) -> str:
            told.update(body=body, headers=headers)
            return f"http://127.0.0.1:{server.server_port}/"

        yield says
        server.shutdown()
        thread.join()


LIVE = "eyJhbGciOiJSUzI1NiJ9." + base64.urlsafe_b64encode(b'{"oid":"x"}').rstrip(b"=").decode() + "." + "A" * 342
GUID = "0c4cf5b6-3d44-4f64-9a4b-6b6c2f6a7d22"


@pytest.mark.parametrize(
    ("body", "headers", "gone"),
    [
        (f'{{"inner": {{"token": "{LIVE}"}}}}', {}, LIVE),
        (f"plain text with {LIVE}", {}, LIVE),
        (f"<html>{GUID}</html>", {}, GUID),
        (f'[{{"id": "/subscriptions/{GUID}/resourceGroups/secret-group"}}]', {}, "secret-group"),
        (f'{{"identities": {{"/subscriptions/{GUID}/resourceGroups/secret-group": {{}}}}}}', {}, "secret-group"),
        (f'{{"identities": {{"/subscriptions/{GUID}/resourceGroups/secret-group": {{}}}}}}', {}, GUID),
        ('{"key1": "0123456789abcdef"}', {}, "0123456789abcdef"),
        ('{"access_token": "opaque", "expires_on": "99"}', {}, "opaque"),
        ('{"value": "hunter2", "id": "https://v/secrets/a/b"}', {}, "hunter2"),
        ("Endpoint=sb://x/;SharedAccessKey=hunter2hunter2=", {}, "hunter2"),
        ('{"properties": {"primaryConnectionString": "hunter2"}}', {}, "hunter2"),
        ('{"keys": [{"keyName": "key1", "value": "' + "A" * 86 + '=="}]}', {}, "A" * 20),
        ("", {"Set-Cookie": "session=hunter2"}, "hunter2"),
        ("", {"x-ms-keyvault-network-info": "addr=203.0.113.7"}, "203.0.113.7"),
        ("", {"x-ms-request-id": GUID}, GUID),
        ("", {"Location": f"https://login.example/{GUID}?sig=hunter2hunter2"}, "hunter2"),
        ("", {"X-Token": LIVE}, LIVE),
    ],
)
def test_answers_of_any_service_are_scrubbed(
    tmp_path: Path, says: Callable[[bytes, dict[str, str]], str], body: str, headers: dict[str, str], gone: str
) -> None:
    """Tokens, identities and secrets go from bodies and headers, of IMDS and of everything else; status stays."""
    url = says(body.encode(), headers)
    with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
        heard = requests.get(url, timeout=10)
    assert gone in heard.text + str(heard.headers)
    assert gone not in (tmp_path / "a.yaml").read_text()
    with imds_vcr(tmp_path / "a.yaml"):
        again = requests.get(url, timeout=10)
    assert (again.status_code, len(again.content)) == (200, int(again.headers["Content-Length"]))


def test_requests_are_scrubbed(tmp_path: Path, says: Callable[[bytes, dict[str, str]], str]) -> None:
    """Of a request no credential stays: not in headers, not in the form, not in the URL."""
    url = says(b"", {})
    form = f"client_secret=hunter2hunter2&client_assertion={LIVE}&client_id={GUID}"
    with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
        requests.post(f"{url}?sig=hunter2hunter2&id={GUID}", form, headers={"Authorization": "Basic x"}, timeout=10)
    text = (tmp_path / "a.yaml").read_text()
    assert [part for part in ("hunter2", LIVE, GUID, "Basic") if part in text] == []


def test_compression_without_a_header_is_looked_into(
    tmp_path: Path, says: Callable[[bytes, dict[str, str]], str]
) -> None:
    """A token inside compressed bytes is replaced there, and the bytes are compressed again."""
    import zlib

    url = says(zlib.compress(LIVE.encode()), {"Content-Type": "application/octet-stream"})
    with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
        requests.get(url, timeout=10)
    with imds_vcr(tmp_path / "a.yaml"):
        assert is_dummy_token(zlib.decompress(requests.get(url, timeout=10).content).decode())


def test_a_compressed_answer_is_scrubbed(tmp_path: Path, says: Callable[[bytes, dict[str, str]], str]) -> None:
    """Compression on the wire hides nothing from the scrubber."""
    import gzip

    url = says(gzip.compress(b'{"value": "hunter2"}'), {"Content-Encoding": "gzip"})
    with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
        assert requests.get(url, timeout=10).json() == {"value": "hunter2"}
    with imds_vcr(tmp_path / "a.yaml"):
        assert is_fake(requests.get(url, timeout=10).json()["value"])


def test_filters_of_the_user_are_added(tmp_path: Path, says: Callable[[bytes, dict[str, str]], str]) -> None:
    """A user's hooks and filters run too, and take nothing away from ours."""
    url = says(json.dumps({"value": "hunter2", "city": "Paris"}).encode(), {})

    def no_city(response: dict[str, Any]) -> dict[str, Any]:
        response["body"]["string"] = response["body"]["string"].replace(b"Paris", b"somewhere")
        return response

    def no_path(request: Any) -> Any:
        request.uri = request.uri.replace("customer-7", "customer")
        return request

    options: dict[str, Any] = {
        "before_record_response": no_city,
        "before_record_request": [no_path],
        "filter_headers": ["accept"],
        "filter_query_parameters": ["plain"],
        "match_on": ["body"],
    }
    with imds_vcr(tmp_path / "a.yaml", record_mode="once", **options):
        requests.post(f"{url}customer-7?plain=1&id={GUID}", b"one", timeout=10)
    text = (tmp_path / "a.yaml").read_text()
    assert [part for part in ("hunter2", "Paris", "customer-7", "Accept:", "plain", GUID) if part in text] == []
    with imds_vcr(tmp_path / "a.yaml", **options):
        requests.post(f"{url}customer-7?plain=1&id={GUID}", b"one", timeout=10)
    with pytest.raises(ReplayError), imds_vcr(tmp_path / "a.yaml", **options):
        requests.post(f"{url}customer-7?plain=1&id={GUID}", b"two", timeout=10)


# What comes back


def aged(recording: Path, seconds: int, into: Path) -> Path:
    """A copy of a recording that was made so much earlier."""
    content = yaml.safe_load(recording.read_text())
    for exchange in content["interactions"]:
        response = exchange["response"]
        made = parsedate_to_datetime(response["headers"]["Date"][0]).timestamp()
        response["headers"]["Date"] = [formatdate(made - seconds, usegmt=True)]
        body = json.loads(response["body"]["string"])
        for name in {"expires_on", "not_before"} & body.keys():
            body[name] = str(int(body[name]) - seconds)
        response["body"]["string"] = json.dumps(body)
    into.write_text(yaml.dump(content))
    return into


@pytest.mark.parametrize("age", [0, FIVE_YEARS])
def test_a_recording_is_as_good_in_five_years(tmp_path: Path, age: int) -> None:
    """Expiry, start and Date are moved to now, in the answer and in the token; a secret is read with it."""
    recording = aged(RECORDINGS / "system-assigned.yaml", age, tmp_path / "aged.yaml")
    replayed_on = time.time()
    with imds_vcr(recording, clock=lambda: replayed_on):
        answer = token_request()
        token = ImdsCredential().get_token_info(SCOPE)
        secret = SecretClient(SYSTEM_VAULT, ImdsCredential()).get_secret("greeting")
    body, now = answer.json(), time.time()
    life = int(body["expires_in"])
    assert abs(parsedate_to_datetime(answer.headers["Date"]).timestamp() - now) < 60
    assert abs(int(body["expires_on"]) - now - life) < 60
    assert abs(int(body["not_before"]) - now + 300) < 120  # a token's start is set back by five minutes
    assert abs(token.expires_on - now - life) < 60
    assert secret.value == GREETING_FAKE
    if not age:  # `aged` leaves the claims as they were
        assert claims_of(body["access_token"])["exp"] == int(body["expires_on"])


def test_the_claims_move_with_the_answer() -> None:
    """`exp`, `nbf` and `iat` of the replayed token are those of the answer around it, on the clock that was given."""
    later = time.time() + FIVE_YEARS
    with imds_vcr(RECORDINGS / "system-assigned.yaml", clock=lambda: later):
        body = token_request().json()
    claims = claims_of(body["access_token"])
    assert abs(claims["exp"] - later - int(body["expires_in"])) < 60
    assert (str(claims["exp"]), str(claims["nbf"])) == (body["expires_on"], body["not_before"])
    assert claims["iat"] == claims["nbf"]


@pytest.mark.parametrize("selector", ["client_id", "object_id", "resource_id"])
def test_a_program_replays_with_its_own_identity(tmp_path: Path, selector: str) -> None:
    """Who recorded with a real identity replays with it: the answer names that identity, though the file does not."""
    own = {selector: getattr(REAL, selector)}
    with ImdsEmulator([SystemAssigned(), REAL]) as imds:
        with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
            ImdsCredential(endpoint=imds.endpoint, **own).get_token(SCOPE)
    assert getattr(REAL, selector).lower() not in (tmp_path / "a.yaml").read_text().lower()
    forget_tokens()
    with imds_vcr(tmp_path / "a.yaml"):
        who = ImdsCredential(**own).whoami(SCOPE)
    assert (getattr(who, selector) or "").lower() == getattr(REAL, selector).lower()


def test_a_program_replays_with_the_fake_identity_too() -> None:
    """Who has no identity of their own names the one in the file."""
    fake = "facade00-0000-4000-8000-00000000c11e"
    with imds_vcr(RECORDINGS / "user-assigned-client-id.yaml"):
        assert ImdsCredential(client_id=fake).whoami(SCOPE).client_id == fake


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ({}, True),
        ({"api-version": "2026-01-01"}, True),
        ({"resource": "https://management.azure.com"}, False),
        ({"client_id": GUID}, False),
        ({"bypass_cache": "true"}, False),
    ],
)
def test_the_query_that_matters_is_matched(query: dict[str, str], matches: bool) -> None:
    """Resource and identity count; the version of the interface, and where IMDS is, do not."""
    with imds_vcr(RECORDINGS / "system-assigned.yaml"):
        assert token_request("http://169.254.169.254").status_code == 200
    if matches:
        with imds_vcr(RECORDINGS / "system-assigned.yaml"):
            assert token_request(**query).status_code == 200
        return
    with pytest.raises(ReplayError, match="has no answer"), imds_vcr(RECORDINGS / "system-assigned.yaml"):
        token_request(**query)


@pytest.mark.parametrize(
    ("url", "matches"),
    [
        (f"{GREETING}?api-version=7.4", True),
        (f"{GREETING}?api-version=7.4&maxresults=1", False),
        (f"{SYSTEM_VAULT}/secrets/other/?api-version=7.4", False),
        ("https://other.vault.azure.net/secrets/greeting/?api-version=7.4", False),
        (f"{SYSTEM_VAULT}:8443/secrets/greeting/?api-version=7.4", False),
    ],
)
def test_the_vault_is_matched_by_host_and_path(url: str, matches: bool) -> None:
    """A vault's api-version follows the release of the SDK and does not count; host, port and path do."""
    if matches:
        with imds_vcr(RECORDINGS / "system-assigned.yaml"):
            assert requests.get(url, timeout=10).status_code == 401
        return
    with pytest.raises(ReplayError, match="has no answer"), imds_vcr(RECORDINGS / "system-assigned.yaml"):
        requests.get(url, timeout=10)


def test_imds_repeats_its_last_answer() -> None:
    """IMDS may be asked more often than was recorded: first what was recorded in its order, then the last again."""
    with imds_vcr(RECORDINGS / "throttled-then-fine.yaml"):
        assert [token_request().status_code for _ in range(4)] == [429, 200, 200, 200]


def test_only_imds_repeats() -> None:
    """A vault that is asked more often than was recorded is an error."""
    expected = pytest.raises(ReplayError, match=re.escape(f"no answer (left) for GET {GREETING}"))
    with expected, imds_vcr(RECORDINGS / "system-assigned.yaml"):
        assert [requests.get(GREETING, timeout=10).status_code for _ in range(2)] == [401, 200]
        requests.get(GREETING, timeout=10)


async def read_secret_async() -> str | None:
    async with AsyncImdsCredential() as credential, AsyncSecretClient(SYSTEM_VAULT, credential) as client:
        return (await client.get_secret("greeting")).value


def test_the_async_classes_replay_the_same_recording() -> None:
    """One recording serves sync and async: aio's exchange runs over the same transport, its vault over aiohttp."""
    with imds_vcr(RECORDINGS / "system-assigned.yaml"):
        assert asyncio.run(read_secret_async()) == GREETING_FAKE


# What a replay refuses


def test_a_replay_needs_a_recording(tmp_path: Path) -> None:
    """Without a file there is nothing to replay; recording starts only when asked for."""
    with pytest.raises(FileNotFoundError, match="record_mode"), imds_vcr(tmp_path / "none.yaml"):
        pytest.fail("nothing was there to replay")
    assert not (tmp_path / "none.yaml").exists()


def test_once_replays_what_is_there(tmp_path: Path) -> None:
    """Record mode "once" with a file is a replay with all its refusals, whatever runs at the recorded address."""
    with ImdsEmulator() as imds:
        for _ in range(2):
            with imds_vcr(tmp_path / "a.yaml", record_mode="once"):
                token_request(imds.endpoint)
        with pytest.raises(ReplayError), imds_vcr(tmp_path / "a.yaml", record_mode="once"), loopback_only():
            token_request(imds.endpoint, client_id=GUID)
    imds.assert_requests(1)


def test_a_recording_is_no_decorator() -> None:
    """As a decorator it would end before an async function ran; so it is refused where it is written."""
    with pytest.raises(TypeError, match="not callable"):
        imds_vcr(RECORDINGS / "system-assigned.yaml")(read_secret_async)  # type: ignore[operator] # that is the point


def test_one_command_records_a_session(tmp_path: Path) -> None:
    """`recordings/record.py`, the command for a VM, makes a recording that is clean and replays."""
    made = tmp_path / "made.yaml"
    with ImdsEmulator([REAL]) as imds, VaultDouble("one-command", {"password": "hunter2"}) as vault:
        there = {**os.environ, **vault.environment(), "AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint}
        said = ["--vault-url", vault.url, "--secret", "password", "--client-id", REAL.client_id]
        command = [sys.executable, str(RECORDINGS / "record.py"), str(made), *said]
        done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("secret password :  hunter2\n")
    assert [part for part in PRIVATE if part in made.read_text().lower()] == []
    with imds_vcr(made):
        secret = SecretClient(vault.url, ImdsCredential(client_id=REAL.client_id)).get_secret("password")
    assert secret.value
    assert is_fake(secret.value)
    assert len(secret.value) == len("hunter2")


def test_a_replay_changes_no_file() -> None:
    """Replaying writes nothing, whatever happens in it."""
    before = (RECORDINGS / "system-assigned.yaml").read_bytes()
    with pytest.raises(ReplayError), imds_vcr(RECORDINGS / "system-assigned.yaml"):
        token_request(resource="https://elsewhere")
    assert (RECORDINGS / "system-assigned.yaml").read_bytes() == before


def test_a_request_that_escapes_vcrpy_is_refused() -> None:
    """While one thread makes a connection, vcrpy is off for all: what another asks for then goes to a real socket."""
    expected = pytest.raises(ReplayError, match=r"169\.254\.169\.254 .*was refused.*replay in one thread")
    with expected, imds_vcr(RECORDINGS / "system-assigned.yaml"), force_reset():  # as vcrpy does at that moment
        token_request("http://169.254.169.254")


def test_an_escape_is_told_although_the_program_swallowed_it() -> None:
    """A bare except, or a thread whose result is dropped, cannot hide that a request tried to leave."""

    def careless() -> None:
        try:
            with force_reset():
                requests.get("https://demo.vault.azure.net", timeout=10)
        except BaseException:
            return

    with pytest.raises(ReplayError, match=r"a look-up of demo.vault.azure.net .*was refused.*replay in one thread"):
        with imds_vcr(RECORDINGS / "system-assigned.yaml"):
            careless()


def test_a_concurrent_replay_never_reaches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads in one replay: each request is answered from the recording, or the replay fails; none gets out."""
    got_out: list[Any] = []
    original = socket.socket.connect

    def underneath(self: socket.socket, address: Any) -> Any:
        got_out.append(address)
        return original(self, address)

    def ask(_: int) -> str:
        try:
            return str(token_request("http://169.254.169.254").status_code)
        except BaseException as error:
            return type(error).__name__

    monkeypatch.setattr(socket.socket, "connect", underneath)
    failed = ""
    with ThreadPoolExecutor(16) as threads:
        try:
            with imds_vcr(RECORDINGS / "system-assigned.yaml"):
                answers = list(threads.map(ask, range(320)))
        except ReplayError as error:
            failed = str(error)
    assert got_out == []
    assert set(answers) == {"200"} if not failed else "LeftLoopbackError" in answers
    assert http.client.HTTPConnection.__module__ == "http.client"  # vcrpy's patches are off again


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "127.0.0.1.example.com", "localhost.example.com"])
def test_loopback_is_judged_by_the_parsed_address(host: str) -> None:
    """What only looks like loopback is refused before a packet or a look-up leaves."""
    with loopback_only() as refused:
        with pytest.raises(LeftLoopbackError, match=re.escape(host)):
            socket.create_connection((host, 80), timeout=1)
    assert len(refused) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost"])
def test_loopback_itself_is_left_alone(host: str) -> None:
    """Servers on this machine can be reached, by number and by name."""
    with socket.create_server(("", 0)) as server, loopback_only() as refused:
        socket.create_connection((host, server.getsockname()[1]), timeout=10).close()
    assert refused == []


# The recordings of this project


def test_every_recording_states_source_and_date() -> None:
    """`recordings/README.md` names each file with what it was made from and the day, which is the day in the file."""
    told = (RECORDINGS / "README.md").read_text()
    for recording in RECORDINGS.glob("*.yaml"):
        made = parsedate_to_datetime(exchanges(recording)[0]["response"]["headers"]["Date"][0])
        assert f"| `{recording.name}` | {made:%Y-%m-%d} | emulator + vault double |" in told


def test_a_recording_has_a_vault_of_its_own() -> None:
    """Key Vault's client remembers challenges by host for the whole process, so no two recordings share one."""
    hosts = [
        {e["request"]["uri"].split("/")[2] for e in exchanges(recording)} - {"169.254.169.254"}
        for recording in RECORDINGS.glob("*.yaml")
    ]
    named = [host for each in hosts for host in each]
    assert len(named) == len(set(named)) == 5
