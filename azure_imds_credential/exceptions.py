"""The errors of a call that gets no token.

::

    azure.core.exceptions.ClientAuthenticationError
    └── ImdsError
        ├── ImdsUnavailableError      IMDS is not here: a chain goes on
        ├── IdentityUnavailableError  IMDS is here but has no such identity: a chain goes on
        ├── IdentityMismatchError     the response is for another identity or resource: a chain stops
        ├── ImdsRequestError          the request itself was refused: a chain stops
        ├── ImdsThrottledError        429 until the time was spent: a chain stops
        └── ImdsServiceError          IMDS failed, or this machine or the program did, after all retries: a chain stops

"A chain" is `azure.identity.ChainedTokenCredential`, sync or aio. It goes on after `CredentialUnavailableError` only,
which therefore joins the bases of the first two classes as soon as one of them is raised in a process that has loaded
azure-identity.
"""

from __future__ import annotations

from azure.core.exceptions import ClientAuthenticationError


class ImdsError(ClientAuthenticationError):
    """There is no token. The message tells what was asked of which endpoint, what came back, and what to do next.

    It never holds a token, and never more than 200 characters of a response.

    Attributes:
        status: The HTTP status of the last response; None when there was none.
        error_code: The member `error` of IMDS's response, for example `invalid_request`.
        error_description: The member `error_description`. IMDS changes its wording without notice, so nothing here
            depends on it.
        endpoint: The base URL that was asked.
        identity: Which identity was asked for, for example `client_id 6a7b...` or `the machine's default identity`.
        resource: What the token was for.
        attempts: How many requests were sent.
        elapsed: Seconds spent, waiting between attempts included.
        request_id: The header `x-ms-request-id` of the last response, for Azure support.
        client_request_id: The header `x-ms-client-request-id` of the request. IMDS does not echo it; where there is no
            response at all, it is the only ID there is.
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
        client_request_id: str | None = None,
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
        self.client_request_id = client_request_id
        self.hint = hint
        # For `azure-imds doctor`: what came back, without the request and the hint around it, and the beginning of a
        # response that is not IMDS's.
        self._reason = message.rstrip(".")
        self._excerpt = ""
        # AzureError keeps the exception that is being handled. Its frames may hold a response with a token, and a
        # traceback cannot be pickled.
        self.exc_type = self.exc_value = self.exc_traceback = None
        self.exc_msg = message


class ImdsUnavailableError(ImdsError):
    """There is no IMDS: nothing answers, another server answers, or the environment names another token source."""


class IdentityUnavailableError(ImdsError):
    """IMDS is here but has no identity for this request."""


class IdentityMismatchError(ImdsError):
    """The response is for another identity or another resource than was asked.

    What `token_provider` returns also raises it for a token that no application can trust. That one stays cached.
    """


class ImdsRequestError(ImdsError):
    """IMDS, or Entra behind it, refused the request itself: repeating it would not help."""


class ImdsThrottledError(ImdsError):
    """IMDS answered 429 until the time was spent."""


class ImdsServiceError(ImdsError):
    """IMDS gave 404, 408, 410, 5xx, a malformed response or none, after all retries.

    It is also raised where the reason is local: a shortage of the machine, a transport or hook that failed, the end of
    the interpreter, a signal handler, time that was up before anything could be sent.
    """
