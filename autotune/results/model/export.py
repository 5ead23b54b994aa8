"""A fitted model in the formats of others: ONNX, torch.export, timm.

Whatever is written is read again by what will read it, and compared with PyTorch on images; what
differs by more than rounding is not kept.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autotune.errors import ExportError, UserError, disk_full_as_user_error
from autotune.models.backbone import PACKAGED_WEIGHTS, first_line
from autotune.plan import KEEP
from autotune.results.model.model import Model

#: Largest difference of a logit that is rounding, as a share of the largest logit. Summing
#: in another order makes 1e-7 to 1e-6 of float32.
TOLERANCE = 1e-4
#: Fields of a layer plan that say nothing of what the network computes once it is trained.
_TRAINING_ONLY = {"dropout", "drop_path"}
_BATCH = "batch"

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportCheck:
    """How much a written model differs from PyTorch.

    Args:
        images: Images that were compared, all at once and one by one.
        difference: Largest absolute difference of a logit.
        allowed: What it may be.
        agreeing: Images of which both name the same class.
    """

    images: int
    difference: float
    allowed: float
    same_class: int

    @property
    def is_equal(self) -> bool:
        """Whether the two compute the same."""
        return self.difference <= self.allowed  # false for what is no number


@dataclass(frozen=True)
class ExportFormat:
    """A format to write.

    Args:
        name: As the command line has it.
        file: Name of the file, or of the folder.
        is_folder: Whether it is a folder.
        needs: Packages that write and check it, of the extra of its name.
        write: Writes a model into an empty folder, for images of this shape; returns what reads
            it again.
    """

    name: str
    file: str
    is_folder: bool
    needs: tuple[str, ...]
    write: Callable[[Model, Path, Tensor], Forward]


def export(model: Model, form: ExportFormat, target: Path, images: Tensor) -> ExportCheck:
    """Write a model in another format and compare it with PyTorch.

    Args:
        model: The model, in evaluation mode on the CPU.
        form: One of :data:`FORMATS`.
        target: The file or the folder to write.
        images: Normalised images, ``(N, 3, size, size)``, at least two.

    Returns:
        How much they differ.

    Raises:
        UserError: When a package is missing, or the format cannot hold the model.
        ExportError: When it cannot be written, or differs by more than rounding. Then nothing is
            left of it.
    """
    check_packages(form)
    if form.is_folder:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with (
        disk_full_as_user_error(target.absolute().parent),
        tempfile.TemporaryDirectory(prefix=".export-", dir=target.absolute().parent) as place,
    ):
        folder = Path(place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters about their own code
            forward = form.write(model, folder / target.name, images)
        parity = compare(model, forward, images)
        if not parity.is_equal:
            raise ExportError(
                f"a model in the format {form.name} must give the logits of PyTorch to "
                f"{parity.allowed:.1e}, but the largest difference on {parity.images} images is "
                f"{parity.difference:.1e}; nothing was written, and another format may do"
            )
        _move(folder, target, form.is_folder)
    return parity


def check_packages(form: ExportFormat) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UserError: With what to install.
    """
    missing = [name for name in form.needs if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {form.name} needs {', '.join(missing)}, which is not installed; run pip "
            f"install 'autotune[{form.name}]'"
        )


@torch.no_grad()
def compare(model: Model, forward: Forward, images: Tensor) -> ExportCheck:
    """Compare a written model with PyTorch, on a whole batch and on one image at a time."""
    expected = model(images)
    found = [forward(images), torch.cat([forward(one[None]) for one in images])]
    difference = max(float((one - expected).abs().max()) for one in found)
    return ExportCheck(
        images=len(images),
        difference=difference,
        allowed=TOLERANCE * float(expected.abs().max()),
        same_class=int((found[0].argmax(dim=1) == expected.argmax(dim=1)).sum()),
    )


def random_images(model: Model, count: int = 16) -> Tensor:
    """Draw images of random pixels, normalised, the same ones every time."""
    size = model.spec.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def export_metadata(model: Model) -> str:
    """Return what a single file has to tell of its input and output, as JSON."""
    spec = model.spec
    values = {
        "classes": list(model.classes),
        "size": spec.size,
        "resize": math.floor(spec.size / spec.crop_pct),
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "weights_sha256": model.digest,
    }
    return json.dumps(values, ensure_ascii=False)


