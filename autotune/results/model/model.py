"""A refitted model as a folder, which is all that another machine needs to use it.

::

    model.safetensors     all weights of the network
    record.json           how to build it, the preprocessing of its images, its scores
    README.md             the model card
    confusion_matrix.*    true and predicted classes of the test split
    reliability.png       its calibration
    predictions.csv       single images of the test split
    worst_images.jpg      those with the highest loss; heat_maps.jpg of the same

Only this module knows the content of the first two.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autotune.data.download.checksums import sha256_of
from autotune.data.image_files import UnreadableImageError, read_image, to_rgb
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array
from autotune.data.source import Shrink
from autotune.errors import (
    AutotuneError,
    BackboneError,
    FormatError,
    ModelError,
    PlanError,
    UserError,
    join_sentences,
)
from autotune.format_versions import FORMATS, MODEL, check_format
from autotune.models.backbone import Backbone, build_backbone
from autotune.models.network import Network, build_network
from autotune.models.pretrained.names import CONFIG, check_name, read_config, split_source
from autotune.models.surgery.aligned_conv import kernel_offsets, set_kernel_offsets
from autotune.plan import TrialPlan
from autotune.storage.paths import MODEL_RECORD
from autotune.study.state import oom
from autotune.text import first_line
from autotune.training.trainer import Normalizer
from autotune.version import COMMIT, installed_version

FORMAT = FORMATS[MODEL]
WEIGHTS, RECORD = "model.safetensors", MODEL_RECORD
#: Fields of the record of every model; a refit adds its scores.
FIELDS = (
    *("format", "versions", "weights_sha256", "parameters", "backbone", "image_size", "decode"),
    *("plan", "kernel_offsets", "classes", "preprocessing"),
)
#: An image of Pillow, or the path of an image file.
ImageOrPath = Image.Image | str | os.PathLike[str]
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_VERSIONS = ("autotune", COMMIT, "timm", "torch", "torchvision", "pillow", "python")


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network and how to prepare its images.

    Args:
        plan: The plan of the backbone's layers and of the head.
        classes: Names of the classes, in the order of the logits.
        data_config: timm's data configuration of the backbone.
        image_size: Side of the input as configured; ``None`` for that of the backbone.
        fast_decode: Whether large JPEG files are decoded at a reduced size.
        timm_config: ``config.json`` of a backbone that is no model of timm's list.
    """

    plan: TrialPlan
    classes: tuple[str, ...]
    data_config: Mapping[str, Any]
    image_size: int | None = None
    fast_decode: bool = False
    timm_config: Mapping[str, Any] | None = None

    @property
    def spec(self) -> ImageSpec:
        """The preprocessing of images."""
        return ImageSpec.from_data_config(self.data_config, self.image_size)


def _describe_wrong_type(value: object) -> str:
    """Say what an image has to be, and what makes one of a value that is none."""
    ways = {
        bytes: "PIL.Image.open(io.BytesIO(content)) opens the content of a file",
        np.ndarray: "PIL.Image.fromarray(pixels) makes an image of uint8 (height, width, 3)",
        Tensor: "normalized images go to model.probabilities(tensor)",
    }
    way = next((way for kind, way in ways.items() if isinstance(value, kind)), "")
    return join_sentences(
        "an image must be a path (str or pathlib.Path) or a PIL.Image.Image, but got "
        f"{type(value).__name__}",
        way,
    )


