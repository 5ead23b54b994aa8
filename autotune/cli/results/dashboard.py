"""``autotune dashboard``: what all studies found, and optuna-dashboard on their storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.display import console
from autotune.errors import UserError

if TYPE_CHECKING:
    from autotune.results.dashboard.public import PublicEndpoint


def dashboard(
    study: Annotated[
        str | None,
        typer.Argument(help="A study to open, as for the other verbs; default: all."),
    ] = None,
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
    public: Annotated[
        bool,
        typer.Option("--public", help="For others too: read-only, by HTTPS, with a password."),
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            help="With --public: name or address of this machine for others; default: host name."
        ),
    ] = None,
) -> None:
    """Show what all studies found, or one in optuna-dashboard, on this machine until Ctrl-C."""
    if host is not None and not public:
        raise UserError("--host is for --public; without it the dashboard is on 127.0.0.1 alone")
    named = study or name
    opened = console.open_study(named, overrides, name, storage) if named else None
    from autotune.results.dashboard.server import Shown, serve

    shown = (
        Shown.study(opened) if opened else Shown.all_studies(storage or console.DEFAULT_STORAGE)
    )

    if not public:
        serve(
            shown, port, lambda url: console.stdout().print(f"dashboard: {url} (Ctrl-C ends it)")
        )
        return
    from autotune.results.dashboard.public import FOLDER, serve_public

    console.check_folder(FOLDER)
    serve_public(shown, port, host, _print_endpoint)


def _print_endpoint(endpoint: PublicEndpoint) -> None:
    lines = (
        f"dashboard: {endpoint.url} (read-only; Ctrl-C ends it)",
        f"user {endpoint.user}, password {endpoint.password}",
        "a browser warns of the certificate, which was made here; its SHA-256 fingerprint is",
        endpoint.fingerprint,
    )
    for line in lines:
        console.stdout().print(line)
