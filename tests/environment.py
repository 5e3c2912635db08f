"""The environment of the suite: what the machine sets does not reach a test, nor a child process of one."""

from __future__ import annotations

import fnmatch
import os
import signal
import threading
import time

# What the suite needs of the machine: where programs, homes and temporary folders are; what pytest and its plugins,
# coverage and mutmut tell their children; the suite's own switches.
KEPT = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "PATHEXT", "COMSPEC", "PYENV_VERSION")
KEPT += ("LD_LIBRARY_PATH", "DYLD_*", "PYTEST_XDIST_*", "PYTEST_CURRENT_TEST", "COV_*", "COVERAGE_*", "MUTANT_*")
KEPT += ("CI", "CHAOS_*", "FUZZ", "UPDATE_DOCS")
# A forgotten endpoint is a loopback port where nothing listens; messages are English and text is UTF-8.
SET = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:9", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "TZ": "UTC"}

# As the machine has it, for children that must reach a package registry (proxies, certificates).
MACHINE = dict(os.environ)


def clean_environment() -> None:
    """Leave in this process's environment only what the suite needs of the machine, and set what it counts on."""
    for name in tuple(os.environ):
        if not any(fnmatch.fnmatchcase(name, kept) for kept in KEPT):
            del os.environ[name]
    os.environ.update(SET)
    # A shell starts what it runs in the background with these ignored; so would every child of the suite ignore them.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(time, "tzset"):
        time.tzset()
