"""requests: a usable token in the header of every request.  Usage: requests_auth.py URL SCOPE."""

import sys

import requests

from azure_imds_credential import ImdsCredential


class BearerAuth(requests.auth.AuthBase):
    """Asks the credential each time: that costs a lookup in memory, and the token is never too old."""

    def __init__(self, credential: ImdsCredential, scope: str) -> None:
        self.token = credential.token_provider(scope)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:  # noqa: D102
        request.headers["Authorization"] = f"Bearer {self.token()}"
        return request


if __name__ == "__main__":
    url, scope = sys.argv[1:]
    answer = requests.get(url, auth=BearerAuth(ImdsCredential(), scope), timeout=30)
    answer.raise_for_status()
    print(answer.text)
