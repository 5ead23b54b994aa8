"""Find the weights of a backbone in what a file holds.

A checkpoint may have several state dicts (the model, its moving average, a teacher and a student),
and their keys may have a prefix of whatever the backbone was a part of: ``module.``, ``model.``,
``backbone.``. The first one that fits the backbone is taken as a whole. What belongs to a
classifier may be in it or not.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from autotune.errors import BackboneError
from autotune.models.pretrained.reading import SAVE_TENSORS, class_of, find_file, read_file
from autotune.plan import INHERITING, TrialPlan
from autotune.text import join_some, plural

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
#: Key of the metadata of a file with the networks of an ensemble: how many there are.
ENSEMBLE = "ensemble"
#: Levels of mappings of a checkpoint, and parts of a key, that are looked at.
MAX_NESTING, MAX_PREFIX = 5, 6
#: Least share of the backbone's tensors that have to be below a prefix.
_MIN_SHARE = 0.5
#: What heads and losses of a pretraining are called, where the backbone has no module so named.
_HEADS = re.compile(
    r"head|fc|classifier|decoder|mask_token|proj(ect|_head)|predict|prototype|queue|criterion"
    r"|loss|aux|n_averaged|logits|last_linear|out(put)?s?$|metric|(arc|cos)face|margin|normaliz"
    r"|embedding$|bottleneck$|neck$",
    re.IGNORECASE,
)
#: What wraps modules anywhere in a network, and the counters that thop leaves in them.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_COUNTERS = ("total_ops", "total_params")
#: A pattern in the keys of a state dict that does not fit, and what it tells.
_HINTS = (
    (
        r"(^|\.)lora_",
        "it has LoRA adapters beside the weights of layers; merge them where it was made, with "
        "merge_and_unload() of peft",
    ),
    (
        r"weight_(g|v|orig)$|\.parametrizations\.",
        "weights of a layer are stored as something else (weight norm, pruning); remove that "
        "where it was made, as torch.nn.utils.parametrize.remove_parametrizations does",
    ),
    (
        r"layer\.\d+\.attention\.|embeddings\.patch_embeddings\.",
        "it is a model of transformers, which names its tensors otherwise; weights=hub takes "
        "timm's own",
    ),
)
#: Averages are better weights than those that they average; of two networks one is the teacher.
_AVERAGED = re.compile(r"(^|[._])(ema|swa|teacher)($|[._])")
_SECOND = re.compile(r"(^|[._])(student|momentum_encoder|encoder_k|target)")


@dataclass(frozen=True)
class Candidate:
    """A state dict of a file, and how it fits a backbone.

    Args:
        where: Its place in the file, such as ``model_ema``; empty for the file itself.
        prefix: What was removed from its keys.
        state: Its tensors under the remaining keys.
        problems: Keys that are missing, unknown or of another shape, in words; empty if it fits.
        extra: Modules in it that belong neither to the backbone nor to its classifier.
        resized: Tensors that timm resizes for another patch or image size.
        passed_over: Averages in the file that do not fit.
    """

    where: str
    prefix: str
    state: State
    problems: Mapping[str, list[str]]
    extra: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def distance(self) -> int:
        """Number of tensors of the backbone that it has not."""
        return sum(len(keys) for title, keys in self.problems.items() if title != "unknown")

    def describe(self) -> str:
        """Return what was taken; empty where it is all that the file holds."""
        parts = [f"took {self.where!r}"] if self.where else []
        parts += [f"removed the prefix {self.prefix!r}"] if self.prefix else []
        parts += [f"left out {join_some(self.extra, 3)}"] if self.extra else []
        parts += [f"resized {join_some(self.resized, 3)}"] if self.resized else []
        if self.passed_over:
            parts.append(f"passed over {join_some(self.passed_over, 3)} (tensors are missing)")
        return ", ".join(parts)


def load_weights(
    model: nn.Module, path: Path, name: str, classifier: Callable[[], Collection[str]]
) -> str:
    """Load a file of weights, or the one in a folder, into a model, in place.

    Args:
        model: The backbone, without classifier.
        path: The file or folder.
        name: Name of the backbone, for messages.
        classifier: Returns the keys that the architecture has with a classifier only.

    Returns:
        A sentence on what was taken of the file; empty where that is all.

    Raises:
        BackboneError: When the file cannot be read, no state dict in it fits the model, or its
            values are not finite.
    """
    file = find_file(path)
    content, metadata = read_file(file)
    if count := metadata.get(ENSEMBLE):
        raise BackboneError(
            f"weights: {str(file)!r} is an ensemble of {count} networks, and a study starts from "
            "one; give the folder of a refit without --combine ensemble"
        )
    states = dict(_state_dicts(content))
    if not states:
        raise _no_tensors(file, content)
    plan, taken = _plan_of(metadata), find_state(model, states, classifier)
    if taken.problems:
        reason = "; ".join(
            f"{len(keys):,} {title}: {join_some(keys, 3)}"
            for title, keys in taken.problems.items()
        )
        where = f" ({text})" if (text := taken.describe()) else ""
        raise BackboneError(
            f"weights: {str(file)!r}{where} does not belong to the backbone {name!r}: "
            f"{_reason_of_plan(plan, name) or _hint(model, taken)}{reason}"
        )
    own = model.state_dict()
    model.load_state_dict({key: taken.state.get(key, own[key]) for key in own})
    check_finite(model, repr(str(file)))
    return _sentence(file, taken, plan)


def find_state(
    model: nn.Module, states: Mapping[str, State], classifier: Callable[[], Collection[str]]
) -> Candidate:
    """Find the state dict that fits a model, without a prefix or in the form of its authors.

    Args:
        model: The backbone, without classifier; it may be on the meta device.
        states: State dicts of a file by their place in it.
        classifier: Returns the keys that the architecture has with a classifier only.

    Returns:
        The first that fits, else the nearest with its problems.
    """
    keys = functools.cache(classifier)
    candidates: list[Candidate] = []
    for where, state in sorted(states.items(), key=lambda item: _rank(item[0])):
        for prefix in _prefixes(model, state):
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            candidate = _fit(model, Candidate(where, prefix, part, {}), keys)
            if not candidate.problems:
                averages = [c.where for c in candidates if _rank(c.where) < _rank(where)]
                return replace(candidate, passed_over=tuple(dict.fromkeys(averages)))
            candidates.append(candidate)
    return min(candidates, key=lambda candidate: candidate.distance)


def check_finite(model: nn.Module, source: str) -> None:
    """Check that no parameter or buffer of a model is infinite or not a number.

    Raises:
        BackboneError: With the names of the tensors.
    """
    damaged = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if damaged:
        raise BackboneError(
            f"weights: {source} has values that are infinite or not a number (NaN) in "
            f"{plural(len(damaged), 'tensor')}: {join_some(damaged, 3)}; a training that diverged "
            "has written it, or half precision was too small for its values: take an earlier "
            "checkpoint, or save it in float32"
        )


def _state_dicts(content: Any, where: str = "", level: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the places of state dicts in what a file holds, and their tensors."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or class_of(content):
        return
    tensors = {
        _WRAPPERS.sub("", key): tensor
        for key, value in content.items()
        if isinstance(key, str)
        and key.rpartition(".")[2] not in _COUNTERS
        and (tensor := _tensor(value)) is not None
    }
    if any("." in key for key in tensors):  # others are of an optimizer
        yield where, timm.models.clean_state_dict(tensors)
    if level < MAX_NESTING:
        for key, value in content.items():
            yield from _state_dicts(value, f"{where}.{key}".lstrip("."), level + 1)


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor or an array of numbers as a tensor; ``None`` for all else."""
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value)
        except (TypeError, ValueError):  # of texts, dates or objects
            return None
    return value if isinstance(value, Tensor) else None


