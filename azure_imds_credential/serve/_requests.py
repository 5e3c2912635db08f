"""Which requests are answered at all, and what they ask for. Pure: headers and a target in, an answer or a query out.

IMDS itself refuses requests without `Metadata: true` and those with X-Forwarded-For
(https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#security-and-authentication). A loopback
port is also within reach of web pages that a browser of this machine shows, hence the other rules.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl

from multidict import CIMultiDictProxy

from ._answers import LOOP_CODE, NO_METADATA_HEADER, NOT_HTTP, WRONG_METHOD, Answer, identity_error

TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105 # a path, not a password
_INSTANCE_PATH = re.compile(r"/metadata/(?:versions|instance(?:/[\w-]+)*)", re.ASCII)
AGENT = "azure-imds-serve"  # what serve calls itself where it asks; so that it never answers itself

# The parameters of the REST specification (imds/data-plane, 2023-07-01), and `mi_res_id`, which IMDS takes too
# (https://github.com/Azure/azure-sdk-for-go/issues/22650). `authority` is refused: the tokens of another authority
# would need a cache of their own, and no SDK sends it.
SELECTORS = {
    "client_id": "client_id",
    "object_id": "object_id",
    "msi_res_id": "resource_id",
    "mi_res_id": "resource_id",
}
_PARAMETERS = {"api-version", "resource", "bypass_cache", *SELECTORS}
_OLDEST_VERSION = "2018-02-01"  # the first that has managed identities
_MOST_PARAMETERS = 20
MAX_HEADERS = 64  # clients of IMDS send about ten
_HTTP_PORT = 80  # clients leave it out of Host
_IMDS_HOSTS = ("169.254.169.254", "169.254.169.254:80")  # for machines that redirect IMDS's address to this port


class TokenQuery(NamedTuple):
    """What a token is asked for.

    Attributes:
        selector: `client_id`, `object_id`, `resource_id`, or None: IMDS chooses.
        value: Its value.
        resource: Who the token is for.
        bypass_cache: A newer token is wanted than the one that is held.
    """

    selector: str | None
    value: str | None
    resource: str
    bypass_cache: bool


class Hosts:
    """The Host headers under which serve is asked, in lower case.

    A web page that has its own name lead to this machine (DNS rebinding) sends that name. It cannot send an address:
    then the browser keeps it from reading, and from adding a Metadata header.

    Args:
        port: Where serve listens.
        more: Names, or names with a port, by which it may be asked besides.
    """

    def __init__(self, port: int, more: Iterable[str] = ()) -> None:
        self._port = port
        self._names = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._names |= {*_IMDS_HOSTS, *(name.lower() for name in more)}
        self._names |= {f"{name.lower()}:{port}" for name in more}
        if port == _HTTP_PORT:
            self._names |= {name.removesuffix(f":{port}") for name in self._names}

    def allow(self, host: str, local_address: str) -> bool:
        """Return whether a request with this Host may be answered.

        Args:
            host: The header.
            local_address: The IP address of this machine that the connection was made to.
        """
        if host.lower() in self._names:
            return True
        address = ipaddress.ip_address(local_address.partition("%")[0])  # the zone of a link-local address
        mapped = getattr(address, "ipv4_mapped", None) or address
        name = str(mapped) if mapped.version == 4 else f"[{mapped}]"
        return host == f"{name}:{self._port}" or (self._port == _HTTP_PORT and host == name)


def refusal(
    version: tuple[int, int],
    method: str,
    target: str,
    headers: CIMultiDictProxy[str],
    hosts: Hosts,
    local_address: str,
) -> Answer | None:
    """Return the answer to a request that is refused whatever it asks for; None for one that is not.

    Args:
        version: The version of HTTP that it names.
        method: Its method.
        target: Its target as it was sent.
        headers: Its headers.
        hosts: The Host headers that are this machine's.
        local_address: The IP address that the connection was made to.
    """
    if version not in ((1, 0), (1, 1)):
        return NOT_HTTP
    if method not in ("GET", "HEAD"):
        return WRONG_METHOD
    if not target.startswith("/") or "#" in target:  # a fragment is the client's own, RFC 9110, section 4.2.5
        return identity_error(400, "The request target must be a path", reason="target")
    if len(headers) > MAX_HEADERS:
        return identity_error(400, "Too many headers", reason="headers")
    named = headers.getall("Host", [])
    if len(named) != 1:
        return identity_error(400, "Exactly one Host header is needed", reason="host")
    if not hosts.allow(named[0], local_address):
        return identity_error(
            403, "The Host header does not name this service (see --allow-host)", "forbidden", reason="host"
        )
    for name, reason in _REFUSED_HEADERS.items():
        if name in headers:
            return identity_error(400, f"{name} header is not allowed", reason=reason)
    if "Transfer-Encoding" in headers or any(each != "0" for each in headers.getall("Content-Length", [])):
        return identity_error(400, "A request body is not allowed", reason="body")
    if AGENT in (headers.get("User-Agent", "")):
        return identity_error(421, "azure-imds serve does not answer azure-imds serve", LOOP_CODE, reason="loop")
    return None


_REFUSED_HEADERS = {
    "X-Forwarded-For": "forwarded",  # documented by IMDS
    "Forwarded": "forwarded",  # the same, as RFC 7239 has it
    "Origin": "browser",  # of every request that a page makes to another site with more than the plainest headers
    "Sec-Fetch-Site": "browser",  # of every request of a browser to this machine; pages cannot leave it out
}


def metadata_refusal(headers: CIMultiDictProxy[str]) -> Answer | None:
    """Return IMDS's answer to a request without `Metadata: true`: once, in lower case, as documented."""
    return None if headers.getall("Metadata", []) == ["true"] else NO_METADATA_HEADER


