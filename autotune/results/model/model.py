"""A fitted model as a folder, which is all that another machine needs to use it.

::

    model.safetensors     all weights of the network
    record.json           how to build it, what its images must be, how good it is
    README.md             the same for people
    confusion_matrix.*    what the test part was taken for
    reliability.png       what its probabilities are worth

This is the only module that knows what the first two hold.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autotune.data.download.checksums import sha256_of
from autotune.data.image_files import read_image, to_rgb
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array
from autotune.errors import BackboneError, FormatError, ModelError, PlanError, UserError
from autotune.format_versions import FORMATS, MODEL, check_format
from autotune.models.backbone import Backbone, build_backbone, check_name, first_line
from autotune.models.network import Network, build_network
from autotune.models.surgery.aligned_conv import kernel_offsets, set_kernel_offsets
from autotune.plan import TrialPlan
from autotune.study.state import oom
from autotune.training.trainer import Normalise

FORMAT = FORMATS[MODEL]
WEIGHTS, RECORD = "model.safetensors", "record.json"
#: What a record has of every model; a fit adds what it has measured.
FIELDS = (
    *("format", "versions", "weights_sha256", "parameters", "backbone", "image_size", "decode"),
    *("plan", "kernel_offsets", "classes", "preprocessing"),
)
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_PACKAGES = ("autotune", "timm", "torch", "torchvision", "pillow")


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network and how to show it images.

    Args:
        plan: What was made of the backbone.
        classes: Names of the classes; a logit for each.
        data_config: timm's data configuration of the backbone.
        image_size: Side of the input that the study asked for; ``None`` for the backbone's own.
        fast: Whether large JPEG files were decoded at a part of their size.
    """

    plan: TrialPlan
    classes: tuple[str, ...]
    data_config: Mapping[str, Any]
    image_size: int | None = None
    fast_decode: bool = False

    @property
    def spec(self) -> ImageSpec:
        """What the network wants to see."""
        return ImageSpec.from_data_config(self.data_config, self.image_size)


