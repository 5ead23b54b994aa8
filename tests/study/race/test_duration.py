"""About how long a race takes, from what its backbones compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.models.backbone import build_backbone
from autotune.study.race import duration
from autotune.study.race.duration import count_macs, cpu_speed, race_seconds
from autotune.study.race.entrants import Entrants
from autotune.study.setup.definition import open_dataset
from tests.support.study.small import small_config

NAMES = ["test_resnet", "test_vit"]


def race_of(folder: Path, **changes: Any) -> Any:
    values = {
        "backbone": {"race": NAMES},
        "weights": "none",
        "data__image_size": 32,
        "space__trainable_layers": {"low": 0, "high": "all"},
        "training__epochs": 10,
        **changes,
    }
    return small_config(folder, **values)


def test_a_backbone_computes_more_on_larger_images() -> None:
    small, large = (
        count_macs(build_backbone("test_resnet", s, device="meta"), s) for s in (32, 64)
    )
    assert 3.5 * small < large < 4.5 * small
    assert cpu_speed() > 1e6


def test_the_seconds_follow_the_images_and_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "cpu_speed", lambda: 1e9)
    config = race_of(tmp_path)
    dataset = open_dataset(config)
    train, validation = len(dataset.split.train), len(dataset.split.validation)
    seconds = race_seconds(config, dataset, [10**9, 10**9])
    # Both are solved, then both are tuned for three tenths of the epochs.
    passes = 2 * (train + validation) + 2 * 3 * (3.3 * train + validation)
    assert seconds == pytest.approx(passes / 0.6 + 4 * 3.0)
    heads = race_of(tmp_path, space__trainable_layers=0)
    assert race_seconds(heads, dataset, [10**9, 10**9]) == pytest.approx(
        2 * (train + validation) / 0.6 + 2 * 3.0
    )
    assert race_seconds(config, dataset, [10**9, 10**9], gpus=2) < seconds


def test_it_is_told_who_takes_part_and_what_it_costs(tmp_path: Path) -> None:
    config = race_of(tmp_path)
    entrants = Entrants.of(config, "none")
    assert entrants.describe() == "2 backbones of the study file: test_vit, test_resnet"
    dataset = open_dataset(config)
    assert entrants.describe_costs(dataset, 0).startswith("roughly ")
    assert entrants.describe_costs(dataset, 0).endswith(" on the CPU")
    assert "on 2 GPUs" in entrants.describe_costs(dataset, 2)
    assert entrants.describe_costs(None, 0) == ""
    wanted = Entrants.of(race_of(tmp_path, weights="hub"), "none")
    assert wanted.describe().endswith("test_vit (1 MB), test_resnet (1 MB)")
    assert wanted.describe_costs(dataset, 0).endswith(", and 3 MB to download from the hub")
    assert wanted.describe_costs(None, 0) == "3 MB to download from the hub"