def split_target(target: str) -> tuple[str, str]:
    """Return path and query of a target.

    msal4j before 1.26 puts a slash behind the variable's value, so a path may begin with two. msal-node ends it with a
    slash.
    """
    path, _, query = target.partition("?")
    path = path[1:] if path.startswith("//") else path
    return path if path == "/" else path.removesuffix("/"), query


def is_instance_path(path: str) -> bool:
    """Return whether a path may be handed through to IMDS.

    Its names have letters and digits only. Dots, plain or as %2e, would lead out of it: to the token endpoint, say.
    """
    return _INSTANCE_PATH.fullmatch(path) is not None


@lru_cache(1024)  # programs ask the same question again and again; a query has at most 8,190 bytes
def token_query(query: str) -> TokenQuery | Answer:
    """Read the query of a request for a token, or return the refusal. Words of IMDS where they are known."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS, errors="strict")
    except ValueError:  # too many, or bytes that are no UTF-8
        return identity_error(400, "Unsupported query variables")
    given = dict(pairs)
    for name in ("api-version", "resource"):
        if not given.get(name):
            return identity_error(400, f"Required query variable '{name}' is missing")
    if len(given) < len(pairs):
        return identity_error(400, "Duplicate query variables")  # documented as refused, with other words
    if not given.keys() <= _PARAMETERS:
        return identity_error(400, "Unsupported query variables")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", given["api-version"], re.ASCII) or given["api-version"] < _OLDEST_VERSION:
        return identity_error(400, "Unsupported api-version")
    if given.get("bypass_cache", "true") != "true":
        return identity_error(400, "bypass_cache must be 'true'")
    named = [name for name in SELECTORS if name in given]
    if len(named) > 1:
        return identity_error(400, "Only one of client_id, object_id, msi_res_id may be specified")
    if named and not given[named[0]]:
        return identity_error(400, "Identity not found")
    return _query(given, named[0] if named else None)


def _query(given: Mapping[str, str], named: str | None) -> TokenQuery:
    selector = SELECTORS[named] if named else None
    return TokenQuery(selector, given[named] if named else None, given["resource"], "bypass_cache" in given)