class Model(nn.Module):
    """A fitted network with everything that is between it and an image file.

    It is in evaluation mode and on the CPU when it is loaded; ``to`` and ``train`` are those of
    any module, and ``train`` leaves the frozen layers frozen.

    Example:
        >>> model = autotune.load("storage/autotune.files/models/digits")  # doctest: +SKIP
        >>> model.predict(["a.jpg", "b.jpg"]).argmax(dim=1)  # doctest: +SKIP

    Args:
        network: The network.
        model_spec: How it was built.
        digest: SHA-256 of the file of its weights, hexadecimal; empty where there is none.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        spec: What the network wants to see.
    """

    def __init__(self, network: Network, model_spec: ModelSpec, digest: str = "") -> None:
        super().__init__()
        self.network = network
        self.model_spec = model_spec
        self.digest = digest
        self.classes = model_spec.classes
        self.spec = model_spec.spec
        self._normalise = Normalise.of(asdict(self.spec), torch.device("cpu"))
        # Images at a time, once it is known that more do not fit into memory.
        self._part: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of normalised images ``(N, 3, size, size)``."""
        logits: Tensor = self.network(images)
        return logits

    def transform(self, image: Image.Image) -> Tensor:
        """Resize, crop and normalise an image as the validation images of the study were.

        Args:
            image: An image of any mode, upright: a photo that Pillow has opened lies as the
                camera was held. :meth:`read` turns it.

        Returns:
            float32, ``(3, size, size)``.

        Raises:
            OSError: When the image is far longer than wide.
        """
        pixels = to_store_array(to_rgb(image), self.spec)
        size = self.spec.size
        edge = (self.spec.store_size - size) // 2
        crop = np.ascontiguousarray(pixels[:, edge : edge + size, edge : edge + size])
        return self._normalise(torch.from_numpy(crop)[None])[0].contiguous()

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """Read an image file as the study read its own, and transform it.

        Raises:
            OSError: When the file is no image, or damaged.
        """
        smaller = partial(draft_decode, spec=self.spec) if self.model_spec.fast_decode else None
        return self.transform(read_image(path, smaller))

    @torch.no_grad()
    def predict(
        self, images: Iterable[Image.Image | str | os.PathLike[str]], batch_size: int = 64
    ) -> Tensor:
        """Return the probabilities of the classes.

        Args:
            images: Images, or paths of image files.
            batch_size: Images that go through the network at a time.

        Returns:
            float32 on the CPU, ``(N, classes)``; rows sum up to 1.

        Raises:
            OSError: When a file cannot be read.
        """
        tensors = [
            self.transform(one) if isinstance(one, Image.Image) else self.read(one)
            for one in images
        ]
        if not tensors:
            return torch.empty(0, len(self.classes))
        return torch.cat(
            [self.probabilities(torch.stack(part)) for part in _parts(tensors, batch_size)]
        )

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities ``(N, classes)`` of normalised images, on the CPU.

        Whatever mode the network is in, it is judged in evaluation mode. Images that do not fit
        into the memory of its device together go through it in halves, quarters and so on.

        Raises:
            UserError: When not even one image fits into memory.
        """
        training = self.training
        device = next(self.parameters()).device

        def in_parts(part: int) -> Tensor:
            return torch.cat([self(some.to(device)) for some in torch.split(images, part)])

        try:
            self.eval()
            logits = oom.with_oom_backoff(
                in_parts,
                min(len(images), self._part or len(images)),
                device,
                least=1,
                on_halved=self._remember,
            )
        except oom.DoesNotFitError as error:
            raise UserError(
                f"an image must fit into memory, but {error}; take a larger device, or stop what "
                "else is on this one"
            ) from error
        finally:
            self.train(training)
        return logits.float().softmax(dim=1).cpu()

    def _remember(self, part: int, need: oom.MemoryShortage) -> None:
        if not need.is_shared_device:  # else there may be more room for the next images
            self._part = part


