"""Finds what should not have been recorded, or committed: live-looking tokens, keys, passwords and connection strings.

Names and forms are judged by the rules by which `imds_vcr` scrubs. Placeholders, prose, and code that reads a variable
are left alone. Files are read by what is in them, not by what they are called.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from .bodies import as_text, unpacked
from .fakes import TOKEN, is_dummy_token, is_fake, looks_signed
from .names import (
    NameKind,
    is_container,
    kind_of,
    kind_of_header,
    kind_of_pair,
    option_name,
    says_nothing,
    words_of,
)
from .scrub import Scrubber, from_text_base64, whole_secret
from .shapes import (
    PASSWORD_LINES,
    PASSWORD_LIST,
    PRIVATE_KEY,
    PUBLISHED,
    RECOVERY_KEY,
    RUN,
    STORAGE_KEY,
    USER_AND_PASSWORD,
    USER_INFO,
    VAULT_VERSION,
    bearers,
    commands,
    could_be_key,
    given_in,
    is_harmless,
    is_placeholder,
    is_random,
    is_word,
    known_forms,
)
from .structure import Place, attributes_of, events, from_base64, json_or_none, rewrite_csv

_CREDENTIAL_HEADERS = frozenset(
    {"api-key", "authorization", "cookie", "proxy-authorization", "set-cookie", "x-ms-authorization-auxiliary"}
)
# An ID in Azure whose parts are words, or too short for a secret. Recordings are full of them.
_RESOURCE_ID = re.compile(r"/subscriptions/[0-9a-fA-F-]{36}(?:/(?:[A-Za-z.]{1,60}|[\w.-]{1,15}))*")
# Names and places by which alone some values are secrets.
_TELLING_PLACES = frozenset({"headers", "chpasswd", "body"})
# Where a value stands: a place that is written as it is, or a member of another place.
_Where = Any
_BASE64_FILE = re.compile(r"[\w+/=\s-]{40,}", re.ASCII)  # a whole file of it, in either alphabet of RFC 4648
# Stands for bytes that are no text: what is hidden there is not known.
_UNREADABLE = re.compile("[\0\N{REPLACEMENT CHARACTER}]")
# A line without one of these before a sign has no name that makes its value a secret.
# Both are for text in lower case, which is searched several times faster than text in any case.
_WORDS = (
    r"(?:p(?:ass|wd|at|fx)|s(?:ecret|ig|as)|token|k(?:ey|ube)|c(?:red|ode|onn|ookie|ert)"
    r"|a(?:uth|ssert|rt-api)|otp|bearer)"
)
_TELLING = re.compile(rf"{_WORDS}[\w.$-]{{0,40}}(?: \w{{1,20}}){{0,2}}[\"'`\\\])]{{0,4}}[ \t]{{0,8}}[:=,>]")
_TELLING_ARGUMENT = re.compile(rf"(?<!\S)--?[a-z-]{{0,40}}?{_WORDS}|\blogin\s")
# Tags that say in an attribute what their value is, and keys of a property list.
_TELLING_TAG = re.compile(
    rf"<[a-z][^<>]{{0,400}}?\b(?:name|key)\s*=\s*[\"']?[\w.$:-]{{0,40}}?{_WORDS}|<key>[^<>]{{0,40}}{_WORDS}"
)
_TAG = re.compile(
    r"<[A-Za-z][\w.:-]*\s(?P<attributes>[^<>]*\b(?:[Nn]ame|NAME|[Kk]ey|KEY)\s*=(?:[^<>\"']|\"[^\"]*\"|'[^']*')*)>"
    r"(?P<text>[^<>\n]{4,4096}(?=</))?"
)
_LISTED = re.compile(r"<key>(?P<name>[^<>]{1,80})</key>\s*<string>(?P<value>[^<>]{4,4096})</string>")
_HEADER_ARGUMENT = re.compile(
    r"(?:-H|--header)[ =]*(?P<q>\\*[\"'])(?P<name>[\w-]{1,80})\s*:\s*(?P<value>[^\"'\s\\]+)(?P=q)"
)
_QUOTED = re.compile(
    r"(?P<q>\\*[\"'`])(?P<name>[\w .:$@/-]{1,80})(?P=q)\s*(?::|=>|=|,)\s*(?P<p>\\*[\"'`])(?P<value>[^\n]*?)(?P=p)"
)
_ASSIGNED = re.compile(
    r"(?P<name>[A-Za-z_$][\w.$-]*(?: [A-Za-z]\w*){0,2}?)(?P<type>\s*:\s*[A-Za-z][\w.\[\], |]*?)?"
    r"(?P<sign>[ \t]*(?::=|=>|={1,3}|:)[ \t]*)"
    r"(?:(?P<p>\\*[rbfuRBFU]?[\"'`])(?P<quoted>[^\n]*?)(?P<e>\\*[\"'`])|\{(?P<braced>[^{}\n]*)\}|(?P<value>[^\s\"'`<>]+))"
)
_ARGUMENT = re.compile(r"(?<!\S)--?(?P<name>[A-Za-z][\w-]*)[ \t]+(?P<p>[\"']?)(?P<value>[^\s\"'`]+)(?P=p)")
_NETRC = re.compile(r"\blogin\s+\S+\s+password\s+(?P<value>\S+)")
_XML_ELEMENT = re.compile(r"<(?P<name>[\w.:-]+)(?:\s[^<>]*)?>(?P<value>[^<>\n]{4,4096})</(?P=name)>")
# What a program says instead of a value: a variable, a call, a member, an index, an operator.
_CODE = re.compile(
    r"[\[({!&*+?|.-].*|(?:await|new|not|lambda|typeof|return|self|this|cls|None|null|nullptr|os|process|env|config|settings)\b.*"
    r"|[A-Za-z_$][\w$]*(?:(?:\.|::|->|\?\.)[A-Za-z_]\w*)*\(.*|[A-Za-z_$][\w$]*(?:(?:\.|::|->|\?\.)[A-Za-z_]\w*)+[,;)\]}]*|[A-Za-z_$][\w$.]*\[.*"
    r"|[A-Z][a-z]+-[A-Z][A-Za-z]+|[A-Za-z_]+[,;)\]}:]*|[A-Z][A-Z0-9_]+[,;)\]}:]*|[a-z_]+(?:_[a-z0-9]+)+[,;)\]}:]*|[a-z]+(?:[A-Z][a-z0-9]*)+[,;)\]}:]*"
)
# Where a secret is kept instead of the secret.
_REFERENCE = re.compile(
    r"@Microsoft\.KeyVault\(.*|(?:secretref|vault|op|env|ssm|keyvault|sm|aws-sm|gcp-sm|file|doppler|akv)[:+].*|arn:aws:.*"
    r"|https?://[\w.-]+\.vault\.azure\.net/\S*|(?:/(?:etc|run|var|home|mnt|secrets?|opt|tmp)|~|\.{1,2})/[\w./-]+|[A-Za-z]:\\.*"
    r"|ENC\[.*|\{cipher\}.*|\$ANSIBLE_VAULT.*|AgB[A-Za-z0-9+/=]{40,}|!\w+.*|[\w./-]+\.(?:pem|key|crt|pfx|json|txt|ya?ml|env|p12|jks|py)"
    r"|(?:secrets?|vars?|variables|env|inputs|params|parameters|local|data|module|steps|matrix|github|outputs)\.[\w.\[\]'\"-]+",
    re.IGNORECASE | re.DOTALL,
)
# Without one of these no detector of the second scanner finds anything.
_FOR_SECOND_SCANNER = re.compile(
    r"[A-Za-z0-9]{32}|AKC|AP[0-9A-F]|[xX][oO][xX]|slack|:_authToken|SG\.|sq0csp|k_live_|\d{8}:[\w-]{35}"
    r"|[MNO][\w-]{23,25}\.[\w-]{6}\."
)
_RUN_OF_16 = re.compile(r"[\w+/=.~:-]{16,}", re.ASCII)
# Words of a label, not of a password.
_LABEL = re.compile(
    r"pass(?:word|phrase|wd)?|secret|token|key|credential|auth|bearer|basic|login|sign|code|field|input", re.IGNORECASE
)


@dataclass(frozen=True)
class Finding:
    """Something in a file that looks live.

    Attributes:
        path: The file.
        where: The line, or the place in the document if it cannot be seen in the text.
        what: "token", "bearer header", "secret value", "connection string", "private key", "random characters",
            "unreadable", or what detect-secrets calls it.
        excerpt: How it begins, and how long it is; never the whole.
    """

    path: Path
    where: str
    what: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.path}:{self.where}: {self.what} {self.excerpt}"


def scan_recordings(paths: Iterable[str | os.PathLike[str]]) -> list[Finding]:
    """Return what looks live in recordings and other files; an empty list if nothing does.

    Every file is tried as JSON, JSON lines, HAR and YAML (vcrpy's recordings, foreign tags too), compressed or not,
    with the JSON and base64 inside it; what cannot be parsed is read as text by the same rules. What is no text is a
    finding. The fakes that `imds_vcr` leaves behind are known by their spelling.

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


def scan_text(text: str, path: Path, keep: Iterable[str | re.Pattern[str]] = ()) -> list[Finding]:
    """Return what looks live in the text of one file, which need not have been written yet.

    Args:
        text: The text.
        path: What the findings call it.
        keep: Names and values that are no findings, as `imds_vcr` takes them.
    """
    scan = _Scan(text, path, keep)
    scan.file()
    scan.second_scanner()
    return list(scan.found.values())


def _files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"nothing to scan at {os.fspath(path)}")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"nothing to scan in {os.fspath(path)}")
        yield from files


