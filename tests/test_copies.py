"""Pickling and copying: arguments only, and always possible."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from azure.core.pipeline.policies import CustomHookPolicy
from azure.core.pipeline.transport import RequestsTransport
from flavors import SYNC, VAULT, Flavor

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
def test_copy(flavor: Flavor, way: str) -> None:
    """A copy has every argument; the copy of a used credential is as good as that of a new one."""
    user = UserAssigned("app")
    with ImdsEmulator(identities=[user]) as imds:
        original = flavor.ImdsCredential(client_id=user.client_id, endpoint=imds.endpoint, timeout=7, retry_total=1)
        token = flavor.run(original.get_token(VAULT)).token
        again = WAYS[way](original)
        assert repr(again) == repr(original)
        assert (again._options.timeout, again._options.pipeline_options) == (7, {"retry_total": 1})
        assert flavor.run(again.get_token(VAULT)).token == token  # IMDS's own cache
        imds.assert_requests(2, client_id=user.client_id)


@ways
def test_copy_shares_the_cache(flavor: Flavor, imds: ImdsEmulator, way: str) -> None:
    """Within one process a copy finds the cached token."""
    original = flavor.ImdsCredential(endpoint=imds.endpoint)
    token = flavor.run(original.get_token(VAULT)).token
    assert flavor.run(WAYS[way](original).get_token(VAULT)).token == token
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
def test_subclass(cls: Callable[[str], Any], way: str) -> None:
    """The constructor of a subclass is not called for a copy; its attributes are copied."""
    again = WAYS[way](cls("of the shop"))
    assert (type(again), again.app, again._options.timeout) == (cls, "of the shop", 7)
    assert str(again._options.identity) == "client_id of the shop"


ARGUMENTS = inspect.signature(SYNC.ImdsCredential).parameters.keys() - {"transport", "pipeline_options"}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_pickle_of_an_older_version(flavor: Flavor, name: str) -> None:
    """An argument that a pickle does not know has its default."""
    older = flavor.ImdsCredential(endpoint="http://127.0.0.1:4321", timeout=7)
    del older._arguments[name]
    again = pickle.loads(pickle.dumps(older))
    assert again._arguments[name] == inspect.signature(flavor.ImdsCredential).parameters[name].default
    assert again._options.timeout == (90 if name == "timeout" else 7)


def test_pickle_of_a_newer_version(flavor: Flavor) -> None:
    """An argument that this version does not have is refused by name."""
    newer = flavor.ImdsCredential(timeout=7)
    newer._arguments["of_the_future"] = 1
    pickled = pickle.dumps(newer)
    with pytest.raises(TypeError, match="pickled with the argument 'of_the_future', which this version does not have"):
        pickle.loads(pickled)


def test_pickle_for_another_version(flavor: Flavor) -> None:
    """A pickle holds the arguments that were given, and none that an older version may not have."""
    given = pickle.dumps(flavor.ImdsCredential(timeout=7))
    assert {name for name in ARGUMENTS if name.encode() in given} == {"timeout"}


class SlottedSync(azure_imds_credential.ImdsCredential):
    __slots__ = ("__own", "name", "never_set")

    def __init__(self, name: str) -> None:
        super().__init__(timeout=7)
        self.name, self.__own = name, [name]  # private names are stored under another name

    def own(self) -> list[str]:
        return self.__own


class SlottedAio(azure_imds_credential.aio.ImdsCredential):
    __slots__ = ("__own", "name", "never_set")

    def __init__(self, name: str) -> None:
        super().__init__(timeout=7)
        self.name, self.__own = name, [name]

    def own(self) -> list[str]:
        return self.__own


@ways
@pytest.mark.parametrize("cls", [SlottedSync, SlottedAio], ids=["sync", "aio"])
def test_slots_of_a_subclass(cls: Callable[[str], Any], way: str) -> None:
    """Attributes in `__slots__` are copied; those that were never set stay so."""
    again = WAYS[way](cls("shop"))
    assert (again.name, again.own(), again._options.timeout) == ("shop", ["shop"], 7)
    assert not hasattr(again, "never_set")


@pytest.mark.parametrize("cls", [SyncOfAnApp, AioOfAnApp, SlottedSync, SlottedAio])
def test_deep_copy_of_a_subclass(cls: Callable[[Any], Any]) -> None:
    """A deep copy has attributes of its own, cycles included; a shallow one shares them, as Python has it."""
    original = cls("shop")
    original.seen = [original]
    deep, shallow = copy.deepcopy(original), copy.copy(original)
    assert deep.seen == [deep]
    assert shallow.seen is original.seen


class SyncOfADict(dict[str, str], azure_imds_credential.ImdsCredential):
    def __init__(self) -> None:
        dict.__init__(self, team="shop")
        azure_imds_credential.ImdsCredential.__init__(self, timeout=7)


class AioOfADict(dict[str, str], azure_imds_credential.aio.ImdsCredential):
    def __init__(self) -> None:
        dict.__init__(self, team="shop")
        azure_imds_credential.aio.ImdsCredential.__init__(self, timeout=7)


@ways
@pytest.mark.parametrize("cls", [SyncOfADict, AioOfADict], ids=["sync", "aio"])
def test_subclass_that_is_a_dict_too(cls: Callable[[], Any], way: str) -> None:
    """What another base class of Python's own holds is copied with the rest."""
    again = WAYS[way](cls())
    assert (dict(again), again._options.timeout) == ({"team": "shop"}, 7)


