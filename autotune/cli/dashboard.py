"""``autotune dashboard``: optuna-dashboard on the storage of a study."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.cli.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    locate,
)


def dashboard(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
) -> None:
    """Open optuna-dashboard on this machine's loopback address, until Ctrl-C."""
    located = locate(study, overrides, name, storage)
    from autotune.results.dashboard import serve
    from autotune.study.opening import open_existing

    opened = open_existing(located.name, located.storage, located.files)
    serve(opened, port, lambda url: console().print(f"dashboard: {url} (Ctrl-C ends it)"))
