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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autotune.data.download.checksums import sha256_of
from autotune.errors import (
    AutotuneError,
    BackboneError,
    FormatError,
    ModelError,
    PlanError,
    UserError,
)
from autotune.format_versions import FORMATS, MODEL, check_format
from autotune.models.backbone import Backbone, build_backbone
from autotune.models.ensemble import Ensemble
from autotune.models.network import Network, build_network
from autotune.models.pretrained.names import CONFIG, check_name, read_config, split_source
from autotune.models.pretrained.state_dict import ENSEMBLE
from autotune.models.surgery.aligned_conv import kernel_offsets, set_kernel_offsets
from autotune.plan import TrialPlan
from autotune.results.model.model import Model, ModelSpec, join_networks
from autotune.storage.paths import MODEL_RECORD
from autotune.text import first_line
from autotune.version import COMMIT, installed_version

FORMAT = FORMATS[MODEL]
WEIGHTS, RECORD, CARD = "model.safetensors", MODEL_RECORD, "README.md"
#: Fields of the record of every model; a refit adds its scores.
FIELDS = (
    *("format", "versions", "weights_sha256", "parameters", "backbone", "image_size", "decode"),
    *("plan", "kernel_offsets", "classes", "preprocessing"),
)
#: Fields of each member of an ensemble, which are those of a model of its own, and its weight.
MEMBER_FIELDS = ("weight", "backbone", "image_size", "plan", "preprocessing")
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_VERSIONS = ("autotune", COMMIT, "timm", "torch", "torchvision", "pillow", "python")


def check_target(folder: Path) -> None:
    """Refuse a folder with files of something else, which those of a model would replace.

    Raises:
        UserError: With their names.
    """
    others = [name for name in (WEIGHTS, CARD) if (folder / name).exists()]
    if others and not (folder / RECORD).exists():
        raise UserError(
            f"a model must not replace the files of something else, but {folder} has a "
            f"{' and a '.join(others)} and no {RECORD}; name another folder"
        )


def save_model(
    folder: Path, network: Network | Ensemble, model_spec: ModelSpec, facts: Mapping[str, Any]
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
    facts = {**facts, **_foreign_config(model_spec)}
    if model_spec.members:
        facts["members"] = [
            {"weight": weight, **_describe_network(member), **_foreign_config(member)}
            for weight, member in model_spec.members
        ]
    state = {
        key: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    # The weights of one network can be the start of a study.
    metadata = {"plan": json.dumps(model_spec.plan.to_json())}
    if model_spec.members:
        metadata = {ENSEMBLE: str(len(model_spec.members))}
    save_file(state, folder / WEIGHTS, metadata=metadata)
    record = {
        "format": FORMAT,
        "versions": {name: made for name in _VERSIONS if (made := installed_version(name))},
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **_describe_network(model_spec),
        "decode": "fast" if model_spec.fast_decode else "exact",
        "kernel_offsets": kernel_offsets(network),
        "classes": list(model_spec.classes),
        **facts,
    }
    assert set(FIELDS) == record.keys() - facts.keys(), "a format that is not FORMAT"
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(f"{text}\n", "utf-8")
    return record


def _describe_network(model_spec: ModelSpec) -> dict[str, Any]:
    """Return what a network is built from, and the preprocessing of its images."""
    return {
        "backbone": model_spec.plan.backbone,
        "image_size": model_spec.image_size,
        "plan": model_spec.plan.to_json(),
        "preprocessing": {key: model_spec.data_config[key] for key in _PREPROCESSING},
    }


def _foreign_config(model_spec: ModelSpec) -> dict[str, Any]:
    """Return the configuration of a backbone that timm does not know: the folder has to be enough.

    Empty for all others.
    """
    if split_source(model_spec.plan.backbone) is None:
        return {}
    config = model_spec.timm_config or read_config(model_spec.plan.backbone)
    return {"timm_config": dict(config)}


@contextmanager
def replace_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of a model when the block ends.

    Files that get no new version stay, such as exports. After an error (a full disk) all files are
    the old ones. A process that is killed during the replacement leaves a folder that is refused,
    because the record names the hash of the weights. Of two refits that end at once the second
    waits.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    new, lock = folder / ".new", folder / ".new.lock"
    try:
        with FileLock(lock):
            try:
                shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed
                new.mkdir()
                yield new
                # The record first: with it the folder is known as that of a model.
                for path in sorted(new.iterdir(), key=lambda path: path.name != RECORD):
                    os.replace(path, folder / path.name)
            finally:
                shutil.rmtree(new, ignore_errors=True)
                lock.unlink(missing_ok=True)
    finally:
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
    folder = Path(os.path.expanduser(path))
    record = _read_record(folder)
    try:
        members = [
            (int(each["weight"]), _read_spec(each, record)) for each in record.get("members", ())
        ]
        model_spec = replace(_read_spec(record, record), members=tuple(members))
        digest, offsets = record["weights_sha256"], dict(record["kernel_offsets"])
        model_spec.spec  # noqa: B018 -- raises for invalid preprocessing
    except (KeyError, TypeError, ValueError, BackboneError) as error:
        raise ModelError(
            f"{folder / RECORD} must be what autotune refit has written, but it is not "
            f"({type(error).__name__}: {first_line(error)}); refit the model"
        ) from error
    state = _read_weights(folder / WEIGHTS, digest)
    try:
        network = _build(model_spec)
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


def _read_spec(values: Mapping[str, Any], record: Mapping[str, Any]) -> ModelSpec:
    """Read a network of a record: that of the record itself, or a member."""
    return ModelSpec(
        TrialPlan.from_json(values["plan"]),
        tuple(record["classes"]),
        values["preprocessing"],
        values["image_size"],
        record["decode"] == "fast",
        values.get("timm_config"),
    )


def _build(model_spec: ModelSpec) -> Network | Ensemble:
    if not model_spec.members:
        return _build_network(model_spec)
    networks = [_build_network(member) for _, member in model_spec.members]
    return join_networks(networks, model_spec)


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
