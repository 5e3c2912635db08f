"""Runs in a network namespace of its own, where 169.254.169.254 is the emulator: clients of others, each as it is.

Argument: JSON, the commands of the clients that were built before. Prints JSON: for each client how it ended, whose
tokens it got, and its requests; under "heeding" whether it goes where AZURE_POD_IDENTITY_AUTHORITY_HOST leads.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import trustme
from cloud import Answer, Cloud, Request, Service

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned

VARIABLE = "AZURE_POD_IDENTITY_AUTHORITY_HOST"
SECONDS = 120  # for one client; Java and az take some of them to start
SYSTEM, APP = SystemAssigned(), UserAssigned("app")
ARM = "management.azure.com"
SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"

PYMONGO = """
import sys
from pymongo._azure_helpers import _get_azure_response
print(_get_azure_response("https://vault.azure.net", *sys.argv[1:])["access_token"])
"""
POLARS = """
import sys
import polars
options = {"azure_storage_account_name": "demo", "azure_endpoint": sys.argv[1], "azure_allow_http": "true"}
options |= {"azure_client_id": sys.argv[2]} if sys.argv[2:] else {}
polars.scan_parquet("az://container/x.parquet", storage_options=options, credential_provider=None).collect()
"""
DELTA_RS = """
import sys
from deltalake import DeltaTable
options = {"azure_storage_account_name": "demo", "azure_endpoint": sys.argv[1], "azure_allow_http": "true"}
options |= {"azure_client_id": sys.argv[2]} if sys.argv[2:] else {}
DeltaTable("az://container/table", storage_options=options)
"""
# librdkafka asks for its token when the client is made, before there is any broker, and sends it to the first one.
LIBRDKAFKA = """
import sys
from confluent_kafka import Producer
query = "api-version=2018-02-01&resource=https://eventhubs.azure.net"
query += "".join(f"&client_id={each}" for each in sys.argv[1:])
errors = []
producer = Producer({
    "bootstrap.servers": "127.0.0.1:1",
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanisms": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.metadata.authentication.type": "azure_imds",
    "sasl.oauthbearer.config": f"query={query}",
    "error_cb": errors.append,
})
for _ in range(20):
    producer.poll(0.1)
assert not [error for error in errors if error.name() == "_AUTHENTICATION"], errors
"""


class Storage:
    """Stands in for Azure Storage: knows no file, and notes the tokens that it is shown."""

    def __enter__(self) -> Storage:
        self.tokens = tokens = []  # type: list[str]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                tokens.append(self.headers.get("Authorization", "").removeprefix("Bearer "))
                self.send_error(404)

            do_HEAD = do_GET  # noqa: N815 - a name of the base class

            def log_message(self, *_: object) -> None:
                """Nothing: the tokens say what came."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def told(imds: ImdsEmulator, command: list[str], tokens: Callable[[str], list[str]], **environment: str) -> Any:
    """Run a client and return what became of it."""
    imds.clear_requests()
    environ = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environ)
    got = [token for token in tokens(done.stdout) if token in imds.tokens]
    return {
        "code": done.returncode,
        "said": done.stdout[-500:] + done.stderr[-1500:],
        "identities": [jwt.decode(token, options={"verify_signature": False})["appid"] for token in got],
        "requests": [[one.path, one.header("Metadata"), one.param("client_id"), one.answered] for one in imds.requests],
    }


def azure_cli(imds: ImdsEmulator, az: str, client_id: list[str]) -> Any:
    """`az login --identity` with Azure Resource Manager in its place, then a token for a vault."""
    subscription = {
        "id": f"/subscriptions/{SUBSCRIPTION}",
        "subscriptionId": SUBSCRIPTION,
        "tenantId": imds.tenant_id,
        "displayName": "demo",
        "state": "Enabled",
    }

    def answer(request: Request) -> Answer:
        return Answer(200, {"value": [subscription]}) if request.path == "/subscriptions" else Answer(404, {})

    authority = trustme.CA()
    service = Service("https://management.core.windows.net/", answer)
    with tempfile.TemporaryDirectory() as folder, Cloud(imds, authority, {ARM: service}) as cloud:
        ca_file = str(Path(folder) / "ca.pem")
        authority.cert_pem.write_to_path(ca_file)
        way = {
            "HTTPS_PROXY": cloud.proxies["https"],
            "REQUESTS_CA_BUNDLE": ca_file,
            "AZURE_CONFIG_DIR": folder,
            "AZURE_CORE_COLLECT_TELEMETRY": "no",
        }
        selector = ["--client-id", *client_id] if client_id else []
        login = told(imds, [az, "login", "--identity", *selector], lambda _: [], **way)
        query = ["--query", "accessToken", "--output", "tsv"]
        command = [az, "account", "get-access-token", "--resource", "https://vault.azure.net", *query]
        token = told(imds, command, str.split, **way)
    return {**token, "said": login["said"] + token["said"], "requests": login["requests"] + token["requests"]}


def clients_of(
    imds: ImdsEmulator, storage: Storage, commands: dict[str, list[str]], client_id: list[str]
) -> dict[str, Callable[[], Any]]:
    """Return what runs each client, for one identity."""
    python = [sys.executable, "-c"]

    def of_storage(_: str) -> list[str]:
        shown, storage.tokens[:] = storage.tokens[:1], []
        return shown

    def command(program: list[str]) -> Callable[[], Any]:
        return lambda: told(imds, [*program, *client_id], str.split)

    return {
        "pymongo": command([*python, PYMONGO]),
        "polars": lambda: told(imds, [*python, POLARS, storage.url, *client_id], of_storage),
        "delta-rs": lambda: told(imds, [*python, DELTA_RS, storage.url, *client_id], of_storage),
        "librdkafka": lambda: told(imds, [*python, LIBRDKAFKA, *client_id], lambda _: imds.tokens[-1:]),
        **{name: command(program) for name, program in commands.items()},
        **(
            {"azure-cli": lambda: azure_cli(imds, *commands["azure-cli"], client_id)} if "azure-cli" in commands else {}
        ),
    }


def main(commands: dict[str, list[str]]) -> dict[str, Any]:
    """Run all clients, each for the machine's own identity and for one by its client ID."""
    results: dict[str, Any] = {}
    with ImdsEmulator([SYSTEM, APP], host="169.254.169.254", port=80) as imds, Storage() as storage:
        for kind, client_id in (("system-assigned", []), ("by client_id", [APP.client_id])):
            for name, run in clients_of(imds, storage, commands, client_id).items():
                imds.renew_tokens()
                results[f"{name}, {kind}"] = run()
        with ImdsEmulator() as other:
            os.environ[VARIABLE] = other.endpoint
            heeding = {}
            for name, run in clients_of(other, storage, commands, []).items():
                run()
                heeding[name] = bool(other.requests)
    return {**results, "heeding": heeding}


if __name__ == "__main__":
    # Nothing is asked anywhere but here: a namespace without any interface to the world.
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this is no namespace of its own")
    os.environ.pop(VARIABLE, None)
    print(json.dumps(main(json.loads(sys.argv[1]))))
