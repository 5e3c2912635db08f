"""A directory in memory that only this user can read, and files in it. Linux; judged anew at each use.

Tokens never touch a disk: XDG_RUNTIME_DIR or /dev/shm, and either only while it really is a memory file system. What is
found there counts only while it belongs to the effective user and no other user can read it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = "azure-imds-credential"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 # what makes it safe is checked at each use
FOLDER_VARIABLE = "AZURE_IMDS_CREDENTIAL_TEST_FOLDER"  # the only place that is used; set by the testing kit
MAX_BYTES = 1 << 20  # of one file; a token has about 2,000

_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
# O_NONBLOCK: what was put there may be a FIFO, whose opening would wait for a writer.
_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)

_OTHERS = 0o077
_IN_MEMORY = ("tmpfs", "ramfs")
_UNFINISHED = ".new"


class RefusedError(Exception):
    """Something is there, but it cannot be trusted. The message says what and why."""


class Folder:
    """Our directory, open. All goes through its descriptor, so that a path that is replaced meanwhile does no harm."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if there is none.

        Raises:
            RefusedError: It is a link, no file, another user's, open to others or too large.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | _FILE, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:  # ELOOP: a symlink
            raise RefusedError(f"{self.path}/{name}: {error.strerror}") from error
        try:
            _refuse_others(f"{self.path}/{name}", os.fstat(descriptor), stat.S_ISREG)
            content = bytearray()
            while chunk := os.read(descriptor, MAX_BYTES + 1 - len(content)):
                content += chunk
            if len(content) > MAX_BYTES:
                raise RefusedError(f"{self.path}/{name}: more than {MAX_BYTES} bytes")
            return bytes(content)
        finally:
            os.close(descriptor)

    def replace(self, name: str, content: bytes) -> None:
        """Put a file in the place of another as a whole: a reader gets the old or the new one, never a part.

        Raises:
            OSError: That did not work; the old one is still there, and nothing else of the new one.
        """
        unfinished = f"{name}.{os.urandom(8).hex()}{_UNFINISHED}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
        descriptor = os.open(unfinished, flags, 0o600, dir_fd=self._descriptor)
        try:
            try:
                left = memoryview(content)
                while left:
                    left = left[os.write(descriptor, left) :]
            finally:
                os.close(descriptor)
            os.replace(unfinished, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(unfinished)
            raise

    def tidy(self, prefix: str) -> None:
        """Remove what writers of these files left behind when they were killed."""
        for name in self.names(_UNFINISHED):
            if name.startswith(prefix):
                self.remove(name)

    def remove(self, name: str) -> bool:
        """Remove a file; return whether there was one."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)
            return True
        return False

    def names(self, suffix: str) -> list[str]:
        """Return the names of the files that end so."""
        names = os.listdir(self._descriptor)  # noqa: PTH208 # Path takes no descriptor
        return [name for name in names if name.endswith(suffix)]

    def holds(self, name: str, descriptor: int) -> bool:
        """Return whether an open file is still the one that has this name."""
        with suppress(OSError):
            return os.path.samestat(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False), os.fstat(descriptor))
        return False


@contextmanager
def open_folder(environ: Mapping[str, str] | None = None) -> Iterator[Folder]:
    """Open the first usable directory; create it if needed.

    Raises:
        RefusedError: None is; the message says why for each.
    """
    refusals = []
    for base, name in _candidates(environ):
        try:
            folder, descriptor = _opened(base, name)
        except RefusedError as refused:
            refusals.append(str(refused))
            continue
        except OSError as error:
            refusals.append(f"{base}: {error.strerror}")
            continue
        try:
            yield folder
        finally:
            os.close(descriptor)
        return
    raise RefusedError("; ".join(refusals) or f"there is no such directory on {sys.platform}")


def empty_folders(suffix: str, environ: Mapping[str, str] | None = None) -> int:
    """Remove everything from our directories, also from those that would not be used.

    Returns:
        How many files had this suffix.
    """
    removed = 0
    for base, name in _candidates(environ):
        with suppress(OSError):
            path = f"{base}/{name}"
            descriptor = os.open(path, os.O_RDONLY | _DIRECTORY)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid():
                    folder = Folder(path, descriptor)
                    removed += sum([folder.remove(each) and each.endswith(suffix) for each in folder.names("")])
                    if status.st_mode & _OTHERS:
                        Path(path).rmdir()  # the next one is made with the right mode
            finally:
                os.close(descriptor)
    return removed


def _candidates(environ: Mapping[str, str] | None) -> list[tuple[str, str]]:
    if not sys.platform.startswith("linux"):
        return []
    environ = os.environ if environ is None else environ
    if only := environ.get(FOLDER_VARIABLE):
        return [(only, NAME)]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    shared = (SHARED_MEMORY, f"{NAME}-{os.geteuid()}")
    return [(runtime, NAME), shared] if runtime.startswith("/") else [shared]


def _opened(base: str, name: str) -> tuple[Folder, int]:
    outer = os.open(base, os.O_RDONLY | _DIRECTORY)
    try:
        status = os.fstat(outer)
        # In a directory of others they could put theirs in the place of ours, unless it is sticky, like /dev/shm.
        if status.st_uid not in (0, os.geteuid()) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            raise RefusedError(f"{base}: belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}")
        if not _in_memory(status.st_dev):
            raise RefusedError(f"{base}: not in memory (tmpfs)")
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=outer)
        inner = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=outer)
    finally:
        os.close(outer)
    path = f"{base}/{name}"
    try:
        status = os.fstat(inner)
        _refuse_others(path, status, stat.S_ISDIR)
        if not _in_memory(status.st_dev):
            raise RefusedError(f"{path}: not in memory (tmpfs)")
    except BaseException:
        os.close(inner)
        raise
    return Folder(path, inner), inner


def _refuse_others(path: str, status: os.stat_result, is_right_kind: Callable[[int], bool]) -> None:
    if not is_right_kind(status.st_mode):
        raise RefusedError(f"{path}: of the wrong kind")
    if status.st_uid != os.geteuid():
        raise RefusedError(f"{path}: belongs to user {status.st_uid}, not {os.geteuid()}")
    if status.st_mode & _OTHERS:
        raise RefusedError(f"{path}: open to others (mode {stat.S_IMODE(status.st_mode):04o})")


def _in_memory(device: int) -> bool:
    """Return whether a device is a memory file system. Python has no statfs; proc_pid_mountinfo(5) has the fields."""
    number = f" {os.major(device)}:{os.minor(device)} "
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if number in line:
            before, _, after = line.partition(" - ")
            if before.split(" ")[2] == number.strip():
                return after.split(" ")[0] in _IN_MEMORY
    return False
