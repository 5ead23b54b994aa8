"""A data set of the Hugging Face hub, read by its own library ``datasets``."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from PIL import Image

from autotune.data.image_files import UnreadableImageError, read_image
from autotune.data.progress import Progress, no_progress
from autotune.data.source import Sample, Shrink
from autotune.data.sources.folders import SPLIT_NAMES, one_spelling, printable
from autotune.data.sources.tables import COLUMNS
from autotune.errors import DatasetError, DiskFullError, did_you_mean, is_disk_full

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

SCHEME = "hf://"
_FORM = f"{SCHEME}owner/name[@revision][/configuration][?image=column&label=column]"
_ADDRESS = re.compile(
    rf"{SCHEME}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/?\s]+))?"
    r"(/(?P<configuration>[^?\s]+))?(\?(?P<columns>\S+))?"
)


@dataclass(frozen=True)
class _Address:
    """What an address says.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit.
        configuration: Which of several data sets of the repository.
        columns: ``image`` and ``label``, where it says which columns these are.
    """

    repository: str
    revision: str | None
    configuration: str | None
    columns: Mapping[str, str]

    @staticmethod
    def parse(name: str) -> _Address:
        found = _ADDRESS.fullmatch(name)
        columns = dict(parse_qsl(found["columns"] or "")) if found else {}
        if found is None or set(columns) - {"image", "label"}:
            raise DatasetError(f"a dataset of the Hugging Face hub is {_FORM}, but got {name!r}")
        return _Address(found["repository"], found["revision"], found["configuration"], columns)


class HubSource:
    """The images of a data set of the Hugging Face hub, in the parts that it has.

    Args:
        name: ``hf://owner/name``, with a revision, a configuration and columns where needed.
        progress: Told when it begins to download.

    Raises:
        DatasetError: When it cannot be had, or holds no labelled images.
        DiskFullError: When there is no room for it.
    """

    def __init__(self, name: str, progress: Progress = no_progress) -> None:
        self.name = name
        address = _Address.parse(name)
        progress("downloading the images", 0, None)
        every = _load(name, address)
        image, label, group = _columns(name, address, next(iter(every.values())).features)
        parts = _parts(name, every, label)
        labels = {split: _texts(dataset, label) for split, dataset in parts.items()}
        names = sorted({text for texts in labels.values() for text in texts if text is not None})
        _check(name, parts, labels, names)
        self.classes = tuple(names)
        numbers = {text: number for number, text in enumerate(names)}
        self._rows: dict[str, tuple[str, int]] = {}
        samples = []
        for split, dataset in parts.items():
            part = SPLIT_NAMES.get(split.lower()) if len(parts) > 1 else None
            groups = _texts(dataset, group) if group else [None] * len(dataset)
            for row, (text, one_group) in enumerate(zip(labels[split], groups, strict=True)):
                key = f"{split}/{row:07d}"
                self._rows[key] = split, row
                samples.append(Sample(key, numbers[text or ""], part, one_group))
        self.samples = tuple(sorted(samples, key=lambda sample: sample.key))
        self._whole = _fingerprint(parts, image, label, labels)
        self.fingerprint = self.fingerprint_of(self.samples)
        self._images = {split: _undecoded(one, image) for split, one in parts.items()}

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of some images, and of the whole data set."""
        digest = hashlib.blake2b(self._whole.encode(), digest_size=16)
        digest.update(json.dumps([sample.key for sample in samples]).encode())
        return digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, upright, in mode RGB.

        Raises:
            OSError: When it cannot be decoded.
        """
        split, row = self._rows[sample.key]
        (found,) = self._images[split][row].values()
        if found is None:
            raise UnreadableImageError("there is no image")
        content, path = found["bytes"], found["path"]
        return read_image(path if content is None else io.BytesIO(content), shrink)


def _load(name: str, address: _Address) -> dict[str, Dataset]:
    """Download the data set, or take what an earlier time has left in the library's cache."""
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"{name}: data sets of the Hugging Face hub are read by the library 'datasets', which "
            "is not installed; run pip install 'autotune[hf]'"
        ) from error
    if os.path.isdir(address.repository):
        raise DatasetError(
            f"{name}: the library 'datasets' would read the folder {address.repository!r} that is "
            "here in place of the hub; run it from another folder"
        )
    with _silenced(), _as_user_errors(name):
        return dict(
            datasets.load_dataset(
                address.repository, address.configuration, revision=address.revision
            )
        )


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the library from writing bars and remarks to the terminal."""
    import datasets

    loggers = [logging.getLogger(one) for one in ("datasets", "huggingface_hub")]
    levels = [one.level for one in loggers]
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()


@contextmanager
def _as_user_errors(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of the library, of HTTP, of what is wrong with the files
        if isinstance(error, OSError) and is_disk_full(error):
            raise DiskFullError(
                f"no space left for {name} in the cache of Hugging Face; free some space, or move "
                "the cache with HF_HOME"
            ) from error
        reason = str(error).strip().splitlines()
        raise DatasetError(
            f"{name} must be a data set of the Hugging Face hub that can be had, but "
            f"{reason[0] if reason else type(error).__name__}; see whether the address is right "
            "and the hub can be reached, or log in with 'hf auth login' if it is not public"
        ) from error


def _columns(name: str, address: _Address, features: Features) -> tuple[str, str, str | None]:
    """Return the columns of image, label and group."""
    from datasets import ClassLabel, Image, Value

    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    classes = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
    values = [column for column, kind in features.items() if isinstance(kind, Value)]
    by_name = [column for column in values if column.lower() in COLUMNS["label"]]
    image = _one_of(name, "image", address.columns.get("image"), images, images)
    label = _one_of(
        name, "label", address.columns.get("label"), classes or by_name, classes + values
    )
    groups = [column for column in values if column.lower() in COLUMNS["group"]]
    return image, label, groups[0] if groups else None


def _one_of(
    name: str, role: str, given: str | None, likely: list[str], possible: list[str]
) -> str:
    """Choose a column: the one that is given, the only one, or the one called like its role."""
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
    known = f" is called {' or '.join(COLUMNS[role])}" if role in COLUMNS else " holds them"
    ways = f"; say which is one with ?{role}=..., of {', '.join(possible)}" if possible else ""
    raise DatasetError(
        f"{name}: a data set of images has a column of {role}s, but none of its columns{known}"
        + ways
    )


def _parts(name: str, every: Mapping[str, Dataset], label: str) -> dict[str, Dataset]:
    """Return the splits that count: those of the usual names, or the only one."""
    if len(every) == 1:
        return dict(every)
    known = {split: one for split, one in every.items() if split.lower() in SPLIT_NAMES}
    parts = [SPLIT_NAMES[split.lower()] for split in known]
    if "train" not in parts or len(set(parts)) < len(parts):
        raise DatasetError(
            f"{name}: the splits of a data set are train, validation and test, each once, train "
            f"at least, but it has {', '.join(every)}; choose a configuration that has them"
        )
    left_out = [split for split in every if split not in known]
    hidden = [
        split
        for split, one in known.items()
        if SPLIT_NAMES[split.lower()] != "train" and not any(_texts(one, label))
    ]
    reasons = dict.fromkeys(left_out, "of another name") | dict.fromkeys(hidden, "without labels")
    for split, why in reasons.items():
        logger.warning("%s: the split %s is %s and is left out", name, split, why)
    return {split: one for split, one in known.items() if split not in hidden}


def _texts(dataset: Dataset, column: str) -> list[str | None]:
    """Return a column as text; None where it says nothing."""
    from datasets import ClassLabel

    kind = dataset.features[column]
    values = list(dataset.select_columns([column]).with_format(None)[column])
    if isinstance(kind, ClassLabel):
        names = [one_spelling(printable(name)) for name in kind.names]
        return [names[value] if value is not None and value >= 0 else None for value in values]
    texts = [None if value is None else one_spelling(str(value).strip()) for value in values]
    return [text or None for text in texts]


def _check(
    name: str,
    parts: Mapping[str, Dataset],
    labels: Mapping[str, list[str | None]],
    names: list[str],
) -> None:
    """Refuse what cannot be learned or measured."""
    problems = []
    for split in parts:
        empty = labels[split].count(None)
        if empty:
            many = "image" if empty == 1 else "images"
            has = "has" if empty == 1 else "have"
            problems.append(f"{empty} {many} of {split} {has} no label")
        missing = sorted(set(names) - set(labels[split]))
        if missing:
            shown = ", ".join(map(repr, missing[:20]))
            more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
            problems.append(f"no image of {shown}{more} is in {split}")
    if len(names) < 2:
        problems.append(f"there must be at least two classes, but it has {len(names)}")
    if problems:
        raise DatasetError(f"{name}: {'; '.join(problems)}")


def _fingerprint(
    parts: Mapping[str, Dataset], image: str, label: str, labels: Mapping[str, list[str | None]]
) -> str:
    """Digest the labels, and the library's fingerprints, which follow from the commit."""
    digest = hashlib.blake2b(json.dumps([image, label]).encode(), digest_size=16)
    for split, dataset in parts.items():
        known = [split, dataset._fingerprint, labels[split]]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()


def _undecoded(dataset: Dataset, image: str) -> Dataset:
    from datasets import Image

    return dataset.select_columns([image]).cast_column(image, Image(decode=False))
