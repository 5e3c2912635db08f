"""A place for shared tokens that no other test, and no user of this machine, has."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from azure_imds_credential import _memory_files, _shared_cache


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory in memory, empty, the only one there is."""
    if not _memory_files._in_memory(Path("/dev/shm").stat().st_dev):
        pytest.skip("/dev/shm is not in memory here")
    runtime = Path(tempfile.mkdtemp(dir="/dev/shm"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(_memory_files, "SHARED_MEMORY", str(runtime / "none"))
    monkeypatch.setattr(_shared_cache, "_told", set())
    yield runtime
    shutil.rmtree(runtime, ignore_errors=True)
