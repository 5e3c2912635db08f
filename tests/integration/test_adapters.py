"""Each sample for another library, run as its users run it, against something that judges the token it brings."""

from __future__ import annotations

import asyncio
import os
import pwd
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from azure.storage.blob import BlobServiceClient
from cloud import Answer, Cloud, Request, Service
from directory import Directory
from proving import free_port, lacking, needs, run, sample_environment
from test_azurite import ACCOUNT, Azurite, azurite  # noqa: F401 # a fixture, in its own module there

from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, forget_tokens

SAMPLES = Path(__file__).parent.parent.parent / "samples"
POSTGRES_SCOPE = "https://ossrdbms-aad.database.windows.net/.default"
IDENTITY = "vm-1"  # in Azure Database for PostgreSQL the name of the identity is the name of the role
START_SECONDS = 60

Sample = Callable[..., str]


@pytest.fixture
def sample(imds: ImdsEmulator, ca_file: str) -> Sample:
    """Return a function that runs a sample in a process of its own, and returns its output."""

    def sample(name: str, *arguments: str, **environment: str) -> str:
        where = {**sample_environment(ca_file), **environment}
        return run(sys.executable, SAMPLES / name, *arguments, seconds=120, env=where)

    return sample


# HTTP


@pytest.fixture
def api(imds: ImdsEmulator, authority: trustme.CA) -> Iterator[Cloud]:
    """Run an API that names its caller, and a language model that repeats the question."""

    def who(request: Request) -> Answer:
        return Answer(200, {"oid": request.claims["oid"]})

    def repeat(request: Request) -> Answer:
        message = {"role": "assistant", "content": f"You said: {request.body['messages'][0]['content']}"}
        return Answer(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    services = {
        "api.example.org": Service("api://example", who),
        "model.openai.azure.com": Service("https://cognitiveservices.azure.com", repeat),
    }
    with Cloud(imds, authority, services) as cloud:
        yield cloud


@pytest.mark.parametrize("name", ["requests_auth.py", "httpx_auth.py"])
def test_http_clients(name: str, sample: Sample, api: Cloud, imds: ImdsEmulator) -> None:
    """Clients of requests and httpx send a token that the API's own validation accepts."""
    needs("httpx")
    said = sample(name, "https://api.example.org/who", "api://example/.default", HTTPS_PROXY=api.proxies["https"])
    assert imds.identities[0].object_id in said
    assert api.requests == ["200 GET api.example.org/who"]
    imds.assert_requests(1, resource="api://example")


def test_httpx_sync_and_aio_share_a_token(api: Cloud, imds: ImdsEmulator, ca_file: str) -> None:
    """The httpx adapter serves a sync and an async client with one request to IMDS."""
    needs("httpx")
    import ssl

    import httpx

    auth = runpy.run_path(str(SAMPLES / "httpx_auth.py"))["BearerAuth"]("api://example/.default")
    how: dict[str, Any] = {"verify": ssl.create_default_context(cafile=ca_file), "proxy": api.proxies["https"]}

    async def asynchronous() -> int:
        async with httpx.AsyncClient(auth=auth, **how) as client:
            return (await client.get("https://api.example.org/who")).status_code

    with httpx.Client(auth=auth, **how) as client:
        assert client.get("https://api.example.org/who").status_code == 200
    assert asyncio.run(asynchronous()) == 200
    imds.assert_requests(1)


def test_api_refuses(api: Cloud, ca_file: str) -> None:
    """The API of these tests refuses a token for another audience."""
    import requests

    auth = runpy.run_path(str(SAMPLES / "requests_auth.py"))["BearerAuth"](ImdsCredential(), "api://other/.default")
    with requests.Session() as session:
        answer = session.get("https://api.example.org/who", auth=auth, verify=ca_file, proxies=api.proxies, timeout=30)
    assert (answer.status_code, api.requests) == (401, ["401 GET api.example.org/who"])


def test_openai(sample: Sample, api: Cloud) -> None:
    """OpenAI's client takes the token provider as it is."""
    needs("openai")
    said = sample("openai_chat.py", "https://model.openai.azure.com", "gpt", "hi", HTTPS_PROXY=api.proxies["https"])
    assert said == "You said: hi\n"
    assert api.requests == ["200 POST model.openai.azure.com/openai/deployments/gpt/chat/completions"]


# PostgreSQL


@pytest.fixture
def directory(imds: ImdsEmulator) -> Iterator[Directory]:
    """Run a directory that judges passwords as Azure Database for PostgreSQL judges tokens."""
    keys = jwt.PyJWKClient(imds.jwks_uri)

    def is_good(name: str, password: str) -> bool:
        try:
            key = keys.get_signing_key_from_jwt(password)
            audience = POSTGRES_SCOPE.removesuffix("/.default")
            claims = jwt.decode(password, key, ["RS256"], audience=audience, issuer=imds.issuer)
        except jwt.InvalidTokenError:
            return False
        return str(claims["xms_mirid"]).endswith(f"/{name}")

    with Directory(is_good) as directory:
        yield directory


@pytest.fixture
def postgres(directory: Directory) -> Iterator[str]:
    """Run Debian's PostgreSQL, which asks the directory about every password; yield the database's URL."""
    needs("sqlalchemy", "psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        lacking("there is no PostgreSQL under /usr/lib/postgresql")
    programs, port = found[-1].parent, free_port()
    # PostgreSQL refuses to be root, and others may not look into pytest's folders.
    account = pwd.getpwnam("nobody").pw_uid if os.getuid() == 0 else None
    who: dict[str, Any] = {} if account is None else {"user": account}
    folder = Path(tempfile.mkdtemp(prefix="imds-postgres-"))
    if account is not None:
        os.chown(folder, account, -1)
    data = folder / "data"
    try:
        run(programs / "initdb", "--no-sync", "--username=admin", "--auth=trust", "-D", data, cwd=folder, **who)
        rule = f'127.0.0.1/32 ldap ldapserver=127.0.0.1 ldapport={directory.port} ldapprefix="" ldapsuffix=""'
        (data / "pg_hba.conf").write_text(f"local all admin trust\nhost all {IDENTITY},app {rule}\n")
        options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        command = [programs / "postgres", "-D", data, "-k", folder, *options]
        with (
            (folder / "log.txt").open("w") as log,
            subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, **who) as process,
        ):
            try:
                until = time.monotonic() + START_SECONDS
                while "ready to accept" not in (folder / "log.txt").read_text():
                    assert process.poll() is None, (folder / "log.txt").read_text()
                    assert time.monotonic() < until, (folder / "log.txt").read_text()
                    time.sleep(0.05)
                make_role(folder, port)
                yield f"postgresql+psycopg://{IDENTITY}@127.0.0.1:{port}/postgres"
            finally:
                process.terminate()
                process.wait(30)
    finally:
        shutil.rmtree(folder)


def make_role(folder: Path, port: int) -> None:
    import psycopg

    with psycopg.connect(f"host={folder} port={port} user=admin dbname=postgres", autocommit=True) as connection:
        for role in (IDENTITY, "app"):
            connection.execute(f'create role "{role}" login')


def test_postgres(postgres: str, sample: Sample, directory: Directory) -> None:
    """PostgreSQL lets the sample in with the token as its password."""
    assert sample("postgres_engine.py", postgres) == f"{IDENTITY}\n"
    assert [(name, good) for name, _, good in directory.asked] == [(IDENTITY, True)]


APP = UserAssigned("app")


@pytest.mark.parametrize("identity", [APP, None], ids=["user-assigned", "system-assigned"])
def test_postgres_entra(
    postgres: str, sample: Sample, directory: Directory, imds: ImdsEmulator, identity: UserAssigned | None
) -> None:
    """azure-postgresql-auth takes our credential for a user-assigned identity, and fails for a system-assigned one."""
    needs("azure_postgresql_auth")
    url = postgres.replace(f"{IDENTITY}@", "")
    if identity:
        imds.assign(identity)
        assert sample("postgres_entra.py", url, identity.client_id) == "app\n"
        assert [(name, good) for name, _, good in directory.asked] == [("app", True)]
        return
    from azure_postgresql_auth.sqlalchemy import enable_entra_authentication
    from sqlalchemy import create_engine

    engine = create_engine(url, connect_args={"credential": ImdsCredential()})
    enable_entra_authentication(engine)
    with pytest.raises(Exception, match="Could not retrieve Entra credentials"):
        engine.connect()
    assert directory.asked == []


def test_postgres_new_connections(postgres: str, imds: ImdsEmulator, directory: Directory) -> None:
    """A new connection brings the token of its moment; connections at once share one request to IMDS."""
    from sqlalchemy import text

    engine = runpy.run_path(str(SAMPLES / "postgres_engine.py"))["engine_with_tokens"](postgres, ImdsCredential())

    def ask(_: int) -> Any:
        with engine.connect() as connection:
            return connection.execute(text("select current_user")).scalar_one()

    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(ask, range(5))) == [IDENTITY] * 5
    imds.assert_requests(1)
    assert {password for _, password, _ in directory.asked} == {imds.tokens[0]}
    engine.dispose()
    imds.renew_tokens()
    forget_tokens()
    assert ask(0) == IDENTITY
    engine.dispose()
    assert directory.asked[-1] == (IDENTITY, imds.tokens[1], True)