class Model(nn.Module):
    """A refitted network with its preprocessing.

    After loading it is in evaluation mode and on the CPU. ``to`` and ``train`` work as in any
    module; ``train`` leaves the frozen layers in evaluation mode.

    Example:
        >>> model = autotune.load("storage/autotune.files/models/digits")  # doctest: +SKIP
        >>> model.predict(["a.jpg", "b.jpg"]).argmax(dim=1)  # doctest: +SKIP

    Args:
        digest: SHA-256 of its weights file, hexadecimal; empty where there is none.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        spec: The preprocessing of images.
    """

    def __init__(self, network: Network, model_spec: ModelSpec, digest: str = "") -> None:
        super().__init__()
        self.network = network
        self.model_spec = model_spec
        self.digest = digest
        self.classes = model_spec.classes
        self.spec = model_spec.spec
        self._normalize = Normalizer.from_config(asdict(self.spec), torch.device("cpu"))
        # Images at a time, once a larger number has not fitted into memory.
        self._micro_batch_size: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of normalized images ``(N, 3, size, size)``."""
        logits: Tensor = self.network(images)
        return logits

    def transform(self, image: Image.Image) -> Tensor:
        """Resize, crop and normalize an image like the validation images of the study.

        Args:
            image: An upright image of any mode. Pillow does not turn a photo by its EXIF
                orientation when it opens a file; :meth:`read` does.

        Returns:
            float32, ``(3, size, size)``.

        Raises:
            OSError: When the image is far longer than wide.
        """
        pixels = to_store_array(to_rgb(image), self.spec)
        size = self.spec.size
        edge = (self.spec.store_size - size) // 2
        crop = np.ascontiguousarray(pixels[:, edge : edge + size, edge : edge + size])
        return self._normalize(torch.from_numpy(crop)[None])[0].contiguous()

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """Read an image file as the study does, and transform it.

        Raises:
            OSError: When the file is not an image, or is damaged; it names the file.
            TypeError: When ``path`` is no path.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(_describe_wrong_type(path))
        if os.path.isdir(path):
            raise UnreadableImageError(
                f"{os.fspath(path)!r} must be an image file, but it is a folder; give its files, "
                "for example sorted(pathlib.Path(folder).glob('*.jpg')), or run 'autotune predict'"
            )
        try:
            return self.transform(read_image(path, self.shrink))
        except OSError as error:
            raise UnreadableImageError(f"{os.fspath(path)!r}: {error}") from error

    @property
    def shrink(self) -> Shrink | None:
        """What reduces an image before it is decoded, where the study does so."""
        return partial(draft_decode, spec=self.spec) if self.model_spec.fast_decode else None

    def predict(
        self,
        images: ImageOrPath | Iterable[ImageOrPath],
        batch_size: int = 64,
    ) -> Tensor:
        """Return the probabilities of the classes.

        Args:
            images: Images of Pillow, or paths of image files; or one of either.
            batch_size: Images that go through the network at a time.

        Returns:
            float32 on the CPU, ``(N, classes)``; rows sum to 1.

        Raises:
            OSError: When a file cannot be read; it names the file.
            TypeError: When something is neither a path nor an image of Pillow.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        is_array = isinstance(images, np.ndarray) and images.dtype.kind not in "OUT"  # of paths
        is_other = isinstance(images, bytes | Tensor) or not isinstance(images, Iterable)
        if is_array or is_other:
            raise TypeError(_describe_wrong_type(images))
        tensors = [
            self.transform(image) if isinstance(image, Image.Image) else self.read(image)
            for image in images
        ]
        batches = [
            self.probabilities(torch.stack(tensors[start : start + batch_size]))
            for start in range(0, len(tensors), batch_size)
        ]
        return torch.cat(batches) if batches else torch.empty(0, len(self.classes))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities ``(N, classes)`` of normalized images, on the CPU.

        The network runs in evaluation mode, whatever its mode is. Images that do not fit into the
        memory of its device together go through it in halves, quarters and so on.

        Raises:
            UserError: When not even one image fits into memory.
        """
        training = self.training
        device = next(self.parameters()).device

        def run(micro_batch: int) -> Tensor:
            return torch.cat([self(some.to(device)) for some in torch.split(images, micro_batch)])

        def on_halved(micro_batch: int, shortage: oom.MemoryShortage) -> None:
            if not shortage.is_shared_device:  # else there may be more room for the next images
                self._micro_batch_size = micro_batch

        try:
            self.eval()
            logits = oom.with_oom_backoff(
                run,
                min(len(images), self._micro_batch_size or len(images)),
                device,
                least=1,
                on_halved=on_halved,
            )
        except oom.DoesNotFitError as error:
            raise UserError(
                f"an image must fit into memory, but {error}; take a larger device, or stop the "
                "other processes on this one"
            ) from error
        finally:
            self.train(training)
        return logits.float().softmax(dim=1).cpu()


