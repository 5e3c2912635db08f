"""Which managed identity was asked for."""

from typing import Literal, NamedTuple

# What `whoami` asks for unless it is told otherwise.
MANAGEMENT_SCOPE = "https://management.azure.com/.default"

# The application of Azure DevOps, to which Azure Artifacts belongs:
# https://learn.microsoft.com/azure/devops/integrate/get-started/authentication/service-principal-managed-identity
DEVOPS_SCOPE = "499b84ac-1321-427f-aa17-267ca6975798/.default"
DEVOPS_USER = "VssSessionToken"  # with a token as password it takes any name; this one appears in its own tools

Kind = Literal["default", "client_id", "object_id", "resource_id"]


class Identity(NamedTuple):
    """One managed identity, selected by at most one of its three identifiers.

    Without a selector the kind is "default": IMDS chooses. It gives the system-assigned identity, or the only
    user-assigned one of a machine that has no other.
    """

    kind: Kind = "default"
    value: str | None = None
    must_be_system_assigned: bool = False  # refuse a user-assigned one; only without a selector

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.kind} {self.value}"
        return (
            "the machine's system-assigned identity"
            if self.must_be_system_assigned
            else "the machine's default identity"
        )


def identity_from(
    *, client_id: str | None, object_id: str | None, resource_id: str | None, require_system_assigned: bool = False
) -> Identity:
    """Return the identity that the constructor's arguments select.

    An empty string is an error: an unset variable leaves one behind, and it must not become another identity.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: More than one selector is given, one is empty or unprintable, or one is given beside
            `require_system_assigned`.
    """
    given: dict[Kind, str] = {}
    for kind, value in (("client_id", client_id), ("object_id", object_id), ("resource_id", resource_id)):
        if value is None:
            continue
        if not isinstance(value, str):
            raise TypeError(f"{kind} must be a string or None, not {type(value).__name__}")
        value = str.__str__(value)  # noqa: PLW2901 # the text itself: a member of an Enum prints its name
        if not value or value != value.strip() or not value.isprintable():
            raise ValueError(
                f"{kind} must name an identity, got {value!r}; leave it out for the machine's default identity"
            )
        given[kind] = value  # type: ignore[index] # the tuples above hold exactly the names of Kind
    if len(given) > 1:
        raise ValueError(
            f"an identity is selected by one of client_id, object_id and resource_id, got {', '.join(given)}"
        )
    if not isinstance(require_system_assigned, bool):
        raise TypeError(f"require_system_assigned must be True or False, not {require_system_assigned!r}")
    if given and require_system_assigned:
        raise ValueError(
            f"require_system_assigned=True and {next(iter(given))} exclude each other: a selector names a "
            "user-assigned identity"
        )
    return next(
        (Identity(kind, value) for kind, value in given.items()),
        Identity(must_be_system_assigned=require_system_assigned),
    )
