"""The files that a table names: as they are written, spelled otherwise, or where they may be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import islice
from urllib.parse import unquote

from autotune.data.image_formats import ENDINGS
from autotune.data.progress import INDEXING, ProgressCallback
from autotune.data.sources.names import normalized, printable
from autotune.data.sources.tables.cells import from_windows
from autotune.text import join_some, plural

_THREADS = 16
_CHUNK = 1000
#: Limits the missing files that a message lists.
_MAX_LISTED = 5
#: Limits the files below a table among which missing ones are looked for.
_MAX_SEARCHED = 200_000
#: Limits the folders of a path that may be spelled otherwise.
_MAX_DEPTH = 64


def find_files(
    folder: str, cells: Sequence[str | None], progress: ProgressCallback
) -> tuple[list[str | None], list[str]]:
    r"""Find the files that the cells of a table name.

    Blanks at the ends, ``\`` for ``/``, and another Unicode form count where the file does not
    exist otherwise. Files are looked up in threads: a network file system takes its time for each.

    Args:
        folder: The folder of the table; paths may be relative to it.
        cells: Paths, as they are written.
        progress: Called with the number of files.

    Returns:
        The file of each cell, and the cells whose file is not there.
    """
    distinct = list(dict.fromkeys(cell for cell in cells if cell is not None))
    path_of: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = [distinct[start : start + _CHUNK] for start in range(0, len(distinct), _CHUNK)]
        for number, paths in enumerate(
            pool.map(lambda chunk: _existing(folder, chunk), chunks), 1
        ):
            path_of |= paths
            progress(INDEXING, min(number * _CHUNK, len(distinct)), len(distinct))
    listing = cache(_listing)
    missing = []
    for cell in distinct:
        if cell not in path_of:
            spelled = next(
                (path for text in _spellings(cell) if (path := _respelled(folder, text, listing))),
                None,
            )
            if spelled is None:
                missing.append(cell)
            path_of[cell] = spelled or _path(folder, cell)
    return [None if cell is None else path_of[cell] for cell in cells], missing


def describe_missing(folder: str, missing: Sequence[str]) -> str:
    """Say which files are not there, and under which other paths most of them are.

    Args:
        folder: The folder of the table, in which they are looked for.
        missing: Their paths, as they are written.
    """
    names = join_some([printable(_path(folder, cell)) for cell in missing], _MAX_LISTED)
    text = f"{plural(len(missing), 'file is', 'files are')} not there: {names}"
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for path in islice(_walk(folder), _MAX_SEARCHED):
        parts = tuple(os.path.relpath(path, folder).split(os.sep))
        for name in {parts[-1], os.path.splitext(parts[-1])[0]}:
            by_name.setdefault(_form(name).casefold(), []).append(parts)
    places = Counter(place for cell in missing for place in set(_places(cell, by_name)))
    if not places:
        return text
    # of those that hold for as many files the simplest, which keeps most of the folders
    best = max(places, key=lambda place: (places[place], place))
    return f"{text}; {places[best]:,} of {len(missing):,} are there {best[-1]}"


def _places(
    cell: str, by_name: Mapping[str, Sequence[tuple[str, ...]]]
) -> Iterator[tuple[int, int, str]]:
    """Yield how the images that a cell may mean are written; the plainest way is the largest."""
    plain = cell.strip().replace("\\", "/")
    for text in dict.fromkeys((plain, unquote(plain))):
        *folders, name = text.removeprefix("./").split("/")
        stem, ending = os.path.splitext(name)
        if ending.lower() not in ENDINGS:
            stem, ending = name, ""
        for parts in by_name.get(_form(stem).casefold(), ()):
            found_stem, found_ending = os.path.splitext(parts[-1])
            same = 0
            for folder, other in zip(reversed(folders), reversed(parts[:-1]), strict=False):
                if _form(folder).casefold() != _form(other).casefold():
                    break
                same += 1
            there = "".join(f"{part}/" for part in parts[: len(parts) - 1 - same])
            written = "".join(f"{part}/" for part in folders[: len(folders) - same])
            differences = []
            if found_ending != ending:
                differences += _instead("with", found_ending, ending)
            if there:
                differences += _instead("in", there, written)
            elif written:
                differences.append(f"without {printable(written)}")
            names = [*folders[len(folders) - same :], stem]
            actual = [*parts[len(parts) - 1 - same : -1], found_stem]
            differences += ["in other letter case"] * (
                [*map(_form, names)] != [*map(_form, actual)]
            )
            differences += ["with characters for %20 and its like"] * (text != plain)
            yield -len(differences), -len(written), " ".join(differences)


def _instead(word: str, actual: str, written: str) -> list[str]:
    instead = [f"instead of {printable(written)}"] if written else []
    return [f"{word} {printable(actual)}", *instead]


def _walk(folder: str) -> Iterator[str]:
    """Yield the images below a folder; of very many files the first ones."""
    seen = 0
    for parent, folders, names in os.walk(folder or "."):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(folders) + len(names)
        if seen > _MAX_SEARCHED:
            return
        yield from (os.path.join(parent, name) for name in names if name.lower().endswith(ENDINGS))


def _existing(folder: str, cells: Iterable[str]) -> dict[str, str]:
    """Return the files that exist as they are written, or as Windows writes them."""
    paths = {}
    for cell in cells:
        for text in (cell, cell.strip().replace("\\", "/")):
            path = _path(folder, text)
            if "\0" not in path and os.path.isfile(path):
                paths[cell] = path
                break
    return paths


def _spellings(cell: str) -> Iterator[str]:
    yield cell
    plain = cell.strip().replace("\\", "/")
    yield plain
    if text := from_windows(plain):
        yield text


def _respelled(
    folder: str, text: str, listing: Callable[[str], dict[str, list[str]]]
) -> str | None:
    """Return the only file whose path differs in Unicode form and blanks alone."""
    path, missing = _path(folder, text), []
    if "\0" in path:
        return None
    while not os.path.exists(path):
        path, name = os.path.split(path)
        missing.append(name)
        if not name or len(missing) > _MAX_DEPTH:
            return None
    for name in reversed(missing):
        names = listing(path).get(_form(name), [])
        if len(names) != 1:
            return None
        path = os.path.join(path, names[0])
    return path if os.path.isfile(path) else None


def _listing(folder: str) -> dict[str, list[str]]:
    """Return the entries of a folder by their form."""
    names: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in os.listdir(folder or "."):
            names.setdefault(_form(name), []).append(name)
    return names


def _form(name: str) -> str:
    return " ".join(normalized(name).split())


def _path(folder: str, text: str) -> str:
    return os.path.normpath(os.path.join(folder, text))
