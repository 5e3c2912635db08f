"""What can go wrong when a token is asked for.

::

    azure.core.exceptions.ClientAuthenticationError
    └── ImdsError
        ├── ImdsUnavailableError      IMDS is not here: a chain goes on
        ├── IdentityUnavailableError  IMDS is here but has no such identity: a chain goes on
        ├── IdentityMismatchError     the answer is for another identity or resource: a chain stops
        ├── ImdsRequestError          the request itself was refused: a chain stops
        ├── ImdsThrottledError        too many requests until the time was spent: a chain stops
        └── ImdsServiceError          IMDS is ill until the time was spent: a chain stops

"A chain" is `azure.identity.ChainedTokenCredential`, sync or aio. It goes on after `CredentialUnavailableError` only,
which therefore joins the bases of the first two classes as soon as one of them is raised in a process that has loaded
azure-identity.
"""

from __future__ import annotations

import sys

from azure.core.exceptions import ClientAuthenticationError


class ImdsError(ClientAuthenticationError):
    """No token: what was asked of whom, what came back, and what to do next.

    Never holds a token, and never more than 200 characters of what a server answered.

    Attributes:
        status: The HTTP status of the last answer; None when there was none.
        error_code: The member `error` of IMDS's answer, for example `invalid_request`.
        error_description: IMDS's words, for people: they change without notice, so nothing here depends on them.
        endpoint: The base URL that was asked.
        identity: Which identity was asked for, for example `client_id 6a7b...` or `system-assigned`.
        resource: What the token was for.
        attempts: How many requests were sent.
        elapsed: Seconds spent, waiting between attempts included.
        request_id: The header `x-ms-request-id` of the last answer, for Azure support.
        hint: What to do next.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_code: str | None = None,
        error_description: str | None = None,
        endpoint: str | None = None,
        identity: str | None = None,
        resource: str | None = None,
        attempts: int = 0,
        elapsed: float = 0.0,
        request_id: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.status_code = status  # the name under which azure-core's HttpResponseError has it
        self.error_code = error_code
        self.error_description = error_description
        self.endpoint = endpoint
        self.identity = identity
        self.resource = resource
        self.attempts = attempts
        self.elapsed = elapsed
        self.request_id = request_id
        self.hint = hint
        # For `azure-imds doctor`: what was answered, without what was asked and the hint (whoever raises it knows what
        # that is; otherwise the whole), and the words of something that is not IMDS.
        self._came_back = message.rstrip(".")
        self._excerpt = ""
        # AzureError notes whatever exception is being handled. That may hold a server's body or a frame's locals (a
        # token among them), and a traceback cannot be pickled.
        self.exc_type = self.exc_value = self.exc_traceback = None
        self.exc_msg = message


class ImdsUnavailableError(ImdsError):
    """IMDS is not here: nothing answers, something else answers, or the environment names another token source."""


class IdentityUnavailableError(ImdsError):
    """IMDS is here but has no identity for this request."""


class IdentityMismatchError(ImdsError):
    """The answer is for another identity or another resource than was asked; its token was thrown away."""


class ImdsRequestError(ImdsError):
    """IMDS, or Entra behind it, refused the request itself: asking again would not help."""


class ImdsThrottledError(ImdsError):
    """IMDS answered 429 until the time was spent."""


class ImdsServiceError(ImdsError):
    """A real IMDS gave 404, 408, 410, 5xx, a malformed answer or none, until the time was spent."""


def let_chains_go_on(error: BaseException) -> None:
    """Make azure-identity, where it is loaded, recognise the two errors after which a chain tries the next credential.

    The class itself is changed, since a class made while raising could not be pickled. azure-identity is no dependency
    of this package, so that its class cannot be a base from the start.
    """
    identity_package = sys.modules.get("azure.identity")
    unavailable = getattr(identity_package, "CredentialUnavailableError", None)
    if unavailable is None:
        return
    for cls in (ImdsUnavailableError, IdentityUnavailableError):
        if isinstance(error, cls) and not issubclass(cls, unavailable):
            cls.__bases__ = (ImdsError, unavailable)
