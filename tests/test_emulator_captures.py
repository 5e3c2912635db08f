"""The emulator beside the captures of real hosts: what it produces, and every difference with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from raw_http import Raw, exchange

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, faults

CAPTURES = Path(__file__).parent / "captures"

NEWER_BUILD = "the emulator stands for build 1854 (2026); builds before 1253 (2024-05) sent no such header"
LOG_WAS_CUT = "the public log ends before this header"
ONE_HEADER_KNOWN = "the sources show no other header than the content type"
OWN_TOKEN = "a token of the emulator's own tenant, with another length"


@dataclass(frozen=True)
class Case:
    """How the emulator is brought to give the answer of a capture.

    `differs` names the aspects in which it must differ (an aspect that no longer does is an error too), each with its
    reason. `wire_order`: the capture shows headers in the order of the wire; logs of SDKs sort them.
    """

    emulator: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    fault: faults.Fault | None = None
    issued_before: int | None = None  # seconds between the issue of the token and the answer
    wire_order: bool = False
    differs: Mapping[str, str] = field(default_factory=dict)


TWO = {"identities": [UserAssigned("a"), UserAssigned("b")]}
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01"

CASES = {
    "aci-200-docs-2018-10": Case(
        {"profile": "aci", "token_lifetime": 28800},
        issued_before=0,
        differs={
            "member resource": "2018 added a trailing slash; the capture of 2026 that the protocol notes cite did not"
        },
    ),
    "aci-err-multiple-identities-2026-08-11": Case(
        {"profile": "aci", **TWO},
        differs={"extra header date": ONE_HEADER_KNOWN, "extra header content-length": ONE_HEADER_KNOWN},
    ),
    "docker-desktop-403-unreachable-network": Case(fault=faults.docker_desktop_403(), target=TOKEN, wire_order=True),
    "identity-404-root-2018-09": Case(),
    "instance-200-headers-2026-02-07": Case(wire_order=True),
    "instance-400-missing-api-version-docs-2025": Case(),
    "instance-400-missing-metadata-header": Case(),
    "instance-err-invalid-version-2019-10": Case(
        differs={"body": "2019; the documentation of 2025 gives unknown versions the answer of missing ones"}
    ),
    "nmi-404-no-assigned-identity-2021-12": Case(
        fault=faults.nmi_no_identity("external-dns/external-dns-79784f8fc5-vh8ph"), target=TOKEN
    ),
    "vm-200-azcli-2020-11-12": Case(issued_before=13),
    "vm-200-cognitiveservices-2025-02-05": Case(
        target=f"{TOKEN}&resource=https%3A%2F%2Fcognitiveservices.azure.com", issued_before=338
    ),
    "vm-200-headers-2024-05-02": Case(target=f"{TOKEN}&resource=https%3A%2F%2Fvault.azure.net"),
    "vm-200-keyvault-2024-03-07": Case(
        issued_before=82,
        wire_order=True,
        differs={"extra header x-ms-request-id": NEWER_BUILD, "content-length": OWN_TOKEN},
    ),
    "vm-400-headers-2023-07-19": Case(
        {"identities": []},
        target=f"{TOKEN}&resource=https%3A%2F%2Fvault.azure.net",
        differs={"extra header content-length": LOG_WAS_CUT, "extra header x-ms-request-id": NEWER_BUILD},
    ),
    "vm-400-identity-not-found-2022-10-15": Case(
        {"identities": []},
        target=f"{TOKEN}&resource=https%3A%2F%2Fvault.azure.net",
        differs={"extra header x-ms-request-id": NEWER_BUILD},
    ),
    "vm-400-invalid-resource-aadsts500011-2022-11-10": Case(target=f"{TOKEN}&resource=user.read"),
    "vm-400-missing-metadata-header-2020-09-21": Case(differs={"extra header x-ms-request-id": NEWER_BUILD}),
    "vm-400-missing-resource": Case(target=TOKEN),
    "vm-400-multiple-identities-2021-07-30": Case(
        TWO,
        target=f"{TOKEN}&resource=https%3A%2F%2Fvault.azure.net",
        wire_order=True,
        differs={"extra header x-ms-request-id": NEWER_BUILD},
    ),
    # The emulator has no v2 paths, so its v1 token endpoint is asked: with a variable that is unknown there.
    "vm-400-v2-unsupported-query-variables-2025-10-29": Case(
        target=f"{TOKEN}&resource=https%3A%2F%2Fvault.azure.net&claims=x"
    ),
    "vm-429-throttled-2024-06-05": Case(
        fault=faults.throttled(), target=f"{TOKEN}&resource=https%3A%2F%2Fvault.azure.net"
    ),
}


def capture(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((CAPTURES / f"{name}.json").read_text())
    return document


def produced(case: Case, recorded: dict[str, Any]) -> Raw:
    """What the emulator answers at the moment of the capture."""
    times = [0.0]
    answered_on = moment(recorded)
    with ImdsEmulator(clock=lambda: times[0], **case.emulator) as imds:
        if case.fault is not None:
            imds.script(case.fault)
        request = recorded.get("request", {"target": case.target, "headers": {"Metadata": "true"}})
        headers = {"Host": "169.254.169.254", **request["headers"], "Connection": "close"}
        if "Metadata" in headers:
            headers["Metadata"] = "true"  # some logs say REDACTED
        target = case.target or request["target"].replace("REDACTED", "https://vault.azure.net")
        if case.issued_before is not None:
            times[0] = answered_on - case.issued_before
            exchange(imds.endpoint, target, headers)
        times[0] = answered_on
        return exchange(imds.endpoint, target, headers)


def moment(recorded: dict[str, Any]) -> float:
    """Epoch seconds of the answer: its Date, else what the numbers of the token or the words of Entra say."""
    named = {name.lower(): value for name, value in (recorded.get("headers") or {}).items()}
    body = recorded.get("body") or {}
    if "date" in named:
        return parsedate_to_datetime(named["date"]).timestamp()
    if "expires_on" in body:
        return float(body["expires_on"]) - float(body["expires_in"]) - 1
    if "timestamp" in body:
        return parsedate_to_datetime("Thu, 10 Nov 2022 23:12:37 GMT").timestamp()
    return 1_700_000_000.0


def differences(recorded: dict[str, Any], answer: Raw, *, wire_order: bool) -> Iterator[str]:
    """The aspects in which an answer is not what was recorded. What the capture does not show is no aspect."""
    if recorded["status"] not in (None, answer.status):
        yield "status"
    if recorded.get("reason") not in (None, "", answer.reason):
        yield "reason"
    if recorded["headers"] is not None:
        yield from header_differences(recorded, answer, wire_order=wire_order)
    yield from body_differences(recorded, answer)


def header_differences(recorded: dict[str, Any], answer: Raw, *, wire_order: bool) -> Iterator[str]:
    before, now = list(recorded["headers"]), [name for name, _ in answer.headers]
    if not wire_order:
        before, now = [name.lower() for name in before], [name.lower() for name in now]
    yield from (f"extra header {name.lower()}" for name in now if name not in before)
    yield from (f"missing header {name.lower()}" for name in before if name not in now)
    if wire_order and before != [name for name in now if name in before]:
        yield "header order"
    for name, value in recorded["headers"].items():
        ours = answer.header(name) or ""
        if name.lower() in ("content-type", "connection", "date") and ours != value:
            yield name.lower()
        if name.lower() == "server" and ours.rpartition(".")[0] != value.rpartition(".")[0]:
            yield "server"
        if name.lower() == "content-length" and "body" in recorded and recorded["body"] and ours != value:
            yield "content-length"
        if name.lower() == "x-ms-request-id" and not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ours):
            yield "x-ms-request-id"


def body_differences(recorded: dict[str, Any], answer: Raw) -> Iterator[str]:
    body, text = recorded.get("body"), recorded.get("body_text")
    if body is not None and "access_token" in body:
        ours = answer.json
        if list(ours) != list(body):
            yield "member order"
        if answer.body != json.dumps(ours, separators=(",", ":")).encode():
            yield "spaces"
        own = ("access_token", "client_id")
        for name in body:
            if type(ours[name]) is not type(body[name]) or (name not in own and ours[name] != body[name]):
                yield f"member {name}"
    elif text is not None:
        if masked(text) != masked(answer.body.decode()):
            yield "body"
    elif body is not None and list(body.items()) != list(answer.json.items()):
        yield "body"


def masked(text: str) -> str:
    """Without what must be new each time (ids) or is the emulator's own (the name of its tenant)."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<guid>", text)
    return re.sub(r"in the tenant named \w+\.", "in the tenant named <name>.", text)


