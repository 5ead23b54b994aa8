"""``autotune data``: what is known of images, and data sets that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.resources.data_info import info
from autotune.display.console import console
from autotune.display.download_progress import download_progress

if TYPE_CHECKING:
    from autotune.data.download.downloadable import Downloadable

app = typer.Typer(
    help="Look at images; fetch and check data sets that are known by name.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("info")(info)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Such as dogs, caltech101, flowers102.")
]


@app.command("fetch")
def fetch(name: NameArgument) -> None:
    """Fetch, verify and unpack a dataset; an interrupted download is resumed."""
    kept = _kept(name)
    shown = console()
    if kept.is_downloaded:
        shown.print(f"{name} is there: {kept.paths.final}", highlight=False, soft_wrap=True)
        return
    shown.print(kept.description, highlight=False, soft_wrap=True)
    with download_progress(shown) as progress:
        kept.fetch(progress)
    shown.print(f"{name} is there: {kept.paths.final}", highlight=False, soft_wrap=True)


@app.command("verify")
def verify(name: NameArgument) -> None:
    """Compare the archives and images of a data set with their checksums."""
    from autotune.errors import DatasetError

    kept = _kept(name)
    shown = console()
    with download_progress(shown) as progress:
        wrong = kept.verify(progress)
    if wrong:
        more = [f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        raise DatasetError(
            "\n  ".join(
                [
                    f"{name!r} is not as it was published; remove what is wrong, and 'autotune "
                    f"data fetch {name}' brings it again",
                    *wrong[:20],
                    *more,
                ]
            )
        )
    what = "whole" if kept.is_downloaded else "fetched, not unpacked yet"
    shown.print(f"{name} is {what}: {kept.paths.root}", highlight=False, soft_wrap=True)


@app.command("path")
def path(name: NameArgument) -> None:
    """Print the folder of a data set, into which its archives may be put by hand."""
    typer.echo(_kept(name).paths.root)


def _kept(name: str) -> Downloadable:
    """Find a data set that is fetched.

    Raises:
        DatasetError: When there is none of that name.
    """
    from autotune.data.sources.registry import dataset_names, downloadable
    from autotune.errors import DatasetError, did_you_mean, join_sentences

    kept = downloadable(name)
    if kept is None:
        names = [one for one in dataset_names() if downloadable(one) is not None]
        raise DatasetError(
            join_sentences(
                f"the data sets that can be fetched are {', '.join(names)}, but got {name!r}",
                did_you_mean(name, names),
            )
        )
    return kept