def test_postgres_refuses(postgres: str, directory: Directory) -> None:
    """PostgreSQL refuses a token for another audience."""
    import psycopg

    token = ImdsCredential().get_token("https://vault.azure.net/.default").token
    with pytest.raises(psycopg.OperationalError, match="LDAP authentication failed"):
        psycopg.connect(postgres.replace("+psycopg", ""), password=token)
    assert [good for _, _, good in directory.asked] == [False]


# Azure Storage


@pytest.fixture
def storage(azurite: Azurite) -> tuple[str, str]:  # noqa: F811 # the fixture imported above
    """Return the URL of a storage account that judges tokens, and a new container there."""
    service = BlobServiceClient(azurite.blob, ImdsCredential(), **azurite.trust)
    name = f"adapters-{time.time_ns()}"
    service.create_container(name)
    forget_tokens()
    return azurite.blob, name


@pytest.mark.parametrize(
    ("name", "where", "said"),
    [("polars_storage.py", "az://{}/numbers.parquet", "6\n"), ("delta_table.py", "az://{}/numbers", "3\n")],
)
def test_tables(name: str, where: str, said: str, sample: Sample, storage: tuple[str, str], imds: ImdsEmulator) -> None:
    """A table of polars or delta-rs is written to Azure Storage, and read, with one token; Azurite judges it."""
    needs("polars", "deltalake")
    url, container = storage
    imds.clear_requests()
    assert sample(name, ACCOUNT, where.format(container), AZURE_STORAGE_ENDPOINT=url) == said
    imds.assert_requests(1, resource="https://storage.azure.com")


