"""Fresh interpreters: whatever is measured happens in a process that loaded nothing else before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from azure_imds_credential._source import VARIABLES


def environment(endpoint: str) -> dict[str, str]:
    """Return this process's environment with IMDS at `endpoint` for every library alike, and nothing in the way.

    What the machine says of other token sources must not decide what is measured.
    Bytecode may be written: installed packages have theirs compiled, and a checkout must not be at a disadvantage.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in (*VARIABLES, "PYTHONDONTWRITEBYTECODE") and not name.lower().endswith("_proxy")
    }
    return {**kept, "AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint}


def run(module: str, *arguments: str, endpoint: str, timeout: float = 240.0) -> Any:
    """Run a module of this package in a fresh interpreter.

    Args:
        module: Its name.
        arguments: Its command line.
        endpoint: Base URL of IMDS.
        timeout: Seconds after which it is killed.

    Returns:
        The JSON in the last line of its output.

    Raises:
        RuntimeError: It failed; the message is what it wrote.
    """
    return _last_line([sys.executable, "-m", f"benchmarks.{module}", *arguments], endpoint, timeout)


def run_code(code: str, *, endpoint: str, timeout: float = 60.0) -> Any:
    """Run a piece of code as `run` runs a module."""
    return _last_line([sys.executable, "-c", code], endpoint, timeout)


def _last_line(command: list[str], endpoint: str, timeout: float) -> Any:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=root, env=environment(endpoint), capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
