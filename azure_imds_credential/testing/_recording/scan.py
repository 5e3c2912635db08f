"""Finds what should not have been recorded: live-looking tokens, bearer headers, secret values, connection strings."""

from __future__ import annotations

import base64
import codecs
import gzip
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .fakes import SCRUBBED, TOKEN, is_dummy_token, looks_signed
from .scrub import SECRET_MEMBERS, SECRET_PAIR, STORAGE_KEY, TOKEN_MEMBERS, is_secret_value, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# A scheme with what may be a credential (the b64token of RFC 6750). A challenge goes on with name="..." instead.
_BEARER = re.compile(
    r"\b(?:Bearer|Basic|PoP|SharedKey(?:Lite)?)\s+(?!\w+=\\?[\"'])(?P<value>[\w.~+/:-]{20,}=*)", re.IGNORECASE
)
_PRIVATE_KEY = re.compile(r"(?P<value>-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----)")
_PATTERNS = (
    ("bearer header", _BEARER),
    ("connection string", SECRET_PAIR),
    ("connection string", STORAGE_KEY),
    ("private key", _PRIVATE_KEY),
)
_CREDENTIAL_HEADERS = frozenset(
    {"api-key", "authorization", "cookie", "proxy-authorization", "set-cookie", "x-ms-authorization-auxiliary"}
)
_SHORTEST_SECRET = 8  # characters of a value after "Password=" and the like; shorter ones are "..." and "<key>"
_PLACEHOLDERS = (SCRUBBED, "redacted", "sanitized", "removed", "dummy", "*")
_BASE64 = re.compile(r"[\w+/=\s-]{40,}", re.ASCII)  # a whole file of it, in either alphabet of RFC 4648
_FROM_URL_SAFE = str.maketrans("-_", "+/")
# What archives and the like hold, or what stands for bytes that are no text: what is hidden there is not known.
_UNREADABLE = re.compile("[\0\N{REPLACEMENT CHARACTER}]")
_SUFFIXES = frozenset({".har", ".json", ".yaml", ".yml"})  # read as documents too; all else as text only


@dataclass(frozen=True)
class Finding:
    """Something in a recording that looks live.

    Attributes:
        path: The file.
        where: The line, or the place in the document if it cannot be seen in the text.
        what: "token", "bearer header", "secret value", "connection string", "private key" or "unreadable".
        excerpt: How it begins, and how long it is; never the whole.
    """

    path: Path
    where: str
    what: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.path}:{self.where}: {self.what} {self.excerpt}"


def scan_recordings(paths: Iterable[str | os.PathLike[str]]) -> list[Finding]:
    """What looks live in recordings; nothing found is an empty list.

    Looks into YAML (vcrpy), JSON and HAR, compressed ones too, into JSON inside them and into compressed or base64
    bodies; other files are read as text, decoded if the whole file is base64 (URL-safe or not), and what is no text is
    a finding. The tokens that `imds_vcr` leaves behind are dummies, known by a signature that no key makes.

    Args:
        paths: Files, and folders with all that is below them.

    Raises:
        FileNotFoundError: A path does not exist, or is an empty folder: a scan of nothing must not pass.
    """
    findings: list[Finding] = []
    for file in _files(paths):
        text = _unpacked(file.read_bytes())
        if _UNREADABLE.search(text):
            findings.append(Finding(file, "file", "unreadable", "as text: take it away, or unpack it"))
        findings += scan_text(text, file)
    return findings


def scan_text(text: str, path: Path) -> list[Finding]:
    """What looks live in the text of one recording, which need not have been written yet."""
    found: dict[tuple[str, str], Finding] = {}

    def note(where: str, hits: Iterable[tuple[str, str]]) -> None:
        for what, value in hits:
            found.setdefault((what, value), Finding(path, where, what, f"{value[:6]}... ({len(value)} characters)"))

    for number, line in enumerate(text.splitlines(), start=1):
        note(str(number), _in_text(line))
    if _BASE64.fullmatch(text):
        for where, hit in _in_document(_from_base64(text), "base64"):
            note(where, [hit])
    if _SUFFIXES.intersection(suffix.lower() for suffix in path.suffixes):  # also a.yaml.gz
        for where, hit in _in_document(_parsed(text), "document"):
            note(where, [hit])
    return list(found.values())


