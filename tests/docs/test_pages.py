"""Links lead somewhere, every page is listed, messages are quoted as they are said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from docs.scripts import surgery
from tests.support.pages.doc_commands import ROOT, pages

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SOURCES = (*(ROOT / "autotune").rglob("*.py"), ROOT / "docs/install/install.py")
QUOTES = re.findall(r"^> (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the headings of a page as links name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", one.lower()) for one in found)
    return {one.replace(" ", "-") for one in plain}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert not wrong, f"{page.relative_to(ROOT)} links to what is not there: {', '.join(wrong)}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_merge_left_its_marks(page: Path) -> None:
    marks = re.findall(r"^(?:<{7} |>{7} |={7}$).*", page.read_text(), re.MULTILINE)
    assert not marks, f"{page.relative_to(ROOT)}: {marks}"


def test_the_readme_lists_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Documentation") :]
    listed = set(re.findall(r"^\| \[(.+?)\]", table, re.MULTILINE))
    there = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}
    assert there - {"docs/coverage.md"} <= listed, "README.md must list every page"
    assert "docs/coverage.md" in readme


def test_the_readme_says_what_autotune_is_before_the_first_command() -> None:
    head = (ROOT / "README.md").read_text().split("\n    ", 1)[0]
    assert "](docs/images/report.png)" in head
    assert 15 < head.count("\n") < 40, "one screen before the first command"


def test_every_picture_is_shown() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in pages()
        for target in LINK.findall(page.read_text())
    }
    there = set((ROOT / "docs/images").iterdir())
    assert there <= shown
    assert all(path.stat().st_size < 200_000 for path in there)


def test_the_pictures_of_surgery_can_be_drawn(tmp_path: Path) -> None:
    drawn = surgery.draw(tmp_path)
    assert {path.name for path in drawn} == {
        path.name for path in surgery.IMAGES.glob("surgery-*.svg")
    }
    assert all(path.read_text().rstrip().endswith("</svg>") for path in drawn)


def test_every_section_of_a_report_is_explained() -> None:
    template = (ROOT / "autotune/results/report/templates/report.html.j2").read_text()
    page = (ROOT / "docs/report.md").read_text()
    there = re.findall(r"<h2[^>]*>(.+?)</h2>", template)
    assert len(there) > 8
    assert set(there) <= set(re.findall(r"^## (.+)$", page, re.MULTILINE))


def literals() -> list[str]:
    """Return all texts of the sources, with … for what is put into them."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    one.value if isinstance(one, ast.Constant) else "…" for one in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdg.\d]*[sdfg]", "…", node.value))
    return found


def test_messages_are_quoted_as_the_program_says_them() -> None:
    texts = literals()
    assert len(QUOTES) > 15
    for quote in QUOTES:
        parts = [re.escape(part.strip()) for part in quote.split("…") if part.strip()]
        pattern = re.compile(".*?".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in texts), f"nothing says: {quote}"