def _program(model: Model, images: Tensor) -> torch.export.ExportedProgram:
    """Trace a model for batches of any size."""
    shapes = {"images": {0: torch.export.Dim(_BATCH, min=1)}}
    try:
        return torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
    except Exception as error:  # whatever tracing makes of a network
        raise ExportError(
            f"{model.model_spec.plan.backbone} cannot be traced for batches of any size "
            f"({type(error).__name__}: {first_line(error)}); autotune.load gives the network "
            "itself"
        ) from error


def _write_torch(model: Model, path: Path, images: Tensor) -> Forward:
    torch.export.save(
        _program(model, images), path, extra_files={"autotune.json": export_metadata(model)}
    )
    return torch.export.load(path).module()


def _write_onnx(model: Model, path: Path, images: Tensor) -> Forward:
    import onnxruntime

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = _program(model, images)
    try:
        written = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert written is not None
        written.model.metadata_props["autotune"] = export_metadata(model)
        written.save(path)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"{model.model_spec.plan.backbone} has an operation that ONNX does not have "
            f"({first_line(error)}); --format torch-export may do"
        ) from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def _write_timm(model: Model, folder: Path, images: Tensor) -> Forward:
    """Write what ``timm.create_model("local-dir:...")`` loads.

    Raises:
        UserError: When timm has no such network.
    """
    plan = model.model_spec.plan
    name, options, classifier = _timm_model(model)
    state = {
        key.removeprefix("backbone."): value
        for key, value in model.network.state_dict().items()
        if key.startswith("backbone.")
    }
    output = model.network.head[-1]
    assert isinstance(output, nn.Linear)
    state |= {f"{classifier}.weight": output.weight, f"{classifier}.bias": output.bias}
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    spec = model.spec
    pretrained = {
        "tag": "autotune",
        "custom_load": False,
        "input_size": [3, spec.size, spec.size],
        "fixed_input_size": "img_size" in options,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_classes": len(model.classes),
        "classifier": classifier,
        "first_conv": timm.models.get_pretrained_cfg_value(name, "first_conv"),
    }
    config = {
        "architecture": name.partition(".")[0],
        "num_classes": len(model.classes),
        "label_names": list(model.classes),
        "model_args": options,
        "pretrained_cfg": pretrained,
    }
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", "utf-8")
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except RuntimeError as error:
        raise _not_timm(f"its {plan.backbone} has other weights ({first_line(error)})") from error
    forward: Forward = loaded.eval()
    return forward


def _timm_model(model: Model) -> tuple[str, dict[str, Any], str]:
    """Return timm's name of a network, its arguments, and where its classifier is.

    Raises:
        UserError: When timm has no such network.
    """
    plan = model.model_spec.plan
    for index in plan.reshaped:
        changes = plan.layers[index - 1].changes()
        others = [name for name in changes if name not in _TRAINING_ONLY]
        if others:
            said = ", ".join(f"{name} {changes[name]}" for name in others)
            raise _not_timm(f"layer {index} has another shape ({said})")
    if plan.head.hidden:
        raise _not_timm(f"the head has {len(plan.head.hidden)} hidden layers")
    name = plan.backbone.partition(".")[0] if plan.backbone in PACKAGED_WEIGHTS else plan.backbone
    options: dict[str, Any] = {}
    if plan.head.pool != KEEP:
        options["global_pool"] = plan.head.pool
    size = model.model_spec.image_size
    stated = timm.models.get_pretrained_cfg(name)
    if size is not None and stated is not None and stated.fixed_input_size:
        options["img_size"] = size
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=len(model.classes), **options)
    last = whole.get_classifier()  # type: ignore[operator]
    names = [name for name, module in whole.named_modules() if module is last]
    if not isinstance(last, nn.Linear) or not names:
        raise _not_timm(f"the classifier of {plan.backbone} is no linear layer")
    return name, options, names[0]


def _not_timm(reason: str) -> UserError:
    return UserError(
        f"--format timm: timm must be able to build the network, but {reason}; export it as onnx "
        "or torch-export, or use autotune.load"
    )


def _move(folder: Path, target: Path, is_folder: bool) -> None:
    """Move what was written and checked to its place."""
    source, goal = (folder / target.name, target) if is_folder else (folder, target.parent)
    goal.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        os.replace(path, goal / path.name)


#: What a model can be written as, by name.
FORMATS = {
    one.name: one
    for one in (
        ExportFormat(
            "onnx", "model.onnx", False, ("onnx", "onnxscript", "onnxruntime"), _write_onnx
        ),
        ExportFormat("torch-export", "model.pt2", False, (), _write_torch),
        ExportFormat("timm", "timm", True, (), _write_timm),
    )
}
