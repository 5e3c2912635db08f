"""A hook for mkdocs: pages that stand elsewhere in the repository become pages of the site, and links follow them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Page of the site: file of the repository.
SOURCES = {
    "index.md": "README.md",
    "migrating.md": "MIGRATING.md",
    "troubleshooting.md": "TROUBLESHOOTING.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "recordings.md": "recordings/README.md",
    "samples-azure.md": "samples/azure/README.md",
}
# Files of the repository that have no page of their own: the page that shows or names them.
SHOWN_ON = {"samples": "samples.md", "LICENSE": "index.md"}
PAGES = {source: page for page, source in SOURCES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere."""
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite the links of a page, which are those of the repository, and show the samples that it links to."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri == "samples.md":
        markdown = re.sub(r"^\[samples/\w+\.py\]\(\.\./(samples/\w+\.py)\)$", shown, markdown, flags=re.MULTILINE)
    return re.sub(r"(?<=\]\()[^)\s#]+", lambda link: site_link(link[0], source), markdown)


def shown(link: re.Match[str]) -> str:
    """Return a sample as a block of code with its name."""
    return f'```python title="{link[1]}"\n{(ROOT / link[1]).read_text()}```'


def site_link(link: str, source: str) -> str:
    """Return a link of a file of the repository as the site has it."""
    if re.match(r"\w+:", link):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    for prefix, page in SHOWN_ON.items():
        if target == prefix or target.startswith(f"{prefix}/"):
            return page
    return link  # mkdocs warns of a link that leads nowhere
