"""The columns of a table that say to which split its rows belong."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from autotune.data.image_formats import PassedOver
from autotune.data.sources.names import printable, quoted, warn_once
from autotune.data.sources.split_names import (
    NONE,
    TEST,
    TRAIN,
    VALIDATION,
    SplitNames,
    given,
    has_no_labels,
    is_split,
    matches,
    recognized,
    resolved,
    split_word,
    splits_key,
)
from autotune.errors import DatasetError

#: Columns that hold the splits; those of other names may.
SPLIT_COLUMNS = ("split", "part", "subset")
_OTHER_COLUMNS = ("set", "partition", "fold", "kfold", "phase", "usage", "data_split")
_YES = frozenset(("true", "t", "yes", "y", "1", "1.0"))
_NO = frozenset(("false", "f", "no", "n", "0", "0.0"))
#: The split of a row that is passed over.
LEFT_OUT = ""
#: Limits the values of a column that a message lists.
_MAX_LISTED = 5

Cells = Sequence[str | None]


def column_name(column: str) -> str:
    """Return the name of a column as names are compared: ``File Name`` is ``file_name``."""
    return re.sub(r"\W+", "_", column.strip().lower()).strip("_")


def other_split_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns that may say the split without being called so, such as ``is_valid``."""
    return [
        column
        for column in columns
        if column_name(column) in _OTHER_COLUMNS or _flag(column) is not None
    ]


def may_split(values: Iterable[str]) -> bool:
    """Tell whether names of splits that divide images are among the values of a column."""
    return is_split(recognized(values).values())


def has_only_splits(values: Collection[str]) -> bool:
    """Tell whether all values are names of splits that divide images, whatever has them."""
    splits = recognized(values)
    return is_split(splits.values()) and len(splits) == len(values)


def splits_of_rows(
    where: str,
    split: str | None,
    columns: Mapping[str, Cells],
    splits: SplitNames,
    passed_over: PassedOver,
) -> list[str | None] | None:
    """Return the split of each row, and name columns that are not used once.

    Args:
        where: The table, for messages.
        split: The column that is called like one of splits, if there is one.
        columns: This column, and those of :func:`other_split_columns`.
        splits: What ``data.splits`` says.
        passed_over: Counts the rows that ``data.splits`` does not name.

    Returns:
        ``train``, ``validation`` or ``test``; ``None`` for an empty cell, :data:`LEFT_OUT` for a
        row that ``data.splits`` does not name, and an unknown word as it is. ``None`` when no
        column says the splits.

    Raises:
        DatasetError: When ``data.splits`` names a value that no column has.
    """
    if splits == NONE:
        return None
    if isinstance(splits, Mapping):
        return _given(where, columns, splits, passed_over)
    others = [column for column in columns if column != split]
    if split is not None:
        if others:
            warn_once(f"{where}: {_are(others)} passed over; the splits are those of {split!r}")
        split_of = recognized(_values(columns[split]))
        return [None if cell is None else split_of.get(cell, cell) for cell in columns[split]]
    for column in others:
        split_of = recognized(_values(columns[column]))
        if has_only_splits(_values(columns[column])):
            return _used(
                where, [column], others, [split_of.get(cell or "") for cell in columns[column]]
            )
    flags = {column: _flags(columns[column]) for column in others if _flag(column)}
    used = {column: rows for column, rows in flags.items() if rows is not None and any(rows)}
    if used:
        return _used(where, [*used], others, _from_flags(used))
    for column in others:
        values = sorted(_values(columns[column]))
        if len(values) < 2:  # it divides nothing
            continue
        guess = recognized(values)
        unknown = [value for value in values if value not in guess]
        if TRAIN not in guess.values():
            guess = dict.fromkeys(values[:-1], TRAIN) | dict.fromkeys(values[-1:], TEST)
        warn_once(
            f"{where}: {_are([column])} passed over: {quoted(unknown[:_MAX_LISTED])} are no names "
            f"of splits; name them with {splits_key(guess)}"
        )
    return None


def without_unlabeled(rows: Cells, labels: Cells, passed_over: PassedOver) -> list[str | None]:
    """Leave out the rows of a split without labels.

    Returns:
        The split of each row, :data:`LEFT_OUT` for those that are left out.
    """
    classes: dict[str | None, set[str | None]] = {}
    for split, label in zip(rows, labels, strict=True):
        classes.setdefault(split, set()).add(label)
    train = classes.get(TRAIN, set())
    unlabeled = [
        split
        for split in (VALIDATION, TEST)
        if split in classes and has_no_labels(classes[split], train)
    ]
    for split in unlabeled:
        passed_over[f"rows of {split} without labels", ""] += sum(row == split for row in rows)
    return [LEFT_OUT if row in unlabeled else row for row in rows]


def _given(
    where: str,
    columns: Mapping[str, Cells],
    splits: Mapping[str, Sequence[str]],
    passed_over: PassedOver,
) -> list[str | None]:
    for column, cells in columns.items():
        values = _values(cells)
        if any(
            matches(value, name) for names in splits.values() for name in names for value in values
        ):
            split_of = given(f"the column {column!r} of {where}", values, splits)
            for cell in cells:
                if cell not in split_of:
                    passed_over[
                        f"rows of {printable(cell or 'no split')}, not in data.splits", ""
                    ] += 1
            return [split_of.get(cell or "", LEFT_OUT) for cell in cells]
    named = [name for names in splits.values() for name in names]
    raise DatasetError(
        f"data.splits names {quoted(named)}, but {where} has no column of splits with one of them "
        f"({', '.join((*SPLIT_COLUMNS, *_OTHER_COLUMNS))})"
    )


def _used(
    where: str, used: Sequence[str], others: Sequence[str], rows: list[str | None]
) -> list[str | None]:
    rest = [column for column in others if column not in used]
    also = f"; {_are(rest)} passed over" if rest else ""
    warn_once(f"{where}: the splits are those of {quoted(used)}{also}")
    return rows


def _flag(column: str) -> str | None:
    """Return the split that a column such as ``is_valid`` marks."""
    word = split_word(column)
    return word.split if word and word.rest == ("is",) else None


def _flags(cells: Cells) -> list[bool] | None:
    """Return the marks of a column; ``None`` when it holds something else."""
    texts = ["" if cell is None else cell.lower() for cell in cells]
    return [text in _YES for text in texts] if set(texts) <= {*_YES, *_NO, ""} else None


def _from_flags(flags: Mapping[str, Sequence[bool]]) -> list[str | None]:
    """Return the split of each row: that which is marked, or the one that no column marks."""
    splits = resolved({column: str(_flag(column)) for column in flags})
    rest = next(
        (split for split in (TRAIN, TEST, VALIDATION) if split not in splits.values()), None
    )
    rows: list[str | None] = []
    for marks in zip(*flags.values(), strict=True):
        marked = {split for split, mark in zip(splits.values(), marks, strict=True) if mark}
        rows.append(" and ".join(sorted(marked)) if marked else rest)
    return rows


def _values(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell for cell in cells if cell is not None))


def _are(columns: Sequence[str]) -> str:
    return (
        f"the column{'s' * (len(columns) > 1)} {quoted(columns)} {'are' if columns[1:] else 'is'}"
    )
