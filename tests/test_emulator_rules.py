"""Which request gets which answer: the rules of the token endpoint and of the other paths."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import jwt
import pytest
from raw_http import Raw, exchange, send

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned
from azure_imds_credential.testing._http import connection

PATH = "/metadata/identity/oauth2/token"
VERSION = "api-version=2018-02-01"
VAULT = "resource=https%3A%2F%2Fvault.azure.net"
GOOD = f"{PATH}?{VERSION}&{VAULT}"
SYSTEM, A, B = SystemAssigned(), UserAssigned("a"), UserAssigned("b")

NO_HEADER = "Required metadata header not specified"
NOT_FOUND = "Identity not found"
SEVERAL = (
    "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token "
    "request"
)


def with_headers(**more: str) -> dict[str, str]:
    headers = {"Host": "169.254.169.254", "Connection": "close"}
    return headers | {name.replace("_", "-"): value for name, value in more.items()}


@pytest.fixture
def imds() -> Any:
    with ImdsEmulator([SYSTEM]) as emulator:
        yield emulator


@pytest.mark.parametrize(
    ("target", "description"),
    [
        (f"{PATH}?{VAULT}", "Required query variable 'api-version' is missing"),
        (f"{PATH}?{VERSION}", "Required query variable 'resource' is missing"),
        (f"{PATH}?{VERSION}&resource=", "Required query variable 'resource' is missing"),
        (PATH, "Required query variable 'api-version' is missing"),
        (f"{GOOD}&claims=%7B%7D", "Unsupported query variables"),
        (f"{GOOD}&{VAULT}", "Duplicate query variables"),
        (f"{GOOD}&{VERSION}", "Duplicate query variables"),
        (f"{GOOD}&client_id=a&object_id=b", "Only one of client_id, object_id, msi_res_id may be specified"),
        (f"{GOOD}&msi_res_id=a&mi_res_id=a", "Only one of client_id, object_id, msi_res_id may be specified"),
        (f"{GOOD}&bypass_cache=1", "bypass_cache must be 'true'"),
        (f"{GOOD}&client_id=99999999-9999-9999-9999-999999999999", NOT_FOUND),
        (f"{GOOD}&client_id=", NOT_FOUND),
        (f"{GOOD}&msi_res_id=", NOT_FOUND),
        (f"{PATH}?api-version=2017-12-01&{VAULT}", "Unsupported api-version"),
        (f"{PATH}?api-version=latest&{VAULT}", "Unsupported api-version"),
    ],
)
def test_bad_queries(imds: ImdsEmulator, target: str, description: str) -> None:
    """A query that breaks a rule is a 400 in the one shape of the identity category, compact, with the rule's words."""
    answer = exchange(imds.endpoint, target)
    assert (answer.status, answer.reason) == (400, "Bad Request")
    assert answer.body.decode() == f'{{"error":"invalid_request","error_description":"{description}"}}'


@pytest.mark.parametrize(
    ("headers", "description"),
    [
        (with_headers(), NO_HEADER),
        (with_headers(Metadata="True"), NO_HEADER),
        (with_headers(Metadata=""), NO_HEADER),
        (with_headers(Metadata="true", X_Forwarded_For="10.0.0.1"), "X-Forwarded-For header is not allowed"),
        (with_headers(Metadata="true", x_forwarded_for=""), "X-Forwarded-For header is not allowed"),
    ],
)
def test_bad_headers(imds: ImdsEmulator, headers: dict[str, str], description: str) -> None:
    """Metadata must be "true" in lower case, and nothing may have been forwarded."""
    answer = exchange(imds.endpoint, GOOD, headers)
    assert answer.status == 400
    assert answer.json == {"error": "invalid_request", "error_description": description}


def test_header_before_query(imds: ImdsEmulator) -> None:
    """The probe of @azure/identity, with neither header nor query, is told about the header."""
    assert exchange(imds.endpoint, PATH, with_headers()).json["error_description"] == NO_HEADER


