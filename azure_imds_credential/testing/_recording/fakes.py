"""Stable fakes for what must not be recorded, and how to tell a fake from the real thing.

A fake is computed from what it stands for, never drawn or counted: the same identity has the same fake in every
recording, whatever the order of the requests. The hashes cover GUIDs, which cannot be guessed. Secret values can be,
so no trace of theirs is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from ..._claims import claims_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SCRUBBED = "scrubbed"
NO_GUID = "00000000-0000-0000-0000-000000000000"

GUID = re.compile(r"(?<![0-9a-f-])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f-])", re.IGNORECASE)
# Three parts: a JWT; up to five: one that is encrypted.
TOKEN = re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{2,}\.[\w-]*(?:\.[\w-]*){0,2}")

FAKE_GUID_PREFIX = "facade00-"
FAKE_NAME_PREFIX = "recorded-"
# In place of the 256 bytes of an RS256 signature, so that no service on earth takes the token.
_SIGNATURE = base64.urlsafe_b64encode(b"dummy signature by imds_vcr").rstrip(b"=").decode()

# Claims of managed identity tokens (public captures of 2024 and 2025) that say nothing about who was recorded.
_KEPT_CLAIMS = frozenset(
    {"appidacr", "aud", "exp", "iat", "idtyp", "nbf", "ver", "xms_act_fct", "xms_idrel", "xms_sub_fct"}
)
_IDENTIFYING_CLAIMS = frozenset({"appid", "azp", "idp", "iss", "oid", "sub", "tid", "xms_az_rid", "xms_mirid"})

_ARM_ID = re.compile(
    r"/subscriptions/(?P<subscription>[^/\s\"'&?#]+)"
    r"(?:/(?P<groups>resourcegroups)/(?P<group>[^/\s\"'&?#]+))?"
    r"(?:/providers/(?P<provider>[\w.]+)(?P<names>(?:/\w+/[^/\s\"'&?#]+)+))?",
    re.IGNORECASE,
)


def fake_guid(real: str) -> str:
    """The fake of a GUID; fakes, and GUIDs of one repeated digit, stand for themselves."""
    guid = real.lower()
    if guid.startswith(FAKE_GUID_PREFIX) or len(set(guid) - {"-"}) == 1:
        return real
    h = hashlib.sha256(guid.encode()).hexdigest()
    return f"{FAKE_GUID_PREFIX}{h[:4]}-4{h[4:7]}-8{h[7:10]}-{h[10:22]}"


def fake_arm_id(real: re.Match[str]) -> str:
    """The fake of an ARM ID: same kind of resource, all names replaced."""

    def fake_name(name: str) -> str:
        if name.lower().startswith(FAKE_NAME_PREFIX):
            return name
        in_subscription = f"{real['subscription']}/{name}".lower()
        return FAKE_NAME_PREFIX + hashlib.sha256(in_subscription.encode()).hexdigest()[:8]

    fake = f"/subscriptions/{GUID.sub(lambda guid: fake_guid(guid[0]), real['subscription'])}"
    if real["group"]:
        fake += f"/{real['groups']}/{fake_name(real['group'])}"
    if real["provider"]:
        types_and_names = real["names"].split("/")[1:]
        pairs = zip(types_and_names[::2], types_and_names[1::2], strict=True)
        fake += f"/providers/{real['provider']}" + "".join(f"/{kind}/{fake_name(name)}" for kind, name in pairs)
    return fake


def find_arm_ids(text: str) -> list[re.Match[str]]:
    """The ARM IDs of a text that name more than a subscription; the GUID of a subscription is found as a GUID."""
    return [match for match in _ARM_ID.finditer(text) if match["group"] or match["provider"]]


def dummy_token(claims: Mapping[str, Any]) -> str:
    """A JWT with these claims that nothing accepts."""
    header = {"typ": "JWT", "alg": "RS256", "kid": "dummy"}
    return f"{_segment(header)}.{_segment(claims)}.{_SIGNATURE}"


def is_dummy_token(token: str) -> bool:
    """Whether a JWT has the signature of the dummies, which makes it worthless whatever its claims say."""
    return token.count(".") == 2 and token.rpartition(".")[2] == _SIGNATURE


def looks_signed(token: str) -> bool:
    """Whether the first part of what looks like a JWT is the header of one."""
    return bool(claims_of(f".{token.partition('.')[0]}."))


def dummy_of(token: str, scrub: Callable[[str], str]) -> str:
    """The dummy that takes the place of a token: the same claims, each with a fake of the same type.

    Args:
        token: What was recorded. Of one that is no JWT, or that is encrypted, nothing is kept.
        scrub: Puts fakes into the text of a claim that says whose token it is.
    """
    return dummy_token({name: _fake_claim(name, value, scrub) for name, value in claims_of(token).items()})


def _fake_claim(name: str, value: Any, scrub: Callable[[str], str]) -> Any:
    if name in _KEPT_CLAIMS:
        return value
    if name in _IDENTIFYING_CLAIMS and isinstance(value, str):
        return scrub(value)
    return _fake_value(value)


def _fake_value(value: Any) -> Any:
    if isinstance(value, str):
        return "dummy"
    if isinstance(value, list):
        return [_fake_value(item) for item in value]
    if isinstance(value, dict):
        return {"dummy": "dummy"}
    return value if isinstance(value, bool) or value is None else 0


def _segment(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
