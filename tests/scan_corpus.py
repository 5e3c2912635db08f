"""A corpus for the scan: files that hold a secret, and files that only look so. Run it to see precision and recall.

`python tests/scan_corpus.py` prints the table of docs/testing.md. All secrets are made up here, at run time.
"""

# ruff: noqa: E501 - a file is easier to read on one line

from __future__ import annotations

import base64
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recording_cases import (
    ACCOUNT_KEY,
    BUS,
    CLIENT,
    CONNECTION,
    FUNCTION_KEY,
    HEX_32,
    KEY_32,
    KUBECONFIG,
    OPAQUE,
    PASSWORD,
    PEM,
    PUBLISH_PROFILE,
    SAS,
    SQL,
    SUBSCRIPTION,
    TOKEN,
    b64,
    b64url,
    made_up_bytes,
)

from azure_imds_credential.testing import scan_recordings

CLIENT_SECRET = "abc8Q~" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
NAMED = {
    "password": PASSWORD,
    "client_secret": CLIENT_SECRET,
    "account_key": ACCOUNT_KEY,
    "access_token": TOKEN,
    "refresh_token": OPAQUE,
    "api_key": HEX_32,
    "subscription_key": HEX_32,
    "function_key": FUNCTION_KEY,
    "primaryKey": KEY_32,
    "admin_password": "Tr0ub4dor&3x",
    "connection_string": BUS,
    "sas_token": SAS.partition("?")[2],
}


def _formats(name: str, value: str) -> Iterator[tuple[str, str]]:
    """One value under one name in the formats in which configuration is written."""
    yield "a.json", json.dumps({"settings": {name: value, "timeout": 30}}, indent=2)
    yield "a.yaml", f"settings:\n  timeout: 30\n  {name}: '{value}'\n"
    yield ".env", f"TIMEOUT=30\n{name.upper()}={value}\n"
    yield "a.py", f'timeout = 30\n{name} = "{value}"\n'
    yield "a.ini", f"[settings]\ntimeout = 30\n{name} = {value}\n"
    yield "a.tf", f'resource "x" "y" {{\n  {name} = "{value}"\n}}\n'
    yield "a.xml", f'<?xml version="1.0"?>\n<settings><{name}>{value.replace("&", "&amp;")}</{name}></settings>\n'


def cassette(body: str | bytes, uri: str = "https://x.example/a", **headers: str) -> str:
    import yaml

    exchange = {
        "request": {
            "method": "GET",
            "uri": uri,
            "headers": {name: [value] for name, value in headers.items()},
            "body": None,
        },
        "response": {"status": {"code": 200, "message": "OK"}, "headers": {}, "body": {"string": body}},
    }
    return yaml.dump({"interactions": [exchange], "version": 1})


def har(**entry: Any) -> str:
    return json.dumps({"log": {"entries": [{"request": {"headers": [], **entry}, "response": {"content": {}}}]}})


