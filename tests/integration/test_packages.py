"""The wheel and the sdist: built clean, installed into empty environments, tested there on both ends of the bounds."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from environment import MACHINE
from interpreters import claimed_interpreters
from packaging.requirements import Requirement
from packaging.version import Version
from proving import CACHE, HERE, run

ROOT = HERE.parent.parent
TEST_SECONDS = 600
# The tests of the installed package itself. Left out: those of the repository's scripts, samples, documents and
# templates, those that measure times or need a namespace, and those marked slow.
CORE = [
    "arguments", "calls", "captures", "cli_tools", "concurrency", "copies", "decision", "emulator_captures",
    "emulator_rules", "endpoint", "exports", "failures", "metrics", "no_proxy", "response", "retry", "source",
    "token_entry", "token_life",
]  # fmt: skip
NAMES_FOR_USERS = ("completion", "keyring", "keyvault", "opentelemetry", "serve", "shared", "testing")
EXTRAS_FOR_USERS = {f'extra == "{name}"' for name in NAMES_FOR_USERS}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from the files that git knows, as a fresh clone would."""
    tree = tmp_path_factory.mktemp("tree")
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        source, target = ROOT / name, tree / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    said = run(sys.executable, "-m", "build", "--outdir", "dist", cwd=tree, env=MACHINE)
    assert "warning" not in said.lower(), said
    return tree / "dist"


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_both_are_well_formed(built: Path) -> None:
    """Twine and check-wheel-contents find nothing to complain of."""
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    run(sys.executable, "-m", "check_wheel_contents", _only(built, "*.whl"))


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    """Every module and py.typed are in the wheel, the licence and metadata, and no tests or benchmarks."""
    with zipfile.ZipFile(_only(built, "*.whl")) as wheel:
        names = set(wheel.namelist())
    modules = {
        name
        for name in run("git", "ls-files", "azure_imds_credential", cwd=ROOT).splitlines()
        if name.endswith((".py", "py.typed")) and (ROOT / name).exists()
    }
    assert modules <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"azure_imds_credential"}
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    """The sdist is enough to build a wheel with the same files from."""
    with tarfile.open(_only(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", cwd=tree, env=MACHINE)
    again, first = _only(tmp_path / "dist", "*.whl"), _only(built, "*.whl")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(first).namelist()


def test_the_sdist_holds_a_suite_that_runs(built: Path, tmp_path: Path) -> None:
    """Every file of the repository is in the sdist, and `make test` passes in it, without git."""
    with tarfile.open(_only(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    of_git_alone = {".gitignore", "tests/integration/.gitignore"}
    tracked = {name for name in run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / name).exists()} - of_git_alone
    assert {name for name in tracked if not (tree / name).is_file()} == set()
    quick = f"ARGS=-m 'not slow' {' '.join(f'tests/test_{name}.py' for name in (*CORE, 'docs', 'samples'))}"
    said = run("make", "test", f"PYTHON={sys.executable}", quick, cwd=tree, env=MACHINE)
    assert re.search(r"\d+ passed", said), said


def _lower_bounds(wheel: Path) -> list[str]:
    """The lowest versions that the wheel's own metadata allows, with the extras for users, as exact ones."""
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(content.read(name).decode())
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    alone = {each.name for each in required if each.marker is None}
    assert alone == {"azure-core", "msal"}, "the runtime dependencies"
    for_users = [each for each in required if each.marker is None or str(each.marker) in EXTRAS_FOR_USERS]
    return [f"{each.name}{str(each.specifier).replace('>=', '==')}" for each in for_users]


def _installed(interpreter: Path) -> dict[str, str]:
    lines = run(interpreter, "-m", "pip", "list", "--format", "freeze").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_the_core_tests_pass_where_it_is_installed(built: Path, tmp_path: Path, which: str) -> None:
    """With the lowest dependencies on the oldest Python, and with the newest on the newest, from the wheel alone."""
    pythons = list(claimed_interpreters().items())
    version, path = pythons[0] if which == "lowest" else pythons[-1]
    wheel = _only(built, "*.whl")
    environment = tmp_path / "environment"
    run(path, "-m", "venv", environment)
    interpreter = environment / "bin" / "python"
    bounds = _lower_bounds(wheel)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(bounds) if which == "lowest" else "")
    install = (interpreter, "-m", "pip", "install", "--quiet", "--cache-dir", CACHE / "pip", "-c", constraints)
    run(*install, "--upgrade" if which == "newest" else "--no-warn-conflicts", wheel, env=MACHINE)
    alone = _installed(interpreter)
    assert {"azure-core", "msal", "azure-imds-credential"} <= alone.keys()
    assert not {"azure-identity", "aiohttp", "vcrpy", "pytest"} & alone.keys()
    code = "from azure_imds_credential import ImdsCredential; from azure_imds_credential.aio import ImdsCredential"
    run(interpreter, "-W", "error", "-c", f"{code}; print(ImdsCredential(endpoint='http://127.0.0.1:9'))", cwd=tmp_path)
    run(*install, f"{wheel}[test]", env=MACHINE)
    if which == "lowest":
        kept = {name.lower().replace("_", "-"): version for name, version in _installed(interpreter).items()}
        for name, bound in (each.split("==") for each in bounds):
            assert Version(kept[name.lower()]) == Version(bound)
    elsewhere = tmp_path / "elsewhere"  # where the repository's own package is not
    shutil.copytree(ROOT / "tests", elsewhere / "tests", ignore=shutil.ignore_patterns("integration", "__pycache__"))
    shutil.copy(ROOT / "setup.cfg", elsewhere)
    where = run(interpreter, "-c", "import azure_imds_credential as a; print(a.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(environment)
    files = [f"tests/test_{name}.py" for name in CORE]
    quick = ("-m", "not slow", "-n", "2", "-p", "no:cacheprovider", "-q")
    said = run(interpreter, "-m", "pytest", *quick, *files, cwd=elsewhere, seconds=TEST_SECONDS)
    passed = re.search(r"(\d+) passed", said)
    assert passed, said
    print(f"{which}: {passed[0]} on Python {version}; {bounds if which == 'lowest' else alone}")