def _rank(name: str) -> int:
    """Return the order in which state dicts and prefixes are tried, by their names."""
    return 0 if _AVERAGED.search(name) else 2 if _SECOND.search(name) else 1


def _prefixes(model: nn.Module, state: State) -> list[str]:
    """Return the prefixes below which there may be a whole backbone; the empty one first."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        counts.update(
            ".".join(parts[:depth]) + "." for depth in range(1, min(MAX_PREFIX, len(parts)))
        )
    least = _MIN_SHARE * len(model.state_dict())
    return ["", *sorted((p for p, count in counts.items() if count >= least), key=_rank)]


def _fit(
    model: nn.Module, candidate: Candidate, classifier: Callable[[], Collection[str]]
) -> Candidate:
    """Compare a state dict with the model as it is, then in timm's form."""
    as_it_is = _compare(model, candidate, classifier)
    if not as_it_is.problems:
        return as_it_is
    state = candidate.state
    for converted in _converted(model, state):
        in_form = _compare(model, replace(candidate, state=converted), classifier)
        if not in_form.problems:
            changed = (k for k in converted if k in state and converted[k].shape != state[k].shape)
            return replace(in_form, resized=tuple(changed))
    return as_it_is


def _compare(
    model: nn.Module, candidate: Candidate, classifier: Callable[[], Collection[str]]
) -> Candidate:
    """Find out how keys and shapes differ from the model's; the classifier may differ."""
    own, state = model.state_dict(), candidate.state
    unknown = [key for key in state if key not in own]
    if unknown:
        named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
        prefixes = tuple(f"{head}." for head in ([named] if isinstance(named, str) else named))
        unknown = [key for key in unknown if not key.startswith(prefixes)]
    if unknown:  # a head of several layers: to ask for it takes as long as to load the weights
        keys = classifier()
        unknown = [key for key in unknown if key not in keys]
    roots = {key.partition(".")[0] for key in own}
    outside = [key.partition(".")[0] for key in unknown]
    extra = tuple(dict.fromkeys(r for r in outside if r not in roots and _HEADS.match(r)))
    differences = {
        "missing": [k for k in own if k not in state and not k.endswith("num_batches_tracked")],
        "unknown": [k for k in unknown if k.partition(".")[0] not in extra],
        "other shapes": [
            f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ],
        "of a type that is not trained": [
            f"{key} is {kind}"
            for key in own
            if key in state and (kind := _unusual_type(state[key], own[key]))
        ],
    }
    problems = {title: keys for title, keys in differences.items() if keys}
    return replace(candidate, problems=problems, extra=extra)


