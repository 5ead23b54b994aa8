"""A table of images (CSV, TSV, Parquet): its files, their classes, splits and groups."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from autotune.data.progress import INDEXING, ProgressCallback, no_progress
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import SPLIT_NAMES, ImageFile
from autotune.data.sources.names import describe_similar, normalized, printable, quoted
from autotune.errors import DatasetError, did_you_mean, join_sentences
from autotune.text import join_some, plural

#: Endings of the files that are tables.
TEXT_ENDINGS = (".csv", ".tsv")
TABLE_ENDINGS = (*TEXT_ENDINGS, ".parquet")
#: Role of a column -> its names, in lower case.
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "part", "subset"),
    "group": ("group", "group_id"),
}
_NEEDED = ("path", "label")
#: Limits a cell: no system has longer paths.
MAX_CHARACTERS = 32_768
#: Limits the lines and files that a message lists.
_MAX_LISTED = 5
_THREADS = 16
_CHUNK = 1000


def open_table(name: str, path: str, progress: ProgressCallback = no_progress) -> FileSource:
    """Open the image files that a table names. A repeated row counts once.

    Args:
        name: The table as the user named it.
        path: A file that ends as :data:`TEXT_ENDINGS`, or of Parquet. Paths in it are relative to
            its folder.
        progress: Called while files are looked up, and read for the fingerprint.

    Raises:
        DatasetError: With everything that is wrong with the table.
    """
    table = _columns(path, _load(path))
    for role in table.columns:
        is_long = table[role].map(lambda text: text is not None and len(text) > MAX_CHARACTERS)
        if is_long.any():  # before such a cell is quoted
            raise DatasetError(
                f"a {role} must have at most {MAX_CHARACTERS:,} characters, but {path} has longer "
                f"ones ({_lines(table.index[is_long])}); is a quotation mark not closed?"
            )
    folder = os.path.dirname(path)
    paths = [None if cell is None else _resolved(folder, cell) for cell in table["path"]]
    # by number: pandas' own strings are all UTF-8, and names of files need not be
    table["file"], distinct = pd.factorize(np.array(paths, dtype=object))
    files = list(distinct)
    problems = [*_problems(table, files), *_missing(files, progress)]
    if problems:
        raise DatasetError(
            f"every row of a table names an image file and its class, but {path}: "
            f"{'; '.join(problems)}"
        )
    table = table.drop_duplicates("file")
    empty = [None] * len(table)
    splits, groups = table.get("split", empty), table.get("group", empty)
    images = [
        ImageFile(
            printable(cell),
            files[file],
            label,
            None if word is None else SPLIT_NAMES[word.lower()],
            group,
        )
        for cell, file, label, word, group in zip(
            table["path"], table["file"], table["label"], splits, groups, strict=True
        )
    ]
    images.sort(key=lambda image: image.key)
    return FileSource(name, images, labeled=True, progress=progress)


def _load(path: str) -> pd.DataFrame:
    """Read all cells as they are written; the first line names the columns."""
    try:
        if not path.lower().endswith(TEXT_ENDINGS):
            return pd.read_parquet(path, dtype_backend="numpy_nullable")
        encoding, separator = _dialect(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of lines that are too long
            return pd.read_csv(
                path,
                sep=separator,
                encoding=encoding,
                # a file may have any name; the other columns are checked later
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
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # and kinds of them
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).strip().splitlines()[0]
        raise DatasetError(f"{path} must be a table, but cannot be read: {reason}") from error


def _dialect(path: str) -> tuple[str, str]:
    """Return encoding and separator, also those of spreadsheet programs."""
    with open(path, "rb") as stream:
        start = stream.read(1 << 16)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    header = start.decode(encoding, "replace").partition("\n")[0]
    return encoding, "\t" if path.lower().endswith(".tsv") else max(",;\t", key=header.count)


def _columns(path: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that count, named by their roles, as text."""
    columns = [str(column) for column in table.columns]
    by_role: dict[str, str] = {}
    problems = []
    for role, names in COLUMNS.items():
        named = [column for column in columns if column.strip().lower() in names]
        if len(named) > 1:
            problems.append(f"{quoted(named)} are all {role}s; keep one of them")
        elif named:
            by_role[role] = named[0]
        elif role in _NEEDED:
            hints = (
                f"{column!r}: {hint}"
                for column in columns
                if (hint := did_you_mean(column.strip().lower(), names))
            )
            problem = f"no column is called {' or '.join(names)}"
            problems.append(join_sentences(problem, next(hints, "")))
    if problems:
        raise DatasetError(
            f"the first line of a table names its columns, a path and a label among them, but "
            f"{path}: {'; '.join(problems)}; its columns are {quoted(columns)}"
        )
    table = table.set_axis(columns, axis=1)
    paths = table[by_role["path"]].dropna()
    if not paths.map(lambda value: isinstance(value, str)).all():
        raise DatasetError(
            f"{path}: its column {by_role['path']!r} must hold the paths of files, but it holds "
            f"{type(paths.iloc[0]).__name__}; write the images into files"
        )
    return pd.DataFrame({role: _texts(table[column], role) for role, column in by_role.items()})


