"""Azure managed identity tokens from the Instance Metadata Service (IMDS), asked for once, for any Azure SDK client."""

import os
import sys

# An interrupt ends the program `azure-imds` with 130, and not in a traceback, also during the imports below. Started as
# `python -m azure_imds_credential` it is called "-m" until they are done. `_signal` is loaded in every Python; `signal`
# and pathlib take time to import.
_program = (getattr(sys, "argv", None) or [""])[0]
if os.path.basename(_program) in ("azure-imds", "azure-imds.exe") or (  # noqa: PTH119
    _program == "-m" and "azure_imds_credential" in sys.orig_argv
):
    import _signal  # type: ignore[import-not-found] # typeshed has the public module only

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._credential import ImdsCredential
    from ._source import ManagedIdentitySource, detect_source
    from ._whoami import IdentityInfo, whoami
    from .exceptions import (
        IdentityMismatchError,
        IdentityUnavailableError,
        ImdsError,
        ImdsRequestError,
        ImdsServiceError,
        ImdsThrottledError,
        ImdsUnavailableError,
    )

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "IdentityInfo",
    "IdentityMismatchError",
    "IdentityUnavailableError",
    "ImdsCredential",
    "ImdsError",
    "ImdsRequestError",
    "ImdsServiceError",
    "ImdsThrottledError",
    "ImdsUnavailableError",
    "ManagedIdentitySource",
    "__version__",
    "detect_source",
    "whoami",
]

# Loaded when first used: pytest imports this package in every run, for the plugin in `testing`.
_WHERE = {
    "IdentityInfo": "._whoami",
    "ImdsCredential": "._credential",
    "ManagedIdentitySource": "._source",
    "detect_source": "._source",
    "whoami": "._whoami",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_WHERE.get(name, ".exceptions"), __name__), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
