"""Exchanges with Azure's services that carry a secret, and exchanges that carry none. All values are made up here."""

# ruff: noqa: E501 - a body is easier to read on one line, as it is sent

from __future__ import annotations

import base64
import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus

SUBSCRIPTION = "0d46c104-7b1e-4c1a-9f3d-5a2b6c7d8e9f"
CLIENT = "6a7b1f0c-94c5-4d5e-8d1c-0b6a5a1c9e11"
JSON = {"Content-Type": "application/json"}
XML = {"Content-Type": "application/xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def made_up_bytes(count: int, seed: int) -> bytes:
    """Bytes that look random and are the same in every run."""
    return bytes((seed * 131 + 89 * i * i + 57 * i * seed + (i * i * i) // 7) % 256 for i in range(count))


def b64(content: bytes | str) -> str:
    return base64.b64encode(content.encode() if isinstance(content, str) else content).decode()


def b64url(content: bytes | str) -> str:
    return base64.urlsafe_b64encode(content.encode() if isinstance(content, str) else content).rstrip(b"=").decode()


def jwt(**claims: Any) -> str:
    return ".".join((b64url('{"typ":"JWT","alg":"RS256"}'), b64url(json.dumps(claims)), b64url(made_up_bytes(256, 5))))


ACCOUNT_KEY = b64(made_up_bytes(64, 3))
KEY_32 = b64(made_up_bytes(32, 7))
HEX_32 = made_up_bytes(16, 9).hex()
FUNCTION_KEY = b64url(made_up_bytes(40, 11)) + "AzFu" + b64url(made_up_bytes(6, 2)) + "=="
PASSWORD = "Hunter2-s3cret!"
TOKEN = jwt(oid=CLIENT, tid=SUBSCRIPTION, name="Payroll Service")
OPAQUE = "0.AXoA" + b64url(made_up_bytes(60, 21))
PEM_BODY = b64(made_up_bytes(300, 31))
PEM = (
    "-----BEGIN "
    "PRIVATE KEY-----\n" + "\n".join(PEM_BODY[i : i + 64] for i in range(0, 400, 64)) + "\n-----END PRIVATE KEY-----\n"
)
SIGNATURE = quote(KEY_32, safe="")
CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=acc;AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net"
BUS = f"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey={KEY_32}"
SQL = f"Server=tcp:db.database.windows.net,1433;User ID=app;Password={PASSWORD};Encrypt=True"
SAS = f"https://acc.blob.core.windows.net/c?sv=2024-11-04&se=2026-12-01T00%3A00Z&sr=c&sp=rl&sig={SIGNATURE}"


@dataclass(frozen=True)
class Case:
    """One exchange: a request, its answer, and the values that must not be in the file."""

    name: str
    needles: tuple[str, ...]
    method: str = "GET"
    path: str = "/x"
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b"{}"
    answer_headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


def says(name: str, document: Any, *needles: str, path: str = "/x", method: str = "GET") -> Case:
    """An answer in JSON."""
    return Case(name, needles, method=method, path=path, answer=json.dumps(document).encode())


def says_text(name: str, text: str, *needles: str, kind: str = "text/plain", path: str = "/x") -> Case:
    return Case(name, needles, path=path, answer=text.encode(), answer_headers={"Content-Type": kind})


def sends(name: str, document: Any, *needles: str, path: str = "/x", method: str = "PUT") -> Case:
    return Case(name, needles, method=method, path=path, body=json.dumps(document).encode(), headers=JSON)


def sends_form(name: str, form: str, *needles: str) -> Case:
    return Case(name, needles, method="POST", body=form.encode(), headers=FORM)


def asks(name: str, path: str, *needles: str, headers: dict[str, str] | None = None) -> Case:
    return Case(name, needles, path=path, headers=headers or {})


ARM = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/payroll-prod/providers"
COSMOS_KEYS = {
    f"{side}{kind}MasterKey": b64(made_up_bytes(64, seed))
    for seed, (side, kind) in enumerate(
        [("primary", ""), ("secondary", ""), ("primary", "Readonly"), ("secondary", "Readonly")], 40
    )
}
KUBECONFIG = (
    "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority-data: "
    + b64("-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n")
    + f"\n    server: https://aks.hcp.westeurope.azmk8s.io:443\n  name: aks\nusers:\n- name: admin\n  user:\n    client-key-data: {b64(PEM)}\n    token: {HEX_32}{HEX_32}\n"
)
PUBLISH_PROFILE = f'<publishData><publishProfile profileName="app" publishMethod="MSDeploy" userName="$app" userPWD="{HEX_32}Qx" SQLServerDBConnectionString="{SQL}" /></publishData>'
_boundary = "batch_1"
BATCH = f"--{_boundary}\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{json.dumps({'primaryKey': KEY_32})}\r\n--{_boundary}--\r\n"
UPLOAD = f'--b1\r\nContent-Disposition: form-data; name="client_secret"\r\n\r\n{PASSWORD}\r\n--b1\r\nContent-Disposition: form-data; name="f"; filename="a.json"\r\nContent-Type: application/json\r\n\r\n{{"password": "{PASSWORD}"}}\r\n--b1--\r\n'
DELEGATION = f'<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>{CLIENT}</SignedOid><SignedTid>{SUBSCRIPTION}</SignedTid><SignedService>b</SignedService><Value>{KEY_32}</Value></UserDelegationKey>'

SECRET_CASES = [
    # Entra
    says(
        "token answer",
        {"token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN},
        TOKEN,
        TOKEN[-40:],
        "Payroll Service",
    ),
    says("opaque access token", {"access_token": "opaque-token-value-1", "expires_in": 1}, "opaque-token-value-1"),
    says("refresh token", {"refresh_token": OPAQUE}, OPAQUE, OPAQUE[:20]),
    says(
        "id token and client info",
        {"id_token": TOKEN, "client_info": b64url(json.dumps({"uid": CLIENT, "utid": SUBSCRIPTION}))},
        TOKEN,
        CLIENT,
        SUBSCRIPTION,
    ),
    says(
        "device code",
        {"user_code": "BQ7FK2XPA", "device_code": "DAQABAAEAAAD--" + KEY_32, "interval": 5},
        "BQ7FK2XPA",
        KEY_32[:20],
    ),
    says(
        "encrypted token",
        {
            "token": "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ."
            + ".".join(b64url(made_up_bytes(n, n)) for n in (60, 12, 80, 16))
        },
        b64url(made_up_bytes(60, 60)),
        b64url(made_up_bytes(80, 80)),
    ),
    sends_form(
        "client secret",
        f"grant_type=client_credentials&client_id={CLIENT}&client_secret=abc8Q~{quote('x.y-z~AbCdEfGhIjKlMnOpQrStUv12')}",
        "AbCdEfGhIjKlMnOpQrStUv12",
        CLIENT,
    ),
    sends_form("client assertion", f"client_assertion_type=urn&client_assertion={TOKEN}", TOKEN[-40:]),
    sends_form(
        "authorization code",
        f"grant_type=authorization_code&code={quote(OPAQUE)}&code_verifier={b64url(made_up_bytes(32, 77))}",
        OPAQUE[:30],
        b64url(made_up_bytes(32, 77)),
    ),
    sends_form(
        "password grant",
        f"grant_type=password&username=jane%40contoso.com&password={quote(PASSWORD)}",
        PASSWORD,
        "jane",
    ),
    sends_form("on behalf of", f"assertion={TOKEN}&requested_token_use=on_behalf_of", TOKEN[-40:]),
    sends_form("JWT behind %22", "request=" + quote(json.dumps({"token": TOKEN})), TOKEN[-40:]),
    sends_form("percent-encoded twice", "request=" + quote(quote(json.dumps({"password": PASSWORD}))), PASSWORD),
    sends_form(
        "SAML",
        "SAMLResponse="
        + quote(
            b64(f"<Assertion><SignatureValue>{KEY_32}</SignatureValue><Password>{PASSWORD}</Password></Assertion>")
        ),
        PASSWORD,
    ),
    asks("token in a fragment", f"/x?next={quote('https://app.example/cb#access_token=' + OPAQUE)}", OPAQUE[:30]),
    # Storage
    says(
        "storage keys",
        {
            "keys": [
                {"creationTime": "2026-01-01T00:00:00Z", "keyName": "key1", "value": ACCOUNT_KEY, "permissions": "FULL"}
            ]
        },
        ACCOUNT_KEY,
        path=f"{ARM}/Microsoft.Storage/storageAccounts/acc/listKeys",
        method="POST",
    ),
    says("account SAS", {"accountSasToken": f"sv=2024&ss=b&sig={SIGNATURE}"}, KEY_32, SIGNATURE),
    Case(
        "user delegation key",
        (KEY_32, CLIENT, SUBSCRIPTION),
        method="POST",
        path="/?restype=service&comp=userdelegationkey",
        answer=("\ufeff" + DELEGATION).encode(),
        answer_headers=XML,
    ),
    asks("SAS in the URL", f"/c/b?sv=2024&sig={SIGNATURE}", KEY_32, SIGNATURE),
    asks("copy source", "/c/b", KEY_32, SIGNATURE, headers={"x-ms-copy-source": SAS}),
    asks("customer-provided key", "/c/b", KEY_32, headers={"x-ms-encryption-key": KEY_32}),
    Case("SAS in an answer's header", (KEY_32, SIGNATURE), answer_headers={"Location": SAS}),
    says("connection string", {"value": CONNECTION, "name": "AzureWebJobsStorage"}, ACCOUNT_KEY),
    says_text("connection string in text", f"using {CONNECTION} now", ACCOUNT_KEY),
    Case(
        "access policy",
        (KEY_32,),
        answer=f"<SignedIdentifiers><SignedIdentifier><Id>MTIz</Id></SignedIdentifier></SignedIdentifiers><!-- {SAS} -->".encode(),
        answer_headers=XML,
    ),
    # Key Vault
    says(
        "secret",
        {"value": PASSWORD, "id": "https://v.vault.azure.net/secrets/a/" + HEX_32},
        PASSWORD,
        path="/secrets/a/",
    ),
    says(
        "secret of a plain word",
        {"value": "correcthorsebatterystaple", "id": "https://v/secrets/a/1"},
        "correcthorsebatterystaple",
        path="/secrets/a/",
    ),
    sends("secret to write", {"value": "plainword", "attributes": {"enabled": True}}, "plainword", path="/secrets/a"),
    says(
        "secret that is JSON",
        {"value": json.dumps({"user": "svc-payroll", "pass": PASSWORD}), "id": "https://v/secrets/a/1"},
        PASSWORD,
        "svc-payroll",
        path="/secrets/a/1",
    ),
    says(
        "secret that is a key in PEM",
        {"value": PEM, "contentType": "application/x-pem-file", "id": "https://v/secrets/a/1"},
        PEM_BODY[:64],
        PEM_BODY[-20:],
        path="/secrets/a/1",
    ),
    says(
        "secret that is a PFX",
        {"value": b64(made_up_bytes(900, 8)), "contentType": "application/x-pkcs12", "id": "https://v/secrets/a/1"},
        b64(made_up_bytes(900, 8))[:40],
        path="/secrets/a/1",
    ),
    says(
        "backup",
        {"value": b64url(made_up_bytes(500, 4))},
        b64url(made_up_bytes(500, 4))[:40],
        path="/secrets/a/backup",
        method="POST",
    ),
    says(
        "decrypted",
        {"kid": "https://v/keys/k/1", "value": b64url(PASSWORD)},
        b64url(PASSWORD),
        PASSWORD,
        path="/keys/k/1/decrypt",
        method="POST",
    ),
    sends(
        "to encrypt",
        {"alg": "RSA-OAEP", "value": b64url(PASSWORD)},
        b64url(PASSWORD),
        PASSWORD,
        path="/keys/k/1/encrypt",
        method="POST",
    ),
    sends(
        "key to import",
        {
            "key": {
                "kty": "RSA",
                "n": b64url(made_up_bytes(256, 1)),
                "e": "AQAB",
                "d": b64url(made_up_bytes(256, 2)),
                "p": b64url(made_up_bytes(128, 6)),
            }
        },
        b64url(made_up_bytes(256, 2)),
        b64url(made_up_bytes(128, 6)),
        path="/keys/k",
    ),
    sends(
        "oct key",
        {"key": {"kty": "oct", "k": b64url(made_up_bytes(16, 2))}},
        b64url(made_up_bytes(16, 2)),
        path="/keys/k",
    ),
    says(
        "random bytes",
        {"value": b64url(made_up_bytes(64, 12))},
        b64url(made_up_bytes(64, 12)),
        path="/rng",
        method="POST",
    ),
    sends(
        "certificate to import",
        {"value": b64(made_up_bytes(700, 14)), "pwd": PASSWORD},
        PASSWORD,
        b64(made_up_bytes(700, 14))[:40],
        path="/certificates/c/import",
        method="POST",
    ),
    # ARM: list keys
    says(
        "service bus",
        {
            "primaryConnectionString": BUS,
            "secondaryConnectionString": BUS,
            "primaryKey": KEY_32,
            "secondaryKey": KEY_32,
            "keyName": "Root",
        },
        KEY_32,
        path=f"{ARM}/Microsoft.ServiceBus/namespaces/n/AuthorizationRules/Root/listKeys",
        method="POST",
    ),
    says("cosmos keys", COSMOS_KEYS, *COSMOS_KEYS.values(), method="POST"),
    says(
        "cosmos connection strings",
        {
            "connectionStrings": [
                {
                    "connectionString": f"AccountEndpoint=https://c.documents.azure.com:443/;AccountKey={ACCOUNT_KEY};",
                    "description": "Primary",
                }
            ]
        },
        ACCOUNT_KEY,
    ),
    says(
        "function host keys",
        {
            "masterKey": FUNCTION_KEY,
            "functionKeys": {"default": "abc-default-key"},
            "systemKeys": {"durable_ext": KEY_32},
        },
        FUNCTION_KEY,
        "abc-default-key",
        KEY_32,
        path=f"{ARM}/Microsoft.Web/sites/app/host/default/listkeys",
        method="POST",
    ),
    says("function keys", {"keys": [{"name": "default", "value": "short-key-1"}], "links": []}, "short-key-1"),
    says(
        "app settings",
        {"properties": {"DB_PASSWORD": PASSWORD, "APPINSIGHTS_INSTRUMENTATIONKEY": CLIENT, "STORAGE": CONNECTION}},
        PASSWORD,
        CLIENT,
        ACCOUNT_KEY,
    ),
    says("app setting in a list", [{"name": "SMTP_PASSWORD", "value": PASSWORD, "slotSetting": False}], PASSWORD),
    says(
        "publishing credentials",
        {
            "properties": {
                "publishingUserName": "$app",
                "publishingPassword": HEX_32 + "Qx",
                "scmUri": f"https://$app:{HEX_32}Qx@app.scm.azurewebsites.net",
            }
        },
        HEX_32 + "Qx",
    ),
    Case("publish profile", (HEX_32 + "Qx", PASSWORD), answer=PUBLISH_PROFILE.encode(), answer_headers=XML),
    says(
        "registry credentials",
        {
            "username": "reg",
            "passwords": [
                {"name": "password", "value": "p1" + HEX_32[:20]},
                {"name": "password2", "value": "zz-short"},
            ],
        },
        "p1" + HEX_32[:20],
        "zz-short",
    ),
    says(
        "redis keys",
        {"primaryKey": KEY_32, "secondaryKey": b64(made_up_bytes(32, 91))},
        KEY_32,
        b64(made_up_bytes(32, 91)),
    ),
    says_text(
        "redis connection string",
        f"cache.redis.cache.windows.net:6380,password={KEY_32},ssl=True,abortConnect=False",
        KEY_32,
    ),
    says(
        "cognitive services",
        {"key1": HEX_32, "key2": made_up_bytes(16, 55).hex()},
        HEX_32,
        made_up_bytes(16, 55).hex(),
        method="POST",
    ),
    says("search keys", {"primaryKey": HEX_32.upper(), "secondaryKey": "short7x"}, HEX_32.upper(), "short7x"),
    says("query keys", {"value": [{"name": "q", "key": HEX_32}]}, HEX_32),
    says(
        "batch keys",
        {"accountName": "b", "primary": ACCOUNT_KEY, "secondary": b64(made_up_bytes(64, 66))},
        ACCOUNT_KEY,
        b64(made_up_bytes(64, 66)),
    ),
    says("event grid keys", {"key1": KEY_32, "key2": KEY_32}, KEY_32),
    says("IoT hub", {"value": [{"keyName": "iothubowner", "primaryKey": KEY_32, "rights": "RegistryWrite"}]}, KEY_32),
    says("device", {"authentication": {"symmetricKey": {"primaryKey": KEY_32, "secondaryKey": KEY_32}}}, KEY_32),
    says_text("device connection string", f"HostName=h.azure-devices.net;DeviceId=d;SharedAccessKey={KEY_32}", KEY_32),
    says("log analytics", {"primarySharedKey": ACCOUNT_KEY, "secondarySharedKey": ACCOUNT_KEY}, ACCOUNT_KEY),
    says(
        "automation registration",
        {"keys": {"primary": KEY_32, "secondary": "word-like-key"}, "endpoint": "https://x"},
        KEY_32,
        "word-like-key",
    ),
    says("API management", {"primaryKey": HEX_32, "secondaryKey": HEX_32, "name": "sub"}, HEX_32),
    says(
        "named value",
        {"value": PASSWORD},
        PASSWORD,
        path=f"{ARM}/Microsoft.ApiManagement/service/s/namedValues/n/listValue",
        method="POST",
    ),
    says(
        "maps",
        {"primaryKey": b64url(made_up_bytes(32, 3)), "secondaryKey": "k" * 43},
        b64url(made_up_bytes(32, 3)),
        "k" * 43,
    ),
    says(
        "app configuration keys",
        {
            "value": [
                {
                    "id": "abc",
                    "name": "Primary",
                    "value": b64(made_up_bytes(40, 5)),
                    "connectionString": f"Endpoint=https://x.azconfig.io;Id=abc;Secret={KEY_32}",
                }
            ]
        },
        KEY_32,
        b64(made_up_bytes(40, 5)),
    ),
    says(
        "SignalR",
        {"primaryConnectionString": f"Endpoint=https://s.service.signalr.net;AccessKey={KEY_32};Version=1.0;"},
        KEY_32,
    ),
    says(
        "bot channel",
        {"properties": {"properties": {"sites": [{"key": "abc.cde." + KEY_32, "siteName": "Default"}]}}},
        KEY_32,
    ),
    says(
        "AKS credentials",
        {"kubeconfigs": [{"name": "clusterAdmin", "value": b64(KUBECONFIG)}]},
        b64(PEM)[:60],
        HEX_32 + HEX_32,
        PEM_BODY[:40],
        method="POST",
    ),
    says(
        "workspace keys",
        {
            "userStorageKey": ACCOUNT_KEY,
            "appInsightsInstrumentationKey": CLIENT,
            "containerRegistryCredentials": {"passwords": [{"name": "p", "value": "x9y8z7w6"}]},
        },
        ACCOUNT_KEY,
        CLIENT,
        "x9y8z7w6",
    ),
    says(
        "endpoint keys",
        {"primaryKey": b64url(made_up_bytes(24, 3)), "keyValue": HEX_32},
        b64url(made_up_bytes(24, 3)),
        HEX_32,
    ),
    says(
        "data factory", {"authKey1": "IR@" + CLIENT + "@df@" + KEY_32, "authKey2": "short-auth"}, KEY_32, "short-auth"
    ),
    says(
        "notification hub",
        {
            "properties": {
                "apnsCredential": {
                    "properties": {
                        "apnsCertificate": b64(made_up_bytes(200, 9)),
                        "certificateKey": PASSWORD,
                        "token": "tokenvalue1",
                    }
                }
            }
        },
        PASSWORD,
        "tokenvalue1",
    ),
    says(
        "container app secrets",
        {"value": [{"name": "db", "value": "dbvalue-12"}, {"name": "api", "value": KEY_32}]},
        KEY_32,
        path=f"{ARM}/Microsoft.App/containerApps/a/listSecrets",
        method="POST",
    ),
    says("static web app", {"properties": {"apiKey": HEX_32 + HEX_32 + "1"}}, HEX_32 + HEX_32 + "1"),
    # ARM: create
    sends(
        "VM",
        {
            "properties": {
                "osProfile": {
                    "adminUsername": "azureuser",
                    "adminPassword": PASSWORD,
                    "customData": b64("#cloud-config\npassword: " + PASSWORD),
                }
            }
        },
        PASSWORD,
        b64("#cloud-config\npassword: " + PASSWORD),
    ),
    sends(
        "SQL server", {"properties": {"administratorLogin": "sa1", "administratorLoginPassword": PASSWORD}}, PASSWORD
    ),
    sends(
        "deployment",
        {"properties": {"parameters": {"adminPassword": {"value": PASSWORD}, "vmName": {"value": "vm1"}}}},
        PASSWORD,
    ),
    sends(
        "VM extension",
        {
            "properties": {
                "protectedSettings": {"commandToExecute": "run --key abc-topsecret", "storageAccountKey": ACCOUNT_KEY}
            }
        },
        "abc-topsecret",
        ACCOUNT_KEY,
    ),
    sends(
        "container group",
        {
            "properties": {
                "imageRegistryCredentials": [{"server": "r", "username": "u", "password": PASSWORD}],
                "containers": [{"environmentVariables": [{"name": "X", "secureValue": "secure-thing"}]}],
            }
        },
        PASSWORD,
        "secure-thing",
    ),
    sends(
        "linked service",
        {"properties": {"typeProperties": {"connectionString": {"type": "SecureString", "value": SQL}}}},
        PASSWORD,
    ),
    sends(
        "AKS service principal",
        {"properties": {"servicePrincipalProfile": {"clientId": CLIENT, "secret": PASSWORD}}},
        PASSWORD,
        CLIENT,
    ),
    sends("numeric password", {"password": 83651974}, "83651974"),
    sends("password that is a common word", {"password": "password1"}, "password1"),
    # Data planes and others
    says(
        "graph password",
        {"secretText": "abc8Q~" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567", "keyId": CLIENT},
        "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
        CLIENT,
    ),
    says("OpenAI realtime", {"client_secret": {"value": "ek_" + HEX_32, "expires_at": 1}}, "ek_" + HEX_32),
    says("speech token", {"token": TOKEN}, TOKEN[-40:]),
    says_text("speech token as text", TOKEN, TOKEN[-40:], kind="application/jwt"),
    says("PAT", {"patToken": {"token": HEX_32 + HEX_32[:20], "displayName": "ci"}}, HEX_32 + HEX_32[:20]),
    says("databricks", {"token_value": "dapi" + HEX_32}, "dapi" + HEX_32),
    says("acr refresh token", {"refresh_token": TOKEN}, TOKEN[-40:]),
    asks("subscription key in the query", f"/x?subscription-key={HEX_32}", HEX_32),
    asks("function key in the query", "/api/f?code=" + quote(FUNCTION_KEY, safe=""), FUNCTION_KEY, FUNCTION_KEY[:20]),
    asks("password in the URL", f"/x?url={quote('postgres://app:' + quote(PASSWORD) + '@db:5432/x')}", PASSWORD),
    Case(
        "function key in a header, seen again",
        (FUNCTION_KEY,),
        headers={"x-functions-key": FUNCTION_KEY},
        answer=json.dumps({"echo": FUNCTION_KEY}).encode(),
    ),
    Case(
        "subscription key in a header, seen again",
        ("plainsubscriptionkey",),
        headers={"Ocp-Apim-Subscription-Key": "plainsubscriptionkey"},
        answer=json.dumps({"you sent": "plainsubscriptionkey"}).encode(),
    ),
    Case(
        "api-key, seen again in base64",
        ("very-plain-api-key",),
        headers={"api-key": "very-plain-api-key"},
        answer=json.dumps({"data": b64("key is very-plain-api-key!")}).encode(),
    ),
    Case(
        "bearer token, seen again",
        (OPAQUE,),
        headers={"Authorization": f"Bearer {OPAQUE}"},
        answer=f"<html>{OPAQUE}</html>".encode(),
        answer_headers={"Content-Type": "text/html"},
    ),
    Case(
        "cookie, seen again",
        ("sessionvalue123",),
        answer_headers={"Set-Cookie": "ARRAffinity=sessionvalue123; Path=/", "X-Echo": "sessionvalue123"},
    ),
    Case(
        "basic credentials in a body",
        (b64("user:" + PASSWORD),),
        answer=json.dumps({"auths": {"reg.io": {"auth": b64("user:" + PASSWORD)}}}).encode(),
    ),
    says(
        "one secret, many places",
        {"password": PASSWORD, "note": f"the password is {PASSWORD}, do not tell", "b": b64(f"x{PASSWORD}y")},
        PASSWORD,
    ),
    # Forms of bodies
    Case(
        "byte order mark",
        (PASSWORD,),
        path="/secrets/a/0",
        answer=b"\xef\xbb\xbf" + json.dumps({"value": PASSWORD}).encode(),
    ),
    Case("UTF-16", (PASSWORD,), answer=json.dumps({"password": PASSWORD}).encode("utf-16")),
    Case(
        "JSON lines",
        (PASSWORD, KEY_32),
        answer=f'{{"a": 1}}\n{{"password": "{PASSWORD}"}}\n{{"primaryKey": "{KEY_32}"}}\n'.encode(),
        answer_headers={"Content-Type": "application/x-ndjson"},
    ),
    says_text(
        "server-sent events",
        f'event: x\ndata: {{"access_token": "{OPAQUE}"}}\n\ndata: [DONE]\n\n',
        OPAQUE[:30],
        kind="text/event-stream",
    ),
    says("JSON in JSON in JSON", {"a": json.dumps({"b": json.dumps({"clientSecret": PASSWORD})})}, PASSWORD),
    Case(
        "escaped JSON",
        (PASSWORD,),
        answer=b'{"\\u0070assword": "' + "".join(f"\\u{ord(c):04x}" for c in PASSWORD).encode() + b'"}',
    ),
    Case(
        "XML entities",
        (PASSWORD,),
        answer=("<a><Password>" + "".join(f"&#{ord(c)};" for c in PASSWORD) + "</Password></a>").encode(),
        answer_headers=XML,
    ),
    Case("CDATA", (PASSWORD,), answer=f"<a><![CDATA[password={PASSWORD};]]></a>".encode(), answer_headers=XML),
    Case(
        "gzip without a header",
        (PASSWORD,),
        answer=gzip.compress(json.dumps({"password": PASSWORD}).encode()),
        answer_headers={"Content-Type": "application/octet-stream"},
    ),
    Case(
        "gzip",
        (PASSWORD,),
        answer=gzip.compress(json.dumps({"password": PASSWORD}).encode()),
        answer_headers={**JSON, "Content-Encoding": "gzip"},
    ),
    Case(
        "deflate",
        (PASSWORD,),
        answer=zlib.compress(json.dumps({"password": PASSWORD}).encode()),
        answer_headers={**JSON, "Content-Encoding": "deflate"},
    ),
    Case(
        "gzip of a request",
        (PASSWORD,),
        method="POST",
        body=gzip.compress(json.dumps({"password": PASSWORD}).encode()),
        headers={**JSON, "Content-Encoding": "gzip"},
    ),
    Case(
        "batch",
        (KEY_32,),
        answer=BATCH.encode(),
        answer_headers={"Content-Type": f"multipart/mixed; boundary={_boundary}"},
    ),
    Case(
        "form data",
        (PASSWORD,),
        method="POST",
        body=UPLOAD.encode(),
        headers={"Content-Type": "multipart/form-data; boundary=b1"},
    ),
    says(
        "base64 of JSON",
        {"data": b64(json.dumps({"password": PASSWORD}))},
        PASSWORD,
        b64(json.dumps({"password": PASSWORD})),
    ),
    says(
        "base64 of gzip",
        {"data": b64(gzip.compress(json.dumps({"password": PASSWORD}).encode()))},
        PASSWORD,
        b64(gzip.compress(json.dumps({"password": PASSWORD}).encode())),
    ),
    says(
        "data URI",
        {"href": "data:application/json;base64," + b64(json.dumps({"password": PASSWORD}))},
        b64(json.dumps({"password": PASSWORD})),
    ),
    says_text("environment file", f"A=1\nDB_PASSWORD={PASSWORD}\nexport API_KEY='{HEX_32}'\n", PASSWORD, HEX_32),
    says_text(
        "YAML", f"db:\n  password: {PASSWORD}\n  host: h\nkeys:\n  - {KEY_32}\n", PASSWORD, KEY_32, kind="text/yaml"
    ),
    says_text("log with JSON", f'2026-01-01 INFO body={{\\"password\\":\\"{PASSWORD}\\"}}', PASSWORD),
    says_text("command line", f"az login --service-principal -u {CLIENT} --password {PASSWORD}", PASSWORD, CLIENT),
    says_text("private key", PEM, PEM_BODY[:64], PEM_BODY[64:128]),
    says_text("CSV with a key", f"name,key\nacc,{ACCOUNT_KEY}\n", ACCOUNT_KEY, kind="text/csv"),
    says_text(
        "a token of another maker",
        "token ghp_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5",
        "ghp_aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5",
    ),
    # Identities
    says("subscription in a name", {"name": f"DefaultWorkspace-{SUBSCRIPTION}-WEU"}, SUBSCRIPTION),
    says("subscription without dashes", {"id": SUBSCRIPTION.replace("-", "")}, SUBSCRIPTION.replace("-", "")),
    says("subscription in capitals", {"id": "{" + SUBSCRIPTION.upper() + "}"}, SUBSCRIPTION.upper()),
    asks(
        "subscription percent-encoded",
        f"/x?scope={quote(quote(ARM + '/Microsoft.Compute/virtualMachines/vm1', safe=''), safe='')}",
        SUBSCRIPTION,
        "payroll-prod",
    ),
    says(
        "name beside id",
        {
            "id": f"{ARM}/Microsoft.Compute/virtualMachines/salaries-7",
            "name": "salaries-7",
            "resourceGroup": "payroll-prod",
        },
        SUBSCRIPTION,
        "payroll-prod",
        "salaries-7",
    ),
    says(
        "e-mail address",
        {"systemData": {"createdBy": "jane.doe@contoso.com", "createdByType": "User"}},
        "jane.doe",
        "contoso",
    ),
    says("caller's address", {"clientIpAddress": "20.31.7.9"}, "20.31.7.9"),
    Case("status line", (SUBSCRIPTION,), answer_headers={"x-ms-error": f"no access to {SUBSCRIPTION}"}),
]

ENCODED_COMMAND = base64.b64encode(f'$password = "{PASSWORD}"'.encode("utf-16-le")).decode()
SECRET_CASES += [
    says("passwords list", {"passwords": ["simplepw-1", "otherpw-2"]}, "simplepw-1", "otherpw-2"),
    says("adminKeys list", {"adminKeys": ["plainkey-1"]}, "plainkey-1"),
    says(
        "encoded command of PowerShell",
        {"cmd": "powershell -EncodedCommand " + ENCODED_COMMAND},
        ENCODED_COMMAND,
        PASSWORD,
    ),
    says("header in JSON", {"headers": {"Authorization": "Bearer abc.def.ghi-short"}}, "abc.def.ghi-short"),
    says("pair in an array", [["password", PASSWORD]], PASSWORD),
    says("dict of lists", {"Set-Cookie": ["ARRAffinity=abc123def456"]}, "abc123def456"),
    Case("token in a header of an answer", ("plaintokenvalue",), answer_headers={"X-Auth-Token": "plaintokenvalue"}),
    Case("user token in a header", ("plaintokenvalue",), answer_headers={"x-ms-user-token": "plaintokenvalue"}),
    Case("location token", (OPAQUE[:30],), answer_headers={"Location": "https://a/cb?token=" + OPAQUE}),
    Case(
        "URL of an operation",
        (b64url(made_up_bytes(128, 8))[:30],),
        answer_headers={
            "Azure-AsyncOperation": f"https://management.azure.com/subscriptions/{SUBSCRIPTION}/providers/x/operations/{CLIENT}?t=638&c=MII&s={b64url(made_up_bytes(128, 8))}&h={b64url(made_up_bytes(32, 8))}"
        },
    ),
    asks("access token in the query", "/x?access_token=" + OPAQUE, OPAQUE[:30]),
    asks("API key in the query", "/x?api-key=plainapikey1", "plainapikey1"),
    asks("JSON in the query", "/x?f=" + quote(json.dumps({"apiKey": "plainapikey1"})), "plainapikey1"),
    asks("base64 in the query", "/x?f=" + quote(b64(json.dumps({"password": PASSWORD}))), PASSWORD),
    asks("password in a callback URL", "/x?cb=https%3A%2F%2Fu%3A" + quote(PASSWORD) + "%40h%2F", PASSWORD),
    asks("token in the path", f"/cb/{TOKEN}/x", TOKEN[-40:]),
    asks("key in the path", f"/hooks/{HEX_32}", HEX_32),
    says("yaml in json", {"cloudInit": f"users:\n- name: a\n  passwd: {PASSWORD}\n"}, PASSWORD),
    says("xml in json", {"x": f"<a><Password>{PASSWORD}</Password></a>"}, PASSWORD),
    says("form in json", {"x": f"a=1&client_secret={quote_plus(PASSWORD)}"}, PASSWORD),
    says("sql in json", {"q": f"CREATE USER x WITH PASSWORD = '{PASSWORD}'"}, PASSWORD),
    says("jdbc", {"url": f"jdbc:sqlserver://db:1433;user=sa;password={PASSWORD};encrypt=true"}, PASSWORD),
    says("ODBC with braces", {"url": "Driver={x};Uid=u;Pwd={" + PASSWORD + "};"}, PASSWORD),
    says("mongo", {"url": f"mongodb+srv://u:{quote(PASSWORD)}@h/?x=y"}, PASSWORD),
    says("mysql", {"url": "mysql://u:plainword@h/db"}, "plainword"),
    says("amqp", {"url": f"amqps://u:{KEY_32}@h"}, KEY_32[:30]),
    says("token in hex", {"x": TOKEN.encode().hex()}, TOKEN[-40:].encode().hex()[:40]),
    says(
        "base64 of zlib",
        {"x": b64(zlib.compress(json.dumps({"password": PASSWORD}).encode()))},
        b64(zlib.compress(json.dumps({"password": PASSWORD}).encode())),
    ),
    says("tenant domain", {"domain": "contosopayroll.onmicrosoft.com"}, "contosopayroll"),
    says(
        "telephone numbers",
        {"businessPhones": ["+49 170 1234567"], "mobilePhone": "+49 170 7654321"},
        "170 1234567",
        "170 7654321",
    ),
    says("names of a person", {"givenName": "Janethe", "surname": "Doering"}, "Janethe", "Doering"),
    says_text("sql error", "Client with IP address '20.31.7.9' is not allowed to access the server.", "20.31.7.9"),
    says("PFX blob", {"pfxBlob": b64(made_up_bytes(300, 2)), "password": ""}, b64(made_up_bytes(300, 2))[:40]),
    says("credential that is an object", {"credential": {"secret": "plainone1", "type": "x"}}, "plainone1"),
    says("credential that is a text", {"credential": "plainone1"}, "plainone1"),
    says("tokens map", {"tokens": {"a": {"token": "plainone1"}}}, "plainone1"),
    says("bearer text", {"m": "failed with Authorization: Bearer " + OPAQUE}, OPAQUE[:30]),
    says(
        "shared key auth in text",
        {
            "m": "The MAC signature found in the HTTP request '"
            + KEY_32
            + "' is not the same as any computed signature. Server used following string to sign: 'GET"
        },
        KEY_32[:30],
    ),
    says("number under a secret's name", {"pin_password": 12345678}, "12345678"),
    says("nested secret dict", {"secrets": {"db": {"value": "plainone1"}}}, "plainone1"),
    says("name with a dash", {"db-password": "plainone1"}, "plainone1"),
    says("connection in array", {"connections": [CONNECTION, BUS]}, ACCOUNT_KEY, KEY_32),
    says(
        "service principal of the CLI",
        {"appId": CLIENT, "displayName": "x", "password": "x.y8Q~abc", "tenant": SUBSCRIPTION},
        "x.y8Q~abc",
    ),
    says("SAS URI", {"blobSasUri": SAS}, KEY_32, SIGNATURE),
    says(
        "logic app",
        {
            "value": f"https://prod-1.westeurope.logic.azure.com:443/workflows/{HEX_32}/triggers/manual/paths/invoke?api-version=2016-10-01&sp=%2Ftriggers&sv=1.0&sig={b64url(made_up_bytes(32, 1))}"
        },
        b64url(made_up_bytes(32, 1)),
    ),
    says(
        "eventgrid webhook",
        {
            "endpointUrl": f"https://f.azurewebsites.net/runtime/webhooks/eventgrid?functionName=x&code={quote(FUNCTION_KEY)}"
        },
        FUNCTION_KEY,
    ),
    sends(
        "keys of a connection",
        {
            "properties": {
                "keyVault": "x",
                "applicationInsights": "y",
                "credentials": {"keys": {"key1": "plainone1", "key2": "plainone2"}},
            }
        },
        "plainone1",
        "plainone2",
    ),
    sends(
        "named value to write", {"properties": {"displayName": "n", "value": "plainone1", "secret": True}}, "plainone1"
    ),
    sends(
        "parameters of a logic app",
        {"properties": {"parameters": {"apiKey": {"type": "SecureString", "value": "plainone1"}}}},
        "plainone1",
    ),
    sends("secure string", {"x": {"type": "SecureString", "value": "plainone1"}}, "plainone1"),
    sends("secret volume", {"volumes": [{"name": "s", "secret": {"mysecret1": b64("plainone1")}}]}, b64("plainone1")),
    sends("SQL on a VM", {"sqlAuthUpdateUserName": "x", "sqlAuthUpdatePassword": "plainone1"}, "plainone1"),
    sends("SSH private key", {"ssh_private_key": "plainone1", "sshPrivateKey": PEM}, PEM_BODY[:60]),
    sends("pre-shared key", {"properties": {"sharedKey": "plainone1", "psk": "plainone2"}}, "plainone1", "plainone2"),
    sends("radius", {"radiusServerSecret": "plainone1"}, "plainone1"),
    sends("authorization key", {"authorizationKey": "plainone1"}, "plainone1"),
    sends("keys of a policy", {"x": {"sas": {"primary": KEY_32}}}, KEY_32),
    sends("user and password", {"auth": {"username": "u", "password": "plainone1"}}, "plainone1"),
    sends_form("jwt-bearer", f"grant_type=x&assertion={TOKEN}&client_id=a", TOKEN[-40:]),
    Case(
        "text/plain jwt in gz multipart",
        (TOKEN[-40:],),
        method="POST",
        headers={"Content-Type": "multipart/mixed; boundary=q"},
        body=b"--q\r\nContent-Type: application/gzip\r\n\r\n" + gzip.compress(TOKEN.encode()) + b"\r\n--q--\r\n",
    ),
    sends("option in a list", {"command": ["/bin/app", "--db-password", "plainone1"]}, "plainone1"),
    sends(
        "PowerShell option", {"commandToExecute": "powershell -File a.ps1 -AdminPassword plainone1 -X 1"}, "plainone1"
    ),
    sends("curl -u", {"userData": b64("#!/bin/sh\ncurl -s -u admin:plainone1 https://x\n")}, "plainone1"),
    sends("docker login -p", {"run": "docker login -u reg -p plainone1 reg.azurecr.io"}, "plainone1"),
    sends("az login -p", {"run": "az login --service-principal -u x -p plainone1 --tenant y"}, "plainone1"),
    sends(
        "sshpass", {"run": "sshpass -p plainone1 ssh root@h\necho 'plainone2' | sudo -S ls"}, "plainone1", "plainone2"
    ),
    sends("mysql -p", {"run": "mysql -uroot -pplainone1 -e 'select 1'"}, "plainone1"),
    sends("SQL user", {"sql": "CREATE USER a IDENTIFIED BY 'plainone1'"}, "plainone1"),
    sends("net user", {"script": ["net user adm plainone1 /add"]}, "plainone1"),
    sends("echo to chpasswd", {"run": "echo root:plainone1 | chpasswd"}, "plainone1"),
    sends("htpasswd", {"run": "htpasswd -bc /etc/p admin plainone1"}, "plainone1"),
    sends(
        "cloud-init's list of passwords",
        {"customData": b64("#cloud-config\nchpasswd:\n  list: |\n    azureuser:plainone1\n  expire: false\n")},
        "plainone1",
    ),
    says_text("YAML block", "stringData:\n  a: |\n    plainone1\n  b: plainone2\nc: d\n", "plainone1", "plainone2"),
    says_text("YAML block of a secret", "x: 1\npassword: >-\n  plainone1\ny: 2\n", "plainone1"),
    says_text("CSV", "name,password,made\nbob,plainone1,2026-01-01\n", "plainone1", kind="text/csv"),
    says_text("CSV with quotes", 'User;"Secret Key"\r\n"b;""c";"plain;one1"\r\n', "plain;one1", kind="text/csv"),
    says(
        "table of a query",
        {"tables": [{"columns": [{"name": "user"}, {"name": "password"}], "rows": [["bob", "plainone1"]]}]},
        "plainone1",
    ),
    says("table with plain columns", {"columns": ["n", "clientSecret"], "rows": [[1, "plainone1"]]}, "plainone1"),
    says_text(
        "HTML form without quotes",
        "<html><form><input type=hidden name=id_token value=plainone1><input required type=password value='plainone2'>",
        "plainone1",
        "plainone2",
        kind="text/html",
    ),
    says_text("script with a key", 'var c = { apiKey: "plainone1", x: 1 };', "plainone1", kind="text/javascript"),
    says("password in an error", {"message": "login failed for 'sa' with password 'plainone1'."}, "plainone1"),
    Case(
        "every cookie that was sent",
        ("cookieone1", "cookietwo2"),
        headers={"Cookie": "a=cookieone1; b=cookietwo2"},
        answer=b'{"echo": "cookieone1 and cookietwo2"}',
    ),
    Case(
        "header that ends in auth",
        ("plainone1",),
        headers={"X-ZUMO-AUTH": "plainone1"},
        answer=b'{"echo": "plainone1"}',
    ),
]


def harmless(name: str, body: Any, kind: str = "application/json", path: str = "/x") -> Case:
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Case(name, (), path=path, answer=content, answer_headers={"Content-Type": kind})


HARMLESS_CASES = [
    harmless("numbers in every form", '{"a":1E400,"b":1.10,"c":-0.0,"d":12345678901234567890,"e":1e5}'),
    harmless("pretty JSON", '{\n  "b" : [ 1,\t2 ],\n  "a": {"z": null, "y": true}\n}\n'),
    harmless("order and duplicates", '{"b":1,"a":2,"b":3}'),
    harmless("escapes", '{"a":"caf\\u00e9 \\/ \\ud83d\\ude00","b":"é"}'),
    harmless("small value", {"key1": "value1"}),
    harmless(
        "feature flag",
        {
            "key": ".appconfig.featureflag/Beta",
            "label": None,
            "content_type": "application/vnd.microsoft.appconfig.ff+json;charset=utf-8",
            "value": '{"id":"Beta","description":"","enabled":true,"conditions":{"client_filters":[]}}',
            "locked": False,
        },
        path="/kv/.appconfig.featureflag%2FBeta",
    ),
    harmless(
        "settings",
        {
            "items": [
                {"key": "FontSize", "value": "14", "etag": "4f6dd610dd5e4deebc7fbaef685fb903"},
                {"key": "City", "value": "Paris"},
            ]
        },
        path="/kv",
    ),
    harmless(
        "public key",
        {
            "key": {
                "kid": "https://v.vault.azure.net/keys/k/4f6dd610dd5e4deebc7fbaef685fb903",
                "kty": "RSA",
                "key_ops": ["sign", "verify"],
                "n": b64url(made_up_bytes(256, 1)),
                "e": "AQAB",
            },
            "attributes": {"enabled": True, "created": 1700000000, "recoveryLevel": "Recoverable+Purgeable"},
        },
        path="/keys/k",
    ),
    harmless(
        "list of secrets",
        {
            "value": [{"id": "https://v.vault.azure.net/secrets/greeting", "attributes": {"enabled": True}}],
            "nextLink": None,
        },
        path="/secrets",
    ),
    harmless(
        "error",
        {
            "error": {
                "code": "SecretNotFound",
                "message": "A secret with (name/id) greeting was not found in this key vault. If you recently deleted this secret you may be able to recover it.",
            }
        },
    ),
    harmless(
        "error in XML",
        '<?xml version="1.0" encoding="utf-8"?><Error><Code>BlobNotFound</Code><Message>The specified blob does not exist.\nTime:2026-01-01T00:00:00.1234567Z</Message></Error>',
        "application/xml",
    ),
    harmless(
        "list of blobs",
        '<?xml version="1.0"?><EnumerationResults ServiceEndpoint="https://acc.blob.core.windows.net/"><Blobs><Blob><Name>a/b.txt</Name><Properties><Etag>0x8DCABCDEF012345</Etag><Content-Length>11</Content-Length><Content-MD5>XrY7u+Ae7tCTyyK7j1rNww==</Content-MD5></Properties></Blob></Blobs></EnumerationResults>',
        "application/xml",
    ),
    harmless(
        "sizes of machines", {"value": [{"name": "Standard_D2s_v5", "numberOfCores": 2, "resourceDiskSizeInMB": 0}]}
    ),
    harmless(
        "prose", "The password must have 12 characters. Your token expires soon; keep the key safe.\n", "text/plain"
    ),
    harmless("permissions", {"permissions": {"keys": ["get", "list"], "secrets": ["get"], "certificates": ["all"]}}),
    harmless(
        "token counts",
        {"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, "token_type": "Bearer"},
    ),
    harmless(
        "chat",
        {
            "choices": [
                {"message": {"role": "assistant", "content": "Keep your secrets safe!"}, "finish_reason": "stop"}
            ]
        },
    ),
    harmless("row", {"PartitionKey": "p1", "RowKey": "r1", "Timestamp": "2026-01-01T00:00:00.0000000Z", "Price": 1.10}),
    harmless("document", {"id": "1", "partitionKey": "west", "code": "DE", "value": 12, "_ts": 1700000000}),
    harmless(
        "names of keys",
        {
            "keyName": "RootManageSharedAccessKey",
            "secretName": "db-password",
            "keyVaultUri": "https://v.vault.azure.net/",
        },
    ),
    harmless("base64 of a text", {"userData": b64("hello world, this is a text")}),
    harmless("image", b"\x89PNG\r\n\x1a\n" + made_up_bytes(200, 2), "image/png"),
    harmless("parquet", b"PAR1" + made_up_bytes(300, 3) + b"PAR1", "application/vnd.apache.parquet"),
    harmless("avro", b"Obj\x01" + made_up_bytes(300, 4), "avro/binary"),
    harmless("CSV", 'a,b\n1,2\nx y,"z"\n', "text/csv"),
    harmless("HTML", '<!DOCTYPE html><html><body class="a"><p>Hello &amp; welcome</p></body></html>', "text/html"),
    harmless("empty", b"", "application/json"),
    harmless("challenge words", {"error": "AKV10000: Request is missing a Bearer or PoP token."}),
    harmless("versions", {"apiVersions": ["2018-02-01", "2025-04-07"], "serverVersion": "150.870.65.1854"}),
    harmless(
        "template",
        {
            "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
            "contentVersion": "1.0.0.0",
            "parameters": {"location": {"type": "string", "defaultValue": "westeurope"}},
        },
    ),
    harmless("latin-1", "prix: 5 \xa3 caf\xe9".encode("latin-1"), "text/plain; charset=iso-8859-1"),
    harmless("lines with CRLF", "a: 1\r\nb: 2\r\n\r\nc\r\n", "text/plain"),
    harmless("options in a list", {"command": ["app", "--name", "x1y2z3", "-p", "8080:80", "--password", "--verbose"]}),
    harmless(
        "commands without a password",
        "docker run -p 8080:80 x\ncurl -u $ME:$SECRET https://x\nmysql -u root -p db\n",
        "text/plain",
    ),
    harmless("CSV", 'id,"key",name\r\n1,red,"B, ""C"""\r\n2,,\r\n', "text/csv"),
    harmless(
        "table of a query",
        {"tables": [{"columns": [{"name": "n", "type": "int"}, {"name": "key"}], "rows": [[1, "a"], [1.10, None]]}]},
    ),
    harmless("lock file", "a@^1:\n  integrity sha512-" + ACCOUNT_KEY + "\n", "text/plain"),
    harmless("rows without columns", {"rows": [[["a", 1], {"b": []}], "c"], "columns": 3}),
    harmless(
        "HTML without quotes",
        "<!doctype html><html lang=en><form action=/go><input disabled name=q value=abc123><br/></form></html>",
        "text/html",
    ),
    harmless("YAML blocks", "description: |\n  one\n\n  two 2\nlist: >\n  a:b\n", "application/yaml"),
    harmless("missing secret in prose", {"message": "The password 'db-password' was not found"}),
]


WORD = "plainone1"


def event(name: str, text: str, *needles: str) -> Case:
    """Server-sent events."""
    return says_text(name, text, *needles, kind="text/event-stream")


# Files of passwords, events split over lines, operations that hand out keys, headers of other makers, cloud-init, Graph,
# Entra, data planes, Kubernetes, databases, forms of configuration, encodings inside each other.
SECRET_CASES += [
    says_text(
        ".pgpass",
        "# hosts\ndb.postgres.database.azure.com:5432:app:svc:plainone1\n*:*:*:other:plainone2\n",
        WORD,
        "plainone2",
    ),
    says_text(".pgpass of one line", "localhost:5432:*:svc:plainone1", WORD),
    sends(
        "pgpass in cloud-init",
        {
            "customData": b64(
                "#cloud-config\nwrite_files:\n- path: /root/.pgpass\n  content: |\n    10.0.0.4:5432:app:svc:plainone1\n"
            )
        },
        WORD,
    ),
    says("pgpass in JSON", {"files": {".pgpass": "db.x.net:6432:app:svc@db:plainone1\n"}}, WORD),
    event("SSE split", 'event: x\ndata: {"password":\ndata: "plainone1"}\n\ndata: [DONE]\n\n', WORD),
    event(
        "SSE split in 3 with id between",
        'data: {"a": 1, "clientSecret"\nid: 7\ndata:  :\ndata: "plainone1" }\n\n',
        WORD,
    ),
    event("SSE split in a string", 'data: {"password": "pla\ndata: inone1"}\n\n', "inone1"),
    event("SSE CRLF", 'data: {"password":\r\ndata: "plainone1"}\r\n\r\n', WORD),
    says_text(
        "bare word of listSecrets", "plainword", "plainword", path=f"{ARM}/Microsoft.App/containerApps/a/listSecrets"
    ),
    says("bare JSON string of listKeys", "plainword", "plainword", path=f"{ARM}/Microsoft.X/y/a/listKeys"),
    says("bare JSON string of getPassword", "plain word", "plain word", path="/api/getPassword"),
    says_text("regenerateKey bare", "plainword\n", "plainword", path=f"{ARM}/Microsoft.X/y/a/regenerateKey"),
    says_text("host admin token bare", "plainone1", WORD, path=f"{ARM}/Microsoft.Web/sites/a/functions/admin/token"),
    says(
        "list query keys, short",
        {"value": [{"name": "q", "key": "short7"}]},
        "short7",
        path=f"{ARM}/Microsoft.Search/searchServices/s/listQueryKeys",
    ),
    says(
        "function key set",
        {"properties": {"name": "k1", "value": "short7"}},
        "short7",
        path=f"{ARM}/Microsoft.Web/sites/app/host/default/functionkeys/k1",
    ),
    sends(
        "function key to set",
        {"properties": {"name": "k1", "value": "shortword"}},
        "shortword",
        path=f"{ARM}/Microsoft.Web/sites/app/functions/f/keys/k1",
    ),
    says("key beside keyName", {"keyName": "k", "key": "plainone1"}, WORD),
    says("key beside endpoint", {"endpoint": "https://x.cognitiveservices.azure.com/", "key": "plainone1"}, WORD),
    says(
        "list account keys words",
        {"key1": "plainword", "key2": "otherword"},
        "plainword",
        "otherword",
        path=f"{ARM}/Microsoft.CognitiveServices/accounts/a/listKeys",
    ),
    *(
        Case(f"header {name}", (WORD,), headers={name: WORD}, answer=b'{"echo": "plainone1"}')
        for name in (
            "X-JFrog-Art-Api",
            "X-Vault-Token",
            "PRIVATE-TOKEN",
            "DD-API-KEY",
            "X-Honeycomb-Team",
            "Fastly-Key",
            "X-MBX-APIKEY",
            "aeg-sas-key",
            "X-IDENTITY-HEADER",
            "X-Insert-Key",
            "X-Figma-Token",
            "secret",
            "X-CMC_PRO_API_KEY",
            "X-Api",
            "Authentication",
            "X-Password",
            "X-Amz-Security-Token",
            "X-Signature-Key",
            "x-ms-client-principal-key",
        )
    ),
    *(
        Case(
            f"header of plain word {name}",
            ("plainwordonly",),
            headers={name: "plainwordonly"},
            answer=b'{"echo": "plainwordonly"}',
        )
        for name in ("Fastly-Key", "aeg-sas-key", "X-Token", "X-Insert-Key", "X-Key", "Token")
    ),
    *(
        Case(f"answer header {name}", (WORD,), answer_headers={**JSON, name: WORD})
        for name in ("X-JFrog-Art-Api", "X-Subject-Token", "x-ms-meta-password", "X-Device-Key")
    ),
    says("chpasswd JSON", {"chpasswd": {"list": "root:plainone1\nuser:plainone2"}}, WORD, "plainone2"),
    says("chpasswd JSON list", {"chpasswd": {"list": ["root:plainone1"], "expire": False}}, WORD),
    says_text("chpasswd YAML list", "#cloud-config\nchpasswd:\n  expire: false\n  list:\n    - root:plainone1\n", WORD),
    says_text("chpasswd YAML one line", "#cloud-config\nchpasswd:\n  list: root:plainone1\n", WORD),
    says_text(
        "chpasswd YAML users",
        "#cloud-config\nchpasswd:\n  users:\n  - {name: root, password: plainone1, type: text}\n",
        WORD,
    ),
    says_text("chpasswd flow", "#cloud-config\nchpasswd: {list: [root:plainone1], expire: false}\n", WORD),
    says_text(
        "chpasswd heredoc", "#!/bin/sh\nchpasswd <<EOF\nroot:plainone1\nuser:plainone2\nEOF\n", WORD, "plainone2"
    ),
    says_text("chpasswd here string", "#!/bin/sh\nchpasswd <<< 'root:plainone1'\n", WORD),
    says_text("chpasswd printf", "#!/bin/sh\nprintf '%s' 'root:plainone1' | sudo chpasswd\nx=1\n", WORD),
    says(
        "graph addPassword",
        {
            "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#x",
            "customKeyIdentifier": None,
            "endDateTime": "2028-01-01T00:00:00Z",
            "keyId": CLIENT,
            "hint": "abc",
            "secretText": "plainone1",
        },
        WORD,
    ),
    says("graph TAP", {"id": CLIENT, "temporaryAccessPass": "TAPRocks!", "lifetimeInMinutes": 60}, "TAPRocks"),
    sends(
        "graph password profile",
        {"passwordProfile": {"forceChangePasswordNextSignIn": True, "password": "xWwvJ]6NMw+bWH-d"}},
        "xWwvJ]6NMw",
    ),
    says(
        "graph bitlocker",
        {"id": CLIENT, "key": "353478-386837-212542-117326-404393-297660-180642-216491"},
        "353478-386837",
        path=f"/v1.0/informationProtection/bitlocker/recoveryKeys/{CLIENT}",
    ),
    says(
        "graph LAPS",
        {
            "credentials": [
                {"accountName": "Administrator", "accountSid": "S-1-5-21-1", "passwordBase64": b64("plainone1")}
            ]
        },
        b64(WORD),
        WORD,
    ),
    says(
        "graph synchronization secrets",
        {"value": [{"key": "BaseAddress", "value": "https://x.y"}, {"key": "SecretToken", "value": "plainone1"}]},
        WORD,
        path="/v1.0/servicePrincipals/x/synchronization/secrets",
    ),
    says("graph subscription", {"clientState": "plainone1", "resource": "me/messages"}, WORD),
    says(
        "graph wifi",
        {"@odata.type": "#microsoft.graph.iosWiFiConfiguration", "preSharedKey": "plainone1", "networkName": "N"},
        WORD,
    ),
    says(
        "graph upload",
        {
            "uploadUrl": "https://contoso.sharepoint.com/_api/v2.0/drive/items/01/uploadSession?guid='x'&tempauth="
            + b64url(made_up_bytes(60, 3))
        },
        b64url(made_up_bytes(60, 3)),
    ),
    says(
        "graph download",
        {
            "@microsoft.graph.downloadUrl": "https://public.bn1303.livefilestore.com/"
            + b64url(made_up_bytes(60, 4))
            + "/x.docx"
        },
        b64url(made_up_bytes(60, 4))[:30],
    ),
    says(
        "entra device code",
        {
            "device_code": "plainone1word",
            "user_code": "GTHK7PQ2",
            "verification_uri": "https://microsoft.com/devicelogin",
            "message": "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code GTHK7PQ2 to authenticate.",
        },
        "GTHK7PQ2",
        "plainone1word",
    ),
    says(
        "cosmos resource token",
        {
            "id": "p",
            "permissionMode": "All",
            "_token": "type=resource&ver=1&sig=" + b64(made_up_bytes(16, 8)) + ";" + b64(made_up_bytes(40, 8)) + ";",
        },
        b64(made_up_bytes(16, 8)),
        b64(made_up_bytes(40, 8)),
    ),
    asks(
        "cosmos auth header",
        "/dbs/x",
        KEY_32,
        headers={"authorization": quote(f"type=master&ver=1.0&sig={KEY_32}", safe="")},
    ),
    says(
        "cosmos mongo",
        {
            "connectionStrings": [
                {
                    "connectionString": f"mongodb://acc:{ACCOUNT_KEY}@acc.mongo.cosmos.azure.com:10255/?ssl=true&replicaSet=globaldb"
                }
            ]
        },
        ACCOUNT_KEY,
    ),
    says_text(
        "service bus SAS token",
        f"SharedAccessSignature sr=sb%3A%2F%2Fns.servicebus.windows.net%2F&sig={SIGNATURE}&se=1700000000&skn=Root",
        SIGNATURE,
        KEY_32,
    ),
    Case(
        "service bus management XML",
        (KEY_32, "c2hvcnQ="),
        answer=f'<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml"><QueueDescription><AuthorizationRules><AuthorizationRule><KeyName>Root</KeyName><PrimaryKey>{KEY_32}</PrimaryKey><SecondaryKey>c2hvcnQ=</SecondaryKey></AuthorizationRule></AuthorizationRules></QueueDescription></content></entry>'.encode(),
        answer_headers=XML,
    ),
    says(
        "app configuration KV reference plus snapshot key",
        {"value": [{"id": "8-l4-s0:abc", "name": "Secondary Read Only", "value": "plainone1", "readOnly": True}]},
        WORD,
        path=f"{ARM}/Microsoft.AppConfiguration/configurationStores/s/ListKeys",
    ),
    says(
        "app configuration setting with a password",
        {"key": "Db:Password", "value": "plainone1", "content_type": ""},
        WORD,
        path="/kv/Db:Password",
    ),
    says(
        "app configuration settings JSON value",
        {"items": [{"key": "Db", "content_type": "application/json", "value": json.dumps({"password": "plainone1"})}]},
        WORD,
        path="/kv",
    ),
    says(
        "functions host secrets",
        {
            "masterKey": {"name": "master", "value": "plainone1", "encrypted": False},
            "functionKeys": [{"name": "default", "value": "plainone2", "encrypted": False}],
        },
        WORD,
        "plainone2",
    ),
    says(
        "kudu settings",
        {
            "AzureWebJobsStorage": CONNECTION,
            "WEBSITE_AUTH_ENCRYPTION_KEY": "plainone1",
            "MACHINEKEY_DecryptionKey": "plainone2",
            "deployment_branch": "main",
        },
        WORD,
        "plainone2",
        ACCOUNT_KEY,
    ),
    says(
        "authsettingsV2",
        {
            "properties": {
                "identityProviders": {
                    "facebook": {"registration": {"appId": "1", "appSecretSettingName": "FB", "appSecret": "plainone1"}}
                }
            }
        },
        WORD,
    ),
    says(
        "backup of web app",
        {"properties": {"storageAccountUrl": SAS, "databases": [{"connectionString": SQL}]}},
        KEY_32,
        PASSWORD,
    ),
    says("AKS run command", {"properties": {"logs": "NAME TOKEN\nDB_PASSWORD=plainone1\n", "exitCode": 0}}, WORD),
    says_text(
        "AKS kubeconfig exec",
        "users:\n- name: u\n  user:\n    auth-provider:\n      config:\n        access-token: plainone1\n        refresh-token: plainone2\n      name: azure\n",
        WORD,
        "plainone2",
    ),
    says(
        "kubernetes token review",
        {"kind": "TokenRequest", "status": {"token": "plainone1", "expirationTimestamp": "2026-01-01T00:00:00Z"}},
        WORD,
    ),
    says(
        "kubernetes Secret list",
        {
            "kind": "SecretList",
            "items": [{"metadata": {"name": "x"}, "data": {"a.conf": b64("plainone1")}, "type": "Opaque"}],
        },
        b64(WORD),
        WORD,
    ),
    says(
        "kubernetes Secret",
        {"kind": "Secret", "data": {"a.conf": b64("plainone1"), "short": b64("abc12")}},
        b64(WORD),
        WORD,
        b64("abc12"),
    ),
    sends(
        "PostgreSQL flexible",
        {
            "properties": {
                "administratorLogin": "adm",
                "administratorLoginPassword": "plainone1",
                "createMode": "Default",
            }
        },
        WORD,
    ),
    says(
        "PostgreSQL URI in a list",
        {
            "connectionStrings": [
                {
                    "name": "libpq",
                    "value": "host=db.postgres.database.azure.com port=5432 dbname=x user=adm password='plain one1' sslmode=require",
                }
            ]
        },
        "plain one1",
    ),
    says_text("libpq keyword string", "host=db port=5432 user=adm password=plainone1 sslmode=require", WORD),
    says_text("JDBC", "jdbc:postgresql://db:5432/x?user=adm&password=plainone1&sslmode=require", WORD),
    says_text(
        "JDBC sqlserver",
        "jdbc:sqlserver://db:1433;database=x;user=adm;password={plain;one1};encrypt=true",
        "plain;one1",
    ),
    says_text(
        "pg_dump",
        "CREATE ROLE svc WITH LOGIN PASSWORD 'plainone1';\nALTER USER adm WITH ENCRYPTED PASSWORD 'md5plainone2';\n",
        WORD,
        "plainone2",
    ),
    says_text("SQL login", "CREATE LOGIN x WITH PASSWORD = N'plainone1';", WORD),
    says(
        "storage local user",
        {"sshPassword": "plainone1"},
        WORD,
        path=f"{ARM}/Microsoft.Storage/storageAccounts/acc/localUsers/u/regeneratePassword",
    ),
    says("storage listServiceSas", {"serviceSasToken": f"sv=2015-04-05&sr=c&sig={SIGNATURE}"}, KEY_32),
    Case(
        "storage copy source in XML",
        (KEY_32, SIGNATURE),
        answer=f"<Blob><CopySource>{SAS.replace('&', '&amp;')}</CopySource></Blob>".encode(),
        answer_headers=XML,
    ),
    says(
        "ARM deployment outputs",
        {
            "properties": {
                "outputs": {
                    "storageKey": {"type": "String", "value": "plainone1"},
                    "name": {"type": "String", "value": "vm"},
                }
            }
        },
        WORD,
    ),
    says(
        "ARM deployment script",
        {
            "properties": {
                "environmentVariables": [{"name": "U", "value": "u"}, {"name": "P", "secureValue": "plainone1"}],
                "scriptContent": "mysql -h h -u u -pplainone2 x",
            }
        },
        WORD,
        "plainone2",
    ),
    says("ARM gateway", {"sharedKey": "plainone1"}, WORD),
    says(
        "ARM gateway bare value", {"value": "plainone1"}, WORD, path=f"{ARM}/Microsoft.Network/connections/c/sharedkey"
    ),
    says(
        "event hub capture",
        {"properties": {"primaryConnectionString": BUS + ";EntityPath=q", "aliasPrimaryConnectionString": BUS}},
        KEY_32,
    ),
    says("vnet VPN profile", "https://x.blob.core.windows.net/vpn/p.zip?sv=2017&sig=" + SIGNATURE, SIGNATURE),
    says(
        "gzip base64 JSON in JSON in XML",
        {
            "x": f"<a><b>{json.dumps({'c': b64(gzip.compress(json.dumps({'password': 'plainone1'}).encode()))}).replace(chr(34), '&quot;')}</b></a>"
        },
        WORD,
    ),
    says(
        "kv cert policy", {"value": "plainone1", "pwd": "plainone2"}, WORD, "plainone2", path="/certificates/c/import"
    ),
    says(
        "kv managed storage",
        {"value": f"?sv=2018&sig={SIGNATURE}", "id": "https://v/secrets/acc-sas/1"},
        SIGNATURE,
        KEY_32,
        path="/secrets/acc-sas",
    ),
    says(
        "kv deleted secret recovery",
        {"recoveryId": "https://v/deletedsecrets/x", "value": "plainword"},
        "plainword",
        path="/deletedsecrets/x",
    ),
    sends(
        "kv sign digest",
        {"alg": "RS256", "value": b64url(made_up_bytes(32, 1))},
        b64url(made_up_bytes(32, 1)),
        path="/keys/k/1/sign",
        method="POST",
    ),
    says(
        "APIM subscription words",
        {"primaryKey": "plainword", "secondaryKey": "otherword"},
        "plainword",
        "otherword",
        path=f"{ARM}/Microsoft.ApiManagement/service/s/subscriptions/x/listSecrets",
    ),
    says(
        "APIM gateway token",
        {"value": "plainone1"},
        WORD,
        path=f"{ARM}/Microsoft.ApiManagement/service/s/gateways/g/generateToken",
    ),
    says(
        "IoT DPS",
        {
            "attestation": {
                "type": "symmetricKey",
                "symmetricKey": {"primaryKey": "plainone1", "secondaryKey": "plainone2"},
            }
        },
        WORD,
        "plainone2",
    ),
    says(
        "web pubsub",
        {"baseUrl": "wss://x", "token": "plainone1", "url": "wss://x/client/hubs/h?access_token=plainone1"},
        WORD,
    ),
    says(
        "communication identity",
        {"identity": {"id": "8:acs:x"}, "accessToken": {"token": "plainone1", "expiresOn": "2026-01-01T00:00:00Z"}},
        WORD,
    ),
    says(
        "hdinsight",
        {
            "restAuthCredential.isEnabled": "true",
            "restAuthCredential.username": "admin",
            "restAuthCredential.password": "plainone1",
        },
        WORD,
    ),
    says(
        "hdinsight shared keys",
        {
            "fs.azure.account.key.acc.blob.core.windows.net": ACCOUNT_KEY,
            "fs.azure.account.key.x.dfs.core.windows.net": "plainone1",
        },
        ACCOUNT_KEY,
        WORD,
    ),
    says(
        "databricks secret get", {"key": "db", "value": b64("plainone1")}, b64(WORD), WORD, path="/api/2.0/secrets/get"
    ),
    says(
        "databricks secret put",
        {"scope": "s", "key": "db", "string_value": "plainone1"},
        WORD,
        path="/api/2.0/secrets/put",
    ),
    says(
        "DevOps variable group",
        {"variables": {"P": {"value": "plainone1", "isSecret": True}, "Q": {"value": "public", "isSecret": False}}},
        WORD,
    ),
    says(
        "DevOps service endpoint",
        {
            "authorization": {
                "parameters": {"serviceprincipalkey": "plainone1", "tenantid": SUBSCRIPTION},
                "scheme": "ServicePrincipal",
            }
        },
        WORD,
    ),
    says("GitHub runner", {"token": "PLAINONE1XYZ", "expires_at": "2026-01-01"}, "PLAINONE1XYZ"),
    asks("matrix parameter", "/x;password=plainone1/y", WORD),
    asks(
        "auth in fragment-like query",
        "/x?redirect=" + quote("https://a/b?x=1&client_secret=plainone1&y=2", safe=""),
        WORD,
    ),
    says(
        "basic in URL-encoded JSON in header",
        {"h": "Authorization: Basic " + b64("u:plainone1")},
        WORD,
        b64("u:plainone1"),
    ),
    Case(
        "www-authenticate error",
        (OPAQUE[:30],),
        answer_headers={
            "WWW-Authenticate": f'Bearer error="invalid_token", error_description="The token {OPAQUE} is expired"'
        },
    ),
    Case("link header", (SIGNATURE,), answer_headers={"Link": f'<{SAS}>; rel="next"'}),
    says_text(
        "dotenv export in PowerShell",
        "$env:CLIENT_SECRET = 'plainone1'\nSet-Item env:API_TOKEN plainone2\n",
        WORD,
        "plainone2",
    ),
    says_text(
        "TOML",
        '[db]\npassword = \'plainone1\'\n[[x]]\ntoken = """plainone2"""\n',
        WORD,
        "plainone2",
        kind="application/toml",
    ),
    says_text("YAML anchors", "x: &a\n  password: &p plainone1\ny: *p\n", WORD, kind="application/yaml"),
    says_text("YAML tagged", "password: !!str plainone1\nother: 1\n", WORD, kind="application/yaml"),
    says_text("YAML flow", "db: {user: u, password: plainone1, host: h}\nx: 1\n", WORD, kind="application/yaml"),
    says_text("YAML multi-line plain", "password:\n  plainone1\nx: 1\n", WORD, kind="application/yaml"),
    says_text(
        "YAML complex key",
        "- name: DB_PASSWORD\n  value: plainone1\n- name: X\n  value: y\n",
        WORD,
        kind="application/yaml",
    ),
    says_text("INI with spaces", "[x]\npassword = plain one1 with spaces\n", "plain one1"),
    says_text(
        "properties", "spring.datasource.password: plainone1\nazure.client-secret=plainone2\n", WORD, "plainone2"
    ),
    says_text("python repr", "{'password': 'plainone1', 'n': 1}", WORD),
    says_text("JavaScript callback", 'cb({"password":"plainone1"});', WORD, kind="application/javascript"),
    says_text("JSON with comments", '{\n // the password\n "password": "plainone1",\n}', WORD, kind="application/json"),
    says_text(
        "JSON sequence",
        '\x1e{"password":"plainone1"}\n\x1e{"token":"plainone2"}\n',
        WORD,
        "plainone2",
        kind="application/json-seq",
    ),
    says_text(
        "two JSON documents on one line",
        '{"password":"plainone1"}{"password":"plainone2"}',
        WORD,
        "plainone2",
        kind="application/json",
    ),
    says_text("XSSI prefix", ')]}\',\n{"password":"plainone1"}', WORD, kind="application/json"),
    says_text("cut JSON", '{"a": 1, "password": "plainone1", "b": ', WORD, kind="application/json"),
    says_text(
        "SOAP",
        '<s:Envelope xmlns:s="http://x"><s:Header><wsse:UsernameToken><wsse:Username>u</wsse:Username><wsse:Password Type="PasswordText">plainone1</wsse:Password></wsse:UsernameToken></s:Header></s:Envelope>',
        WORD,
        kind="application/soap+xml",
    ),
    says_text(
        "web.config",
        '<?xml version="1.0"?><configuration><appSettings><add key="ApiPassword" value="plainone1"/></appSettings><connectionStrings><add name="X" connectionString="Server=a;Pwd=plainone2"/></connectionStrings></configuration>',
        WORD,
        "plainone2",
        kind="text/xml",
    ),
    says_text(
        "plist",
        "<plist><dict><key>Password</key><string>plainone1</string><key>Name</key><string>n</string></dict></plist>",
        WORD,
        kind="text/xml",
    ),
    says_text(
        "HTML meta", "<html><head><meta name=csrf-token content=plainone1></head></html>", WORD, kind="text/html"
    ),
    says_text(
        "HTML textarea", '<html><textarea name="private_key">plainone1</textarea></html>', WORD, kind="text/html"
    ),
    says_text(
        "AuthorizationRule text",
        "Authorization: SharedKey acc:" + b64(made_up_bytes(32, 3)) + "\nx: y\n",
        b64(made_up_bytes(32, 3)),
    ),
    Case(
        "multipart of OneDrive",
        (WORD,),
        method="POST",
        body=b"--b\r\nContent-Disposition: form-data; name=password\r\n\r\nplainone1\r\n--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
        answer=b'{"echo":"plainone1"}',
    ),
    Case(
        "form without content type",
        (WORD,),
        method="POST",
        body=b"username=u&password=plainone1",
        headers={},
        answer=b"{}",
    ),
    Case(
        "base64url of deflate",
        (WORD,),
        answer=json.dumps(
            {"SAMLRequest": b64url(zlib.compress(b"<a><Password>plainone1</Password></a>")[2:-4])}
        ).encode(),
    ),
    says(
        "hex of JSON",
        {"x": json.dumps({"password": WORD}).encode().hex()},
        WORD,
        json.dumps({"password": WORD}).encode().hex(),
    ),
    says("HTML-escaped JSON", {"x": "{&quot;password&quot;:&quot;plainone1&quot;}"}, WORD),
    says("percent JSON in text", {"x": "see " + quote('{"password":"plainone1"}')}, WORD),
    says("double-escaped", {"x": json.dumps(json.dumps(json.dumps({"password": WORD})))}, WORD),
]

HARMLESS_CASES += [
    harmless(
        "SSE of chat",
        'data: {"id":"c1","choices":[{"delta":{"content":"The key"}}]}\n\ndata: {"id":"c1","choices":[{"delta":{\ndata: "content":" is"}}]}\n\ndata: [DONE]\n\n',
        "text/event-stream",
    ),
    harmless(
        "times and places",
        "app.log:1200:12:30:45 started\na.py:12:5: E501 line too long\nmac aa:11:bb:22:cc:33\n[fe80::1:2:3:4]\n",
        "text/plain",
    ),
    harmless(
        "ARM operation status",
        {"status": "Succeeded", "properties": {"output": {"key": "value"}}},
        path=f"{ARM}/Microsoft.X/operations",
    ),
    harmless("bare true", "true", path="/api/check"),
    harmless("bare word", "pong", "text/plain", path="/ping"),
    harmless("bare JSON word", '"Running"', path="/status"),
    harmless("tags", {"tags": {"env": "prod", "key": "blue", "owner": "team-7"}}),
    harmless("Jira", {"key": "ABC-12", "fields": {"summary": "Fix it"}}),
    harmless("facets", {"value": [{"key": "red", "doc_count": 5}]}),
    harmless(
        "list of keys without values",
        {"value": [{"kid": "https://v.vault.azure.net/keys/k1", "attributes": {"enabled": True}}]},
        path="/keys",
    ),
    harmless(
        "Cosmos collection",
        {
            "id": "c",
            "partitionKey": {"paths": ["/tenant"], "kind": "Hash"},
            "indexingPolicy": {"indexingMode": "consistent", "includedPaths": [{"path": "/*"}]},
            "_ts": 1700000000,
            "_etag": '"00000000-0000-0000-0000-000000000000"',
        },
    ),
    harmless(
        "Service Bus queue",
        '<entry xmlns="http://www.w3.org/2005/Atom"><title type="text">q1</title><content><QueueDescription><LockDuration>PT1M</LockDuration><MaxSizeInMegabytes>1024</MaxSizeInMegabytes><RequiresSession>false</RequiresSession></QueueDescription></content></entry>',
        "application/atom+xml",
    ),
    harmless(
        "Graph users", {"@odata.nextLink": None, "value": [{"displayName": "Meeting room", "accountEnabled": True}]}
    ),
    harmless(
        "Graph keyCredentials metadata",
        {
            "keyCredentials": [{"type": "AsymmetricX509Cert", "usage": "Verify", "key": None, "displayName": "CN=x"}],
            "passwordCredentials": [{"hint": "abc", "secretText": None, "displayName": "rbac"}],
        },
    ),
    harmless(
        "AKS",
        {
            "properties": {
                "kubernetesVersion": "1.31.2",
                "agentPoolProfiles": [{"name": "np1", "count": 3, "vmSize": "Standard_D2s_v5"}],
                "networkProfile": {"podCidr": "10.244.0.0/16", "dnsServiceIP": "10.0.0.10"},
            }
        },
    ),
    harmless(
        "PostgreSQL",
        {
            "properties": {
                "version": "16",
                "state": "Ready",
                "passwordAuth": "Enabled",
                "activeDirectoryAuth": "Disabled",
            }
        },
    ),
    harmless("auth config", {"authConfig": {"activeDirectoryAuth": "Enabled", "passwordAuth": "Disabled"}}),
    harmless(
        "OpenID configuration",
        {
            "token_endpoint": "https://login.microsoftonline.com/common/oauth2/v2.0/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
            "jwks_uri": "https://login.microsoftonline.com/common/discovery/v2.0/keys",
            "code_challenge_methods_supported": ["S256"],
        },
    ),
    harmless(
        "JWKS",
        {
            "keys": [
                {
                    "kty": "RSA",
                    "use": "sig",
                    "kid": b64url(made_up_bytes(20, 3)),
                    "x5t": b64url(made_up_bytes(20, 3)),
                    "n": b64url(made_up_bytes(256, 3)),
                    "e": "AQAB",
                    "x5c": [b64(made_up_bytes(300, 3))],
                }
            ]
        },
        path="/common/discovery/v2.0/keys",
    ),
    harmless(
        "role definitions",
        {
            "value": [
                {
                    "properties": {
                        "roleName": "Reader",
                        "permissions": [
                            {
                                "actions": ["*/read"],
                                "notActions": [],
                                "dataActions": ["Microsoft.KeyVault/vaults/secrets/getSecret/action"],
                            }
                        ],
                    }
                }
            ]
        },
    ),
    harmless(
        "function listing",
        {
            "value": [
                {
                    "name": "app/f",
                    "properties": {
                        "config": {
                            "bindings": [
                                {
                                    "authLevel": "function",
                                    "type": "httpTrigger",
                                    "direction": "in",
                                    "name": "req",
                                    "methods": ["get"],
                                }
                            ]
                        },
                        "isDisabled": False,
                    },
                }
            ]
        },
    ),
    harmless(
        "metrics",
        {
            "cost": 0,
            "timespan": "2026-01-01T00:00:00Z/2026-01-02T00:00:00Z",
            "interval": "PT1M",
            "value": [
                {
                    "name": {"value": "Percentage CPU", "localizedValue": "CPU"},
                    "unit": "Percent",
                    "timeseries": [{"data": [{"timeStamp": "2026-01-01T00:00:00Z", "average": 1.5}]}],
                }
            ],
        },
    ),
    harmless(
        "app config revisions",
        {
            "items": [
                {
                    "key": "Timeout:Seconds",
                    "label": "prod",
                    "value": "30",
                    "tags": {},
                    "locked": False,
                    "last_modified": "2026-01-01T00:00:00+00:00",
                }
            ]
        },
        path="/revisions",
    ),
    harmless(
        "validate deployment",
        {
            "properties": {
                "parameters": {"vmName": {"type": "String", "value": "vm1"}, "count": {"type": "Int", "value": 3}},
                "mode": "Incremental",
                "provisioningState": "Succeeded",
                "duration": "PT1.2S",
            }
        },
    ),
    harmless(
        "key vault metadata",
        {
            "properties": {
                "sku": {"family": "A", "name": "standard"},
                "enableSoftDelete": True,
                "accessPolicies": [{"permissions": {"keys": ["all"], "secrets": ["get", "list"]}}],
                "vaultUri": "https://v.vault.azure.net/",
            }
        },
    ),
    harmless("check name", {"nameAvailable": False, "reason": "AlreadyExists", "message": "The name is taken."}),
    harmless(
        "usages",
        {
            "value": [
                {"currentValue": 4, "limit": 100, "name": {"value": "cores", "localizedValue": "Total Regional vCPUs"}}
            ]
        },
    ),
    harmless(
        "XML containers",
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Containers><Container><Name>c</Name><Properties><LeaseStatus>unlocked</LeaseStatus><PublicAccess>container</PublicAccess></Properties></Container></Containers><NextMarker /></EnumerationResults>',
        "application/xml",
    ),
    harmless(
        "docker manifest",
        {"schemaVersion": 2, "config": {"digest": "sha256:" + made_up_bytes(32, 5).hex(), "size": 7023}},
    ),
    harmless("bare JSON number", "42", path="/count"),
]

SECRET_CASES += [
    sends("password in an argument", {"command": ["mysql", "-uroot", "-pplainone1", "-e", "select 1"]}, WORD),
    says_text("argument in YAML", "run: [mysqladmin, -pplainone1, ping]\nx: 1\n", WORD, kind="application/yaml"),
    says_text(
        "other commands",
        "sqlcmd -S db -U sa -P plainone1\nopenssl pkcs12 -passin pass:plainone2\nredis-cli -a plainone3 ping\n"
        "smbclient //s/x -U user%plainone4\nnet use Z: \\\\h\\s /user:u plainone5\nsqlplus app/plainone6@db\n",
        *(f"plainone{number}" for number in range(1, 7)),
    ),
]

HARMLESS_CASES += [
    harmless("arguments", {"command": ["mysql", "-uroot", "-p", "-e", "x"], "args": ["ssh", "-p2222", "host"]}),
]

SECRET_CASES += [
    says(
        "sb authorization rule of emulator",
        {"properties": {"rights": ["Listen"]}, "primaryKey": "plainword"},
        "plainword",
        path=f"{ARM}/Microsoft.ServiceBus/namespaces/n/AuthorizationRules/r/regenerateKeys",
    ),
    says(
        "k8s bootstrap",
        {"kind": "Secret", "type": "bootstrap.kubernetes.io/token", "data": {"token-secret": b64("plainone1")}},
        b64(WORD),
        WORD,
    ),
    says_text(
        "helm values",
        "postgresql:\n  auth:\n    postgresPassword: plainone1\n    username: u\nextraEnv:\n  - name: API_KEY\n    value: plainone2\n",
        WORD,
        "plainone2",
        kind="application/yaml",
    ),
    says_text(
        "compose flow",
        "services: {db: {environment: [POSTGRES_PASSWORD=plainone1]}}\nx: 1\n",
        WORD,
        kind="application/yaml",
    ),
    says_text("YAML quoted with escapes", 'password: "pla\\u0069none1"\nx: 1\n', WORD, kind="application/yaml"),
    says_text(
        "YAML folded block",
        "db:\n  password: >\n    plainone1\n    more2words\n",
        WORD,
        "more2words",
        kind="application/yaml",
    ),
    says_text("YAML JSON in block", 'config: |\n  {"password": "plainone1"}\nx: 1\n', WORD, kind="application/yaml"),
    says_text("YAML comment", "# password: plainone1\na: 1\nb: 2\n", WORD, kind="application/yaml"),
    says_text("YAML merge and alias", "base: &b {token: plainone1}\nx:\n  <<: *b\n", WORD, kind="application/yaml"),
    says_text(
        "netrc body", "machine h login u password plainone1\nmachine g login v password plainone2\n", WORD, "plainone2"
    ),
    says_text(
        "event with id and comment",
        ': hi\nid: 1\ndata: {"delta": {"api_key":\ndata:   "plainone1"}}\n\n',
        WORD,
        kind="text/event-stream",
    ),
    says(
        "container app secret single",
        {"name": "db", "value": "plainword"},
        "plainword",
        path=f"{ARM}/Microsoft.App/jobs/j/listSecrets",
    ),
    says(
        "function default key",
        {"default": "plainword"},
        "plainword",
        path=f"{ARM}/Microsoft.Web/sites/a/functions/f/listkeys",
    ),
    says(
        "graph password bare",
        {"@odata.context": "x", "value": "plainone1"},
        WORD,
        path="/beta/deviceManagement/x/getPassword",
    ),
    says(
        "cosmos list keys readonly",
        {"primaryReadonlyMasterKey": "plainword", "secondaryReadonlyMasterKey": "otherword"},
        "plainword",
        "otherword",
        path=f"{ARM}/Microsoft.DocumentDB/databaseAccounts/a/readonlykeys",
    ),
    Case("answer header of vault", (WORD,), answer_headers={**JSON, "X-Vault-Token": WORD, "X-Auth-Token": WORD}),
    says_text("pgpass CRLF", "h.x.net:5432:db:u:plainone1\r\nh.x.net:5432:db:v:plainone2\r\n", WORD, "plainone2"),
    says_text("pgpass with IP and escapes", "10.1.2.3:5432:db:u:pl\\:ainone1\n", "ainone1"),
    says("script", {"run": "PGPASSFILE=x; echo db.x.net:5432:a:b:plainone1 >> ~/.pgpass"}, WORD),
    says_text(
        "HTML two inputs",
        "<html><input name=state value=plainstate1><input type=hidden name=SAMLResponse value=plainone1>",
        WORD,
        kind="text/html",
    ),
]

HARMLESS_CASES += [
    harmless("keys saved", "OK", "text/plain", path="/api/keys"),
    harmless("token deleted", '"Deleted"', path="/api/token"),
    harmless(
        "YAML comments",
        "# a comment\n---\na: &x [1, 2.50, 'x']\nb: *x\nc: >-\n  folded\n  text\nd: {e: f}\n...\n---\ng: h\n",
        "application/yaml",
    ),
    harmless("YAML CRLF", "a: 1\r\nb:\r\n  - c: 'd'\r\n  - \"e\"\r\n", "application/yaml"),
    harmless(
        "names of secrets",
        {"value": [{"id": "https://v.vault.azure.net/secrets/a", "attributes": {"enabled": True, "created": 1}}]},
        path="/secrets",
    ),
    harmless(
        "service keys listing",
        {"keys": [{"name": "default", "type": "function"}], "count": 1},
        path="/admin/functions/keys",
    ),
    harmless(
        "manifest",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {app: web, key: blue}\nspec:\n  containers:\n  - name: c\n    image: nginx:1.27\n    args: [-p, '8080', --name, x1]\n    env:\n    - name: A\n      valueFrom: {secretKeyRef: {name: db, key: password}}\n",
        "application/yaml",
    ),
    harmless(
        "properties list",
        '<?xml version="1.0"?><plist><dict><key>Name</key><string>abc1</string><key>Count</key><integer>3</integer></dict></plist>',
        "text/xml",
    ),
    harmless(
        "HTML",
        '<html><head><meta name="viewport" content="width=device-width"><link rel=x href=/a></head><body><form><input name=q value="abc 1"><select name=size><option value=1>One</option></select></form><p id="token">Tokens are explained here.</p></body></html>',
        "text/html",
    ),
    harmless(
        "mail",
        "Date: Mon, 01 Jan 2026\nSubject: Your password: how to change it\n\nBasic information and bearer of news.\n",
        "text/plain",
    ),
    harmless("endpoint list", {"endpoint": "https://x.example", "key": "region", "username": "u"}),
    harmless("entities", {"text": "a &quot;quoted&quot; word &amp; more"}),
    harmless("JSON string", '"a \\"quoted\\" text, 1"'),
    harmless(
        "CI output",
        "Step 1: docker run -p 8080:80 x\nmysql -u root -p db < a.sql\ntime: 12:30:45\n[app.log:1200:12:30:45]\n",
        "text/plain",
    ),
    harmless("seq", '\x1e{"a":1}\n\x1e{"b":"two"}\n', "application/json-seq"),
    harmless(
        "rotate operation", {"status": "InProgress", "operationId": "op-7"}, path=f"{ARM}/Microsoft.X/y/z/rotateKey"
    ),
    harmless("SignalR negotiate less", '{"protocol":"json","version":1}\x1e', "text/plain"),
    harmless("setx words", "Use setx PATH to change it. env: production\n-key value -token next\n", "text/plain"),
]

# What is not taken apart, and therefore refused: UTF-16 in base64.
REFUSED_CASES = [
    says_text("base64 of UTF-16", base64.b64encode(f"password={WORD};".encode("utf-16-le")).decode()),
]
