"""A table of images (CSV, TSV, Parquet) -> its files, their classes, parts and groups."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from autotune.data.progress import INDEXING, Progress, no_progress
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import SPLIT_NAMES, ImageFile, one_spelling, printable
from autotune.errors import DatasetError, did_you_mean, join_sentences

logger = logging.getLogger(__name__)

#: Endings of the files that are tables.
TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
#: What the columns of a table may be called, in any case.
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "part", "subset"),
    "group": ("group", "group_id"),
}
_NEEDED = ("path", "label")
#: Limits a cell: no system has longer paths.
MAX_CHARACTERS = 32_768
_SHOWN = 5
_THREADS = 16
_CHUNK = 1000


class TableSource(FileSource):
    """The image files that a table names.

    Args:
        name: What the user calls the table.
        path: Its path. Paths in it are relative to its folder.
        progress: Told of the files looked for, and read for the fingerprint.

    Raises:
        DatasetError: With everything that is wrong with the table.
    """

    def __init__(self, name: str, path: str, progress: Progress = no_progress) -> None:
        files = read_table(path, progress)
        super().__init__(name, files, labelled=True, progress=progress)


def read_table(path: str, progress: Progress = no_progress) -> tuple[ImageFile, ...]:
    """Read which images a table names.

    Args:
        path: A file with one of :data:`TABLE_ENDINGS`.
        progress: Told of the files looked for.

    Returns:
        The images, sorted by key. A row that is there twice counts once.

    Raises:
        DatasetError: With everything that is wrong with the table.
    """
    table = _columns(path, _load(path))
    _check_lengths(path, table)
    folder = os.path.dirname(path)
    places = [None if one is None else _place(folder, one) for one in table["path"]]
    # by number: pandas' own strings are all UTF-8, and names of files need not be
    table["file"], distinct = pd.factorize(np.array(places, dtype=object))
    files = list(distinct)
    problems = [*_problems(table, files), *_missing(files, progress)]
    if problems:
        raise DatasetError(
            f"every row of a table names an image file and its class, but {path}: "
            f"{'; '.join(problems)}"
        )
    table = table.drop_duplicates("file")
    return tuple(sorted(_files(table, files), key=lambda file: file.key))


def _load(path: str) -> pd.DataFrame:
    """Read all cells as they are written; the first line names the columns."""
    try:
        if path.lower().endswith(".parquet"):
            return pd.read_parquet(path, dtype_backend="numpy_nullable")
        encoding, separator = _dialect(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of lines that are too long
            return pd.read_csv(
                path,
                sep=separator,
                encoding=encoding,
                # a file may be called anything; the other columns are looked at later
                encoding_errors="surrogateescape",
                dtype=object,
                keep_default_na=False,  # a class may be called NA
                na_values=[""],
                skipinitialspace=True,
                index_col=False,
            )
    except ImportError as error:
        raise DatasetError(
            f"{path}: Parquet files are read by pyarrow, which is not installed; run pip install "
            "'autotune[parquet]', or write the table as CSV"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"{path} must be a table, but cannot be read: {reason}") from error
    except (ValueError, pd.errors.ParserWarning) as error:  # and kinds of them
        reason = str(error).strip().splitlines()[0]
        raise DatasetError(f"{path} must be a table, but cannot be read: {reason}") from error


def _check_lengths(path: str, table: pd.DataFrame) -> None:
    """Refuse cells that are no names, before one of them is quoted.

    Raises:
        DatasetError: With the lines.
    """
    for role in table.columns:
        long = table[role].map(lambda text: text is not None and len(text) > MAX_CHARACTERS)
        if long.any():
            raise DatasetError(
                f"a {role} must have at most {MAX_CHARACTERS:,} characters, but {path} has longer "
                f"ones ({_lines(table.index[long])}); is a quotation mark not closed?"
            )


def _dialect(path: str) -> tuple[str, str]:
    """Return encoding and separator: those of spreadsheet programs are recognised."""
    with open(path, "rb") as stream:
        start = stream.read(1 << 16)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    header = start.decode(encoding, "replace").partition("\n")[0]
    if path.lower().endswith(".tsv"):
        return encoding, "\t"
    return encoding, max(",;\t", key=header.count)


def _columns(path: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that count, under one name each, with what is no text as text."""
    there = [str(column) for column in table.columns]
    found: dict[str, str] = {}
    problems = []
    for role, names in COLUMNS.items():
        named = [one for one in there if one.strip().lower() in names]
        if len(named) > 1:
            problems.append(f"{_quoted(named)} are all {role}s; keep one of them")
        elif named:
            found[role] = named[0]
        elif role in _NEEDED:
            near = [did_you_mean(one.strip().lower(), names) for one in there]
            hints = [f"{one!r}: {hint}" for one, hint in zip(there, near, strict=True) if hint]
            problems.append(
                join_sentences(f"no column is called {' or '.join(names)}", *hints[:1])
            )
    if problems:
        raise DatasetError(
            f"the first line of a table names its columns, a path and a label among them, but "
            f"{path}: {'; '.join(problems)}; its columns are {_quoted(there)}"
        )
    columns = table.set_axis(there, axis=1)
    held = columns[found["path"]].dropna()
    if not held.map(lambda value: isinstance(value, str)).all():
        raise DatasetError(
            f"{path}: its column {found['path']!r} must hold the paths of files, but it holds "
            f"{type(held.iloc[0]).__name__}; write the images into files"
        )
    return pd.DataFrame({role: _texts(columns[name], role) for role, name in found.items()})


