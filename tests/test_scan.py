"""What a scan of recordings finds, and what it leaves alone."""

from __future__ import annotations

import base64
import bz2
import codecs
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import requests
import vcr  # type: ignore[import-untyped] # vcrpy ships no types
import yaml
from scan_corpus import NEGATIVES, POSITIVES, megabytes

from azure_imds_credential.testing import Finding, ImdsEmulator, scan_recordings
from azure_imds_credential.testing._recording.fakes import dummy_token, fake_text

RECORDINGS = Path(__file__).parent.parent / "recordings"


def jwt(signature: bytes = b"\x01" * 256, **claims: Any) -> str:
    """A token with the shape of a live one; made here, so that none lies in the repository."""
    parts = (json.dumps({"typ": "JWT", "alg": "RS256"}).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


LIVE = jwt(aud="https://vault.azure.net", exp=1)
STORAGE_KEY = base64.b64encode(b"\x02" * 64).decode()
# What base64 pads, and begins with what the two alphabets write otherwise; nothing at its end is part of the token.
PADDED = b"\xfb\xff?" + LIVE.encode() + b" and so on" + b"." * (-len(LIVE) % 3)
DUMMY = dummy_token({"aud": "https://vault.azure.net", "exp": 1})


def body(text: str | bytes) -> str:
    """A recording with this body, as vcrpy writes it."""
    answer = {"body": {"string": text}, "headers": {}, "status": {"code": 200, "message": "OK"}}
    request: dict[str, Any] = {
        "body": None,
        "headers": {},
        "method": "GET",
        "uri": "https://demo.vault.azure.net/secrets/a",
    }
    return yaml.dump({"interactions": [{"request": request, "response": answer}], "version": 1})


def header(name: str, value: str) -> str:
    return yaml.dump({"interactions": [{"request": {"headers": {name: [value]}}}]})


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("token", "a.yaml", body(json.dumps({"access_token": LIVE}))),
        ("token", "a.yaml", body(json.dumps({"access_token": "opaque"}))),
        ("token", "a.yaml", body(json.dumps({"refresh_token": "opaque"}))),
        ("token", "a.yaml", body(gzip.compress(json.dumps({"access_token": LIVE}).encode(), mtime=0))),
        ("token", "a.yaml", body(f"said {LIVE} and no more".encode())),
        ("token", "a.yaml", body(json.dumps({"inner": json.dumps({"id_token": LIVE})}))),
        ("token", "a.yaml", f"# a comment: {LIVE}\ninteractions: []"),
        ("token", "a.json", json.dumps({"response": {"base64_string": base64.b64encode(LIVE.encode()).decode()}})),
        ("token", "a.har", json.dumps({"log": {"entries": [{"response": {"content": {"text": LIVE}}}]}})),
        (
            "token",
            "a.har",
            json.dumps({"content": {"encoding": "base64", "text": base64.b64encode(LIVE.encode()).decode()}}),
        ),
        ("bearer header", "a.har", json.dumps({"headers": [{"name": "Cookie", "value": "session=1"}]})),
        ("token", "a.txt", f"pasted from a log: {LIVE}"),
        ("token", "a.txt", f"encrypted: {jwt()}.{'A' * 20}.{'B' * 20}"),
        ("bearer header", "a.yaml", header("Authorization", f"Bearer {LIVE}")),
        ("bearer header", "a.yaml", header("authorization", "Bearer short")),
        ("bearer header", "a.yaml", header("Cookie", "session=1")),
        ("bearer header", "a.txt", "authorization: bearer " + "opaque-but-long-enough"),
        ("bearer header", "a.txt", "Authorization: SharedKey account:" + STORAGE_KEY),
        ("secret value", "a.yaml", body(json.dumps({"value": "hunter2", "id": "https://v/secrets/a/1"}))),
        ("secret value", "a.yaml", body(json.dumps({"value": "hunter2"}))),
        ("secret value", "a.json", json.dumps({"ResponseBody": {"value": "x", "id": "https://v/secrets/a/1"}})),
        ("secret value", "a.yaml", body(json.dumps({"properties": {"clientSecret": "hunter2"}}))),
        ("secret value", "a.yaml", "command: [app, --db-password, Zq1f7x9w]"),
        ("secret value", "a.sh", "curl -s -u admin:Zq1f7x9w https://x"),
        ("secret value", "a.sh", "docker login -u reg -p Zq1f7x9w reg.example"),
        ("secret value", "a.sh", "mysql -uroot -pZq1f7x9w db"),
        ("secret value", "a.cmd", "net user adm Zq1f7x9w /add"),
        ("secret value", "a.ps1", "./a.ps1 -AdminPassword Zq1f7x9w"),
        ("secret value", "a.sql", "CREATE USER a IDENTIFIED BY 'Zq1f7x9w'"),
        ("secret value", "a.csv", "name,password\nbob,Zq1f7x9w\n"),
        ("connection string", "a.yaml", body(f"DefaultEndpointsProtocol=https;AccountKey={STORAGE_KEY}")),
        ("connection string", "a.yaml", body("Server=tcp:db;Password=hunter2-and-more;")),
        ("connection string", "a.txt", f"the key is {STORAGE_KEY}"),
        ("connection string", "a.txt", "https://a.blob.core.windows.net/c?sv=2024&sig=" + "abc%2F" * 8),
        ("private key", "a.txt", "-----BEGIN RSA " + "PRIVATE KEY-----"),
    ],
)
def test_what_looks_live_is_found(tmp_path: Path, what: str, name: str, text: str) -> None:
    """Each kind of leak is found wherever it sits: in text, in documents, in documents inside them, compressed."""
    (tmp_path / name).write_text(text)
    assert what in {finding.what for finding in scan_recordings([tmp_path / name])}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml.gz", gzip.compress(body(json.dumps({"access_token": "opaque"})).encode(), mtime=0)),
        ("a.txt", f"written by a shell of Windows: {LIVE}".encode("utf-16")),
        ("a.txt", base64.encodebytes(json.dumps({"access_token": "opaque and " + LIVE}).encode())),
        ("a.yaml", base64.b64encode(gzip.compress(LIVE.encode() * 9, mtime=0))),
        ("a.txt", base64.urlsafe_b64encode(PADDED)),
        ("a.txt", base64.urlsafe_b64encode(PADDED).rstrip(b"=") + b"\r\n"),
        ("a.txt", base64.b64encode(PADDED).rstrip(b"=")),
        ("a.txt", base64.b64encode(PADDED)[:-5]),
        ("a.txt", base64.encodebytes(b"harmless, and padded") + base64.b64encode(PADDED)),
        ("a.txt", codecs.BOM_UTF8 + base64.b64encode(PADDED)),
        ("a.yaml", base64.urlsafe_b64encode(gzip.compress(LIVE.encode() * 9, mtime=0)).rstrip(b"=")),
    ],
)
def test_files_that_are_no_plain_text(tmp_path: Path, name: str, content: bytes) -> None:
    """Compression and other encodings of a whole file hide nothing."""
    (tmp_path / name).write_bytes(content)
    assert {finding.what for finding in scan_recordings([tmp_path])} == {"token"}


