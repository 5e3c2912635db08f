"""The emulator under load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from azure_imds_credential.testing import ImdsEmulator

CONNECTIONS = 50
PER_SECOND = 500
SECONDS = 10


@pytest.mark.alone
def test_500_requests_a_second_for_10_seconds() -> None:
    """The emulator holds 500 requests a second from 50 connections for 10 s without one error."""
    with ImdsEmulator() as imds:
        client = [sys.executable, str(Path(__file__).with_name("load_client.py")), "127.0.0.1", str(imds.port)]
        numbers = [str(number) for number in (CONNECTIONS, PER_SECOND, SECONDS)]
        done = subprocess.run([*client, *numbers], capture_output=True, text=True, timeout=600, check=True)
        result = json.loads(done.stdout)
        assert result["errors"] == []
        assert result["answers"] == len(imds.requests) == PER_SECOND * SECONDS
        assert result["tokens"] == len(imds.tokens) == 1
        assert result["took"] < SECONDS + 1, f"fell behind: {result}"
