"""Parameters of a search space in words."""

from __future__ import annotations

import pytest

from autotune.results.values.parameter_words import label_parameter, parameter_words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("depth", "trainable layers"),
        ("training.lr", "learning rate"),
        ("training.weight_decay", "weight decay"),
        ("layer.12.drop_path", "drop path of layer 12"),
        ("layer.1.bridge", "low rank of layer 1"),
        ("head.units.2", "units of hidden layer 2"),
    ],
)
def test_words(name: str, words: str) -> None:
    assert parameter_words(name) == words
    assert label_parameter(name) == f"{words} ({name})"


@pytest.mark.parametrize("name", ["backbone", "mine.rank", "layer.x.y", "照片", ""])
def test_a_parameter_of_others_keeps_its_name(name: str) -> None:
    assert parameter_words(name) == label_parameter(name) == name