@pytest.mark.parametrize(
    "text",
    [
        body(json.dumps({"access_token": DUMMY, "refresh_token": ""})),
        header("Authorization", f"Bearer {DUMMY}"),
        header("Authorization", "Bearer REDACTED"),
        header("WWW-Authenticate", 'Bearer authorization="https://login.windows.net/11111111", resource="https://v"'),
        header("WWW-Authenticate", 'Bearer authorization_uri="https://login.windows.net/11111111"'),
        body(json.dumps({"error": {"message": "AKV10000: Request is missing a Bearer or PoP token."}})),
        body(json.dumps({"value": "scrubbed value of greeting", "id": "https://v/secrets/greeting/1"})),
        body(json.dumps({"value": [{"id": "https://v/secrets/a"}]})),
        body('{"access_token":"eyJ0..REDACTED"}').replace("access_token", "shortened"),
        "AccountKey=<key>;SharedAccessKey=...;Password=scrubbed",
        "not: [closed",
        f"a@^1:\n  version 1.0.0\n  integrity sha512-{STORAGE_KEY}\n",
        "Use --password <PASSWORD>, -Password $cred, or --token $TOKEN.",
        "curl -u $ME:$SECRET https://x\ncurl -u user:password https://x",
        "mysql -u root -p db\nnet user adm <password> /add",
        "docker run -p 8080:80 x\ndocker login -u x -p ${{ secrets.P }} reg\necho $P | docker login --password-stdin",
        "name,password\nbob,\nann,<password>\n",
        "command: [app, --name, Zq1f7x9w, --password, --verbose]",
        base64.encodebytes(json.dumps({"access_token": DUMMY}).encode()).decode(),
        base64.urlsafe_b64encode(b"\xfb\xff?" + json.dumps({"access_token": DUMMY}).encode()).decode().rstrip("="),
        base64.encodebytes(bytes(range(256))).decode(),
        "some words that look like base64 and are none " * 9,
        "some-words that_look like base64 of the other alphabet and are none " * 9,
        "",
    ],
)
def test_what_is_harmless_is_left_alone(tmp_path: Path, text: str) -> None:
    """Dummies, challenges, error texts, lists and placeholders are no findings."""
    (tmp_path / "a.yaml").write_text(text)
    assert scan_recordings([tmp_path]) == []


def test_a_dummy_is_known_by_its_signature_alone(tmp_path: Path) -> None:
    """The claims of a dummy with any other signature are a finding: only the signature makes a token worthless."""
    head, claims, _ = DUMMY.split(".")
    (tmp_path / "a.yaml").write_text(body(f"{head}.{claims}.{LIVE.rpartition('.')[2]}"))
    assert [finding.what for finding in scan_recordings([tmp_path])] == ["token"]


