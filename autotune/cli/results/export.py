"""``autotune export``: a fitted model in the formats of others."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.results.predict import ModelArgument
from autotune.display.console import check_folder, check_writable, console


class Form(StrEnum):
    """The formats, see ``autotune.results.model.export.FORMATS``; naming them imports no torch."""

    onnx = "onnx"
    torch_export = "torch-export"
    timm = "timm"


def export(
    model: ModelArgument,
    form: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.onnx,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File, of timm a folder; default: in MODEL."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Folder or file of images to compare on; made-up ones without."),
    ] = None,
) -> None:
    """Write a model as ONNX, torch.export or timm, and compare it with PyTorch."""
    shown = console()
    check: Callable[[Path], None] = check_folder if form == Form.timm else check_writable
    if output is not None:
        check(output)
    with shown.status("loading the model") as line:
        from autotune.display.summary import relative_path
        from autotune.results.model.export import FORMATS, check_packages, random_images
        from autotune.results.model.export import export as write
        from autotune.results.model.model import load_model
        from autotune.results.model.prediction import sample_images

        check_packages(FORMATS[form])
        loaded = load_model(model)
        compared = sample_images(loaded, images) if images else random_images(loaded)
        target = output or model / FORMATS[form].file
        check(target)
        line.update(f"writing {form}")
        parity = write(loaded, FORMATS[form], target, compared)
    size = loaded.spec.size
    what = f"images of {', '.join(images)}" if images else "made-up images (random pixels)"
    for text in (
        f"images (N, 3, {size}, {size}) -> logits (N, {len(loaded.classes)}), any N",
        f"compared with PyTorch on {parity.images} {what}:",
        f"  largest difference of a logit {parity.difference:.1e} (allowed "
        f"{parity.allowed:.1e}), same class for {parity.same_class} of {parity.images}",
        f"{form}: {relative_path(target)}",
    ):
        shown.print(text, highlight=False, markup=False, soft_wrap=True)
