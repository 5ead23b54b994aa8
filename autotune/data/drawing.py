"""Drawing on sheets of images: tiles, and lines of text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from autotune.text import one_line, visible

#: Size and largest width of a name in a plot, in points: longer ones leave no room for the plot.
_LABEL_SIZE, _LABEL_WIDTH = 10, 120
#: Stands for characters that the font lacks.
_BOX = "\u25a1"


def draw_tile(view: Tensor, side: int) -> Image.Image:
    """Draw a view ``(3, H, W)``, uint8, as a square with a side in pixels."""
    pixels = view.permute(1, 2, 0).numpy()
    is_small = pixels.shape[0] < side  # its pixels stay visible
    resample = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), resample)


def draw_heat(tile: Image.Image, heat: Tensor) -> Image.Image:
    """Draw a heat map ``(h, w)`` of values from 0 to 1 over a tile; cold places stay gray."""
    size = tile.size
    smooth = Image.fromarray((255 * heat).to(torch.uint8).numpy()).resize(
        size, Image.Resampling.BICUBIC
    )
    values = np.asarray(smooth) / 255
    colors = (matplotlib.colormaps["inferno"](values)[..., :3] * 255).astype(np.uint8)
    gray = tile.convert("L").convert("RGB")
    weight = Image.fromarray((40 + 140 * values).astype(np.uint8))
    return Image.composite(Image.fromarray(colors), gray, weight)


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


def plot_label(name: str) -> str:
    """Return a name as matplotlib can write it: one short line of letters that its font has.

    Long names lose their middle: of many classes the beginnings are alike.
    """
    letters = _letters()
    line = "".join(letter if ord(letter) in letters else _BOX for letter in one_line(name))
    font, kept = _font(_LABEL_SIZE), min(len(line), _LABEL_WIDTH)
    short = line
    while font.getlength(short) > _LABEL_WIDTH:
        kept -= 1
        short = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
    return short


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(_font_path()).get_charmap())


def _font_path() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
