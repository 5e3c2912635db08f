"""How far a reader has to go: the path of one cold `get_token` through the package's own files."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import azure_imds_credential
from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator, forget_tokens

PACKAGE = str(Path(azure_imds_credential.__file__).parent)
TESTING = str(Path(PACKAGE) / "testing")


def test_a_cold_token_is_a_short_walk() -> None:
    """At most 25 calls and 10 changes of file in own files, all threads counted, comprehensions not.

    azure-identity's cold `ImdsCredential.get_token` takes 48 calls over 9 files with 21 changes of file, counted so.
    """
    walk: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        own = code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(TESTING)
        if event == "call" and own and code.co_name not in ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"):
            walk.append((Path(code.co_filename).name, code.co_name))

    with ImdsEmulator() as imds:
        credential = ImdsCredential(endpoint=imds.endpoint)
        credential.get_token("https://other.azure.net/.default")  # imports are made once in a process, not once a token
        forget_tokens()
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            credential.get_token("https://vault.azure.net/.default")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type] # typeshed forgets that None takes it back
        imds.assert_requests(2)

    changes = sum(one[0] != other[0] for one, other in zip(walk, walk[1:], strict=False))
    story = "\n".join(f"{file}: {name}" for file, name in walk)
    assert walk, "nothing was counted"
    assert len(walk) <= 25, f"{len(walk)} calls:\n{story}"
    assert changes <= 10, f"{changes} changes of file:\n{story}"
