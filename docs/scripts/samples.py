"""Writes the images of studies/samples: scans from the test split of the study 'digits'.

No search has read them, so a model of that study may be tried on them. Each file is called after
its digit. They are eight times as large as in scikit-learn, so that people can look at them.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from autotune.config.loading import load_study_file
from autotune.data.sources.base import DigitsSource
from autotune.data.splits.stratified import make_split

SAMPLES = Path(__file__).parents[2] / "studies/samples"
DIGITS = (0, 2, 3, 5, 7, 8)
SCALE = 8


def draw() -> dict[str, Image.Image]:
    """Return the first test image of each of six digits, 64x64 and gray, by file name."""
    source = DigitsSource()
    test = make_split(source, load_study_file("digits").data).test
    images = {}
    for digit in DIGITS:
        index = next(index for index in test if source.samples[index].label == digit)
        image = source.read(source.samples[index]).convert("L")
        size = (image.width * SCALE, image.height * SCALE)
        images[f"{digit}.png"] = image.resize(size, Image.Resampling.BICUBIC)
    return images


if __name__ == "__main__":
    SAMPLES.mkdir(exist_ok=True)
    for name, image in draw().items():
        image.save(SAMPLES / name, optimize=True)