def test_header_names_have_no_case(imds: ImdsEmulator) -> None:
    """Header names are compared without regard to case; their values are not."""
    assert exchange(imds.endpoint, GOOD, with_headers(mEtAdAtA="true")).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_other_verbs_are_refused(imds: ImdsEmulator, method: str) -> None:
    """Any verb but GET is a 405; the answer to HEAD has no body."""
    answer = exchange(imds.endpoint, GOOD, method=method)
    assert answer.status == 405
    expected = b'{"error":"method_not_allowed","error_description":"Not allowed"}'
    assert answer.body == (b"" if method == "HEAD" else expected)
    assert answer.header("Content-Length") == str(len(expected))


@pytest.mark.parametrize(
    "order",
    [
        f"{PATH}?{VAULT}&{VERSION}",
        f"{PATH}?resource=https://vault.azure.net&{VERSION}",
        f"{PATH}?api-version=2025-04-07&{VAULT}",
        f"{PATH}/?{VERSION}&{VAULT}",
        f"{GOOD}&authority=https%3A%2F%2Flogin.microsoftonline.com%2Fcommon",
    ],
)
def test_good_queries_in_any_form(imds: ImdsEmulator, order: str) -> None:
    """Order and encoding of the query do not count, nor does a slash before it; any identity api-version will do."""
    assert exchange(imds.endpoint, order).json["resource"] == "https://vault.azure.net"


@pytest.mark.parametrize(
    ("has", "query", "means"),
    [
        ([SYSTEM], "", SYSTEM),
        ([SYSTEM, A], "", SYSTEM),
        ([SYSTEM, A, B], "", SYSTEM),
        ([A], "", A),
        ([A, B], "", SEVERAL),
        ([], "", NOT_FOUND),
        ([A, B], f"client_id={B.client_id}", B),
        ([A, B], f"client_id={B.client_id.upper()}", B),
        ([A, B], f"object_id={A.object_id}", A),
        ([A, B], f"msi_res_id={quote(A.resource_id)}", A),
        ([A, B], f"msi_res_id={quote(A.resource_id.upper(), safe='')}", A),
        ([A, B], f"mi_res_id={quote(A.resource_id)}", A),
        ([SYSTEM, A], f"client_id={SYSTEM.client_id}", SYSTEM),
        ([A], f"client_id={B.client_id}", NOT_FOUND),
        ([A], f"object_id={A.client_id}", NOT_FOUND),
    ],
)
def test_selected_identity(has: list[Any], query: str, means: Any) -> None:
    """Each selector names an identity; without one it is the system-assigned, else the only one, else ambiguous."""
    with ImdsEmulator(has) as imds:
        answer = exchange(imds.endpoint, f"{GOOD}&{query}" if query else GOOD)
    if isinstance(means, str):
        assert (answer.status, answer.json) == (400, {"error": "invalid_request", "error_description": means})
    else:
        assert answer.json["client_id"] == means.client_id
        claims = jwt.decode(answer.json["access_token"], options={"verify_signature": False})
        assert (claims["appid"], claims["oid"]) == (means.client_id, means.object_id)


def test_container_instances_alias() -> None:
    """On Container Instances mi_res_id means nothing, so that two identities stay ambiguous; msi_res_id works."""
    with ImdsEmulator([A, B], profile="aci") as imds:
        assert exchange(imds.endpoint, f"{GOOD}&mi_res_id={A.resource_id}").body.startswith(b"Received invalid token.")
        answer = exchange(imds.endpoint, f"{GOOD}&msi_res_id={A.resource_id}")
    assert jwt.decode(answer.json["access_token"], options={"verify_signature": False})["appid"] == A.client_id


@pytest.mark.parametrize("resource", ["https://vault.azure.net/", "https://vault.azure.net"])
def test_resource_is_echoed(imds: ImdsEmulator, resource: str) -> None:
    """A trailing slash is kept in the answer and in the token's audience."""
    answer = exchange(imds.endpoint, f"{PATH}?{VERSION}&resource={resource}").json
    assert answer["resource"] == resource
    assert jwt.decode(answer["access_token"], options={"verify_signature": False})["aud"] == resource


