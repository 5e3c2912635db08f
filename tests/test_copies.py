"""Pickling and copying: configuration only, and always possible."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from azure.core.pipeline.transport import RequestsTransport
from colours import VAULT, Colour

import azure_imds_credential.aio
from azure_imds_credential import IdentityUnavailableError, ImdsError, ImdsThrottledError, ImdsUnavailableError
from azure_imds_credential.testing import ImdsEmulator, UserAssigned

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda credential: pickle.loads(pickle.dumps(credential)),
    "oldest pickle": lambda credential: pickle.loads(pickle.dumps(credential, protocol=0)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_a_copy_asks_for_the_same_identity_in_the_same_way(colour: Colour, way: str) -> None:
    """Every argument comes along; the copy of a used credential is as good as the copy of a new one."""
    user = UserAssigned("app")
    with ImdsEmulator(identities=[user]) as imds:
        original = colour.ImdsCredential(client_id=user.client_id, endpoint=imds.endpoint, timeout=7, retry_total=1)
        token = colour.run(original.get_token(VAULT)).token
        again = WAYS[way](original)
        assert repr(again) == repr(original)
        assert (again._configuration.timeout, again._configuration.options) == (7, {"retry_total": 1})
        assert colour.run(again.get_token(VAULT)).token == token  # IMDS's own cache
        imds.assert_requests(2, client_id=user.client_id)


@ways
def test_a_copy_without_options_shares_the_cache(colour: Colour, imds: ImdsEmulator, way: str) -> None:
    """Within one process a copy finds the token that is held."""
    original = colour.ImdsCredential(endpoint=imds.endpoint)
    token = colour.run(original.get_token(VAULT)).token
    assert colour.run(WAYS[way](original).get_token(VAULT)).token == token
    imds.assert_requests(1)


class SyncOfAnApp(azure_imds_credential.ImdsCredential):
    def __init__(self, app: str) -> None:
        super().__init__(client_id=app, timeout=7)
        self.app = app


class AioOfAnApp(azure_imds_credential.aio.ImdsCredential):
    def __init__(self, app: str) -> None:
        super().__init__(client_id=app, timeout=7)
        self.app = app


@ways
@pytest.mark.parametrize("cls", [SyncOfAnApp, AioOfAnApp], ids=["sync", "aio"])
def test_a_subclass_may_have_a_constructor_of_its_own(cls: Callable[[str], Any], way: str) -> None:
    """It is not called for a copy; what it left behind comes along."""
    again = WAYS[way](cls("of the shop"))
    assert (type(again), again.app, again._configuration.timeout) == (cls, "of the shop", 7)
    assert str(again._configuration.identity) == "client_id of the shop"


def test_a_pickle_holds_no_token(colour: Colour, imds: ImdsEmulator) -> None:
    """What is sent to a worker is the question, not the answer."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    token = colour.run(credential.get_token(VAULT)).token
    assert token.split(".")[1].encode() not in pickle.dumps(credential)


def test_the_endpoint_is_read_where_the_pickle_is_opened(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential without `endpoint` asks the IMDS of the machine that unpickles it."""
    pickled = pickle.dumps(colour.ImdsCredential())
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:4321")
    assert "4321" in repr(pickle.loads(pickled))


def test_another_process_opens_the_pickle(colour: Colour, imds: ImdsEmulator) -> None:
    """A fresh interpreter needs nothing but the package."""
    pickled = pickle.dumps(colour.ImdsCredential(endpoint=imds.endpoint))
    child = f"import pickle; print(repr(pickle.loads({pickled!r})))"
    said = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True).stdout
    assert imds.endpoint in said


def test_a_transport_can_be_copied_and_not_pickled(colour: Colour) -> None:
    """It holds connections, which belong to a process; that is said."""
    transport = RequestsTransport()
    credential = colour.ImdsCredential(transport=transport)
    for way in (copy.copy, copy.deepcopy):
        assert way(credential)._configuration.options["transport"] is transport
    with pytest.raises(TypeError, match="transport of its own"):
        pickle.dumps(credential)


@pytest.mark.parametrize("cls", [ImdsError, ImdsUnavailableError, IdentityUnavailableError, ImdsThrottledError])
@ways
def test_errors_survive_pickling_with_all_their_facts(cls: type[ImdsError], way: str) -> None:
    """A worker's error arrives whole, also when it was raised while another was handled."""
    try:
        raise KeyError("another")
    except KeyError:
        error = cls(
            "what happened",
            status=400,
            error_code="invalid_request",
            error_description="Identity not found",
            endpoint="http://127.0.0.1",
            identity="system-assigned",
            resource=VAULT,
            attempts=3,
            elapsed=1.5,
            request_id="id",
            hint="do this",
        )
    again = WAYS[way](error)
    assert type(again) is cls
    assert str(again) == "what happened"
    assert vars(again) == vars(error)
    assert again.exc_value is None


@ways
def test_every_argument_comes_along(colour: Colour, way: str) -> None:
    """Also those that change nothing before the first request."""
    original = colour.ImdsCredential(object_id="one", wait_for_identity=3, timeout=7, shared_cache=True)
    again = WAYS[way](original)._configuration
    assert (again.identity.kind, again.identity.value) == ("object_id", "one")
    assert (again.wait_for_identity, again.timeout, again.shared_cache) == (3, 7, True)
