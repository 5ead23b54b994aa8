"""The documentation site: every page is in its navigation, and its links lead somewhere.

.ci/run builds it (make docs).
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import autotune
from docs.scripts import build_site
from tests.support.pages.doc_commands import ROOT

API = (ROOT / "docs/api.md").read_text()


def listed(part: Any) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from listed(inner)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    build_site.copy_pages(folder)
    return folder


def test_every_page_is_in_the_navigation_once(copied: Path) -> None:
    nav = yaml.safe_load((ROOT / "docs/mkdocs.yml").read_text())["nav"]
    pages = [str(path.relative_to(copied)) for path in copied.rglob("*.md")]
    assert sorted(listed(nav)) == sorted(
        page for page in pages if not page.startswith("benchmarks/")
    )


def test_files_that_pages_link_to_are_copied(copied: Path) -> None:
    for name in ("docs/images/report.png", "docs/cluster/slurm.sh", "storage/compose.yaml"):
        assert (copied / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_notebook_is_a_page(copied: Path) -> None:
    page = (copied / "docs/notebooks/own_photos.md").read_text()
    assert page.startswith("# ")
    assert "```python\nimport autotune\n" in page
    assert (copied / "docs/notebooks/own_photos.ipynb").is_file()
    assert "(notebooks/own_photos.md)" in (copied / "docs/api.md").read_text()


def test_the_api_page_has_every_public_name() -> None:
    names = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
    assert {f"autotune.{name}" for name in autotune.__all__} - {"autotune.__version__"} <= set(
        names
    )
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="b.html#part">', ""),
        ('<a href="https://example.org">', ""),
        ('<img src="data:image/png;base64,AA==">', ""),
        ('<a href="c.html">', "a.html links to c.html, which is not there"),
        ('<img src="images/c.png">', "a.html links to images/c.png, which is not there"),
        ('<script src="//cdn.example.org/x.js">', "loads //cdn.example.org/x.js from another"),
        ('<link rel="stylesheet" href="https://fonts.example.org">', "from another server"),
    ],
)
def test_problems_of_a_page(html: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text("")
    found = list(build_site.problems(tmp_path))
    assert problem in "".join(found) and len(found) == bool(problem)
