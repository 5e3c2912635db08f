"""samples/serve: units, image and manifests say what `azure-imds serve` understands, and keep what they promise."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import TARGET

from azure_imds_credential._cli.parser import make_parser
from azure_imds_credential.serve import DEFAULT_PORT
from azure_imds_credential.testing import ImdsEmulator

SAMPLES = Path(__file__).parent.parent / "samples/serve"
NODE = "10.0.0.4"


def serve_arguments(words: list[str]) -> Any:
    """Read a command line as serve would."""
    return make_parser().parse(["serve", *(word.replace("$(HOST_IP)", NODE) for word in words)])


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names of units have case
    parser.read(SAMPLES / name)
    return parser


def manifests() -> dict[str, Any]:
    found = (each for file in sorted(SAMPLES.glob("*.yaml")) for each in yaml.safe_load_all(file.read_text()))
    return {each["kind"]: each for each in found}


def test_serve_unit_starts_serve() -> None:
    """The service starts serve with arguments that it takes, on the address of its socket, and SIGHUP reloads it."""
    service, listens = unit("azure-imds-serve.service"), unit("azure-imds-serve.socket")
    program, command, *arguments = shlex.split(service["Service"]["ExecStart"])
    assert (Path(program).name, command) == ("azure-imds", "serve")
    options = serve_arguments(arguments)
    assert options.shared_cache
    assert listens["Socket"]["ListenStream"] == f"{options.host}:{options.port}"
    assert service["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["Unit"]["Requires"] == "azure-imds-serve.socket"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_serve_unit_is_hardened() -> None:
    """The tools of systemd find nothing wrong with the units, and give the service an exposure of 1.1 at most."""
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=11", "azure-imds-serve.service"]
    done = subprocess.run(command, cwd=SAMPLES, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"exposure level for azure-imds-serve.service: 1\.[01] ", done.stdout)
    command = ["systemd-analyze", "verify", "./azure-imds-serve.service", "./azure-imds-serve.socket"]
    done = subprocess.run(command, cwd=SAMPLES, capture_output=True, text=True, timeout=600, check=False)
    said = [line for line in done.stderr.splitlines() if "azure-imds-serve" in line]
    assert [line for line in said if "azure-imds is not executable" not in line] == []  # it is not installed in /opt


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not here")
def test_serve_is_activated_by_systemds_own_tool() -> None:
    """systemd-socket-activate starts serve at the first connection, and that connection is answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ImdsEmulator() as imds:
        serve = [sys.executable, "-m", "azure_imds_credential", "serve", "--endpoint", imds.endpoint]
        activate = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *serve]
        process = subprocess.Popen(activate, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert "Listening on" in process.stderr.readline()
            request = urllib.request.Request(f"http://127.0.0.1:{port}{TARGET}", headers={"Metadata": "true"})
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            assert "access_token" in json.load(opener.open(request, timeout=60))
            assert process.stdout is not None
            assert process.stdout.readline() == f"AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:{port}\n"
        finally:
            process.kill()
            process.communicate()


def test_serve_image_starts_serve() -> None:
    """The image runs serve, as a user with a number, and has the extras that its manifests use."""
    text = (SAMPLES / "Containerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    program, command, *arguments = json.loads(entry)
    assert (Path(program).name, command) == ("azure-imds", "serve")
    assert serve_arguments(arguments).port == DEFAULT_PORT
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)
    assert re.search(rf"^EXPOSE {DEFAULT_PORT}$", text, re.MULTILINE)
    assert "[serve,shared]" in text


def test_serve_manifests_start_serve() -> None:
    """The manifests give serve arguments that it takes, and clients the address at which it then listens."""
    found = manifests()
    assert set(found) == {"Deployment", "DaemonSet", "Pod"}

    pod = found["Deployment"]["spec"]["template"]["spec"]
    (sidecar,) = pod["initContainers"]
    options = serve_arguments(sidecar["args"])
    assert sidecar["restartPolicy"] == "Always"
    assert (options.host, options.i_know_that_others_can_ask) == ("127.0.0.1", False)
    (variable,) = pod["containers"][0]["env"]
    assert variable["value"] == f"http://{options.host}:{options.port}"

    (on_node,) = found["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    options = serve_arguments(on_node["args"])
    assert (options.host, options.i_know_that_others_can_ask) == (NODE, True)
    assert on_node["ports"][0]["containerPort"] == options.port
    variable = found["Pod"]["spec"]["containers"][0]["env"][-1]
    assert variable["value"].replace("$(HOST_IP)", NODE) == f"http://{options.host}:{options.port}"


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_serve_manifests_are_restricted(kind: str) -> None:
    """It runs as no root, with no capability, on a file system that it cannot write, with no token of Kubernetes."""
    pod = manifests()[kind]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