def save_model(
    folder: Path, network: Network, model_spec: ModelSpec, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a model; a process that is killed meanwhile leaves the old one or a refused one.

    Args:
        folder: Where; it is made if it is not there.
        network: The network.
        model_spec: How it was built.
        facts: What else is to be remembered of it, as plain JSON values.

    Returns:
        The record that was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = model_spec.plan.to_json()
    state = {
        key: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    weights = folder / f".{WEIGHTS}.new"
    save_file(state, weights, metadata={"plan": json.dumps(plan)})
    record = {
        "format": FORMAT,
        "versions": {name: _version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "weights_sha256": sha256_of(weights),
        "parameters": sum(one.numel() for one in network.parameters()),
        "backbone": model_spec.plan.backbone,
        "image_size": model_spec.image_size,
        "decode": "fast" if model_spec.fast_decode else "exact",
        "plan": plan,
        "kernel_offsets": kernel_offsets(network),
        "classes": list(model_spec.classes),
        "preprocessing": {key: model_spec.data_config[key] for key in _PREPROCESSING},
        **facts,
    }
    assert set(FIELDS) == record.keys() - facts.keys(), "a format that is not FORMAT"
    os.replace(weights, folder / WEIGHTS)
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Write into a folder that takes the place of another one's files at the end.

    Where that end is not reached, the files there are as they were: a disk that is full or a
    process that is killed leaves no new model beside an old card.

    Args:
        folder: The folder; files that get no new version stay.

    Yields:
        Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    new.mkdir()
    try:
        yield new
        # Weights and record first, one right after the other: in between the folder is refused.
        first = (WEIGHTS, RECORD)
        for path in sorted(new.iterdir(), key=lambda path: path.name not in first):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load what ``autotune refit`` has written.

    Neither the study nor its images nor the hub are needed.

    Args:
        path: The folder of the model.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        ModelError: When the folder holds no model, a damaged one, or one of a newer version.
    """
    folder = Path(path).expanduser()
    record = read_record(folder)
    try:
        size = record["image_size"]
        model_spec = ModelSpec(
            TrialPlan.from_json(record["plan"]),
            tuple(record["classes"]),
            record["preprocessing"],
            size,
            record["decode"] == "fast",
        )
        digest, offsets = record["weights_sha256"], dict(record["kernel_offsets"])
        model_spec.spec  # noqa: B018 -- refuses what is no preprocessing
    except (KeyError, TypeError, ValueError, BackboneError) as error:
        raise ModelError(
            f"{folder / RECORD} must be what autotune refit has written, but it is not "
            f"({type(error).__name__}: {first_line(error)}); fit the model again"
        ) from error
    state = _read_weights(folder / WEIGHTS, digest)
    network = _built(model_spec, folder)
    try:
        network.load_state_dict(state)
        set_kernel_offsets(network, offsets)
    except (RuntimeError, ValueError) as error:
        raise ModelError(_misfit(folder, record, first_line(error))) from error
    return Model(network, model_spec, digest).eval()


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a model folder says of its model.

    Raises:
        ModelError: When the folder holds no model, a damaged one, or one of a newer version.
    """
    file = folder / RECORD
    way_out = "give the folder that autotune refit has written, the last line of what it prints"
    if not folder.is_dir():
        what = "but it is a file" if folder.exists() else "but there is none"
        raise ModelError(f"{folder} must be the folder of a model, {what}; {way_out}")
    try:
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"the folder of a model has a {RECORD}, but {folder} has none; {way_out}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({first_line(error)}); {way_out}") from error
    written = record.get("format") if isinstance(record, dict) else None
    if not isinstance(written, int) or isinstance(written, bool):
        raise ModelError(
            f"{file} must have a 'format', but it has none: an earlier version of autotune has "
            "written it, or something else; fit the model again"
        )
    made = record.get("versions")
    by = made.get("autotune") if isinstance(made, dict) else None
    try:
        check_format({"format": written, "autotune": by}, MODEL, f"the model in {folder}")
    except FormatError as error:
        raise ModelError(str(error)) from None
    return dict(record)


def _built(model_spec: ModelSpec, folder: Path) -> Network:
    """Build the network of a model, with weights that are replaced right after."""
    plan = model_spec.plan
    try:
        check_name(plan.backbone)
        module = build_backbone(plan.backbone, model_spec.image_size).eval().requires_grad_(False)
        backbone = Backbone(plan.backbone, module, model_spec.data_config, "")
        # Nothing is inherited: no images are needed, and no channel has to be chosen.
        return build_network(
            backbone, replace(plan, inherit="none"), len(model_spec.classes), seed=0
        )
    except (BackboneError, PlanError) as error:
        raise ModelError(_misfit(folder, read_record(folder), str(error))) from error


def _misfit(folder: Path, record: Mapping[str, Any], reason: str) -> str:
    """Say that a whole model cannot be built here, and with which packages it was made."""
    made = record.get("versions") or {}
    others = [f"{name} {made[name]}" for name in made if made[name] != _version(name)]
    hint = f"it was made with {', '.join(others)}; install these" if others else "fit it again"
    return f"the model of {folder} cannot be built here ({reason}); {hint}"


def _read_weights(file: Path, digest: str) -> dict[str, Tensor]:
    try:
        found = sha256_of(file)
        if found == digest:
            return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read ({first_line(error)}); copy the model again, or fit it again"
        ) from error
    raise ModelError(
        f"{file} must have the SHA-256 {digest} that {RECORD} beside it names, but has {found}: "
        "it is damaged, or of another fit; copy the whole folder again, or fit the model again"
    )


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    with suppress(ModuleNotFoundError):  # PackageNotFoundError is one
        return version(name)
    return "unknown"


def _parts(tensors: list[Tensor], size: int) -> Iterable[list[Tensor]]:
    return (tensors[start : start + size] for start in range(0, len(tensors), size))