def _texts(column: pd.Series, role: str) -> pd.Series:
    """Return the cells of a column as text, and None where they are empty."""
    whole = pd.api.types.is_float_dtype(column.dtype) and (column.dropna() % 1 == 0).all()
    texts: list[str | None] = []
    for value, empty in zip(column, column.isna(), strict=True):
        text = None if empty else str(int(value) if whole else value)
        if text is not None and role != "path":
            text = one_spelling(text.strip())
        texts.append(text or None)
    return pd.Series(texts, dtype=object)


def _problems(table: pd.DataFrame, files: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the rows, one kind at a time."""
    if table.empty:
        yield "it has no rows"
        return
    for role in table.columns.intersection(["path", "label", "split"]):
        empty = table[role].isna()
        if role == "split" and empty.all():
            continue
        if empty.any():
            yield f"{_rows(int(empty.sum()))} without a {role} ({_lines(table.index[empty])})"
    for role in table.columns.intersection(["label", "split", "group"]):
        broken = table[role].map(lambda text: text is not None and not _is_utf8(text))
        if broken.any():
            yield (
                f"{_rows(int(broken.sum()))} whose {role} is not in UTF-8 "
                f"({_lines(table.index[broken])}); save the table as UTF-8"
            )
    if "split" in table:
        yield from _split_problems(table, files)
    named = table.dropna(subset=["path", "label"])
    kinds = named.groupby("file")["label"].nunique()
    doubled = kinds[kinds > 1].index
    if len(doubled):
        first = doubled[0]
        labels = sorted(set(named.loc[named["file"] == first, "label"]))
        yield (
            f"{_many(len(doubled), 'image has', 'images have')} more than one label, e.g. "
            f"{printable(files[first])}: {_quoted(labels)}"
        )
    if named["label"].nunique() == 1:
        yield f"all images are of one class, {named['label'].iloc[0]!r}; there must be two"


def _split_problems(table: pd.DataFrame, files: Sequence[str]) -> Iterator[str]:
    words = table["split"].dropna()
    unknown = sorted(set(words[~words.str.lower().isin(list(SPLIT_NAMES))]))
    if unknown:
        yield f"{_quoted(unknown)} in the column of splits; allowed are {', '.join(SPLIT_NAMES)}"
        return
    parts = words.str.lower().map(SPLIT_NAMES)
    if len(parts) and "train" not in set(parts):
        yield f"no row is in train; all are in {', '.join(sorted(set(parts)))}"
    several = table.assign(part=parts).dropna(subset=["path"]).groupby("file")["part"].nunique()
    several = several[several > 1]
    if len(several):
        yield (
            f"{_many(len(several), 'image is', 'images are')} in more than one part, e.g. "
            f"{printable(files[several.index[0]])}"
        )
    classes = {part: set(table["label"][parts.index[parts == part]]) for part in set(parts)}
    for part in sorted(classes):
        missing = sorted(set(table["label"].dropna()) - classes[part])
        if missing:
            yield f"no image of {_quoted(missing)} is in {part}"


def _missing(files: Sequence[str], progress: Progress) -> Iterator[str]:
    """Look for all files, in threads: a network file system takes its time for each."""
    missing: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
        for number, found in enumerate(pool.map(_not_there, chunks), 1):
            missing += found
            progress(INDEXING, min(number * _CHUNK, len(files)), len(files))
    if missing:
        shown = ", ".join(printable(one) for one in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        yield f"{_many(len(missing), 'file is', 'files are')} not there: {shown}{more}"


def _place(folder: str, path: str) -> str:
    """Return where a file lies; a path may be written as Windows writes it."""
    place = os.path.normpath(os.path.join(folder, path))
    if "\\" in path and "\0" not in path and not os.path.exists(place):
        return os.path.normpath(os.path.join(folder, path.replace("\\", "/")))
    return place


def _not_there(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if "\0" in path or not os.path.isfile(path)]


def _files(table: pd.DataFrame, files: Sequence[str]) -> Iterator[ImageFile]:
    nothing = [None] * len(table)
    parts, groups = table.get("split", nothing), table.get("group", nothing)
    for path, file, label, word, group in zip(
        table["path"], table["file"], table["label"], parts, groups, strict=True
    ):
        part = None if word is None else SPLIT_NAMES[word.lower()]
        yield ImageFile(printable(path), files[file], label, part, group)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _rows(count: int) -> str:
    return _many(count, "row", "rows")


def _many(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _lines(index: pd.Index) -> str:
    """Say where rows are; the first line of the file names the columns."""
    shown = ", ".join(str(int(row) + 2) for row in index[:_SHOWN])
    more = f" and {len(index) - _SHOWN} more" if len(index) > _SHOWN else ""
    return f"line{'s' if len(index) > 1 else ''} {shown}{more}"


def _quoted(names: Iterable[str]) -> str:
    every = list(names)
    text = ", ".join(repr(printable(name[:200])) for name in every[:20])
    return text + (f" and {len(every) - 20} more" if len(every) > 20 else "")
