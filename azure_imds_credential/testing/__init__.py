"""Aids for tests without Azure: an IMDS emulator, safe recordings, pytest fixtures. Never imported by the package.

Each name is loaded when it is first used, so that one aid does not cost the imports of the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import faults as faults
    from ._emulator import ImdsEmulator as ImdsEmulator
    from ._identities import SystemAssigned as SystemAssigned
    from ._identities import UserAssigned as UserAssigned
    from ._journal import Request as Request

_WHERE = {
    "ImdsEmulator": "_emulator",
    "Request": "_journal",
    "SystemAssigned": "_identities",
    "UserAssigned": "_identities",
    "imds_vcr": "_recordings",
}

__all__ = ["ImdsEmulator", "Request", "SystemAssigned", "UserAssigned", "faults", "forget_tokens", "imds_vcr"]


def __getattr__(name: str) -> Any:
    if name == "faults":
        return import_module(".faults", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def forget_tokens() -> None:
    """Empties the token cache of this process, so that the next `get_token` asks IMDS again."""
    from azure_imds_credential import _token_cache

    _token_cache.forget_tokens()
