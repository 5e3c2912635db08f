"""The sample for MongoDB against a stand-in that judges tokens, and the form that SQL Server's driver wants them in."""

from __future__ import annotations

import runpy
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jwt
import pytest
from mongo import MongoStandIn
from proving import needs, run, sample_environment

from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator

SAMPLES = Path(__file__).parent.parent.parent / "samples"
AUDIENCE = "https://ossrdbms-aad.database.windows.net"


@pytest.fixture
def mongo(imds: ImdsEmulator) -> Iterator[MongoStandIn]:
    needs("pymongo")
    keys = jwt.PyJWKClient(imds.jwks_uri)

    def verdict(token: str) -> str:
        try:
            key = keys.get_signing_key_from_jwt(token)
            jwt.decode(token, key, ["RS256"], audience=AUDIENCE, issuer=imds.issuer)
        except jwt.InvalidTokenError as error:
            return type(error).__name__
        return ""

    with MongoStandIn(verdict) as server:
        yield server


def test_mongo_takes_the_token(mongo: MongoStandIn, imds: ImdsEmulator, ca_file: str) -> None:
    """The driver asks the sample's callback, and the server's judge accepts its token."""
    said = run(
        *(sys.executable, SAMPLES / "mongo_find.py", mongo.url, f"{AUDIENCE}/.default"),
        seconds=60,
        env=sample_environment(ca_file),
    )
    assert said == "1\n"
    assert set(mongo.judged) == {"good"}
    imds.assert_requests(1, resource=AUDIENCE)


@pytest.mark.parametrize(
    ("audience", "age", "reason"),
    [("https://vault.azure.net", 0, "InvalidAudienceError"), (AUDIENCE, 90_000, "ExpiredSignatureError")],
)
def test_mongo_refuses(mongo: MongoStandIn, imds: ImdsEmulator, audience: str, age: int, reason: str) -> None:
    """A token for another audience, or one that has expired, does not authenticate."""
    from pymongo import MongoClient
    from pymongo.auth_oidc import OIDCCallback, OIDCCallbackContext, OIDCCallbackResult
    from pymongo.errors import OperationFailure

    imds.advance(-age)
    token = imds.issue_token(audience)
    imds.advance(age)

    class Fixed(OIDCCallback):
        def fetch(self, context: OIDCCallbackContext) -> OIDCCallbackResult:
            return OIDCCallbackResult(token)

    client: MongoClient[Any] = MongoClient(
        mongo.url, authMechanism="MONGODB-OIDC", authMechanismProperties={"OIDC_CALLBACK": Fixed()}
    )
    with client, pytest.raises(OperationFailure, match="Authentication failed"):
        client["shop"].command("ping")
    assert set(mongo.judged) == {reason}


def test_mssql_token_form(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver gets the token as its header describes it. There was no SQL Server to try it with: only the form."""
    calls: list[tuple[str, dict[int, bytes]]] = []
    driver = ModuleType("pyodbc")
    driver.Connection = object  # type: ignore[attr-defined] # a module made here
    driver.connect = lambda settings, attrs_before: calls.append((settings, attrs_before))  # type: ignore[attr-defined] # the same
    monkeypatch.setitem(sys.modules, "pyodbc", driver)
    runpy.run_path(str(SAMPLES / "mssql_connect.py"))["connect"]("db.example.org", "shop", ImdsCredential())
    ((settings, attributes),) = calls
    assert "Server=db.example.org;Database=shop" in settings
    ((option, data),) = attributes.items()
    (length,) = struct.unpack_from("<I", data)
    assert (option, length) == (1256, len(data) - 4)
    assert data[4:].decode("utf-16-le") == imds.tokens[0]
    imds.assert_requests(1, resource="https://database.windows.net")
