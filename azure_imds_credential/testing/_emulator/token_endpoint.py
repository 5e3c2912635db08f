"""The token endpoint: which request gets which answer. Pure apart from the tokens it has issued.

Where no answer is published, the comment says what the choice rests on.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .._http.messages import TEXT, Answer, Received, compact, identity_error
from .identities import SELECTORS, AmbiguousIdentityError, Identity, IdentityNotFoundError, select

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .profiles import Profile
    from .tokens import Token, TokenService

# IMDSDOC, 2025. /metadata/identity exists since 2018-02-01.
API_VERSIONS = """
    2017-03-01 2017-04-02 2017-08-01 2017-10-01 2017-12-01 2018-02-01 2018-04-02 2018-10-01 2019-02-01 2019-03-11
    2019-04-30 2019-06-01 2019-06-04 2019-08-01 2019-08-15 2019-11-01 2020-06-01 2020-07-15 2020-09-01 2020-10-01
    2020-12-01 2021-01-01 2021-02-01 2021-03-01 2021-05-01 2021-08-01 2021-10-01 2021-11-01 2021-11-15 2021-12-13
    2023-07-01 2023-11-15 2024-03-15 2024-07-17 2025-04-07
""".split()  # noqa: SIM905 - 35 quoted strings, one a line, read worse
IDENTITY_SINCE = "2018-02-01"

# Recorded answers.
NO_METADATA_HEADER = identity_error(400, "Required metadata header not specified")
NOT_FOUND_IDENTITY = identity_error(400, "Identity not found")
SEVERAL_IDENTITIES = identity_error(
    400,
    "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token "
    "request",
)
WRONG_PATH = Answer(404, b'{"error":"Not Found"}')
UNSUPPORTED_VARIABLE = identity_error(400, "Unsupported query variables")  # recorded on a v2 path of the same service

# Status and code of these are documented or follow from the documentation; their words are ours.
WRONG_METHOD = identity_error(405, "Not allowed", "method_not_allowed")  # example of the 2018-10-01 specification
FORWARDED = identity_error(400, "X-Forwarded-For header is not allowed")  # documented as rejected
DUPLICATE_VARIABLE = identity_error(400, "Duplicate query variables")  # documented as rejected
TWO_SELECTORS = identity_error(400, "Only one of client_id, object_id, msi_res_id may be specified")  # "exclusive"
BAD_BYPASS = identity_error(400, "bypass_cache must be 'true'")  # specification: "the value must be 'true'"
BAD_VERSION = identity_error(400, "Unsupported api-version")  # nothing published for the identity category

# Container Instances: body and content type recorded, status not shown; 400 as for the same mistake on a VM.
ACI_SEVERAL_IDENTITIES = Answer(400, b"Received invalid token. Please try again.", TEXT, server=None)


@dataclass
class Machine:
    """What the answers depend on."""

    profile: Profile
    identities: list[Identity]
    tokens: TokenService
    known_resources: Collection[str] | None = None


def missing(variable: str) -> Answer:
    """Return the error of a request without a required query variable."""
    return identity_error(400, f"Required query variable '{variable}' is missing")


def header_fault(request: Received) -> Answer | None:
    """Return the error of a request that breaks the rules on headers of all paths of the identity category."""
    if request.header("Metadata") != "true":  # "in all lower case", says the documentation
        return NO_METADATA_HEADER
    if request.header("X-Forwarded-For") is not None:
        return FORWARDED
    return None


def version_fault(request: Received) -> Answer | None:
    """Return the error of an api-version that is absent, unknown, or older than the identity category."""
    version = request.param("api-version")
    if not version:
        return missing("api-version")
    return None if version in API_VERSIONS and version >= IDENTITY_SINCE else BAD_VERSION


def token_answer(request: Received, machine: Machine, now: float) -> Answer:
    """Return what the token endpoint says to one request.

    The order of the checks is inferred: probes with neither header nor query get an early 400 about the header.

    Args:
        request: The request.
        machine: The emulated machine.
        now: Epoch seconds.
    """
    if request.method != "GET":
        return WRONG_METHOD
    fault = header_fault(request) or query_fault(request, machine.profile)
    if fault is not None:
        return fault
    resource = request.param("resource")
    assert resource, "checked above"
    selector = next((name for name in SELECTORS if name in _observed(request, machine.profile)), None)
    try:
        identity = select(machine.identities, selector, request.param(selector) or "" if selector else "")
    except IdentityNotFoundError:
        return NOT_FOUND_IDENTITY
    except AmbiguousIdentityError:
        return SEVERAL_IDENTITIES if machine.profile.is_imds else ACI_SEVERAL_IDENTITIES
    if not _is_known(resource, machine.known_resources):
        return _unknown_resource(resource, now)
    token = machine.tokens.token(identity, resource, now, bypass_cache="bypass_cache" in request.query)
    return _vm_token(token, now) if machine.profile.is_imds else _aci_token(token, now)


def _observed(request: Received, profile: Profile) -> Iterable[str]:
    """Return the variables that the machine reads: Container Instances only msi_res_id (azure-sdk-for-go#22650)."""
    return [name for name in request.query if profile.is_imds or name != "mi_res_id"]


def query_fault(request: Received, profile: Profile) -> Answer | None:
    """Return the error of a query that breaks the rules of the token endpoint."""
    query = request.query
    if (fault := version_fault(request)) is not None:
        return fault
    if not request.param("resource"):
        return missing("resource")
    if any(len(values) > 1 for values in query.values()):
        return DUPLICATE_VARIABLE
    if set(query) - {"api-version", "resource", "authority", "bypass_cache", *SELECTORS}:
        return UNSUPPORTED_VARIABLE
    if query.get("bypass_cache", ("true",)) != ("true",):
        return BAD_BYPASS
    return TWO_SELECTORS if len(SELECTORS.keys() & set(_observed(request, profile))) > 1 else None


def _is_known(resource: str, known: Collection[str] | None) -> bool:
    """Return whether a resource exists; where none are named, an App ID URI or the GUID of an application does."""
    if known is not None:
        return resource.rstrip("/") in {name.rstrip("/") for name in known}
    return bool(re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", resource, re.I))


def _unknown_resource(resource: str, now: float) -> Answer:
    """Entra's own words, which IMDS passes on (vendor fixture of 2022-11-10)."""
    trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
    timestamp = datetime.fromtimestamp(int(now), timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
    description = (
        f"AADSTS500011: The resource principal named {resource} was not found in the tenant named Emulator. This can "
        "happen if the application has not been installed by the administrator of the tenant or consented to by any "
        "user in the tenant. You might have sent your authentication request to the wrong tenant.\r\n"
        f"Trace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {timestamp}"
    )
    document = {
        "error": "invalid_resource",
        "error_description": description,
        "error_codes": [500011],
        "timestamp": timestamp,
        "trace_id": trace,
        "correlation_id": correlation,
        "error_uri": "https://westus2.login.microsoft.com/error?code=500011",
    }
    return Answer(400, compact(document))


def _vm_token(token: Token, now: float) -> Answer:
    """Members in alphabetical order, every value a string (captures of 2020 to 2025)."""
    document = {
        "access_token": token.value,
        "client_id": token.identity.client_id,
        "expires_in": str(token.expires_in(now)),
        "expires_on": str(token.expires_on),
        "ext_expires_in": str(token.lifetime - 1),
        "not_before": str(token.not_before),
        "resource": token.resource,
        "token_type": "Bearer",
    }
    return Answer(200, compact(document))


def _aci_token(token: Token, now: float) -> Answer:
    """Members as Container Instances send them (2018 documentation, 2026 capture). Their headers are unknown."""
    document = {
        "access_token": token.value,
        "refresh_token": "",
        "expires_in": str(token.expires_in(now)),
        "expires_on": str(token.expires_on),
        "not_before": str(token.not_before),
        "resource": token.resource,
        "token_type": "Bearer",
    }
    return Answer(200, compact(document), server=None)