def save_model(
    folder: Path, network: Network, model_spec: ModelSpec, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write weights and record of a model into a folder.

    Args:
        folder: Where; it is made if it does not exist.
        network: The network.
        model_spec: How it was built.
        facts: Further fields of the record, as plain JSON values.

    Returns:
        The record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = model_spec.plan.to_json()
    if split_source(model_spec.plan.backbone) is not None:  # the folder has to be enough
        config = model_spec.timm_config or read_config(model_spec.plan.backbone)
        facts = {**facts, "timm_config": dict(config)}
    state = {
        key: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"plan": json.dumps(plan)})
    record = {
        "format": FORMAT,
        "versions": {name: made for name in _VERSIONS if (made := installed_version(name))},
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
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
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(f"{text}\n", "utf-8")
    return record


@contextmanager
def replace_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of a model when the block ends.

    Files that get no new version stay, such as exports. After an error (a full disk) all files are
    the old ones. A process that is killed during the replacement leaves a folder that is refused,
    because the record names the hash of the weights.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed
    new.mkdir()
    try:
        yield new
        first = (WEIGHTS, RECORD)
        for path in sorted(new.iterdir(), key=lambda path: path.name not in first):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it has files
                folder.rmdir()


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load a model that ``autotune refit`` has written.

    The model is in evaluation mode, on the CPU. Study, images and hub are not needed.

    Raises:
        ModelError: When the folder holds no model, a damaged one, or one of a newer version.
        TypeError: When ``path`` is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            "a model must be the path (str or pathlib.Path) of the folder that autotune refit has "
            f"written, but got {type(path).__name__}"
        )
    folder = Path(path).expanduser()
    record = _read_record(folder)
    try:
        model_spec = ModelSpec(
            TrialPlan.from_json(record["plan"]),
            tuple(record["classes"]),
            record["preprocessing"],
            record["image_size"],
            record["decode"] == "fast",
            record.get("timm_config"),
        )
        digest, offsets = record["weights_sha256"], dict(record["kernel_offsets"])
        model_spec.spec  # noqa: B018 -- raises for invalid preprocessing
    except (KeyError, TypeError, ValueError, BackboneError) as error:
        raise ModelError(
            f"{folder / RECORD} must be what autotune refit has written, but it is not "
            f"({type(error).__name__}: {first_line(error)}); refit the model"
        ) from error
    state = _read_weights(folder / WEIGHTS, digest)
    try:
        network = _build_network(model_spec)
        network.load_state_dict(state)
        set_kernel_offsets(network, offsets)
    except (BackboneError, PlanError, RuntimeError, ValueError) as error:
        versions = record.get("versions") or {}
        others = [
            f"{name} {made}" for name, made in versions.items() if made != installed_version(name)
        ]
        hint = f"it was made with {', '.join(others)}; install these" if others else "refit it"
        text = str(error) if isinstance(error, AutotuneError) else first_line(error)
        raise ModelError(f"the model of {folder} cannot be built here ({text}); {hint}") from error
    return Model(network, model_spec, digest).eval()


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    hint = "give the folder that autotune refit has written, the last line of its output"
    if not folder.is_dir():
        what = "but it is a file" if folder.exists() else "but there is none"
        raise ModelError(f"{folder} must be the folder of a model, {what}; {hint}")
    try:
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"the folder of a model has a {RECORD}, but {folder} has none; {hint}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({first_line(error)}); {hint}") from error
    written = record.get("format") if isinstance(record, dict) else None
    if not isinstance(written, int) or isinstance(written, bool):
        raise ModelError(
            f"{file} must have a 'format', but it has none: it was written by an earlier version "
            "of autotune, or by another program; refit the model"
        )
    versions = record.get("versions")
    by = versions.get("autotune") if isinstance(versions, dict) else None
    try:
        check_format({"format": written, "autotune": by}, MODEL, f"the model in {folder}")
    except FormatError as error:
        raise ModelError(str(error)) from None
    return dict(record)


def _build_network(model_spec: ModelSpec) -> Network:
    """Build the network of a model, with weights that are replaced right after."""
    plan, size = model_spec.plan, model_spec.image_size
    if model_spec.timm_config is None:
        check_name(plan.backbone)
        module = build_backbone(plan.backbone, size)
    else:
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(json.dumps(model_spec.timm_config), "utf-8")
            module = build_backbone(f"local-dir:{folder}", size)
    module.eval().requires_grad_(False)
    backbone = Backbone(plan.backbone, module, model_spec.data_config, "")
    # Nothing is inherited: no images are needed, and no channel has to be chosen.
    return build_network(backbone, replace(plan, inherit="none"), len(model_spec.classes), seed=0)


def _read_weights(file: Path, digest: str) -> dict[str, Tensor]:
    try:
        actual = sha256_of(file)
        if actual == digest:
            return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read ({first_line(error)}); copy the model again, or refit it"
        ) from error
    raise ModelError(
        f"{file} must have the SHA-256 {digest} that {RECORD} names, but has {actual}: it is "
        "damaged, or of another refit; copy the whole folder again, or refit the model"
    )
