"""Take the pictures of the docs, of a study that is run for them.

    make pictures
    python docs/scripts/pictures.py digits search.trials=40
    python docs/scripts/pictures.py folder dataset=photos search.trials=20 --to pictures

The arguments are those of ``autotune run``. The study lies in a temporary storage, or in that of
``AUTOTUNE_STORAGE``, where it is continued. Needs a Chromium (``CHROMIUM``: where it is).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parents[1] / "images"
AUTOTUNE = (sys.executable, "-m", "autotune")
#: Columns of a terminal, and pixels of a page.
COLUMNS, WIDTH = 100, 1100
#: The longest picture; a plot of every parameter of a large space would be a long page.
HEIGHT = 1430
#: The share of its trials after which the live view of a run is taken.
MOMENT = 0.7
#: A part of the report -> the headings between which it lies; the top of the page, and its end.
PARTS = {
    "report": (None, "Course of the study"),
    "report-images": ("Your images", "Course of the study"),
    "report-parameters": ("Which parameters matter", "Timeline of the workers"),
}
_TOP = """title => [...document.querySelectorAll("h2")]
    .find(one => one.textContent === title).getBoundingClientRect().top + window.scrollY"""
#: True once the pictures of a trial are there.
_DRAWN = """() => [...document.images].filter(one => one.src.includes("/artifacts/")
    && one.naturalWidth).length >= 3"""
#: Shows the usual place of a storage in the place of a temporary one.
_RENAME = """place => { document.body.innerHTML =
    document.body.innerHTML.replaceAll(place, "sqlite:///storage/autotune.db") }"""
#: What rich writes to draw over the lines before.
_CONTROLS = re.compile(r"(\x1b\[1A|\x1b\[2K|\x1b\[\?25[lh]|\r|\n)")
#: The font of rich comes from another server; the reader's browser has one of its own.
_SVG = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)

#: What the live view says of the trials.
_FINISHED = re.compile(r"(\d+)/(\d+) finished")


def run(*arguments: str) -> list[str]:
    """Run a verb in a terminal; return what it wrote, piece by piece."""
    written: list[bytes] = []

    def read(file: int) -> bytes:
        written.append(os.read(file, 65536))
        return written[-1]

    print("autotune", *arguments)
    if code := os.waitstatus_to_exitcode(pty.spawn([*AUTOTUNE, *arguments], read)):
        raise SystemExit(f"autotune {arguments[0]} ended with exit code {code}")
    return [text.decode(errors="replace") for text in written]


def screen(texts: Iterable[str]) -> str:
    """Return the lines that a terminal shows after what was written to it."""
    lines = [""]
    for part in _CONTROLS.split("".join(texts)):
        if part == "\n":
            lines.append("")
        elif part == "\x1b[1A":
            lines.pop()
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif not _CONTROLS.fullmatch(part):
            lines[-1] += part
    return "\n".join(lines).rstrip()


def during(written: Sequence[str], share: float = MOMENT) -> str:
    """Return what the terminal showed just before more than a share of the trials had ended."""
    for count, text in enumerate(written):
        for finished, trials in _FINISHED.findall(text):
            if int(finished) > share * int(trials):
                return screen(written[:count])
    return screen(written)


def draw(text: str, title: str, path: Path) -> Path:
    """Draw a terminal with a text into an SVG file."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(text))
    console.save_svg(str(path), title=title, code_format=_SVG)
    return path


@contextmanager
def open_pages() -> Iterator[Page]:
    """Open a page in its own browser."""
    with sync_playwright() as driver:
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": WIDTH, "height": 1000})
        browser.close()


def take_report(page: Page, report: Path, folder: Path) -> Iterator[Path]:
    """Take the pictures of a report."""
    page.goto(report.resolve().as_uri())
    page.wait_for_timeout(2000)  # until the plots are drawn
    for name, (first, behind) in PARTS.items():
        top = page.evaluate(_TOP, first) - 16 if first else 0
        end = min(page.evaluate(_TOP, behind) - 16, top + HEIGHT)
        clip = {"x": 0, "y": top, "width": WIDTH, "height": end - top}
        page.screenshot(path=folder / f"{name}.png", full_page=True, clip=clip)
        yield with_few_colors(folder / f"{name}.png")


def take_dashboard(page: Page, trial: int, study: Sequence[str], folder: Path) -> Iterator[Path]:
    """Take the pictures of the dashboard: its first page, and a trial of the study."""
    for name, arguments in (("dashboard", ()), ("dashboard-trial", study)):
        command = [*AUTOTUNE, "dashboard", *arguments, "--port", "8947"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[1]
            if study is arguments:
                page.set_viewport_size({"width": WIDTH, "height": 1640})
                page.goto(f"{address}/trials?numbers={trial}")
                page.wait_for_function(_DRAWN)
            else:
                page.goto(address)
                page.evaluate(_RENAME, os.environ["AUTOTUNE_STORAGE"])
            page.wait_for_timeout(1500)  # until nothing fades in
            page.screenshot(path=folder / f"{name}.png")
        finally:
            process.terminate()
            process.communicate()
        yield with_few_colors(folder / f"{name}.png")


def with_few_colors(path: Path) -> Path:
    """Reduce a picture to a third of its size, and remove the empty space below."""
    image = Image.open(path).convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    _, _, _, end = ImageChops.difference(image, background).getbbox() or (0, 0, 0, image.height)
    image.crop((0, 0, image.width, min(end + 24, image.height))).quantize(128).save(
        path, optimize=True
    )
    return path


def take_trainings(study: Sequence[str], folder: Path) -> Iterator[Path]:
    """Run, confirm and refit a study, and take pictures of the terminal and of its images."""
    for shown, verb, *options in ((during, "run"), (screen, "confirm", "--top", "1")):
        text = shown(run(verb, *study, *options))
        title = " ".join(("autotune", verb, study[0], *options))
        yield draw(text, title, folder / f"{verb}.svg")
    run("refit", *study)
    # Another study for the first page of the dashboard.
    shorter = [argument for argument in study if not argument.startswith("search.trials=")]
    run("run", *shorter, "search.strategy=greedy", "search.trials=10")
    sheet = folder / "contact-sheet.png"
    run("data", "info", *study, "-o", str(sheet))
    yield with_few_colors(sheet)


def take_pages(study: Sequence[str], folder: Path, work: Path) -> Iterator[Path]:
    """Take the pictures of the report and of the dashboard."""
    for ending in ("html", "json"):
        run("report", *study, "-o", str(work / f"report.{ending}"))
    best = json.loads((work / "report.json").read_text())["best"]["number"]
    with open_pages() as page:
        yield from take_report(page, work / "report.html", folder)
        yield from take_dashboard(page, best, study, folder)


def main() -> None:
    """Take the pictures of the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="+", help="arguments of autotune run")
    parser.add_argument("--to", type=Path, default=IMAGES, help="folder of the pictures")
    parser.add_argument(
        "--pages", action="store_true", help="report and dashboard alone, of a study that has run"
    )
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
    os.environ.pop("NO_COLOR", None)
    with tempfile.TemporaryDirectory() as work:
        os.environ.setdefault("AUTOTUNE_STORAGE", f"sqlite:///{work}/autotune.db")
        trainings = [] if given.pages else take_trainings(given.study, given.to)
        pages = take_pages(given.study, given.to, Path(work))
        for path in chain(trainings, pages):
            print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
