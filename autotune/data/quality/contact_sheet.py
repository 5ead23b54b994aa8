"""A contact sheet: a few images of each class as the network sees them, augmented views beside."""

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

#: Classes on a sheet, images of each, and augmented views beside each.
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

    Args:
        dataset: Images and their split.
        spec: What the backbone wants.
        augment: What differs between views.
        views: Views of each image that a study has.
        seed: Seed of the views.
        fast: Whether large JPEGs are decoded at a part of their size.
        unreadable: Keys of images that cannot be decoded.
    """
    labels = _chosen_classes(len(dataset.source.classes))
    augmented = min(_AUGMENTED, views - 1)
    chosen = [index for label in labels for index in _chosen_images(dataset, label, unreadable)]
    with tempfile.TemporaryDirectory(prefix="autotune-") as folder:
        store = open_store(
            dataset.source, sorted(chosen), spec, Path(folder), unreadable_limit=1.0, fast=fast
        )
        rows = np.arange(len(store.indices))
        made = Views(store, rows, spec, augment, max(1, views), seed)
        return _draw(dataset, made, store, labels, augmented)


def _chosen_classes(count: int) -> list[int]:
    """Choose classes evenly, the first and the last one too."""
    if count <= MAX_CLASSES:
        return list(range(count))
    return [round(place * (count - 1) / (MAX_CLASSES - 1)) for place in range(MAX_CLASSES)]


def _chosen_images(dataset: Dataset, label: int, unreadable: Container[str]) -> list[int]:
    """Choose training images of a class evenly."""
    samples = dataset.source.samples
    own = [
        index
        for index in dataset.split.train
        if samples[index].label == label and samples[index].key not in unreadable
    ]
    places = np.linspace(0, len(own) - 1, min(_IMAGES, len(own))).round().astype(int)
    return [own[place] for place in places]


def _draw(
    dataset: Dataset, views: Views, store: ImageStore, labels: Sequence[int], augmented: int
) -> Image.Image:
    source, split = dataset.source, dataset.split
    block = (1 + augmented) * (_TILE + _GAP) + 3 * _GAP
    size = (2 * _EDGE + _IMAGES * block, _TITLE + len(labels) * (_LABEL + _TILE + _GAP) + _EDGE)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    more = len(source.classes) - len(labels)
    title = f"{source.name}: {len(source.classes)} classes" + (f", {more} not shown" * bool(more))
    beside = f"framed: as judged; beside: {augmented} of the augmented views" * bool(augmented)
    draw_text(pen, (_EDGE, 8), title, 15, _INK, size[0] - 2 * _EDGE)
    draw_text(pen, (_EDGE, 27), beside or "as the network sees them", 11, _SOFT, size[0])
    train = [source.samples[index].label for index in split.train]
    top = _TITLE
    for label in labels:
        name = f"{source.classes[label]} ({train.count(label):,} training images)"
        draw_text(pen, (_EDGE, top + 7), name, 13, _INK, size[0] - 2 * _EDGE)
        top += _LABEL
        rows = np.flatnonzero(store.labels == label)
        for column, row in enumerate(rows):
            left = _EDGE + column * block
            for view in range(1 + augmented):
                place = (left + view * (_TILE + _GAP), top)
                sheet.paste(draw_tile(views.view(int(row), view), _TILE), place)
                if view == 0:
                    corners = (place[0] - 2, top - 2, place[0] + _TILE + 1, top + _TILE + 1)
                    pen.rectangle(corners, outline=_FRAME, width=2)
        top += _TILE + _GAP
    return sheet
