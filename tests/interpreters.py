"""The Pythons of this machine, for noxfile.py and for the tests of the packages."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 10)
_TELL = "import sys, sysconfig; print(*sys.version_info[:3], sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"


def find_interpreters() -> dict[str, str]:
    """Return the path of the newest patch release of each Python, by version ("3.13", free-threaded "3.13t"), in order.

    Only releases that the project supports. The Python that runs this stands for its own version.
    """
    found: dict[tuple[int, int, int], tuple[int, str]] = {}
    for place in _candidates():
        done = subprocess.run([place, "-c", _TELL], capture_output=True, text=True, check=False)
        if done.returncode:  # a shim of pyenv for a version that is not chosen
            continue
        major, minor, patch, free_threaded = map(int, done.stdout.split())
        key = (major, minor, free_threaded)
        if (major, minor) >= OLDEST and patch > found.get(key, (-1, ""))[0]:
            found[key] = (patch, str(place))
    return {f"{major}.{minor}{'t' * free}": path for (major, minor, free), (_, path) in sorted(found.items())}


def claimed_interpreters() -> dict[str, str]:
    """Return those that setup.cfg names: the others are tried where a test says so."""
    text = (Path(__file__).parent.parent / "setup.cfg").read_text(encoding="utf-8")
    claimed = re.findall(r"Programming Language :: Python :: (3\.\d+)$", text, re.MULTILINE)
    return {version: path for version, path in find_interpreters().items() if version in claimed}


def _candidates() -> Iterator[Path]:
    """Yield each executable that may be one: on the path, installed by pyenv or beside this one, or below /opt."""
    yield Path(sys.executable)
    home = pwd.getpwuid(os.getuid()).pw_dir  # whatever HOME is
    roots = {Path(os.environ.get("PYENV_ROOT", f"{home}/.pyenv")), Path(home, ".pyenv")}
    folders = [Path(folder) for folder in os.get_exec_path() if "shims" not in Path(folder).parts]
    for place in (Path(sys.base_prefix).parent, *(root / "versions" for root in roots), Path("/opt")):
        folders += sorted(place.glob("*/bin"))
    for folder in dict.fromkeys(folders):
        if os.access(folder, os.R_OK | os.X_OK) and folder.is_dir():  # is_dir may raise elsewhere
            yield from (each for each in sorted(folder.iterdir()) if re.fullmatch(r"python3\.\d+t?", each.name))
