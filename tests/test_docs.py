"""The documentation is tried: code blocks run, commands parse, shown output is real, links and names resolve."""

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
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from in_memory import shared_memory_is_missing
from packaging.requirements import Requirement

import azure_imds_credential
from azure_imds_credential import ImdsError, _cli
from azure_imds_credential._cli.output import CommandError
from azure_imds_credential._cli.parser import make_parser
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, VaultDouble, forget_tokens

ROOT = Path(__file__).parent.parent
pytest_plugins = ["pytester"]

TOP = ("README.md", "MIGRATING.md", "TROUBLESHOOTING.md", "CONTRIBUTING.md", "SECURITY.md", "recordings/README.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
# The blocks of samples/azure/README.md are run by test_azure_scripts.py.
TRACKED = [*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("samples/**/*.md"))]
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
    """What the pages assume: a VM with two identities, and a vault with a secret."""
    forget_tokens()
    monkeypatch.chdir(ROOT)
    with (
        tempfile.TemporaryDirectory(dir=None if shared_memory_is_missing() else MEMORY) as shared,
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


def test_block_languages() -> None:
    """Every block of the pages is of a language that a test tries."""
    known = {"python", "console", "yaml", "ini", "go", "toml", "text", "diff"}
    known.add("sh")  # tests/integration/test_clients.py runs it in a network of its own
    assert [str(block) for block in BLOCKS if block.language not in known] == []


@pytest.mark.usefixtures("azure", "_logging_as_it_was")
@of("python")
def test_python_runs(block: Block, tmp_path: Path) -> None:
    """Code of the pages runs as it stands, against the emulator and the vault double."""
    script = tmp_path / "block.py"
    script.write_text(block.text)
    if "asyncio.run(" not in block.text:
        runpy.run_path(str(script), run_name="__main__")
    else:  # in a process of its own: aiohttp reads SSL_CERT_FILE, by which the vault is trusted, when it is imported
        subprocess.run([sys.executable, "-W", "error", script], timeout=600, check=True)


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
    for part in re.split(r"^\$ ", block.text.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def parsed(argv: list[str]) -> None:
    """Fails unless `azure-imds` takes these arguments."""
    try:
        make_parser().parse(argv)
    except CommandError as error:
        pytest.fail(f"azure-imds does not take {argv}: {error}")
    except SystemExit as end:  # after --help and --version
        if end.code != 0:
            pytest.fail(f"azure-imds ends with {end.code} for {argv}")


@pytest.mark.usefixtures("azure")
@of("console")
def test_commands(block: Block, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the pages exists; those of `azure-imds` succeed and print what the page shows."""
    monkeypatch.setenv("COLUMNS", "80")
    assert block.text.startswith("$ ")
    for line, output in shown(block):
        inner = re.findall(r"\$\(azure-imds ([^)]*)\)|'!azure-imds ([^']*)'", line)
        command = line.partition(" > ")[0]
        words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if inner:  # as part of a command of another program, which tests/integration runs
            for substitution, helper in inner:
                parsed(shlex.split(substitution or f"{helper} get"))
        elif words[0] == "azure-imds":
            try:
                code = _cli.main(words[1:])
            except SystemExit as end:  # argparse after --help
                code = int(end.code or 0)
            printed, complaint = capsys.readouterr()
            if os.environ.get("UPDATE_DOCS") and command.endswith("--help"):
                write_anew(block, command, printed)
                continue
            assert code == 0, complaint
            assert output in ("", printed)
        elif words[0] == "make":
            assert_make_target(words[1])
        elif words[:2] in (["pip", "install"], ["pip", "wheel"]):
            if "--keyring-provider" not in words:  # a feed's package, which tests/integration/test_tools.py installs
                assert_requirement(words[-1])
        elif words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], timeout=600, check=True)
        else:
            assert words[:3] == [".venv/bin/python", "-m", "pytest"], f"{command!r} is not tried"
            assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests"))


def assert_make_target(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def assert_requirement(text: str) -> None:
    """Fail unless this names the project, with extras that exist; `<...>` is for the reader to fill in."""
    if text.startswith("."):
        name, extras = ROOT.joinpath(text.partition("[")[0]).resolve(), set(re.findall(r"\w+", text.partition("[")[2]))
        assert name == ROOT
    else:
        filled = re.sub(r"<url [^>]*>", "https://git.example/project", re.sub(r"<tag [^>]*>", "v0.1.0", text))
        requirement = Requirement(filled)
        assert requirement.name == "azure-imds-credential"
        extras = set(requirement.extras)
    assert extras <= set(extras_of_setup())


def extras_of_setup() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return list(setup["options.extras_require"])


def test_demo_output() -> None:
    """The README shows what `make demo` prints, but for times and ports; "..." leaves out the rest of a line."""
    (output,) = (
        output for block in blocks(ROOT / "README.md") for command, output in shown(block) if "demo" in command
    )
    demo = [sys.executable, "-W", "error", ROOT / "samples/demo.py"]
    printed = subprocess.run(demo, capture_output=True, text=True, timeout=600, check=True).stdout

    def comparable(text: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)

    rest = comparable(printed)
    for line in filter(None, comparable(output).splitlines()):
        start = line.removesuffix("...")
        assert start in rest, f"{line!r} is not printed, or not in this order"
        rest = rest[rest.index(start) + len(start) :]


@of("text")
def test_requirements(block: Block) -> None:
    """The requirements.txt of the pages names this project and its extras."""
    if block.page.name == "architecture.md":
        pytest.skip("a tree of files: test_architecture_files has it")
    for line in block.text.splitlines():
        assert_requirement(line)


@of("toml")
def test_pyproject(block: Block) -> None:
    """The pyproject.toml of the pages is one, and depends on this project."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    for requirement in tomllib.loads(block.text)["project"]["dependencies"]:
        assert_requirement(requirement)


@of("diff")
def test_diffs(block: Block) -> None:
    """A diff has lines that are removed and lines that are added, and these are Python."""
    assert all(line[:1] in ("+", "-", "@") for line in block.text.splitlines())
    for hunk in block.text.split("@@\n"):
        added = [line[1:] for line in hunk.splitlines() if line.startswith("+") and not line.startswith("+++")]
        code = textwrap.dedent("\n".join(added))
        ast.parse(f"def function():\n{textwrap.indent(code, '    ')}")  # a return statement may stand alone


def test_architecture_files() -> None:
    """The tree on the architecture page has every package and top-level module, and nothing else."""
    package = ROOT / "azure_imds_credential"
    (tree,) = (block.text for block in blocks(ROOT / "docs/architecture.md") if block.language == "text")
    folder, shown = "", set()
    for line in tree.splitlines()[1:]:
        names = re.match(r" +((?:\S+/)?(?: *\w+\.py)*)", line)
        assert names, line
        if re.match(r"  \w+/ ", line):
            folder = line.split("/")[0].strip()
        elif line.startswith("  ") and not line.startswith("   "):
            folder = ""
        for name in re.findall(r"\w+\.py|\w+/", line.split("   ")[0] + names[0]):
            shown.add(name if name.endswith("/") else f"{folder}/{name}".lstrip("/"))
    assert [name for name in shown if not (package / name).exists()] == []
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")}
    assert (packages | modules) - shown == set()


def test_samples_page() -> None:
    """The page of samples links to every one of them."""
    linked = set(re.findall(r"\]\(\.\./samples/(\w+\.py)\)", (ROOT / "docs/samples.md").read_text()))
    assert linked == {path.name for path in (ROOT / "samples").glob("*.py")} - {"demo.py"}


# The extras that the targets of make install.
SETS_OF_THE_PROJECT = {"adapters", "demo", "docs", "fuzz", "integration", "lint", "matrix", "mutation", "test"}


def test_extras_table() -> None:
    """The page on installing lists each extra that is not for work on the project, once."""
    _, *listed = (row[0].strip("`") for row in cells(ROOT / "docs/install.md") if len(row) == 3)
    assert sorted(listed) == sorted(set(extras_of_setup()) - SETS_OF_THE_PROJECT)


def write_anew(block: Block, command: str, output: str) -> None:
    before = f"```console\n{block.text}```"
    after = f"```console\n$ {command}\n{output.rstrip()}\n```"
    block.page.write_text(block.page.read_text().replace(before, after))


def test_help_pages() -> None:
    """The page of the command line has the help of the program and of each command."""
    commands = {command for block in blocks(ROOT / "docs/cli.md") for command, _ in shown(block) if "--help" in command}
    names = list(make_parser().commands)
    assert len(names) == 11
    assert commands == {"azure-imds --help", *(f"azure-imds {name} --help" for name in names)}


@pytest.mark.parametrize("page", TRACKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_prose(page: Path) -> None:
    """Commands inside sentences parse too, and their extras and targets exist."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`azure-imds\s+([a-z][^`]*)`", prose):
        words = shlex.split(command)
        parsed(words if len(words) > 1 else ["help", *words])
    for requirement in re.findall(r"`pip install ([^`]*)`", prose):
        assert_requirement(shlex.split(requirement)[-1])
    for target in re.findall(r"`make ([a-z-]+)`", prose):
        assert_make_target(target)


@of("yaml")
def test_yaml(block: Block) -> None:
    """The init container and the kubeconfig of the pages are YAML, and their command is one of ours."""
    document = yaml.safe_load(block.text)
    if "users" in document:
        plugin = document["users"][0]["user"]["exec"]
        command = [plugin["command"], *plugin["args"]]
    else:
        (container,) = document["initContainers"]
        command = container["command"]
    assert command[0] == "azure-imds"
    parsed(command[1:])


@of("ini")
def test_systemd_unit(block: Block) -> None:
    """The unit of the pages can be read, and waits with a command of ours."""
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign] # as the documentation of configparser has it
    unit.read_string(block.text)
    program, *argv = shlex.split(unit["Service"]["ExecStartPre"])
    assert Path(program).name == "azure-imds"
    parsed(argv)


@of("go")
def test_go_program(block: Block) -> None:
    """The Go program of the pages is one, as gofmt sees it. The program of the same calls runs in tests/integration."""
    gofmt = shutil.which("gofmt")
    if gofmt is None:
        pytest.skip("there is no gofmt on this machine")
    done = subprocess.run([gofmt, "-l"], input=block.text, capture_output=True, text=True, timeout=600, check=False)
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
def test_migrated_calls(move: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
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
        **{
            name: getattr(azure.identity, name)
            for name in ("DefaultAzureCredential", "ManagedIdentityCredential", "get_bearer_token_provider")
        },
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
def test_named_files(page: Path) -> None:
    """A page that names a test, or a file of the project, names one that exists."""
    for path, name in re.findall(r"`((?:tests|benchmarks|samples|recordings)/[\w/.-]+)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_error_rows() -> None:
    """Every class of error has a row that names a test; classes that do not exist have none."""
    rows = [row for row in cells(ROOT / "TROUBLESHOOTING.md") if len(row) == 5][1:]
    assert len(rows) >= 12
    classes = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    ours = {cls.__name__ for cls in ImdsError.__subclasses__() if cls.__module__ == ImdsError.__module__}
    assert classes == ours | {"TypeError", "ValueError"}
    assert all(re.match(r"`tests/[\w/]+\.py::test_\w+`", row[4]) for row in rows)


def test_symptoms() -> None:
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
def test_links(page: Path) -> None:
    """A link to somewhere in the project leads there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_benchmark_markers() -> None:
    """The page of figures keeps the two lines between which the benchmarks write."""
    page = (ROOT / "docs/benchmarks.md").read_text()
    begin, end = "<!-- benchmarks: begin", "<!-- benchmarks: end -->"
    assert (page.count(begin), page.count(end)) == (1, 1)
    assert page.index(begin) < page.index(end)


def test_readme_figures() -> None:
    """The figures of a cached token and of serve in the README are those of the page of figures, rounded."""
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    (shown,) = re.findall(r"costs ([\d.]+) µs instead of (\d+) µs \((\d+) times less\)", readme)
    ((ours, theirs),) = re.findall(r"\| warm get_token, µs \| ([\d.]+) \| ([\d.]+) \|", page)
    ratio = float(theirs) / float(ours)
    assert shown == (f"{float(ours):.1f}", f"{float(theirs):.0f}", f"{ratio:.0f}")
    (spared,) = re.findall(
        r"send (\d+) request instead of (\d+), and have their\s+tokens after ([\d.]+) s instead of ([\d.]+) s", readme
    )
    requests, seconds = (
        re.findall(rf"32 cold azure-identity processes at once.*: {measure} \| ([\d.]+) \| ([\d.]+) \|", page)[0]
        for measure in ("IMDS requests", "slowest, s")
    )
    assert spared == (*requests, *(f"{float(each):.1f}" for each in seconds))


def test_readme_length() -> None:
    """The README is one that is read: about 600 words."""
    assert len((ROOT / "README.md").read_text().split()) <= 650


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    """`make docs` builds every page without a warning, with each error and enum member of the reference."""
    if find_spec("material") is None or find_spec("mkdocstrings") is None:
        pytest.skip("the site is not installed: `make docs` does it")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    page = (tmp_path / "site/reference/index.html").read_text()
    names = [
        "wait_for_identity",
        *azure_imds_credential.__all__,
        *azure_imds_credential.ManagedIdentitySource.__members__,
    ]
    assert [name for name in names if name not in page and name != "__version__"] == []
    headings = re.findall(r'<h[1-6] id="([^"]+)"', page)
    assert len(headings) == len(set(headings))
    for html in (tmp_path / "site").rglob("*.html"):
        remote = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?(https?://[^">\s]+)', html.read_text())
        assert remote == [], f"{html} loads from elsewhere"
