"""What a table seems to say of its images, and is not used: splits in paths, groups, boxes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import pandas as pd

from autotune.data.sources.names import printable, quoted
from autotune.data.sources.split_columns import column_name, has_only_splits
from autotune.data.sources.split_names import recognized

#: Columns that say which images belong together; their images look alike.
_GROUPS = re.compile(
    r"(patient|subject|person|participant|donor|case|study|lesion|specimen|animal|individual|"
    r"slide|video|clip|session|sequence|scene|burst|visit)(_?(id|no|nr|num|number|name|key|uid))?"
)
#: Columns of the box of an object in the image.
_BOXES = re.compile(
    r"(.*_)?(bbox|box|boxes)(_.*)?|(roi_)?(x_?min|x_?1|x_?left|left_x|x_?top_left)"
)


def describe_unused(
    role_of: Mapping[str, str], others: Mapping[str, pd.Series], has_splits: bool
) -> Iterator[str]:
    """Name columns without a role that matter for what is learned."""
    if "group" not in role_of and not has_splits:
        groups = [
            name
            for name, cells in others.items()
            if _GROUPS.fullmatch(column_name(name)) and 1 < len(_values(cells)) < cells.count()
        ]
        if groups:
            yield (
                f"the groups in {quoted(groups)} are passed over; call the column 'group' if "
                "images with the same value belong together, so that they go to the same split"
            )
    if boxes := [name for name in others if _BOXES.fullmatch(column_name(name))]:
        yield (
            f"the boxes in {quoted(boxes)} are passed over; images are read whole, not cut to a "
            "box"
        )


def describe_split_paths(cells: Sequence[str | None]) -> Iterator[str]:
    """Name splits in the paths of a table that does not say the splits otherwise."""
    folders = {os.path.dirname(cell.strip().replace("\\", "/")) for cell in cells if cell}
    for names in zip_longest(*(folder.split("/") for folder in sorted(folders)), fillvalue=""):
        if has_only_splits(set(names)):
            yield (
                f"its paths lie in {quoted(sorted(recognized(names)))}, but no column says the "
                "splits, so new ones are made; add a column 'split' to keep those"
            )
            return


def describe_tables_beside(path: str) -> Iterator[str]:
    """Name the tables of the other splits, such as ``val.csv`` beside ``train.csv``."""
    folder, name = os.path.split(path)
    stem, ending = os.path.splitext(name)
    stems = {
        os.path.splitext(other)[0]: other
        for other in os.listdir(folder or ".")
        if os.path.splitext(other)[1] == ending and not other.startswith(".")
    }
    splits = recognized(stems)
    if others := [stems[other] for other in sorted(splits) if other != stem and stem in splits]:
        yield (
            f"only this table is read, not {', '.join(map(printable, others))} beside it; join "
            "the tables, with a column 'split', if they divide the images"
        )


def _values(cells: pd.Series) -> set[str]:
    return set(map(str, cells.dropna()))