def _files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"nothing to scan at {os.fspath(path)}")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"nothing to scan in {os.fspath(path)}")
        yield from files


def _parsed(text: str) -> Any:
    """JSON is YAML, but for tabs; a document that cannot be read has been scanned as text."""
    try:
        return read_json(text) or list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return None


def _in_text(text: str) -> Iterator[tuple[str, str]]:
    for token in TOKEN.findall(text):
        if looks_signed(token) and not is_dummy_token(token):
            yield "token", token
    for what, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if len(match["value"]) >= _SHORTEST_SECRET and not _is_fake(match["value"]):
                yield what, match["value"]


def _in_document(content: Any, where: str) -> Iterator[tuple[str, tuple[str, str]]]:
    if isinstance(content, dict):
        if is_secret_value(content) and "/secrets/" in str(content.get("id")) and not _is_fake(content["value"]):
            yield where, ("secret value", content["value"])
        if isinstance(content.get("name"), str) and "value" in content:  # how HAR writes a header
            yield from _in_member(content["name"].lower(), content["value"], where)
        if content.get("encoding") == "base64":  # how HAR writes a body that is no text
            yield from _in_document(_from_base64(str(content.get("text"))), f"{where}.text")
        for name, value in content.items():
            yield from _in_member(str(name).lower(), value, f"{where}.{name}")
    elif isinstance(content, list):
        for index, item in enumerate(content):
            yield from _in_document(item, f"{where}[{index}]")
    elif isinstance(content, bytes):
        yield from _in_document(_unpacked(content), where)
    elif isinstance(content, str):
        yield from ((where, hit) for hit in _in_text(content))
        yield from _in_body(read_json(content), where)


def _in_member(name: str, value: Any, where: str) -> Iterator[tuple[str, tuple[str, str]]]:
    if name in TOKEN_MEMBERS | SECRET_MEMBERS and isinstance(value, str) and value:
        if not _is_fake(value):
            yield where, ("token" if name in TOKEN_MEMBERS else "secret value", value)
    elif name in _CREDENTIAL_HEADERS:
        for header in value if isinstance(value, list) else [value]:
            if header and not _is_fake(str(header).rpartition(" ")[2]):
                yield where, ("bearer header", str(header))
    elif name == "base64_string" and isinstance(value, str):  # vcrpy's name for a body that is no text
        yield from _in_document(_from_base64(value), where)
    else:
        yield from _in_document(value, where)


def _in_body(document: Any, where: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """A JSON body inside a recording. What has a value at its top is a secret that is read or written."""
    if is_secret_value(document) and not _is_fake(document["value"]):
        yield where, ("secret value", document["value"])
    if document is not None:
        yield from _in_document(document, where)


def _is_fake(value: str) -> bool:
    return is_dummy_token(value) or value.lower().startswith(_PLACEHOLDERS)


def _unpacked(body: bytes) -> str:
    for unpack in (gzip.decompress, zlib.decompress):
        try:
            return unpack(body).decode(errors="replace")
        except (OSError, EOFError, zlib.error):
            continue
    # What a shell of Windows writes into a file begins with a byte order mark.
    encoding = "utf-16" if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return body.decode(encoding, errors="replace")


def _from_base64(text: str) -> bytes:
    """Of either alphabet, padded or not. Padding ends a piece, and more may follow."""
    pieces = re.sub("[^A-Za-z0-9+/=]", "", text.translate(_FROM_URL_SAFE)).split("=")
    # One character too many is less than a byte: something was cut off. More padding than is needed does no harm.
    whole = [piece[:-1] if len(piece) % 4 == 1 else piece for piece in pieces]
    return b"\n".join(base64.b64decode(f"{piece}==") for piece in whole if piece)