class _Scan:
    """One file: what was found in it, told once for each value."""

    def __init__(self, text: str, path: Path, keep: Iterable[str | re.Pattern[str]]) -> None:
        self.whole, self.path = text, path
        self.found: dict[tuple[str, str], Finding] = {}
        self.rules = Scrubber(keep)
        self._seen: set[str] = set()
        self._names: dict[str, bool] = {}  # of members: whether the name says something
        self._judged: set[tuple[str, str]] = set()
        self._plain: set[str] = set()
        self._candidates: dict[str, _Where] = {}  # what the second scanner looks at, and where it stands

    def file(self) -> None:
        bare = self.whole.lstrip("\ufeff")
        document = json_or_none(bare)
        if document is not None:
            self.document(document, Place(), "document")
            return
        documents = [each for each in _parsed_as_yaml(bare) if isinstance(each, (dict, list))]
        for each in documents:
            self.document(each, Place(), "document")
        if documents:
            self.tokens(bare, "text")  # of two members with one name a document has the last one only
            for comment in _comments(bare):
                self.text(comment, "comment")
        else:
            self.text(bare, "text")
            rewrite_csv(bare, self.field)
            for number, line in enumerate(bare.splitlines(), start=1):
                if line.lstrip().startswith(("{", "[")) and (inner := json_or_none(line)) is not None:
                    self.document(inner, Place(), f"line {number}")
        if _BASE64_FILE.fullmatch(bare):
            self.content(_from_base64(bare), "base64")

    def second_scanner(self) -> None:
        """Note what detect-secrets finds in the long runs of characters of the whole file."""
        for what, value in _second_scanner("\n".join(self._candidates)):
            where = next((where for run, where in self._candidates.items() if value in run), "text")
            self.note(what, value, where)

    def note(self, what: str, value: str, where: _Where) -> None:
        key = (what, value)
        if key in self.found or self.rules.is_kept(value, ""):
            return
        at = self.whole.find(value)
        line = str(self.whole.count("\n", 0, at) + 1) if at >= 0 else _told(where)
        self.found[key] = Finding(self.path, line, what, f"{value[:6]}... ({len(value)} characters)")

    # Documents

    def document(self, content: Any, place: Place, where: _Where) -> None:
        if isinstance(content, str):
            self.value(content, place, where)
        elif isinstance(content, dict):
            self.members(content, place, where)
        elif isinstance(content, (list, tuple, set)):
            self.items(list(content), place, where)
        elif isinstance(content, bytes):
            self.content(content, where)
        elif isinstance(content, int) and not isinstance(content, bool) and content > 99999:
            is_secret = kind_of(place.name) is NameKind.SECRET and words_of(place.name)[-1] != "token"
            if is_secret and not is_fake(str(content)):
                self.note("secret value", str(content), where)

    def items(self, content: list[Any], place: Place, where: _Where) -> None:
        option = ""
        for index, item in enumerate(content):
            is_option = isinstance(item, str) and item.startswith("-")
            self.document(item, Place(option) if option and not is_option else place, (where, index))
            option = option_name(item) if is_option else ""
        if any(isinstance(item, str) and item.startswith("-") for item in content):
            arguments = [str(item) for item in content]
            for index, begin in given_in(arguments).items():
                value = arguments[index][begin:]
                if not _is_harmless_secret(value) and not is_word(value):
                    self.note("secret value", value, (where, index))

    def members(self, content: dict[Any, Any], place: Place, where: _Where) -> None:
        told = self.telling_members(content, place, where)
        if not told:
            return
        beside = {
            str(name): value if isinstance(value, str) else str(value).lower()
            for name, value in content.items()
            if isinstance(value, (str, bool))
        }
        above = (place.name, *place.above)
        if (
            "request" in content
            and isinstance(content["request"], dict)
            and isinstance(content["request"].get("uri"), str)
        ):
            self.rules.enter(str(content["request"].get("method")), content["request"]["uri"])
            self.rules.hands_out = self.rules.hands_out and not _is_error(content.get("response"))
        if beside.get("encoding") == "base64" and not is_fake(
            beside.get("text", "")
        ):  # how HAR writes a body that is no text
            self.content(from_base64(beside.get("text", "")) or b"", (where, "text"))
        if beside.get("kind") == "Secret" and isinstance(content.get("data"), dict):  # Kubernetes
            for name, value in content["data"].items():
                if is_fake(str(value)):  # what it decodes to is spelled by chance
                    continue
                plain = from_text_base64(str(value)) or _short_base64(str(value))
                if plain is not None and not is_placeholder(plain) and not is_fake(plain) and not is_harmless(plain):
                    self.note("secret value", str(value), ((where, "data"), name))
        for name, value in told:
            self.document(value, Place(name, beside, above), (where, name))

    def telling_members(self, content: dict[Any, Any], place: Place, where: _Where) -> list[tuple[str, Any]]:
        """Return the members of an object that have to be looked at: most are short, and their names say nothing."""
        is_quiet = not (
            "kty" in content
            or place.name in _TELLING_PLACES
            or is_container(place.name)
            or any(map(is_container, place.above[:1]))
        )
        told = []
        for member, value in content.items():
            name = member if isinstance(member, str) else str(member)
            says_more = self._names.get(name)
            if " " in name and isinstance(value, str):  # net use X: ...
                self.text(f"{name}: {value}", where)
            if says_more is None:
                self.text(name, where)
                says_more = self._names[name] = not says_nothing(name) or _is_telling_name(name)
            if says_more or not is_quiet:
                told.append((name, value))
            elif isinstance(value, str):
                if len(value) >= 16 or "=" in value or ":" in value or " -" in value:
                    told.append((name, value))
            elif isinstance(value, (dict, list, tuple, set, bytes)):
                told.append((name, value))
        return told

    def value(self, value: str, place: Place, where: _Where) -> None:
        above = place.above[0] if place.above else ""
        if (above in _TELLING_PLACES or _is_telling_name(place.name)) and self.is_noted_by_place(value, place, where):
            return
        kind = self.rules.kind(value, place)
        if kind is NameKind.PLAIN:
            if value in self._plain or (
                len(value) < 16 and "=" not in value and ":" not in value and " -" not in value
            ):
                return
            self._plain.add(value)
            if value.startswith("/subscriptions/") and _RESOURCE_ID.fullmatch(value):
                return
        elif (kind.name, value) in self._judged:
            return
        else:
            self._judged.add((kind.name, value))
        body = json_or_none(value)
        if body is not None:
            self.document(body, Place(), where)
        elif kind is not NameKind.PUBLIC and not is_fake(value) and not _REFERENCE.fullmatch(value):
            self.judge(value, kind, place, where)

    def is_noted_by_place(self, value: str, place: Place, where: _Where) -> bool:
        """Return whether the place alone says what a value is: a header, a body, a list of cloud-init."""
        header = place.name.lower()
        if header in ("value", "values") and "name" in place.beside:
            header = place.beside["name"].lower()  # how HAR writes a header
        is_header = place.above[:1] == ("headers",) and kind_of_header(header) is NameKind.SECRET
        if header in _CREDENTIAL_HEADERS or is_header:
            if value and not _is_harmless_secret(value.rpartition(" ")[2]):
                self.note("bearer header", value, where)
            return True
        if header == "base64_string":  # vcrpy's name for a body that is no text
            self.content(from_base64(value) or b"", where)
            return True
        if header == "list" and place.above[:1] == ("chpasswd",):
            self.passwords(value, where)
            return True
        if header == "string" and self.rules.hands_out and place.above[:1] == ("body",):
            whole = whole_secret(value)
            bare = "" if whole is None or "eyJ" in value or re.search(r"[;&]|=\w", value) else whole["value"]
            if bare and not _is_harmless_secret(bare):
                self.note("secret value", bare, where)
                return True
        return False

    def passwords(self, text: str, where: _Where) -> None:
        """Note the passwords in lines of users and passwords, as chpasswd reads them."""
        for line in USER_AND_PASSWORD.finditer(text):
            value = line["value"].strip()
            is_made_there = value in ("R", "RANDOM")
            if not is_made_there and self.is_secret("password", NameKind.SECRET, value, in_document=True):
                self.note("secret value", value, where)

    def field(self, value: str, place: Place) -> str:
        """Look at a field of a table; it stays as it is."""
        if kind_of(place.name) in (NameKind.SECRET, NameKind.KEY):
            self.value(value, place, place.name)
        return value

    def judge(self, value: str, kind: NameKind, place: Place, where: _Where) -> None:
        """Note a value that is a secret by its name, else what is in it."""
        inner = from_text_base64(value)
        is_login = place.name.lower() in ("auth", "_auth") and re.fullmatch(r"[^:\s]+:\S+", inner or "") is not None
        by_content = kind is NameKind.PLAIN or _has_structure(value) or TOKEN.fullmatch(value) is not None
        if is_login or (not by_content and self.is_secret(place.name, kind, value, in_document=True)):
            self.note(_what(place), value, where)
            return
        self.text(value, where)
        if inner is not None:
            self.whole_text(inner, where)

    def whole_text(self, text: str, where: _Where) -> None:
        """Look into a text that may be a document."""
        document = json_or_none(text)
        documents = [document] if document is not None else _parsed_as_yaml(text)
        for each in documents:
            self.document(each, Place(), where)
        if not documents:
            self.text(text, where)

    def content(self, content: bytes, where: _Where) -> None:
        packed = unpacked(content)
        content = content if packed is None else packed[0]
        if as_text(content) is None:
            self.forms(content.decode("latin-1"), where)
            return
        self.whole_text(_unpacked(content), where)

    def is_secret(self, name: str, kind: NameKind, value: str, *, in_document: bool) -> bool:
        """Return whether a value under a name is a secret, and not a placeholder, a reference or a label."""
        if kind not in (NameKind.SECRET, NameKind.KEY, NameKind.MAYBE):
            return False
        bare = value.strip()
        if not in_document and _has_structure(bare):
            return False
        if self.rules.is_kept(bare, name) or _is_harmless_secret(bare) or _REFERENCE.fullmatch(bare):
            return False
        in_vault = kind_of(name) is NameKind.MAYBE and kind is NameKind.SECRET  # by where it stands, not by its name
        if kind is NameKind.SECRET:
            return in_vault or (
                len(bare) >= (4 if in_document else 5) and not _is_prose(bare) and not _is_label(bare, name)
            )
        if kind is NameKind.KEY:
            return len(bare) >= 8 and could_be_key_or_password(bare) and not _is_prose(bare)
        return kind is NameKind.MAYBE and _is_doubtful_secret(bare)

    # Texts

    def text(self, text: str, where: _Where) -> None:
        if len(text) < 8 or text in self._seen:
            return
        self._seen.add(text)
        lower, given = _lower(text), commands(text)
        runs = _RUN_OF_16.findall(text)
        telling = list(_TELLING.finditer(lower))
        with_arguments = list(_TELLING_ARGUMENT.finditer(lower)) if " -" in lower or "login" in lower else []
        is_tagged = "<" in text and _TELLING_TAG.search(lower) is not None
        is_told = telling or with_arguments or given or is_tagged
        if not (is_told or runs or "://" in text or "PRIVATE KEY" in text):
            return
        self.forms(text, where, given)
        if telling or with_arguments:
            self.lines(text, [match.start() for match in telling], [match.start() for match in with_arguments], where)
        if is_tagged:
            self.tags(text, where)
        self.parts(text, where)
        if runs:
            if any(len(run) >= 32 for run in runs) or "%" in text:
                self.runs(text, where)
            for run in runs:
                if _FOR_SECOND_SCANNER.search(run):
                    self._candidates.setdefault(run, where)

    def parts(self, text: str, where: _Where) -> None:
        """Look into parts of a text that have a form of their own: lists of passwords, events of a server."""
        if "chpasswd" in text:
            for pattern in (PASSWORD_LINES, PASSWORD_LIST):
                for match in pattern.finditer(text):
                    self.passwords(match["value"], where)
        if "\ndata:" in text:
            for event in events(text):
                self.whole_text(event, where)

    def lines(self, text: str, telling: list[int], with_arguments: list[int], where: _Where) -> None:
        """Look at the lines on which a name says that a secret follows."""
        if "\n" not in text:
            self.pairs(text, telling, where)
            return
        by_line: dict[int, list[int]] = {}
        for at in sorted([*telling, *(~at for at in with_arguments)], key=lambda at: at if at >= 0 else ~at):
            position = at if at >= 0 else ~at
            starts = by_line.setdefault(text.rfind("\n", 0, position) + 1, [])
            if at >= 0:
                starts.append(at)
        for start, starts in by_line.items():
            end = text.find("\n", start)
            line = text[start : end if end >= 0 else len(text)]
            self.pairs(line, [at - start for at in starts], where)

    def tags(self, text: str, where: _Where) -> None:
        """Note values of tags, and their texts, by the name that an attribute gives them."""
        for tag in _TAG.finditer(text):
            found = {
                each["name"].lower(): each["quoted"] or each["bare"] or "" for each in attributes_of(tag["attributes"])
            }
            name = found.get("name") or found.get("key") or ""
            for value in (found.get("value"), found.get("content"), tag["text"]):
                self.tagged(name, value or "", where)
        for listed in _LISTED.finditer(text):
            self.tagged(listed["name"], listed["value"], where)

    def tagged(self, name: str, value: str, where: _Where) -> None:
        kind = kind_of(name)
        is_bare = kind is NameKind.KEY and (is_word(value) or len(value) < 8)
        is_code = value[:1] in tuple("{[<$(&@%*") or value.endswith("()")
        if value and not is_bare and not is_code and self.is_secret(name, kind, value, in_document=True):
            self.note(_what(Place(name)), value, where)

    def tokens(self, text: str, where: _Where) -> None:
        for token in TOKEN.findall(text) if "eyJ" in text else ():
            if looks_signed(token) and not is_dummy_token(token) and len(token) > 30:
                self.note("token", token, where)

    def forms(self, text: str, where: _Where, given: Iterable[re.Pattern[str]] = ()) -> None:
        """Note what is known by its form alone, whatever stands around it."""
        self.tokens(text, where)
        if "PRIVATE KEY" in text:
            for key in PRIVATE_KEY.finditer(text):
                if not _is_fake_key(key["value"]):
                    self.note("private key", key[0][:60].splitlines()[0], where)
        self.bearers(text, where)
        if "://" in text and "@" in text:
            for match in USER_INFO.finditer(text):
                value = unquote(match["value"])
                if not _is_harmless_secret(value) and not re.fullmatch(r"pass|pwd|pw|\d+|\{.*|\$.*|:.*", value):
                    self.note("connection string", match["value"], where)
        named = [("token", form) for form in known_forms(text)]
        named += [("secret value", command) for command in given]
        if "==" in text:
            named.append(("connection string", STORAGE_KEY))
        for what, pattern in named:
            for match in pattern.finditer(text):
                if not _is_harmless_secret(match["value"]) and not is_word(match["value"]):
                    self.note(what, match["value"], where)

    def bearers(self, text: str, where: _Where) -> None:
        """Note credentials of HTTP headers: behind "Authorization" shorter ones, too."""
        for match in bearers(text):
            value = match["value"]
            told = "authorization" in text[max(0, match.start() - 40) : match.start()].lower()
            enough = (
                len(value) >= 16 if told else (len(value) >= 20 and (is_random(value) or STORAGE_KEY.fullmatch(value)))
            )
            if enough and not _is_harmless_secret(value) and not _CODE.fullmatch(value):
                self.note("bearer header", value, where)

    def pairs(self, line: str, telling: list[int], where: _Where) -> None:
        """Look at names and values on a line, and behind those places where a name tells."""
        if len(line) > 200_000:
            return
        self.named_on_line(line, where)
        for at in telling:
            start = at
            while start and (line[start - 1].isalnum() or line[start - 1] in "_.$-"):
                start -= 1
            while line[start] in "-.":  # --password=...
                start += 1
            if (found := _ASSIGNED.match(line, start)) is not None:
                self.assigned(found, line, where)

    def named_on_line(self, line: str, where: _Where) -> None:
        """Look at elements, headers, quoted names and arguments of a line."""
        for match in _XML_ELEMENT.finditer(line) if "</" in line else ():
            kind = kind_of(match["name"].rpartition(":")[2])
            if self.is_secret(match["name"], kind, match["value"], in_document=True):
                self.note("secret value", match["value"], where)
        for match in _HEADER_ARGUMENT.finditer(line) if "-H" in line or "--header" in line else ():
            kind = kind_of_header(match["name"])
            if kind is not NameKind.PLAIN and self.is_secret(match["name"], kind, match["value"], in_document=False):
                self.note("bearer header", match["value"], where)
        for match in _QUOTED.finditer(line) if '"' in line or "'" in line or "`" in line else ():
            self.named(match, where)
        for match in _ARGUMENT.finditer(line) if " -" in line or line.startswith("-") else ():
            self.named(match, where)
        for match in _NETRC.finditer(line) if "password" in line else ():
            if not _is_harmless_secret(match["value"]) and not is_word(match["value"]):
                self.note("secret value", match["value"], where)

    def named(self, match: re.Match[str], where: _Where) -> None:
        name, value = match["name"], match["value"].rstrip(",;)")  # in prose and code
        names_it = is_word(value) and ":" not in match[0] and "=" not in match[0]  # --secret NAME
        if not names_it and self.is_secret(name, kind_of_pair(name, value), value, in_document=False):
            self.note(_what(Place(name)), value, where)

    def assigned(self, match: re.Match[str], line: str, where: _Where) -> None:
        name, sign = match["name"], match["sign"].strip()
        kind = kind_of_pair(name, match["quoted"] or match["value"] or "")
        if kind is NameKind.PLAIN:
            return
        if match["quoted"] is not None:
            if match["p"].lstrip("\\")[:1] in "fF" and "{" in match["quoted"]:
                return
            if self.is_secret(name, kind, match["quoted"], in_document=False) and not re.search(
                r"\{\w*\}|%s|\$\{", match["quoted"]
            ):
                self.note(
                    "connection string" if ";" in line and sign == "=" else _what(Place(name)), match["quoted"], where
                )
            return
        value = match["value"] if match["value"] is not None else match["braced"]
        value = value if match["value"] is None else _until_separator(value, line[: match.start()])
        is_code = sign in ("==", "===", "=>", ":=") or _CODE.fullmatch(value) is not None
        is_env = (
            sign == "="
            and match["type"] is None
            and match["sign"] == "="
            and not re.search(r"[(,]\s*$", line[: match.start()])
        )
        plain_word = re.fullmatch(r"[A-Za-z_]+", value) is not None
        if sign == ":" and (plain_word or line[match.end() :].strip()):
            return
        if is_code and not (is_env and not plain_word and re.fullmatch(r"[\w]+", value) and re.search(r"\d", value)):
            return
        if not is_placeholder(value) and self.is_secret(name, kind, unquote(value), in_document=False):
            self.note("connection string" if sign == "=" else _what(Place(name)), value, where)

    def runs(self, text: str, where: _Where) -> None:
        """Note random characters without a name: keys are 32 to 100 characters long; what is longer is a document."""
        if len(text) < 32:
            return
        text = unquote(text) if "%" in text else text
        exempt: list[tuple[int, int]] | None = None
        for match in RUN.finditer(text):
            run = match[0]
            if not 32 <= len(run) <= 100:
                continue
            if RECOVERY_KEY.fullmatch(run):
                self.note("token", run, where)
            if run.count("/") > 2 or not _is_mixed(run) or is_fake(run) or not is_random(run):
                continue
            before, after = text[max(0, match.start() - 60) : match.start()], text[match.end() : match.end() + 2]
            in_url = re.search(r"://[^\s\"'<>]*$", before)
            if exempt is None:
                patterns = (PUBLISHED, VAULT_VERSION, _BLOCK)
                exempt = [found.span() for pattern in patterns for found in pattern.finditer(text)]
            inside = any(start < match.end() and match.start() < end for start, end in exempt)
            in_token = before.endswith(".") or after.startswith(".")
            if (
                not (in_url or inside or in_token)
                and not _PUBLIC_BEFORE.search(before)
                and from_text_base64(run) is None
            ):
                self.note("random characters", run, where)


