"""Clients of others at IMDS's true address, none of them changed: each gets the token of the identity that it names."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients_inside import APP, SYSTEM
from environment import MACHINE
from proving import HERE, lacking, run
from test_true_address import OWN_ADDRESS

CLIENTS = HERE / "clients"
# Between runs, as pip, Maven, Go and Cargo keep what they download: building takes minutes.
USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "azure-imds-credential-integration"
BUILD_SECONDS = 1800  # for Rust on a busy machine
AZURE_CLI = "2.91.0"
# Of the CLI's 200 dependencies those that `az login` and `az account get-access-token` load.
AZURE_CLI_NEEDS = ("msrest", "azure-common", "azure-mgmt-resource==24.0.0")
TOKEN_PATH = "/metadata/identity/oauth2/token"
SELECTED = {"system-assigned": (SYSTEM, None), "by client_id": (APP, APP.client_id)}


class Missing(Exception):  # noqa: N818 - a reason to skip, no error
    """What the machine lacks."""


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"there is no {name} on this machine")
    return path


def _java() -> list[str]:
    java, jars = _tool("java"), USER_CACHE / "java.classpath"
    told = f"-Dmdep.outputFile={jars}"
    run(_tool("mvn"), "-q", "-B", "-f", CLIENTS / "java" / "pom.xml", "dependency:build-classpath", told, env=MACHINE)
    return [java, "-cp", jars.read_text(), str(CLIENTS / "java" / "Token.java")]


def _go() -> list[str]:
    program = USER_CACHE / "go-client"
    run(_tool("go"), "build", "-o", program, ".", cwd=CLIENTS / "go", seconds=BUILD_SECONDS, env=MACHINE)
    return [str(program)]


def _rust() -> list[str]:
    cargo, target = _tool("cargo"), USER_CACHE / "rust"
    # rustup's proxy is there without a toolchain, too: it looks for them in HOME, or where RUSTUP_HOME says.
    if subprocess.run([cargo, "--version"], capture_output=True, env=MACHINE, check=False).returncode:
        raise Missing("cargo has no toolchain on this machine")
    command = [cargo, "build", "--quiet", "--locked", "--target-dir", str(target)]
    run(*command, cwd=CLIENTS / "rust", seconds=BUILD_SECONDS, env=MACHINE)
    return [str(target / "debug" / "client")]


def _azure_cli() -> list[str]:
    folder = USER_CACHE / f"azure-cli-{AZURE_CLI}-{sys.version_info[0]}.{sys.version_info[1]}"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*pip, f"azure-cli-core=={AZURE_CLI}", *AZURE_CLI_NEEDS, env=MACHINE)
        run(*pip, "--no-deps", f"azure-cli=={AZURE_CLI}", env=MACHINE)
        (folder / "whole").touch()
    return [str(folder / "bin" / "az")]


BUILT: dict[str, Callable[[], list[str]]] = {"java": _java, "go": _go, "rust": _rust, "azure-cli": _azure_cli}
IN_DOCS = {
    "java": "azure-identity for Java",
    "go": "azidentity for Go",
    "rust": "azure_identity for Rust",
    "azure-cli": "Azure CLI",
    "pymongo": "pymongo",
    "polars": "polars",
    "delta-rs": "delta-rs",
    "librdkafka": "librdkafka",
}
IN_PYTHON = ("pymongo", "polars", "delta-rs", "librdkafka")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What `clients_inside.py` told from within its namespace; under "missing" why some clients could not be tried."""
    try:
        unshare, _ = _tool("unshare"), _tool("ip")
    except Missing as missing:
        lacking(str(missing))
    namespace = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--map-root-user", "--net"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        lacking("this machine does not let us make a network namespace")
    commands: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    USER_CACHE.mkdir(parents=True, exist_ok=True)
    with (USER_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be building
        for name, build in BUILT.items():
            try:
                commands[name] = build()
            except Missing as reason:
                missing[name] = str(reason)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    inside = [sys.executable, str(HERE / "clients_inside.py"), json.dumps(commands)]
    told = json.loads(run(*namespace, "sh", "-c", OWN_ADDRESS, "sh", *inside, env=environment, seconds=BUILD_SECONDS))
    return {**told, "missing": missing}


@pytest.mark.parametrize("kind", SELECTED)
@pytest.mark.parametrize("name", [*BUILT, *IN_PYTHON])
def test_client(told: dict[str, Any], name: str, kind: str) -> None:
    """The client asks IMDS at its own address, in its own words, and shows the token of the identity that it named."""
    if name in told["missing"]:
        lacking(told["missing"][name])
    identity, client_id = SELECTED[kind]
    result = told[f"{name}, {kind}"]
    assert result["identities"] == [identity.client_id], result["said"]
    assert result["requests"], result["said"]
    for request in result["requests"]:
        assert request == [TOKEN_PATH, "true", client_id, "200"]
    # Their file does not exist: that they were told so shows that the service had their token.
    assert (result["code"] == 0) == (name not in ("polars", "delta-rs")), result["said"]


@pytest.mark.parametrize("name", [*BUILT, *IN_PYTHON])
def test_variable(told: dict[str, Any], name: str) -> None:
    """The page on the command line says rightly which clients AZURE_POD_IDENTITY_AUTHORITY_HOST leads elsewhere."""
    if name in told["missing"]:
        lacking(told["missing"][name])
    page = (HERE.parent.parent / "docs" / "cli.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {IN_DOCS[name]} "))
    assert row.split(" | ")[1] == ("yes" if told["heeding"][name] else "no")


def test_recipe(told: dict[str, Any]) -> None:
    """The commands of the page on the command line that give a program such a network give it a token."""
    assert told
    page = (HERE.parent.parent / "docs" / "cli.md").read_text()
    (recipe,) = re.findall(r"^```sh\n(unshare.*?)^```$", page, re.MULTILINE | re.DOTALL)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    # Standard error has the log of the emulator.
    output = run("sh", "-c", recipe, seconds=120, env={**os.environ, "PATH": path})
    assert '"token_type":"Bearer"' in output
