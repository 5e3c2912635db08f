"""What the libraries that carry an exchange may log while they carry it: nothing that looks like a token.

urllib3 logs what it cannot parse as a header, azure-core before 1.35 what it cannot read as a chunk; both may be the
body that holds the token, and both log it as a warning.
"""

from __future__ import annotations

import logging

from ._answer import without_secrets
from ._flight import current_flight

_LOGGERS = (
    "azure.core.pipeline.policies.http_logging_policy",  # shows some headers, whatever the server wrote there
    "azure.core.pipeline.transport._requests_basic",
    "urllib3.connection",
    "urllib3.connectionpool",
)


def watch() -> None:
    """Look at what these libraries log in our own flights. What others send through them is not touched."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_redact)  # the same filter again is not added twice


def _redact(record: logging.LogRecord) -> bool:
    if current_flight.get() is not None:
        record.msg, record.args = without_secrets(record.getMessage()), ()
        record.exc_info = record.exc_text = None  # its last line is the exception's text, which is in the message too
    return True