# Lines of base64, one after the other: something binary, not a key.
_BLOCK = re.compile(
    r"(?m)^[ \t]*[A-Za-z0-9+/_-]{40,}\r?\n(?:[ \t]*[A-Za-z0-9+/=_-]{40,}\r?\n)*[ \t]*[A-Za-z0-9+/=_-]+\r?$"
)
_PUBLIC_BEFORE = re.compile(
    r"(?:etag|md5|sha-?\d+|crc\d*|checksum|digest|integrity|hash|thumbprint|fingerprint|base64,|id|commit|nonce|h1:|certificate"
    r"|public[ _-]?key|signature|version)\W{0,6}$",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=4096)
def _is_telling_name(name: str) -> bool:
    return name.lower() in ("value", "values", "base64_string") or name.lower() in _CREDENTIAL_HEADERS


def _comments(text: str) -> Iterator[str]:
    """Yield what stands behind each # that begins a comment of YAML."""
    at = text.find("#")
    while at >= 0:
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if at == 0 or text[at - 1].isspace():
            yield text[at + 1 : end]
            at = end
        at = text.find("#", at + 1)


def _told(where: _Where) -> str:
    """Return a place in a document as it is told: the path to it."""
    if not isinstance(where, tuple):
        return str(where)
    outer, member = where
    return f"{_told(outer)}[{member}]" if isinstance(member, int) else f"{_told(outer)}.{member}"


