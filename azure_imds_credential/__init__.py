"""Azure managed identity tokens from the Instance Metadata Service (IMDS), asked for once, for any Azure SDK client."""

import logging

from ._claims import IdentityInfo
from ._credential import ImdsCredential
from ._source import ManagedIdentitySource, detect_source
from ._version import __version__
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
]
