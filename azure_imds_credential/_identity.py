"""Which identity was asked for."""

from typing import Literal, NamedTuple

Kind = Literal["system-assigned", "client_id", "object_id", "resource_id"]


class Identity(NamedTuple):
    """One managed identity, named by at most one of its three identifiers."""

    kind: Kind
    value: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.value}" if self.value else self.kind


def identity_from(*, client_id: str | None, object_id: str | None, resource_id: str | None) -> Identity:
    """Choose the identity that the constructor's arguments name.

    An empty string is an error: it is what an unset variable leaves behind, and must not become another identity.

    Raises:
        TypeError: An argument is not a string.
        ValueError: More than one is given, or one is empty or unprintable.
    """
    given: dict[Kind, str] = {}
    for kind, value in (("client_id", client_id), ("object_id", object_id), ("resource_id", resource_id)):
        if value is None:
            continue
        if not isinstance(value, str):
            raise TypeError(f"{kind} must be a string or None, not {type(value).__name__}")
        if not value.strip() or not value.isprintable():
            raise ValueError(f"{kind} must name an identity, got {value!r}; leave it out for the system-assigned one")
        given[kind] = value  # type: ignore[index] # the tuples above hold exactly the names of Kind
    if len(given) > 1:
        raise ValueError(f"an identity is named by one of client_id, object_id and resource_id, got {', '.join(given)}")
    return next((Identity(kind, value) for kind, value in given.items()), Identity("system-assigned"))