def _is_error(response: Any) -> bool:
    status = response.get("status") if isinstance(response, dict) else None
    return isinstance(status, dict) and str(status.get("code", 200)) >= "400"


def _lower(text: str) -> str:
    """Return a text of the same length in lower case."""
    lower = text.lower()
    return (
        lower if len(lower) == len(text) else "".join(char if len(char.lower()) > 1 else char.lower() for char in text)
    )


def _has_structure(value: str) -> bool:
    """Return whether a value is judged by what is in it: a connection string, a signed URL, a file in base64."""
    if re.search(r"^[A-Za-z][\w ]*=[^;&]*[;&]|\?\w+=", value):
        return True
    decoded = from_text_base64(value)
    return decoded is not None and ("\n" in decoded or decoded.lstrip().startswith("{"))


def could_be_key_or_password(value: str) -> bool:
    """Return whether a value has a digit or the randomness of a key."""
    return could_be_key(value) or bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value) and " " not in value)


def _is_doubtful_secret(value: str) -> bool:
    return len(value) >= 20 and could_be_key(value) and from_text_base64(value) is None and not _is_hash(value)


def _is_hash(value: str) -> bool:
    return len(value) in (32, 40, 56, 64, 96, 128) and bool(re.fullmatch("[0-9a-fA-F]+", value))


