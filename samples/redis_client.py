"""Redis through redis-entraid, which refreshes the token of open connections.  Usage: redis_client.py URL."""

import sys

from redis import Redis
from redis.auth.token_manager import RetryPolicy, TokenManagerConfig
from redis_entraid.cred_provider import EntraIdCredentialsProvider
from redis_entraid.identity_provider import DefaultAzureCredentialProvider

from azure_imds_credential import ImdsCredential

# Refresh at 70 % of the life; a request for a token may take 10 s; 3 attempts with 100 ms between them.
TOKENS = TokenManagerConfig(0.7, 0, 10_000, RetryPolicy(3, 100))


def connect(url: str, credential: ImdsCredential) -> Redis:
    """Return a client whose user is the object ID in the token."""
    identity = DefaultAzureCredentialProvider(credential, ("https://redis.azure.com/.default",))  # any credential
    return Redis.from_url(url, credential_provider=EntraIdCredentialsProvider(identity, TOKENS))


if __name__ == "__main__":
    with connect(sys.argv[1], ImdsCredential()) as client:
        client.set("greeting", "hello")
        print(client.acl_whoami(), client.get("greeting"))
