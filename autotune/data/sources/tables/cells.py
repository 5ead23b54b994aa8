"""The cells of a table, as spreadsheet programs write them too."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence

import pandas as pd

from autotune.data.sources.split_columns import column_name
from autotune.errors import DatasetError
from autotune.file_kinds import PARQUET, file_kind
from autotune.text import plural

#: Endings of the tables that are text.
TEXT_ENDINGS = (".csv", ".tsv")
#: Finds bytes that are not in UTF-8.
SURROGATES = "[\ud800-\udfff]"
_SEPARATORS = ",;\t|"
#: A first line by which spreadsheet programs are told the separator.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[ \t,;]*(\r\n|\r|\n|$)', re.IGNORECASE)
#: Limits what is read to choose the separator, in characters.
_START = 1 << 16


def read_cells(path: str, wanted: Sequence[Collection[str]]) -> pd.DataFrame:
    """Read the cells of a table as they are written.

    Args:
        path: The table: text in UTF-8, in UTF-16, or in the encoding of an older program, whose
            letters become lone surrogates; or Parquet.
        wanted: For each column that is needed, its names in lower case. Of several separators,
            the one counts under which most of these columns appear.

    Returns:
        A column for each column, empty cells missing; the index has the lines of the rows.

    Raises:
        DatasetError: When it cannot be read.
    """
    try:
        if path.lower().endswith(TEXT_ENDINGS) and file_kind(path) != PARQUET:
            return _read_text(path, wanted)
        table = pd.read_parquet(path, dtype_backend="numpy_nullable")
        categories = table.select_dtypes("category").columns
        table = table.astype(dict.fromkeys(categories, object))  # with one, pandas has no all()
        named = [name for name in table.index.names if name not in (None, *table.columns)]
        if named:  # columns in the file, an index for pandas alone
            table = table.reset_index(level=named)
        table.index = pd.RangeIndex(2, len(table) + 2)
        return table.set_axis([str(column) for column in table.columns], axis=1)
    except ImportError as error:
        raise DatasetError(
            f"{path}: Parquet files are read by pyarrow, which is not installed; run pip install "
            "'autotune[parquet]', or write the table as CSV"
        ) from error
    except (OSError, ValueError) as error:  # and kinds of them
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).strip().splitlines()[0]
        raise DatasetError(f"{path} must be a table, but cannot be read: {reason}") from error


def from_windows(text: str) -> str | None:
    """Return a text that is not in UTF-8 as Windows-1252 has it; ``None`` for all others."""
    if not re.search(SURROGATES, text):
        return None
    try:
        return text.encode("utf-8", "surrogateescape").decode("cp1252")
    except UnicodeError:
        return None


def _read_text(path: str, wanted: Sequence[Collection[str]]) -> pd.DataFrame:
    with open(path, "rb") as stream:
        content = stream.read()
    # a file may have any name; the other columns are checked later
    text = content.decode(_encoding(content), "surrogateescape")
    separators = "\t,;|" if path.lower().endswith(".tsv") else _SEPARATORS
    before = 0
    if match := _SEPARATOR_LINE.match(text):
        separators, before, text = match[1] + separators, 1, text[match.end() :]
    separator = max(separators, key=lambda mark: _suitability(text[:_START], mark, wanted))
    rows = _rows(text, separator, before)
    _, header = next(rows, (0, []))
    if not header:
        raise ValueError("it is empty")
    lines, cells = [], []
    for line, row in rows:
        if any(row[len(header) :]):
            raise ValueError(
                f"line {line} has {plural(len(row), 'cell')}, but the first line names "
                f"{plural(len(header), 'column')}; is a separator not in quotes?"
            )
        lines.append(line)
        row += [""] * (len(header) - len(row))
        cells.append([cell or None for cell in row[: len(header)]])
    return pd.DataFrame(cells, lines, _different(header), dtype=object)


def _rows(text: str, separator: str, before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of each row that is not blank."""
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
    line = before + 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{error}, from line {line} on; is a quotation mark missing?") from error


def _suitability(start: str, separator: str, wanted: Sequence[Collection[str]]) -> tuple[int, int]:
    """Return how many columns that are needed appear under a separator, and how many at all."""
    try:
        _, header = next(_rows(start, separator, 0), (0, []))
    except ValueError:
        return 0, 0
    names = {column_name(column) for column in header}
    return sum(not names.isdisjoint(group) for group in wanted), len(header)


def _different(header: Sequence[str]) -> list[str]:
    """Number the columns that have the same name."""
    columns: list[str] = []
    for name in header:
        columns.append(f"{name}.{columns.count(name)}" if name in columns else name)
    return columns


def _encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    start = content[:_START]
    zeros = [start[offset::2].count(0) * 3 for offset in (0, 1)]
    if zeros[1] > len(start) / 2 > zeros[0]:  # Western text without the mark
        return "utf-16-le"
    return "utf-16-be" if zeros[0] > len(start) / 2 > zeros[1] else "utf-8-sig"
