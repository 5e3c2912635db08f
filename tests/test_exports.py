"""The public names, and the shape of the package."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential import exceptions

PACKAGE = Path(azure_imds_credential.__file__).parent


def test_the_public_names_are_the_contract() -> None:
    """`__all__` is what design section 1 fixes, and each name is there."""
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


def test_msal_has_one_importer_and_no_private_name_of_it_is_used() -> None:
    """Only `_exchange` imports msal, and only public names of it."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if "msal" in names or (module or "").startswith("msal"):
                assert path.name == "_exchange.py", path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "msal":
                assert not node.attr.startswith("_"), f"{path}: msal.{node.attr}"


def test_the_package_never_imports_its_test_aids() -> None:
    """`azure_imds_credential.testing` is for tests; the command line alone may start what is in it."""
    for path in {*PACKAGE.glob("*.py"), *PACKAGE.glob("aio/*.py")}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert "testing" not in (node.module or ""), path


def test_both_colours_take_the_same_arguments() -> None:
    """Constructor and methods of the sync and the aio class have one signature."""
    sync, aio = azure_imds_credential.ImdsCredential, azure_imds_credential.aio.ImdsCredential
    for name in ("__init__", "get_token", "get_token_info", "whoami", "close"):
        assert inspect.signature(getattr(sync, name)) == inspect.signature(getattr(aio, name)), name
    ours = {name for name in vars(sync) if not name.startswith("__")}
    assert ours == {name for name in vars(aio) if not name.startswith("__")}
