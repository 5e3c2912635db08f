"""No token in anything that is said: every known leak, opened on purpose.

`leaks.py` searches what the whole suite says in the same way; here are the answers that make others talk.
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
from colours import VAULT, Colour, VirtualTime
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
    """The token once more, where something else belongs."""

    def echo(reply: Reply) -> Steps:
        document = json.loads(reply.body)
        token = document["access_token"]
        document.update({name: value.format(token) for name, value in members.items()})
        yield reply.with_body(json.dumps(document).encode()).encode()

    return echo


def as_an_error(code: int, **headers: str | None) -> Fault:
    """An error whose words are the token."""

    def error(reply: Reply) -> Steps:
        token = json.loads(reply.body)["access_token"]
        body = {"error": token, "error_description": f"Bearer {token}"}
        yield from faults.status(code, body, headers=headers)(reply)

    return error


def on_a_page(reply: Reply) -> Steps:
    """A proxy that shows what it was to carry."""
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
    "as an error of a stranger": as_an_error(403, Server=None),
    "as a throttling": as_an_error(429),
    "as the resource": echoed(resource="{}"),
    "as the client": echoed(client_id="{}"),
    "as the expiry": echoed(expires_in="{}"),
    "with a line break": echoed(access_token="{}\r\n"),
    "with a space": echoed(access_token="{} "),
}


@pytest.mark.parametrize("name", LEAKY)
def test_no_answer_makes_us_say_its_token(
    name: str, colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Wherever a server puts the token, it is in no record, error, traceback, repr or pickle."""
    app = UserAssigned("app")
    imds.assign(app)
    imds.script(LEAKY[name], seconds=math.inf)
    with pytest.raises(ImdsError) as caught:
        colour.ask(imds.endpoint, client_id=app.client_id, logging_enable=True)
    error = caught.value
    assert imds.tokens
    monitor.note_error(copy.copy(error))
    assert monitor.said
    assert monitor.leaks() == []
    # What holds the answer (BadStatusLine, JSONDecodeError, ...) is cut off rather than searched.
    assert error.__cause__ is None
    assert error.__context__ is None
    assert (error.exc_type, error.exc_value, error.exc_traceback, error.inner_exception) == (None, None, None, None)
    assert error.response is None


@pytest.mark.parametrize("name", ["well", "chunked", "gzipped", "throttled first"])
def test_success_says_no_token_either(name: str, colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """With `logging_enable` and every logger at DEBUG, msal and the HTTP stack included."""
    imds.script({"well": faults.ok, "chunked": faults.chunked, "gzipped": faults.gzipped}.get(name, faults.throttled()))
    credential = colour.ImdsCredential(endpoint=imds.endpoint, logging_enable=True)
    colour.run(credential.get_token(VAULT))
    colour.run(credential.get_token_info(VAULT))
    colour.run(credential.get_token(VAULT, force_refresh=True))
    assert {where for where, _ in monitor.said} >= {
        "log record of msal.managed_identity",
        "log record of azure.core.pipeline.policies.http_logging_policy",
        "log record of azure_imds_credential",
    }
    assert monitor.leaks() == []


def test_what_is_returned_does_not_print_its_token(colour: Colour, imds: ImdsEmulator) -> None:
    """It is what Azure's clients expect, tuple and attributes, and no format shows the token."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    token, info = (colour.run(call(VAULT)) for call in (credential.get_token, credential.get_token_info))
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
    assert pickle.loads(pickle.dumps(token)) == token  # whoever pickles a token means to


def test_a_used_credential_pickles_without_tokens(colour: Colour, imds: ImdsEmulator) -> None:
    """A pickle holds arguments only, and a copy from it works."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.get_token(VAULT))
    pickled = pickle.dumps(credential)
    assert imds.tokens[0].encode() not in pickled
    assert len(pickled) < 1000
    assert colour.run(pickle.loads(pickled).get_token(VAULT)).token == imds.tokens[0]


def test_errors_survive_pickling_with_all_they_say(colour: Colour, imds: ImdsEmulator) -> None:
    """Errors cross process boundaries whole."""
    with pytest.raises(ImdsError) as caught:
        colour.ask(imds.endpoint, client_id="00000000-0000-4000-8000-000000000001")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value), copy.deepcopy(caught.value)):
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)
        assert vars(again) == vars(caught.value)


def test_a_hook_that_fails_brings_no_frames_with_tokens(colour: Colour, imds: ImdsEmulator) -> None:
    """A user's own exception reaches the caller, without the frames of the exchange that hold the answer."""

    class HookError(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(f"{first} {second}")

    def hook(response: Any) -> None:
        body = response.http_response.read()
        raise HookError("of", "mine") from ValueError(body)

    with pytest.raises(HookError, match="of mine") as caught:
        colour.ask(imds.endpoint, raw_response_hook=hook)
    assert imds.tokens
    assert caught.value.__cause__ is None
    monitor.note_error(caught.value.with_traceback(None))
    assert monitor.leaks() == []


def test_an_exception_of_a_hook_is_no_thread_crash(
    colour: Colour, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed by the thread of the exchange, not even for SystemExit."""
    crashes: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", crashes.append)

    def leave(_response: Any) -> None:
        raise SystemExit("left")

    with pytest.raises(SystemExit, match="left"):
        colour.ask(imds.endpoint, raw_response_hook=leave)
    assert crashes == []
    assert capfd.readouterr().err == ""


def test_others_are_not_muted(imds: ImdsEmulator) -> None:
    """What a user sends through the same libraries is logged as ever, and the search finds the token in it."""
    imds.script(among_the_headers)
    requests.get(
        f"{imds.endpoint}/metadata/identity/oauth2/token",
        params={"api-version": "2018-02-01", "resource": VAULT},
        headers={"Metadata": "true"},
        timeout=5,
    )
    assert any("urllib3" in leak for leak in monitor.leaks())


def test_the_search_finds_what_it_searches_for(imds: ImdsEmulator) -> None:
    """Each channel, given a token, is caught; otherwise silence would prove nothing."""
    token = imds.issue_token(VAULT)

    def fail_with_a_local() -> None:
        held = token
        raise ValueError(f"of {len(held)} characters")

    logging.getLogger("azure_imds_credential").debug("%s", token)
    logging.getLogger("msal.token_cache").debug("%s", {"access_token": token[:100]})
    logging.getLogger("azure_imds_credential").info("fine", extra={"imds_secret": token})
    logging.getLogger("azure_imds_credential").info("half: %s", token.rpartition(".")[2][:30])
    with pytest.raises(ValueError, match="characters") as caught:
        fail_with_a_local()
    monitor.note_error(caught.value)
    monitor.note("by hand", f"{DUMMY}1")
    assert len(monitor.leaks()) == 6
    monitor.note("the claims of a token are no token", json.dumps({"aud": VAULT, "oid": "x" * 36}))
    assert monitor.leaks() == []
