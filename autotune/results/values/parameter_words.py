"""Parameters of a search space in words, for people who have not written it."""

from __future__ import annotations

import re

from autotune.search.parameters.by_optimizer import optimizer_of, shared_name

_WORDS = {
    "depth": "trainable layers",
    "image_size": "image size",
    "augment_strength": "strength of augmentation",
    "training.lr": "learning rate",
    "training.backbone_lr": "learning rate of the backbone",
    "training.head_start": "start of the head",
    "training.head_epochs": "epochs of the head alone",
    "training.parameters": "kind of parameters that train",
    "training.l2_sp": "pull towards the pretrained weights",
    "head.hidden_layers": "hidden layers of the head",
    "head.pool": "pooling before the head",
    "head.activation": "activation of the head",
    "head.batch_norm": "batch norm of the head",
}
_NUMBERED = re.compile(r"(layer|head)\.(?:(\d+)\.(\w+)|(\w+)\.(\d+))")


def parameter_words(name: str) -> str:
    """Name a parameter in words; one of a plugin keeps its name.

    Example:
        >>> [parameter_words(name) for name in ("training.weight_decay", "layer.3.width")]
        ['weight decay', 'width of layer 3']
        >>> parameter_words("head.units.1"), parameter_words("custom")
        ('units of hidden layer 1', 'custom')
    """
    if words := _WORDS.get(name):
        return words
    if optimizer := optimizer_of(name):
        return f"{parameter_words(shared_name(name))} with {optimizer}"
    if match := _NUMBERED.fullmatch(name):
        _, layer, of_layer, of_head, number = match.groups()
        words = f"{of_layer} of layer {layer}" if layer else f"{of_head} of hidden layer {number}"
        return words.replace("bridge", "low rank").replace("_", " ")
    group, dot, key = name.partition(".")
    return key.replace("_", " ") if dot and group == "training" else name


def label_parameter(name: str) -> str:
    """Name a parameter in words, and as the trials do where that differs.

    Example:
        >>> label_parameter("training.lr"), label_parameter("custom")
        ('learning rate (training.lr)', 'custom')
    """
    words = parameter_words(name)
    return name if words == name else f"{words} ({name})"
