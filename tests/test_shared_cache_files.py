"""Files of the shared cache: checked at each use, and safe against a crash at any byte of a write."""

from __future__ import annotations

import binascii
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flavors import VAULT

from azure_imds_credential import ImdsCredential
from azure_imds_credential._shared import memory_files
from azure_imds_credential._shared.memory_files import RefusedError, open_folder
from azure_imds_credential._shared.shared_cache import forget_shared_tokens
from azure_imds_credential.testing import ImdsEmulator, forget_tokens

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")

DAY = 86400.0


@pytest.fixture(autouse=True)
def _quiet_start(memory: Path) -> None:
    forget_tokens()


def new_process(imds: ImdsEmulator) -> str:
    """Return a token for a process that has none."""
    forget_tokens()
    return ImdsCredential(endpoint=imds.endpoint, shared_cache=True).get_token(VAULT).token


def stored_in(memory: Path) -> Path:
    (token,) = memory.rglob("*.token")
    return token


# Each damages the file in one way.


def _cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"access_token") + 40] ^= 1
    file.write_bytes(content)


def _garbage(file: Path) -> None:
    file.write_bytes(bytes(range(256)))


def _huge(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" " * memory_files.MAX_BYTES)


def _open_to_others(file: Path) -> None:
    file.chmod(0o644)


def _open_to_group(file: Path) -> None:
    file.chmod(0o660)


def _symlink(file: Path) -> None:
    target = file.with_name("elsewhere")
    file.rename(target)
    file.symlink_to(target)


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def _rewritten(**changes: Any) -> Callable[[Path], None]:
    """Return a function that writes the file anew with other members and a right checksum."""

    def rewrite(file: Path) -> None:
        stored = json.loads(file.read_bytes().partition(b"\n")[2])
        stored.update({name: change(stored[name]) if callable(change) else change for name, change in changes.items()})
        body = json.dumps({name: value for name, value in stored.items() if value is not ...}).encode()
        file.write_bytes(b"%08x\n" % binascii.crc32(body) + body)

    return rewrite


HOSTILE = {
    "cut": _cut,
    "empty": _empty,
    "a bit flipped": _flip,
    "garbage": _garbage,
    "huge": _huge,
    "readable by others": _open_to_others,
    "writable by the group": _open_to_group,
    "a symlink": _symlink,
    "a FIFO": _fifo,
    "dated in the future": _rewritten(stored_at=lambda at: at + 60, expires_at=lambda at: at + 60),
    "asked after it was stored": _rewritten(asked_at=lambda at: at + 60),
    "valid for 400 days": _rewritten(expires_at=lambda at: at + 400 * DAY),
    "valid for ever": _rewritten(expires_at=float("inf")),
    "ends at no time": _rewritten(expires_at=float("nan")),
    "ends at a text": _rewritten(expires_at="later"),
    "ends at a list": _rewritten(expires_at=[1]),
    "from another boot": _rewritten(boot="00000000-0000-0000-0000-000000000000"),
    "of an older format": _rewritten(format=1),
    "of a newer format": _rewritten(format=3),
    "of a format that is true": _rewritten(format=True),
    "ends at a number beyond all floats": _rewritten(expires_at=10**400),
    "asked for at true": _rewritten(asked_at=True),
    "without a wall clock": _rewritten(wall_offset=...),
    "with a wall clock that is infinite": _rewritten(wall_offset=float("inf")),
    "for another endpoint": _rewritten(key=lambda key: ["http://127.0.0.1:1", *key[1:]]),
    "for another resource": _rewritten(key=lambda key: [*key[:-1], "https://graph.microsoft.com"]),
    "without a token": _rewritten(access_token=...),
    "an empty token": _rewritten(access_token=""),
    "a token with a line break": _rewritten(access_token="dummy-secret-1\r\nX-Evil: 1"),
    "a token that is a number": _rewritten(access_token=5),
    "a list": lambda file: file.write_bytes(b"%08x\n[]" % binascii.crc32(b"[]")),
    "nested": lambda file: file.write_bytes(b"%08x\n" % binascii.crc32(b"[" * 100000) + b"[" * 100000),
}