POSITIVES: list[tuple[str, str | bytes]] = [
    *(file for name, value in NAMED.items() for file in _formats(name, value)),
    # Tokens and headers
    ("a.txt", f"curl -H 'Authorization: Bearer {TOKEN}' https://x"),
    ("a.txt", f"Authorization: Basic {b64('user:' + PASSWORD)}"),
    ("a.log", f"2026-01-01 DEBUG got token {TOKEN}"),
    ("a.md", f"Use `{TOKEN}` to sign in."),
    ("a.yaml", cassette(json.dumps({"access_token": TOKEN}))),
    ("a.yaml", cassette(json.dumps({"access_token": "opaque-but-live-1"}))),
    ("a.yaml", cassette("{}", Authorization=f"Bearer {OPAQUE}")),
    ("a.yaml", cassette("{}", Cookie="session=abcdef123456")),
    ("a.yaml", cassette("{}", **{"api-key": HEX_32})),
    ("a.yaml", cassette("{}", **{"x-functions-key": FUNCTION_KEY})),
    ("a.yaml", cassette("{}", **{"Ocp-Apim-Subscription-Key": HEX_32})),
    ("a.yaml", cassette(gzip.compress(json.dumps({"access_token": TOKEN}).encode(), mtime=0))),
    (
        "a.yaml",
        cassette(
            json.dumps({"value": "plainword", "id": "https://v.vault.azure.net/secrets/a/1"}),
            "https://v.vault.azure.net/secrets/a",
        ),
    ),
    ("a.yaml", cassette(json.dumps({"keys": [{"keyName": "key1", "value": ACCOUNT_KEY}]}))),
    ("a.yaml", cassette(json.dumps({"masterKey": FUNCTION_KEY, "functionKeys": {"default": "short-key-1"}}))),
    ("a.yaml", cassette("{}", f"https://x.azurewebsites.net/api/f?code={quote(FUNCTION_KEY)}")),
    ("a.yaml", cassette("{}", SAS)),
    ("a.yaml", cassette(f"<UserDelegationKey><Value>{KEY_32}</Value></UserDelegationKey>")),
    ("a.har", har(url=SAS)),
    ("a.har", har(headers=[{"name": "Authorization", "value": f"Bearer {OPAQUE}"}])),
    ("a.har", har(headers=[{"name": "Cookie", "value": "sid=31d4d96e407aad42"}])),
    ("a.har", har(postData={"params": [{"name": "client_secret", "value": CLIENT_SECRET}]})),
    ("a.har", har(postData={"text": f"grant_type=password&password={quote(PASSWORD)}"})),
    ("a.jsonl", f'{{"a": 1}}\n{{"password": "{PASSWORD}"}}\n'),
    ("a.log", f'body={{\\"client_secret\\":\\"{CLIENT_SECRET}\\"}}'),
    # Connection strings and URLs
    ("a.config", f'<add name="Db" connectionString="{SQL}" />'),
    ("a.config", f'<add key="StorageKey" value="{ACCOUNT_KEY}" />'),
    ("a.json", json.dumps({"ConnectionStrings": {"Default": SQL}})),
    ("a.json", json.dumps([{"name": "DB_PASSWORD", "value": PASSWORD, "slotSetting": False}])),
    ("a.json", json.dumps({"parameters": {"adminPassword": {"value": PASSWORD}}})),
    ("a.txt", CONNECTION),
    ("a.txt", f"the key is {ACCOUNT_KEY}"),
    ("a.txt", SAS),
    ("a.py", f'url = "postgres://app:{quote(PASSWORD)}@db.example.org:5432/x"'),
    ("a.txt", f"redis.cache.windows.net:6380,password={KEY_32},ssl=True"),
    ("a.txt", f"HostName=h.azure-devices.net;DeviceId=d;SharedAccessKey={KEY_32}"),
    ("a.txt", f"Endpoint=https://x.azconfig.io;Id=abc;Secret={KEY_32}"),
    ("a.txt", f"AccountEndpoint=https://c.documents.azure.com:443/;AccountKey={ACCOUNT_KEY};"),
    ("a.properties", f"spring.datasource.password={PASSWORD}"),
    ("a.properties", f"azure.storage.account-key={ACCOUNT_KEY}"),
    (
        "pip.conf",
        f"[global]\nindex-url = https://build:{HEX_32}{HEX_32[:20]}@pkgs.dev.azure.com/x/_packaging/f/pypi/simple/",
    ),
    (".npmrc", f"//registry.npmjs.org/:_authToken=npm_{'aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5'}"),
    (".pypirc", f"[pypi]\nusername = __token__\npassword = pypi-AgEIcHlwaS5vcmc{b64url(made_up_bytes(60, 3))}"),
    (".netrc", f"machine x.example login u password {PASSWORD}"),
    (".git-credentials", f"https://user:{HEX_32}{HEX_32[:20]}@dev.azure.com"),
    # Keys
    ("a.pem", PEM),
    ("a.pem", PEM.replace("PRIVATE", "RSA PRIVATE")),
    ("a.yaml", f"tls:\n  key: |\n    {PEM.replace(chr(10), chr(10) + '    ')}\n"),
    ("a.json", json.dumps({"private_key": PEM})),
    (
        "a.json",
        json.dumps({"kty": "RSA", "n": b64url(made_up_bytes(256, 1)), "e": "AQAB", "d": b64url(made_up_bytes(256, 2))}),
    ),
    ("kubeconfig", KUBECONFIG),
    ("a.json", json.dumps({"kubeconfigs": [{"name": "a", "value": b64(KUBECONFIG)}]})),
    ("a.publishsettings", PUBLISH_PROFILE),
    ("secret.yaml", f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: db\ndata:\n  password: {b64(PASSWORD)}\n"),
    ("secret.yaml", f"apiVersion: v1\nkind: Secret\ndata:\n  dsn: {b64(SQL)}\n"),
    ("secret.yaml", f"apiVersion: v1\nkind: Secret\nstringData:\n  db: {PASSWORD}\n"),
    ("config.json", json.dumps({"auths": {"reg.azurecr.io": {"auth": b64("user:" + PASSWORD)}}})),
    ("compose.yaml", f"services:\n  db:\n    environment:\n      POSTGRES_PASSWORD: {PASSWORD}\n"),
    ("compose.yaml", f"services:\n  db:\n    environment:\n      - POSTGRES_PASSWORD={PASSWORD}\n"),
    (
        "template.yaml",
        f"Resources:\n  Db:\n    Properties:\n      MasterUserPassword: {PASSWORD}\n      Name: !Sub 'x-${{Stage}}'\n",
    ),
    ("workflow.yaml", f"env:\n  AZURE_CLIENT_SECRET: {CLIENT_SECRET}\n"),
    ("Dockerfile", f"FROM x\nENV API_KEY={HEX_32}\n"),
    ("a.sh", f"export AZURE_CLIENT_SECRET='{CLIENT_SECRET}'\n"),
    ("a.sh", f"az login --service-principal -u {CLIENT} -p x --tenant {SUBSCRIPTION} --password '{CLIENT_SECRET}'"),
    ("a.ps1", f'$password = "{PASSWORD}" | ConvertTo-SecureString -AsPlainText'),
    ("a.cs", f'var credential = new AzureKeyCredential("{HEX_32}"); string apiKey = "{HEX_32}";'),
    ("a.js", f"const client = new Client({{ apiKey: '{HEX_32}' }});"),
    ("a.java", f'String clientSecret = "{CLIENT_SECRET}";'),
    ("a.go", f'password := "{PASSWORD}"'),
    ("a.py", f'client = Client(password="{PASSWORD}")'),
    ("a.py", f'headers = {{"Authorization": "Bearer {OPAQUE}"}}'),
    ("a.py", f'os.environ["AZURE_CLIENT_SECRET"] = "{CLIENT_SECRET}"'),
    ("a.bicepparam", f"param adminPassword = '{PASSWORD}'"),
    ("a.tfvars", f'storage_account_access_key = "{ACCOUNT_KEY}"'),
    (
        "terraform.tfstate",
        json.dumps({"resources": [{"instances": [{"attributes": {"primary_access_key": ACCOUNT_KEY}}]}]}),
    ),
    ("a.sh", f"mysqldump --user=root --password={PASSWORD} db"),
    ("a.csv", f"name,key\nacc,{ACCOUNT_KEY}\n"),
    # Other makers
    ("a.txt", "ghp_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"),
    ("a.txt", "glpat-" + "aB3dE5fG7hJ9kL1mN3pQ"),
    ("a.txt", "AKIA" + "QWERTYUIOPASDFG2"),
    ("a.txt", "xoxb-" + "123456789012-123456789012-aB3dE5fG7hJ9kL1mN3pQ5rS7"),
    ("a.txt", "sk_live_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7"),
    ("a.txt", "AIza" + "SyB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"),
    ("a.txt", "SG." + "aB3dE5fG7hJ9kL1mN3pQ5r" + "." + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5bC7dE9f"),
    # Whole files in other encodings
    ("a.txt", base64.encodebytes(json.dumps({"access_token": TOKEN}).encode())),
    ("a.gz", gzip.compress(f"password: {PASSWORD}\n".encode(), mtime=0)),
    ("a.txt", f"token: {TOKEN}".encode("utf-16")),
    ("a.json", b"\xef\xbb\xbf" + json.dumps({"clientSecret": CLIENT_SECRET}).encode()),
]

_PLACEHOLDERS = (
    "<password>",
    "<your-client-secret>",
    "YOUR_API_KEY",
    "your-secret-here",
    "xxxxxxxxxxxxxxxx",
    "XXXX-XXXX-XXXX",
    "****************",
    "changeme",
    "REPLACE_ME",
    "REDACTED",
    "[REDACTED]",
    "${DB_PASSWORD}",
    "${{ secrets.AZURE_CLIENT_SECRET }}",
    "{{ vault_password }}",
    "$(DbPassword)",
    "%DB_PASSWORD%",
    "#{Password}#",
    "...",
    "example-secret",
    "dummy-token-for-tests",
    "placeholder",
    "00000000000000000000000000000000",
    "@Microsoft.KeyVault(SecretUri=https://v.vault.azure.net/secrets/a/)",
    "",
)
_GUID = "11111111-1111-1111-1111-111111111111"
_SHA256 = made_up_bytes(32, 17).hex()

NEGATIVES: list[tuple[str, str | bytes]] = [
    *(("a.yaml", f"db:\n  password: '{value}'\n") for value in _PLACEHOLDERS),
    *((".env", f"CLIENT_SECRET={value}\n") for value in _PLACEHOLDERS if " " not in value),
    *(("a.json", json.dumps({"apiKey": value})) for value in _PLACEHOLDERS),
    *(("a.py", f'access_token = "{value}"\n') for value in _PLACEHOLDERS if "(" not in value),
    # Code that reads a variable
    *(
        ("a.py", line)
        for line in (
            'password = os.environ["DB_PASSWORD"]',
            'password = os.getenv("DB_PASSWORD", "")',
            "password = getpass.getpass()",
            "token = credential.get_token(scope).token",
            'secret = client.get_secret("greeting").value',
            "client = Client(password=password, api_key=settings.api_key)",
            "def connect(password: str, token: str | None = None) -> None:",
            "self.password = password",
            "if token == expected_token:",
            "password = config['database']['password']",
            'headers = {"Authorization": f"Bearer {token}"}',
            'parser.add_argument("--password", help="the password to use")',
            'raise ValueError("password must not be empty")',
            'PASSWORD_FIELD = "password"',
            'secret_name = "db-password"',
            "token_url = 'https://login.microsoftonline.com/common/oauth2/v2.0/token'",
            "key = lambda item: item.name",
            "for key, value in settings.items():",
            "primary_key = Column(Integer, primary_key=True)",
            "cache_key = f'{user}:{scope}'",
            "API_VERSION, TOKEN_PATH = '2018-02-01', '/metadata/identity/oauth2/token'",
            "session = Session(auth=HTTPBasicAuth(user, password))",
            "assert response.json()['access_token'] == imds.tokens[0]",
            "expected = 'Bearer ' + token",
        )
    ),
    ("a.js", "const password = process.env.DB_PASSWORD;"),
    ("a.ts", "interface Login { password: string; token?: string }"),
    ("a.js", "const { apiKey, clientSecret } = config;"),
    ("a.cs", 'var secret = await client.GetSecretAsync("name");'),
    ("a.cs", "public string Password { get; set; }"),
    ("a.java", 'String token = System.getenv("TOKEN");'),
    ("a.go", 'password := os.Getenv("PASSWORD")'),
    ("a.sh", 'export TOKEN="$(az account get-access-token --query accessToken -o tsv)"'),
    ("a.sh", 'curl -H "Authorization: Bearer $TOKEN" https://x'),
    ("a.ps1", "$password = Read-Host -AsSecureString"),
    ("a.tf", 'variable "admin_password" {\n  type      = string\n  sensitive = true\n}'),
    ("a.tf", "  client_secret = var.client_secret"),
    ("a.bicep", "@secure()\nparam adminPassword string"),
    ("a.bicep", "output key string = storage.listKeys().keys[0].value"),
    ("a.yaml", "env:\n  TOKEN: ${{ github.token }}\n  KEY: ${{ secrets.KEY }}\n"),
    ("a.yaml", "db:\n  passwordSecretName: db-password\n  secretKeyRef:\n    name: db\n    key: password\n"),
    ("a.yaml", "password: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  62313365396662343061393464336163\n"),
    ("a.yaml", "Parameters:\n  Password:\n    Type: String\n    NoEcho: true\nOutputs:\n  Key: !Ref Key\n"),
    ("sealed.yaml", f"kind: SealedSecret\nspec:\n  encryptedData:\n    a: AgB{b64(made_up_bytes(90, 4))}\n"),
    ("sops.yaml", f"password: ENC[AES256_GCM,data:{b64(made_up_bytes(12, 4))},iv:{KEY_32},type:str]\n"),
    # Prose and messages
    ("a.md", "The password must have 12 characters. Rotate the key every 90 days: see the token page."),
    ("a.md", "Bearer tokens are sent in the Authorization header: `Authorization: Bearer <token>`."),
    ("a.md", "Set `AccountKey=<key>` and `SharedAccessKey=...` in the connection string."),
    ("a.md", "| name | meaning |\n|---|---|\n| `client_secret` | the secret of the application |\n"),
    (
        "a.json",
        json.dumps({"password": "Password", "forgotPassword": "Forgot your password?", "token": "Security token"}),
    ),
    ("a.po", 'msgid "Password"\nmsgstr "Passwort"\n'),
    ("a.txt", "AKV10000: Request is missing a Bearer or PoP token."),
    (
        "a.txt",
        "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent is the client secret value.",
    ),
    ("a.log", f"2026-01-01 INFO token acquired for https://vault.azure.net, expires in 86399 s, request {_GUID}"),
    ("a.rst", "password\n    The password of the user. Default: None.\n"),
    # Hashes, identifiers, public material
    (
        "package-lock.json",
        json.dumps(
            {
                "packages": {
                    "a": {
                        "integrity": "sha512-" + b64(made_up_bytes(64, 9)),
                        "resolved": "https://registry.npmjs.org/a",
                    }
                }
            }
        ),
    ),
    ("a.html", f'<script src="x.js" integrity="sha384-{b64(made_up_bytes(48, 9))}" crossorigin="anonymous"></script>'),
    ("requirements.txt", f"a==1.0 \\\n    --hash=sha256:{_SHA256}\n"),
    ("poetry.lock", f'files = [{{file = "a.whl", hash = "sha256:{_SHA256}"}}]\n'),
    ("go.sum", f"github.com/a/b v1.2.3 h1:{b64(made_up_bytes(32, 6))}\n"),
    ("a.txt", f"commit {made_up_bytes(20, 3).hex()}\nAuthor: A\n"),
    ("Dockerfile", f"FROM python@sha256:{_SHA256}\n"),
    ("a.yaml", f"uses: actions/checkout@{made_up_bytes(20, 5).hex()}\n"),
    ("a.txt", f"ssh-rsa AAAAB3NzaC1yc2E{b64(made_up_bytes(200, 6))} me@host"),
    (
        "cert.pem",
        "-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(made_up_bytes(400, 8)).decode()
        + "-----END CERTIFICATE-----\n",
    ),
    (
        "key.pub",
        "-----BEGIN PUBLIC KEY-----\n"
        + base64.encodebytes(made_up_bytes(200, 8)).decode()
        + "-----END PUBLIC KEY-----\n",
    ),
    (
        "jwks.json",
        json.dumps(
            {
                "keys": [
                    {
                        "kty": "RSA",
                        "use": "sig",
                        "kid": b64url(made_up_bytes(20, 3)),
                        "n": b64url(made_up_bytes(256, 3)),
                        "e": "AQAB",
                    }
                ]
            }
        ),
    ),
    ("a.json", json.dumps({"id": _GUID, "tenantId": SUBSCRIPTION, "etag": f'"{b64(made_up_bytes(16, 3))}"'})),
    ("a.json", json.dumps({"Content-MD5": b64(made_up_bytes(16, 4)), "x-ms-content-crc64": b64(made_up_bytes(8, 4))})),
    ("a.css", f"a {{ background: url(data:image/png;base64,{b64(made_up_bytes(300, 5))}) }}"),
    (
        "a.md",
        "[video](https://www.youtube.com/watch?v=dQw4w9WgXcQ), [sheet](https://docs.google.com/spreadsheets/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit)",
    ),
    (
        "a.py",
        "from azure.mgmt.containerservice.v2024_09_02_preview.models import ManagedClusterServicePrincipalProfile",
    ),
    ("a.json", json.dumps({"key": "FontSize", "value": "14", "content_type": "", "label": None})),
    ("a.json", json.dumps({"key": ".appconfig.featureflag/Beta", "value": '{"id":"Beta","enabled":true}'})),
    (
        "a.json",
        json.dumps({"usage": {"prompt_tokens": 5, "total_tokens": 12}, "max_tokens": 100, "token_type": "Bearer"}),
    ),
    ("a.json", json.dumps({"permissions": {"keys": ["get", "list"], "secrets": ["get"]}})),
    (
        "openapi.yaml",
        "components:\n  schemas:\n    Login:\n      properties:\n        password:\n          type: string\n          format: password\n        token: {type: string, description: The token of the session}\n",
    ),
    (
        "a.json",
        json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "properties": {"apiKey": {"type": "string", "description": "The API key"}},
            }
        ),
    ),
    ("a.csv", "user,password_changed,token_count\na,2026-01-01,5\n"),
    ("a.toml", '[tool.x]\nsecret-scanning = true\ntoken-lifetime = "24h"\n'),
    ("a.sql", "CREATE TABLE t (id INT PRIMARY KEY, password_hash VARCHAR(60), token TEXT)"),
    ("a.graphql", "type User { id: ID! token: String password: String! }"),
    ("a.txt", "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----"),
    (
        "a.yaml",
        cassette(
            json.dumps({"value": [{"id": "https://v.vault.azure.net/secrets/greeting"}]}),
            "https://v.vault.azure.net/secrets",
        ),
    ),
    (
        "a.yaml",
        cassette(
            json.dumps(
                {"error": {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer or PoP token."}}
            )
        ),
    ),
    (
        "a.yaml",
        cassette(
            "{}",
            "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net",
            Metadata="true",
        ),
    ),
    ("a.yaml", cassette("{}", "https://x/a?sig=REDACTED&sv=2024", Authorization="REDACTED")),
    ("a.har", har(headers=[{"name": "Authorization", "value": "[redacted]"}])),
    ("a.txt", "some words that look like base64 and are none " * 9),
    ("a.json", json.dumps({"token": "string", "password": "string", "client_secret": "string"})),
    ("a.py", 'url = "https://user:password@example.org/"; other = f"postgres://{user}:{password}@{host}"'),
]


HEX_TOKEN = made_up_bytes(16, 23).hex()
FORM = "<!doctype html>\n<html><body><form>{}</form></body></html>\n"

POSITIVES += [
    # Passwords in commands, HTML forms, cloud-init, PostgreSQL's files, events, answers of list operations, headers
    ("a.sh", "mysql -pS3cret"),
    ("a.sh", "mysql -pS3cret db < x.sql\n"),
    ("a.sh", "mysql -h db -u root -pS3cret\n"),
    ("a.sh", "mysqldump -u root -p'Hunter2x' db"),
    ("a.sh", "mysqlimport -pHunter2x db f"),
    ("a.sh", "mariadb-dump -pHunter2x db"),
    ("a.sh", "mysqlsh --sql -u x -pHunter2x"),
    ("a.yaml", "command: mysql -pS3cret\n"),
    ("a.yaml", "command: [mysql, -uroot, -pS3cret]\n"),
    ("a.json", json.dumps({"cmd": ["mysqladmin", "-u", "root", "-pS3cret", "ping"]})),
    ("a.sh", "sqlcmd -S db -U sa -P Hunter2x -Q 'select 1'"),
    ("a.sh", "bcp t out f -S s -U sa -PHunter2x"),
    ("a.sh", "redis-cli -h h -a Hunter2x ping"),
    ("a.sh", "mongosh -u root -p Hunter2x --host h"),
    ("a.sh", "mongodump -u root -pHunter2x"),
    ("a.sh", "7z x -pHunter2x a.7z"),
    ("a.sh", "unzip -P Hunter2x a.zip"),
    ("a.sh", "openssl pkcs12 -in a.pfx -passin pass:Hunter2x -nodes"),
    ("a.sh", "openssl pkcs12 -export -passout pass:Hunter2x"),
    ("a.sh", "ldapsearch -x -D cn=a -w Hunter2x -b dc=x"),
    ("a.sh", "smbclient //s/x -U 'user%Hunter2x'"),
    ("a.sh", "mount -t cifs //x/y /m -o username=u,password=Hunter2x"),
    ("a.sh", "sshpass -pHunter2x ssh h"),
    ("a.sh", "mosquitto_pub -h h -u u -P Hunter2x -t t"),
    ("a.cmd", "net use Z: \\\\acc.file.core.windows.net\\s /user:Azure\\acc Hunter2x9"),
    ("a.cmd", "cmdkey /add:h /user:u /pass:Hunter2x"),
    ("a.cmd", "xfreerdp /u:a /p:Hunter2x /v:h"),
    ("a.sh", "keytool -genkey -storepass Hunter2x -keypass Hunter3x"),
    ("a.sh", "sqlplus app/Hunter2x@db"),
    ("a.sh", "lftp -u user,Hunter2x ftp.x"),
    ("a.sh", "helm registry login -u u -p Hunter2x r"),
    ("a.sh", "PGPASSWORD=Hunter2x psql -h h"),
    ("a.sh", "MYSQL_PWD=Hunter2x mysql"),
    ("Dockerfile", "FROM x\nRUN mysql -u root -pHunter2x -e 'x'\n"),
    ("a.html", FORM.format(f"<input type=hidden name=token value={HEX_TOKEN}>")),
    ("a.html", FORM.format(f"<input value={HEX_TOKEN} name=csrf_token type=hidden>")),
    ("a.html", FORM.format("<input type=password name=password value=Hunter2x>")),
    ("a.html", FORM.format("<input type='hidden' name='access_token' value='Hunter2x9q'/>")),
    ("a.html", FORM.format('<INPUT TYPE="HIDDEN" NAME="client_secret" VALUE="Hunter2x9q">')),
    ("a.html", f"<html><head><meta name=csrf-token content={HEX_TOKEN}></head></html>"),
    ("a.html", FORM.format("<input\n  type=hidden\n  name=token\n  value=abcDEF123456>")),
    ("a.html", FORM.format("<textarea name=private_key>Hunter2x9q</textarea>")),
    (
        "web.config",
        '<configuration><appSettings><add key="ApiPassword" value="Hunter2x"/></appSettings></configuration>',
    ),
    ("strings.xml", '<resources><string name="api_key">Hunter2x9q</string></resources>'),
    ("a.plist", "<plist><dict><key>Password</key>\n<string>Hunter2x</string></dict></plist>"),
    ("a.yaml", cassette(FORM.format(f"<input type=hidden name=token value={HEX_TOKEN}>"))),
    ("a.json", json.dumps({"html": f"<form><input type=hidden name=id_token value={HEX_TOKEN}></form>"})),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  list: |\n    root:Hunter2x\n    user:Hunter3x\n  expire: false\n"),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  expire: false\n  list:\n    - root:Hunter2x\n"),
    ("ci.yaml", "#cloud-config\nchpasswd: {list: [root:Hunter2x], expire: false}\n"),
    (
        "ci.yaml",
        "#cloud-config\nchpasswd:\n  expire: false\n  users:\n  - name: root\n    password: Hunter2x\n    type: text\n",
    ),
    ("ci.yaml", "#cloud-config\nusers:\n- name: a\n  plain_text_passwd: Hunter2x\n  lock_passwd: false\n"),
    (
        "ci.txt",
        base64.b64encode(
            b"#cloud-config\nchpasswd:\n  list: |\n    root:Hunter2x\n  expire: false\npadding: some words that make this longer\n"
        ).decode(),
    ),
    ("t.json", json.dumps({"customData": b64("#cloud-config\nchpasswd:\n  list: |\n    root:Hunter2x\n")})),
    ("t.json", json.dumps({"chpasswd": {"list": "root:Hunter2x"}})),
    ("ci.sh", "#!/bin/sh\nchpasswd <<EOF\nroot:Hunter2x\nEOF\n"),
    ("ci.sh", "chpasswd <<< 'root:Hunter2x'\n"),
    ("ci.sh", "printf 'root:Hunter2x' | sudo chpasswd\n"),
    ("ci.sh", 'echo "root:Hunter2x" | chpasswd\n'),
    ("ci.tf", "custom_data = <<EOT\n#cloud-config\nchpasswd:\n  list: |\n    root:Hunter2x\nEOT\n"),
    (".pgpass", "db.postgres.database.azure.com:5432:app:svc:Hunter2x\n"),
    (".pgpass", "# a\n*:*:*:postgres:Hunter2x\n"),
    ("a.sh", "echo 'localhost:5432:*:app:Hunter2x' > ~/.pgpass\n"),
    ("a.txt", 'event: x\ndata: {"password":\ndata: "Hunter2x"}\n\n'),
    (
        "a.yaml",
        cassette(
            "plainword1",
            "https://management.azure.com/subscriptions/x/providers/Microsoft.App/containerApps/a/listSecrets",
        ),
    ),
    ("a.yaml", cassette('"plainword"', "https://management.azure.com/a/listKeys")),
    (
        "a.yaml",
        cassette(
            json.dumps({"value": [{"name": "q", "key": "short7"}]}), "https://management.azure.com/a/listQueryKeys"
        ),
    ),
    ("a.yaml", cassette("{}", **{"X-JFrog-Art-Api": "AKCp8Hunter2x"})),
    ("a.har", har(headers=[{"name": "X-JFrog-Art-Api", "value": "AKCp8Hunter2x"}])),
    ("a.yaml", cassette("{}", **{"Fastly-Key": "Hunter2x9q"})),
    ("a.sh", "curl -H 'X-JFrog-Art-Api: AKCp8Hunter2x' https://x"),
    ("a.har", har(headers=[{"name": "X-Vault-Token", "value": "Hunter2x9q"}])),
    ("a.sql", "CREATE ROLE svc WITH LOGIN PASSWORD 'Hunter2x';"),
    ("a.txt", "the recovery key is 353478-386837-212542-117326-404393-297660-180642-216491"),
]

POSITIVES.append(("a.yaml", cassette("words of a log.\n\n" * 900, **{"Fastly-Key": "Hunter2x9q"})))

NEGATIVES += [
    # The same without a secret
    ("a.sh", "mysql -p\n"),
    ("a.sh", "mysql -p db\n"),
    ("a.sh", "mysql -P3306 -u root -p db\n"),
    ("a.sh", "mysql -u root -p$MYSQL_ROOT_PASSWORD db\n"),
    ("a.sh", 'mysql -u root -p"$PW" db\n'),
    ("a.sh", "mysql -p<password> db\n"),
    ("a.sh", "mysql -pPASSWORD db\n"),
    ("a.sh", "mysql -ppassword db\n"),
    ("a.sh", "mysql --port 3306 --protocol tcp -prompt x\n"),
    ("a.yaml", "command: [mysql, -uroot, -p]\n"),
    ("a.sh", "docker run -p8080:80 mysql\n"),
    ("a.sh", "docker run --name mysql -p 3306:3306 -d mysql:8.0\n"),
    ("a.sh", "ssh -p2222 host\nnc -p 8080\nmkdir -p a/b1\ncp -pR a b1\n"),
    ("a.sh", "apt-get install mysql-client -y && mkdir -p/var/lib/x1\n"),
    ("a.sh", "patch -p1 < a.diff\ntar -xpf a1.tar\n"),
    ("a.md", "`mysql -p` asks for the password; `mysql -pSECRET` takes it from the command line.\n"),
    ("a.sh", "sqlcmd -S db -U sa -P $SA_PASSWORD -Q x\n"),
    ("a.sh", 'redis-cli -a "$REDIS_PASSWORD" ping\n'),
    ("a.sh", "redis-cli -h h -p 6380 ping\n"),
    ("a.sh", "mongosh --host h -p\n"),
    ("a.sh", 'unzip -P "$ZIP" a.zip\n7z x -p a.7z\nzip -r a1.zip b\n'),
    (
        "a.sh",
        "openssl pkcs12 -in a.pfx -passin env:PW1 -passout file:pw1.txt\nopenssl rsa -passin stdin\nopenssl x -passin pass:$PW\n",
    ),
    ("a.sh", "ldapsearch -x -W -b dc=x1\nldapsearch -w $PW1\n"),
    ("a.sh", "smbclient //s/x1 -U user%$PW\nsmbclient -N //s/x1\n"),
    ("a.cmd", "net use Z: \\\\h\\s1 /persistent:yes\nnet use Z: \\\\h\\s1 /user:u *\nnet use Z: /delete\n"),
    ("a.cmd", "cmdkey /list\ncmdkey /add:h1 /user:u /pass:%PW%\n"),
    ("a.sh", "keytool -storepass changeit -keypass $KP -list\n"),
    ("a.sh", "sqlplus / as sysdba\nsqlplus app/$PW@db1\nsqlplus app@db1\n"),
    ("a.sh", "lftp -u user,$PW ftp.x1\n"),
    ("a.sh", 'PGPASSWORD=$PW1 psql\nPGPASSWORD="$(cat /run/pw1)" psql\n'),
    ("a.html", FORM.format("<input type=hidden name=token value={token}>")),
    ("a.html", FORM.format("<input type=hidden name=token value={{ csrf_token }}>")),
    ("a.html", FORM.format('<input type=hidden name=csrf_token value="<%= token %>">')),
    ("a.html", FORM.format("<input type=hidden name=page value=2><input type=hidden name=q value=abc123>")),
    ("a.html", FORM.format("<input type=password name=password value=Password placeholder='Your password'>")),
    ("a.html", FORM.format("<input type=submit name=login value='Sign in'><input type=hidden name=token>")),
    ("a.html", FORM.format("<input type=hidden name=key value=name><input type=hidden name=code value=DE>")),
    (
        "a.html",
        "<html><head><meta name=viewport content=width=device-width><meta name=generator content=Hugo-0.123.7></head></html>",
    ),
    (
        "a.html",
        FORM.format(
            "<input type=hidden name=token value=''><input name=password type=password autocomplete=current-password>"
        ),
    ),
    ("a.jsx", '<input type="password" name="password" value={state.password} onChange={f1} />'),
    (
        "strings.xml",
        '<resources><string name="password_hint">Password</string><string name="token_expired">Your token has expired</string></resources>',
    ),
    ("a.xaml", '<PasswordBox Name="password" Width="120" />'),
    ("a.xml", '<add key="PasswordMinLength" value="12"/><add key="TokenPath" value="/oauth2/token"/>'),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  expire: false\n"),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  list: |\n    root:$PASSWORD\n    user:<password>\n"),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  list:\n  - root:RANDOM\n  - user:R\n"),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  list: |\n    root:${admin_password}\n"),
    ("ci.yaml", "#cloud-config\nchpasswd:\n  users:\n  - {name: root, type: RANDOM}\n"),
    ("ci.sh", "chpasswd <<EOF\nroot:$PW\nEOF\n"),
    ("ci.sh", 'echo "root:${PW1}" | chpasswd\n'),
    ("ci.sh", "chpasswd < /run/users1\ncat users1 | chpasswd -e\n"),
    ("ci.yaml", "groups:\n  list: |\n    root:Hunter2x\n    a:b1\n"),
    (".pgpass", "# hostname:port:database:username:password\n"),
    (".pgpass", "localhost:5432:*:app:$PW\nlocalhost:5432:app:app:<password>\n"),
    (
        "a.log",
        "app.log:1200:12:30:45 started\nweb.log:1234:INFO:root:message\nsrc/a.py:120:12:E501:line\n10.0.0.4:8080:ok:done:ok\n",
    ),
    (
        "a.txt",
        "aa:11:bb:22:cc:dd\n2001:db8:1234:5678:abcd::1\ncpe:2.3:a:vendor:product:1.0:*:*:*:*:*:*:*\narn:aws:iam::123456789012:role/x1\n",
    ),
    ("compose.yaml", "ports:\n- 127.0.0.1:5432:5432\n- localhost:8080:80\nvolumes:\n- ./a:/b:ro\n"),
    ("a.txt", 'data: {"delta":\ndata: "the password"}\n\n'),
    ("a.yaml", cassette("Forbidden", "https://management.azure.com/a/listKeys").replace("code: 200", "code: 403")),
    ("a.yaml", cassette("pong", "https://x/ping")),
    ("a.yaml", cassette("{}", **{"X-Cache-Key": "abc-def-1234", "X-Api": "v2", "Surrogate-Key": "page-12 item-7"})),
    (
        "a.har",
        har(
            headers=[
                {"name": "X-JFrog-Art-Api", "value": "[redacted]"},
                {"name": "Sec-WebSocket-Key", "value": b64(made_up_bytes(16, 3))},
            ]
        ),
    ),
    ("a.sh", "curl -H \"X-JFrog-Art-Api: $KEY1\" https://x\ncurl -H 'X-JFrog-Art-Api: <API_KEY>' x"),
    (
        "a.sql",
        "CREATE ROLE svc WITH LOGIN PASSWORD :'pw1';\nALTER USER a WITH PASSWORD '${PW1}';\nALTER ROLE x PASSWORD NULL;\n",
    ),
    ("a.md", "A phone: 353478-386837, and ids 353478-386837-212542-117326.\n"),
    (
        "a.json",
        json.dumps(
            {
                "tags": {"key": "blue-7"},
                "items": [{"key": "Size12", "value": "b1"}],
                "username": "u",
                "x": {"key": "ABC-12", "accountName": "acme"},
            }
        ),
    ),
    ("a.yaml", "jobs:\n- name: token-refresh\n  value: enabled\n- name: secretName\n  value: db-secret-1\n"),
]


