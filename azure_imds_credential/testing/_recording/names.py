"""What the name of a value says about it: whether Azure's services, or anyone else, keep secrets under such a name."""

from __future__ import annotations

import functools
import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class NameKind(Enum):
    """What is known of a value by its name."""

    SECRET = "whatever stands there is a secret"  # noqa: S105 - no password
    KEY = "a secret, unless it is a plain word"
    MAYBE = "a secret if it could be one by its form"
    PERSON = "says who a person is"
    PUBLIC = "made to be published: checksums, certificates, public keys"
    PLAIN = "nothing"


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

# The last word of a name that makes the value a secret.
_SECRET_WORDS = frozenset(
    """
    credential password passwords passwd passwort psk pwd pw passphrase passcode secret assertion sas sig jwt pat
    kubeconfig kubeconfigs pfx cookie authorization apikey accesskey secretkey privatekey accountkey dbpassword
    clientsecret authtoken accesstoken refreshtoken bearer otp totp samlresponse samlassertion connectionstring
    sharedaccesskey sharedaccesssignature masterkey functionkey hostkey userpwd publishingpassword subscriptionkey
    adminpassword administratorloginpassword pass tempauth
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
_SECRET_ENDS = (
    "password",
    "dbpass",
    "userpass",
    "adminpass",
    "rootpass",
    "sqlpass",
    "smtppass",
    "redispass",
    "sshpass",
    "storepass",
    "keypass",
    # Words written as one, as Azure DevOps writes them.
    "principalkey",
    "accountkey",
    "accesskey",
    "storagekey",
    "apikey",
    "secretkey",
    "privatekey",
    "sharedkey",
    "signingkey",
    "encryptionkey",
    "accesstoken",
    "authtoken",
    "apitoken",
    "bearertoken",
    "refreshtoken",
    "sastoken",
    "sessiontoken",
)
# The two last words.
_SECRET_PAIRS = frozenset(
    """
    connection-string connection-strings secret-value secret-text secret-string secret-data secret-key secret-hex
    secret-access secret-bytes secure-value password-value key-data device-code user-code authorization-code
    auth-code code-verifier protected-settings sas-uri sas-url shared-access access-signature access-key account-key
    api-key auth-key function-key functions-key host-key master-key system-key shared-key storage-key subscription-key
    admin-key query-key client-key private-key signing-key encryption-key symmetric-key delegation-key webhook-key
    license-key listen-key send-key manage-key deploy-key service-key server-key session-key app-key application-key
    consumer-key hmac-key aes-key authentication-key authorization-key registration-key workspace-key readonly-key
    write-key certificate-key saml-response client-assertion basic-auth proxy-authorization authorization-auxiliary
    source-authorization admin-pass db-pass database-pass user-pass mysql-pass postgres-pass redis-pass smtp-pass
    kv-secret
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
# A name that ends in "token" is a secret, unless one of these comes before it: places in a list, and counts.
_OTHER_TOKENS = frozenset(
    """
    next continuation skip cancellation page sync delta cursor resume max min total prompt completion input output
    stop start end unk pad eos bos num change marker range
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
# A name that ends in "key" may be one of a row, a list or a table.
_OTHER_KEYS = frozenset(
    """
    partition row sort foreign object cache routing group index unique composite lookup natural range field property
    resource map translation message event dedupe hot short config setting order label feature json dictionary
    parent child item cell public issue project ticket lock entity table column custom answer question context
    correlation telemetry metric dimension state surrogate idempotency
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
# Two halves of one pair of keys; a database has a "primary key" as well, which is a word.
# What a Graph subscription calls "client state" is a secret of both sides.
_KEYS = frozenset({"primary-key", "secondary-key", "primary-keys", "secondary-keys", "client-state"})
_MAYBE_WORDS = frozenset(
    """
    key keys code token value signature nonce state hash salt seed digest login auth primary secondary
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)

_PUBLIC_NAMES = re.compile(
    r"(?:etag|if-?(?:none-?)?match|(?:x-ms-)?(?:blob-)?content-?(?:md5|crc64|sha\d*)|x-ms-content-crc64|md5|crc64|crc32c?"
    r"|(?:content-?)?sha-?(?:1|224|256|384|512)(?:sum)?|digest|checksum|integrity|thumbprint|fingerprint|x5t(?:#?s256)?"
    r"|x5c|cer|certificate-?authority(?:-?data)?|client-?certificate-?data|ca-?data|public-?key(?:-?data)?|key-?data-?public"
    r"|commit(?:-?(?:id|sha))?|git-?(?:commit|sha)|revision|image-?digest|kid|version-?id|serial-?number|sec-websocket-(?:key|accept))",
    re.IGNORECASE,
)
_PUBLIC_ENDS = ("etag", "md5", "sha1", "sha256", "sha384", "sha512", "crc64", "checksum", "thumbprint", "digest")
# Names of persons, as Microsoft Graph and tokens call them. A display name may be that of anything, and stays.
_PERSONS = frozenset(
    """
    givenname surname userprincipalname upn preferredusername uniquename familyname mailnickname mobilephone
    businessphones onpremisessamaccountname signinname clientprincipalname
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
# Members that hold the value of something that is named beside them or around them.
HOLDERS = frozenset(
    """
    value defaultvalue securevalue secretvalue stringvalue currentvalue text data content #text rawvalue
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
# Where an operation hands out secrets, these hold them, short or plain as they may be.
_HANDED_OUT = frozenset({"key", "keys", "value", "values", "primary", "secondary", "token", "stringvalue", "keyvalue"})
# What stands beside a bare "key" that is a secret, not one of a row or a table.
_BESIDE_A_SECRET_KEY = frozenset(
    """
    keyname keyid endpoint user username login accountname permissions rights
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
NAMING = ("name", "key", "keyname", "keyName", "Name", "Key", "KeyName", "secretName", "variable", "settingName")
# A mapping or a list under one of these holds secrets, whatever their names.
_CONTAINERS = re.compile(
    r"(?:function|system|host|master|access|account|shared|admin|query|api|subscription|auth\w*|storage|list)_?-?keys"
    r"|keys|secrets?|credentials|passwords|stringdata|secureobject|protectedsettings\w*|connection_?strings",
    re.IGNORECASE,
)
# What stands beside the secrets in such a container, and says nothing secret.
_DESCRIBING = re.compile(
    r"(?:\w*name|permissions?|rights|type|kind|id|\w*uri|\w*url|location|region|created\w*|creation\w*|updated\w*"
    r"|\w*time|\w*date|\w*on|enabled|description|label|links?|href|rel|tags?|status|state|version|contenttype"
    r"|apiversion|username|userid|user|login|server|host|authority|identity\w*|provider|scheme|startdatetime|enddatetime"
    r"|hint|keyid|kid|kty|alg|use|usage|namespace|file\w*|path|mount\w*|ref|optional|method)",
    re.IGNORECASE,
)


# The end of a path whose answer is a secret. Azure's own operations: listKeys, listSecrets, listValue, regenerateKey.
_HANDING_OUT = re.compile(
    r"(?:list|get|show|regenerate|rotate|renew|roll|create|generate|reset|retrieve|fetch|read)[a-z_-]*"
    r"(?:keys?|secrets?|passwords?|credentials?|tokens?|connection_?strings?|secret_?value|namedvalue|sas)|listvalue",
    re.IGNORECASE,
)
# Headers of one maker that carry a key without saying so.
_CREDENTIAL_HEADERS = frozenset(
    """
    api-key authorization authentication cookie proxy-authorization set-cookie x-ms-authorization-auxiliary
    x-honeycomb-team x-identity-header x-jfrog-art-api
    """.split()  # noqa: SIM905 - a list of words reads better than a page of strings
)
_ACCOUNT_KEY_SETTING = re.compile(r"fs\.azure\.account\.key\.\S+", re.IGNORECASE)  # of Hadoop's file system for Azure


_OPTION = re.compile(r"--?(?P<name>[A-Za-z][\w-]{2,60})")


def words_of(name: str) -> list[str]:
    """Return the words of a name in camel case, with dashes, underscores, dots or blanks, in lower case."""
    return [word.lower() for word in _WORD.findall(name)]


@functools.lru_cache(maxsize=4096)
def kind_of(name: str) -> NameKind:
    """Return what a name says about its value."""
    words = words_of(name)
    if not words:
        return NameKind.PLAIN
    if _PUBLIC_NAMES.fullmatch(name.strip("_$@ ")) or name.lower().endswith(_PUBLIC_ENDS):
        return NameKind.PUBLIC
    while len(words) > 1 and words[-1].isdigit():  # password1, key2
        words = words[:-1]
    if "".join(words) in _PERSONS:
        return NameKind.PERSON
    last, joined, pair = words[-1], "".join(words), "-".join(words[-2:])
    if _ACCOUNT_KEY_SETTING.fullmatch(name):
        return NameKind.SECRET
    if pair in _KEYS or joined in ("primarykey", "secondarykey"):
        return NameKind.KEY
    if last in _SECRET_WORDS or joined in _SECRET_WORDS or pair in _SECRET_PAIRS or last.endswith(_SECRET_ENDS):
        return NameKind.SECRET
    if last == "api" and words[0] == "x" and len(words) > 2:  # X-JFrog-Art-Api
        return NameKind.KEY
    if last == "token" and not _OTHER_TOKENS.intersection(words):
        return NameKind.SECRET if len(words) > 1 else NameKind.KEY
    if last == "key" and words[0] in ("primary", "secondary") and len(words) > 2:  # secondaryReadonlyMasterKey
        return NameKind.SECRET
    if last == "key" and len(words) > 1 and not _OTHER_KEYS.intersection(words):
        return NameKind.KEY
    return NameKind.MAYBE if last in _MAYBE_WORDS or name.lower() in HOLDERS else NameKind.PLAIN


def kind_of_header(name: str) -> NameKind:
    """Return what the name of a header says: one that ends in "key", "token" or "api" holds a credential."""
    words, kind = words_of(name), kind_of(name)
    if name.lower() in _CREDENTIAL_HEADERS:
        return NameKind.SECRET
    if kind is NameKind.KEY and words[-1] != "api":
        return NameKind.SECRET
    return NameKind.KEY if words[-1:] == ["api"] and words[0] == "x" else kind


def hands_out_secrets(path: str) -> bool:
    """Return whether the path of a request asks for secrets, as those of Azure's list operations do."""
    segments = [segment for segment in path.split("/") if segment]
    if segments[-1:] == ["action"]:
        segments.pop()
    if not segments:
        return False
    last = segments[-1]
    if _HANDING_OUT.fullmatch(last) or kind_of(last) in (NameKind.SECRET, NameKind.KEY):
        return True
    return any(is_container(segment) for segment in segments[-2:])


def is_handed_out(name: str) -> bool:
    """Return whether a member of the answer to such a request is what was asked for."""
    return plain_name(name).rstrip("0123456789") in _HANDED_OUT


@functools.lru_cache(maxsize=4096)
def says_nothing(name: str) -> bool:
    """Return whether a name says nothing about its value, wherever it stands."""
    return kind_of(name) is NameKind.PLAIN and not lists_secrets(name) and plain_name(name) not in HOLDERS


def says_of_key(beside: Mapping[str, str]) -> bool:
    """Return whether what stands beside a bare "key" says that the key is a secret."""
    names = {plain_name(name) for name in beside}
    return "value" not in names and bool(_BESIDE_A_SECRET_KEY & names)


def name_within(name: str, beside: Mapping[str, str]) -> str:
    """Return what a member is called for what lies in it: the data of a Kubernetes Secret are secrets."""
    of_kubernetes = beside.get("kind") == "Secret" or beside.get("type", "").startswith(("Opaque", "kubernetes.io/"))
    return "secrets" if name == "data" and of_kubernetes else name


@functools.lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """Return a name in lower case without dashes and underscores."""
    return name.lower().replace("_", "").replace("-", "")


def kind_of_pair(name: str, value: str) -> NameKind:
    """Return what a name says about its value, where the value may be the address of who gives a secret out."""
    if name.lower().rpartition(" ")[2].startswith("authorization") and value.lower().startswith(
        ("http://", "https://")
    ):
        return NameKind.PLAIN  # a challenge of Key Vault
    return kind_of(name)


@functools.lru_cache(maxsize=4096)
def lists_secrets(name: str) -> bool:
    """Return whether each item of a list under a name is a secret. Plain "keys" and "secrets" may be permissions."""
    return is_container(name) and name.lower() not in ("keys", "secrets", "credentials")


def option_name(argument: str) -> str:
    """Return the name of a command's option that is followed by a secret, "" if this is none."""
    option = _OPTION.fullmatch(argument)
    return option["name"] if option is not None and kind_of(option["name"]) is NameKind.SECRET else ""


@functools.lru_cache(maxsize=4096)
def is_container(name: str) -> bool:
    """Return whether what lies under a name is all secrets."""
    return bool(_CONTAINERS.fullmatch(name))


@functools.lru_cache(maxsize=4096)
def describes(name: str) -> bool:
    """Return whether a member of such a container describes a secret instead of being one."""
    return bool(_DESCRIBING.fullmatch(name)) and kind_of(name) is not NameKind.SECRET
