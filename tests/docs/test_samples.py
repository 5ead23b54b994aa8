"""The images of studies/samples are scans of the test split, named after their digit."""

from __future__ import annotations

from PIL import Image

from docs.scripts.samples import DIGITS, SAMPLES, draw


def test_the_samples_are_those_of_the_script() -> None:
    drawn = draw()
    assert {path.name for path in SAMPLES.iterdir()} == {f"{digit}.png" for digit in DIGITS}
    for name, image in drawn.items():
        assert Image.open(SAMPLES / name).tobytes() == image.tobytes()
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 20_000