@pytest.mark.parametrize(
    ("known", "resource", "status"),
    [
        (None, "https://vault.azure.net", 200),
        (None, "api://my-api", 200),
        (None, "22222222-2222-4222-8222-222222222222", 200),
        (None, "vault", 400),
        (["https://vault.azure.net"], "https://vault.azure.net/", 200),
        (["https://vault.azure.net"], "https://storage.azure.com", 400),
    ],
)
def test_unknown_resource(known: list[str] | None, resource: str, status: int) -> None:
    """A resource that does not exist gives AADSTS500011 with the members that Entra adds."""
    with ImdsEmulator(known_resources=known) as imds:
        answer = exchange(imds.endpoint, f"{PATH}?{VERSION}&resource={resource}")
    assert answer.status == status
    if status == 400:
        assert answer.json["error"] == "invalid_resource"
        assert answer.json["error_codes"] == [500011]
        assert f"named {resource} was not found" in answer.json["error_description"]


def test_identities_come_and_go(imds: ImdsEmulator) -> None:
    """An identity that is assigned while the emulator runs is found from then on, and no longer when removed."""
    target = f"{GOOD}&client_id={A.client_id}"
    assert exchange(imds.endpoint, target).status == 400
    imds.assign(A)
    assert exchange(imds.endpoint, target).status == 200
    imds.remove(A)
    assert exchange(imds.endpoint, target).status == 400
    assert imds.identities == (SYSTEM,)


@pytest.mark.parametrize(
    "path",
    [
        "/metadata/identity/getplatformmetadata?cred-api-version=2.0",
        "/metadata/identity/issuecredential?cred-api-version=2.0",
        "/metadata/identity/credential?cred-api-version=1.0",
        "/metadata/identity",
        "/metadata/identity/oauth2/token//",
        "/metadata/identity/oauth2/tokens",
    ],
)
@pytest.mark.parametrize("headers", [None, with_headers()])
def test_other_identity_paths(imds: ImdsEmulator, path: str, headers: dict[str, str] | None) -> None:
    """The v2 paths answer 404 even to their probes, which carry no header: this machine speaks v1 only."""
    answer = exchange(imds.endpoint, path, headers)
    assert (answer.status, answer.body) == (404, b'{"error":"Not Found"}')


def instance(imds: ImdsEmulator, path: str) -> Raw:
    return exchange(imds.endpoint, f"/metadata/{path}")


def test_instance_document(imds: ImdsEmulator) -> None:
    """Every primitive of the instance document is a string, as documented."""

    def primitives(node: Any) -> Any:
        if isinstance(node, dict | list):
            for item in node.values() if isinstance(node, dict) else node:
                yield from primitives(item)
        else:
            yield node

    document = instance(imds, "instance?api-version=2021-02-01").json
    assert list(document) == ["compute", "network"]
    assert {type(value) for value in primitives(document)} == {str}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("instance/compute/location", "westeurope"),
        ("instance/compute/tagsList/0/name", "source"),
        ("instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress", "10.0.0.4"),
        ("instance/compute/userData", ""),
        ("instance/compute/osProfile/computerName", "vm-1"),
        ("instance/compute/storageProfile/imageReference/sku", "server"),
        ("instance/compute/storageProfile/osDisk/diskSizeGB", "30"),
        ("instance/compute/storageProfile/resourceDisk/size", "0"),
        ("instance", "compute/\nnetwork/"),
        ("instance/network/interface", "0/"),
    ],
)
def test_leaves_come_as_text(imds: ImdsEmulator, path: str, text: str) -> None:
    """A single value needs format=text, which also lists what hangs on a branch."""
    answer = instance(imds, f"{path}?api-version=2021-02-01&format=text")
    assert (answer.status, answer.body.decode(), answer.header("Content-Type")) == (
        200,
        text,
        "text/plain; charset=utf-8",
    )


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("instance/compute/location?api-version=2021-02-01", 400),
        ("instance/compute?api-version=2021-02-01&format=xml", 400),
        ("instance/compute?api-version=1999-01-01", 400),
        ("instance/compute?api-version=2021-02-01&api-version=2021-02-01", 400),
        ("instance/compute/nothing?api-version=2021-02-01", 404),
        ("instance/network/interface/1?api-version=2021-02-01", 404),
        ("instance/compute/location/more?api-version=2021-02-01", 404),
        ("instance/compute/storageProfile/dataDisks/0?api-version=2021-02-01", 404),
        ("instances?api-version=2021-02-01", 404),
        ("attested/document?api-version=2021-02-01", 404),
        ("scheduledevents?api-version=2020-07-01", 404),
    ],
)
def test_wrong_instance_requests(imds: ImdsEmulator, path: str, status: int) -> None:
    """Wrong routes are 404, wrong formats and versions 400, both in the shape of the instance category."""
    answer = instance(imds, path)
    assert answer.status == status
    assert isinstance(answer.json["error"], str)
    assert "error_description" not in answer.json
    assert status != 404 or answer.body == b'{ "error": "Not found" }'