def _texts(column: pd.Series, role: str) -> pd.Series:
    """Return the cells of a column as text, and ``None`` where they are empty."""
    is_whole = pd.api.types.is_float_dtype(column.dtype) and (column.dropna() % 1 == 0).all()
    texts: list[str | None] = []
    for value, is_empty in zip(column, column.isna(), strict=True):
        text = "" if is_empty else str(int(value) if is_whole else value)
        texts.append((text if role == "path" else normalized(text.strip())) or None)
    return pd.Series(texts, dtype=object)


def _problems(table: pd.DataFrame, files: Sequence[str]) -> Iterator[str]:
    """Yield the problems of the rows, one kind at a time."""
    if table.empty:
        yield "it has no rows"
        return
    for role in table.columns.intersection(["path", "label", "split"]):
        is_empty = table[role].isna()
        if is_empty.any() and not (role == "split" and is_empty.all()):
            rows = plural(is_empty.sum(), "row")
            yield f"{rows} without a {role} ({_lines(table.index[is_empty])})"
    for role in table.columns.intersection(["label", "split", "group"]):
        is_broken = table[role].str.contains("[\ud800-\udfff]", na=False)
        if is_broken.any():
            yield (
                f"{plural(is_broken.sum(), 'row')} whose {role} is not in UTF-8 "
                f"({_lines(table.index[is_broken])}); save the table as UTF-8"
            )
    if "split" in table:
        yield from _split_problems(table, files)
    named = table.dropna(subset=["path", "label"])
    if ambiguous := _ambiguous(named, "label"):
        labels = sorted(set(named.loc[named["file"] == ambiguous[0], "label"]))
        yield (
            f"{plural(len(ambiguous), 'image has', 'images have')} more than one label, e.g. "
            f"{printable(files[ambiguous[0]])}: {quoted(labels)}"
        )
    if named["label"].nunique() == 1:
        yield f"all images are of one class, {named['label'].iloc[0]!r}; there must be two"


def _split_problems(table: pd.DataFrame, files: Sequence[str]) -> Iterator[str]:
    words = table["split"].dropna()
    unknown = sorted(set(words[~words.str.lower().isin(list(SPLIT_NAMES))]))
    if unknown:
        yield f"{quoted(unknown)} in the column of splits; allowed are {', '.join(SPLIT_NAMES)}"
        return
    splits = words.str.lower().map(SPLIT_NAMES)
    if len(splits) and "train" not in set(splits):
        yield f"no row is in train; all are in {', '.join(sorted(set(splits)))}"
    ambiguous = _ambiguous(table.assign(split=splits).dropna(subset=["path"]), "split")
    if ambiguous:
        yield (
            f"{plural(len(ambiguous), 'image is', 'images are')} in more than one split, e.g. "
            f"{printable(files[ambiguous[0]])}"
        )
    labels = set(table["label"].dropna())
    for split in sorted(set(splits)):
        present = set(table["label"][splits.index[splits == split]])
        if missing := sorted(labels - present):
            text = f"no image of {quoted(missing)} is in {split}"
            yield join_sentences(text, describe_similar(labels))


def _ambiguous(table: pd.DataFrame, role: str) -> list[int]:
    """Return the files that have several values of a role."""
    counts = table.groupby("file")[role].nunique()
    return list(counts[counts > 1].index)


def _missing(files: Sequence[str], progress: ProgressCallback) -> Iterator[str]:
    """Look for all files, in threads: a network file system takes its time for each."""
    missing: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
        for number, absent in enumerate(pool.map(_absent, chunks), 1):
            missing += absent
            progress(INDEXING, min(number * _CHUNK, len(files)), len(files))
    if missing:
        names = join_some([printable(path) for path in missing], _MAX_LISTED)
        yield f"{plural(len(missing), 'file is', 'files are')} not there: {names}"


def _absent(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if "\0" in path or not os.path.isfile(path)]


def _resolved(folder: str, path: str) -> str:
    """Return the path of a file, which may be written as Windows writes it."""
    resolved = os.path.normpath(os.path.join(folder, path))
    if "\\" in path and "\0" not in path and not os.path.exists(resolved):
        return os.path.normpath(os.path.join(folder, path.replace("\\", "/")))
    return resolved


def _lines(index: pd.Index) -> str:
    """Return the line numbers of rows; the first line of the file names the columns."""
    word = "lines" if len(index) > 1 else "line"
    return f"{word} {join_some([int(row) + 2 for row in index], _MAX_LISTED)}"
