"""What the form of a value says about it: random characters, placeholders, plain words, secrets of a known form."""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Candidates for random characters: long runs of the alphabets of base64, base64url and hex.
RUN = re.compile(r"(?<![A-Za-z0-9+/=_~-])[A-Za-z0-9+/_~-]{16,}={0,2}(?![A-Za-z0-9+/_~=-])")
_PIECE = re.compile(r"[A-Za-z0-9]{12,}")
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_HEX = re.compile(r"[0-9a-f]{16,}|[0-9A-F]{16,}")
_VOWELS = re.compile("[aeiouyAEIOUY]")

# A vault's own name for one version of what it holds; programs ask for it by its name.
VAULT_VERSION = re.compile(
    r"/(?:deleted)?(?:secrets|keys|certificates|storage)/[\w-]{1,127}/[0-9a-f]{32}(?![0-9a-f])", re.IGNORECASE
)
# Published by design: hashes of subresource integrity and of images, public keys of SSH, certificates.
PUBLISHED = re.compile(
    r"(?:sha(?:1|224|256|384|512)|md5)[-:=][A-Za-z0-9+/_-]{20,}={0,2}"
    r"|AAAA(?:B3NzaC1yc2E|C3NzaC1lZDI1NTE5|E2VjZHNhLXNoYTIt|GnNrLXNzaC1lZDI1NTE5|InNrLWVjZHNh)[A-Za-z0-9+/]+={0,2}"
    r"|-----BEGIN (?:CERTIFICATE|PUBLIC KEY|RSA PUBLIC KEY|CERTIFICATE REQUEST)-----[^-]*-----END [A-Z ]+-----"
    r"|data:(?:image|font|audio|video)/[\w.+-]+;base64,[A-Za-z0-9+/=]+"
)
PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<label>(?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?)-----(?P<value>.*?)(?:-----END (?P=label)-----|\Z)",
    re.DOTALL,
)
# The credential part of an HTTP Authorization value (RFC 6750's b64token); a challenge goes on with name="..." instead.
BEARER = re.compile(
    r"\b(?:[Bb](?:earer|asic|EARER|ASIC)|D?PoP|SharedKey(?:Lite)?|SharedAccessSignature|[Tt]oken)[ \t]+(?!\w+=\\?[\"'])"
    r"(?:[\w-]{1,64}:)?(?P<value>[\w.~+/-]{16,}=*)"
)
# Short ones are told from prose by what they stand for: a name and a password.
BASIC = re.compile(r"\b[Bb]asic[ \t]+(?P<value>[A-Za-z0-9+/]{6,}={0,2})(?![\w+/=])")
USER_INFO = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,30}://[^\s/?#@:\"'<>]*:(?P<value>[^\s/?#\"'<>]+?)@(?=[\w.\[-])", re.IGNORECASE
)
STORAGE_KEY = re.compile(
    r"(?<![A-Za-z0-9+/])(?<!sha512[-:=])(?P<value>[A-Za-z0-9+/]{86}==)(?![A-Za-z0-9+/=])"
)  # 64 bytes in base64
# cloud-init's list of users and passwords, where it is part of another text.
PASSWORD_LIST = re.compile(
    r"\bchpasswd:[ \t]*\n(?:[ \t]+\w+:[^\n]*\n)*?[ \t]+list:[ \t]*[|>][+-]?[ \t]*\n(?P<value>(?:[ \t]+[\w.-]+:\S+\n?)+)"
)
# Forms that their makers publish so that scanners find them: what each begins with or holds, and the form.
_KNOWN_FORMS = (
    (("gh", "github_pat_", "glpat-"), r"gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}"),
    (("AKIA", "ASIA"), r"A(?:KI|SI)A[A-Z0-9]{16}"),
    (("AIza", "ya29."), r"AIza[\w-]{35}|ya29\.[\w-]{20,}"),
    (("xox", "hooks.slack.com"), r"xox[abeprs]-[\w-]{10,}|https://hooks\.slack\.com/services/[\w/]{20,}"),
    (("_live_", "sk-"), r"(?:sk|rk|pk)_live_[A-Za-z0-9]{16,}|sk-(?:proj-|ant-)?[\w-]{20,}"),
    (("SG.",), r"SG\.[\w-]{16,}\.[\w-]{16,}"),
    (("npm_", "pypi-", "dop_v1_", "hf_"), r"npm_\w{36}|pypi-[\w-]{50,}|dop_v1_[0-9a-f]{64}|hf_[A-Za-z0-9]{30,}"),
    (("Q~",), r"[\w~.-]{3}\dQ~[\w~.-]{31,34}"),  # a client secret of Entra
    (("0.A", "1.A"), r"[01]\.A[A-Za-z0-9_-]{3,}[\w.-]{30,}"),  # authorization codes and refresh tokens of Entra
    (("M.",), r"M\.[A-Z]\d{1,3}_[A-Z0-9]+\.[\w.!*$-]{20,}"),  # the same of Microsoft accounts
    (("JQQJ99",), r"[A-Za-z0-9]{52}JQQJ99[A-Za-z0-9]{26}"),  # keys of Azure services since 2024
)
_COMPILED_FORMS = tuple(
    (hint, re.compile(rf"(?<![A-Za-z0-9_])(?P<value>{form})(?![A-Za-z0-9])"))
    for hints, form in _KNOWN_FORMS
    for hint in hints
)

