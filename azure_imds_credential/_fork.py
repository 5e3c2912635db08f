"""What a fork must wait for, and what the child must reset.

A child keeps the parent's memory but only the thread that forked. A lock held by another thread stays locked in the
child, a half-done import stays half-done, and a request under way never ends there.
"""

from __future__ import annotations

import logging  # noqa: F401 # see `import_lock`
import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

# Held while this package imports msal and the HTTP stack. Before a fork, handlers run in the reverse order of their
# registration: logging is imported above, so that our lock is taken before logging's, as it is everywhere else.
import_lock = threading.RLock()


def importing() -> AbstractContextManager[object]:
    """Return `import_lock`, or nothing to hold while the interpreter ends: a thread that has it then never lets go."""
    return nullcontext() if sys.is_finalizing() else import_lock


class Cache(Protocol):
    """What is reset in a forked child and emptied by `testing.forget_tokens`."""

    def reset_after_fork(self) -> None: ...  # the class docstring says when
    def clear(self) -> None: ...


_caches: set[weakref.ref[Cache]] = set()  # no WeakSet: another thread that adds to it would end our iteration


def register(cache: Cache) -> None:
    """Have a cache reset in every forked child."""
    _caches.add(weakref.ref(cache, _caches.discard))


def caches() -> tuple[Cache, ...]:
    """Return the caches that are in use."""
    return tuple(cache for reference in tuple(_caches) if (cache := reference()) is not None)


def _in_child() -> None:
    import_lock.release()
    for cache in caches():
        cache.reset_after_fork()


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(before=import_lock.acquire, after_in_parent=import_lock.release, after_in_child=_in_child)
