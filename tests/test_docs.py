"""What the documentation says is tried: code blocks run, commands parse, help is as it is, links and names resolve."""

from __future__ import annotations

import ast
import configparser
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import azure_imds_credential
from azure_imds_credential import ImdsError, _cli
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, VaultDouble, forget_tokens

ROOT = Path(__file__).parent.parent
pytest_plugins = ["pytester"]

PAGES = [*(ROOT / name for name in ("README.md", "MIGRATING.md", "TROUBLESHOOTING.md", "CONTRIBUTING.md")),
         *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
TRACKED = [*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("recordings/*.md")), *sorted(ROOT.glob("samples/**/*.md"))]
MEMORY = Path("/dev/shm")
# The identity that the pages name by each of its identifiers.
APP = UserAssigned(
    "app",
    client_id="00000000-0000-0000-0000-00000000c11e",
    object_id="00000000-0000-0000-0000-0000000000b1",
    resource_id="/subscriptions/00000000-0000-0000-0000-000000000005/resourcegroups/app"
    "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app",
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(language: str, *, tests: bool = False) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language == language and ("def test_" in block.text) is tests]
    return pytest.mark.parametrize("block", chosen, ids=str)


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    """What the pages take for granted: a VM with two identities, and a vault that has a greeting for it."""
    forget_tokens()
    monkeypatch.chdir(ROOT)
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as shared,
        ImdsEmulator([SystemAssigned(), APP]) as imds,
        VaultDouble("myvault", {"greeting": "hello"}) as vault,
    ):
        monkeypatch.setenv("XDG_RUNTIME_DIR", shared)
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        yield imds
    forget_tokens()


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("azure_imds_credential")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    """No block of the pages escapes the tests below."""
    known = {"python", "console", "yaml", "ini", "go"}
    assert [str(block) for block in BLOCKS if block.language not in known] == []
    assert {block.language for block in BLOCKS} == known


@pytest.mark.usefixtures("azure", "_logging_as_it_was")
@of("python")
def test_python_runs(block: Block, tmp_path: Path) -> None:
    """Code of the pages runs as it stands, against the emulator and the vault double."""
    script = tmp_path / "block.py"
    script.write_text(block.text)
    if "asyncio.run(" not in block.text:
        runpy.run_path(str(script), run_name="__main__")
    else:  # in a process of its own: aiohttp reads SSL_CERT_FILE, by which the vault is trusted, when it is imported
        subprocess.run([sys.executable, "-W", "error", script], timeout=120, check=True)


@of("python", tests=True)
def test_tests_pass(block: Block, pytester: pytest.Pytester) -> None:
    """Tests of the pages pass as they stand, with warnings as errors and no plugin but ours."""
    pytester.makepyfile(test_page=block.text)
    others = [f"-pno:{name}" for name in ("anyio", "cacheprovider", "hypothesispytest", "platformdirs", "xdist")]
    done = pytester.runpytest_subprocess("-W", "error", "--strict-markers", *others)
    done.assert_outcomes(passed=block.text.count("def test_"))


# Commands


def shown(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with the output that the page shows."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def parsed(argv: list[str]) -> None:
    """Fails unless `azure-imds` takes these arguments."""
    try:
        _cli.make_parser().parse_args(argv)
    except SystemExit as end:
        if end.code != 0:
            pytest.fail(f"azure-imds does not take {argv}")


@pytest.mark.usefixtures("azure")
@of("console")
def test_commands_do_what_is_shown(
    block: Block, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the pages exists; those of `azure-imds` end well and print what the page shows."""
    monkeypatch.setenv("COLUMNS", "80")
    assert block.text.startswith("$ ")
    for command, output in shown(block):
        words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "azure-imds":
            try:
                code = _cli.main(words[1:])
            except SystemExit as end:  # argparse after --help
                code = int(end.code or 0)
            said, complaint = capsys.readouterr()
            if os.environ.get("UPDATE_DOCS") and command.endswith("--help"):
                write_anew(block, command, said)
                continue
            assert code == 0, complaint
            assert output in ("", said)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[:2] == ["pip", "install"]:
            assert_extra_exists(words[2])
        else:
            assert words[:3] == [".venv/bin/python", "-m", "pytest"], f"nobody tries {command!r}"
            assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests"))


def write_anew(block: Block, command: str, output: str) -> None:
    before = f"```console\n{block.text}```"
    after = f"```console\n$ {command}\n{output.rstrip()}\n```"
    block.page.write_text(block.page.read_text().replace(before, after))


def test_help_of_every_command_is_shown() -> None:
    """The page of the command line has the help of the program and of each command."""
    commands = {command for block in blocks(ROOT / "docs/cli.md") for command, _ in shown(block)}
    names = re.findall(r"^    ([a-z]+)  ", _cli.make_parser().format_help(), re.MULTILINE)
    assert len(names) == 9
    assert commands == {"azure-imds --help", *(f"azure-imds {name} --help" for name in names)}


def assert_extra_exists(requirement: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in re.findall(r"\[(\w+)\]", requirement):
        assert extra in setup["options.extras_require"], requirement


@pytest.mark.parametrize("page", TRACKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_parse(page: Path) -> None:
    """Commands in the middle of a sentence are right as well, and so are the extras to install."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`azure-imds\s+([a-z][^`]*)`", prose):
        words = shlex.split(command)
        parsed(words if len(words) > 1 or words[0] not in ("token", "scan", "secret") else [*words, "x", "y"][:3])
    for requirement in re.findall(r"`pip install ([^`]*)`", prose):
        assert_extra_exists(requirement)
    for target in re.findall(r"`make ([a-z]+)`", prose):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@of("yaml")
def test_yaml_of_pods(block: Block) -> None:
    """The init container of the pages is YAML, and its command is one of ours."""
    (container,) = yaml.safe_load(block.text)["initContainers"]
    assert container["command"][0] == "azure-imds"
    parsed(container["command"][1:])


@of("ini")
def test_unit_of_systemd(block: Block) -> None:
    """The unit of the pages can be read, and waits with a command of ours."""
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign] # as the documentation of configparser has it
    unit.read_string(block.text)
    program, *argv = shlex.split(unit["Service"]["ExecStartPre"])
    assert Path(program).name == "azure-imds"
    parsed(argv)