RECOVERY_KEY = re.compile(r"(?:\d{6}-){7}\d{6}")  # of BitLocker
_BEARER_START = re.compile(
    r"(?:Bearer|bearer|BEARER|bEARER|Basic|basic|BASIC|bASIC|DPoP|PoP|SharedKey(?:Lite)?|SharedAccessSignature"
    r"|Token|token)[ \t]+[\w.~+/-]"
)


def bearers(text: str) -> Iterator[re.Match[str]]:
    """Yield the matches of `BEARER`. To look for how each may begin is several times faster than to look for it."""
    for start in _BEARER_START.finditer(text):
        if (found := BEARER.match(text, start.start())) is not None:
            yield found


# Commands that take a password without a name that says so; a value that begins like a variable is none.
_GIVEN = r"(?P<value>(?![$%<{(*-])[^\s\"'|;&]+)"


def _starts(*programs: str) -> str:
    """Return a pattern of one of these programs and its arguments; not of one that is named in a longer word."""
    return rf"(?<![\w.-])(?:{'|'.join(programs)})(?:\.exe)?\b[^\n|;&]{{0,200}}?"


_COMMANDS = (
    ("curl", rf"\bcurl\b[^\n]{{0,200}}?\s(?:-u|--user)[ =]?[\"']?[^\s:\"']+:{_GIVEN}"),
    (" -p", rf"\b(?:docker|podman|oras|az|acr|registry|nerdctl) login\b[^\n|;&]{{0,200}}?\s-p[ =][\"']?{_GIVEN}"),
    (" -p", rf"\bsshpass\s+-p[ ]?[\"']?{_GIVEN}"),
    # The password follows the letter; after a blank it is the name of a database.
    (" -p", rf"{_starts('mysql[a-z]*', 'mariadb[a-z-]*', 'mongo[a-z]*', '7z[a-z]*')}\s-p[\"']?{_GIVEN}"),
    (" -p ", rf"{_starts('mongo[a-z]*')}\s-p +[\"']?{_GIVEN}"),
    (" -P", rf"{_starts('sqlcmd', 'bcp', 'unzip', 'zip', 'mosquitto_[a-z]+')}\s-P *[\"']?{_GIVEN}"),
    (" -a ", rf"{_starts('redis-cli')}\s-a +[\"']?{_GIVEN}"),
    (" -w ", rf"{_starts('ldap[a-z]+')}\s-w +[\"']?{_GIVEN}"),
    ("smbclient", rf"{_starts('smbclient')}\s-U *[\"']?[^\s\"'%]+%{_GIVEN}"),
    ("lftp", rf"{_starts('lftp')}\s-u *[\"']?[^\s\"',]+,{_GIVEN}"),
    ("sqlplus", r"\bsqlplus\s+(?:-\w+ +)*[\"']?\w+/(?P<value>(?![$%<{(*-])[^\s\"'|;&@]+)"),
    ("pass:", rf"{_starts('openssl')}\s-(?:pass|passin|passout|passwd) +[\"']?pass:{_GIVEN}"),
    (" use ", rf"\b[Nn][Ee][Tt]1?(?:\.exe)? use\b[^\n|&]{{0,200}}?\s/user:\S+ +[\"']?(?!/){_GIVEN}"),
    ("/p", rf"{_starts('cmdkey', 'xfreerdp', 'wfreerdp', 'mstsc')}\s/p(?:ass)?:[\"']?{_GIVEN}"),
    (" user ", rf"\b[Nn][Ee][Tt]1?(?:\.exe)? user \S+ [\"']?{_GIVEN}[\"']? +/add"),
    (
        "chpasswd",
        rf"\b(?:echo|printf)\s[^\n|;&]{{0,60}}?(?<![\w.-])[\w.-]+:{_GIVEN}[\"']?\s*\|\s*(?:sudo\s+)?chpasswd",
    ),
    ("chpasswd", rf"\bchpasswd\b[^\n|;&]{{0,60}}?<<<\s*[\"']?[\w.-]+:{_GIVEN}"),
    ("echo", rf"\becho\s+(?:-n\s+)?[\"']?{_GIVEN}[\"']?\s*\|[^\n|;&]{{0,200}}?(?:sudo\s+-S|--password-stdin|--stdin)"),
    ("assword", r"assword\s+(?P<q>[\"'])(?P<value>(?=[^\s\"']*\d)[^\s\"']{6,})(?P=q)"),
    ("PASSWORD", r"\bPASSWORD\s+(?P<q>[\"'])(?P<value>[^\s\"']{4,})(?P=q)"),  # of SQL: CREATE ROLE, ALTER USER
    ("DENTIFIED", r"\bIDENTIFIED (?:WITH \w+ )?BY\s+(?P<q>[\"'])(?P<value>[^\s\"']+)(?P=q)"),
    ("password", rf"\blogin\s+\S+\s+password\s+[\"']?{_GIVEN}"),  # of .netrc
    ("htpasswd", rf"\bhtpasswd\s+-\w*b\w*\s+\S+\s+\S+\s+[\"']?{_GIVEN}"),
)
_COMPILED_COMMANDS = tuple((hint, re.compile(command)) for hint, command in _COMMANDS)
# A line of PostgreSQL's password file: host:port:database:user:password. Addresses and times have other parts.
_PASSWORD_FILE = re.compile(
    r"(?<![\w.:*/-])(?:[A-Za-z0-9][\w-]*(?:\.[\w-]+)+|localhost|\*):(?:\d{3,5}|\*):(?:[A-Za-z_][\w.-]*|\*):"
    r"(?:[A-Za-z_][\w.@-]*|\*):(?P<value>(?:\\[:\\]|[^\s\"':\\])+)(?=\s|[\"'\\]|$)"
)
_PORT = re.compile(r":(?:\d{3,5}|\*):[\w*]")
# What chpasswd reads from a shell's here document.
PASSWORD_LINES = re.compile(
    r"\bchpasswd\b[^\n]{0,80}?<<-?[ \t]*[\"']?(?P<end>\w+)[\"']?[^\n]*\n(?P<value>.*?)\n[ \t]*(?P=end)\b", re.DOTALL
)
USER_AND_PASSWORD = re.compile(r"(?m)^(?P<head>[ \t]*(?:- )?[\"']?[a-z_][\w.-]{0,31}:)(?P<value>[^\s\"'][^\n\"']*)")


