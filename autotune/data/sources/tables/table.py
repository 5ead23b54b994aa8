"""A table of images (CSV, TSV, Parquet): its files, their classes, splits and groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from autotune.data.image_formats import PassedOver
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import ImageFile
from autotune.data.sources.names import (
    describe_similar,
    normalized,
    printable,
    quoted,
    warn_once,
)
from autotune.data.sources.split_columns import (
    LEFT_OUT,
    SPLIT_COLUMNS,
    column_name,
    may_split,
    other_split_columns,
    splits_of_rows,
    without_unlabeled,
)
from autotune.data.sources.split_names import (
    AUTO,
    NONE,
    SPLITS,
    TEST,
    TRAIN,
    SplitNames,
    splits_key,
)
from autotune.data.sources.tables.cells import SURROGATES, TEXT_ENDINGS, from_windows, read_cells
from autotune.data.sources.tables.files import describe_missing, find_files
from autotune.data.sources.tables.unused import (
    describe_split_paths,
    describe_tables_beside,
    describe_unused,
)
from autotune.errors import DatasetError, did_you_mean, join_sentences
from autotune.text import join_some, plural

#: Endings of the files that are tables.
TABLE_ENDINGS = (*TEXT_ENDINGS, ".parquet")
#: Role of a column -> its names, in lower case.
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": SPLIT_COLUMNS,
    "group": ("group", "group_id"),
}
_NEEDED = ("path", "label")
#: Columns that are the path where none is called so: its files must exist in any case.
_OTHER_PATHS = (
    *("image_path", "img_path", "image_file", "image_name", "img_name", "image_id", "img"),
    *("fname", "id"),
)
#: Limits a cell: no system has longer paths.
MAX_CHARACTERS = 32_768
#: A column with only different values in its first rows holds no splits.
_FEW = 50
#: Limits the lines that a message lists.
_MAX_LISTED = 5


def open_table(
    name: str, path: str, progress: ProgressCallback = no_progress, splits: SplitNames = AUTO
) -> FileSource:
    """Open the image files that a table names. A repeated row counts once.

    Args:
        name: The table as the user named it.
        path: A file that ends as :data:`TEXT_ENDINGS`, or of Parquet. Paths in it are relative to
            its folder.
        progress: Called while files are looked up, and read for the fingerprint.
        splits: What ``data.splits`` says of the values in its column of splits.

    Raises:
        DatasetError: With everything that is wrong with the table.
    """
    cells = read_cells(path, [(*COLUMNS["path"], *_OTHER_PATHS), COLUMNS["label"]])
    passed_over = PassedOver()
    table = _columns(path, cells, splits, passed_over)
    for role in table.columns:
        is_long = table[role].map(lambda text: text is not None and len(text) > MAX_CHARACTERS)
        if is_long.any():  # before such a cell is quoted
            raise DatasetError(
                f"a {role} must have at most {MAX_CHARACTERS:,} characters, but {path} has longer "
                f"ones ({_lines(table.index[is_long])}); is a quotation mark not closed?"
            )
    folder = os.path.dirname(path)
    paths, missing = find_files(folder, table["path"].tolist(), progress)
    # by number: pandas' own strings are all UTF-8, and names of files need not be
    table["file"], distinct = pd.factorize(np.array(paths, dtype=object))
    files = list(distinct)
    problems = [*_problems(table, files)]
    if missing:
        problems.append(describe_missing(folder, missing))
    if problems:
        raise DatasetError(
            f"every row of a table names an image file and its class, but {path}: "
            f"{'; '.join(problems)}"
        )
    if "group" in table and (several := _ambiguous(table, "group")):
        warn_once(
            f"{path}: {plural(len(several), 'image has', 'images have')} more than one group, "
            f"e.g. {printable(files[several[0]])}; the first counts"
        )
    table = table.drop_duplicates("file")
    empty = [None] * len(table)
    row_splits, groups = table.get("split", empty), table.get("group", empty)
    images = [
        ImageFile(printable(cell), files[file], label, split, group)
        for cell, file, label, split, group in zip(
            table["path"], table["file"], table["label"], row_splits, groups, strict=True
        )
    ]
    images.sort(key=lambda image: image.key)
    source = FileSource(name, images, labeled=True, progress=progress)
    source.passed_over = passed_over.by_kind()
    return source


def _columns(
    path: str, table: pd.DataFrame, splits: SplitNames, passed_over: PassedOver
) -> pd.DataFrame:
    """Return the columns that count, named by their roles, as text; splits by their own names."""
    columns = list(table.columns)
    by_role: dict[str, str] = {}
    problems = []
    for role, names in COLUMNS.items():
        named = _named(columns, role)
        if len(named) > 1:
            problems.append(f"{quoted(named)} are all {role}s; keep one of them")
        elif named:
            by_role[role] = named[0]
        elif role in _NEEDED:
            hints = (
                f"{column!r}: {hint}"
                for column in columns
                if (hint := did_you_mean(column_name(column), names))
            )
            problem = f"no column is called {' or '.join(names)}"
            problems.append(join_sentences(problem, next(hints, "")))
    if problems:
        raise DatasetError(
            f"the first line of a table names its columns, a path and a label among them, but "
            f"{path}: {'; '.join(problems)}; its columns are {quoted(columns)}"
        )
    paths = table[by_role["path"]].dropna()
    if not paths.map(lambda value: isinstance(value, str)).all():
        raise DatasetError(
            f"{path}: its column {by_role['path']!r} must hold the paths of files, but it holds "
            f"{type(paths.iloc[0]).__name__}; write the images into files"
        )
    for role, name in by_role.items():
        if not (kinds := table[name].dropna().map(pd.api.types.is_scalar)).all():
            raise DatasetError(
                f"{path}: its column {name!r} must hold a {role} in each cell, but it holds "
                f"{type(table[name][kinds.index[~kinds][0]]).__name__}; decide for one value"
            )
    texts = {role: _texts(table[column], role) for role, column in by_role.items()}
    _read_as_windows(path, texts)
    also = {column: table[column] for column in columns if column not in by_role.values()}
    named = other_split_columns(columns)
    named += [name for name, cells in also.items() if may_split(_few_values(cells))]
    others = {column: _texts(table[column], "split") for column in dict.fromkeys(named)}
    if (column := by_role.get("split")) is not None:
        others = {column: texts.pop("split"), **others}
    rows = splits_of_rows(path, column, others, splits, passed_over)
    result = pd.DataFrame(texts, table.index, dtype=object)
    lines = [*describe_unused(by_role, also, rows is not None)]
    if rows is None and splits != NONE:
        lines += [*describe_split_paths(texts["path"]), *describe_tables_beside(path)]
    for line in lines:
        warn_once(f"{path}: {line}")
    if rows is not None and any(row is not None for row in rows):
        rows = without_unlabeled(rows, texts["label"], passed_over)
        result["split"] = pd.Series(rows, table.index, dtype=object)
        result = result[result["split"] != LEFT_OUT]
    return result


def _named(columns: Sequence[str], role: str) -> list[str]:
    """Return the columns that are called like a role; any other path comes after these."""
    # a column that is there twice is called label.1 by pandas
    plain = {column: column_name(re.sub(r"\.\d+$", "", column)) for column in columns}
    named = [column for column in columns if plain[column] in COLUMNS[role]]
    if named or role != "path":
        return named
    by_name = {column_name(column): column for column in columns}
    return [by_name[name] for name in _OTHER_PATHS if name in by_name][:1]


def _few_values(cells: pd.Series) -> set[str]:
    """Return the values of a column as text; none where they are too many for splits."""
    values = set(map(str, cells.dropna().head(_FEW)))
    return set(map(str, cells.dropna())) if len(values) < _FEW else set()


def _texts(column: pd.Series, role: str) -> list[str | None]:
    """Return the cells of a column as text, and ``None`` where they are empty."""
    is_whole = pd.api.types.is_float_dtype(column.dtype) and all(
        float(value).is_integer() for value in column.dropna()
    )
    texts: list[str | None] = []
    for value, is_empty in zip(column, column.isna(), strict=True):
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        text = "" if is_empty else str(int(value) if is_whole else value)
        texts.append((text if role == "path" else normalized(text.strip())) or None)
    return texts


def _read_as_windows(path: str, texts: dict[str, list[str | None]]) -> None:
    """Replace labels, splits and groups that are not in UTF-8, and name one of them."""
    example = ""
    for role, cells in texts.items():
        for row, cell in enumerate(cells):
            if role != "path" and (text := from_windows(cell or "")):
                cells[row] = example = text
    if example:
        warn_once(
            f"{path}: it is not in UTF-8 and is read as Windows-1252, as in {example!r}; save it "
            "as UTF-8 if that is wrong"
        )


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
        is_broken = table[role].str.contains(SURROGATES, na=False)
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
    splits = table["split"].dropna()
    if unknown := sorted(set(splits) - set(SPLITS)):
        guess = {split: split for split in SPLITS if split in set(splits)}
        guess |= dict(zip(unknown, (TEST,) if TRAIN in guess else (TRAIN, TEST), strict=False))
        yield (
            f"{quoted(unknown)} in the column of splits; names are train, validation and test, or "
            f"what data.splits says, such as {splits_key(guess)}; or set "
            "data.splits=none to leave the column out of account"
        )
        return
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


def _lines(index: pd.Index) -> str:
    """Return the line numbers of rows."""
    return f"line{'s' * (len(index) > 1)} {join_some(list(index), _MAX_LISTED)}"
