from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.http import (
    ArchiveSpec,
    RetryPolicy,
    archive_urls,
    download_archive,
)
from autotune.data.download.paths import DatasetPaths, data_folder
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.published.stanford_dogs import read_dogs
from autotune.errors import DatasetError, InsufficientSpaceError, UserError
from tests.support.commands.serving import Publisher, running_publisher
from tests.support.data.archives import dogs_archives, sums_of, tar_bytes

FORK = multiprocessing.get_context("fork")
HASTY = RetryPolicy(tries=2, pause_s=0.01, timeout_s=0.5)
CONTENT = os.urandom(1_000_000)

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with running_publisher() as running:
        yield running


@pytest.fixture
def mirror() -> Iterator[Publisher]:
    with running_publisher() as running:
        yield running


@pytest.fixture
def paths(home: Path) -> DatasetPaths:
    (home / "set").mkdir(parents=True)
    return DatasetPaths(home / "set")


def download(
    paths: DatasetPaths,
    *urls: str,
    content: bytes = CONTENT,
    known: bool = True,
    progress: ProgressCallback = no_progress,
) -> bytes:
    """Download ``a.tar`` from some sources, with or without a known checksum and size."""
    digest = hashlib.sha256(content).hexdigest() if known else None
    spec = ArchiveSpec("a.tar", urls, digest, len(content) if known else None, "images")
    download_archive(spec, urls, paths, progress, HASTY)
    return paths.archive("a.tar").read_bytes()


class Steps(list[str]):
    """Records the steps of a progress, each once."""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if step not in self:
            self.append(step)