def commands(text: str) -> list[re.Pattern[str]]:
    """Return the commands with a password that a text may hold."""
    found = [command for hint, command in _COMPILED_COMMANDS if hint in text]
    return [*found, _PASSWORD_FILE] if _PORT.search(text) else found


def given_in(arguments: list[str]) -> dict[int, int]:
    """Return where in the arguments of a command a password begins: the number of the argument, and how far in it."""
    # What would end an argument, or the command, stands for itself inside an argument.
    whole, found = " ".join(re.sub(r"[\s|;&]", "_", argument) for argument in arguments), {}
    for command in commands(whole):
        for match in command.finditer(whole):
            before = whole[: match.start("value")]
            found[before.count(" ")] = len(before) - before.rfind(" ") - 1
    return found


def known_forms(text: str) -> list[re.Pattern[str]]:
    """Return the known forms that a text may hold."""
    return list(dict.fromkeys([form for hint, form in _COMPILED_FORMS if hint in text]))


_PLACEHOLDER = re.compile(
    r"<[^<>]*>|\$\{\{?.*\}?\}|\$\(.*\)|\$[A-Za-z_]\w*(?::[\w.-]+)?|%[A-Za-z_]\w*%|\{\{?.*\}?\}|\[[A-Za-z][^\]]*\]|@[\w.]+@"
    r"|__\w+__|#\{.*\}#?|@\w+\(.*\)"
    r"|[*xX.\u2022#?_-]{2,}|\.\.\.|\u2026|(?P<rep>.)(?P=rep){3,}"
    r"|(?:your|my|some|the|an?|insert|enter|put|add|replace|change|set|use|fill|todo|tbd|fixme)(?:[-_ ].*|me.*|it.*)"
    r"|(?:your|my)[A-Z]\w*"
    r"|.*(?:place[-_ ]?holder|change[-_ ]?(?:me|it)|redacted|sanitized|scrubbed|removed|masked|hidden|omitted"
    r"|example|dummy|sample|fake|replace[-_ ]?(?:me|with|this)|[-_ ]here\b|not[-_ ](?:a[-_ ])?real"
    r"|mock(?:ed)?\b|xxxx|\*{3,}|\.\.\.).*"
    r"|null|none|nil|undefined|true|false|yes|no|on|off|empty|n/a|na|unset|default|string|str|text|secret|password"
    r"|passwd|pass|pwd|token|key|int|integer|bool|boolean|object|bytes|optional\[?.*|securestring|secret_?str|test|testing"
    r"|foo|bar|baz|abc|value\d*|required|optional|auto|disabled|enabled|unknown",
    re.IGNORECASE | re.DOTALL,
)
_HARMLESS = re.compile(
    r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?%?"  # numbers
    r"|\d{4}-\d\d-\d\d(?:[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?"  # dates
    r"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} [\d:]{8} GMT"
    r"|true|false|null|none|yes|no|P(?:T?\d+[YMWDHS])+",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=65536)
