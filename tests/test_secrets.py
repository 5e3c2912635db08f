"""No token is in any log line, error, repr or pickle: every known leak, opened on purpose.

`leaks.py` searches the output of the whole suite in the same way. Here are the responses that other libraries quote.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import threading
from typing import Any

import azure.core.credentials
import pytest
import requests
from flavors import VAULT, Flavor, VirtualTime
from leaks import DUMMY, monitor

from azure_imds_credential import ImdsError
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults
from azure_imds_credential.testing.faults import End, Fault, Reply, Steps


def in_place_of_the_status_line(reply: Reply) -> Steps:
    """http.client's BadStatusLine quotes it."""
    yield reply.body + b"\r\n\r\n"
    yield End.CLOSE


def in_the_status(reply: Reply) -> Steps:
    yield b"HTTP/1.1 " + reply.body + b"\r\n\r\n"
    yield End.CLOSE


def in_the_reason(reply: Reply) -> Steps:
    yield b"HTTP/1.1 403 " + reply.body + b"\r\nContent-Length: 0\r\n\r\n"


def among_the_headers(reply: Reply) -> Steps:
    """urllib3 logs headers that it cannot parse, as a warning with a traceback."""
    yield b"HTTP/1.1 200 OK\r\nServer: IMDS/1\r\nContent-Length: 0\r\nno header\r\n" + reply.body + b"\r\n\r\n"


def in_place_of_a_chunk(reply: Reply) -> Steps:
    """urllib3's InvalidChunkLength quotes it, and azure-core before 1.35 logs that."""
    yield reply.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked").head()
    yield reply.body + b"\r\n"
    yield End.CLOSE


def in_headers(reply: Reply) -> Steps:
    """azure-core's logging policy shows some of them."""
    names = ("Retry-After", "x-ms-request-id", "Set-Cookie", "ETag", "WWW-Authenticate", "Location", "Content-Type")
    lines = b"".join(name.encode() + b": " + reply.body + b"\r\n" for name in names)
    yield b"HTTP/1.1 400 Bad Request\r\nServer: IMDS/1\r\n" + lines + b"Content-Length: 0\r\n\r\n"


def in_a_redirect(reply: Reply) -> Steps:
    yield (
        reply.with_body(b"").with_header("Location", "http://" + reply.body.decode()).head().replace(b"200", b"302", 1)
    )


def cut_short(reply: Reply) -> Steps:
    """The JSONDecodeError of json keeps the document."""
    yield reply.with_body(reply.body[:-1]).encode()


def echoed(**members: str) -> Fault:
    """Return a fault that repeats the token in other members."""

    def echo(reply: Reply) -> Steps:
        document = json.loads(reply.body)
        token = document["access_token"]
        document.update({name: value.format(token) for name, value in members.items()})
        yield reply.with_body(json.dumps(document).encode()).encode()

    return echo


def as_an_error(code: int, **headers: str | None) -> Fault:
    """Return an error whose words are the token."""

    def error(reply: Reply) -> Steps:
        token = json.loads(reply.body)["access_token"]
        body = {"error": token, "error_description": f"Bearer {token}"}
        yield from faults.status(code, body, headers=headers)(reply)

    return error


def on_a_page(reply: Reply) -> Steps:
    """A proxy that shows the body that it should carry."""
    page = f"<pre>{reply.body.decode()}</pre>"
    yield from faults.html(200, page)(reply)


LEAKY: dict[str, Fault] = {
    "in place of the status line": in_place_of_the_status_line,
    "in the status": in_the_status,
    "in the reason": in_the_reason,
    "among the headers": among_the_headers,
    "in place of a chunk": in_place_of_a_chunk,
    "in headers": in_headers,
    "in a redirect": in_a_redirect,
    "cut short": cut_short,
    "broken off": faults.reset(after=-5),
    "with a length too short": faults.wrong_length(-7),
    "with a 500": lambda reply: faults.status(500, reply.body)(reply),
    "with a 403": lambda reply: faults.status(403, reply.body)(reply),
    "on a page": on_a_page,
    "as an error": as_an_error(400),
    "as an error of an unknown server": as_an_error(403, Server=None),
    "as a throttling": as_an_error(429),
    "as the resource": echoed(resource="{}"),
    "as the client": echoed(client_id="{}"),
    "as the expiry": echoed(expires_in="{}", expires_on="{}"),
    "with a line break": echoed(access_token="{}\r\n"),
    "with a space": echoed(access_token="{} "),
}


