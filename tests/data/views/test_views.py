from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autotune.config.schema import AugmentConfig
from autotune.data.cache.decoded_images import ImageStore, open_store
from autotune.data.preprocessing import ImageSpec
from autotune.data.sources.registry import open_source
from autotune.data.views.augmentation import describe_augmentation, make_augmentation
from autotune.data.views.views import Views
from tests.support.data.images import make_class_folders

SPEC = ImageSpec(16, 24, "bicubic", 0.66, "center", (0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
ALL = AugmentConfig(crop=0.4, flip=0.5, rotate=20.0, jitter=0.5)
COUNT = 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    root = tmp_path_factory.mktemp("views")
    make_class_folders(root / "photos", {"a": 6, "b": 5}, size=(40, 33))
    source = open_source(str(root / "photos"))
    return open_store(source, range(11), SPEC, root / "images", unreadable_limit=0.0)


def make(
    store: ImageStore,
    augment: AugmentConfig = ALL,
    views: int = 4,
    seed: int = 0,
    limit: int = 1 << 29,
    rows: np.ndarray | None = None,
) -> Views:
    rows = np.arange(1, 1 + COUNT) if rows is None else rows
    return Views(store, rows, SPEC, augment, views, seed, limit)


def collect(views: Views, epoch: int, num_workers: int = 0, size: int = 4) -> torch.Tensor:
    order = torch.arange(len(views))
    plan = views.views_for_epoch(epoch)
    return torch.cat([images for images, _ in views.batches(order, plan, size, num_workers)])


def test_view_0_is_the_center_crop(store: ImageStore) -> None:
    views = make(store)
    assert len(views) == COUNT
    assert views.labels.dtype == torch.int64
    assert views.labels.tolist() == store.labels[1:10].tolist()
    for i in range(COUNT):
        expected = torch.from_numpy(np.array(store.images[i + 1, :, 4:20, 4:20]))
        assert torch.equal(views.view(i, 0), expected)


def test_views_differ_and_are_always_the_same(store: ImageStore) -> None:
    views = make(store)
    seen = {views.view(i, v).numpy().tobytes() for i in range(COUNT) for v in range(4)}
    assert len(seen) == 4 * COUNT
    second = make(store)
    for v in (3, 1, 2):
        for i in reversed(range(COUNT)):
            assert views.view(i, v).dtype == torch.uint8
            assert views.view(i, v).shape == (3, 16, 16)
            assert torch.equal(views.view(i, v), second.view(i, v))


def test_a_view_belongs_to_its_image_not_to_its_place(store: ImageStore) -> None:
    views = make(store)
    turned = make(store, rows=np.arange(COUNT, 0, -1))
    assert torch.equal(views.view(2, 3), turned.view(COUNT - 3, 3))
    assert not torch.equal(views.view(2, 3), make(store, seed=1).view(2, 3))


def test_the_global_generator_and_threads_are_left_alone(store: ImageStore) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    views = make(store, limit=0)
    views.view(0, 1)
    collect(views, 1)
    collect(views, 1, num_workers=1)
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads


class TestAugmentations:
    def test_flip(self, store: ImageStore) -> None:
        plain = AugmentConfig(crop=1.0, flip=0.0)
        always = AugmentConfig(crop=1.0, flip=1.0)
        for v in (1, 2):
            left = make(store, plain).view(0, v)
            assert torch.equal(left.flip(-1), make(store, always).view(0, v))

    def test_the_smallest_crop_is_the_config_s(self, store: ImageStore) -> None:
        def spread(crop: float) -> float:
            views = make(store, AugmentConfig(crop=crop, flip=0.0), views=20)
            flat = torch.stack([views.view(0, v) for v in range(1, 20)]).float()
            return float(flat.std(0).mean())

        assert spread(0.9) < spread(0.2)

    def test_rotation_fills_corners_with_the_mean(self, store: ImageStore) -> None:
        views = make(store, AugmentConfig(crop=1.0, flip=0.0, rotate=180.0), views=30)
        corners = {tuple(views.view(0, v)[:, 0, 0].tolist()) for v in range(1, 30)}
        assert (128, 102, 76) in corners

    def test_jitter_changes_colors_alone(self, store: ImageStore) -> None:
        plain = make(store, AugmentConfig(crop=1.0, flip=0.0))
        jittered = make(store, AugmentConfig(crop=1.0, flip=0.0, jitter=0.9))
        assert not torch.equal(plain.view(0, 1), jittered.view(0, 1))
        assert torch.equal(plain.view(0, 0), jittered.view(0, 0))

    @pytest.mark.parametrize(
        "given",
        [
            {"policy": "trivial", "strength": 1.0},
            {"policy": "rand", "strength": 1.0},
            {"erasing": 1.0},
            {"policy": "trivial", "erasing": 0.5, "rotate": 20.0, "jitter": 0.5},
        ],
    )
    def test_policies_depend_on_image_view_and_seed_alone(
        self, store: ImageStore, given: dict[str, Any]
    ) -> None:
        augment = AugmentConfig(**given)
        expected = collect(make(store, augment), 1)
        assert torch.equal(collect(make(store, augment), 1, num_workers=1), expected)
        alone = make(store, augment, limit=0, rows=np.array([5]))
        for number in range(4):
            assert torch.equal(alone.view(0, number), make(store, augment).view(4, number))
        assert torch.equal(make(store, augment).view(0, 0), make(store, ALL).view(0, 0))
        assert not torch.equal(collect(make(store, AugmentConfig()), 1), expected)

    @pytest.mark.parametrize("policy", ["trivial", "rand"])
    def test_strength_goes_from_nothing_to_the_published_changes(
        self, store: ImageStore, policy: str
    ) -> None:
        def change(strength: float) -> float:
            augment = AugmentConfig(crop=1.0, flip=0.0, policy=policy, strength=strength)
            views, plain = (make(store, a, 20) for a in (augment, AugmentConfig(crop=1, flip=0)))
            pairs = [(views.view(i, v), plain.view(i, v)) for i in range(3) for v in range(1, 20)]
            return sum(float((a.float() - b.float()).abs().mean()) for a, b in pairs)

        assert 0.0 == change(0.0) < change(0.1) < change(1.0)

    @pytest.mark.parametrize("size", [8, 33])
    def test_a_small_image_keeps_some_of_its_content(self, size: int) -> None:
        spec = ImageSpec(size, size, "bilinear", 1.0, "center", (0.5, 0.5, 0.5), (1.0,) * 3)
        augment = AugmentConfig(crop=1.0, policy="trivial", strength=1.0)
        space = make_augmentation(spec, augment).transforms[-1]._AUGMENTATION_SPACE
        for name in ("TranslateX", "TranslateY"):
            assert space[name][0](31, size, size).max() < size / 2

    def test_keys_of_features_are_those_of_earlier_versions(self) -> None:
        before = "AugmentConfig(crop=0.4, flip=0.5, rotate=20.0, jitter=0.5)"
        assert describe_augmentation(ALL) == before
        for given in ({"policy": "rand"}, {"policy": "rand", "strength": 0.5}, {"erasing": 0.1}):
            assert describe_augmentation(ALL.model_copy(update=given)) != before

    @pytest.mark.parametrize("name", ["nearest", "box", "hamming", "lanczos"])
    def test_every_interpolation_has_views(self, store: ImageStore, name: str) -> None:
        spec = ImageSpec(16, 24, name, 0.66, "center", SPEC.mean, SPEC.std)
        views = Views(store, np.arange(2), spec, ALL, views=2, seed=0)
        assert views.view(0, 1).shape == (3, 16, 16)


class TestPlan:
    def test_every_image_goes_through_its_views_in_turn(self, store: ImageStore) -> None:
        views = make(store)
        plan = torch.stack([views.views_for_epoch(epoch) for epoch in range(8)])
        assert plan.dtype == torch.int64
        assert plan.shape == (8, COUNT)
        for column in plan.T.tolist():
            assert sorted(column[:4]) == [0, 1, 2, 3]
            assert column[4:] == column[:4]

    def test_every_epoch_uses_all_views_evenly(self, store: ImageStore) -> None:
        for epoch in range(4):
            uses = torch.bincount(make(store).views_for_epoch(epoch), minlength=4)
            assert uses.max() - uses.min() <= 1

    def test_the_seed_decides(self, store: ImageStore) -> None:
        plans = [make(store, seed=seed).views_for_epoch(0) for seed in (0, 0, 1)]
        assert torch.equal(plans[0], plans[1])
        assert not torch.equal(plans[0], plans[2])

    def test_one_view_is_view_0(self, store: ImageStore) -> None:
        assert not make(store, views=1).views_for_epoch(7).any()


class TestBatches:
    @pytest.mark.parametrize("limit", [0, 1 << 29])
    def test_follow_the_order_and_the_plan(self, store: ImageStore, limit: int) -> None:
        views = make(store, limit=limit)
        order = torch.tensor([5, 0, 8, 3, 7, 1])
        for epoch in (0, 1, 0):
            plan = views.views_for_epoch(epoch)
            batches = list(views.batches(order, plan, 4))
            assert [len(labels) for _, labels in batches] == [4, 2]
            images = torch.cat([images for images, _ in batches])
            labels = torch.cat([labels for _, labels in batches])
            assert labels.dtype == torch.int64
            assert torch.equal(labels, views.labels[order])
            for position, i in enumerate(order.tolist()):
                assert torch.equal(images[position], make(store).view(i, int(plan[i])))

    @pytest.mark.parametrize(
        ("count", "size", "expected"),
        [
            (9, 4, [4, 5]),
            (9, 8, [9]),
            (8, 4, [4, 4]),
            (7, 4, [4, 3]),
            (3, 10, [3]),
            (1, 4, [1]),
            (3, 1, [1, 2]),
            (0, 4, []),
        ],
    )
    def test_a_single_last_image_joins_the_batch_before(
        self, store: ImageStore, count: int, size: int, expected: list[int]
    ) -> None:
        views = make(store)
        batches = views.batches(torch.arange(count), views.views_for_epoch(0), size)
        assert [len(images) for images, _ in batches] == expected

    @pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core
    @pytest.mark.parametrize("limit", [0, 1 << 29])
    def test_workers_make_the_same_views(self, store: ImageStore, limit: int) -> None:
        alone, together = make(store, limit=limit), make(store, limit=limit)
        for epoch in (1, 2, 1):
            assert torch.equal(collect(alone, epoch), collect(together, epoch, num_workers=2))

    def test_kept_views_are_made_once(
        self, store: ImageStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        views = make(store)
        first = [collect(views, epoch) for epoch in range(4)]
        rendered: list[int] = []
        monkeypatch.setattr(
            "autotune.data.views.views.ViewRenderer._render", lambda *place: rendered.append(1)
        )
        for epoch in range(4):
            assert torch.equal(collect(views, epoch), first[epoch])
        assert torch.equal(views.view(0, int(views.views_for_epoch(2)[0])), first[2][0])
        assert not rendered

    def test_kept_views_are_not_handed_out(self, store: ImageStore) -> None:
        views = make(store)
        expected = collect(views, 0)
        collect(views, 0).zero_()
        view = int(views.views_for_epoch(0)[0])
        views.view(0, view).zero_()
        assert torch.equal(collect(views, 0), expected)

    def test_views_beyond_the_limit_are_not_kept(self, store: ImageStore) -> None:
        needed = COUNT * 4 * 3 * 16 * 16
        assert make(store, limit=needed).cached is not None
        assert make(store, limit=needed - 1).cached is None


def test_views_that_are_not_there_are_refused(store: ImageStore) -> None:
    with pytest.raises(ValueError, match="at least 1 view, but got views=0"):
        make(store, views=0)
    for i, v in ((COUNT, 0), (0, 4), (-1, 0), (0, -1)):
        with pytest.raises(IndexError, match=f"must be below 9 and 4, but got {i} and {v}"):
            make(store).view(i, v)
    with pytest.raises(ValueError, match=r"each of 9 images, but has the shape \(3,\)"):
        next(make(store).batches(torch.arange(3), torch.zeros(3, dtype=torch.int64), 2))
