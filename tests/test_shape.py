"""How far a reader has to go: the path of one cold `get_token` through the package's own files."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from azure_imds_credential.testing import ImdsEmulator, UserAssigned

# Runs in a process of its own, where nothing else of the suite watches or logs.
WALK = """
import json, sys, threading
from pathlib import Path
import azure_imds_credential
from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import forget_tokens

package = Path(azure_imds_credential.__file__).parent
walk = []

def profile(frame, event, argument):
    code, path = frame.f_code, Path(frame.f_code.co_filename)
    comprehension = code.co_name in ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
    if event == "call" and path.is_relative_to(package) and not comprehension:
        walk.append((path.name, code.co_name))

credential = ImdsCredential(endpoint=sys.argv[1], **json.loads(sys.argv[2]))
credential.get_token("https://other.azure.net/.default")  # imports are made once in a process, not once a token
forget_tokens()
threading.setprofile(profile)
sys.setprofile(profile)
credential.get_token("https://vault.azure.net/.default")
sys.setprofile(None)
print(json.dumps(walk))
"""


@pytest.mark.parametrize("identity", ["system-assigned", "client_id"])
def test_a_cold_token_is_a_short_walk(identity: str) -> None:
    """At most 25 calls and 10 changes of file in own files, all threads counted, comprehensions not.

    azure-identity's cold `ImdsCredential.get_token` takes 48 calls over 9 files with 21 changes of file, counted so.
    """
    user = UserAssigned("app")
    with ImdsEmulator() as imds:
        imds.assign(user)
        arguments = json.dumps({} if identity == "system-assigned" else {"client_id": user.client_id})
        child = [sys.executable, "-c", WALK, imds.endpoint, arguments]
        said = subprocess.run(child, check=True, capture_output=True, text=True, timeout=60).stdout
        imds.assert_requests(2)

    walk = json.loads(said)
    changes = sum(one[0] != other[0] for one, other in itertools.pairwise(walk))
    story = "\n".join(f"{file}: {name}" for file, name in walk)
    assert len(walk) > 10, "hardly anything was counted"
    assert len(walk) <= 25, f"{len(walk)} calls:\n{story}"
    assert changes <= 10, f"{changes} changes of file:\n{story}"