def hook(_: Any) -> None: ...


@ways
def test_pipeline_options_are_shared(flavor: Flavor, way: str) -> None:
    """Hooks and policies are the user's own objects, which a deep copy shares; so does the copy of an unpickled one."""
    original = flavor.ImdsCredential(raw_request_hook=hook, per_call_policies=[CustomHookPolicy()])
    again = WAYS[way](original)
    deep = copy.deepcopy(again)
    assert deep._options.pipeline_options["raw_request_hook"] is hook
    assert deep._options.pipeline_options["per_call_policies"] == again._options.pipeline_options["per_call_policies"]


def test_pickle_has_no_token(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A pickle of a used credential holds no token."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    token = flavor.run(credential.get_token(VAULT)).token
    assert token.split(".")[1].encode() not in pickle.dumps(credential)


def test_endpoint_of_a_pickle(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential without `endpoint` asks the IMDS of the machine that unpickles it."""
    pickled = pickle.dumps(flavor.ImdsCredential())
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:4321")
    assert "4321" in repr(pickle.loads(pickled))


def test_pickle_in_another_process(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Another interpreter opens a pickle with nothing but the package."""
    pickled = pickle.dumps(flavor.ImdsCredential(endpoint=imds.endpoint))
    child = f"import pickle; print(repr(pickle.loads({pickled!r})))"
    said = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True).stdout
    assert imds.endpoint in said


def test_transport(flavor: Flavor) -> None:
    """A credential with a transport can be copied; pickling it is a TypeError that says why."""
    transport = RequestsTransport()
    credential = flavor.ImdsCredential(transport=transport)
    for way in (copy.copy, copy.deepcopy):
        assert way(credential)._options.pipeline_options["transport"] is transport
    with pytest.raises(TypeError, match="transport of its own"):
        pickle.dumps(credential)


@pytest.mark.parametrize("cls", [ImdsError, ImdsUnavailableError, IdentityUnavailableError, ImdsThrottledError])
@ways
def test_pickled_errors(cls: type[ImdsError], way: str) -> None:
    """An error keeps all its attributes, also when it was raised while another was handled."""
    try:
        raise KeyError("another")
    except KeyError:
        error = cls(
            "what happened",
            status=400,
            error_code="invalid_request",
            error_description="Identity not found",
            endpoint="http://127.0.0.1",
            identity="the machine's default identity",
            resource=VAULT,
            attempts=3,
            elapsed=1.5,
            request_id="id",
            client_request_id="other id",
            hint="do this",
        )
    again = WAYS[way](error)
    assert type(again) is cls
    assert str(again) == "what happened"
    assert vars(again) == vars(error)
    assert again.exc_value is None


@ways
def test_every_argument(flavor: Flavor, way: str) -> None:
    """A copy has also the arguments that change nothing before the first request."""
    original = flavor.ImdsCredential(object_id="one", wait_for_identity=3, timeout=7, shared_cache=True)
    again = WAYS[way](original)._options
    assert (again.identity.kind, again.identity.value) == ("object_id", "one")
    assert (again.wait_for_identity, again.timeout, again.shared_cache) == (3, 7, True)
    assert WAYS[way](flavor.ImdsCredential(require_system_assigned=True))._options.identity.must_be_system_assigned