@pytest.mark.parametrize("path", ["instance?api-version=2021-02-01", "versions"])
def test_instance_header_rules(imds: ImdsEmulator, path: str) -> None:
    """Without the header the instance category answers in its own shape, spaces included; forwarding is refused."""
    missing = exchange(imds.endpoint, f"/metadata/{path}", with_headers())
    assert missing.body == b'{ "error": "Bad request: . Required metadata header not specified" }'
    assert (
        exchange(imds.endpoint, f"/metadata/{path}", with_headers(Metadata="true", X_Forwarded_For="x")).status == 400
    )
    assert exchange(imds.endpoint, f"/metadata/{path}", method="POST").status == 405


@pytest.mark.parametrize("value", ["true", "True", "TRUE"])
@pytest.mark.parametrize("path", ["instance?api-version=2021-02-01", "versions"])
def test_instance_metadata_header(imds: ImdsEmulator, path: str, value: str) -> None:
    """The instance category takes "True", as Azure's Linux agent and OpenTelemetry's detectors send it."""
    assert exchange(imds.endpoint, f"/metadata/{path}", with_headers(Metadata=value)).status == 200
    assert exchange(imds.endpoint, f"/metadata/{path}", with_headers(Metadata="yes")).status == 400


def test_versions_and_tenant(imds: ImdsEmulator) -> None:
    """/metadata/versions needs no version; /metadata/identity/info tells the tenant and needs one."""
    versions = instance(imds, "versions").json["apiVersions"]
    assert versions == sorted(versions)
    assert {"2017-03-01", "2018-02-01", "2025-04-07"} <= set(versions)
    assert instance(imds, f"identity/info?{VERSION}").json == {"tenantId": imds.tenant_id}
    assert instance(imds, "identity/info").status == 400
    assert exchange(imds.endpoint, f"/metadata/identity/info?{VERSION}", method="POST").status == 405
    newest = instance(imds, "instance").json["newest-versions"]
    assert newest == versions[:-4:-1]


@pytest.mark.parametrize(
    ("profile", "mirid", "has_instance", "server"),
    [
        ("vm", "Microsoft.Compute/virtualMachines", True, "IMDS/150.870.65.1854"),
        ("vmss", "Microsoft.Compute/virtualMachineScaleSets", True, "IMDS/150.870.65.1854"),
        ("aks", "Microsoft.ManagedIdentity/userAssignedIdentities", True, "IMDS/150.870.65.1854"),
        ("aci", "Microsoft.ContainerInstance/containerGroups", False, None),
    ],
)
def test_profiles(profile: Any, mirid: str, has_instance: bool, server: str | None) -> None:
    """Each profile has a token at once, says in it what the machine is, and has the paths that such a machine has."""
    with ImdsEmulator(profile=profile) as imds:
        token = exchange(imds.endpoint)
        document = instance(imds, "instance?api-version=2021-02-01")
    claims = jwt.decode(token.json["access_token"], options={"verify_signature": False})
    assert claims["xms_mirid"].split("/providers/")[1].rpartition("/")[0] == mirid
    assert ("client_id" in token.json) == has_instance
    assert (document.status == 200) == has_instance
    assert token.header("Server") == server
    if profile in ("vmss", "aks"):
        assert document.json["compute"]["vmScaleSetName"] in claims.get("xms_az_rid", claims["xms_mirid"])
        assert document.json["compute"]["name"].startswith(document.json["compute"]["vmScaleSetName"])


