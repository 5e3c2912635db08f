"""A place for shared tokens that no other test, and no user of this machine, has."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from azure_imds_credential._shared import memory_files, shared_cache


def shared_memory_is_missing() -> str:
    """Return why no test can put files into /dev/shm; "" if it can."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return "there is no /dev/shm on this machine"
    if not os.access(place, os.W_OK | os.X_OK):
        return "/dev/shm cannot be written to"
    return "" if memory_files._in_memory(place.stat().st_dev) else "/dev/shm is not in memory here"


needs_shared_memory = pytest.mark.skipif(bool(shared_memory_is_missing()), reason=shared_memory_is_missing())


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory in memory, empty, the only one there is."""
    if reason := shared_memory_is_missing():
        pytest.skip(reason)
    runtime = Path(tempfile.mkdtemp(dir="/dev/shm"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(memory_files, "SHARED_MEMORY", str(runtime / "none"))
    monkeypatch.setattr(shared_cache, "_warned", set())
    yield runtime
    shutil.rmtree(runtime, ignore_errors=True)
