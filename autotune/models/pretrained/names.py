"""The names of backbones: those of timm, its former ones, and addresses of models elsewhere.

A model of timm is ``architecture`` or ``architecture.tag``. ``hf-hub:somebody/model`` is a
repository of the Hugging Face hub, ``local-dir:folder`` a folder; both have a ``config.json`` that
timm wrote.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

from autotune.config.fields import timm_name
from autotune.errors import BackboneError, did_you_mean, join_sentences, nearest_names
from autotune.models.pretrained.packages import offer
from autotune.models.pretrained.reading import FOLDER_FILES, find_file
from autotune.text import error_line, join_some

#: Pretrained tags whose weights are part of the package; see ``benchmarks.letters_weights``.
PACKAGED_WEIGHTS = {"test_resnet.letters": "test_resnet.letters.safetensors"}
CONFIG = "config.json"
_HUB, _FOLDER = "hf-hub", "local-dir"


def resolve(name: str) -> str:
    """Return timm's current name of a backbone, without the address of timm on the hub.

    A former name with the meaning of a tag gets that tag, unless it has one.
    """
    name = timm_name(name)
    architecture, dot, tag = name.partition(".")
    current = _former_names().get(architecture) if split_source(name) is None else None
    if current is None:
        return name
    return f"{current.partition('.')[0]}.{tag}" if dot else current


def describe_former(name: str) -> str:
    """Return a sentence that has the current name of a backbone; empty where that is its name."""
    current = resolve(name)
    return "" if current == timm_name(name) else f"backbone: timm calls {name!r} {current!r} now"


@cache
def _former_names() -> dict[str, str | None]:
    return timm.models.get_deprecated_models()


def split_source(name: str) -> tuple[str, str] | None:
    """Return ``hf-hub`` or ``local-dir`` with the rest of a name; ``None`` for one of timm."""
    source, colon, rest = name.partition(":")
    source = source.lower().replace("_", "-")
    return (source, rest) if colon and source in (_HUB, _FOLDER) else None


def check_name(name: str) -> None:
    """Check that a backbone exists.

    Raises:
        BackboneError: With the nearest names, when timm has no such architecture or tag, or with
            the reason why a repository or folder is no model of timm.
    """
    current = resolve(name)
    if current in PACKAGED_WEIGHTS:
        return
    if split_source(current) is not None:
        read_config(current)
        return
    architecture, dot, tag = current.partition(".")
    names = [*timm.list_pretrained(), *PACKAGED_WEIGHTS]
    if not timm.is_model(architecture) or architecture in _former_names():
        raise BackboneError(
            join_sentences(
                f"timm {timm.__version__} has no backbone {name!r}",
                _address_hint(name) or _nearest_backbones(architecture, tag, names),
            )
        )
    tags = [name.partition(".")[2] for name in names if name.startswith(f"{architecture}.")]
    if dot and tag not in tags:
        raise BackboneError(
            join_sentences(
                f"the backbone {architecture!r} has no pretrained tag {tag!r}; it has "
                f"{', '.join(tags) or 'none'}",
                did_you_mean(tag, tags),
            )
        )


def _nearest_backbones(architecture: str, tag: str, names: list[str]) -> str:
    """Suggest backbones; a tag is kept where they have it."""
    nearest = nearest_names(architecture, [*timm.list_models(), *PACKAGED_WEIGHTS])
    tagged = [f"{near}.{tag}" if f"{near}.{tag}" in names else near for near in nearest]
    tagged = [near for near in tagged if "." in near] or tagged
    if not tagged:
        return "'python -c \"import timm; print(timm.list_models())\"' lists them"
    return f"did you mean {' or '.join(map(repr, tagged))}?"


def _address_hint(name: str) -> str:
    """Say how the path of a folder or the name of a repository is written."""
    if os.path.isdir(os.path.expanduser(name)):
        return f"a folder that timm wrote is given as local-dir:{name}"
    if name.count("/") == 1 and ":" not in name:
        return f"a repository of the hub with a model of timm is given as hf-hub:{name}"
    is_address = "/" in name or ":" in name
    return "an address is hf-hub:OWNER/NAME or local-dir:FOLDER" if is_address else ""


def read_config(name: str) -> dict[str, Any]:
    """Return the ``config.json`` of a repository or folder.

    Raises:
        BackboneError: When it cannot be read, or does not describe a model of this timm.
    """
    file = source_folder(name) / CONFIG
    way_out = "give the architecture as the backbone, and the file or folder as weights"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(
            f"the backbone {name!r} must have a {CONFIG} that timm wrote, but "
            f"{str(file.parent)!r} has none; {way_out}"
        ) from error
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"the backbone {name!r} must have a {CONFIG} that timm wrote, but {str(file)!r} "
            f"cannot be read ({error_line(error)}); {way_out}"
        ) from error
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if isinstance(architecture, str) and timm.is_model(architecture):
        return dict(config)
    if architecture is None:
        other = config.get("model_type") if isinstance(config, dict) else None
        what = f"describes a model of transformers ({other})" if other else "names no architecture"
    else:
        what = f"names {architecture!r}, which timm {timm.__version__} does not have"
    raise BackboneError(
        f"the backbone {name!r} must be a model of timm, but its {CONFIG} {what}; {way_out}"
    )


def source_folder(name: str) -> Path:
    """Return the folder that has the ``config.json`` of a repository, or of ``local-dir:``.

    Raises:
        BackboneError: When the repository cannot be reached and is not in the cache of the hub.
    """
    source, address = split_source(name) or ("", name)
    if source == _FOLDER:
        return Path(os.path.expanduser(address))
    return _fetch(name, CONFIG).parent


def source_weights(name: str) -> Path:
    """Return the file of weights of a repository or folder, downloaded where it has to be.

    Raises:
        BackboneError: When there is none, or the repository cannot be reached.
    """
    source, address = split_source(name) or ("", name)
    if source == _FOLDER:
        return find_file(Path(os.path.expanduser(address)))
    for file in FOLDER_FILES:
        try:
            return _fetch(name, file)
        except BackboneError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
    raise BackboneError(
        f"weights: {name!r} has none of the files {join_some(FOLDER_FILES)}; download its file "
        "and give it with weights=path/to/file.safetensors"
    )


def ask_hub(repository: str, file: str, revision: str | None = None) -> None:
    """Fail after one quick request where the hub is down; its clients retry for a minute."""
    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    answer = get_session().head(url, timeout=10)
    if answer.status_code >= 500:
        answer.raise_for_status()


def _fetch(name: str, file: str) -> Path:
    """Return a file of a repository of the hub; from the cache without asking the hub."""
    _, address = split_source(name) or ("", name)
    repository, _, revision = address.partition("@")
    try:
        cached = huggingface_hub.try_to_load_from_cache(
            repository, file, revision=revision or None
        )
        if isinstance(cached, str):
            return Path(cached)
        ask_hub(repository, file, revision or None)
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))
    except Exception as error:  # of the HTTP client of huggingface_hub, which changes over time
        raise BackboneError(
            f"the backbone {name!r}: cannot get {file} of {repository!r} from the hub "
            f"({error_line(error)}); {offer(name)}; or download the repository elsewhere, and "
            "give its folder with local-dir:FOLDER"
        ) from error
