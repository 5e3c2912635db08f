"""What a fork must wait for, and what the child must begin anew.

A child keeps the parent's memory but only the thread that forked. A lock held by another thread stays locked in the
child, a half-done import stays half-done, and a request under way never ends there.
"""

from __future__ import annotations

import gc
import logging  # noqa: F401 # see `imports`
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._token_cache import TokenCache

# Held while this package imports msal and the HTTP stack. `import logging` above comes first because logging registers
# its own lock with fork: handlers run backwards before a fork, so ours is taken first there as everywhere else.
imports = threading.RLock()


@contextmanager
def without_collections() -> Iterator[None]:
    """Import much in a tenth less time: the cyclic collector walks each new module several times, and frees nothing.

    Only under `imports`, so that no child is forked while it is off. What was made goes to the oldest generation at
    once (freeze and unfreeze do that), as it would after being walked; a process that froze objects itself keeps them.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.enable()


_caches: weakref.WeakSet[TokenCache] = weakref.WeakSet()


def register(cache: TokenCache) -> None:
    """Have the cache begin anew in every forked child."""
    _caches.add(cache)


def _in_child() -> None:
    imports.release()
    for cache in tuple(_caches):
        cache.begin_anew()


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(before=imports.acquire, after_in_parent=imports.release, after_in_child=_in_child)
