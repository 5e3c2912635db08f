"""Decides, value by value, what of an exchange may be written down, and puts fakes where it may not.

Every text is taken apart until single values are left (`structure`). A value stays if it is harmless by itself. What
stands under a secret's name (`names`), has a secret's form or is random (`shapes`) gets a fake (`fakes`). What was a
secret in one place is replaced in all others, too, so a session is read twice: once to find, once to write.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from .fakes import (
    EMAIL,
    GUID,
    NO_GUID,
    TOKEN,
    dummy_of,
    fake_arm_id,
    fake_email,
    fake_guid,
    fake_text,
    find_arm_ids,
    is_dummy_token,
    is_fake,
)
from .names import (
    HOLDERS,
    NAMING,
    NameKind,
    describes,
    hands_out_secrets,
    is_container,
    is_handed_out,
    kind_of,
    kind_of_header,
    kind_of_pair,
    lists_secrets,
    plain_name,
    says_nothing,
    says_of_key,
    words_of,
)
from .shapes import (
    BASIC,
    BEARER,
    PASSWORD_LINES,
    PRIVATE_KEY,
    PUBLISHED,
    RECOVERY_KEY,
    RUN,
    STORAGE_KEY,
    USER_AND_PASSWORD,
    USER_INFO,
    VAULT_VERSION,
    commands,
    could_be_key,
    is_harmless,
    is_no_word,
    is_random,
    is_word,
    known_forms,
)
from .structure import (
    Place,
    from_base64,
    rewrite_csv,
    rewrite_events,
    rewrite_json,
    rewrite_percent_encoded,
    rewrite_query,
    rewrite_xml,
    rewrite_yaml,
    to_base64,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

IMDS_HOST = "http://169.254.169.254"

SHORTEST_TAINT = 8  # characters of a secret that is replaced wherever it stands; shorter ones are words by chance
DEEPEST = 12  # texts inside texts

# Only these headers of a request are written down: replay does not look at headers.
_KEPT_REQUEST_HEADERS = frozenset({"accept", "content-type", "metadata"})
# Cookies, and the caller's public address (x-ms-keyvault-network-info).
_DROPPED_RESPONSE_HEADERS = frozenset({"set-cookie", "x-ms-keyvault-network-info"})

_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>\\`{}|^;]+", re.IGNORECASE)
_URL_PARTS = re.compile(
    r"(?P<scheme>[^:/?#]+:)?(?://(?P<host>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<end>.*))?", re.DOTALL
)
_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]{1,20}://)?", re.IGNORECASE)
_QUOTED_PAIR = re.compile(
    r"(?P<q>\\*[\"'])(?P<name>[\w .:$@-]{1,80})(?P=q)\s*(?::|=>|=)\s*(?P<p>\\*[\"'])(?P<value>.*?)(?P=p)", re.DOTALL
)
_UNQUOTED_NAME = re.compile(
    r"(?<![\w\"'$.-])(?P<name>[A-Za-z_$][\w$-]{0,80})\s*:\s*(?P<p>\\*[\"'])(?P<value>[^\n]*?)(?P=p)"
)
_PAIR = re.compile(
    r"(?P<name>[A-Za-z_$][\w.$-]*(?: [A-Za-z]\w*){0,2})[ \t]*(?::=|=>|=)[ \t]*"
    r"(?:[NnRrBbFfUu@]{0,2}(?P<p>\\*(?:\"\"\"|'''|[\"']))(?P<quoted>.*?)(?P=p)|\{(?P<braced>[^{}]*)\}"
    r"|(?P<value>[^;&\s\"'<>]+))",
)
_ARGUMENT = re.compile(
    r"(?:(?<!\S)--?|\bsetx[ \t]+|\b[Ee][Nn][Vv]:)(?P<name>[A-Za-z][\w-]*)[ \t]+"
    r"(?P<p>[\"']?)(?P<value>[^\s\"'=]+)(?P=p)(?!\S)"
)
_LINE_PAIR = re.compile(
    r"(?P<head>\s*(?:- |#+ ?)?[\"']?(?P<name>[\w.$ -]{1,80}?)[\"']?\s*:[ \t]+)(?P<value>\S.*?)(?P<end>[\s,]*)"
)
# A scalar of YAML whose lines follow; cloud-init's list of users and passwords is one.
_BLOCK = re.compile(r"(?P<blanks>\s*)(?:- )?[\"']?(?P<name>[\w.-]+)[\"']?:\s+[|>][+-]?\d?[+-]?\s*$")
_CONTAINER = re.compile(r"(?P<blanks>\s*)[\"']?(?P<name>[\w.-]+)[\"']?:\s*$")
_PUBLIC_KEY = re.compile(r"ssh-(?:rsa|ed25519|dss) |ecdsa-sha2-|-----BEGIN (?:CERTIFICATE|(?:RSA )?PUBLIC KEY)-----")
_TOLD_ADDRESS = re.compile(r"(?i)(?<=address)(?P<sign>[:\s'\"(]{1,4})(?P<value>(?:\d{1,3}\.){3}\d{1,3})(?!\.?\d)")
_TENANT_DOMAIN = re.compile(r"(?i)(?<![\w-])(?P<value>[a-z0-9-]{1,63})(?=\.onmicrosoft\.com)")
_SIMPLE = re.compile(r"[\w .,]{0,15}")  # too short for anything that is known by its form
_SECURE_TYPES = frozenset({"securestring", "secureobject", "secret", "password"})
_SCHEME_AND_CREDENTIAL = re.compile(
    r"(?P<scheme>(?:(?:Bearer|Basic|D?PoP|Token) |SharedKey(?:Lite)? (?:[\w-]{1,64}:)?))(?P<value>\S+)", re.IGNORECASE
)
_ADDRESS_NAME = re.compile(r".*(?:ip|ip-?addr(?:ess)?|clientip|callerip|remote-?addr)", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?")
_VAULT_PATH = re.compile(r"/(?:deleted)?(?:secrets|keys|certificates|storage)(?:/|$)|/rng$", re.IGNORECASE)
_VAULT_HOST = re.compile(r"[\w-]+\.(?:vault|managedhsm)\.[\w.]+(?::\d+)?", re.IGNORECASE)
_PRIVATE_OF_JWK = frozenset({"d", "p", "q", "dp", "dq", "qi", "k", "key_hsm", "r", "t"})


class UnreadableError(ValueError):
    """A value cannot be looked into, so it may hold a secret."""


class Scrubber:
    """Replaces what must not be recorded by stable fakes.

    Args:
        keep: What stays whatever it looks like: values and names of values, or patterns that match them whole.

    Attributes:
        secrets: The fake of each secret found so far.
        known: For each fake of an identity in the URI of a request: what stood there.
    """

    def __init__(self, keep: Iterable[str | re.Pattern[str]] = ()) -> None:
        self._keep = [
            entry if isinstance(entry, re.Pattern) else re.compile(re.escape(entry), re.IGNORECASE) for entry in keep
        ]
        self.secrets: dict[str, str] = {}
        self.known: dict[str, str] = {}
        self.names: dict[str, str] = {}  # the fake of each name in an ARM ID
        self.guids: set[str] = set()  # without dashes, in lower case
        self._fakes: set[str] = set()
        self._where = ""
        self._in_vault = self._is_setting = self._keys_by_name = self.hands_out = False
        self._tainted: re.Pattern[str] | None = None
        self._decisions = 0  # secrets that were met, known or new

    # What an exchange consists of

    def enter(self, method: str, uri: str) -> None:
        """Take a request's URI as the context of all that follows: a vault's values are secrets by their place."""
        parts = _URL_PARTS.fullmatch(uri)
        host, path = (parts["host"] or "", parts["path"]) if parts else ("", uri)
        self._where = f"{method} {host}{path}"
        self._in_vault = bool(_VAULT_PATH.search(path) or _VAULT_HOST.fullmatch(host)) and "/subscriptions/" not in path
        self.hands_out = hands_out_secrets(path)
        self._keys_by_name = _KEYS_BY_NAME.search(path) is not None
        self._is_setting = "/kv" in path or host.split(":")[0].endswith(".azconfig.io")

    def taint(self) -> None:
        """Replace from now on every known secret wherever it stands."""
        for real in [real for real in self.secrets if "/" in real]:
            if any(len(part) >= 16 and part in self.secrets for part in real.split("/")):
                del self.secrets[real]  # a path that ends in a secret; the secret alone is replaced there
        for real in list(self.secrets):
            if real.endswith("=") and (bare := real.rstrip("=")) in self.secrets:  # %3D ended it in a URL
                self.secrets[bare] = self.secrets[real].rstrip("=")
        tainted = sorted((real for real in self.secrets if self.is_taint(real)), key=len, reverse=True)
        self._tainted = re.compile("|".join(map(re.escape, tainted))) if tainted else None

    def is_taint(self, secret: str) -> bool:
        """Return whether a secret is replaced everywhere: it is long enough, and not the name of a secret itself."""
        is_name = kind_of(secret) is NameKind.SECRET
        return len(secret) >= SHORTEST_TAINT and not is_name and not is_fake(secret) and secret not in self._fakes

    def uri(self, uri: str) -> str:
        """Return the URI of a request as it is written down and compared; one that was scrubbed comes out unchanged."""
        parts = _URL_PARTS.fullmatch(uri)
        if parts is not None and parts["path"].startswith("/metadata/"):
            host = (parts["scheme"] or "") + "//" + (parts["host"] or "")
            uri = IMDS_HOST + uri.removeprefix(host)
        return self._url(uri, self._note)

    def request_headers(self, headers: Mapping[str, str | bytes]) -> dict[str, str]:
        """Return the headers of a request that are written down; secrets of the others are remembered."""
        kept = {}
        for name, value in headers.items():
            text = str(value, "latin-1") if isinstance(value, bytes) else str(value)
            changed = self.header(name, text)
            if name.lower() in _KEPT_REQUEST_HEADERS:
                kept[name] = changed
        return kept

    def response_headers(self, headers: Mapping[str, list[str] | str]) -> dict[str, list[str]]:
        """Return the headers of an answer that are written down; secrets of the others are remembered."""
        kept = {}
        for name, values in headers.items():
            listed = [values] if isinstance(values, str) else values
            changed = [self.header(name, str(value)) for value in listed]
            if name.lower() not in _DROPPED_RESPONSE_HEADERS:
                kept[name] = changed
        return kept

    def header(self, name: str, value: str) -> str:
        """Return the value of a header as it is written down."""
        lower = name.lower()
        if lower.endswith("request-id"):
            # Each request has a new one. As a constant they are no changes when a session is recorded again.
            return NO_GUID
        if lower in ("cookie", "set-cookie"):
            count = 1 if lower == "set-cookie" else 0  # the attributes of one cookie, or more cookies
            return re.sub(r"(?<==)[^;]+", lambda cookie: self._secret(cookie[0], Place(name)), value, count=count)
        if lower.endswith("-auth"):
            return self._secret(value, Place(name)) if is_no_word(value) else value
        if lower in ("authorization", "authentication", "proxy-authorization") or lower.endswith(
            ("-authorization", "-authorization-auxiliary")
        ):
            scheme, blank, credential = value.rpartition(" ")
            return f"{scheme}{blank}{self._secret(credential, Place(name))}" if "=" not in scheme else self.text(value)
        kind = kind_of_header(name)
        if kind is NameKind.SECRET or (kind is NameKind.KEY and is_no_word(value)):
            return value if self.is_kept(value, name) else self._secret(self._without_known(value), Place(name))
        return self.value(value, Place(name))

    # Values

    def whole(self, text: str) -> str:
        """Return a whole body as it is written down; it may be nothing but the secret that was asked for."""
        bare = whole_secret(text) if self.hands_out else None
        if bare is not None and not self.is_kept(bare["value"], ""):
            value = self._without_known(bare["value"])
            return self._within(bare, self._secret(value, Place("secret")))
        return self.text(text)

    def value(self, value: str, place: Place, depth: int = 0) -> str:
        """Return a value as it is written down.

        Raises:
            UnreadableError: It has texts inside texts deeper than anyone looks.
        """
        if not value or self.is_kept(value, place.name):
            return value
        value = self._without_known(value)
        if place.name.lower() == "list" and place.above[:1] == ("chpasswd",):
            return self._passwords(value, depth)
        kind = self.kind(value, place)
        if kind in (NameKind.SECRET, NameKind.PERSON):
            return self._secret(value, place, depth)
        if kind is NameKind.KEY and is_no_word(value):
            return self._secret(value, place, depth)
        if place.name.lower() in ("auth", "_auth") and re.fullmatch(r"[^:\s]+:\S+", from_text_base64(value) or ""):
            return self._secret(value, place, depth)
        if kind is NameKind.MAYBE and could_be_key(value) and not is_fake(value) and from_text_base64(value) is None:
            return self._secret(value, place, depth)
        if kind is NameKind.PUBLIC:
            return self._known_guids(value)
        if place.name and _ADDRESS_NAME.fullmatch(place.name) and _ADDRESS.fullmatch(value) and _is_public(value):
            return _fake_address(value)
        return self._name_beside_id(value, place) or self.text(value, depth)

    def number(self, token: str, place: Place) -> str:
        """Return a JSON number as it is written down."""
        if self._tainted is not None and token in self.secrets:
            return self.secrets[token]
        digits = token.lstrip("-")
        if not digits.isdigit() or len(digits) < 4 or self.is_kept(token, place.name):
            return token
        is_secret = self.kind(token, place) is NameKind.SECRET and words_of(place.name)[-1:] != ["token"]
        return self._fake(token, place) if is_secret else token

    def text(self, text: str, depth: int = 0) -> str:
        """Return any text as it is written down, taken apart as far as it goes."""
        if depth > DEEPEST:
            raise UnreadableError(f"texts are nested more than {DEEPEST} deep")
        if not text or is_harmless(text):
            return text
        text = self._without_known(text)
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        bare = text[len(mark) :]

        def visit(value: str, place: Place) -> str:
            return (
                self.value(value, place, depth + 1) if place.name else self._flat(self._without_known(value), depth + 1)
            )

        changed = rewrite_json(bare, visit, self.number)
        if changed is None:
            changed = rewrite_xml(bare, visit)
        if changed is None and "\x1e" in bare:
            changed = "\x1e".join(self.text(record, depth + 1) for record in bare.split("\x1e"))
        if changed is None and "\n" in bare:
            changed = rewrite_csv(bare, visit)
        if changed is None and not PRIVATE_KEY.search(bare) and not PUBLISHED.search(bare):
            changed = self._plain(bare, visit, depth)
        return mark + (self._flat(bare, depth) if changed is None else changed)

    def _plain(self, text: str, visit: Callable[[str, Place], str], depth: int) -> str | None:
        """Return a text that is neither JSON nor XML as it is written down, None if it has no lines."""
        if text.startswith('"') and isinstance(whole := _string_of_json(text), str):
            changed = self.text(whole, depth + 1)
            return text if changed == whole else json.dumps(changed, ensure_ascii=text.isascii())
        if "&quot;" in text or "&#34;" in text:
            whole = html.unescape(text)
            changed = self.text(whole, depth + 1)
            return None if changed == whole else html.escape(changed)
        if "\n" not in text:
            return None
        if "chpasswd" in text:
            text = PASSWORD_LINES.sub(lambda m: self._within(m, self._passwords(m["value"], depth)), text)
        text = rewrite_events(text, lambda data: self.text(data, depth + 1)) or text
        if from_text_base64(text) is None and ":" in text:
            text = rewrite_yaml(text, visit) or text
        return self._lines(text, depth)

    def _passwords(self, text: str, depth: int) -> str:
        """Return the lines of users and their passwords that chpasswd reads."""
        return USER_AND_PASSWORD.sub(
            lambda line: self._within(line, self._secret(line["value"].rstrip(), Place("password"), depth)), text
        )

    def form(self, text: str) -> str:
        """Return a form as it is written down."""
        return rewrite_query(text, self._parameter)

    def _lines(self, text: str, depth: int) -> str | None:
        if from_text_base64(text) is not None:
            return None
        blocks = re.split(r"((?:\r?\n){2,})", text)
        if len(blocks) > 1:
            return "".join(self.text(block, depth) if block.strip() else block for block in blocks)
        made, block, above = [], None, ""
        container: re.Match[str] | None = None
        for line in text.splitlines(keepends=True):
            if block is not None and line.startswith(block["blanks"] + " "):
                made.append(self._line_of_block(line, depth))
                continue
            block, is_list = _BLOCK.match(line), above == "chpasswd:"
            within = container is not None and line.startswith(container["blanks"] + " ")
            if block is not None and kind_of(block["name"]) is not NameKind.SECRET and not is_list and not within:
                block = None
            if container is None or not line.startswith(container["blanks"] + " "):
                container = _CONTAINER.match(line)
                if container is not None and not lists_secrets(container["name"]):
                    container = None
            above = line.strip()
            made.append(self._line(line, depth, () if container is None else (container["name"],)))
        return "".join(made)

    def _line_of_block(self, line: str, depth: int) -> str:
        """Return a line of a secret, or of cloud-init's list of users and passwords."""
        secret = line.strip()
        user = re.match(r"[a-z_][\w-]{0,31}:(?=\S)", secret)
        secret = secret if user is None else secret[user.end() :]
        return line.replace(secret, self._secret(secret, Place("password"), depth)) if secret else line

    def _line(self, line: str, depth: int, within: tuple[str, ...] = ()) -> str:
        end = line[len(line.rstrip("\r\n")) :]
        bare = self._given(line[: len(line) - len(end)])
        head = re.match(r"(?:(?:data|id|event):\s*|\)\]\}',?)?", bare)
        assert head is not None, "every part of the pattern is optional"
        rest = bare[head.end() :]
        if rest.lstrip().startswith(("{", "[", "<")):
            return head[0] + self.text(rest, depth + 1) + end
        pair = _LINE_PAIR.fullmatch(bare)
        if pair is not None and "://" not in pair["head"]:
            quoted = re.fullmatch(r"([\"']?)(.*)\1", pair["value"])
            assert quoted is not None, "the quotes may be empty"
            value = self.value(quoted[2], Place(pair["name"].strip(), above=within), depth + 1)
            return f"{pair['head']}{quoted[1]}{value}{quoted[1]}{pair['end']}{end}"
        return self._flat(bare, depth) + end

    def _given(self, text: str, *forms: re.Pattern[str]) -> str:
        """Return a text with fakes for the passwords in its commands, and for what has one of the given forms."""
        for form in (*forms, *commands(text)):
            text = form.sub(
                lambda match: self._within(match, self._secret(match["value"], Place("credential password"))), text
            )
        return text

    # What a value is

    def is_kept(self, value: str, name: str) -> bool:
        return any(entry.fullmatch(value) or (name and entry.fullmatch(name)) for entry in self._keep)

    def kind(self, value: str, place: Place) -> NameKind:
        name = place.name
        if self._keys_by_name and place.above == ("",) and not describes(name):
            return NameKind.SECRET
        if says_nothing(name) and not (place.above and self._in_container(place)) and "kty" not in place.beside:
            return NameKind.PLAIN
        kind = kind_of(name)
        if kind is NameKind.SECRET:
            return kind
        if self.hands_out and self._is_handed_out(value, kind, place):
            return NameKind.SECRET
        if name.lower() == "key" and says_of_key(place.beside):
            return NameKind.KEY
        if "kty" in place.beside:
            return NameKind.SECRET if name.lower() in _PRIVATE_OF_JWK else NameKind.PUBLIC if name in "nexy" else kind
        if kind in (NameKind.PLAIN, NameKind.MAYBE) and place.above and self._in_container(place):
            return NameKind.SECRET
        if lists_secrets(name):
            return NameKind.SECRET
        return self._kind_of_holder(place, value) or kind if plain_name(name) in HOLDERS else kind

    def _is_handed_out(self, value: str, kind: NameKind, place: Place) -> bool:
        is_asked_for = kind is NameKind.KEY or (kind is NameKind.MAYBE and is_handed_out(place.name))
        is_public = "kty" in place.beside or bool(_PUBLIC_KEY.match(value))
        return is_asked_for and not is_public and not self._is_setting and not is_harmless(value)

    def _in_container(self, place: Place) -> bool:
        above = place.above
        within = is_container(above[0]) or (len(above) > 1 and is_container(above[1])) if above else False
        return within and not describes(place.name)

    def _kind_of_holder(self, place: Place, value: str) -> NameKind | None:
        """Return what the name beside or around a `value` says about it."""
        named = {place.beside[naming]: naming for naming in NAMING if naming in place.beside and naming != place.name}
        for name, naming in named.items():
            kind = kind_of(name)
            if kind in (NameKind.SECRET, NameKind.KEY) or (kind is NameKind.MAYBE and naming.lower() == "keyname"):
                return NameKind.SECRET
        if any(kind_of(above) in (NameKind.SECRET, NameKind.KEY) for above in place.above[:2]):
            return NameKind.SECRET
        says_so = "true" in (place.beside.get(name) for name in ("secret", "isSecret", "is_secret", "sensitive"))
        says_so = says_so or place.beside.get("type", "").lower() in _SECURE_TYPES
        if says_so or self._in_container(place):
            return NameKind.SECRET
        if place.name.lower() != "value" or self._is_setting:
            return None
        if self._in_vault or {"kid", "alg"} & place.beside.keys() or "/secrets/" in place.beside.get("id", ""):
            return NameKind.SECRET
        if any(kind_of(name) is NameKind.PUBLIC for name in named):
            return NameKind.PUBLIC
        # At the top of a body it is how Key Vault writes a secret. Settings and metrics have a name beside it.
        at_top = place.above in ((), ("",)) and not named and "@odata.context" not in place.beside
        return NameKind.SECRET if at_top and not is_harmless(value) else None

    def _name_beside_id(self, value: str, place: Place) -> str | None:
        """Return the fake of a name that is part of an ARM ID of the session."""
        if "/" in value and place.name.lower() == "name":
            changed = "/".join(self.names.get(part.lower(), part) for part in value.split("/"))
            return changed if changed != value else None
        fake = self.names.get(value.lower())
        if fake is None:
            return None
        last = (words_of(place.name) or [""])[-1]
        names_something = last in ("name", "group", "account", "vault", "server", "resource", "workspace", "cluster")
        distinctive = len(value) >= 6 and re.search(r"[\d-]", value) is not None
        return fake if names_something or distinctive else None

    # Fakes

    def _secret(self, value: str, place: Place, depth: int = 0) -> str:
        """Return the fake of a secret; what has a structure keeps it, so that programs can read it."""
        self._decisions += 1
        if value in self._fakes or is_fake(value) or is_fake(unquote(value)) or is_dummy_token(value):
            return value
        if not re.search(r"\w", value) or value.lower() in ("true", "false"):
            return value
        if value in self.secrets:
            return self.secrets[value]
        if (header := _SCHEME_AND_CREDENTIAL.fullmatch(value)) is not None:
            return header["scheme"] + self._secret(header["value"], place, depth)
        if _PUBLIC_KEY.match(value):
            return self.text(value, depth + 1)
        structured = None if "password" in place.name.lower() else self._structured(value, depth)
        return self._fake(value, place) if structured is None else structured

    def _structured(self, value: str, depth: int) -> str | None:
        if TOKEN.fullmatch(value):
            return self._token(value)
        if PRIVATE_KEY.search(value):
            return self._flat(value, depth)
        if (
            changed := rewrite_json(value, lambda v, p: self._secret(v, p, depth + 1) if p.name else v, self.number)
        ) is not None:
            return changed
        is_structured = bool(re.search(r"\w=[^;&]*[;&]|://[^/]*@|\?\w+=", value))
        decoded = from_text_base64(value)
        if decoded is not None and ("\n" in decoded or decoded.lstrip().startswith("{")):
            is_structured = True
        before = self._decisions
        changed = self.text(value, depth + 1) if is_structured else value
        if self._decisions > before:
            return changed
        return None

    def _fake(self, value: str, place: Place) -> str:
        if value in self.secrets:
            return self.secrets[value]
        # Who knows the fake must not be able to try passwords: only what cannot be guessed goes into a hash. All else
        # is told apart by where it was met first.
        guessable = not (len(value) >= 24 and is_random(value))
        seed = f"{self._where}|{place.name}|{'/'.join(place.above)}" if guessable else value
        if GUID.fullmatch(value):
            self.secrets[value] = fake_guid(value)
            return self.secrets[value]
        scheme = _SCHEME.match(value)
        assert scheme is not None, "it may be empty"
        rest = value[scheme.end() :]
        for attempt in range(32):
            fake = scheme[0] + fake_text(rest, f"{seed}|{attempt}")
            if fake not in self._fakes:
                break
        self._fakes.add(fake)
        self.secrets[value] = fake
        return fake

    def _token(self, token: str) -> str:
        self._decisions += 1
        if is_dummy_token(token) or len(token) < 24:
            return token
        dummy = self.secrets.get(token)
        if dummy is None:
            dummy = self.secrets[token] = dummy_of(token, self._identities)
            signature = token.split(".", 2)[2]
            if len(signature) >= SHORTEST_TAINT:
                self.secrets.setdefault(signature, dummy.split(".", 2)[2])
        return dummy

    def _without_known(self, text: str) -> str:
        if self._tainted is None:
            return text
        return self._tainted.sub(lambda secret: self.secrets[secret[0]], text)

    def _known_guids(self, text: str) -> str:
        def change(guid: re.Match[str]) -> str:
            return fake_guid(guid[0]) if re.sub("[-_]", "", guid[0]).lower() in self.guids else guid[0]

        return GUID.sub(change, text)

    # Texts without structure

    def _flat(self, text: str, depth: int) -> str:
        if _SIMPLE.fullmatch(text) or is_dummy_token(text):
            return text
        text = PRIVATE_KEY.sub(lambda key: self._within(key, self._private_key(key["value"])), text)
        text = TOKEN.sub(lambda token: self._token(token[0]), text)
        text = _URL.sub(lambda url: self._url(url[0], depth=depth), text)
        text = BASIC.sub(self._basic, text)
        text = self._given(text, BEARER, USER_INFO, STORAGE_KEY, *known_forms(text))
        text = self._pairs(text, depth)
        text = rewrite_percent_encoded(text, lambda decoded: self.text(decoded, depth + 1))
        return self._runs(self._identities(text), depth)

    def _basic(self, match: re.Match[str]) -> str:
        """Return the credential of a Basic header, which may be short; words after "basic" stay."""
        is_login = re.fullmatch(rb"[ -~]+:[ -~]+", from_base64(match["value"]) or b"") is not None
        return self._within(match, self._secret(match["value"], Place("password"))) if is_login else match[0]

    def _private_key(self, body: str) -> str:
        """Return the body of a PEM block with fakes for its lines; the headers of old ones stay."""
        return re.sub(r"[A-Za-z0-9+/]{8,}={0,2}", lambda line: self._secret(line[0], Place("private key")), body)

    def _pairs(self, text: str, depth: int) -> str:
        def change(pair: re.Match[str]) -> str:
            group = next(name for name in ("value", "quoted", "braced") if pair.groupdict().get(name) is not None)
            value, rest = pair[group], ""
            if group == "value" and ";" not in text and "," in value:
                value, comma, rest = value.partition(",")
                rest = comma + rest
            changed = self._pair_value(pair["name"], value, depth)
            if rest:
                rest = self._pairs(rest, depth)
            return self._within(pair, changed + rest, group)

        for pattern in (_QUOTED_PAIR, _UNQUOTED_NAME, _PAIR, _ARGUMENT):
            if "=" in text or ":" in text or "-" in text:
                text = pattern.sub(change, text)
        return text

    def _pair_value(self, name: str, value: str, depth: int) -> str:
        bare = unquote(value)
        kind = kind_of_pair(name, bare)
        if not value or self.is_kept(bare, name):
            return value
        is_secret = kind is NameKind.SECRET or (kind is NameKind.KEY and is_no_word(bare))
        if is_secret or (kind is NameKind.MAYBE and could_be_key(bare) and not is_fake(bare)):
            changed = self._secret(bare, Place(name), depth)
            return value if changed == bare else quote(changed, safe="") if bare != value else changed
        return self._pairs(value, depth) if "=" in value and len(value) < 65536 else value

    @staticmethod
    def _within(match: re.Match[str], changed: str, group: str = "value") -> str:
        start, end = match.start(group) - match.start(), match.end(group) - match.start()
        return match[0][:start] + changed + match[0][end:]

    def _identities(self, text: str, note: Callable[[str, str], str] = lambda _, fake: fake) -> str:
        def note_name(real: str, fake: str) -> None:
            self.names.setdefault(real.lower(), fake)

        for match in reversed(find_arm_ids(text)):
            text = text[: match.start()] + note(match[0], fake_arm_id(match, note_name)) + text[match.end() :]

        def guid(match: re.Match[str]) -> str:
            fake = fake_guid(match[0])
            if fake != match[0]:
                self.guids.add(re.sub("[-_]", "", match[0]).lower())
            return note(match[0], fake)

        text = self._outside(VAULT_VERSION, GUID, guid, text)
        if "ddress" in text:
            text = _TOLD_ADDRESS.sub(lambda told: told["sign"] + _fake_address(told["value"]), text)
        if "onmicrosoft" in text:
            text = _TENANT_DOMAIN.sub(lambda label: self._fake(label["value"], Place("tenant")), text)
        if "@" not in text:
            return text
        return EMAIL.sub(
            lambda email: email[0] if is_fake(email[0].rpartition(".")[0]) else self._email(email[0]), text
        )

    def _email(self, real: str) -> str:
        if real not in self.secrets:
            self.secrets[real] = fake_email(real, f"{self._where}|{len(self.secrets)}")
        return self.secrets[real]

    def _runs(self, text: str, depth: int) -> str:
        if len(text) < 16:
            return text

        def change(run: re.Match[str]) -> str:
            value = run[0]
            if is_fake(value) or self.is_kept(value, ""):
                return value
            if any(len(part) >= 12 and is_fake(part) for part in value.split("/")):  # a path with a fake
                return "/".join(part if is_fake(part) else self._runs(part, depth) for part in value.split("/"))
            decoded = from_text_base64(value)
            if decoded is not None:
                changed = self.text(decoded, depth + 1)
                return value if changed == decoded else to_base64(changed.encode(), value)
            return (
                self._fake(value, Place("random characters"))
                if (is_random(value) or RECOVERY_KEY.fullmatch(value)) and "recorded-" not in value
                else value
            )

        whole = from_text_base64(text) if "\n" in text.strip() else None
        if whole is not None:
            changed = self.text(whole, depth + 1)
            return text if changed == whole else to_base64(changed.encode(), text)
        return self._outside(_EXEMPT, RUN, change, text)

    @staticmethod
    def _outside(
        exempt: re.Pattern[str], pattern: re.Pattern[str], change: Callable[[re.Match[str]], str], text: str
    ) -> str:
        spans = [match.span() for match in exempt.finditer(text)]
        if not spans:
            return pattern.sub(change, text)

        def outside(match: re.Match[str]) -> str:
            inside = any(start < match.end() and match.start() < end for start, end in spans)
            return match[0] if inside else change(match)

        return pattern.sub(outside, text)

    # URLs

    def _url(self, url: str, note: Callable[[str, str], str] = lambda _, fake: fake, depth: int = 0) -> str:
        parts = _URL_PARTS.fullmatch(self._without_known(url))
        if parts is None:
            return url
        host = parts["host"]
        if host is not None and "@" in host:
            user, _, machine = host.rpartition("@")
            name, colon, password = user.partition(":")
            changed = self._secret(unquote(password), Place("password")) if password else ""
            password = password if changed == unquote(password) else quote(changed, safe="")
            user = f"{self._flat(name, depth)}{colon}{password}"
            host = f"{user}@{machine}"
        host = None if host is None else GUID.sub(lambda guid: note(guid[0], self._identities(guid[0])), host)

        def parameter(value: str, place: Place) -> str:
            return self._parameter(value, place, note)

        made = (parts["scheme"] or "") + ("" if host is None else f"//{host}") + self._path(parts["path"], note)
        if parts["query"] is not None:
            made += "?" + rewrite_query(parts["query"], parameter)
        if parts["end"] is not None:
            end = parts["end"]
            made += "#" + (rewrite_query(end, parameter) if "=" in end else self._flat(end, depth))
        return made

    def _path(self, path: str, note: Callable[[str, str], str]) -> str:
        def encoded(text: str) -> str:
            return self._identities(rewrite_percent_encoded(text, encoded), note)

        # An ARM ID may be one segment, percent-encoded: its names are faked together with its subscription.
        segments = []
        for segment in path.split("/"):
            decoded = unquote(segment)
            changed = decoded if decoded == segment else encoded(self._without_known(decoded))
            if ";" in decoded and "=" in decoded:  # parameters of one segment
                changed = self._pairs(changed, depth=0)
            segments.append(segment if changed == decoded else quote(changed, safe="-._~!$&'()*+,;=:@"))
        path = self._identities("/".join(segments), note)
        return self._outside(_EXEMPT, RUN, lambda run: self._segment(run[0]), path) if len(path) > 16 else path

    def _segment(self, run: str) -> str:
        def change(part: str) -> str:
            decodes = from_text_base64(part)
            if decodes is not None and (changed := self.text(decodes)) != decodes:
                return to_base64(changed.encode(), part)
            is_secret = decodes is None and is_random(part) and not is_fake(part) and not part.startswith("recorded-")
            return self._fake(part, Place("path")) if is_secret and not self.is_kept(part, "") else part

        return "/".join(map(change, run.split("/")))

    def _parameter(self, value: str, place: Place, note: Callable[[str, str], str] = lambda _, fake: fake) -> str:
        if self.is_kept(value, place.name):
            return value
        if place.name.lower() == "code" and not is_harmless(value) and not (value.isdigit() or is_word(value)):
            return self._secret(self._without_known(value), place)
        if self.kind(value, place) is NameKind.PLAIN:
            value = self._identities(self._without_known(value), note)
        return self.value(value, place)

    def _note(self, real: str, fake: str) -> str:
        if fake != real:
            self.known[fake] = real
        return fake