def test_files(sample: Sample, storage: tuple[str, str]) -> None:
    """A file is written through fsspec and adlfs, and read, with our async credential; Azurite judges its tokens."""
    needs("adlfs")
    url, container = storage
    assert sample("fsspec_adlfs.py", ACCOUNT, f"{container}/hello.txt", url.removeprefix("https://")) == "hello\n"


# gRPC


def test_grpc(sample: Sample, imds: ImdsEmulator, certificate: tuple[str, str], ca_file: str) -> None:
    """A gRPC server over TLS finds a token in the metadata of the call, and accepts it."""
    needs("grpc")
    import grpc

    keys = jwt.PyJWKClient(imds.jwks_uri)

    class Who(grpc.GenericRpcHandler):
        def service(self, call: Any) -> Any:
            scheme, _, token = dict(call.invocation_metadata).get("authorization", "").partition(" ")
            key = keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, ["RS256"], audience="api://example", issuer=imds.issuer)
            assert (call.method, scheme) == ("/who.Who/Am", "Bearer")
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: str(claims["oid"]).encode())

    chain, key_file = (Path(path).read_bytes() for path in certificate)
    server = grpc.server(ThreadPoolExecutor(2), handlers=(Who(),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key_file, chain)]))
    server.start()
    try:
        said = sample("grpc_call.py", f"127.0.0.1:{port}", "/who.Who/Am", "api://example/.default", ca_file)
    finally:
        server.stop(None).wait()
    assert said == f"{imds.identities[0].object_id}\n"
