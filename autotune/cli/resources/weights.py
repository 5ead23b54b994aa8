"""``autotune weights``: pretrained weights before a study needs them."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.display import console

app = console.verb_group("Fetch pretrained weights.")


@app.callback()
def _group() -> None:
    """Fetch pretrained weights."""  # without it Typer makes one command of the group


@app.command("fetch")
def fetch(
    backbones: Annotated[
        list[str],
        typer.Argument(metavar="BACKBONE", help="timm models with their pretrained tags."),
    ],
) -> None:
    """Fetch the weights of backbones into the hub's cache (HF_HOME), from HF_ENDPOINT."""
    stdout = console.stdout()
    from autotune.models.backbone import fetch_weights

    for name in backbones:
        with stdout.status(f"fetching the weights of {name}"):
            path = fetch_weights(name)
        stdout.print(f"{name}: {path or 'in the cache of the hub'}", soft_wrap=True)
