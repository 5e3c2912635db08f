"""samples/azure/push_and_run.sh against a real sshd and rsync on loopback: throw-away keys, a home of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "samples" / "azure" / "push_and_run.sh"
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
MISSING = [tool for tool, found in (("sshd", SSHD), ("rsync", shutil.which("rsync"))) if not found]

# AuthorizedKeysFile, HostKey and PidFile are this directory's: nothing of the machine's SSH is read or written.
# The key exchange is a cheap one: the default, against quantum computers, costs each end 0.1 s for each connection.
# ForceCommand gives each session a home of its own, since the account that runs the tests has only the real one.
CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
KexAlgorithms curve25519-sha256
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
ForceCommand HOME={folder}/home; export HOME; cd; PATH={folder}/tools:$PATH; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclass
class Vm:
    folder: Path
    port: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def arguments(self, source: Path, *more: str, **changed: str) -> list[str]:
        given = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--admin": subprocess.check_output(["id", "-un"], text=True).strip(),
            "--key": str(self.folder / "key"),
            "--ssh-config": str(self.folder / "ssh_config"),
            "--directory": "work/tree",
            "--source": str(source),
        } | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        return ["bash", str(SCRIPT), *(word for pair in given.items() for word in pair), *more]

    def run(self, source: Path, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        arguments = self.arguments(source, "--", *command, **changed)
        return subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False, stdin=-3)


def start_sshd(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    (folder / "sshd_config").write_text(CONFIGURATION.format(port=port, folder=folder))
    with (folder / "sshd.log").open("wb") as log:
        # -D keeps it in the foreground. sshd runs itself again for each connection and so wants an absolute path.
        server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    for _attempt in range(200):
        if server.poll() is not None:
            break
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return server, port
        time.sleep(0.05)  # another program's start cannot be awaited otherwise
    server.kill()
    raise OSError((folder / "sshd.log").read_text())


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    if MISSING and os.environ.get("CI"):
        pytest.fail(f"CI must install {' and '.join(MISSING)} (Debian: openssh-server, rsync)")
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)} (Debian: openssh-server, rsync)")
    folder = tmp_path_factory.mktemp("vm with a space")
    spaceless = Path("/tmp") / f"vm-{os.getpid()}-{folder.stat().st_ino}"  # sshd_config cannot quote in ForceCommand
    spaceless.symlink_to(folder)
    try:
        prepare(folder, spaceless)
        server, port = started(spaceless)
        yield Vm(folder, port)
        server.terminate()
        server.wait(10)
    finally:
        spaceless.unlink()


def prepare(folder: Path, spaceless: Path) -> None:
    for part in ("home", "tools"):
        (folder / part).mkdir()
    for key in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "ssh_config").write_text(f"UserKnownHostsFile {spaceless}/known_hosts\nGlobalKnownHostsFile none\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to separate privileges without it


def started(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    for _attempt in range(2):
        try:
            return start_sshd(folder)
        except OSError:
            continue  # another program may have taken the port in between
    return start_sshd(folder)


@pytest.fixture
def tree(tmp_path: Path, vm: Vm) -> Iterator[Path]:
    """A working tree as developers have it, and an empty home on the VM."""
    tree = tmp_path / "a working tree"
    for name, text in {
        "sample.sh": 'echo "out $1"; echo err >&2; exit "$2"\n',
        "src/module.py": "x = 1\n",
        ".gitignore": "*.log\nbuild/\n",
        "debug.log": "not copied",
        "build/out": "not copied",
        ".git/config": "not copied",
        ".venv/bin/tool": "not copied",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    yield tree
    shutil.rmtree(vm.home)
    vm.home.mkdir()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("code", [0, 7])
def test_output_and_exit_code_are_the_commands(vm: Vm, tree: Path, code: int) -> None:
    """Both streams come back apart from each other, and the exit code is the command's own."""
    done = vm.run(tree, "sh", "sample.sh", "hello", str(code))
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (code, "out hello\n", "err")


def test_the_tree_is_copied_without_what_git_ignores(vm: Vm, tree: Path) -> None:
    """Tracked files arrive with their contents; .git, the virtual environment and ignored files stay here."""
    assert vm.run(tree, "true").returncode == 0
    there = vm.home / "work" / "tree"
    assert files(there) == {"sample.sh", "src/module.py", ".gitignore"}
    assert (there / "src" / "module.py").read_text() == "x = 1\n"


def test_a_change_is_pushed_and_what_is_gone_is_removed(vm: Vm, tree: Path) -> None:
    """The second push brings changes and removes deleted files, but leaves the VM's own environment alone."""
    vm.run(tree, "true")
    there = vm.home / "work" / "tree"
    for own in (there / ".venv" / "bin" / "python", there / "kept.log", vm.home / "work" / "neighbour"):
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text("the VM's own")
    (tree / "src" / "module.py").unlink()
    (tree / "sample.sh").write_text("echo changed\n")
    assert vm.run(tree, "sh", "sample.sh").stdout == "changed\n"
    assert files(there) == {"sample.sh", ".gitignore", ".venv/bin/python", "kept.log"}
    assert (vm.home / "work" / "neighbour").exists()


def test_arguments_arrive_as_they_were_given(vm: Vm, tree: Path) -> None:
    """No shell on the way, and not the VM's either, reads anything into an argument."""
    (tree / "show.py").write_text("import sys; print(ascii(sys.argv[1:]))\n")
    arguments = ["two words", "it's", '"double"', "$HOME", "`id`", "$(id)", "*", "back\\slash", "line\nbreak", ""]
    arguments += [";exit 9", "&é%s", "#", "~", "-x", "a=b", "!!", "'"]
    assert vm.run(tree, "python3", "show.py", *arguments).stdout == ascii(arguments) + "\n"


