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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ._calling_thread import owns

# Held while this package imports msal and the HTTP stack. Before a fork, handlers run in the reverse order of their
# registration: logging is imported above, so that our lock is taken before logging's, as it is everywhere else.
import_lock = threading.RLock()


class ImportLockTimeoutError(Exception):
    """Another thread imports, and did not end in time."""


@contextmanager
def importing(seconds: float | None = None) -> Iterator[None]:
    """Hold `import_lock`; nothing is held while the interpreter ends, when a thread that has it never lets go.

    Args:
        seconds: How long to wait for it; None for as long as it takes. The thread that imports may wait for a lock of
            logging that the caller has.

    Raises:
        ImportLockTimeoutError: It could not be had in time.
    """
    if sys.is_finalizing() or owns(import_lock):
        yield
        return
    try:
        if not import_lock.acquire(timeout=-1 if seconds is None else max(0.0, seconds)):
            raise ImportLockTimeoutError
        yield
        import_lock.release()
    except BaseException:
        if owns(import_lock):  # an interrupt may have come just before it was taken, or just after it was released
            import_lock.release()
        raise


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
    # A copy of the set first: the collector may run while a tuple is made of it, and discard members.
    return tuple(cache for reference in tuple(_caches.copy()) if (cache := reference()) is not None)


_process = os.getpid()
_is_forking = False  # the thread that has `import_lock` forks
_is_reset = True  # in a child: the caches are


def is_forking() -> bool:
    """Return whether this thread forks, so that a fork handler is calling. It has `import_lock` for that alone.

    Handlers of others run while it has that lock, if they were registered before this module was imported.
    """
    return _is_forking and owns(import_lock)


def reset_in_child() -> None:
    """Reset the caches if this process is a child that has not done so. A fork handler of others may ask first."""
    if _process != os.getpid():
        _reset()


def _reset() -> None:
    global _process, _is_reset  # they are the process's
    for cache in caches():
        cache.reset_after_fork()
    _process, _is_reset = os.getpid(), True


def _before() -> None:
    global _is_forking, _is_reset  # as above
    import_lock.acquire()
    _is_forking, _is_reset = True, False


def _after() -> None:
    global _is_forking  # noqa: PLW0603 # as above
    _is_forking = False
    import_lock.release()


def _in_child() -> None:
    _after()
    if not _is_reset:  # not by the process number: in a namespace of its own the child may have its parent's
        _reset()


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
