"""``autotune data``: what is known of a data set."""

from __future__ import annotations

import typer

from autotune.cli.data_info import info

app = typer.Typer(help="What is known of a data set.", no_args_is_help=True)
app.command("info")(info)
