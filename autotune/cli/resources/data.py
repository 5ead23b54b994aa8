"""``autotune data``: what is known of images, and data sets that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.resources.data_info import info
from autotune.display.console import console
from autotune.display.download_progress import bar

if TYPE_CHECKING:
    from autotune.data.sources.registry import Kept

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
    """Fetch, check and unpack a data set; what has come before is gone on with."""
    kept = _kept(name)
    shown = console()
    if kept.ready:
        shown.print(f"{name} is there: {kept.place.whole}", highlight=False, soft_wrap=True)
        return
    shown.print(kept.about, highlight=False, soft_wrap=True)
    with bar(shown) as progress:
        kept.fetch(progress)
    shown.print(f"{name} is there: {kept.place.whole}", highlight=False, soft_wrap=True)


@app.command("verify")
def verify(name: NameArgument) -> None:
    """Compare the archives and images of a data set with their checksums."""
    from autotune.errors import DatasetError

    kept = _kept(name)
    shown = console()
    with bar(shown) as progress:
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
    what = "whole" if kept.ready else "fetched, not unpacked yet"
    shown.print(f"{name} is {what}: {kept.place.root}", highlight=False, soft_wrap=True)


@app.command("path")
def path(name: NameArgument) -> None:
    """Print the folder of a data set, into which its archives may be put by hand."""
    typer.echo(_kept(name).place.root)


def _kept(name: str) -> Kept:
    """Find a data set that is fetched.

    Raises:
        DatasetError: When there is none of that name.
    """
    from autotune.data.sources.registry import kept_of, known_names
    from autotune.errors import DatasetError, did_you_mean, join_sentences

    kept = kept_of(name)
    if kept is None:
        names = [one for one in known_names() if kept_of(one) is not None]
        raise DatasetError(
            join_sentences(
                f"the data sets that can be fetched are {', '.join(names)}, but got {name!r}",
                did_you_mean(name, names),
            )
        )
    return kept
