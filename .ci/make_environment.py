"""Make a virtual environment: `python make_environment.py FOLDER`. If this Python cannot, say in one line what to do.

Where this Python has a pip that installs into other environments (from 22.3 on), the new one needs none of its own,
which saves 5 of 20 seconds. Otherwise it gets the one that comes with Python.

A Python that is too old must be able to read this file, so nothing in it is newer than Python 2.7.
"""

import os
import shutil
import subprocess
import sys


def main(folder):
    """Make the environment, or end with a line of advice."""
    if sys.version_info < (3, 10):  # noqa: UP036 - ruff takes it for granted; here it is found out
        fail("is Python " + ".".join(str(number) for number in sys.version_info[:3]) + ", and 3.10 or newer is needed")
    shutil.rmtree(folder, ignore_errors=True)
    code, said = run(sys.executable, "-m", "venv", "--without-pip", folder)
    interpreter = os.path.join(folder, "bin", "python")  # noqa: PTH118 - Python 2.7 has no pathlib
    if code == 0 and run(sys.executable, "-m", "pip", "--python", interpreter, "--version")[0] != 0:
        code, said = run(interpreter, "-m", "ensurepip")
    if code:
        fail(
            "makes no virtual environment (" + said + "; on Debian `apt-get install python3-venv` brings what it needs)"
        )


def run(*command):
    """Return the exit code of a command and the last line that it printed."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    lines = child.communicate()[0].strip().splitlines()
    return child.returncode, lines[-1] if lines else ""


def fail(what):
    """End with one line."""
    sys.exit(sys.executable + " " + what + ". Name another Python with PYTHON, as in `make demo PYTHON=python3.12`.")


main(sys.argv[1])
