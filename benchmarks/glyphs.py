"""A second task for the searches: Greek and Cyrillic letters, on backbones that know Latin ones.

Each letter is drawn in many fonts, turned, sheared, moved, stained and blurred, so that even the
best plans miss some. Nothing is downloaded: the fonts are those that come with matplotlib.

    python benchmarks/glyphs.py FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

#: Letters that no Latin letter looks like.
GREEK = "ΓΔΘΛΞΠΣΦΨΩδλξφψ"
CYRILLIC = "БДЖИЛЦЧЫЭЮЯ"
FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
#: Images of a class in each split.
SPLITS = {"train": 6, "validation": 12, "test": 20}
#: Side of an image in pixels, and of the drawing that it is reduced from.
SIZE, DRAWN = 32, 128


def find_fonts() -> list[Path]:
    """Return the font files that have both scripts, sorted by name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(
        path
        for name in FONTS
        for path in folder.glob(f"{name}*.ttf")
        if not path.stem.endswith("Display")
    )


def draw(letter: str, font: Path, rng: np.random.Generator) -> Image.Image:
    """Draw a letter once; gray, ``SIZE`` pixels a side."""
    face = ImageFont.truetype(str(font), int(rng.integers(60, 96)))
    left, top, right, bottom = face.getbbox(letter)
    sheet = Image.new("L", (DRAWN, DRAWN))
    corner = ((DRAWN - left - right) / 2, (DRAWN - top - bottom) / 2)
    ImageDraw.Draw(sheet).text(corner, letter, font=face, fill=255)
    angle, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.2, 0.2)
    scale, moved = rng.uniform(0.85, 1.15, 2), rng.uniform(-8, 8, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    offset = DRAWN / 2 - matrix @ (DRAWN / 2 + moved)
    (a, b), (d, e) = matrix
    values = (a, b, offset[0], d, e, offset[1])
    sheet = sheet.transform(sheet.size, Image.Transform.AFFINE, values, Image.Resampling.BILINEAR)
    stains = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(0, 3))):
        ends = tuple(rng.uniform(0, DRAWN, 4))
        stains.line(ends, fill=int(rng.integers(0, 256)), width=int(rng.integers(3, 11)))
    sheet = sheet.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3))))
    pixels = np.asarray(sheet.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    pixels = pixels * rng.uniform(0.6, 1) + rng.normal(0, rng.uniform(5, 25), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write(folder: Path) -> None:
    """Write the images of all splits, a folder for each split and class; the same every time."""
    rng = np.random.default_rng(0)
    fonts = find_fonts()
    for split, count in SPLITS.items():
        for number, letter in enumerate(GREEK + CYRILLIC):
            place = folder / split / f"{number:02d}"
            place.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                font = fonts[int(rng.integers(len(fonts)))]
                draw(letter, font, rng).save(place / f"{image:02d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
