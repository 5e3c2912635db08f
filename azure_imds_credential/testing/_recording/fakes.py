"""Stable fakes for what must not be recorded, and how to tell a fake from the real thing.

A fake has the length and the alphabet of what it stands for and is spelled with the letters of the word "fake", so that
anyone, and the scan, can tell it from a real value. The fake of an identity is computed from the identity: it is the
same in every recording and in every form of the identity. The hashes cover GUIDs, which cannot be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from ..._jwt import claims_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NO_GUID = "00000000-0000-0000-0000-000000000000"

# In any case, with dashes, underscores or none, alone or inside a longer name.
GUID = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])|[0-9a-f]{8}([-_])[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}",
    re.IGNORECASE,
)
# Three parts: a JWT; up to five: one that is encrypted.
TOKEN = re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{2,}\.[\w-]*(?:\.[\w-]*){0,2}")
EMAIL = re.compile(r"(?<![\w.%+-])[\w%+-][\w.%+-]{0,63}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(?![\w-])", re.IGNORECASE)

FAKE_GUID_PREFIX = "facade00"
FAKE_NAME_PREFIX = "recorded-"
# The signature of the dummies of version 0.1.0, whose recordings go on working.
_OLD_SIGNATURE = base64.urlsafe_b64encode(b"dummy signature by imds_vcr").rstrip(b"=").decode()
_SIGNATURE_LENGTH = 342  # characters of an RS256 signature over a key of 2048 bits

# Claims of managed identity tokens (public captures of 2024 and 2025) that say nothing about who was recorded.
_KEPT_CLAIMS = frozenset(
    {"appidacr", "aud", "exp", "iat", "idtyp", "nbf", "ver", "xms_act_fct", "xms_idrel", "xms_sub_fct"}
)
_KEPT_HEADERS = frozenset({"alg", "cty", "enc", "typ", "zip"})
_IDENTIFYING_CLAIMS = frozenset({"appid", "azp", "idp", "iss", "oid", "sub", "tid", "xms_az_rid", "xms_mirid"})

_NAME = r"[^/\s\"'&?#<>,;|()\\]+"
ARM_ID = re.compile(
    rf"/subscriptions/(?P<subscription>{_NAME})"
    rf"(?:/(?P<groups>resourcegroups)/(?P<group>{_NAME}))?"
    rf"(?:/providers/(?P<provider>[\w.]+)(?P<names>(?:/\w+/{_NAME})+))?",
    re.IGNORECASE,
)
# What follows these types is Azure's own name.
_PUBLIC_TYPES = frozenset({"locations", "providers", "edgezones", "roledefinitions", "policydefinitions"})
_PUBLIC_NAMES = frozenset({"default", "current", "latest", "$default", "master", "web", "logs", "appsettings"})

_SPELLING = {"lower": "fake", "upper": "FAKE", "digit": "09"}
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)  # a fake keeps that of a URL
_SPELLED = re.compile(r"[\W_fakeFAKE09]*")
_NO_LETTER = re.compile(r"[\W_]+")


# Secrets


def fake_text(real: str, seed: str) -> str:
    """Return a fake of the same length and alphabet.

    Args:
        real: The value that the fake stands for. Only the kind of each character goes into the fake.
        seed: Decides which fake it is.
    """
    if real.isdigit():
        return _fake_digits(len(real), seed)
    noise = hashlib.shake_256(seed.encode()).digest(len(real))
    hexadecimal = bool(re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", real)) and any(char.isdigit() for char in real)
    word, spelled = ("fae" if hexadecimal else "fake"), 0
    mostly_signs = 2 * sum(char.isalnum() for char in real) < len(real)
    fake = []
    for char, number in zip(real, noise, strict=True):
        if not char.isalnum() and not (mostly_signs and not char.isspace() and char != "="):
            fake.append(char)
        elif char.isdigit():
            fake.append("09"[number % 2])
        else:
            letter = word[spelled] if spelled < len(word) else word[number % len(word)]
            spelled += 1
            fake.append(letter.upper() if char.isupper() else letter)
    return _with_whole_bytes("".join(fake), real)


def _fake_digits(length: int, seed: str) -> str:
    noise = hashlib.shake_256(seed.encode()).digest(length)
    return ("90" + "".join("09"[number % 2] for number in noise))[:length]


def _with_whole_bytes(fake: str, real: str) -> str:
    """Return the fake with a last character that strict base64 decoders take: its unused bits are zero."""
    if len(real) >= 16 and re.fullmatch(r"[\w+/-]+={0,2}", real, re.ASCII) and len(real.rstrip("=")) % 4 in (2, 3):
        end = len(real.rstrip("="))
        if real[end - 1].isalnum():
            return f"{fake[: end - 1]}A{fake[end:]}"
    return fake


def is_fake(text: str) -> bool:
    """Return whether a text is spelled as `fake_text` spells, whatever its length."""
    if "://" in text:
        text = _SCHEME.sub("", text)
    if not _SPELLED.fullmatch(text) and "acade00" not in text.lower():
        return False
    signs = _NO_LETTER.sub("", text)
    if len(signs) == 32 and signs.lower().startswith(FAKE_GUID_PREFIX):
        return True
    if not signs:
        return False
    if signs.isdigit():
        return len(signs) > 1 and signs.startswith("90"[: len(signs)]) and not signs.strip("09")
    if signs.strip("fakeFAKE09"):
        return False
    letters = re.sub("[0-9]", "", signs).lower()
    return letters.startswith(("fake"[: len(letters)], "fae"[: len(letters)]))


# Identities


def fake_guid(real: str) -> str:
    """Return the fake of a GUID, in the form of the real one: case, dashes or none.

    Fakes, and GUIDs of one repeated digit, stand for themselves.
    """
    digits = re.sub("[-_]", "", real).lower()
    if digits.startswith(FAKE_GUID_PREFIX) or len(set(digits)) == 1:
        return real
    canonical = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    h = hashlib.sha256(canonical.encode()).hexdigest()
    fake = f"{FAKE_GUID_PREFIX}-{h[:4]}-4{h[4:7]}-8{h[7:10]}-{h[10:22]}"
    separator = real[8] if real[8] in "-_" else ""
    fake = fake.replace("-", separator)
    return fake.upper() if real.upper() == real and real.lower() != real else fake


def fake_email(real: str, seed: str) -> str:
    """Return the fake of an e-mail address; the last label of its domain stays."""
    rest, dot, last = real.rpartition(".")
    return fake_text(rest, seed) + dot + last


def fake_name(subscription: str, name: str) -> str:
    """Return the fake of a name in an ARM ID. The subscription goes in, so that names cannot be guessed from it."""
    if name.lower().startswith(FAKE_NAME_PREFIX) or name.lower() in _PUBLIC_NAMES:
        return name
    if GUID.fullmatch(name):
        return fake_guid(name)
    return FAKE_NAME_PREFIX + hashlib.sha256(f"{subscription}/{name}".lower().encode()).hexdigest()[:8]


def fake_arm_id(real: re.Match[str], note_name: Callable[[str, str], None] = lambda _real, _fake: None) -> str:
    """Return the fake of an ARM ID: the same kind of resource, all names replaced.

    Args:
        real: A match of `ARM_ID`.
        note_name: Is told each name and its fake.
    """

    def named(name: str) -> str:
        fake = fake_name(real["subscription"], name)
        if fake != name:
            note_name(name, fake)
        return fake

    fake = f"{real[0][:15]}{GUID.sub(lambda guid: fake_guid(guid[0]), real['subscription'])}"
    if real["group"]:
        fake += f"/{real['groups']}/{named(real['group'])}"
    if real["provider"]:
        types_and_names = real["names"].split("/")[1:]
        pairs = zip(types_and_names[::2], types_and_names[1::2], strict=True)
        provider = real[0][: real.start("provider") - real.start()].rsplit("/", 2)[1]
        fake += f"/{provider}/{real['provider']}" + "".join(
            f"/{kind}/{name if kind.lower() in _PUBLIC_TYPES else named(name)}" for kind, name in pairs
        )
    return fake


def find_arm_ids(text: str) -> list[re.Match[str]]:
    """Return the ARM IDs of a text that name more than a subscription, whose GUID is found as a GUID."""
    return [match for match in ARM_ID.finditer(text) if match["group"] or match["provider"]]


# Tokens


def dummy_token(claims: Mapping[str, Any]) -> str:
    """Return a JWT with these claims that nothing accepts."""
    header = {"typ": "JWT", "alg": "RS256", "kid": "fake"}
    signature = fake_text("a" * (_SIGNATURE_LENGTH - 1) + "A", "signature")
    return f"{_segment(header)}.{_segment(claims)}.{signature}"


def is_dummy_token(token: str) -> bool:
    """Return whether a JWT has the signature of the dummies, which makes it worthless whatever its claims say."""
    parts = token.split(".")
    if len(parts) == 3:
        return parts[2] == _OLD_SIGNATURE or (len(parts[2]) >= 8 and is_fake(parts[2]))
    return len(parts) == 5 and all(is_fake(part) for part in parts[2:] if part)


def looks_signed(token: str) -> bool:
    """Return whether the first part of what looks like a JWT is the header of one."""
    return bool(claims_of(f".{token.partition('.')[0]}."))


def dummy_of(token: str, scrub: Callable[[str], str]) -> str:
    """Return the dummy that takes the place of a token: the same claims, each with a fake of the same type and length.

    Args:
        token: What was recorded. Of one that is encrypted only the header's algorithms are kept.
        scrub: Puts fakes into the text of a claim that says whose token it is.
    """
    head, payload, *rest = token.split(".")
    header = claims_of(f".{head}.")
    kept = {name: value if name in _KEPT_HEADERS else _fake_value(name, value) for name, value in header.items()}
    head = _segment(kept) if header else fake_text(head, head)
    claims = claims_of(f".{payload}.")
    if claims and len(rest) == 1:
        payload = _segment({name: _fake_claim(name, value, scrub) for name, value in claims.items()})
    else:
        payload = fake_text(payload, payload)
    return ".".join((head, payload, *(fake_text(part, f"signature {len(part)}") for part in rest)))


def with_claims(token: str, claims: Mapping[str, Any]) -> str:
    """Return a dummy token with other claims and its own header and signature."""
    head, _, signature = token.split(".")
    return f"{head}.{_segment(claims)}.{signature}"


def _fake_claim(name: str, value: Any, scrub: Callable[[str], str]) -> Any:
    if name in _KEPT_CLAIMS:
        return value
    if name in _IDENTIFYING_CLAIMS and isinstance(value, str):
        return scrub(value)
    return _fake_value(name, value)


def _fake_value(name: str, value: Any) -> Any:
    """Return a fake of the type and length of a claim; nothing of the value itself decides which."""
    if isinstance(value, str):
        return GUID.sub(lambda guid: fake_guid(guid[0]), value) if GUID.fullmatch(value) else fake_text(value, name)
    if isinstance(value, list):
        return [_fake_value(name, item) for item in value]
    if isinstance(value, dict):
        return {"fake": "fake"}
    if isinstance(value, bool) or value is None:
        return value
    return int(_fake_digits(len(str(abs(int(value)))), name))


def _segment(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