def is_random(text: str) -> bool:
    """Return whether a run of letters and digits was made by a random number generator, not by a person.

    Names are made of words: the classes of characters change rarely, on average after three characters or more. In
    base64 they change after 1.7, in hex after 1.9 (from simulation).
    """
    if len(text) < 16 or is_published(text):
        return False
    return any(_is_random_piece(piece) for piece in _PIECE.findall(text)) or (
        len(text) >= 24 and _is_random_piece(re.sub("[^A-Za-z0-9]", "", text)) and not _is_path(text)
    )


def _is_path(text: str) -> bool:
    """Return whether separators divide a text into words and numbers."""
    parts = [part for part in re.split("[^A-Za-z0-9]+", text) if part]
    plain = [part for part in parts if part.isdigit() or part.islower() or part.isupper() or _average(part) >= 3]
    return len(parts) > 1 and len(plain) == len(parts) and sum(map(len, parts)) / len(parts) < 10


def _average(piece: str) -> float:
    tokens = _TOKEN.findall(piece)
    return len(piece) / len(tokens) if tokens else len(piece)


def _is_random_piece(piece: str) -> bool:
    digits = sum(char.isdigit() for char in piece)
    if digits == len(piece):
        return False
    if _HEX.fullmatch(piece) and digits:
        return _average(piece) < 4.0 and entropy(piece) > 2.5
    average = _average(piece)
    if len(piece) >= 16 and digits and average < 2.8:
        return entropy(piece) > 3.0
    if len(piece) >= 20 and not digits:
        mixed = piece[1:] != piece[1:].lower() and piece != piece.upper()
        few_vowels = len(_VOWELS.findall(piece)) / len(piece) < 0.2
        return (mixed and average < 2.4) or (few_vowels and entropy(piece) > 3.2)
    if len(piece) >= 24 and digits:
        few_vowels = len(_VOWELS.findall(piece)) / max(1, len(piece) - digits) < 0.2
        return few_vowels and average < 4.0 and entropy(piece) > 3.2
    return len(piece) >= 32 and average < 3.0 and entropy(piece) > 3.6


def could_be_key(text: str) -> bool:
    """Return whether a value under a doubtful name is made of random characters, by a lower bar than `is_random`."""
    if _HARMLESS.fullmatch(text) or is_published(text):
        return False
    if _HEX.fullmatch(text):
        return True
    if re.fullmatch(r"[A-Za-z0-9+/_~.-]{16,}={0,2}", text) is None:
        return False
    if text.endswith("=") and _decodes(text) and len(text) >= 24:
        return True
    return is_random(text) or (any(char.isdigit() for char in text) and _average(text) < 3.0 and not _is_path(text))


def is_published(text: str) -> bool:
    """Return whether a value is of a form that is made to be published."""
    return bool(PUBLISHED.fullmatch(text))


@functools.lru_cache(maxsize=65536)
def entropy(text: str) -> float:
    """Return Shannon's entropy in bits a character."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def is_harmless(text: str) -> bool:
    """Return whether a value is a number, a date, a duration or a truth value."""
    return bool(_HARMLESS.fullmatch(text))


@functools.lru_cache(maxsize=65536)
def is_placeholder(text: str) -> bool:
    """Return whether a value stands for one that the reader is to put in, or for one that was taken out."""
    bare = text.strip().strip("\"'`").strip()
    return not bare or bool(_PLACEHOLDER.fullmatch(bare))


def is_word(text: str) -> bool:
    """Return whether a value is one plain word or identifier without digits."""
    return bool(re.fullmatch(r"[A-Za-z]+(?:[ _.-][A-Za-z]+)*", text)) and len(text) < 24


def is_no_word(text: str) -> bool:
    """Return whether a value may be a key: it is neither a word, nor a number or date, nor too short."""
    return len(text) >= 6 and not is_word(text) and not is_harmless(text)


def _decodes(text: str) -> bool:
    try:
        base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
