"""Small real backbones, and trainings of them on a few digits."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from autotune.config.schema import AugmentConfig, DataConfig, TrainingConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import Views
from autotune.models.backbone import Backbone, data_config, hash_weights
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.training.curves import CHECKPOINT_KEY, SECONDS
from autotune.training.folds import CrossValidationTrainer
from autotune.training.inputs.batches import SubsetBatches
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

SIZE = 32
CPU = torch.device("cpu")
#: Architecture -> what makes it as irregular as it can be: dropout, drop path, stochastic depth.
DROPPING: dict[str, dict[str, Any]] = {
    "test_resnet": {"drop_path_rate": 0.3},
    "test_vit": {"drop_path_rate": 0.3, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2},
    "test_convnext": {"drop_path_rate": 0.3},
    "test_efficientnet": {"drop_path_rate": 0.3},
    "test_byobnet": {"drop_path_rate": 0.3},
    "mobilenetv3_small_050": {"drop_path_rate": 0.2},
    "levit_128s": {"drop_path_rate": 0.2},
    "pit_ti_224": {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2},
    "poolformer_s12": {"drop_path_rate": 0.3, "proj_drop_rate": 0.2},
}
SMALL = tuple(DROPPING)[:5]
FIXED_SIZE = ("test_vit", "pit_ti_224", "levit_128s")

torch.set_num_threads(1)  # networks as small as these are no faster on more


@functools.cache
def backbone(name: str, dropping: bool = False) -> Backbone:
    """Make a backbone whose norm statistics and scales are not those of a fresh model."""
    options = dict(DROPPING[name]) if dropping else {}
    if name in FIXED_SIZE:
        options["img_size"] = SIZE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(name, num_classes=0, **options)
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if key.endswith("running_mean"):
                    value.normal_(std=0.1)
                elif key.endswith("running_var") or (value.ndim == 1 and "gamma" in key):
                    value.uniform_(0.5, 1.5)
    model.eval().requires_grad_(False)
    return Backbone(name, model, data_config(model, SIZE), hash_weights(model))


def depths(name: str) -> range:
    return range(len(list_layers(backbone(name).pretrained)) + 1)


def plan(name: str, depth: int = 0, *units: int, dropout: float = 0.0, **policy: Any) -> TrialPlan:
    """Make a plan that keeps everything."""
    hidden = tuple(HiddenLayer(one, dropout) for one in units)
    return TrialPlan(
        name, depth, (LayerPlan(),) * depth, HeadPlan(hidden), TrainingPolicy(**policy)
    )


def network(name: str, depth: int = 0, dropping: bool = False, classes: int = 3) -> Network:
    return build_network(backbone(name, dropping), plan(name, depth), classes, seed=0)


def images(name: str, count: int = 4, seed: int = 0) -> Tensor:
    """Draw normalized images ``(count, 3, size, size)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy all parameters and buffers, those that are not saved included."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: value.detach().clone() for name, value in tensors.items()}


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Say whether two modules have the same parameters and buffers, to the bit."""
    ours, theirs = state_of(first), state_of(second)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) for key in ours
    )


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Lay a state out as path -> copy of a tensor on the CPU, or a number; without seconds."""
    if path.endswith(f"/{CHECKPOINT_KEY}"):
        value = {name: one for name, one in json.loads(value).items() if name != SECONDS}
    if isinstance(value, dict):
        items = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), one) for index, one in enumerate(value)]
    else:
        return {path: value.detach().cpu().clone() if isinstance(value, Tensor) else value}
    return {key: one for name, part in items for key, one in flat(part, f"{path}/{name}").items()}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """List where two flat states differ, in any bit."""
    assert first.keys() == second.keys()
    return [
        key
        for key, one in first.items()
        if not (torch.equal(one, second[key]) if isinstance(one, Tensor) else one == second[key])
    ]


@functools.cache
def digits() -> StudyData:
    """Open the digits at 32 pixels, once per process."""
    config = data_config(backbone("test_resnet").pretrained, SIZE)
    spec = ImageSpec.from_data_config(config, SIZE)
    folder = Path(tempfile.gettempdir()) / f"autotune-tests-digits-{SIZE}"
    return StudyData.open("digits", DataConfig(image_size=SIZE), spec, folder)


def some_digits(count: int, views: int = 1, start: int = 0, seed: int = 0) -> Views:
    """Take training images of all ten classes, in turn."""
    task = digits()
    labels = task.store.labels[task.train_rows]
    by_class = [task.train_rows[labels == label] for label in range(10)]
    rows = [by_class[i % 10][(start + i) // 10] for i in range(count)]
    augment = AugmentConfig(crop=0.8, flip=0.0)
    return Views(task.store, torch.tensor(rows).numpy(), task.spec, augment, views, seed)


def training(
    found: TrialPlan,
    *,
    seed: int = 0,
    count: int = 44,
    validation: int | None = 20,
    stopped: Callable[[], bool] = lambda: False,
    dropping: bool = False,
    net: Network | None = None,
    micro_batch_size: int | None = None,
    device: torch.device = CPU,
    shown: Views | None = None,
    graphs: bool = False,
    **config: Any,
) -> Trainer:
    """Make a training of a plan on a few digits, or on the images that are given."""
    settings = TrainingConfig(**{"epochs": 3, "batch_size": 16, "num_views": 1, **config})
    source = backbone(found.backbone, dropping)
    normalize = Normalizer.from_config(source.data_config, CPU)

    def some() -> Tensor:
        return next(sample_batches(some_digits(count, seed=seed), 16, normalize, seed))

    net = net or build_network(source, found, 10, seed, some)
    if device != CPU:
        net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trainer(
        net,
        found.policy,
        settings,
        some_digits(count, settings.num_views, seed=seed) if shown is None else shown,
        None if validation is None else some_digits(validation, start=600),
        Normalizer.from_config(source.data_config, device),
        seed,
        stopped,
        micro_batch_size=micro_batch_size,
        cuda_graphs=graphs,
    )


def folds(
    found: TrialPlan,
    *,
    seed: int = 0,
    count: int = 45,
    stopped: Callable[[], bool] = lambda: False,
    dropping: bool = False,
    **config: Any,
) -> CrossValidationTrainer:
    """Make trainings of a plan in three folds of a few digits, 15 each with all classes."""
    settings = TrainingConfig(**{"epochs": 3, "batch_size": 16, "num_views": 1, **config})
    source = backbone(found.backbone, dropping)
    whole = some_digits(count, settings.num_views, seed=seed)
    order = torch.arange(count)
    judged = [order[order // 15 % 3 == fold] for fold in range(3)]
    trained = [order[order // 15 % 3 != fold] for fold in range(3)]
    normalize = Normalizer.from_config(source.data_config, CPU)

    def one(fold: int) -> Trainer:
        train = SubsetBatches(whole, trained[fold])
        return Trainer(
            build_network(
                source, found, 10, seed, lambda: next(sample_batches(train, 16, normalize, seed))
            ),
            found.policy,
            settings,
            train,
            SubsetBatches(whole, judged[fold]),
            normalize,
            seed + 1000 * fold,
            stopped,
        )

    return CrossValidationTrainer(map(one, range(3)), trained, judged)


def step(run: Trainer, loss: Tensor) -> None:
    """Take one step of a training with a custom loss."""
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    run._clip()
    run._update()
