"""Drawing on sheets of images: tiles, and lines of text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from autotune.text import visible


def draw_tile(view: Tensor, side: int) -> Image.Image:
    """Draw a view ``(3, H, W)``, uint8, as a square with a side in pixels."""
    pixels = view.permute(1, 2, 0).numpy()
    is_small = pixels.shape[0] < side  # its pixels stay visible
    resample = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), resample)


def draw_text(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    color: str,
    width: int,
) -> None:
    """Draw a line of text from its upper left corner; sizes are in pixels.

    What does not fit into ``width`` is cut off. Letters that the font lacks are boxes.
    """
    font = _font(size)
    line = visible(" ".join(text.split()))
    while pen.textlength(line, font) > width and len(line) > 1:
        line = f"{line.rstrip('…')[:-1]}…"
    pen.text(corner, line, color, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
