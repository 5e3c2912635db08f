"""What the calling thread is in the middle of: a request on another thread may have to wait for it."""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file of its frames


def owns(lock: Any) -> bool:
    """Return whether this thread has a reentrant lock, as `threading.Condition` asks its own.

    False for None and for locks of other types, which do not know who has them.
    """
    is_owned = getattr(lock, "_is_owned", None)
    return is_owned is not None and bool(is_owned())


def depth_of(lock: Any) -> int:
    """Return how often this thread has a reentrant lock; 0 where that cannot be told, as before Python 3.11.7."""
    recursion_count = getattr(lock, "_recursion_count", None)
    return int(recursion_count()) if recursion_count is not None else 0


def release_to(depth: int, lock: Any) -> None:
    """Release what an interrupt left locked.

    From Python 3.14 on, an interrupt can come after `with` has taken a lock and before it is bound to release it.

    Args:
        depth: How often this thread had the lock before.
        lock: A reentrant lock.
    """
    while depth_of(lock) > depth:
        lock.release()


def owns_logging_lock() -> bool:
    """Return whether this thread has a lock of logging: in a handler, in `logging.shutdown` or in `logging.config`.

    A request makes log records and loggers, here and in azure-core, urllib3 and msal, and each may need such a lock.
    """
    # Private names, because logging tells of neither lock: without them a call is treated as one without a lock.
    handlers = [reference() for reference in tuple(getattr(logging, "_handlerList", ()))]
    locks = [getattr(logging, "_lock", None), *(getattr(handler, "lock", None) for handler in handlers)]
    return any(owns(lock) for lock in locks)


def has_stopping_hub() -> bool:
    """Return whether gevent replaced threads and this is a native thread beside the main one, as in its thread pool.

    What starts as a thread there runs only while this native thread waits. After its task it stands still.
    """
    monkey, gevent = sys.modules.get("gevent.monkey"), sys.modules.get("gevent")
    if monkey is None or gevent is None or not monkey.is_module_patched("threading"):
        return False
    return not gevent.get_hub().main_hub


def is_importing() -> bool:
    """Return whether this thread is in the middle of an import: what another one imports may have to wait for it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def runs_event_loop() -> bool:
    """Return whether an asyncio event loop runs on this thread."""
    asyncio = sys.modules.get("asyncio")  # a program that only uses the sync class need not import it
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
