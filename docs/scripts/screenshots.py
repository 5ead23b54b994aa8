"""Takes the pictures of a report that README.md and docs/report.md show.

    make study report
    python docs/scripts/screenshots.py storage/autotune.files/reports/digits.html

Needs playwright and a Chromium (``CHROMIUM``: where it is).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "images"
WIDTH = 1100
#: Picture -> the headings between which it lies; the top of the page, and its end.
PICTURES = {
    "report": (None, "Learning curves"),
    "report-parameters": ("Which parameters matter", "Timeline of the workers"),
}
#: The longest picture; a plot of every parameter of a large space would be a long page.
HEIGHT = 1430
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
    with sync_playwright() as driver:
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1400})
        page.goto(report.resolve().as_uri())
        page.wait_for_timeout(2000)  # until the plots are drawn
        for name, (first, behind) in PICTURES.items():
            top = page.evaluate(_TOP, first) - 16 if first else 0
            end = min(page.evaluate(_TOP, behind) - 16, top + HEIGHT)
            path = folder / f"{name}.png"
            clip = {"x": 0, "y": top, "width": WIDTH, "height": end - top}
            page.screenshot(path=path, full_page=True, clip=clip)
            # Few colours: a third of the size.
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
            taken.append(path)
        browser.close()
    return taken


if __name__ == "__main__":
    for picture in take(Path(sys.argv[1])):
        print(picture)