HOST = b"Host: imds\r\n"
BAD_REQUESTS = {
    "no request line": (b"nonsense\r\n\r\n", 400),
    "HTTP/2": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a target that is no path": (b"GET metadata HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a proxy's CONNECT": (b"CONNECT imds:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a target with a space": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a header without colon": (b"GET / HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n", 400),
    "a header with a space before the colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X : x\r\n\r\n", 400),
    "a folded header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: x\r\n x\r\n\r\n", 400),
    "a line feed in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: x\nY: y\r\n\r\n", 400),
    "a zero byte in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: \0\r\n\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "two Hosts of HTTP/1.0": (b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n", 400),
    "a length that is no number": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n", 400),
    "a negative length": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    "a length with a sign": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n", 400),
    "two lengths": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n" * 2 + b"\r\n", 400),
    "a list of lengths": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0, 0\r\n\r\n", 400),
    "chunks": (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", 411),
    "a long body": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 65537\r\n\r\n", 413),
    "endless headers": (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 65600, 431),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(imds: ImdsEmulator, name: str) -> None:
    """What is no single plain request of HTTP/1.1 is refused, its connection ends, and other clients are answered."""
    data, status = BAD_REQUESTS[name]
    assert send(imds.endpoint, data).status == status
    assert exchange(imds.endpoint).status == 200
    assert imds.assert_requests(1)


def test_longest_body(imds: ImdsEmulator) -> None:
    """A body of 64 KiB is read and ignored."""
    head = f"GET {GOOD} HTTP/1.1\r\nHost: imds\r\nMetadata: true\r\nConnection: close\r\nContent-Length: 65536\r\n\r\n"
    assert send(imds.endpoint, head.encode() + b"x" * 65536).status == 200


@pytest.mark.parametrize("begun", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nx"])
def test_idle_connections_end(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """A connection that sends no whole request in time ends without an answer."""
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
    with ImdsEmulator() as imds:
        assert send(imds.endpoint, begun).data == b""


def test_slow_answers_are_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose answer takes longer than it may be idle is not ended."""
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
    with ImdsEmulator(latency=0.2) as imds:
        assert exchange(imds.endpoint).status == 200


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
def test_leading_slashes(imds: ImdsEmulator, slashes: str) -> None:
    """Before 1.26 msal4j adds a slash to AZURE_POD_IDENTITY_AUTHORITY_HOST, whose URL may end with one: same path."""
    assert exchange(imds.endpoint, slashes + GOOD.lstrip("/")).status == 200
    assert exchange(imds.endpoint, f"http://169.254.169.254{slashes}{GOOD.lstrip('/')}").status == 200
    assert {request.path for request in imds.requests} == {PATH}


def test_kept_connections(imds: ImdsEmulator) -> None:
    """Requests that come together on one connection are answered one after the other; a body of a POST is skipped."""
    request = f"GET {GOOD} HTTP/1.1\r\nHost: imds\r\nMetadata: true\r\n\r\n"
    post = "POST /metadata/versions HTTP/1.1\r\nHost: imds\r\nMetadata: true\r\nContent-Length: 3\r\n\r\nabc"
    last = "GET /metadata/versions HTTP/1.0\r\nMetadata: true\r\n\r\n"
    answers = send(imds.endpoint, (request + post + request + last).encode()).data
    assert [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]] == [200, 405, 200, 200]