def test_output_is_streamed(vm: Vm, tree: Path) -> None:
    """A line is here while the command, a Python program that never flushes, still runs there."""
    (tree / "slow.py").write_text(
        "import os, sys, time\nprint('first')\n"
        "for _ in range(600):\n"
        "    if os.path.exists('go'): print('last'); sys.exit(3)\n"
        "    time.sleep(0.05)\n"
    )
    arguments = vm.arguments(tree, "--", "python3", "slow.py")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "first\n"
        assert running.poll() is None
        (vm.home / "work" / "tree" / "go").touch()
        assert running.stdout.read() == "last\n"
    assert running.returncode == 3


def test_the_virtual_environment_comes_first(vm: Vm, tree: Path) -> None:
    """A program of .venv on the VM is found by name, before the system's."""
    vm.run(tree, "true")
    tool = vm.home / "work" / "tree" / ".venv" / "bin" / "python3"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho the environment\n")
    tool.chmod(0o755)
    assert vm.run(tree, "python3").stdout == "the environment\n"


def tool(vm: Vm, name: str, text: str) -> None:
    (vm.folder / "tools" / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$HOME/calls"\n{text}\n')
    (vm.folder / "tools" / name).chmod(0o755)


@pytest.mark.parametrize("has_ensurepip", [True, False])
def test_install_prepares_the_vm_first(vm: Vm, tree: Path, has_ensurepip: bool) -> None:
    """`--install` makes .venv, installs the package into it, and fetches Ubuntu's python3-venv only where it lacks."""
    tool(vm, "sudo", "")
    tool(
        vm,
        "python3",
        f'[ "$1" = -c ] && exit {int(not has_ensurepip)}\n'
        '[ "$2" = venv ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python && exit\necho noise',
    )
    try:
        arguments = vm.arguments(tree, "--install", "--", "echo", "ran")
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    finally:
        for name in ("sudo", "python3"):
            (vm.folder / "tools" / name).unlink()
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    apt = ["sudo apt-get update -qq", "sudo apt-get install -qq python3-venv"]
    assert (vm.home / "calls").read_text().splitlines() == [
        "python3 -c import ensurepip",
        *([] if has_ensurepip else apt),
        "python3 -m venv .venv",
        "python3 -m pip install --quiet --editable .[keyvault]",
    ]


def test_a_failed_install_stops_before_the_command(vm: Vm, tree: Path) -> None:
    """Where the environment cannot be made, the command does not run and the code is not 0."""
    tool(vm, "python3", '[ "$1" = -c ]')
    try:
        arguments = vm.arguments(tree, "--install", "--", "echo", "ran")
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    finally:
        (vm.folder / "tools" / "python3").unlink()
    assert (done.returncode != 0, done.stdout) == (True, "")


@pytest.mark.parametrize("change", ["port", "key"])
def test_a_vm_that_cannot_be_reached_is_255(vm: Vm, tree: Path, tmp_path: Path, change: str) -> None:
    """No server, or one that refuses the key: code 255 and a sentence, and nothing was run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: a connection is refused for as long as this is open
        other_key = tmp_path / "other_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other_key], check=True)
        changed: dict[str, Any] = {"port": str(free.getsockname()[1])} if change == "port" else {"key": str(other_key)}
        done = vm.run(tree, "touch", "ran", **changed)
    assert (done.returncode, done.stdout) == (255, "")
    assert "could not be copied" in done.stderr
    assert files(vm.home) == set()


def test_the_host_key_is_kept_and_a_changed_one_refused(vm: Vm, tree: Path) -> None:
    """A VM seen for the first time is accepted, one whose key changed is not."""
    known = vm.folder / "known_hosts"
    known.unlink(missing_ok=True)
    assert vm.run(tree, "true").returncode == 0
    stored = known.read_text()
    assert f"[127.0.0.1]:{vm.port} ssh-ed25519" in stored
    other = (vm.folder / "key.pub").read_text().split()[1]
    known.write_text(f"[127.0.0.1]:{vm.port} ssh-ed25519 {other}\n")
    assert vm.run(tree, "true").returncode == 255
    known.write_text(stored)


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"host": "-oProxyCommand=id"}, "--host"),
        ({"host": "a b"}, "--host"),
        ({"admin": "a;b"}, "--admin"),
        ({"port": "ssh"}, "--port"),
        ({"key": "/nowhere"}, "--key"),
        ({"ssh_config": "/nowhere"}, "--ssh-config"),
        ({"source": "/nowhere"}, "--source"),
        *(
            ({"directory": bad}, "--directory")
            for bad in ("/", ".", "..", "~", "a/../..", "a b", "/etc", "a/", "-x", "$HOME")
        ),
        ({"unknown": "x"}, "--unknown"),
    ],
)
def test_a_wrong_value_names_its_option(tmp_path: Path, changed: dict[str, str], option: str) -> None:
    """The caller's mistakes end with code 2; a directory that --delete could harm is one of them."""
    given = {"host": "127.0.0.1", "source": str(tmp_path)} | changed
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = subprocess.run(["bash", SCRIPT, *words, "--", "true"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith(f"push_and_run.sh: {option}: ")) == (2, True), done.stderr


@pytest.mark.parametrize(("words", "names"), [([], "--host"), (["--host", "h"], "--"), (["--host"], "--host")])
def test_what_is_required_is_said(words: list[str], names: str) -> None:
    """A missing host, value or command is named."""
    done = subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith(f"push_and_run.sh: {names}: ")) == (2, True), done.stderr
