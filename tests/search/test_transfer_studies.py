"""The study files of docs/results.md: one policy, the sets with their published test images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from autotune.config.loading import load_study_file, presets
from autotune.data.sources.registry import downloadable
from autotune.models.backbone import build_backbone
from autotune.models.layers import list_layers
from autotune.plan import SOLVED
from autotune.search.backbone_limits import Candidate
from autotune.search.space import Space

ROOT = Path(__file__).parents[2]
STUDIES = tuple(name for name in presets() if name.startswith("transfer-"))
PER_CLASS = {"transfer-dtd": "accuracy"}


def test_the_sets_are_those_of_the_page_and_of_the_script() -> None:
    sets = sorted(name.removeprefix("transfer-") for name in STUDIES)
    page = (ROOT / "docs/results.md").read_text()
    assert sorted(re.findall(r"^\| (\w+) \| – \|", page, re.MULTILINE)) == sets
    script = (ROOT / "benchmarks/transfer.py").read_text()
    assert sorted(re.findall(r"\w+", script.split("SETS = (")[1].split(")")[0])) == sets


@pytest.mark.parametrize("name", STUDIES)
def test_the_policy_is_one(name: str) -> None:
    config, other = load_study_file(name), load_study_file("transfer-pets")
    assert downloadable(config.dataset) is not None
    assert config.backbone == "resnet50.tv_in1k"
    assert config.training.objective == PER_CLASS.get(name, "balanced_accuracy")
    assert (config.data.protocol is None) == (config.dataset != "caltech101")
    assert (config.space, config.search, config.baseline, config.refit) == (
        *(other.space, other.search, other.baseline),
        other.refit,
    )


def test_every_number_of_layers_can_train_from_a_solved_or_a_random_head() -> None:
    config = load_study_file("transfer-pets")
    with torch.device("meta"):
        layers = list_layers(build_backbone(config.backbone, None, device="meta"))
    candidate = Candidate(config.backbone, len(layers), ())
    space = Space.from_candidates([candidate], config.space, "weights")
    assert space.max_depth == len(layers)
    assert {"depth", "training.lr", "training.backbone_lr", "training.head_start"} <= set(
        space.distributions
    )
    assert space.fixed["training.optimizer"] == "sgd"
    assert space.baseline(config.baseline).policy.head_start == SOLVED
