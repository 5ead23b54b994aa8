"""A contact sheet: some images of each class as the network sees them, with augmented views."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from autotune.config.schema import AugmentConfig
from autotune.data.cache.decoded_images import ImageStore, open_store
from autotune.data.drawing import draw_text, draw_tile
from autotune.data.preprocessing import ImageSpec
from autotune.data.splits.dataset import Dataset
from autotune.data.views.views import Views
from autotune.text import plural

#: Limits the classes on a sheet, the images of each, and the augmented views of an image.
MAX_CLASSES, _IMAGES, _AUGMENTED = 12, 3, 3
_TILE, _GAP, _EDGE, _TITLE, _LABEL = 112, 4, 16, 44, 26
_PAPER, _INK, _SOFT, _FRAME = "#ffffff", "#1c2733", "#5b6b7b", "#b35c00"


def draw_contact_sheet(
    dataset: Dataset,
    spec: ImageSpec,
    augment: AugmentConfig,
    views: int,
    seed: int,
    fast: bool,
    unreadable: Container[str] = (),
) -> Image.Image:
    """Draw training images: view 0 in a frame, and some of the views that trials train on.

    Images whose keys are ``unreadable`` are passed over.
    """
    labels = _spread(range(len(dataset.source.classes)), MAX_CLASSES)
    samples = dataset.source.samples
    chosen: list[int] = []
    for label in labels:
        readable = [
            index
            for index in dataset.split.train
            if samples[index].label == label and samples[index].key not in unreadable
        ]
        chosen += _spread(readable, _IMAGES)
    with tempfile.TemporaryDirectory(prefix="autotune-") as folder:
        store = open_store(
            dataset.source, sorted(chosen), spec, Path(folder), unreadable_limit=1.0, fast=fast
        )
        rows = np.arange(len(store.indices))
        rendered = Views(store, rows, spec, augment, max(1, views), seed)
        return _draw(dataset, rendered, store, labels, min(_AUGMENTED, views - 1))


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Choose some items evenly, the first and the last one too."""
    positions = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[position] for position in positions]


def _draw(
    dataset: Dataset, views: Views, store: ImageStore, labels: Sequence[int], augmented: int
) -> Image.Image:
    source = dataset.source
    block = (1 + augmented) * (_TILE + _GAP) + 3 * _GAP
    size = (2 * _EDGE + _IMAGES * block, _TITLE + len(labels) * (_LABEL + _TILE + _GAP) + _EDGE)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    more = len(source.classes) - len(labels)
    title = f"{source.name}: {plural(len(source.classes), 'class', 'classes')}"
    title += f", {more} not shown" * bool(more)
    legend = "as the network sees them"
    if augmented:
        legend = f"framed: as evaluated; beside: {augmented} of the augmented views"
    draw_text(pen, (_EDGE, 8), title, 15, _INK, size[0] - 2 * _EDGE)
    draw_text(pen, (_EDGE, 27), legend, 11, _SOFT, size[0])
    train = [source.samples[index].label for index in dataset.split.train]
    top = _TITLE
    for label in labels:
        name = f"{source.classes[label]} ({plural(train.count(label), 'training image')})"
        draw_text(pen, (_EDGE, top + 7), name, 13, _INK, size[0] - 2 * _EDGE)
        top += _LABEL
        for column, row in enumerate(np.flatnonzero(store.labels == label)):
            for number in range(1 + augmented):
                left = _EDGE + column * block + number * (_TILE + _GAP)
                sheet.paste(draw_tile(views.view(int(row), number), _TILE), (left, top))
                if number == 0:
                    corners = (left - 2, top - 2, left + _TILE + 1, top + _TILE + 1)
                    pen.rectangle(corners, outline=_FRAME, width=2)
        top += _TILE + _GAP
    return sheet
