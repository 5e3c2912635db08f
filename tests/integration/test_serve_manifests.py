"""samples/serve against what others say of it: Kubernetes's schemas (kubernetes-validate carries them), and pip."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from environment import MACHINE
from proving import run

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "samples/serve"


@pytest.mark.parametrize("name", sorted(file.name for file in SAMPLES.glob("*.yaml")))
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_serve_manifests_are_kubernetes(name: str, version: str) -> None:
    """Every member is one that Kubernetes knows, of the right type: from the first with sidecars to a recent one."""
    command = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", "-k", version, SAMPLES / name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed for resource" in done.stdout + done.stderr


def test_serve_manifests_are_judged(tmp_path: Path) -> None:
    """A misspelled member is found, so that the test above can fail."""
    broken = tmp_path / "broken.yaml"
    broken.write_text((SAMPLES / "sidecar.yaml").read_text().replace("restartPolicy:", "restartPolicie:"))
    command = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", broken]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "restartPolicie" in done.stdout + done.stderr


def test_serve_image_is_built_from_what_it_copies(tmp_path: Path) -> None:
    """The commands of the Containerfile, on the files that it copies, make an environment whose serve starts."""
    text = (SAMPLES / "Containerfile").read_text().replace("\\\n", " ")
    source, made = tmp_path / "source", tmp_path / "made"
    for names, target in re.findall(r"^COPY (?!--)(.*) (\S+)$", text, re.MULTILINE):
        for name in names.split():
            to = source / target / ("" if (ROOT / name).is_dir() else name)
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, to)
    (wanted,) = re.findall(r"pip install --no-cache-dir (.*)$", text, re.MULTILINE)
    venv.create(made, with_pip=True)
    install = f"{made}/bin/pip install --quiet --disable-pip-version-check {wanted}"
    run("sh", "-c", install, cwd=source, env=MACHINE)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    program = [made / "bin" / Path(json.loads(entry)[0]).name, *json.loads(entry)[1:]]
    with subprocess.Popen([*program, "--port", "0", "--shared-cache"], stdout=subprocess.PIPE, text=True) as serve:
        assert serve.stdout is not None
        assert serve.stdout.readline().startswith("AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:")
        serve.terminate()
    assert serve.returncode == 0
