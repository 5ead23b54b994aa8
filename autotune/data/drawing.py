"""What is drawn on sheets of images: tiles, and lines of text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from autotune.text import visible


def draw_tile(view: Tensor, side: int) -> Image.Image:
    """Draw a view ``(3, H, W)``, uint8, as a square of some side, in pixels."""
    pixels = view.permute(1, 2, 0).numpy()
    small = pixels.shape[0] < side  # its pixels are to be seen
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), how)


def draw_text(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    ink: str,
    width: int,
) -> None:
    """Write a line; what does not fit is cut off. A script that the font lacks is boxes.

    Args:
        pen: Draws on the sheet.
        place: Upper left corner, in pixels.
        text: The line.
        size: Height of the letters, in pixels.
        ink: Colour.
        width: What the line may take, in pixels.
    """
    font = _font(size)
    line = visible(" ".join(text.split()))
    while pen.textlength(line, font) > width and len(line) > 1:
        line = f"{line.rstrip('…')[:-1]}…"
    pen.text(place, line, ink, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