def detect_secrets(path: Path) -> bool:
    """What detect-secrets finds by itself, with its own settings."""
    from detect_secrets import SecretsCollection
    from detect_secrets.settings import default_settings

    found = SecretsCollection()
    with default_settings():
        found.scan_file(str(path))
    return bool(found.data)


def ours(path: Path) -> bool:
    return bool(scan_recordings([path]))


def judged(judge: Callable[[Path], bool], files: list[tuple[str, str | bytes]], folder: Path) -> list[bool]:
    verdicts = []
    for number, (name, content) in enumerate(files):
        path = folder / str(number) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        verdicts.append(judge(path))
    return verdicts


def _recording(bodies: list[str]) -> str:
    exchanges = [cassette(each).partition("interactions:\n")[2].replace("version: 1\n", "") for each in bodies]
    return "interactions:\n" + "".join(exchanges) + "version: 1\n"


def _mixed(page: int) -> str:
    """A body of 12 KB: blobs in JSON, a manifest of Kubernetes, or the output of a program, in turn."""
    numbers = range(page * 50, page * 50 + 50)
    if page % 3 == 0:
        blobs = [
            {
                "name": f"reports/2026/{n % 12 + 1:02}/summary-{n}.json",
                "url": f"https://acc.blob.core.windows.net/reports/summary-{n}.json?snapshot=2026-01-{n % 28 + 1:02}",
                "etag": f"0x8DC{made_up_bytes(6, n % 90).hex().upper()}",
                "tags": {"team": f"team-{n % 7}", "key": f"blue-{n % 5}"},
            }
            for n in numbers
        ]
        return json.dumps({"blobs": blobs, "nextMarker": None})
    if page % 3 == 1:
        ports = "".join(
            f"    - name: port-{n}\n      containerPort: {8000 + n}\n      protocol: TCP\n" for n in numbers
        )
        names = "".join(
            f"    - name: SETTING_{n}\n      value: 'https://app-{n}.example.org/health'\n" for n in numbers
        )
        text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: app\nspec:\n  containers:\n  - name: app\n    ports:\n"
        return (
            text
            + ports
            + "    env:\n"
            + names
            + "    - {name: KEY, valueFrom: {secretKeyRef: {name: db, key: password}}}\n" * 70
        )
    return "".join(
        f"step {n}: token acquired for https://vault.azure.net, request {_GUID}, key 'greeting' read in {n % 90} ms\n"
        f"  warning: the password of user-{n} expires in {n % 30} days (see https://aka.ms/passwords for more)\n"
        for n in numbers
    )


