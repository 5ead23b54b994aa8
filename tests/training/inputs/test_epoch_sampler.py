from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from autotune.config.schema import AugmentConfig, DataConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import ViewRenderer
from autotune.training.features import FeatureCache
from autotune.training.inputs.batches import epoch_order
from tests.support.data.images import make_class_folders
from tests.support.models.backbones import plan
from tests.training.test_features import on_features

LABELS = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)


def order(seed: int, sampling: str) -> torch.Tensor:
    torch.manual_seed(seed)
    return epoch_order(LABELS, sampling)


def test_plain_takes_each_image_once() -> None:
    torch.manual_seed(3)
    wanted = torch.randperm(1000)
    assert torch.equal(order(3, "uniform"), wanted)


def test_balanced_shows_every_class_equally_often() -> None:
    drawn = order(0, "balanced")
    assert drawn.shape == (1000,)
    counts = LABELS[drawn].bincount()
    assert (counts - 1000 / 3).abs().max() < 60
    assert torch.equal(drawn, order(0, "balanced"))
    assert not torch.equal(drawn, order(1, "balanced"))
    everything = torch.cat([order(seed, "balanced") for seed in range(40)])
    assert len(everything.unique()) > 995


@pytest.fixture
def task(tmp_path: Path) -> StudyData:
    photos = make_class_folders(tmp_path / "photos", {"a": 10, "b": 40})
    spec = ImageSpec(8, 12, "bicubic", 0.6, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return StudyData.open(str(photos), DataConfig(), spec, tmp_path / "images")


def test_repeated_images_are_made_once(task: StudyData) -> None:
    views = task.train_views(AugmentConfig(), 2, seed=0)
    positions = torch.tensor([0, 0, 1, 3, 0, 3, 1, 0, 3])
    chosen = views.views_for_epoch(0)
    made: list[tuple[int, int]] = []
    real = ViewRenderer.render

    def spy(self: ViewRenderer, pairs: list[tuple[int, int]]) -> torch.Tensor:
        made.extend(pairs)
        return real(self, pairs)

    with patch.object(ViewRenderer, "render", spy):
        batches = list(views.batches(positions, chosen, 4))
    assert sorted(position for position, _ in made) == [0, 1, 3]
    images = torch.cat([images for images, _ in batches])
    for place, position in enumerate(positions.tolist()):
        assert torch.equal(images[place], views.view(position, int(chosen[position])))
    streamed = task.train_views(AugmentConfig(), 2, seed=0, memory_bytes=0)
    assert torch.equal(
        images, torch.cat([one for one, _ in streamed.batches(positions, chosen, 4)])
    )


def test_features_of_a_balanced_epoch_are_those_of_all_images(tmp_path: Path) -> None:
    opened: list[int] = []
    real = FeatureCache.open

    def spy(self: FeatureCache, split: object, views: object, positions: torch.Tensor, *rest):  # type: ignore[no-untyped-def]
        opened.append(len(positions))
        return real(self, split, views, positions, *rest)  # type: ignore[arg-type]

    run = on_features(
        plan("test_resnet", 1), tmp_path / "features", num_views=1, sampling="balanced"
    )
    with patch.object(FeatureCache, "open", spy):
        losses = [result.loss for result in run.run()]
    assert set(opened) == {len(run.train), len(run.validation or ())}
    homes = (tmp_path / "features/features").iterdir()
    entries = [path for home in homes for path in home.iterdir() if path.is_dir()]
    assert len(entries) == 2  # training and validation images, whatever the epochs drew
    again = on_features(
        plan("test_resnet", 1), tmp_path / "other", num_views=1, sampling="balanced"
    )
    assert losses == [result.loss for result in again.run()]
    plain = on_features(plan("test_resnet", 1), tmp_path / "features", num_views=1)
    assert losses != [result.loss for result in plain.run()]
