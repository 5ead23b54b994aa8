"""``autotune data``: inspect images; fetch and check registered datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.resources.data_info import info
from autotune.display import console
from autotune.display.download_progress import download_progress
from autotune.errors import DatasetError, did_you_mean, join_sentences
from autotune.text import join_some

if TYPE_CHECKING:
    from autotune.data.download.downloadable import Downloadable

app = console.verb_group("Inspect images; fetch and check registered datasets.")
app.command("info")(info)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Such as dogs, caltech101, flowers102.")
]


@app.command("fetch")
def fetch(name: NameArgument) -> None:
    """Fetch, verify and unpack a dataset; an interrupted download is resumed."""
    dataset = _downloadable(name)
    stdout = console.stdout()
    if not dataset.is_downloaded:
        stdout.print(dataset.description, soft_wrap=True)
        with download_progress(stdout) as on_progress:
            dataset.fetch(on_progress)
    stdout.print(f"{name} is downloaded: {dataset.paths.final}", soft_wrap=True)


@app.command("verify")
def verify(name: NameArgument) -> None:
    """Compare the archives and images of a dataset with their checksums."""
    dataset = _downloadable(name)
    stdout = console.stdout()
    with download_progress(stdout) as on_progress:
        problems = dataset.verify(on_progress)
    if problems:
        files = join_some(problems, separator="\n  ")
        raise DatasetError(
            f"{name!r} differs from what was published; remove the files below, and 'autotune "
            f"data fetch {name}' downloads them again\n  {files}"
        )
    state = "complete" if dataset.is_downloaded else "downloaded, not unpacked yet"
    stdout.print(f"{name} is {state}: {dataset.paths.root}", soft_wrap=True)


@app.command("path")
def path(name: NameArgument) -> None:
    """Print the folder of a dataset, into which its archives may be put by hand."""
    typer.echo(_downloadable(name).paths.root)


def _downloadable(name: str) -> Downloadable:
    from autotune.data.sources.registry import dataset_names, downloadable

    if dataset := downloadable(name):
        return dataset
    names = [key for key in dataset_names() if downloadable(key) is not None]
    raise DatasetError(
        join_sentences(
            f"the datasets that can be fetched are {', '.join(names)}, but got {name!r}",
            did_you_mean(name, names),
        )
    )