def _string_of_json(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


_DONE = frozenset({"ok", "done", "created", "accepted", "deleted", "updated", "saved", "success", "succeeded"})
# The keys of one function in Azure: names that its owner chose, each with its key.
_KEYS_BY_NAME = re.compile(r"/functions/[^/]+/listkeys", re.IGNORECASE)
# A body that is one word, or one string of JSON.
_WHOLE = re.compile(r"\s*(?P<q>\"?)(?P<value>[^\s{\[<\"](?:[^\n\"]*[^\s\"])?)(?P=q)\s*")


def whole_secret(body: str) -> re.Match[str] | None:
    """Return the match of a body that is nothing but a secret, if secrets were asked for; None if it is none."""
    bare = _WHOLE.fullmatch(body)
    is_none = bare is None or bare["value"].lower() in _DONE or is_harmless(bare["value"])
    return None if is_none else bare


_EXEMPT = re.compile(f"{PUBLISHED.pattern}|{VAULT_VERSION.pattern}", re.IGNORECASE)


_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=_\s-]|[^\s] [^\s]")


def from_text_base64(value: str) -> str | None:
    """Return the text that is written in base64, None if it is none. Text is what a reader can read."""
    if len(value) < 12 or _NOT_BASE64.search(value, 0, 64):
        return None
    content = from_base64(value)
    if not content or len(content) < 8:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    readable = sum(char.isprintable() or char in "\r\n\t" for char in text)
    return text if readable == len(text) and sum(char.isascii() for char in text) > 0.9 * len(text) else None


def _fake_address(address: str) -> str:
    """Return an address of the network for documentation (RFC 5737); addresses inside a network stay."""
    if not _is_public(address):
        return address
    _, colon, port = address.partition(":")
    return f"203.0.113.{hashlib.sha256(address.encode()).digest()[0]}{colon}{port}"


def _is_public(address: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(address.partition(":")[0]).is_global
    except ValueError:
        return False
