"""Log lines of the HTTP stack, without anything that looks like a token.

urllib3 logs at WARNING what it cannot parse as a header, which may be the body that holds the token. azure-core's
logging policy shows some headers, whatever the server wrote there.
"""

from __future__ import annotations

import logging

from .._request import current_request
from .response import without_secrets

_LOGGERS = (
    "azure.core.pipeline.policies.http_logging_policy",
    "urllib3.connection",
    "urllib3.connectionpool",
)


def install_redaction() -> None:
    """Redact what these libraries log while they carry a request of ours. Other requests are not touched."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_redact)  # the same filter is not added twice


def _redact(record: logging.LogRecord) -> bool:
    if current_request.get() is not None:
        record.msg, record.args = without_secrets(record.getMessage()), ()
        record.exc_info = record.exc_text = None  # its last line is the exception's text, which is in the message too
    return True
