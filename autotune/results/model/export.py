"""A refitted model in other formats: ONNX, torch.export, timm.

Every exported model is loaded with the library of its format and compared with PyTorch on images.
A model that differs by more than rounding is not kept.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autotune.data.preprocessing import ImageSpec
from autotune.errors import ExportError, UserError, place_as_user_error
from autotune.models.ensemble import Ensemble
from autotune.models.pretrained.names import PACKAGED_WEIGHTS, resolve
from autotune.plan import KEEP
from autotune.results.model.model import Model
from autotune.results.model.model_folder import RECORD, WEIGHTS
from autotune.text import first_line

#: Largest difference of a logit that counts as rounding, as a share of the largest logit. Another
#: order of summation makes 1e-7 to 1e-6 in float32.
TOLERANCE = 1e-4
#: Fields of a layer plan that do not change what the trained network computes.
_TRAINING_ONLY = {"dropout", "drop_path"}

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportCheck:
    """The difference between an exported model and PyTorch.

    Args:
        images: Images that were compared, as one batch and one by one.
        difference: Largest absolute difference of a logit; up to ``allowed`` is rounding.
        same_class: Images that get the same class from both.
    """

    images: int
    difference: float
    allowed: float
    same_class: int

    @property
    def is_equal(self) -> bool:
        """Whether the two differ by rounding at most."""
        return self.difference <= self.allowed  # false for NaN


@dataclass(frozen=True)
class ExportFormat:
    """A format to export to.

    Args:
        file: Default name of the file or folder.
        needs: Packages of the extra of this name.
        write: Writes a model to a path, for images of a shape; returns the loaded export.
    """

    name: str
    file: str
    is_folder: bool
    needs: tuple[str, ...]
    write: Callable[[Model, Path, Tensor], Forward]


def export(model: Model, export_format: ExportFormat, target: Path, images: Tensor) -> ExportCheck:
    """Write a model in another format and compare it with PyTorch.

    Args:
        model: The model, in evaluation mode on the CPU.
        export_format: One of :data:`FORMATS`.
        target: The file or the folder to write.
        images: Normalized images, ``(N, 3, size, size)``, at least two.

    Raises:
        UserError: When a package is missing, the format cannot represent the model, or the export
            would replace the files of a model.
        ExportError: When the export fails, or differs by more than rounding. Nothing is left of
            it.
    """
    check_packages(export_format)
    name, parent = export_format.name, target.absolute().parent
    is_model = (target if export_format.is_folder else parent).joinpath(RECORD).exists()
    if is_model and (export_format.is_folder or target.name in (WEIGHTS, RECORD)):
        raise UserError(
            f"an export must not replace the files of a model, but {target} is its folder, or one "
            "of them; name another place"
        )
    with place_as_user_error(target), ExitStack() as stack:
        if export_format.is_folder:
            parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".export-", dir=parent)
        folder = Path(stack.enter_context(temporary))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own code
            forward = export_format.write(model, folder / target.name, images)
        check = compare(model, forward, images)
        if not check.is_equal:
            raise ExportError(
                f"a model in the format {name} must give the logits of PyTorch to "
                f"{check.allowed:.1e}, but the largest difference on {check.images} images is "
                f"{check.difference:.1e}; nothing was written. Try another format."
            )
        if export_format.is_folder:
            folder = folder / target.name
            target.mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            os.replace(path, (target if export_format.is_folder else parent) / path.name)
    return check


def check_packages(export_format: ExportFormat) -> None:
    """Raise a UserError when packages of a format are not installed."""
    missing = [name for name in export_format.needs if find_spec(name) is None]
    if missing:
        name = export_format.name
        raise UserError(
            f"--format {name} needs {', '.join(missing)}, which is not installed; run pip install "
            f"'autotune[{name}]'"
        )


@torch.no_grad()
def compare(model: Model, forward: Forward, images: Tensor) -> ExportCheck:
    """Compare an exported model with PyTorch, on a whole batch and on one image at a time."""
    expected, logits = model(images), forward(images)
    alone = torch.cat([forward(image[None]) for image in images])
    return ExportCheck(
        images=len(images),
        difference=float((torch.stack([logits, alone]) - expected).abs().max()),
        allowed=TOLERANCE * float(expected.abs().max()),
        same_class=int((logits.argmax(dim=1) == expected.argmax(dim=1)).sum()),
    )


def random_images(model: Model, count: int = 16) -> Tensor:
    """Return images of random pixels, normalized; always the same ones."""
    size = model.spec.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def export_metadata(model: Model) -> str:
    """Return the input and the output of a single-file export, as JSON."""
    spec = model.spec
    values = {
        "classes": list(model.classes),
        "size": spec.size,
        "resize": math.floor(spec.size / spec.crop_pct),
        **_preprocessing(spec),
        "weights_sha256": model.digest,
    }
    return json.dumps(values, ensure_ascii=False)


def _preprocessing(spec: ImageSpec) -> dict[str, Any]:
    return {
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def _program(model: Model, images: Tensor) -> torch.export.ExportedProgram:
    """Trace a model for batches of any size."""
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        return torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
    except Exception as error:  # tracing may raise anything
        raise ExportError(
            f"{model.model_spec.plan.backbone} cannot be traced for batches of any size "
            f"({type(error).__name__}: {first_line(error)}); autotune.load gives the network "
            "itself"
        ) from error


def _write_torch(model: Model, path: Path, images: Tensor) -> Forward:
    metadata = {"autotune.json": export_metadata(model)}
    torch.export.save(_program(model, images), path, extra_files=metadata)
    return torch.export.load(path).module()


def _write_onnx(model: Model, path: Path, images: Tensor) -> Forward:
    import onnxruntime

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = _program(model, images)
    try:
        written = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], verbose=False
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
    """Write a folder for ``timm.create_model("local-dir:...")``."""
    plan = model.model_spec.plan
    if isinstance(model.network, Ensemble):
        raise _not_timm(f"the model is an ensemble of {len(model.network.members)} networks")
    name, options, classifier = _timm_model(model)
    state = model.network.backbone.state_dict()
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
        "crop_pct": spec.crop_pct,
        **_preprocessing(spec),
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
    """Return timm's name of a network, its arguments, and the name of its classifier."""
    plan = model.model_spec.plan
    for index in plan.reshaped:
        changes = plan.layers[index - 1].changes()
        others = [name for name in changes if name not in _TRAINING_ONLY]
        if others:
            text = ", ".join(f"{name} {changes[name]}" for name in others)
            raise _not_timm(f"layer {index} has another shape ({text})")
    if plan.head.hidden:
        raise _not_timm(f"the head has {len(plan.head.hidden)} hidden layers")
    config = model.model_spec.timm_config
    name = resolve(plan.backbone) if config is None else config["architecture"]
    name = name.partition(".")[0] if name in PACKAGED_WEIGHTS else name
    options: dict[str, Any] = {} if config is None else dict(config.get("model_args") or {})
    if plan.head.pool != KEEP:
        options["global_pool"] = plan.head.pool
    size = model.model_spec.image_size
    stated = timm.models.get_pretrained_cfg(name)
    if size is not None and stated is not None and stated.fixed_input_size:
        options["img_size"] = size
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=len(model.classes), **options)
    last = network.get_classifier()  # type: ignore[operator]
    names = [name for name, module in network.named_modules() if module is last]
    if not isinstance(last, nn.Linear) or not names:
        raise _not_timm(f"the classifier of {plan.backbone} is not a linear layer")
    return name, options, names[0]


def _not_timm(reason: str) -> UserError:
    return UserError(
        f"--format timm: timm must be able to build the network, but {reason}; export it as onnx "
        "or torch-export, or use autotune.load"
    )


_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_FORMATS = (
    ExportFormat("onnx", "model.onnx", False, _ONNX_PACKAGES, _write_onnx),
    ExportFormat("torch-export", "model.pt2", False, (), _write_torch),
    ExportFormat("timm", "timm", True, (), _write_timm),
)
#: The formats, by name.
FORMATS = {each.name: each for each in _FORMATS}
