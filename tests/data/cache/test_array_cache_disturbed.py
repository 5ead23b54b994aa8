"""A cache whose files are removed, whose disk is full and whose users are killed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.data.cache import array_cache
from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import RECORD, Entry, EntryWriter
from autotune.errors import CacheError, DiskFullError
from autotune.study.state.failures import FailureKind, classify
from tests.data.cache.test_array_cache import (
    FORK,
    SIZE,
    kill,
    names,
    never,
    numbers,
    put,
    value_of,
)


def test_a_full_disk(small_disk: Path) -> None:
    cache = ArrayCache(small_disk / "cache", 10**9)
    put(cache, "a", size=600_000)
    with pytest.raises(DiskFullError) as caught:
        cache.get_or_create("b", never, 2_000_000, "features")
    assert str(caught.value).startswith(
        f"features need 2.0 MB, but the disk of {cache.folder} has"
    )
    assert cache.keys() == ["a"]
    put(cache, "c", 3, size=600_000)
    assert cache.keys() == ["c"]
    with pytest.raises(DiskFullError, match=f"no space left on the disk of {cache.folder}"):
        cache.get_or_create("b", numbers(1, size=2_000_000), 1000)
    assert names(cache.folder) == {"c"}
    assert value_of(cache.get_or_create("c", never, SIZE)) == 3


@pytest.mark.slow
def test_many_processes_that_are_killed_at_random(cache: ArrayCache, tmp_path: Path) -> None:
    """An entry has its content, or there is no room for it."""
    keys, size = 8, 1 << 20
    cache = ArrayCache(cache.folder, int(3.5 * size))
    until = time.monotonic() + 15

    def work(index: int) -> None:
        draws = np.random.default_rng([index, time.time_ns()])
        entries: list[Entry] = []
        while time.monotonic() < until:
            key = int(draws.integers(keys))
            try:
                entry = cache.get_or_create(f"some/{key}", numbers(key, size), size)
            except DiskFullError:
                entries.clear()
                continue
            array = entry.array("numbers")
            assert int(array.min()) == int(array.max()) == key == entry.record["value"]
            entries = [*entries, entry][-int(draws.integers(1, 3)) :]
        (tmp_path / f"{index}.done").touch()

    processes = {}
    draws = np.random.default_rng(0)
    for index in range(60):
        processes[index] = FORK.Process(target=work, args=(index,))
        processes[index].start()
        time.sleep(0.2)
        if index >= 3:
            kill(processes.pop(int(draws.choice(list(processes)))))
    for process in processes.values():
        process.join(60)
        assert process.exitcode == 0
    for key in range(keys):
        assert value_of(put(cache, f"some/{key}", key, size)) == key
    assert set(cache.keys()) <= {f"some/{key}" for key in range(keys)}
    assert not [path for path in cache.folder.rglob("*") if ".tmp-" in path.name]
    taken = sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())
    assert taken <= cache.limit_bytes


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    (path / "a").mkdir(parents=True)


def replace_by_link(path: Path, target: str) -> None:
    remove(path)
    path.symlink_to(target)


CHANGES: dict[str, Callable[[Path], object]] = {
    "record removed": lambda folder: (folder / RECORD).unlink(),
    "array removed": lambda folder: (folder / "numbers").unlink(),
    "entry removed": remove,
    "lock removed": lambda folder: folder.with_name("a.lock").unlink(),
    "cache removed": lambda folder: remove(folder.parents[1]),
    "entry a file": lambda folder: (remove(folder), folder.write_bytes(b"")),
    "entry a dangling link": lambda folder: replace_by_link(folder, "nowhere"),
    "entry a link to itself": lambda folder: replace_by_link(folder, folder.name),
    "entry a link to a file": lambda folder: (
        folder.with_name("b").write_bytes(b""),
        replace_by_link(folder, "b"),
    ),
    "record a folder": lambda folder: replace_by_folder(folder / RECORD),
    "array a folder": lambda folder: replace_by_folder(folder / "numbers"),
    "array a link to itself": lambda folder: replace_by_link(folder / "numbers", "numbers"),
    "lock a folder": lambda folder: (
        remove(folder),
        replace_by_folder(folder.with_name("a.lock")),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_removes_or_replaces_is_made_again(cache: ArrayCache, change: str) -> None:
    entry = put(cache, "features/a", 3)
    CHANGES[change](entry.folder)
    if change.endswith("removed"):
        assert value_of(entry) == 3  # its users are not affected
    for _ in range(2):
        assert value_of(put(cache, "features/a", 3)) == 3
    assert not list(entry.folder.parent.glob("*.tmp-*"))


@pytest.mark.parametrize("part", ["all", "array", "folder", "lock"])
def test_what_is_removed_while_it_is_made_is_made_again(cache: ArrayCache, part: str) -> None:
    removed = []

    def make(writer: EntryWriter) -> dict[str, Any]:
        record = numbers(7)(writer)
        if not removed:
            (temporary,) = (cache.folder / "features").glob("a.tmp-*")
            removed.append(temporary)
            if part == "array":
                (temporary / "numbers").unlink()
            elif part == "lock":  # and another process makes the same meanwhile
                (cache.folder / "features" / "a.lock").unlink()
                put(ArrayCache(cache.folder, cache.limit_bytes), "features/a", 7)
            else:
                shutil.rmtree(cache.folder if part == "all" else temporary)
        return record

    entry = cache.get_or_create("features/a", make, SIZE)
    assert removed and value_of(entry) == 7
    assert names(cache.folder / "features") == {"a"}


def test_a_cache_that_is_emptied_all_the_time(
    cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_cache, "_PAUSES_S", (0.0, 0.0))

    def make(writer: EntryWriter) -> dict[str, Any]:
        record = numbers(7)(writer)
        shutil.rmtree(cache.folder)
        return record

    with pytest.raises(CacheError, match="removed again and again") as caught:
        cache.get_or_create("a", make, SIZE)
    assert classify(caught.value, torch.device("cpu")) == FailureKind.TRANSIENT
    elsewhere = cache.folder.parent / "x"
    with pytest.raises(FileNotFoundError):  # a missing file of somebody else is not the cache's
        cache.get_or_create("a", lambda writer: {"is": elsewhere.read_text()}, SIZE)
