"""The credential for async Azure SDK clients. It needs no aiohttp: the rare request runs on a thread of its own."""

from ._credential import ImdsCredential
from ._whoami import whoami

__all__ = ["ImdsCredential", "whoami"]
