"""gRPC: a usable token in the metadata of every call.  Usage: grpc_call.py TARGET METHOD SCOPE [CA_FILE]."""

import sys
from pathlib import Path

import grpc

from azure_imds_credential import ImdsCredential


class BearerPlugin(grpc.AuthMetadataPlugin):
    """Asks the credential for each call."""

    def __init__(self, credential: ImdsCredential, scope: str) -> None:
        self.token = credential.token_provider(scope)

    def __call__(self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:  # noqa: D102
        try:
            callback((("authorization", f"Bearer {self.token()}"),), None)
        except Exception as error:  # gRPC tells the caller
            callback((), error)


if __name__ == "__main__":
    target, method, scope, *ca_file = sys.argv[1:]
    tls = grpc.ssl_channel_credentials(Path(ca_file[0]).read_bytes() if ca_file else None)
    tokens = grpc.metadata_call_credentials(BearerPlugin(ImdsCredential(), scope))
    with grpc.secure_channel(target, grpc.composite_channel_credentials(tls, tokens)) as channel:
        print(channel.unary_unary(method)(b"", timeout=30).decode())