def _is_harmless_secret(value: str) -> bool:
    return is_placeholder(value) or is_fake(value) or is_dummy_token(value) or not re.search(r"\w", value)


def _is_prose(value: str) -> bool:
    """Return whether a text is a sentence or a title: several words, nearly all of letters."""
    words = value.split()
    plain = [word for word in words if re.fullmatch(r"[\"'(]?[^\W\d_]+(?:['\u2019-][^\W\d_]+)*[.,;:!?)\"']*", word)]
    return len(words) >= 2 and len(plain) >= 0.75 * len(words)


def _is_label(value: str, name: str) -> bool:
    """Return whether a value says the name of something instead of its content."""
    return bool(re.fullmatch(r"[A-Za-z_.:/ -]+", value) and (_LABEL.search(value) or value.lower() == name.lower()))


def _is_mixed(run: str) -> bool:
    return bool(re.search("[a-z]", run) and re.search("[A-Z]", run) and re.search("[0-9]", run))


def _is_fake_key(body: str) -> bool:
    lines = [line for line in body.replace("\\n", "\n").split() if re.fullmatch(r"[A-Za-z0-9+/]{8,}={0,2}", line)]
    if lines:
        return all(is_fake(line) or is_placeholder(line) for line in lines)
    return bool(body.strip()) and is_placeholder(body.replace("\\n", " ").strip().strip("\"'`").strip())


