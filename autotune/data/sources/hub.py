"""A data set of the Hugging Face hub, read by its library ``datasets``."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from PIL import Image

from autotune.data.image_files import Shrink, UnreadableImageError, read_image
from autotune.data.image_formats import PassedOver
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Sample, Source
from autotune.data.sources.names import (
    describe_similar,
    normalized,
    printable,
    warn_of_names,
    warn_once,
)
from autotune.data.sources.split_columns import (
    LEFT_OUT,
    SPLIT_COLUMNS,
    column_name,
    other_split_columns,
    splits_of_rows,
    without_unlabeled,
)
from autotune.data.sources.split_names import (
    AUTO,
    NONE,
    SPLITS,
    TRAIN,
    SplitNames,
    given,
    matches,
    recognized,
    splits_key,
)
from autotune.data.sources.tables.table import COLUMNS
from autotune.errors import DatasetError, DiskFullError, did_you_mean, is_disk_full, join_sentences
from autotune.text import first_line, join_some, plural

if TYPE_CHECKING:
    from datasets import Dataset, Features

SCHEME = "hf://"
_FORM = f"{SCHEME}owner/name[@revision][/configuration][?image=column&label=column]"
_ADDRESS = re.compile(
    rf"{SCHEME}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/?\s]+))?"
    r"(/(?P<configuration>[^?\s]+))?(\?(?P<columns>\S+))?"
)


class _Row(NamedTuple):
    """An image: its part and number there, label and split."""

    part: str
    number: int
    label: str | None
    split: str | None


class HubSource(Source):
    """The images of a data set of the Hugging Face hub, in the splits that it has.

    Args:
        name: ``hf://owner/name``, with a revision, a configuration and columns where needed.
        progress: Called when the download begins.
        splits: What ``data.splits`` says of the names of its splits.

    Raises:
        DatasetError: When it cannot be downloaded, or holds no labeled images.
        DiskFullError: When the disk has no room for it.
    """

    def __init__(
        self, name: str, progress: ProgressCallback = no_progress, splits: SplitNames = AUTO
    ) -> None:
        self.name = name
        address = _ADDRESS.fullmatch(name)
        chosen = dict(parse_qsl(address["columns"] or "")) if address else {}
        if address is None or set(chosen) - {"image", "label"}:
            raise DatasetError(f"a dataset of the Hugging Face hub is {_FORM}, but got {name!r}")
        progress("downloading the images", 0, None)
        parts = _load(name, address)
        image, label, group = _columns(name, chosen, next(iter(parts.values())).features)
        used = _used_parts(name, list(parts), splits)
        labels = {part: _texts(parts[part], label) for part in used}
        passed_over = PassedOver()
        rows = _rows(name, {part: parts[part] for part in used}, used, labels, splits, passed_over)
        self.passed_over = passed_over.by_kind()
        self.classes = tuple(sorted({row.label for row in rows if row.label is not None}))
        _check(name, rows, self.classes)
        warn_of_names(name, self.classes)
        numbers = {text: number for number, text in enumerate(self.classes)}
        parts = {part: parts[part] for part in used if any(row.part == part for row in rows)}
        groups = {part: _texts(dataset, group) for part, dataset in parts.items() if group}
        self._rows = {f"{row.part}/{row.number:07d}": (row.part, row.number) for row in rows}
        samples = [
            Sample(
                f"{row.part}/{row.number:07d}",
                numbers[row.label or ""],
                row.split,
                groups[row.part][row.number] if group else None,
            )
            for row in rows
        ]
        self.samples = tuple(sorted(samples, key=lambda sample: sample.key))
        # the library's fingerprints follow from the commit
        digest = hashlib.blake2b(json.dumps([image, label]).encode(), digest_size=16)
        for part, dataset in parts.items():
            digest.update(json.dumps([part, dataset._fingerprint, labels[part]]).encode())
        self._digest = digest.hexdigest()
        from datasets import Image as ImageColumn

        self._images = {
            part: dataset.select_columns([image]).cast_column(image, ImageColumn(decode=False))
            for part, dataset in parts.items()
        }

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of some images, and of the whole data set."""
        digest = hashlib.blake2b(self._digest.encode(), digest_size=16)
        digest.update(json.dumps([sample.key for sample in samples]).encode())
        return digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, upright, in mode RGB."""
        part, row = self._rows[sample.key]
        (value,) = self._images[part][row].values()
        if value is None:
            raise UnreadableImageError("there is no image")
        content, path = value["bytes"], value["path"]
        return read_image(path if content is None else io.BytesIO(content), shrink)


def _load(name: str, address: re.Match[str]) -> dict[str, Dataset]:
    """Download the data set, or open what an earlier call left in the library's cache."""
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"{name}: data sets of the Hugging Face hub are read by the library 'datasets', which "
            "is not installed; run pip install 'autotune[hf]'"
        ) from error
    repository, revision = address["repository"], address["revision"]
    if os.path.isdir(repository):
        raise DatasetError(
            f"{name}: the library 'datasets' would read the folder {repository!r} that is here "
            "instead of the hub; run it from another folder"
        )
    try:
        with _silenced():
            return dict(
                datasets.load_dataset(repository, address["configuration"], revision=revision)
            )
    except MemoryError:
        raise
    except Exception as error:  # of the library, of HTTP, of what is wrong with the files
        if isinstance(error, OSError) and is_disk_full(error):
            raise DiskFullError(
                f"no space left for {name} in the cache of Hugging Face; free some space, or move "
                "the cache with HF_HOME"
            ) from error
        raise DatasetError(
            f"{name} must be a data set of the Hugging Face hub that can be downloaded, but "
            f"{first_line(error) if str(error) else type(error).__name__}; check the address and "
            "that the hub can be reached, or log in with 'hf auth login' if it is not public"
        ) from error


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the library from writing bars and remarks to the terminal."""
    import datasets

    levels = {}
    for logger_name in ("datasets", "huggingface_hub"):
        library = logging.getLogger(logger_name)
        levels[library] = library.level
        library.setLevel(logging.ERROR)
    were_hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for library, level in levels.items():
            library.setLevel(level)
        if not were_hidden:
            datasets.enable_progress_bars()


def _columns(
    name: str, chosen: Mapping[str, str], features: Features
) -> tuple[str, str, str | None]:
    """Return the columns of image, label and group."""
    from datasets import ClassLabel, Image, Value

    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    classes = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
    values = [column for column, kind in features.items() if isinstance(kind, Value)]
    by_name = [column for column in values if column.lower() in COLUMNS["label"]]
    image = _column(name, "image", chosen.get("image"), images, images)
    label = _column(name, "label", chosen.get("label"), classes or by_name, classes + values)
    groups = [column for column in values if column.lower() in COLUMNS["group"]]
    return image, label, groups[0] if groups else None


def _column(
    name: str, role: str, given: str | None, likely: list[str], possible: list[str]
) -> str:
    """Choose a column: the given one, the only likely one, or the one named like its role."""
    if given is not None:
        if given in possible:
            return given
        raise DatasetError(
            f"{name}: the {role} must be one of the columns {', '.join(possible) or '(none)'}, "
            f"but got {given!r}{'; ' + hint if (hint := did_you_mean(given, possible)) else ''}"
        )
    if len(likely) == 1 or role in likely:
        return role if role in likely else likely[0]
    if likely:
        raise DatasetError(
            f"{name}: {' and '.join(likely)} could be the {role}; say which, e.g. "
            f"'{name.partition('?')[0]}?{role}={likely[0]}'"
        )
    names = f" is called {' or '.join(COLUMNS[role])}" if role in COLUMNS else " holds them"
    ways = f"; say which is one with ?{role}=..., of {', '.join(possible)}" if possible else ""
    raise DatasetError(
        f"{name}: a data set of images has a column of {role}s, but none of its columns{names}"
        + ways
    )


def _used_parts(name: str, parts: Sequence[str], splits: SplitNames) -> dict[str, str | None]:
    """Return part -> split, of the parts that are used; ``None`` where it has no split yet."""
    if splits == NONE:
        return dict.fromkeys(parts)
    if isinstance(splits, Mapping):
        names = [member for members in splits.values() for member in members]
        if len(parts) == 1 and not any(matches(parts[0], member) for member in names):
            return dict.fromkeys(parts)  # a column has these names
        split_of = given(name, parts, splits)
    elif len(parts) == 1:
        return dict.fromkeys(parts)
    else:
        split_of = recognized(parts)
        if TRAIN not in split_of.values() or len(set(split_of.values())) < len(split_of):
            raise DatasetError(
                f"{name}: the splits of a data set are train, validation and test, each once, "
                f"train at least, but it has {', '.join(parts)}; choose a configuration that has "
                f"them, or name those to use with {splits_key(split_of or {parts[0]: TRAIN})}"
            )
    is_given = isinstance(splits, Mapping)
    why = "is not in data.splits" if is_given else "has another name than those of splits"
    for part in parts:
        if part not in split_of:
            warn_once(f"{name}: the split {part} {why} and is skipped")
    return dict(split_of)


def _rows(
    name: str,
    parts: Mapping[str, Dataset],
    used: Mapping[str, str | None],
    labels: Mapping[str, Sequence[str | None]],
    splits: SplitNames,
    passed_over: PassedOver,
) -> list[_Row]:
    """Return the images that are used: those of parts with labels."""
    rows = []
    for part, dataset in parts.items():
        if len(parts) > 1 and not any(labels[part]):
            warn_once(f"{name}: the split {part} has no labels and is skipped")
            continue
        row_splits: Sequence[str | None] = [used[part]] * len(dataset)
        if len(parts) == 1 and used[part] is None:
            columns = [column for column in dataset.features if _may_split(column, dataset)]
            cells = {column: _texts(dataset, column) for column in columns}
            row_splits = splits_of_rows(name, None, cells, splits, passed_over) or row_splits
        rows += [
            _Row(part, number, label, split)
            for number, (label, split) in enumerate(zip(labels[part], row_splits, strict=True))
        ]
    kept = without_unlabeled([row.split for row in rows], [row.label for row in rows], passed_over)
    return [row for row, split in zip(rows, kept, strict=True) if split != LEFT_OUT]


def _may_split(column: str, dataset: Dataset) -> bool:
    from datasets import ClassLabel, Value

    is_text = isinstance(dataset.features[column], ClassLabel | Value)
    return is_text and (
        column_name(column) in SPLIT_COLUMNS or bool(other_split_columns([column]))
    )


def _texts(dataset: Dataset, column: str) -> list[str | None]:
    """Return a column as text; ``None`` where it is empty."""
    from datasets import ClassLabel

    kind = dataset.features[column]
    values = list(dataset.select_columns([column]).with_format(None)[column])
    if isinstance(kind, ClassLabel):
        names = [normalized(printable(name)) for name in kind.names]
        return [names[value] if value is not None and value >= 0 else None for value in values]
    return [None if value is None else normalized(str(value).strip()) or None for value in values]


def _check(name: str, rows: Sequence[_Row], classes: Sequence[str]) -> None:
    """Refuse what cannot be learned or measured."""
    labels: dict[str, list[str | None]] = {}
    for row in rows:
        labels.setdefault(row.split or row.part, []).append(row.label)
    is_split = any(row.split for row in rows)
    unknown = {row.split for row in rows if row.split} - {*SPLITS}
    problems = [f"some images are marked as {mark}, at once" for mark in sorted(unknown)]
    for part, texts in labels.items():
        if empty := texts.count(None):
            has = "has" if empty == 1 else "have"
            problems.append(f"{plural(empty, 'image')} of {part} {has} no label")
        if is_split and (missing := sorted(set(classes) - set(texts))):
            problems.append(
                f"no image of {join_some([repr(text) for text in missing])} is in {part}"
            )
    if len(classes) < 2:
        problems.append(f"there must be at least two classes, but it has {len(classes)}")
    if problems:
        similar = describe_similar(classes)
        raise DatasetError(join_sentences(f"{name}: {'; '.join(problems)}", similar))
