"""Backbones: timm models by name, with the weights they start from.

Weights come from the hub (the pretrained tag), from a file, from autotune itself for the tags
that it ships, or not at all. Where the hub cannot be reached, some come from packages of the
package index.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn

from autotune.errors import BackboneError
from autotune.models.meta_device import MetaShapes
from autotune.models.pretrained.names import (
    PACKAGED_WEIGHTS,
    ask_hub,
    check_name,
    describe_former,
    read_config,
    resolve,
    source_folder,
    source_weights,
    split_source,
)
from autotune.models.pretrained.packages import WeightsPackage, find_package, offer
from autotune.models.pretrained.reading import find_file
from autotune.models.pretrained.state_dict import check_finite, load_weights
from autotune.text import error_line, first_line

#: Errors of timm's models on images of a size that they cannot take.
_SIZE_ERRORS = (
    *(AssertionError, ValueError, TypeError, RuntimeError),
    *(ArithmeticError, LookupError),
)


class HubError(BackboneError):
    """The hub has failed, and its cache has nothing."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained backbone without its classifier.

    Args:
        name: timm model name with its pretrained tag.
        pretrained: The module as it was loaded; never trained, see :meth:`fresh`.
        data_config: timm's data configuration: input size, mean, std, interpolation, crop.
        weights_hash: Fingerprint of all parameters and buffers, hexadecimal.
        notes: What a user should know of name and weights, a sentence each.
        package: The package of the package index that has the weights, with its version; empty
            where they come from somewhere else.
    """

    name: str
    pretrained: nn.Module
    data_config: Mapping[str, Any]
    weights_hash: str
    notes: tuple[str, ...] = ()
    package: str = ""

    def fresh(self) -> nn.Module:
        """Return a copy of the pretrained module that may be changed."""
        return copy.deepcopy(self.pretrained)


def load_backbone(
    name: str, weights: str = "hub", image_size: int | None = None, prefer_package: bool = False
) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: timm model name, with or without a pretrained tag, or ``hf-hub:owner/name`` or
            ``local-dir:folder``.
        weights: ``hub`` for its own weights, ``none``, or the path of a file or folder.
        image_size: Side of the square input in pixels; ``None`` for its default size.
        prefer_package: Whether an installed package with its weights comes before the hub. It
            comes after it otherwise: where the hub cannot be reached and its cache has nothing.

    Raises:
        BackboneError: When the backbone is unknown, the hub cannot be reached, or the file
            cannot be read or belongs to another architecture.
    """
    check_name(name)
    current, notes, package = resolve(name), [describe_former(name)], None
    if weights == "hub" and current not in PACKAGED_WEIGHTS and not split_source(current):
        model, package, note = _of_timm(current, image_size, prefer_package)
        notes.append(note)
    else:
        model = build_backbone(name, image_size)
        if weights != "none":
            file = _own_weights(current) if weights == "hub" else Path(os.path.expanduser(weights))
            notes.append(_load_file(model, file, name, image_size))
    model.eval().requires_grad_(False)
    return Backbone(
        name,
        model,
        data_config(model, image_size),
        hash_weights(model),
        tuple(note for note in notes if note),
        package.name if package else "",
    )


def _of_timm(
    name: str, image_size: int | None, prefer_package: bool
) -> tuple[nn.Module, WeightsPackage | None, str]:
    """Return a backbone with the weights of its tag, their package if they are of one, a note."""
    package, reason = find_package(name), "as before in this study"
    if package is None or not prefer_package:
        try:
            model = _from_hub(name, image_size)
        except HubError as error:
            if package is None:
                raise
            assert error.__cause__ is not None
            reason = f"because the hub has failed ({error_line(error.__cause__)})"
        else:
            check_finite(model, f"the file of {name!r} on the hub")
            return model, None, ""
    model = build_backbone(name, image_size)
    _load_file(model, package.folder, name, image_size)
    return model, package, f"weights: took {package.describe()}, {reason}"


def _load_file(model: nn.Module, file: Path, name: str, image_size: int | None) -> str:
    """Load a file of weights, and return a sentence on what was taken of it."""
    return load_weights(model, file, name, partial(classifier_keys, name, image_size))


def _own_weights(name: str) -> Path:
    """Return the file of weights that comes with the package, a repository or a folder."""
    if name in PACKAGED_WEIGHTS:
        return Path(__file__).parent / "weights" / PACKAGED_WEIGHTS[name]
    return source_weights(name)


def build_backbone(name: str, image_size: int | None, device: str = "cpu") -> nn.Module:
    """Build a timm model without classifier; its random weights are the same in every process.

    The device ``meta`` allocates nothing.

    Raises:
        BackboneError: When the backbone cannot take images of that size.
    """
    shapes = MetaShapes() if device == "meta" else nullcontext()
    try:
        with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad(), shapes:
            torch.manual_seed(0)
            model = _create(name, image_size)
            if image_size is not None:
                model.eval()(torch.zeros(1, 3, image_size, image_size))
                model.train()  # drops what some attention layers cache in evaluation mode
    except _SIZE_ERRORS as error:
        if image_size is None:
            raise
        raise BackboneError(
            f"the backbone {name!r} cannot take images of {image_size} px "
            f"({first_line(error)}); leave data.image_size out for its own size"
        ) from error
    return model