def _until_separator(value: str, before: str) -> str:
    """Return an unquoted value without what separates it from the next pair."""
    value = re.split("[;&]", value)[0]
    if ";" in before:
        return value
    value = value.split(",")[0]
    while value[-1:] in (")", "]", "}") and value.count(value[-1]) > value.count(
        {")": "(", "]": "[", "}": "{"}[value[-1]]
    ):
        value = value[:-1]
    return value


def _what(place: Place) -> str:
    words = words_of(place.name)
    return "token" if words and words[-1] == "token" else "secret value"


def _short_base64(value: str) -> str | None:
    content = from_base64(value)
    if not content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


_LINE_OF_YAML = re.compile(r"\s*(?:- )?[\"']?[\w./ $-]+[\"']?\s*:(?:\s|$)|---|\s*- ")


class _AnyTagLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # which of the two is known at run time
    """Reads YAML with the tags of others (!Ref, !vault, !!python/object) as if they were not there."""


def _without_tag(loader: Any, _suffix: str, node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_AnyTagLoader.add_multi_constructor("!", _without_tag)
_AnyTagLoader.add_multi_constructor("tag:", _without_tag)


def _parsed_as_yaml(text: str) -> list[Any]:
    """Return the documents of a YAML text; those before the first that cannot be read."""
    lines = text.splitlines()[:400]
    like_yaml = sum(_LINE_OF_YAML.match(line) is not None for line in lines)
    if like_yaml * 3 < len(lines) and not text.startswith("interactions:"):  # of vcrpy, whose bodies may be long
        return []
    documents: list[Any] = []
    with suppress(yaml.YAMLError, ValueError, TypeError, RecursionError):
        documents += list(yaml.load_all(text, Loader=_AnyTagLoader))
    return documents


def _unpacked(body: bytes) -> str:
    packed = unpacked(body)
    if packed is not None:
        return _unpacked(packed[0])
    text = as_text(body)
    return text[0] if text is not None else body.decode("utf-8-sig", errors="replace")


def _from_base64(text: str) -> bytes:
    """Return what is in a file of base64, of either alphabet, padded or not. After padding more may follow."""
    pieces = re.sub("[^A-Za-z0-9+/=_-]", "", text).split("=")
    # One character too many is less than a byte: something was cut off.
    whole = [piece[:-1] if len(piece) % 4 == 1 else piece for piece in pieces]
    return b"\n".join(from_base64(piece) or b"" for piece in whole if piece)


# The second scanner


@functools.cache
def _plugins() -> list[Any]:
    """Return the detectors of detect-secrets for the tokens of other makers, which have a form of their own."""
    from detect_secrets.plugins.artifactory import ArtifactoryDetector
    from detect_secrets.plugins.discord import DiscordBotTokenDetector
    from detect_secrets.plugins.mailchimp import MailchimpDetector
    from detect_secrets.plugins.npm import NpmDetector
    from detect_secrets.plugins.sendgrid import SendGridDetector
    from detect_secrets.plugins.slack import SlackDetector
    from detect_secrets.plugins.square_oauth import SquareOAuthDetector
    from detect_secrets.plugins.stripe import StripeDetector
    from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
    from detect_secrets.plugins.twilio import TwilioKeyDetector

    return [
        detector()
        for detector in (
            ArtifactoryDetector,
            DiscordBotTokenDetector,
            MailchimpDetector,
            NpmDetector,
            SendGridDetector,
            SlackDetector,
            SquareOAuthDetector,
            StripeDetector,
            TelegramBotTokenDetector,
            TwilioKeyDetector,
        )
    ]


def _second_scanner(text: str) -> Iterator[tuple[str, str]]:
    """Yield what detect-secrets finds: its name for it, and the value."""
    for plugin in _plugins():
        for value in plugin.analyze_string(text):
            if value and len(value) >= 16 and not _is_harmless_secret(value):
                yield plugin.secret_type.lower(), value
