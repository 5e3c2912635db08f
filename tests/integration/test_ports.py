"""Public programs with the lines of docs/proofs.md changed, and nothing else: they run with our credential."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import jwt
import pytest
from azure.storage.blob import BlobServiceClient
from proving import CACHE, needs, run, sample_environment
from test_azurite import ACCOUNT, Azurite, azurite  # noqa: F401 # a fixture, in its own module there

from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, forget_tokens

PAGE = (Path(__file__).parent.parent.parent / "docs" / "proofs.md").read_text()
DIFFS = dict(re.findall(r"```diff\n--- (\S+)\n\+\+\+ \S+\n(.*?)```", PAGE, re.DOTALL))
AIRFLOW = "airflow/providers/microsoft/azure/utils.py"
AIRFLOW_PROVIDER = "apache-airflow-providers-microsoft-azure==15.2.1"

Ported = Callable[..., str]


def changed(text: str, diff: str) -> str:
    """Apply a diff whose hunks have no line numbers: each block of removed lines stands in the file exactly once."""
    for hunk in diff.split("@@\n"):
        removed, added = ("".join(re.findall(rf"^{re.escape(sign)}(.*\n)", hunk, re.MULTILINE)) for sign in "-+")
        assert ("\n" + text).count("\n" + removed) == 1, removed
        text = text.replace(removed, added)
    return text


@pytest.fixture
def ported(ca_file: str, tmp_path: Path) -> Ported:
    """Return a function that runs a program with the changed package before the released one."""

    def ported(file: str, program: str, *arguments: str, source: Path | None = None, **environment: str) -> str:
        if source is None:
            spec = find_spec(file.partition("/")[0])
            assert spec is not None
            assert spec.origin is not None
            package = Path(spec.origin).parent
            shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
            source = package.parent / file
        else:
            (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(changed(source.read_text(), DIFFS[file]))
        where = {**sample_environment(ca_file), "PYTHONPATH": str(tmp_path), **environment}
        return run(sys.executable, "-c", program, *arguments, seconds=120, env=where, cwd=tmp_path)

    return ported


@pytest.fixture
def container(azurite: Azurite, imds: ImdsEmulator) -> str:  # noqa: F811 # the fixture imported above
    """Make a container with one blob, with a token of the emulator; return its name."""
    assert not imds.requests
    with BlobServiceClient(azurite.blob, ImdsCredential(), **azurite.trust) as service:
        client = service.create_container(f"ports-{id(service)}")
        client.upload_blob("greeting.txt", b"hello")
        name = client.container_name
    forget_tokens()
    return str(name)


def test_adlfs(ported: Ported, azurite: Azurite, container: str, imds: ImdsEmulator) -> None:  # noqa: F811 # as above
    """The ported adlfs writes and reads a file with tokens that Azurite accepts."""
    needs("adlfs")
    program = """
import sys, adlfs, adlfs.spec
assert "azure_imds_credential" in open(adlfs.spec.__file__).read()
account, path, host = sys.argv[1:]
files = adlfs.AzureBlobFileSystem(account_name=account, anon=False, account_host=host)
files.pipe(path, b"hello from adlfs")
print(files.cat(path).decode())
"""
    imds.clear_requests()
    host = azurite.blob.removeprefix("https://")
    assert ported("adlfs/spec.py", program, ACCOUNT, f"{container}/new.txt", host) == "hello from adlfs\n"
    imds.assert_requests(1, resource="https://storage.azure.com")


@pytest.fixture(scope="session")
def airflow_module() -> Path:
    """Return the module of Airflow's provider: without its dependencies, of which it imports msrest alone."""
    needs("msrest")
    folder = CACHE / AIRFLOW_PROVIDER
    if not (folder / AIRFLOW).exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, AIRFLOW_PROVIDER)
    return folder / AIRFLOW


def test_airflow(
    ported: Ported,
    airflow_module: Path,
    azurite: Azurite,  # noqa: F811 # as above
    container: str,
    imds: ImdsEmulator,
) -> None:
    """The credentials of Airflow's hooks read from Azurite; an empty client ID is the system-assigned identity."""
    app = UserAssigned("app")
    imds.assign(app)
    program = """
import asyncio, json, runpy, sys
from azure.storage.blob import BlobServiceClient

module = runpy.run_path(sys.argv[1])
url, container, client_id = sys.argv[2:]
names = []
for field in ("", client_id):
    credential = module["get_sync_default_azure_credential"](managed_identity_client_id=field)
    with BlobServiceClient(url, credential) as service:
        blob = service.get_blob_client(container, "greeting.txt").download_blob().readall()
    aio = module["get_async_default_azure_credential"](managed_identity_client_id=field)
    names.append([blob.decode(), credential.whoami().client_id, asyncio.run(aio.whoami()).client_id])
print(json.dumps(names))
"""
    imds.clear_requests()
    arguments = (AIRFLOW, azurite.blob, container, app.client_id)
    told = json.loads(ported(AIRFLOW, program, *arguments, source=airflow_module))
    system = imds.identities[0]
    assert told == [["hello", one.client_id, one.client_id] for one in (system, app)]
    imds.assert_requests(2, resource="https://storage.azure.com")


@pytest.fixture
def model(imds: ImdsEmulator, certificate: tuple[str, str]) -> Iterator[str]:
    """Run a language model over TLS that repeats the question of each caller whose token PyJWT accepts."""
    keys = jwt.PyJWKClient(imds.jwks_uri)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            token = self.headers["Authorization"].removeprefix("Bearer ")
            key = keys.get_signing_key_from_jwt(token)
            jwt.decode(token, key, ["RS256"], audience="https://ai.azure.com", issuer=imds.issuer)
            message = {"role": "assistant", "content": f"You said: {question}"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt", "choices": choices}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}/api/projects/shop"
        server.shutdown()


def test_langchain(ported: Ported, model: str, imds: ImdsEmulator) -> None:
    """The ported chat model asks with a token that the model's server accepts."""
    needs("langchain_azure_ai")
    program = """
import sys
from langchain_azure_ai.chat_models import AzureAIOpenAIApiChatModel

model = AzureAIOpenAIApiChatModel(project_endpoint=sys.argv[1], model="gpt", use_responses_api=False)
print(model.invoke("hi").content)
"""
    assert ported("langchain_azure_ai/_resources.py", program, model) == "You said: hi\n"
    imds.assert_requests(1, resource="https://ai.azure.com")
