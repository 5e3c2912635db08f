"""What a fork must wait for, and what the child must begin anew.

A child keeps the parent's memory but only the thread that forked. A lock held by another thread stays locked in the
child, a half-done import stays half-done, and a request under way never ends there.
"""

from __future__ import annotations

import gc
import logging  # noqa: F401 # see `imports`
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._token_cache import TokenCache

# Held while this package imports msal and the HTTP stack. Before a fork, handlers run in the reverse order of their
# registration: logging is imported above, so that our lock is taken before logging's, as it is everywhere else.
imports = threading.RLock()

MANY = 100_000  # objects; msal and the HTTP stack make about 30,000


@contextmanager
def rare_collections() -> Iterator[None]:
    """Import much in five percent less time: the collector walks every new module several times, and frees nothing.

    It stays on, but sets out at `MANY` new objects only. Only under `imports`, so that no child is forked meanwhile.
    What was made goes to the oldest generation at once (freeze and unfreeze do that), as it would after being walked;
    a program that froze objects, or sets thresholds of its own meanwhile, keeps them.
    """
    if sys.implementation.name != "cpython" or not 0 < gc.get_threshold()[0] < MANY:
        yield
        return
    before = gc.get_threshold()
    rare = (MANY, *before[1:])
    gc.set_threshold(*rare)
    try:
        yield
    finally:
        if gc.get_threshold() == rare:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.set_threshold(*before)


_caches: weakref.WeakSet[TokenCache] = weakref.WeakSet()


def register(cache: TokenCache) -> None:
    """Have the cache begin anew in every forked child."""
    _caches.add(cache)


def caches() -> tuple[TokenCache, ...]:
    """Return the caches that are in use."""
    return tuple(_caches)


def _in_child() -> None:
    imports.release()
    for cache in caches():
        cache.begin_anew()


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(before=imports.acquire, after_in_parent=imports.release, after_in_child=_in_child)
