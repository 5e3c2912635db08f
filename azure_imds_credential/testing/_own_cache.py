"""A folder of a test's own for tokens that processes share: none reaches the user's real one, or comes from it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = ("/dev/shm",)  # noqa: S108 - a folder that only this user can read is made there


@contextmanager
def own_shared_cache() -> Iterator[None]:
    """Inside the block `shared_cache=True` uses a new, empty folder, in this process and in those that it starts.

    Where no folder in memory can be made, tokens are not shared at all.
    """
    from .._shared.memory_files import FOLDER_VARIABLE

    folder, before = _folder(), os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = folder
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(FOLDER_VARIABLE, None)
        else:
            os.environ[FOLDER_VARIABLE] = before
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> str:
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), *MEMORY):
        if Path(base).is_absolute():
            with suppress(OSError):
                return tempfile.mkdtemp(prefix="azure-imds-credential-test-", dir=base)
    return tempfile.mkdtemp(prefix="azure-imds-credential-test-")  # on a disk, where the cache refuses to be