class TestDownload:
    def test_a_file(self, publisher: Publisher, paths: DatasetPaths) -> None:
        publisher.files["/a.tar"] = CONTENT
        seen: list[tuple[str, int, int | None]] = []
        url = f"{publisher.url}/a.tar"
        assert download(paths, url, progress=lambda *step: seen.append(step)) == CONTENT
        assert ("fetching a.tar", len(CONTENT), len(CONTENT)) in seen
        assert seen[-1] == ("checking a.tar", len(CONTENT), len(CONTENT))
        assert os.listdir(paths.root) == ["a.tar"]

    def test_an_interrupted_download_is_resumed(
        self, publisher: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        publisher.failures["/a.tar"] = ["cut:300000", 503, "cut:200000"]
        assert download(paths, f"{publisher.url}/a.tar") == CONTENT
        ranges = ["", " bytes=300000-", " bytes=300000-", " bytes=500000-"]
        assert publisher.requests == [f"/a.tar{text}" for text in ranges]
        assert publisher.conditions[1:] == [publisher.conditions[1]] * 3
        assert publisher.conditions[1] is not None

    def test_another_mirror_resumes_it(
        self, publisher: Publisher, mirror: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = mirror.files["/b.tar"] = CONTENT
        publisher.failures["/a.tar"] = ["cut:300000", 503, 503]
        steps = Steps()
        urls = (f"{publisher.url}/a.tar", f"{mirror.url}/b.tar")
        assert download(paths, *urls, progress=steps) == CONTENT
        assert (mirror.requests, mirror.conditions) == (["/b.tar bytes=300000-"], [None])
        host = publisher.url.removeprefix("http://")
        assert f"a.tar: {host}: HTTP 503 Service Unavailable" in steps

    def test_a_file_without_checksum_is_no_mixture_of_two(
        self, publisher: Publisher, mirror: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        mirror.files["/a.tar"] = CONTENT[::-1]
        publisher.failures["/a.tar"] = ["cut:300000", 404]
        urls = (f"{publisher.url}/a.tar", f"{mirror.url}/a.tar")
        assert download(paths, *urls, known=False) == CONTENT[::-1]
        assert mirror.requests == ["/a.tar"]

    def test_a_file_that_changes_meanwhile_is_begun_anew(
        self, publisher: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = b"old" * 300_000
        publisher.failures["/a.tar"] = ["cut:300000", 404]
        with pytest.raises(DatasetError):
            download(paths, f"{publisher.url}/a.tar", known=False)
        publisher.files["/a.tar"] = CONTENT
        assert download(paths, f"{publisher.url}/a.tar", known=False) == CONTENT

    def test_a_server_without_ranges(self, publisher: Publisher, paths: DatasetPaths) -> None:
        publisher.files["/a.tar"] = CONTENT
        publisher.ranges = False
        publisher.failures["/a.tar"] = ["cut:300000"]
        assert download(paths, f"{publisher.url}/a.tar") == CONTENT

    @pytest.mark.parametrize("wrong", [None, CONTENT[::-1]])
    def test_404_or_a_wrong_checksum_then_the_mirror(
        self,
        publisher: Publisher,
        mirror: Publisher,
        paths: DatasetPaths,
        wrong: bytes | None,
    ) -> None:
        mirror.files["/a.tar"] = CONTENT
        publisher.files.update({"/a.tar": wrong} if wrong else {})
        assert download(paths, f"{publisher.url}/a.tar", f"{mirror.url}/a.tar") == CONTENT
        assert publisher.requests == mirror.requests == ["/a.tar"]

    def test_a_damaged_beginning_is_begun_anew(
        self, publisher: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        paths.partial("a.tar").write_bytes(b"x" * 300_000)
        assert download(paths, f"{publisher.url}/a.tar") == CONTENT
        assert publisher.requests == ["/a.tar bytes=300000-", "/a.tar"]

    @pytest.mark.parametrize("known", [True, False])
    def test_a_complete_partial_file(
        self, known: bool, publisher: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        url = f"{publisher.url}/a.tar"
        paths.partial("a.tar").write_bytes(CONTENT)
        paths.origin("a.tar").write_text(f'{{"url": "{url}", "validator": ""}}')
        assert download(paths, url, known=known) == CONTENT
        assert publisher.requests == ([] if known else [f"/a.tar bytes={len(CONTENT)}-"])

    def test_no_source_has_it(
        self, publisher: Publisher, mirror: Publisher, paths: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = b"<html>moved</html>"
        with running_publisher() as stopped:
            pass
        urls = [f"{server.url}/a.tar" for server in (publisher, mirror, stopped)]
        with pytest.raises(DatasetError) as refusal:
            download(paths, *urls)
        message = str(refusal.value)
        assert "its file has 18 bytes and the published one 1000000" in message
        assert "HTTP 404 Not Found" in message
        assert stopped.url.removeprefix("http://") in message
        assert f"get {urls[0]} by hand and put it into {paths.root}" in message
        assert "\n" not in message
        assert os.listdir(paths.root) == []

    def test_a_server_without_an_answer(self, publisher: Publisher, paths: DatasetPaths) -> None:
        publisher.files["/a.tar"] = CONTENT
        publisher.failures["/a.tar"] = ["hang", "hang"]
        with pytest.raises(DatasetError, match="it does not answer in time"):
            download(paths, f"{publisher.url}/a.tar")

    def test_a_disk_that_is_too_small(self, publisher: Publisher, small_disk: Path) -> None:
        publisher.files["/a.tar"] = CONTENT * 2
        paths = DatasetPaths(small_disk / "set")
        paths.root.mkdir()
        with pytest.raises(InsufficientSpaceError, match=r"needs 2\.0 MB more.*AUTOTUNE_DATA"):
            download(paths, f"{publisher.url}/a.tar", content=CONTENT * 2)

    def test_a_disk_that_fills_up_meanwhile(self, publisher: Publisher, small_disk: Path) -> None:
        content = publisher.files["/a.tar"] = CONTENT[:900_000]
        paths, other = DatasetPaths(small_disk / "set"), small_disk / "other"
        paths.root.mkdir()

        def fill(step: str, done: int, total: int | None) -> None:
            if not other.exists():
                other.write_bytes(b"x" * 400_000)

        with pytest.raises(OSError, match="No space left"):
            download(paths, f"{publisher.url}/a.tar", content=content, progress=fill)
        other.unlink()
        assert download(paths, f"{publisher.url}/a.tar", content=content) == content
        assert publisher.requests[1].startswith("/a.tar bytes=")


def dogs(
    archives: dict[str, bytes], *urls: str, images: int = 15, classes: int = 3
) -> ArchivedDataset:
    """Return small Stanford Dogs, published with these archives."""
    published = tuple(
        ArchiveSpec(
            name,
            tuple(f"{url}/{name}" for url in urls),
            hashlib.sha256(content).hexdigest(),
            len(content),
            name.removesuffix(".tar"),
        )
        for name, content in archives.items()
    )
    return ArchivedDataset(
        *("dogs", "Stanford Dogs", "http://127.0.0.1/", "for tests", published),
        images=images,
        classes=classes,
        read=read_dogs,
        retry=HASTY,
    )


def serve(publisher: Publisher, archives: dict[str, bytes]) -> None:
    publisher.files.update({f"/{name}": content for name, content in archives.items()})


def put(folder: Path, archives: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in archives.items():
        (folder / name).write_bytes(content)


def listing(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith(".lock"))


@pytest.fixture(scope="module")
def small_dogs() -> dict[str, bytes]:
    return dogs_archives()


class TestArchivedDataset:
    def test_from_nothing_to_images(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        dataset = dogs(small_dogs, publisher.url)
        for read in (dataset.verify, dataset.folder):
            with pytest.raises(DatasetError, match="not downloaded yet; 'autotune data fetch"):
                read()
        steps = Steps()
        dataset.fetch(steps)
        assert steps[:2] == ["fetching images.tar", "checking images.tar"]
        assert "unpacking images.tar" in steps
        source = read_dogs(dataset.folder())
        assert source.classes == ("Breed 001", "Breed 002", "Chihuahua")
        assert [sample.split for sample in source.samples].count("test") == 6
        assert source.samples[0].key == "n02085620-Chihuahua/n02085620_0.jpg"
        assert source.read(source.samples[0]).size == (24, 24)
        assert listing(home / "dogs") == ["images.tar", "lists.tar", "unpacked"]
        assert dataset.verify() == []
        publisher.requests.clear()
        (home / "dogs/.lock").unlink(missing_ok=True)
        before = sorted(home.rglob("*"))
        dataset.fetch()
        assert publisher.requests == []
        assert sorted(home.rglob("*")) == before  # a folder that may only be read is enough

    def test_archives_that_the_user_put_there(
        self, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        put(home / "dogs", small_dogs)
        (home / "dogs/.unpacked.part/images/rest").mkdir(parents=True)  # of a killed process
        dataset = dogs(small_dogs)
        dataset.fetch()
        assert dataset.is_downloaded
        assert dataset.verify() == []

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (slice(5000), "has 5000 bytes, but the published file has"),
            (slice(None, None, -1), "is not the published file (SHA-256 "),
        ],
    )
    def test_a_damaged_archive_of_the_user_stays(
        self, damage: slice, message: str, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        put(home / "dogs", {**small_dogs, "images.tar": small_dogs["images.tar"][damage]})
        dataset = dogs(small_dogs, "http://127.0.0.1:9")
        with pytest.raises(DatasetError) as refusal:
            dataset.fetch()
        assert message in str(refusal.value)
        assert "get http://127.0.0.1:9/images.tar by hand" in str(refusal.value)
        assert listing(home / "dogs") == ["images.tar", "lists.tar"]
        assert any("images.tar" in line for line in dataset.verify())

    def test_archives_that_replace_the_published_ones(
        self, small_dogs: dict[str, bytes], publisher: Publisher, home: Path
    ) -> None:
        other = dogs_archives(breeds=2)
        serve(publisher, other)
        dataset = dogs(small_dogs, publisher.url)
        put(home / "dogs", {"SHA256SUMS": sums_of(other).encode()})
        dataset.fetch()
        assert len(read_dogs(dataset.folder()).classes) == 2
        for sums, message in (
            ("images.tar", "line 1 is not"),
            (sums_of({"images.tar": b""}), r"has none for lists\.tar"),
        ):
            (home / "dogs/SHA256SUMS").write_text(sums)
            with pytest.raises(DatasetError, match=message):
                dataset.verify()

    @pytest.mark.parametrize(
        ("archives", "images", "message"),
        [
            ({}, 20580, r"has 20580 images of 3 classes, but the archives in .* have 15 of 3"),
            (
                {"lists.tar": tar_bytes({"train_list.mat": b"no list", "test_list.mat": b""})},
                15,
                "must be a list of Stanford Dogs in MATLAB's",
            ),
            ({"images.tar": tar_bytes({"../../x": b"x"})}, 15, "be written outside of the folder"),
        ],
    )
    def test_archives_with_the_right_checksum_and_wrong_content(
        self,
        archives: dict[str, bytes],
        images: int,
        message: str,
        publisher: Publisher,
        small_dogs: dict[str, bytes],
        home: Path,
    ) -> None:
        archives = {**small_dogs, **archives}
        serve(publisher, archives)
        with pytest.raises(DatasetError, match=message):
            dogs(archives, publisher.url, images=images).fetch()
        assert listing(home / "dogs") == ["images.tar", "lists.tar"]
        assert listing(home) == ["dogs"]

    def test_missing_and_changed_files(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        dataset = dogs(small_dogs, publisher.url)
        dataset.fetch()
        folder = home / "dogs/unpacked/images/Images/n02085620-Chihuahua"
        (folder / "n02085620_1.jpg").write_bytes(b"x")
        (folder / "n02085620_2.jpg").unlink()
        (folder / "new.jpg").touch()
        assert [line.partition("Chihuahua/")[2] for line in dataset.verify()] == [
            "n02085620_1.jpg has changed",
            "n02085620_2.jpg: No such file or directory",
            "new.jpg does not belong to it",
        ]
        with pytest.raises(DatasetError, match=r"1 file is missing in .*'autotune data fetch do"):
            dataset.folder()

    def test_two_processes_at_once(
        self, publisher: Publisher, small_dogs: dict[str, bytes], tmp_path: Path
    ) -> None:
        serve(publisher, small_dogs)
        publisher.gate.clear()
        dataset = replace(dogs(small_dogs, publisher.url), retry=RetryPolicy())
        logs = [tmp_path / "log1", tmp_path / "log2"]

        def fetch(log: Path) -> None:
            steps = Steps()
            dataset.fetch(steps)
            log.write_text("\n".join(steps))

        first, second = (FORK.Process(target=fetch, args=(log,)) for log in logs)
        first.start()
        deadline = time.monotonic() + 20
        while not publisher.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        second.start()
        threading.Timer(0.7, publisher.gate.set).start()
        first.join(30)
        second.join(30)
        assert (first.exitcode, second.exitcode) == (0, 0)
        assert dataset.verify() == []
        assert sorted(publisher.requests) == ["/images.tar", "/lists.tar"]
        assert logs[1].read_text() == "waiting for the process that fetches dogs"

    def test_a_folder_that_cannot_be_written(self, home: Path) -> None:
        home.write_text("a file")
        with pytest.raises(DatasetError, match=r"must be a folder that can be written .*AUTOTUNE"):
            dogs({}).fetch()


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_DATA", "~/sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / "sets"
    monkeypatch.delenv("AUTOTUNE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert data_folder() == Path("/scratch/cache/autotune/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert data_folder() == tmp_path / ".cache/autotune/data"


def test_mirrors_are_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ArchiveSpec("a.tar", ("https://publisher/a.tar",), None, None, "images")
    monkeypatch.setenv("AUTOTUNE_MIRROR", "http://here/data/ https://there")
    assert archive_urls("dogs", spec) == (
        "http://here/data/dogs/a.tar",
        "https://there/dogs/a.tar",
        "https://publisher/a.tar",
    )
    monkeypatch.setenv("AUTOTUNE_MIRROR", "/mnt/data")
    with pytest.raises(UserError, match=r"must be addresses that start with http.* '/mnt/data'"):
        archive_urls("dogs", spec)
