"""The suite on each Python of this machine that setup.cfg names: `make test-matrix`. One session for each.

A session is named after its version. The tag "ends" is on the oldest and the newest one besides the Python that runs
this; `make test-matrix NOX="--tags ends"` runs those.
"""

import sys
from pathlib import Path

import nox

sys.path.append(str(Path(__file__).parent / "tests"))
from interpreters import claimed_interpreters

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

DEFAULT = f"{sys.version_info.major}.{sys.version_info.minor}"
INTERPRETERS = claimed_interpreters()
OTHERS = [version for version in INTERPRETERS if version != DEFAULT]


def tests(session: nox.Session) -> None:
    """Install what `make test` installs, and run the tests."""
    session.install("--quiet", "--editable", ".[test]")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


for version, path in INTERPRETERS.items():
    nox.session(
        tests, python=path, name=f"tests-{version}", tags=["ends"] if version in OTHERS[:1] + OTHERS[-1:] else []
    )


def no_other_python(session: nox.Session) -> None:
    """Do nothing: nox fails where a tag is on no session."""
    session.skip("setup.cfg names no other Python that is on this machine")


if not OTHERS:
    nox.session(no_other_python, python=False, tags=["ends"])
