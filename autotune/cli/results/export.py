"""``autotune export``: a model in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autotune.display import console
from autotune.text import relative_path

#: The formats of ``autotune.results.model.export.FORMATS``, which imports torch.
Format = Literal["onnx", "torch-export", "timm"]


def export(
    model: console.ModelArgument,
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File, of timm a folder; default: in MODEL."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Folder or file of images to compare on; made-up ones without."),
    ] = None,
    overrides: console.ModelOverrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Write a model as ONNX, torch.export or timm, and compare it with PyTorch."""
    stdout = console.stdout()
    check = console.check_folder if format == "timm" else console.check_writable
    if output is not None:
        check(output)
    with console.stderr().status("loading the model") as status:
        from autotune.results.model.export import FORMATS, check_packages, random_images
        from autotune.results.model.export import export as write
        from autotune.results.model.model_folder import load_model
        from autotune.results.model.prediction import sample_images

        check_packages(FORMATS[format])
        folder = console.find_model(model, overrides, name, storage)
        loaded = load_model(folder)
        compared = sample_images(loaded, images) if images else random_images(loaded)
        target = output or folder / FORMATS[format].file
        check(target)
        status.update(f"writing {format}")
        parity = write(loaded, FORMATS[format], target, compared)
    size = loaded.spec.size
    source = f"images of {', '.join(images)}" if images else "made-up images (random pixels)"
    for line in (
        f"images (N, 3, {size}, {size}) -> logits (N, {len(loaded.classes)}), any N",
        f"compared with PyTorch on {parity.images} {source}:",
        f"  largest difference of a logit {parity.difference:.1e} (allowed "
        f"{parity.allowed:.1e}), same class for {parity.same_class} of {parity.images}",
        f"{format}: {relative_path(target)}",
    ):
        stdout.print(line, soft_wrap=True)
