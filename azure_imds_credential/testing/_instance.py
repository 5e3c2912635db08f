"""The rest of IMDS: /metadata/instance, /metadata/versions, /metadata/identity/info."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._profiles import Profile
    from ._wire import Answer, Received


def answer(request: Received, profile: Profile) -> Answer | None:
    """What one of the other paths says; None for a path that does not exist."""
    return None
