"""The public names, their signatures, and who imports what."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core import credentials, credentials_async

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential import exceptions, testing

PACKAGE = Path(azure_imds_credential.__file__).parent


def test_public_names() -> None:
    """`__all__` is the documented contract, and each name is there."""
    errors = {name for name, value in vars(exceptions).items() if inspect.isclass(value) and name.startswith("I")}
    assert set(azure_imds_credential.__all__) == errors | {
        "IdentityInfo",
        "ImdsCredential",
        "ManagedIdentitySource",
        "__version__",
        "detect_source",
        "whoami",
    }
    assert all(hasattr(azure_imds_credential, name) for name in azure_imds_credential.__all__)
    assert azure_imds_credential.aio.__all__ == ["ImdsCredential", "whoami"]


def test_sources() -> None:
    """The members of the enum of sources are part of the contract."""
    assert [source.name for source in azure_imds_credential.ManagedIdentitySource] == [
        "IMDS",
        "APP_SERVICE",
        "CONTAINER_APPS",
        "AZURE_ARC",
        "SERVICE_FABRIC",
        "CLOUD_SHELL",
        "MACHINE_LEARNING",
    ]


def test_importers_of_msal() -> None:
    """Only `_imds/client.py` imports msal, and it uses public names of it only."""
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if any(name.partition(".")[0] == "msal" for name in (*names, module or "")):
                importers.add(path.relative_to(PACKAGE).as_posix())
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "msal":
                assert not node.attr.startswith("_"), f"{path}: msal.{node.attr}"
    assert importers == {"_imds/client.py"}


def test_importers_of_testing() -> None:
    """The command line alone imports `azure_imds_credential.testing`."""
    paths = {path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("testing", "_cli")}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert "testing" not in (node.module or "").split("."), path


def test_sync_and_aio_signatures() -> None:
    """Constructor and methods of the sync and the aio class have the same parameters."""
    sync, aio = azure_imds_credential.ImdsCredential, azure_imds_credential.aio.ImdsCredential
    for name in ("__init__", "get_token", "get_token_info", "token_provider", "whoami", "close"):
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (sync, aio))
        assert ours == theirs, name
    assert {name for name in vars(sync) if not name.startswith("__")} == {
        name for name in vars(aio) if not name.startswith("__")
    }


@pytest.mark.parametrize(
    ("ours", "protocol"),
    [
        (azure_imds_credential.ImdsCredential.get_token, credentials.TokenCredential.get_token),
        (azure_imds_credential.ImdsCredential.get_token_info, credentials.SupportsTokenInfo.get_token_info),
        (azure_imds_credential.aio.ImdsCredential.get_token, credentials_async.AsyncTokenCredential.get_token),
        (
            azure_imds_credential.aio.ImdsCredential.get_token_info,
            credentials_async.AsyncSupportsTokenInfo.get_token_info,
        ),
    ],
    ids=["get_token", "get_token_info", "aio get_token", "aio get_token_info"],
)
def test_protocol_signatures(ours: Callable[..., Any], protocol: Callable[..., Any]) -> None:
    """Without `force_refresh` the signatures are azure-core's, annotations and order of the parameters included."""
    signature = resolved(ours)
    parameters = [each for each in signature.parameters.values() if each.name != "force_refresh"]
    assert signature.replace(parameters=parameters) == resolved(protocol)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(protocol)


def resolved(function: Callable[..., Any]) -> inspect.Signature:
    """Return a signature whose annotations are objects. azure-core imports some of them for type checkers only."""
    return inspect.signature(function, eval_str=True, globals={**vars(credentials), **function.__globals__})


# Of a credential: what they return is loaded for type checkers alone, because to import it takes time at each start.
LOADED_LATE = ("whoami", "__enter__", "__aenter__")


def public_functions() -> Iterator[Any]:
    """Yield each public function, class and method, as a test parameter."""
    for module in (azure_imds_credential, azure_imds_credential.aio, testing, testing.faults):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield pytest.param(found, id=f"{module.__name__}.{name}")
            if inspect.isclass(found):
                yield pytest.param(found, id=f"{module.__name__}.{name}")
                for method, value in inspect.getmembers(found, inspect.isfunction):
                    if name == "ImdsCredential" and method in LOADED_LATE:
                        continue
                    if not method.startswith("_") or method in ("__init__", "__enter__", "__aenter__", "__exit__"):
                        yield pytest.param(value, id=f"{module.__name__}.{name}.{method}")


@pytest.mark.parametrize("function", [*public_functions()])
def test_annotations(function: Callable[..., Any]) -> None:
    """The annotations of what is public can be evaluated, as tools for dependency injection and validation do."""
    typing.get_type_hints(function)
    inspect.get_annotations(function, eval_str=True)


@pytest.mark.parametrize("method", ["get_token", "get_token_info", "token_provider", "whoami", "close"])
@pytest.mark.parametrize("package", [azure_imds_credential, azure_imds_credential.aio], ids=["sync", "aio"])
def test_help(package: Any, method: str) -> None:
    """`help()` of the class and of each method shows their documentation."""
    assert "Managed identity tokens" in (inspect.getdoc(package.ImdsCredential) or "")
    assert inspect.getdoc(getattr(package.ImdsCredential, method))
