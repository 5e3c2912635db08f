"""MongoDB with MONGODB-OIDC through pymongo.  Usage: mongo_find.py URL SCOPE."""

import sys
import time

from pymongo import MongoClient
from pymongo.auth_oidc import OIDCCallback, OIDCCallbackContext, OIDCCallbackResult

from azure_imds_credential import ImdsCredential


class ImdsCallback(OIDCCallback):
    """Returns a token whenever the driver authenticates a connection and holds none that is valid."""

    def __init__(self, credential: ImdsCredential, scope: str) -> None:
        self.credential, self.scope = credential, scope

    def fetch(self, context: OIDCCallbackContext) -> OIDCCallbackResult:  # noqa: ARG002, D102
        token = self.credential.get_token(self.scope)
        return OIDCCallbackResult(token.token, expires_in_seconds=token.expires_on - time.time())


if __name__ == "__main__":
    url, scope = sys.argv[1:]
    properties = {"OIDC_CALLBACK": ImdsCallback(ImdsCredential(), scope)}
    with MongoClient(url, authMechanism="MONGODB-OIDC", authMechanismProperties=properties) as client:
        print(client["shop"].command("ping")["ok"])
