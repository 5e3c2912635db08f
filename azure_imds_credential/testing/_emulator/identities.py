"""The managed identities of an emulated machine, and which of them a request means."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TENANT_ID = "11111111-1111-1111-1111-111111111111"
SUBSCRIPTION_ID = "22222222-2222-2222-2222-222222222222"
RESOURCE_GROUP = f"/subscriptions/{SUBSCRIPTION_ID}/resourcegroups/imds-emulator"

# How a request names an identity, and the field it names. `mi_res_id` is the undocumented alias that virtual machines
# take as well (Azure/azure-sdk-for-go#22650).
SELECTORS: Mapping[str, str] = {
    "client_id": "client_id",
    "object_id": "object_id",
    "msi_res_id": "resource_id",
    "mi_res_id": "resource_id",
}


def _guid(*words: str) -> str:
    """Return a GUID that is the same in every run, so that a failing test shows the same names each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("azure-imds-credential", *words))))


@dataclass(frozen=True)
class SystemAssigned:
    """The identity that lives and dies with the machine.

    Args:
        client_id: Application (client) ID; what the answer shows as `client_id` and the token as `appid`.
        object_id: Service principal (object) ID; `oid` and `sub` of the token.
        resource_id: ARM ID of the machine; `xms_mirid` of the token. Empty: the machine of the emulator's profile.
    """

    client_id: str = field(default_factory=lambda: _guid("system", "client"))
    object_id: str = field(default_factory=lambda: _guid("system", "object"))
    resource_id: str = ""


@dataclass(frozen=True)
class UserAssigned:
    """An identity that is a resource of its own. Everything but the name has a stable fake as default.

    Args:
        name: Name of the identity resource.
        client_id: Application (client) ID. Empty: derived from the name.
        object_id: Service principal (object) ID. Empty: derived from the name.
        resource_id: ARM ID. Empty: derived from the name.
    """

    name: str = "app"
    client_id: str = ""
    object_id: str = ""
    resource_id: str = ""

    def __post_init__(self) -> None:
        fakes = {
            "client_id": _guid("user", self.name, "client"),
            "object_id": _guid("user", self.name, "object"),
            "resource_id": f"{RESOURCE_GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{self.name}",
        }
        for attribute, fake in fakes.items():
            if not getattr(self, attribute):
                object.__setattr__(self, attribute, fake)


Identity = SystemAssigned | UserAssigned


def checked(identity: Identity) -> Identity:
    """Return the identity, if it is one.

    Raises:
        TypeError: It is something else, such as a name.
    """
    if not isinstance(identity, (SystemAssigned, UserAssigned)):
        raise TypeError(f"an identity is a SystemAssigned() or UserAssigned(name), got {identity!r}")
    return identity


class IdentityNotFoundError(LookupError):
    """No identity of the machine has the name that was asked for, or there is none at all."""


class AmbiguousIdentityError(LookupError):
    """Several user-assigned identities, no system-assigned one, and the request names none."""


def select(identities: Iterable[Identity], selector: str | None, value: str = "") -> Identity:
    """Return the identity that a request means.

    Without a selector: the system-assigned one; failing that, the only user-assigned one ("a service-side behavior",
    says msal's docstring of SystemAssignedManagedIdentity). That the system-assigned one wins over several
    user-assigned ones is what the documentation implies; no capture shows it. A selector is compared with every
    identity, the system-assigned one too, which is not documented either.

    Args:
        identities: The identities of the machine.
        selector: One of `SELECTORS`, or None.
        value: What the selector says; GUIDs and ARM IDs are compared without regard to case.

    Raises:
        IdentityNotFoundError: No identity fits.
        AmbiguousIdentityError: More than one fits.
    """
    candidates = list(identities)
    if selector is not None:
        candidates = [i for i in candidates if value and getattr(i, SELECTORS[selector]).lower() == value.lower()]
    elif any(isinstance(i, SystemAssigned) for i in candidates):
        candidates = [i for i in candidates if isinstance(i, SystemAssigned)]
    if not candidates:
        raise IdentityNotFoundError
    if len(candidates) > 1:
        raise AmbiguousIdentityError
    return candidates[0]