@pytest.mark.parametrize("name", CASES)
def test_answers_as_recorded(name: str) -> None:
    """The emulator's answer differs from a recorded one in nothing but what the table lists with a reason."""
    recorded = capture(name)
    answer = produced(CASES[name], recorded)
    assert sorted(differences(recorded, answer, wire_order=CASES[name].wire_order)) == sorted(CASES[name].differs)


def test_docker_desktop() -> None:
    """Docker Desktop's 403 comes as HTTP/1.0 with the message in place of the reason phrase, as captured."""
    answer = produced(
        CASES["docker-desktop-403-unreachable-network"], capture("docker-desktop-403-unreachable-network")
    )
    assert answer.status_line.startswith("HTTP/1.0 403 connecting to 169.254.169.254:80: ")


CLAIMS = {
    "jwt-claims-vm-sami-2025-12-05": (SystemAssigned(), {"aud"}),  # the published excerpt leaves that line out
    "jwt-claims-vm-uami-2024-08-06": (UserAssigned("app"), set()),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_token_claims(name: str) -> None:
    """The claims of a token are those of a captured one in name, order, type and relation to each other."""
    identity, not_shown = CLAIMS[name]
    theirs = capture(name)["payload"]
    issued_on = theirs["iat"] + 300
    with ImdsEmulator([identity], clock=lambda: issued_on) as imds:
        ours = jwt.decode(exchange(imds.endpoint).json["access_token"], options={"verify_signature": False})
    assert [claim for claim in ours if claim not in not_shown] == list(theirs)
    for claim, value in theirs.items():
        assert type(ours[claim]) is type(value), claim
    for claim in ("iat", "nbf", "exp", "appidacr", "idtyp", "ver", "xms_idrel"):
        assert ours[claim] == theirs[claim], claim
    assert ours["iss"] == ours["idp"] == f"https://sts.windows.net/{ours['tid']}/"
    assert ours["sub"] == ours["oid"] == identity.object_id
    assert ours["appid"] == identity.client_id
    kind = theirs["xms_mirid"].split("/providers/")[1].rsplit("/", 1)[0]
    assert ours["xms_mirid"].split("/providers/")[1].rsplit("/", 1)[0] == kind


def test_token_header() -> None:
    """The header of a token has the members of the captured one, in its order, and names a key once more as x5t."""
    theirs = capture("jwt-claims-vm-uami-2024-08-06")["header"]
    with ImdsEmulator() as imds:
        ours = jwt.get_unverified_header(exchange(imds.endpoint).json["access_token"])
    assert list(ours) == list(theirs)
    assert ours["x5t"] == ours["kid"]
    assert len(ours["kid"]) == len(theirs["kid"])


def test_every_capture_is_in_a_table() -> None:
    """Every capture is in a table of these tests."""
    assert {path.stem for path in CAPTURES.glob("*.json")} == {*CASES, *CLAIMS}
