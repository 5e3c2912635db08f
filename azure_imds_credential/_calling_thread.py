"""What the calling thread is in the middle of: a request on another thread may have to wait for it."""

from __future__ import annotations

import logging
from typing import Any


def owns(lock: Any) -> bool:
    """Return whether this thread has a reentrant lock, as `threading.Condition` asks its own.

    False for None and for locks of other types, which do not know who has them.
    """
    is_owned = getattr(lock, "_is_owned", None)
    return is_owned is not None and bool(is_owned())


def owns_logging_lock() -> bool:
    """Return whether this thread has a lock of logging: in a handler, in `logging.shutdown` or in `logging.config`.

    A request makes log records and loggers, here and in azure-core, urllib3 and msal, and each may need such a lock.
    """
    # Private names, because logging tells of neither lock: without them a call is treated as one without a lock.
    handlers = [reference() for reference in tuple(getattr(logging, "_handlerList", ()))]
    locks = [getattr(logging, "_lock", None), *(getattr(handler, "lock", None) for handler in handlers)]
    return any(owns(lock) for lock in locks)