def megabytes() -> dict[str, str]:
    """Files of 1 MB: recordings of lists in JSON and of bodies of several kinds, and a log."""

    def item(number: int) -> dict[str, Any]:
        size = {"vmSize": f"Standard_D{number % 64}s_v5", "provisioningState": "Succeeded", "count": number}
        return {
            "id": f"/subscriptions/{_GUID}/resourceGroups/g{number}/providers/x/y/vm-{number}",
            "name": f"vm-{number}",
            "properties": size,
        }

    bodies = [json.dumps({"value": [item(page * 50 + index) for index in range(50)]}) for page in range(84)]
    mixed = [_mixed(page) for page in range(84)]
    line = "2026-11-26 22:{:02}:00 INFO azure.core GET https://v.vault.azure.net/secrets/x{}?api-version=7.4 status=200 token_type=Bearer\n"
    return {
        "big.yaml": _recording(bodies),
        "mixed.yaml": _recording(mixed),
        "big.log": "".join(line.format(i % 60, i) for i in range(8300)),
    }


def seconds(judge: Callable[[Path], bool], path: Path, text: str) -> float:
    """Processor time that one file takes, which other programs on the machine do not change much."""
    path.write_text(text)
    start = time.process_time()
    judge(path)
    return time.process_time() - start


def main() -> None:
    print(
        "| scanner | recall | precision | lists of Azure, 1 MB | JSON, YAML and text, 1 MB | log, 1 MB |\n|---|---|---|---|---|---|"
    )
    for name, judge in (("azure-imds scan", ours), ("detect-secrets, its own settings", detect_secrets)):
        with tempfile.TemporaryDirectory() as folder:
            hits = sum(judged(judge, POSITIVES, Path(folder)))
            alarms = sum(judged(judge, NEGATIVES, Path(folder)))
            took = [seconds(judge, Path(folder, big), text) for big, text in megabytes().items()]
        recall, precision = hits / len(POSITIVES), hits / (hits + alarms)
        print(
            f"| {name} | {hits} of {len(POSITIVES)} ({recall:.0%}) | {precision:.0%} ({alarms} of {len(NEGATIVES)} harmless files) | {' | '.join(f'{each:.2f} s' for each in took)} |"
        )


def misses() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind, files, right in (("missed", POSITIVES, True), ("false alarm", NEGATIVES, False)):
            for (name, content), verdict in zip(files, judged(ours, files, Path(folder)), strict=True):
                if verdict is not right:
                    print(kind, name, repr(content[:300]))


if __name__ == "__main__":
    misses() if sys.argv[1:] == ["--misses"] else main()
