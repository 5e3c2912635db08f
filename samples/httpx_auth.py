"""httpx, sync and async: a usable token in the header of every request.  Usage: httpx_auth.py URL SCOPE."""

import sys
from collections.abc import AsyncGenerator, Generator

import httpx

from azure_imds_credential import ImdsCredential, aio


class BearerAuth(httpx.Auth):
    """For `httpx.Client` and `httpx.AsyncClient`; both colours share one token."""

    def __init__(self, scope: str) -> None:
        self.token = ImdsCredential().token_provider(scope)
        self.token_async = aio.ImdsCredential().token_provider(scope)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:  # noqa: D102
        request.headers["Authorization"] = f"Bearer {self.token()}"
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:  # noqa: D102
        request.headers["Authorization"] = f"Bearer {await self.token_async()}"
        yield request


if __name__ == "__main__":
    url, scope = sys.argv[1:]
    print(httpx.get(url, auth=BearerAuth(scope)).raise_for_status().text)
