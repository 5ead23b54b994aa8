from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.data.cache import array_cache
from autotune.data.cache import entry as entry_module
from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import RECORD, Entry, EntryWriter
from autotune.errors import CacheError, DiskFullError, UserError
from autotune.study.state.failures import FailureKind, classify

#: a real process, made quickly; the parent has the same modules
FORK = multiprocessing.get_context("fork")
SIZE = 4000


def numbers(value: int, size: int = SIZE) -> Callable[[EntryWriter], dict[str, Any]]:
    """Make an entry of one array of bytes."""

    def make(writer: EntryWriter) -> dict[str, Any]:
        rows = np.full((4, size // 4), value, np.uint8)
        writer.array("numbers", np.uint8, (size // 4,)).append(rows)
        return {"value": value}

    return make


def never(writer: EntryWriter) -> dict[str, Any]:
    raise AssertionError("it exists")


def put(cache: ArrayCache, key: str, value: int = 1, size: int = SIZE) -> Entry:
    return cache.get_or_create(key, numbers(value, size), size)


def value_of(entry: Entry) -> int:
    return int(entry.array("numbers")[0, 0])


def age(cache: ArrayCache, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.folder / key / RECORD, (then, then))


def names(folder: Path) -> set[str]:
    """Return the names in a folder without locks."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def start(work: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=work, args=(sender,))
    process.start()
    return process, receiver


def start_hanging(cache: ArrayCache, key: str, needed: int = SIZE) -> BaseProcess:
    """Start a process that has half of an entry, and gets no further."""

    def work(ready: Connection) -> None:
        def hang(writer: EntryWriter) -> dict[str, Any]:
            numbers(1)(writer)
            writer.finish()
            ready.send("started")
            time.sleep(60)
            return {}

        cache.get_or_create(key, hang, needed)

    process, receiver = start(work)
    assert receiver.poll(20)
    return process


def kill(process: BaseProcess) -> None:
    process.kill()  # does nothing to a process that has ended
    process.join()


def test_arrays_are_made_once_and_mapped(cache: ArrayCache) -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (5, 2, 3), dtype=np.uint8)
    second = generator.random((5, 7)).astype(np.float16)

    def make(writer: EntryWriter) -> dict[str, Any]:
        a, b = writer.array("a", "u1", (2, 3)), writer.array("b", np.float16, (7,))
        for rows in (slice(0, 2), slice(2, 2), slice(2, 5)):
            a.append(first[rows])
            b.append(second[rows][:, ::-1])
        writer.array("none", "i8", ())
        return {"dtype": "bfloat16", "sizes": [1, 2]}

    for _ in range(2):
        entry = cache.get_or_create("features/one", make, 1000)
        assert isinstance(entry.array("a"), np.memmap)
        assert np.array_equal(entry.array("a"), first)
        assert np.array_equal(entry.array("b"), second[:, ::-1])
        assert entry.array("none").shape == (0,)
        assert (entry.record["dtype"], entry.record["sizes"]) == ("bfloat16", [1, 2])
        assert not entry.array("a").flags.writeable
        make = never
    with pytest.raises(KeyError):
        entry.array("c")
    assert names(cache.folder / "features") == {"one"}


def test_the_record_is_readable(cache: ArrayCache) -> None:
    record = json.loads((put(cache, "a").folder / RECORD).read_text())
    crc = zlib.crc32(bytes([1]) * SIZE)
    assert record["value"] == 1
    assert record["arrays"]["numbers"] == {"dtype": "|u1", "shape": [4, 1000], "crc32": crc}


def test_an_entry_is_pickled_by_its_path(cache: ArrayCache) -> None:
    entry = put(cache, "a", 7)
    data = pickle.dumps(entry)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert isinstance(copy.array("numbers"), np.memmap)
    assert (copy.record, value_of(copy)) == (entry.record, 7)
    shutil.rmtree(entry.folder)
    with pytest.raises(CacheError, match="was removed") as caught:
        pickle.loads(data)
    assert classify(caught.value, torch.device("cpu")) == FailureKind.TRANSIENT


def test_keys(cache: ArrayCache) -> None:
    assert cache.keys() == []
    for key in ("images", "features/b/2", "features/b/1", "features/a/1"):
        assert cache.get(key) is None
        put(cache, key)
    assert cache.keys() == ["features/a/1", "features/b/1", "features/b/2", "images"]
    assert cache.keys("features/b") == ["features/b/1", "features/b/2"]
    assert cache.keys("nothing") == []
    entry = cache.get("images")
    assert entry is not None and entry.folder == cache.folder / "images"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", ".room", "a.tmp-1"])
def test_keys_that_lead_elsewhere_are_refused(cache: ArrayCache, key: str) -> None:
    with pytest.raises(ValueError, match="a key is folder names"):
        cache.get(key)


@pytest.mark.parametrize("name", ["", "..", "a/b", RECORD, "needed", "twice"])
def test_names_of_arrays_are_file_names(cache: ArrayCache, name: str) -> None:
    def make(writer: EntryWriter) -> dict[str, Any]:
        writer.array("twice", "u1", ())
        writer.array(name, "u1", ())
        return {}

    with pytest.raises(ValueError, match="its own file name"):
        cache.get_or_create("a", make, 0)
    assert not cache.folder.parent.exists()


@pytest.mark.parametrize("rows", [np.zeros((2, 3), np.uint16), np.zeros((2, 4), np.uint8)])
def test_rows_of_another_kind_are_refused(cache: ArrayCache, rows: np.ndarray) -> None:
    def make(writer: EntryWriter) -> dict[str, Any]:
        writer.array("a", "u1", (3,)).append(rows)
        return {}

    with pytest.raises(ValueError, match=r"rows must be uint8 of shape \(3,\), but got uint"):
        cache.get_or_create("a", make, 0)


class TestDamage:
    @pytest.mark.parametrize("name", ["numbers", RECORD])
    @pytest.mark.parametrize("damage", ["cut", "empty", "removed"])
    def test_a_damaged_entry_is_made_again(
        self, cache: ArrayCache, caplog: pytest.LogCaptureFixture, name: str, damage: str
    ) -> None:
        path = put(cache, "a", 3).folder / name
        if damage == "removed":
            path.unlink()
        else:
            os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 7)
        assert cache.get("a") is None
        assert caplog.text == ""
        assert value_of(put(cache, "a", 4)) == 4
        (record,) = caplog.records
        assert record.getMessage().startswith(f"the arrays in {cache.folder}/a are damaged (")
        assert names(cache.folder) == {"a"}

    @pytest.mark.parametrize(
        "record", ["[]", "{}", "null", '{"arrays": [1]}', '{"arrays": {"numbers": 3}}', "\xff"]
    )
    def test_a_record_of_another_shape(self, cache: ArrayCache, record: str) -> None:
        (put(cache, "a").folder / RECORD).write_text(record, encoding="latin-1")
        assert value_of(put(cache, "a", 4)) == 4

    def test_a_flipped_bit_is_found(self, cache: ArrayCache) -> None:
        before = put(cache, "a", 3)
        for name in (RECORD, "numbers"):
            path = before.folder / name
            content = path.read_bytes()
            for bit in range(0, min(8 * len(content), 900), 7):
                changed = bytearray(content)
                changed[bit // 8] ^= 1 << bit % 8
                path.write_bytes(changed)
                entry = cache.get("a")
                if entry is not None:  # a flip without effect, as in the name of the checksum
                    assert name == RECORD
                    assert {key: entry.record[key] for key in before.record} == before.record
                    assert np.array_equal(entry.array("numbers"), before.array("numbers"))
                path.write_bytes(content)
            assert cache.get("a") is not None

    def test_changed_content_is_found_after_the_next_start_of_the_machine(
        self,
        cache: ArrayCache,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def boot(name: str) -> None:
            monkeypatch.setattr(entry_module, "boot_id", lambda: name)

        boot("monday")
        path = put(cache, "a", 3).folder / "numbers"
        boot("tuesday")
        assert cache.get("a") is not None
        assert (path.parent / "checked-tuesday").exists()
        written = path.stat().st_mtime_ns
        with path.open("r+b") as stream:
            stream.seek(1000)
            stream.write(bytes(512))
        os.utime(path, ns=(written, written))  # as if the disk had done it
        assert cache.get("a") is not None  # read once: it may be larger than the memory
        boot("wednesday")
        assert cache.get("a") is None
        assert value_of(put(cache, "a", 4)) == 4
        assert "numbers does not have the checksum in record.json" in caplog.text

    def test_too_many_open_files_are_no_damage(self, cache: ArrayCache) -> None:
        put(cache, "a")

        def work(result: Connection) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with suppress(OSError):
                while True:
                    os.dup(0)
            try:
                cache.get_or_create("a", never, SIZE)
            except OSError as error:
                result.send(error.errno)

        process, receiver = start(work)
        assert receiver.poll(20)
        assert receiver.recv() == errno.EMFILE
        process.join()
        assert cache.get_or_create("a", never, SIZE)


class TestMakers:
    def test_one_of_three_processes_makes_it_and_two_wait(
        self, cache: ArrayCache, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"

        def slowly(writer: EntryWriter) -> dict[str, Any]:
            with log.open("a") as stream:
                stream.write("x")
            time.sleep(0.5)
            return numbers(5)(writer)

        def work(result: Connection) -> None:
            entry = cache.get_or_create("a", slowly, SIZE)
            result.send(entry.array("numbers").tobytes())

        started = [start(work) for _ in range(3)]
        results = {receiver.recv() for _, receiver in started if receiver.poll(30)}
        for process, _ in started:
            process.join()
        assert results == {bytes([5]) * SIZE}
        assert log.read_text() == "x"
        assert names(cache.folder) == {"a"}

    def test_a_long_wait_is_logged(
        self, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(array_cache, "WAIT_SHOWN_S", 0.1)

        def work(ready: Connection) -> None:
            def slowly(writer: EntryWriter) -> dict[str, Any]:
                ready.send("started")
                time.sleep(0.5)
                return numbers(5)(writer)

            cache.get_or_create("a", slowly, SIZE)

        process, receiver = start(work)
        assert receiver.poll(20)
        cache.get_or_create("a", never, SIZE, "features")
        process.join()
        lock = cache.folder / "a.lock"
        assert caplog.messages == [f"another process makes features; waiting for it ({lock})"]

    def test_a_killed_maker_leaves_nothing_that_counts(self, cache: ArrayCache) -> None:
        kill(start_hanging(cache, "a"))
        kill(start_hanging(cache, "b/c"))
        (remainder,) = names(cache.folder / "b")
        assert ".tmp-" in remainder
        assert cache.keys() == []
        assert names(cache.folder) == {"b"}  # listing removes remainders
        assert names(cache.folder / "b") == set()
        assert value_of(put(cache, "a", 4)) == 4

    def test_a_pending_entry_counts_and_stays(self, cache: ArrayCache) -> None:
        cache = ArrayCache(cache.folder, 3 * SIZE)
        process = start_hanging(cache, "a", needed=2 * SIZE)
        with pytest.raises(DiskFullError):
            put(cache, "b", size=2 * SIZE)
        assert put(cache, "c", size=SIZE // 2)
        assert len(names(cache.folder)) == 2
        kill(process)
        assert put(cache, "b", size=2 * SIZE)
        assert names(cache.folder) == {"b", "c"}

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no"), ValueError("no")])
    def test_a_failed_maker_leaves_no_trace(self, cache: ArrayCache, error: BaseException) -> None:
        def fail(writer: EntryWriter) -> dict[str, Any]:
            numbers(1)(writer)
            raise error

        with pytest.raises(type(error)):
            cache.get_or_create("features/a", fail, SIZE)
        assert not cache.folder.parent.exists()

    def test_a_folder_that_cannot_be_made(self, cache: ArrayCache) -> None:
        cache.folder.parent.write_text("")
        with pytest.raises(UserError) as caught:
            cache.get_or_create("a", never, SIZE, "features")
        assert str(caught.value) == (
            f"features are stored in a folder that can be written, but {cache.folder}: Not a "
            "directory; name another one with 'files='"
        )


class TestRoom:
    def test_the_entry_unused_for_longest_is_dropped_first(
        self, cache: ArrayCache, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        cache = ArrayCache(cache.folder, 4 * SIZE)
        for number, key in enumerate("abc"):
            put(cache, key)
            age(cache, key, 100 - number)
        assert cache.get("a") is not None  # marks it as used
        put(cache, "d")
        assert cache.keys() == ["a", "c", "d"]
        assert f"{cache.folder}/b: dropped to make room (" in caplog.text
        put(cache, "e", size=2 * SIZE)
        assert cache.keys() == ["d", "e"]
        assert not [path for path in cache.folder.iterdir() if "b" in path.name]

    def test_more_than_the_limit_drops_nothing(self, cache: ArrayCache) -> None:
        put(cache, "a")
        small = ArrayCache(cache.folder, 2 * SIZE)
        with pytest.raises(DiskFullError) as caught:
            small.get_or_create("b", never, 3 * SIZE, "features")
        assert str(caught.value) == (
            f"features need 12 kB, but everything in {cache.folder} may take 8.0 kB, of which "
            "0 bytes are in use; raise cache.disk_gb, or move the files of the study with "
            "'files='"
        )
        assert cache.keys() == ["a"]

    def test_an_entry_of_which_another_process_uses_a_part_stays(self, cache: ArrayCache) -> None:
        cache = ArrayCache(cache.folder, 2 * SIZE + 1000)

        def work(ready: Connection) -> None:
            rows = put(cache, "a").array("numbers")[2:3]
            ready.send("mapped")
            time.sleep(60)
            print(rows)

        process, receiver = start(work)
        assert receiver.poll(20)
        age(cache, "a", 100)
        put(cache, "b")
        put(cache, "c")
        assert cache.keys() == ["a", "c"]
        with pytest.raises(DiskFullError):
            put(cache, "d", size=2 * SIZE)
        assert cache.keys() == ["a", "c"]
        kill(process)
        put(cache, "d", size=2 * SIZE)
        assert cache.keys() == ["d"]

    def test_this_process_uses_it_as_long_as_its_array_lives(self, cache: ArrayCache) -> None:
        cache = ArrayCache(cache.folder, SIZE + 1000)
        rows = put(cache, "a").array("numbers")[1]
        with pytest.raises(DiskFullError):
            put(cache, "b")
        del rows
        assert put(cache, "b")
        assert cache.keys() == ["b"]

    def test_without_file_locks_nothing_is_dropped(
        self, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = ArrayCache(cache.folder, SIZE + 1000)
        flock = fcntl.flock

        def refuse(file: Any, kind: int) -> None:
            if not isinstance(file, int):  # of entries; filelock passes descriptors
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            flock(file, kind)

        monkeypatch.setattr(fcntl, "flock", refuse)
        put(cache, "a")
        with pytest.raises(DiskFullError):
            put(cache, "b")
        assert cache.keys() == ["a"]

    def test_the_default_limit_is_half_of_the_disk(
        self, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = ArrayCache(cache.folder)
        put(cache, "a")
        taken = sum(path.stat().st_size for path in (cache.folder / "a").iterdir())
        usage = shutil.disk_usage(cache.folder)._replace(free=10 * taken)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        cache.get_or_create("b", numbers(1, 4), 4 * taken)
        assert cache.keys() == ["a", "b"]
        cache.get_or_create("c", numbers(1, 4), 5 * taken)
        assert cache.get("a") is None
        with pytest.raises(DiskFullError, match=r"raise cache\.disk_gb"):
            cache.get_or_create("d", never, 6 * taken)