def _create(name: str, image_size: int | None, **options: Any) -> nn.Module:
    name = resolve(name)
    if split_source(name) is not None:
        stated = read_config(name)
        is_fixed = stated.get("pretrained_cfg", stated).get("fixed_input_size", False)
        name = f"local-dir:{source_folder(name)}"
    else:
        name = name.partition(".")[0] if name in PACKAGED_WEIGHTS else name
        config = timm.models.get_pretrained_cfg(name)
        is_fixed = config is not None and config.fixed_input_size
    if image_size is not None and is_fixed:
        options["img_size"] = image_size
    return timm.create_model(name, **{"num_classes": 0, **options})


def data_config(model: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """Return timm's data configuration of a model, for square inputs of ``image_size`` pixels."""
    overrides = {} if image_size is None else {"input_size": (3, image_size, image_size)}
    values = resolve_data_config(overrides, model=model)  # type: ignore[no-untyped-call]
    # A config.json has lists.
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def classifier_keys(name: str, image_size: int | None = None) -> frozenset[str]:
    """Return the keys of a state dict that the architecture has with a classifier only.

    What ``num_classes=0`` drops may be more than the last linear layer: norms and hidden layers.
    """
    with torch.device("meta"), MetaShapes():
        with_classes = _create(name, image_size, num_classes=7)
        without = _create(name, image_size)
    return frozenset(with_classes.state_dict().keys() - without.state_dict().keys())


def _from_hub(name: str, image_size: int | None) -> nn.Module:
    """Build a backbone with the weights of its pretrained tag, from the hub or its cache."""
    way_out = (
        "download the weights elsewhere and give their file with "
        "weights=path/to/file.safetensors, or start from nothing with weights=none"
    )
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BackboneError(f"weights: timm has no pretrained weights for {name!r}; {way_out}")
    if image_size is not None:
        build_backbone(name, image_size, device="meta")  # refuses a wrong size before downloading
    try:
        if config.hf_hub_id:
            cached = _cached(config.hf_hub_id)
            if cached is not None:  # read as timm reads a download, but without asking the hub
                overlay = {"file": str(cached), "custom_load": False}
                return _create(name, image_size, pretrained=True, pretrained_cfg_overlay=overlay)
            ask_hub(config.hf_hub_id, "model.safetensors")
        return _create(name, image_size, pretrained=True)
    except Exception as error:  # of the HTTP client of huggingface_hub, which changes over time
        said = f"weights: cannot load the pretrained weights of {name!r} from the hub"
        said += f" ({error_line(error)})"
        if config.hf_hub_id and _cached(config.hf_hub_id) is not None:  # a damaged file
            raise BackboneError(f"{said}; {way_out}") from error
        raise HubError(f"{said}; {offer(name)}; or {way_out}") from error


def fetch_weights(name: str) -> Path | None:
    """Download the weights of a backbone's pretrained tag unless the hub's cache has them.

    Returns:
        Their file, or that of an installed package where the hub has failed; ``None`` where the
        repository has an unusual name for it.

    Raises:
        BackboneError: When the backbone is unknown, has no weights on the hub, or the download
            fails.
    """
    check_name(name)
    name = resolve(name)
    if name in PACKAGED_WEIGHTS or split_source(name) is not None:
        return _own_weights(name)
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights or not config.hf_hub_id:
        raise BackboneError(f"timm has no pretrained weights for {name!r} on the hub")
    if _cached(config.hf_hub_id) is None:
        found = load_backbone(name)  # timm knows which of the repository's files it reads
        if found.package and (package := find_package(name)):
            return find_file(package.folder)
    return _cached(config.hf_hub_id)


def weights_at_hand(name: str) -> str:
    """Say where the weights of a backbone's tag are on this machine; empty where they are not."""
    current = resolve(name)
    if current in PACKAGED_WEIGHTS:
        return "part of autotune"
    if source := split_source(current):
        return "" if source[0] == "hf-hub" else "folder"
    config = timm.models.get_pretrained_cfg(current)
    if config is not None and config.hf_hub_id and _cached(config.hf_hub_id) is not None:
        return "here"
    return "package" if find_package(current) else ""


def license_of(name: str) -> str:
    """Return the license of the weights of a backbone's tag; empty where timm states none."""
    current = resolve(name)
    if current in PACKAGED_WEIGHTS:
        return "apache-2.0"
    config = None if split_source(current) else timm.models.get_pretrained_cfg(current)
    return str(config.license or "") if config is not None else ""


def _cached(repository: str) -> Path | None:
    """Return the file of a hub repository's weights in the local cache."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return Path(path)
    return None


def hash_weights(model: nn.Module) -> str:
    """Return a fingerprint of all parameters and buffers, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