@of("go")
def test_go_is_formatted(block: Block) -> None:
    """The Go program of the pages is one, as gofmt sees it. The program of the same calls runs in tests/integration."""
    gofmt = shutil.which("gofmt")
    if gofmt is None:
        pytest.skip("there is no gofmt on this machine")
    done = subprocess.run([gofmt, "-l"], input=block.text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Names


def cells(page: Path) -> Iterator[list[str]]:
    """The rows of a page's tables, without their rulers."""
    for line in page.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


MOVES = [(before, after) for before, after, *_ in cells(ROOT / "MIGRATING.md") if re.match(r"`[\w.]+\(.*\)`$", before)]


@pytest.mark.usefixtures("azure")
@pytest.mark.parametrize("move", [move for move in MOVES if "(" in move[1]], ids=lambda move: move[0].strip("`"))
def test_calls_to_migrate_exist(move: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of a move are calls that work, as far as they are Python."""
    import azure.identity.aio
    import msal

    import azure_imds_credential.aio as ours_aio

    monkeypatch.setenv("AZURE_CLIENT_ID", APP.client_id)
    names: dict[str, Any] = {
        "x": "x",
        "r": "https://vault.azure.net",
        "scope": "https://vault.azure.net/.default",
        "azure": azure,
        "azure_imds_credential": azure_imds_credential,
        "os": os,
        **{name: getattr(azure.identity, name) for name in ("ManagedIdentityCredential", "get_bearer_token_provider")},
        **{name: getattr(msal, name) for name in dir(msal) if "ManagedIdentity" in name or "source" in name},
        **{name: getattr(azure_imds_credential, name) for name in azure_imds_credential.__all__},
        "credential": azure_imds_credential.ImdsCredential(),
        "get_token": azure_imds_credential.ImdsCredential().get_token,
        "get_managed_identity_source": msal.managed_identity.get_managed_identity_source,
    }
    assert azure_imds_credential.aio is ours_aio
    for call in (side.strip("`") for side in move if side.startswith("`")):
        if call.startswith(("managedidentity.", "acquire_token")):
            continue  # Go, and a method that the Python block above the table calls
        tree: Any = ast.parse(call, mode="eval")
        assert eval(compile(tree, call, "eval"), names) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_are_named_exist(page: Path) -> None:
    """A page that names a test, or a file of the project, names one that exists."""
    for path, name in re.findall(r"`((?:tests|benchmarks|samples|recordings)/[\w/.-]+)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_every_error_has_its_row() -> None:
    """Every class of error has a row that names a test; classes that do not exist have none."""
    rows = [row for row in cells(ROOT / "TROUBLESHOOTING.md") if len(row) == 5][1:]
    assert len(rows) >= 12
    classes = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    ours = {cls.__name__ for cls in ImdsError.__subclasses__() if cls.__module__ == ImdsError.__module__}
    assert classes == ours | {"ValueError"}
    assert all(re.match(r"`tests/\w+\.py::test_\w+`", row[4]) for row in rows)


def test_symptoms_are_in_our_words() -> None:
    """What the table of troubles quotes is what the package, or the IMDS that it emulates, really says."""
    sources = "".join(path.read_text() for path in (ROOT / "azure_imds_credential").rglob("*.py"))
    said = re.sub(r'"\n\s+f?"', "", sources)  # sentences that go on in the next line
    quoted = [quote for row in cells(ROOT / "TROUBLESHOOTING.md") for quote in re.findall(r'"([^"]+)"', row[0])]
    assert len(quoted) > 12
    parts = [part.strip() for quote in quoted for part in quote.split("...")]
    assert [part for part in parts if part not in said] == []


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TRACKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    """A link to somewhere in the project leads there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_benchmarks_have_their_place() -> None:
    """The README keeps the two lines between which the benchmarks write."""
    readme = (ROOT / "README.md").read_text()
    begin, end = "<!-- benchmarks: begin", "<!-- benchmarks: end -->"
    assert (readme.count(begin), readme.count(end)) == (1, 1)
    assert readme.index(begin) < readme.index(end)


@pytest.mark.slow
def test_reference_is_built_without_warnings(tmp_path: Path) -> None:
    """`make docs`: every name of the reference is found, and every docstring is read without a warning."""
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: `make docs` does it")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    page = (tmp_path / "site/reference/index.html").read_text()
    assert "wait_for_identity" in page
    assert "IdentityMismatchError" in page
