"""The credential for async Azure SDK clients. No aiohttp needed: the rare request runs on a thread of its own."""

from ._credential import ImdsCredential

__all__ = ["ImdsCredential"]