@pytest.mark.parametrize("harm", HOSTILE.values(), ids=HOSTILE)
def test_bad_content(
    imds: ImdsEmulator, memory: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], object]
) -> None:
    """A file that cannot be trusted is ignored with one warning, and replaced."""
    good = new_process(imds)
    harm(stored_in(memory))
    assert new_process(imds) == good
    imds.assert_requests(2)
    assert [record.levelname for record in caplog.records if "shared token was ignored" in record.message] == [
        "WARNING"
    ]
    assert new_process(imds) == good
    imds.assert_requests(2)


def test_other_owner(imds: ImdsEmulator, memory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of another user is ignored."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    new_process(imds)
    os.chown(stored_in(memory), 65534, -1)
    new_process(imds)
    imds.assert_requests(2)
    assert "belongs to user 65534" in caplog.text


def _foreign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)


def _folder_open_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o755)


def _folder_is_a_symlink(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def _folder_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def _base_is_writable_by_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.chmod(0o777)


def _base_is_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "runtime")


def _base_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize(
    "harm",
    [
        _foreign,
        _folder_open_to_others,
        _folder_is_a_symlink,
        _folder_is_a_file,
        _base_is_writable_by_all,
        _base_is_relative,
        _base_is_gone,
    ],
    ids=lambda harm: harm.__name__.strip("_"),
)
def test_bad_directory(
    imds: ImdsEmulator,
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    """Without a directory that can be trusted there is one warning, and a request for each process."""
    new_process(imds)
    harm(stored_in(memory).parent, monkeypatch)
    new_process(imds)
    new_process(imds)
    imds.assert_requests(3)
    assert sum("tokens are not shared" in record.message for record in caplog.records) == 1


def test_disk(
    imds: ImdsEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A runtime directory that is no memory file system is not used."""
    if memory_files._in_memory(tmp_path.stat().st_dev):
        pytest.skip("the temporary directory is in memory here")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    new_process(imds)
    assert "not in memory" in caplog.text
    assert not list(tmp_path.iterdir())


def test_second_directory(imds: ImdsEmulator, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runtime directory cannot be used, a directory in /dev/shm is, with the user in its name."""
    monkeypatch.setattr(memory_files, "SHARED_MEMORY", str(memory))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    new_process(imds)
    new_process(imds)
    imds.assert_requests(1)
    assert stored_in(memory).parent.name == f"azure-imds-credential-{os.geteuid()}"


def test_modes(imds: ImdsEmulator, memory: Path) -> None:
    """The directory has mode 0700 and its files have 0600, whatever the umask."""
    before = os.umask(0)
    try:
        new_process(imds)
    finally:
        os.umask(before)
    folder = stored_in(memory).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_forget_repairs(imds: ImdsEmulator, memory: Path) -> None:
    """Forgetting removes a directory with a wrong mode, so that the next process can make a good one."""
    new_process(imds)
    stored_in(memory).parent.chmod(0o755)
    assert forget_shared_tokens() == 1
    new_process(imds)
    new_process(imds)
    imds.assert_requests(2)


def test_no_space(
    imds: ImdsEmulator, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ENOSPC in the middle of a write: the caller has its token, and the stored file is the old one."""
    good = new_process(imds)
    written = stored_in(memory).read_bytes()
    stored_in(memory).chmod(0o644)  # so that the next process asks
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) < 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, bytes(data)[:100])

    monkeypatch.setattr(os, "write", full)
    assert new_process(imds) == good
    monkeypatch.undo()
    assert "No space left" in caplog.text
    assert stored_in(memory).read_bytes() == written
    assert {file.suffix for file in stored_in(memory).parent.iterdir()} <= {".token", ".lock", ".note"}


def test_full_tmpfs(imds: ImdsEmulator) -> None:
    """The same on a tmpfs of one page, mounted for one process."""
    script = """
        mount -t tmpfs -o size=8k,mode=0700 none "$1" && head -c 8192 /dev/zero > "$1/fill"
        XDG_RUNTIME_DIR="$1" exec "$2" -c "$3" "$4"
    """
    code = (
        "import logging, sys\n"
        "from azure_imds_credential import ImdsCredential\n"
        "from azure_imds_credential._shared import memory_files\n"
        "memory_files.SHARED_MEMORY = '/none'\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "print(len(ImdsCredential(endpoint=sys.argv[1], shared_cache=True).get_token('https://vault.azure.net').token))"
    )
    place = str(Path(os.environ["XDG_RUNTIME_DIR"]))
    ran = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", place, sys.executable, code, imds.endpoint],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount:" in ran.stderr or "unshare:" in ran.stderr:
        pytest.skip(f"no mounts here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) > 100
    assert "WARNING" in ran.stdout


def test_crash_while_writing() -> None:
    """A writer that dies after any number of bytes leaves the old content; the next writer tidies."""
    code = (
        "import os, sys\n"
        "from azure_imds_credential._shared.memory_files import open_folder\n"
        "old, new = b'old ' * 60, b'new ' * 60\n"
        "with open_folder() as folder:\n"
        "    folder.replace('x.token', old)\n"
        "    write = os.write\n"
        "    for crash_at in range(len(new) + 1):\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            def dying(descriptor, data):\n"
        "                write(descriptor, bytes(data)[:crash_at])\n"
        "                os._exit(9)\n"
        "            os.write = dying\n"
        "            folder.replace('x.token', new)\n"
        "        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9\n"
        "        assert folder.read('x.token') == old, crash_at\n"
        "    assert len(folder.names('.new')) == len(new) + 1\n"
        "    folder.tidy('x')\n"
        "    folder.replace('x.token', new)\n"
        "    assert folder.read('x.token') == new and folder.names('') == ['x.token']\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_left_over(imds: ImdsEmulator, memory: Path) -> None:
    """A writer removes what was left of killed writers of the same token, and of no others."""
    new_process(imds)
    token = stored_in(memory)
    token.unlink()
    left, other = token.with_name(f"{token.stem}.token.0123.new"), token.with_name("other.token.0123.new")
    left.touch()
    other.touch()
    new_process(imds)
    assert not left.exists()
    assert other.exists()


@pytest.mark.parametrize(
    "note", [b"", b"asking", b"asking later", b"asking nan", b"absent inf", b"\xff 1", b"x" * 2000000]
)
def test_bad_note(imds: ImdsEmulator, memory: Path, caplog: pytest.LogCaptureFixture, note: bytes) -> None:
    """A note that says nothing costs no token and no warning."""
    new_process(imds)
    token = stored_in(memory)
    token.unlink()
    token.with_suffix(".note").write_bytes(note)
    token.with_suffix(".note").chmod(0o600)
    new_process(imds)
    imds.assert_requests(2)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_disk_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory in memory on which something else is mounted is not used."""
    in_memory = iter([True, False])
    monkeypatch.setattr(memory_files, "_in_memory", lambda _device: next(in_memory, False))
    with pytest.raises(RefusedError, match="azure-imds-credential: not in memory"), open_folder():
        pass


def test_unknown_device() -> None:
    """A device that is mounted nowhere is no memory."""
    assert not memory_files._in_memory(os.makedev(4000, 77))


def test_readers() -> None:
    """While writers are killed at random, readers only see whole files."""
    code = (
        "from azure_imds_credential._shared.memory_files import open_folder\n"
        "with open_folder() as folder:\n"
        "    number = 0\n"
        "    while True:\n"
        "        number += 1\n"
        "        folder.replace('x.token', b'%d,' % number * 5000)\n"
    )
    seen = set[bytes]()
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code])
        try:
            with open_folder() as folder:
                until = time.monotonic() + 20
                while len(seen) < 100 and time.monotonic() < until:
                    content = folder.read("x.token")
                    if content is not None:
                        number = content.partition(b",")[0]
                        assert content == number + b"," + (number + b",") * 4999
                        seen.add(content)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        assert seen
        seen.clear()


def test_refusals(memory: Path) -> None:
    """The message names each directory and what is wrong with it."""
    (memory / "azure-imds-credential").mkdir(0o700)
    (memory / "azure-imds-credential").chmod(0o770)
    with pytest.raises(RefusedError, match=r"open to others \(mode 0770\).*none: No such file"), open_folder():
        pass
