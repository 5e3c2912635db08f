"""Responses of real hosts, replayed as they were recorded, through `ImdsCredential`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from raw_server import answering

from azure_imds_credential import (
    IdentityUnavailableError,
    ImdsCredential,
    ImdsError,
    ImdsRequestError,
    ImdsThrottledError,
    ImdsUnavailableError,
)

CAPTURES = Path(__file__).parent / "captures"


class Expected(NamedTuple):
    error: type[ImdsError] | None = None
    life: int | None = None  # seconds
    scope: str = "https://vault.azure.net/.default"
    requests: int = 1
    words: str = ""  # that the error must show
    status: int | None = None  # where the capture does not tell: an assumption, and none of its evidence


TOKEN_ENDPOINT = {
    "vm-200-keyvault-2024-03-07": Expected(life=86317),
    "vm-200-azcli-2020-11-12": Expected(life=86386, scope="https://management.core.windows.net/"),
    "vm-200-cognitiveservices-2025-02-05": Expected(life=86061, scope="https://cognitiveservices.azure.com/.default"),
    "aci-200-docs-2018-10": Expected(life=28799),
    "vm-400-identity-not-found-2022-10-15": Expected(IdentityUnavailableError, words="az vm identity assign"),
    "vm-400-multiple-identities-2021-07-30": Expected(
        IdentityUnavailableError, words="client_id, object_id or resource_id"
    ),
    # Without the header IMDS says invalid_request too. The words would tell; they choose no behaviour.
    "vm-400-missing-metadata-header-2020-09-21": Expected(IdentityUnavailableError, words="metadata header"),
    "vm-400-missing-resource": Expected(IdentityUnavailableError, words="'resource' is missing"),
    "vm-400-v2-unsupported-query-variables-2025-10-29": Expected(IdentityUnavailableError, words="Unsupported query"),
    "vm-400-invalid-resource-aadsts500011-2022-11-10": Expected(ImdsRequestError, words="AADSTS500011"),
    "vm-429-throttled-2024-06-05": Expected(ImdsThrottledError, words="Temporarily throttled"),
    "docker-desktop-403-unreachable-network": Expected(ImdsUnavailableError, words="unreachable network"),
    "nmi-404-no-assigned-identity-2021-12": Expected(ImdsUnavailableError, words="getting assigned identities"),
    "identity-404-root-2018-09": Expected(ImdsUnavailableError, words="Not Found"),
    "aci-err-multiple-identities-2026-08-11": Expected(ImdsUnavailableError, words="invalid token", status=400),
}

NOT_THE_TOKEN_ENDPOINT = {
    "instance-200-headers-2026-02-07",
    "instance-400-missing-api-version-docs-2025",
    "instance-400-missing-metadata-header",
    "instance-err-invalid-version-2019-10",
    "jwt-claims-vm-sami-2025-12-05",
    "jwt-claims-vm-uami-2024-08-06",
}

HEADERS_ONLY = {"vm-200-headers-2024-05-02", "vm-400-headers-2023-07-19"}  # nothing to judge without a body


def _as_recorded(capture: dict[str, Any], expected: Expected) -> bytes:
    """Return the response. What was not recorded is left out, but for the length of the body."""
    body = (capture.get("body_text") or json.dumps(capture["body"], separators=(",", ":"))).encode()
    headers = {name: value for name, value in (capture["headers"] or {}).items() if name.lower() != "content-length"}
    lines = [f"HTTP/1.1 {capture['status'] or expected.status} {capture.get('reason') or ''}".rstrip()]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize("name", TOKEN_ENDPOINT)
def test_real_response(name: str) -> None:
    """Each public capture of the token endpoint has the meaning that its row says, over a real socket."""
    expected = TOKEN_ENDPOINT[name]
    capture = json.loads((CAPTURES / f"{name}.json").read_text())
    with answering(_as_recorded(capture, expected)) as (endpoint, requests):
        credential = ImdsCredential(endpoint=endpoint, retry_total=0)
        if expected.error is None:
            info = credential.get_token_info(expected.scope)
            left = info.expires_on - time.time()
            assert info.token == capture["body"]["access_token"]
            assert expected.life is not None
            assert expected.life - 30 < left <= expected.life + 1
        else:
            with pytest.raises(expected.error) as caught:
                credential.get_token(expected.scope)
            assert type(caught.value) is expected.error
            assert expected.words in str(caught.value)
        assert len(requests) == expected.requests


def test_every_capture_is_listed() -> None:
    """A capture that is added is judged here, or listed as one of another endpoint."""
    assert {path.stem for path in CAPTURES.glob("*.json")} == {*TOKEN_ENDPOINT} | NOT_THE_TOKEN_ENDPOINT | HEADERS_ONLY
