"""Aids for tests without Azure: an IMDS emulator, safe recordings, pytest fixtures. Never imported by the package.

Each name is loaded when it is first used, so that one aid does not cost the imports of the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import faults as faults
    from ._azure_cli.emulator import AzureCliEmulator as AzureCliEmulator
    from ._azure_cli.emulator import RealTokensWarning as RealTokensWarning
    from ._emulator.emulator import ImdsEmulator as ImdsEmulator
    from ._emulator.identities import SystemAssigned as SystemAssigned
    from ._emulator.identities import UserAssigned as UserAssigned
    from ._emulator.journal import Request as Request
    from ._entra import EntraDouble as EntraDouble
    from ._entra import FederatedCredential as FederatedCredential
    from ._recording.cassette import IncompleteRecordingError as IncompleteRecordingError
    from ._recording.cassette import ReplayError as ReplayError
    from ._recording.cassette import UnsafeRecordingError as UnsafeRecordingError
    from ._recording.cassette import imds_vcr as imds_vcr
    from ._recording.scan import Finding as Finding
    from ._recording.scan import scan_recordings as scan_recordings
    from ._run_emulator import run_emulator as run_emulator
    from ._vault.vault import VaultDouble as VaultDouble

_WHERE = {
    "AzureCliEmulator": "_azure_cli.emulator",
    "EntraDouble": "_entra",
    "FederatedCredential": "_entra",
    "Finding": "_recording.scan",
    "ImdsEmulator": "_emulator.emulator",
    "IncompleteRecordingError": "_recording.cassette",
    "RealTokensWarning": "_azure_cli.emulator",
    "ReplayError": "_recording.cassette",
    "Request": "_emulator.journal",
    "SystemAssigned": "_emulator.identities",
    "UnsafeRecordingError": "_recording.cassette",
    "UserAssigned": "_emulator.identities",
    "VaultDouble": "_vault.vault",
    "imds_vcr": "_recording.cassette",
    "run_emulator": "_run_emulator",
    "scan_recordings": "_recording.scan",
}

__all__ = [
    "AzureCliEmulator",
    "EntraDouble",
    "FederatedCredential",
    "Finding",
    "ImdsEmulator",
    "IncompleteRecordingError",
    "RealTokensWarning",
    "ReplayError",
    "Request",
    "SystemAssigned",
    "UnsafeRecordingError",
    "UserAssigned",
    "VaultDouble",
    "faults",
    "forget_tokens",
    "imds_vcr",
    "run_emulator",
    "scan_recordings",
]


def __getattr__(name: str) -> Any:
    if name == "faults":
        return import_module(".faults", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    except ModuleNotFoundError as error:
        from azure_imds_credential._extras import extra_needed

        raise ImportError(extra_needed(name, "testing", error.name)) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def forget_tokens() -> None:
    """Empty the token cache of this process, so that the next `get_token` asks IMDS again."""
    from azure_imds_credential._cache import token_cache

    token_cache.forget_tokens()