@pytest.mark.parametrize("name", LEAKY)
def test_no_leak(name: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Wherever a server puts the token, it is in no log record, error, traceback, repr or pickle."""
    app = UserAssigned("app")
    imds.assign(app)
    imds.script(LEAKY[name], seconds=math.inf)
    with pytest.raises(ImdsError) as caught:
        flavor.ask(imds.endpoint, client_id=app.client_id, logging_enable=True)
    error = caught.value
    assert imds.tokens
    monitor.note_error(copy.copy(error))
    assert monitor.said
    assert monitor.leaks() == []
    # What holds the response (BadStatusLine, JSONDecodeError, ...) is cut off rather than searched.
    assert error.__cause__ is None
    assert error.__context__ is None
    assert (error.exc_type, error.exc_value, error.exc_traceback, error.inner_exception) == (None, None, None, None)
    assert error.response is None


@pytest.mark.parametrize("name", ["well", "chunked", "throttled first"])
def test_no_leak_of_success(name: str, flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """A request that brings a token leaks none, with every logger at DEBUG, those of msal and the HTTP stack too."""
    imds.script({"well": faults.ok, "chunked": faults.chunked}.get(name, faults.throttled()))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, logging_enable=True)
    flavor.run(credential.get_token(VAULT))
    flavor.run(credential.get_token_info(VAULT))
    flavor.run(credential.get_token(VAULT, force_refresh=True))
    assert {where for where, _ in monitor.said} >= {
        "log record of msal.managed_identity",
        "log record of azure.core.pipeline.policies.http_logging_policy",
        "log record of azure_imds_credential",
    }
    assert monitor.leaks() == []


def test_reprs_of_tokens(flavor: Flavor, imds: ImdsEmulator) -> None:
    """What is returned has the types of azure-core, and no format of it shows the token."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    token, info = (flavor.run(call(VAULT)) for call in (credential.get_token, credential.get_token_info))
    secret, expires_on = token
    assert isinstance(token, azure.core.credentials.AccessToken)
    assert isinstance(info, azure.core.credentials.AccessTokenInfo)
    assert [secret] == [info.token] == imds.tokens
    assert token == azure.core.credentials.AccessToken(secret, expires_on)
    for shown in (
        f"{token}",
        f"{token!r}",
        f"{info}",
        f"{info!r}",
        "{0} {0!r}".format(token),  # noqa: UP032 # a format that takes the token as an argument, as logging does
        str([token, info]),
        f"{credential}",
    ):
        assert secret[:20] not in shown
        assert "redacted" in shown or "ImdsCredential" in shown
    assert str(expires_on) in repr(token)
    assert pickle.loads(pickle.dumps(token)) == token  # pickling a token is never an accident


def test_pickled_credential(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A pickle holds arguments only, and a copy from it works."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token(VAULT))
    pickled = pickle.dumps(credential)
    assert imds.tokens[0].encode() not in pickled
    assert len(pickled) < 1000
    assert flavor.run(pickle.loads(pickled).get_token(VAULT)).token == imds.tokens[0]


def test_pickled_error(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A raised error keeps all its attributes in a pickle and a copy."""
    with pytest.raises(ImdsError) as caught:
        flavor.ask(imds.endpoint, client_id="00000000-0000-4000-8000-000000000001")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value), copy.deepcopy(caught.value)):
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)
        assert vars(again) == vars(caught.value)


def test_error_of_a_hook(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The exception of a user's hook reaches the caller without the frames that hold the response."""

    class HookError(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(f"{first} {second}")

    def hook(response: Any) -> None:
        body = response.http_response.read()
        raise HookError("of", "mine") from ValueError(body)

    with pytest.raises(HookError, match="of mine") as caught:
        flavor.ask(imds.endpoint, raw_response_hook=hook)
    assert imds.tokens
    assert caught.value.__cause__ is None
    monitor.note_error(caught.value.with_traceback(None))
    assert monitor.leaks() == []


def test_exit_in_a_hook(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread of the request prints nothing, not even for SystemExit."""
    crashes: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", crashes.append)

    def leave(_response: Any) -> None:
        raise SystemExit("left")

    with pytest.raises(SystemExit, match="left"):
        flavor.ask(imds.endpoint, raw_response_hook=leave)
    assert crashes == []
    assert capfd.readouterr().err == ""


def test_other_requests_are_logged(imds: ImdsEmulator) -> None:
    """The log lines of a user's own requests are not redacted, and the search finds the token in them."""
    imds.script(among_the_headers)
    requests.get(
        f"{imds.endpoint}/metadata/identity/oauth2/token",
        params={"api-version": "2018-02-01", "resource": VAULT},
        headers={"Metadata": "true"},
        timeout=5,
    )
    assert any("urllib3" in leak for leak in monitor.leaks())


def test_search(imds: ImdsEmulator) -> None:
    """The search finds a token in each kind of output, so that an empty result proves something."""
    token = imds.issue_token(VAULT)

    def fail_with_a_local() -> None:
        cached = token
        raise ValueError(f"of {len(cached)} characters")

    logging.getLogger("azure_imds_credential").debug("%s", token)
    logging.getLogger("msal.token_cache").debug("%s", {"access_token": token[: len(token) // 2]})
    logging.getLogger("azure_imds_credential").info("fine", extra={"imds_secret": token})
    logging.getLogger("azure_imds_credential").info("half: %s", token.rpartition(".")[2][:30])
    with pytest.raises(ValueError, match="characters") as caught:
        fail_with_a_local()
    monitor.note_error(caught.value)
    monitor.note("by hand", f"{DUMMY}1")
    assert len(monitor.leaks()) == 6
    monitor.note("the claims of a token are no token", json.dumps({"aud": VAULT, "oid": "x" * 36}))
    assert monitor.leaks() == []
