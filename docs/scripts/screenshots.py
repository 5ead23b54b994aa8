"""Takes the pictures that README.md, docs/report.md and docs/dashboard.md show.

    make study report
    python docs/scripts/screenshots.py storage/autotune.files/reports/digits.html
    python docs/scripts/screenshots.py http://127.0.0.1:8080/dashboard/studies/1/trials?numbers=2

Needs playwright and a Chromium (``CHROMIUM``: where it is).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "images"
WIDTH = 1100
#: Picture -> the headings between which it lies; the top of the page, and its end.
PICTURES = {
    "report": (None, "Learning curves"),
    "report-parameters": ("Which parameters matter", "Timeline of the workers"),
}
#: The longest picture; a plot of every parameter of a large space would be a long page.
HEIGHT = 1430
#: True once the pictures of a trial are there.
_DRAWN = """() => [...document.images].filter(one => one.src.includes("/artifacts/")
    && one.naturalWidth).length >= 3"""
_TOP = """title => [...document.querySelectorAll("h2")]
    .find(one => one.textContent === title).getBoundingClientRect().top + window.scrollY"""


def take(report: Path, folder: Path = IMAGES) -> list[Path]:
    """Take the pictures of a report.

    Args:
        report: The page that ``autotune report`` has written.
        folder: Where the pictures go.

    Returns:
        The pictures.
    """
    taken = []
    with open_page(report.resolve().as_uri(), 1400) as page:
        page.wait_for_timeout(2000)  # until the plots are drawn
        for name, (first, behind) in PICTURES.items():
            top = page.evaluate(_TOP, first) - 16 if first else 0
            end = min(page.evaluate(_TOP, behind) - 16, top + HEIGHT)
            path = folder / f"{name}.png"
            clip = {"x": 0, "y": top, "width": WIDTH, "height": end - top}
            page.screenshot(path=path, full_page=True, clip=clip)
            taken.append(with_few_colors(path))
    return taken


def take_trial(address: str, folder: Path = IMAGES) -> list[Path]:
    """Take the picture of a trial in the dashboard.

    Args:
        address: The page of a complete trial.
        folder: Where the picture goes.

    Returns:
        The picture.
    """
    with open_page(address, 1530) as page:
        page.wait_for_function(_DRAWN)
        page.wait_for_timeout(1000)  # until nothing fades in
        path = folder / "dashboard-trial.png"
        page.screenshot(path=path)
    return [with_few_colors(path)]


@contextmanager
def open_page(address: str, height: int) -> Iterator[Page]:
    """Open a page in its own browser."""
    with sync_playwright() as driver:
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": height})
        page.goto(address)
        yield page
        browser.close()


def with_few_colors(path: Path) -> Path:
    """Reduce a picture to a third of its size."""
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    return path


if __name__ == "__main__":
    given = sys.argv[1]
    for picture in take_trial(given) if given.startswith("http") else take(Path(given)):
        print(picture)