def test_fakes_that_decode_to_a_text(tmp_path: Path) -> None:
    """What a fake of a base64 value decodes to is spelled by chance, and is no finding."""
    real = base64.b64encode(b"plainone1").decode()
    fakes = sorted({fake_text(real, str(seed)) for seed in range(3000)})
    assert any(is_text(base64.b64decode(fake)) for fake in fakes), "else this test would prove nothing"
    names = {f"token-{number}": fake for number, fake in enumerate(fakes)}
    document = {"kind": "Secret", "type": "bootstrap.kubernetes.io/token", "data": names}
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert scan_recordings([tmp_path]) == []


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_finding_says_where_and_never_what(tmp_path: Path) -> None:
    """A finding names file and line and shows a few characters, since it ends up in a public log."""
    (tmp_path / "a.txt").write_text(f"first line\nsecond {LIVE}\n")
    [finding] = scan_recordings([str(tmp_path / "a.txt")])
    assert finding == Finding(tmp_path / "a.txt", "2", "token", f"{LIVE[:6]}... ({len(LIVE)} characters)")
    assert str(finding).startswith(f"{tmp_path / 'a.txt'}:2: token eyJ")


def test_a_place_that_no_line_shows_is_named_by_its_path_in_the_document(tmp_path: Path) -> None:
    """What only decompression brings to light has no line; the finding names the member."""
    (tmp_path / "a.yaml").write_text(body(gzip.compress(LIVE.encode(), mtime=0)))
    [finding] = scan_recordings([tmp_path])
    assert finding.where.endswith("interactions[0].response.body.string")


def test_a_folder_is_scanned_to_the_bottom(tmp_path: Path) -> None:
    """Folders are walked; several paths are one scan."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep.yaml").write_text(body(LIVE))
    (tmp_path / "top.txt").write_text(LIVE)
    found = scan_recordings([tmp_path / "a", tmp_path / "top.txt"])
    assert [finding.path.name for finding in found] == ["deep.yaml", "top.txt"]


@pytest.mark.parametrize("name", ["a.txt", "a.yaml"])
@pytest.mark.parametrize(
    "content", [bz2.compress(LIVE.encode()), b"\xfe\xed" * 50, LIVE.encode("utf-16-le"), b"caf\xe9"]
)
def test_what_is_no_text_does_not_pass(tmp_path: Path, name: str, content: bytes) -> None:
    """Bytes that are not UTF-8, nor UTF-16 that says so, may mean anything: they are a finding, whatever they are."""
    (tmp_path / name).write_bytes(content)
    assert "unreadable" in [each.what for each in scan_recordings([tmp_path])]


@pytest.mark.parametrize("name", ["tokens.zip", "tokens.yaml"])
def test_what_cannot_be_read_does_not_pass(tmp_path: Path, name: str) -> None:
    """An archive may hold anything: it is a finding, whatever it is called."""
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("token", LIVE * 10)
    assert [(each.path.name, each.what) for each in scan_recordings([tmp_path])] == [(name, "unreadable")]


def test_a_scan_of_nothing_does_not_pass(tmp_path: Path) -> None:
    """A path that does not exist, or holds no file, is an error: a misspelt folder would otherwise be clean."""
    with pytest.raises(FileNotFoundError, match="misspelt"):
        scan_recordings([tmp_path / "misspelt"])
    with pytest.raises(FileNotFoundError, match="nothing to scan in"):
        scan_recordings([tmp_path])


def test_what_vcrpy_records_by_itself_is_found(tmp_path: Path) -> None:
    """A recording made without `imds_vcr` holds the token, and the scan says so."""
    with ImdsEmulator() as imds, vcr.VCR().use_cassette(str(tmp_path / "plain.yaml")):
        answer = requests.get(
            f"{imds.endpoint}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net",
            headers={"Metadata": "true", "Authorization": "Bearer something"},
            timeout=10,
        )
    assert answer.status_code == 200
    assert {finding.what for finding in scan_recordings([tmp_path])} == {"token", "bearer header"}


def test_this_projects_recordings_hold_nothing_live() -> None:
    """The scan over `recordings/` finds nothing, in the files as they are in the repository."""
    assert len(list(RECORDINGS.glob("*.yaml"))) >= 7
    assert scan_recordings([RECORDINGS]) == []


@pytest.mark.parametrize(("name", "content"), POSITIVES, ids=map(str, range(len(POSITIVES))))
def test_a_secret_is_found(tmp_path: Path, name: str, content: str | bytes) -> None:
    """Each file of the corpus that holds a secret has a finding."""
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert scan_recordings([tmp_path / name]) != []


@pytest.mark.parametrize(("name", "content"), NEGATIVES, ids=map(str, range(len(NEGATIVES))))
def test_a_harmless_file_passes(tmp_path: Path, name: str, content: str | bytes) -> None:
    """No file of the corpus without a secret has a finding."""
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert scan_recordings([tmp_path / name]) == []


@pytest.mark.parametrize("name", ["big.yaml", "mixed.yaml", "big.log"])
def test_large_harmless_files_pass(tmp_path: Path, name: str) -> None:
    """The files by which the scan's time is measured hold no secret, and have no finding."""
    (tmp_path / name).write_text(megabytes()[name])
    assert scan_recordings([tmp_path]) == []


def test_the_corpus_is_large() -> None:
    """Precision and recall are measured on 150 files each at least, no two of them alike."""
    assert min(len(set(POSITIVES)), len(set(NEGATIVES))) >= 150
