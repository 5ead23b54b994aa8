"""Build the documentation site into build/site, and check it.

``make docs`` runs this. Pages keep their path in the repository, so that a link that works there
works on the site. A notebook becomes a page.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
#: The pages beside docs/.
OTHERS = ("*.md", "studies/*.md", "storage/*.md", "benchmarks/results/*.md")
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")
#: Attributes with which a page loads something, and those that lead to another one.
_LOADS = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("link", "href"),
}
_LEADS = ("a", "href")


def source_pages() -> list[Path]:
    """Return the pages and notebooks of the repository."""
    docs = [path for kind in ("*.md", "*.ipynb") for path in (ROOT / "docs").rglob(kind)]
    return sorted([*docs, *(path for pattern in OTHERS for path in ROOT.glob(pattern))])


def copy_pages(folder: Path) -> None:
    """Copy all pages, and the files of the repository that they link to, into a folder."""
    for path in source_pages():
        text = path.read_text(encoding="utf-8")
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            shutil.copy(path, target)
            text = notebook_page(json.loads(text), path.name)
        linked = {(path.parent / name).resolve() for name in _LINK.findall(text)}
        for file in linked:
            if file.is_file() and file.suffix not in (".md", ".ipynb"):
                copied = folder / file.relative_to(ROOT)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copied)
        target.with_suffix(".md").write_text(text.replace(".ipynb)", ".md)"), encoding="utf-8")


def notebook_page(notebook: dict[str, object], name: str) -> str:
    """Return the text and the code of a notebook as Markdown."""
    cells = notebook["cells"]
    assert isinstance(cells, list)
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    title, *others = parts
    download = f'<p><a href="{name}" download>Download this notebook</a></p>'
    return "\n\n".join([title, download, *others]) + "\n"


class _Addresses(HTMLParser):
    """Collect what a page loads and links to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (tag, name) in _LOADS:
                self.loaded.append(value)
            elif value and (tag, name) == _LEADS:
                self.linked.append(value)


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with the links of a site: files that are missing, other servers."""
    for page in sorted(site.rglob("*.html")):
        found = _Addresses()
        found.feed(page.read_text(encoding="utf-8"))
        name = page.relative_to(site)
        for address in (*found.loaded, *found.linked):
            parts = urlsplit(address)
            is_here = not (parts.scheme or parts.netloc)
            if not is_here and address in found.loaded and parts.scheme != "data":
                yield f"{name} loads {address} from another server"
            # A server shows the page 404 at any address; its links are absolute.
            missing = parts.path and not (page.parent / unquote(parts.path)).exists()
            if is_here and missing and page.name != "404.html":
                yield f"{name} links to {address}, which is not there"


def main() -> int:
    """Build the site; return the exit code."""
    shutil.rmtree(BUILD / "pages", ignore_errors=True)
    shutil.rmtree(BUILD / "site", ignore_errors=True)
    copy_pages(BUILD / "pages")
    shutil.copy(ROOT / "docs/mkdocs.yml", BUILD)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "build/mkdocs.yml"]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        return code
    wrong = list(problems(BUILD / "site"))
    print(*wrong, "build/site; to search in it: python -m http.server -d build/site", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
