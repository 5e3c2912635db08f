"""`azure-imds serve`: IMDS's token endpoint on a loopback port, answered from this library's cache.

Programs in any language that read AZURE_POD_IDENTITY_AUTHORITY_HOST share one request per token. Importing this package
imports neither aiohttp nor the rest of the library.
"""

SERVE_HEADER = "X-Azure-Imds-Serve"  # on every answer; its value is the version of this package
DEFAULT_PORT = 8169

__all__ = ["DEFAULT_PORT", "SERVE_HEADER"]