def _unusual_type(value: Tensor, own: Tensor) -> str:
    """Return the type of a tensor that cannot stand for the model's own; empty if it can."""
    if value.is_meta and not own.is_meta:
        return "without values (device meta)"
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    if own.is_floating_point() and not value.is_floating_point():
        return str(value.dtype).removeprefix("torch.")
    return ""


def _converted(model: nn.Module, state: State) -> Iterator[State]:
    """Convert the checkpoint of an architecture's authors to timm's form, where timm can.

    Most families of timm have ``checkpoint_filter_fn`` for it, some a function of another name,
    with or without the model.
    """
    if renamed := _renamed_efficientnet(model, state):
        yield renamed
    module = sys.modules[type(model).__module__]
    for name, convert in inspect.getmembers(module, inspect.isfunction):
        if not ("filter" in name and convert.__module__ == module.__name__):
            continue
        arguments = (dict(state), model)[: len(inspect.signature(convert).parameters)]
        try:
            converted = convert(*arguments)
        except Exception as error:  # the file is not the kind of checkpoint it was written for
            logger.debug("%s of %s: %s", name, module.__name__, error)
            continue
        if isinstance(converted, Mapping):
            yield dict(converted)


def _renamed_efficientnet(model: nn.Module, state: State) -> State:
    """Give an EfficientNet of the package ``efficientnet_pytorch`` the names of timm.

    Both have the same tensors in the same order. The result is empty where that is not so.
    """
    own = model.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith("_fc.")}
    is_same = "_conv_stem.weight" in kept and [
        (key.rpartition(".")[2], value.shape) for key, value in kept.items()
    ] == [(key.rpartition(".")[2], value.shape) for key, value in own.items()]
    return dict(zip(own, kept.values(), strict=True)) if is_same else {}


def _hint(model: nn.Module, candidate: Candidate) -> str:
    """Say what the keys and shapes of a state dict that does not fit tell."""
    own, state = model.state_dict(), candidate.state
    for pattern, hint in _HINTS:
        if any(re.search(pattern, key) for key in state.keys() - own.keys()):
            return f"{hint}; "
    shapes = Counter(value.shape for value in own.values() if value.dim())
    shapes.subtract(value.shape for value in state.values())
    if len(candidate.problems.get("missing", ())) > len(own) / 2 and max(shapes.values()) <= 0:
        return (
            "tensors of all its shapes are there under other names, as another library "
            "(torchvision) has the same architecture; they have to be named as timm does, or "
            "weights=hub takes timm's own; "
        )
    return ""


def _sentence(file: Path, candidate: Candidate, plan: TrialPlan | None) -> str:
    """Return what was taken of a file; of a model that autotune fitted also what differs in it."""
    text = candidate.describe()
    changed = _changed_layers(plan) if plan is not None else ""
    if plan is not None:
        text = f"took the backbone of a model that autotune fitted ({plan.backbone})"
        text += f", without its changes of {changed}" if changed else ""
    return f"weights: {text}, from {str(file)!r}" if text else ""


def _plan_of(metadata: Mapping[str, str]) -> TrialPlan | None:
    """Return the plan of a model that autotune fitted."""
    try:
        return TrialPlan.from_json(json.loads(metadata["plan"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _changed_layers(plan: TrialPlan) -> str:
    return "; ".join(f"layer {i} ({plan.layers[i - 1].describe()})" for i in plan.reshaped)


def _reason_of_plan(plan: TrialPlan | None, name: str) -> str:
    """Say why a model that autotune fitted does not fit."""
    if plan is None:
        return ""
    architecture, other = (text.partition(".")[0] for text in (name, plan.backbone))
    if architecture != other:
        return f"it is a fit of the backbone {plan.backbone!r}; "
    if not any(set(plan.layers[index - 1].changes()) & set(INHERITING) for index in plan.reshaped):
        return ""
    return (
        f"it is a fit with other shapes in {_changed_layers(plan)}, and a study starts from the "
        "shapes of its backbone; take a fit whose plan keeps them, or weights=hub; "
    )


def _no_tensors(file: Path, content: Any) -> BackboneError:
    """Return the error for a file without a state dict: what it holds instead."""
    inside = content.items() if isinstance(content, Mapping) else ()
    for key, value in (("", content), *inside):
        if name := class_of(value):
            what = f"its {str(key)!r} is" if key != "" else "it is"
            return BackboneError(
                f"weights: cannot read {str(file)!r}: {what} a whole pickled module ({name}), "
                f"not its weights alone; {SAVE_TENSORS}"
            )
    if isinstance(content, Mapping):
        what = f"a mapping with {join_some([repr(key) for key in content], 5) or 'nothing'}"
    else:
        what = f"a {type(content).__name__}"
    return BackboneError(f"weights: {str(file)!r} holds no state dict of tensors, but {what}")
