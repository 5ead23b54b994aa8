"""A search over layer configurations with Optuna, timm and torchvision: naive.py's naive side.

What a good practitioner writes without autotune: frozen layers get no gradient and keep their norm
statistics, data loaders prepare the images, two processes share one study. Every trial sends every
image through the whole network in every epoch. Nothing here imports autotune.

    python benchmarks/naive_study.py SETTINGS.json     # one worker of a study that is there
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import timm
import torch
from optuna.trial import Trial, TrialState
from timm.data import create_transform, resolve_data_config
from timm.models import group_parameters
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

STUDY = "naive"
#: Units of the hidden layer of a head; 0 is a linear head.
HIDDEN = (0, 128, 512)
DROPOUT = 0.2
LR = (1e-4, 1e-2)
LAYER_DECAY = (0.5, 1.0)
WEIGHT_DECAY = (1e-5, 1e-2)
LABEL_SMOOTHING = (0.0, 0.1)
#: Batches that each loader process keeps ready for a GPU.
PREFETCH = 4


@dataclass(frozen=True)
class Plan:
    """What one trial trains.

    Args:
        depth: How many of the last layers are trainable; 0 is the head alone.
        hidden: Units of the head's hidden layer, 0 for a linear head.
        lr: Peak learning rate of the head.
        layer_decay: Layer ``i``, counted from the output, trains with ``lr * layer_decay ** i``.
        weight_decay: Of matrices; norms and biases have none.
        label_smoothing: Of the training loss.
    """

    depth: int
    hidden: int
    lr: float
    layer_decay: float
    weight_decay: float
    label_smoothing: float


@dataclass(frozen=True)
class Settings:
    """What all trials share.

    Args:
        images: Folder with ``train/`` and ``val/``.
        backbone: timm's name of the model.
        weights: File of its weights, ``hub`` or ``none``.
        image_size: Pixels.
        max_depth: The largest depth of a plan.
        epochs: Of each trial.
        batch_size: Images in a batch.
        crop: Least share of an image that a random crop covers.
        flip: Probability of a horizontal flip.
        warmup: Share of the steps in which the learning rate rises.
        clip_norm: Largest norm of the gradients.
        seed: Of the head, the batches and the augmentation; the same in all trials.
        threads: Of torch, in one process.
        loader_workers: Processes that prepare images for one worker; 0 prepares them in place.
        storage: URL of the study.
        device: ``cpu``, or ``cuda`` with what a good user does there: pinned memory, images
            fetched ahead, channels last, bf16 autocast, fused AdamW.
    """

    images: str
    backbone: str
    weights: str
    image_size: int
    max_depth: int
    epochs: int
    batch_size: int
    crop: float
    flip: float
    warmup: float
    clip_norm: float
    seed: int
    threads: int
    loader_workers: int
    storage: str
    device: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU trains."""
        return self.device != "cpu"


def suggest(trial: Trial, max_depth: int) -> Plan:
    return Plan(
        depth=trial.suggest_int("depth", 0, max_depth),
        hidden=trial.suggest_categorical("hidden", HIDDEN),
        lr=trial.suggest_float("lr", *LR, log=True),
        layer_decay=trial.suggest_float("layer_decay", *LAYER_DECAY),
        weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAY, log=True),
        label_smoothing=trial.suggest_categorical("label_smoothing", LABEL_SMOOTHING),
    )


def make_loaders(settings: Settings) -> tuple[DataLoader, DataLoader]:
    """Return training images, augmented anew in every epoch, and validation images."""
    size = (3, settings.image_size, settings.image_size)
    model = make_backbone(replace(settings, weights="none"))
    config = resolve_data_config({"input_size": size}, model=model)
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(
                settings.image_size,
                scale=(settings.crop, 1.0),
                interpolation=v2.InterpolationMode(config["interpolation"]),
            ),
            v2.RandomHorizontalFlip(settings.flip),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )
    evaluate = create_transform(**config, is_training=False)
    train = ImageFolder(f"{settings.images}/train", augment)
    validation = ImageFolder(f"{settings.images}/val", evaluate)
    workers = {
        "num_workers": settings.loader_workers,
        "persistent_workers": settings.loader_workers > 0,
        "pin_memory": settings.on_gpu,
    }
    if settings.on_gpu and settings.loader_workers:
        workers["prefetch_factor"] = PREFETCH
    single = len(train) % settings.batch_size == 1  # batch norm cannot train on one image
    return (
        DataLoader(train, settings.batch_size, shuffle=True, drop_last=single, **workers),
        DataLoader(validation, settings.batch_size, **workers),
    )


def count_classes(loader: DataLoader) -> int:
    """Return the number of classes of the images of a loader."""
    images = loader.dataset
    assert isinstance(images, ImageFolder)
    return len(images.classes)


def make_backbone(settings: Settings) -> nn.Module:
    options = {}
    if settings.weights not in ("hub", "none"):
        options["pretrained_cfg_overlay"] = {"file": settings.weights}
    config = timm.get_pretrained_cfg(settings.backbone)
    if config is not None and config.fixed_input_size:  # position tables of transformers
        options["img_size"] = settings.image_size
    pretrained = settings.weights != "none"
    return timm.create_model(settings.backbone, pretrained, num_classes=0, **options)


def layers_of(backbone: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each layer, the last layer first.

    A layer is one of timm's groups; one without a matrix (a final norm) goes with the one before.
    """
    parameters = dict(backbone.named_parameters())
    layers: list[list[str]] = []
    for _, names in sorted(group_parameters(backbone, backbone.group_matcher()).items()):
        if layers and all(parameters[name].ndim < 2 for name in names):
            layers[-1] += names
        else:
            layers.append(list(names))
    return layers[::-1]


class Model(nn.Module):
    """A pretrained backbone with a new head, all but its last layers frozen."""

    def __init__(self, settings: Settings, plan: Plan, classes: int) -> None:
        super().__init__()
        self.backbone = make_backbone(settings)
        self.layers = layers_of(self.backbone)
        trainable = {name for layer in self.layers[: plan.depth] for name in layer}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trainable)
        image = torch.zeros(1, 3, settings.image_size, settings.image_size)
        with torch.no_grad():
            features = self.backbone.eval()(image).shape[1]
        self.head = make_head(features, plan.hidden, classes)

    def train(self, mode: bool = True) -> Model:
        """Train what is trainable; batch norms of frozen layers keep their statistics."""
        super().train(False)
        self.head.train(mode)
        for module in self.backbone.modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of images ``(N, C, H, W)``."""
        return self.head(self.backbone(images))

    def groups(self, plan: Plan) -> list[dict]:
        """Return the optimizer's groups: a learning rate for each layer, no decay of vectors."""
        parameters = dict(self.backbone.named_parameters())
        listed = getattr(self.backbone, "no_weight_decay", set)()
        layers = [[(name, parameters[name]) for name in one] for one in self.layers[: plan.depth]]
        groups = []
        for index, layer in enumerate([list(self.head.named_parameters()), *layers]):
            lr = plan.lr * plan.layer_decay**index
            matrices = [one for name, one in layer if one.ndim > 1 and name not in listed]
            vectors = [one for name, one in layer if one.ndim < 2 or name in listed]
            groups.append({"params": matrices, "lr": lr, "weight_decay": plan.weight_decay})
            groups.append({"params": vectors, "lr": lr, "weight_decay": 0.0})
        return groups


def make_head(features: int, hidden: int, classes: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    if hidden:
        modules += [nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden)]
        modules += [nn.ReLU(), nn.Dropout(DROPOUT)]
    output = nn.Linear(hidden or features, classes)
    nn.init.normal_(output.weight, std=0.01)
    nn.init.zeros_(output.bias)
    return nn.Sequential(*modules, output)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Make the schedule: linear warm-up, then half a cosine to zero."""
    rising = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return LambdaLR(optimizer, factor)


def train(
    model: Model, plan: Plan, settings: Settings, train_loader: DataLoader, val_loader: DataLoader
) -> Iterator[float]:
    """Train a model, yielding its validation accuracy after every epoch."""
    optimizer = torch.optim.AdamW(model.groups(plan), lr=plan.lr, fused=settings.on_gpu)
    schedule = make_schedule(optimizer, settings.epochs * len(train_loader), settings.warmup)
    loss = nn.CrossEntropyLoss(label_smoothing=plan.label_smoothing)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(settings.epochs):
        model.train()
        for images, labels in to_device(train_loader, settings):
            optimizer.zero_grad()
            with half(settings):
                mean = loss(model(images), labels)
            mean.backward()
            nn.utils.clip_grad_norm_(trainable, settings.clip_norm)
            optimizer.step()
            schedule.step()
        yield validate(model, val_loader, settings)


@torch.inference_mode()
def validate(model: Model, loader: DataLoader, settings: Settings) -> float:
    """Return the share of images that a model recognises."""
    model.eval()
    right = []
    for images, labels in to_device(loader, settings):
        with half(settings):
            right.append((model(images).argmax(1) == labels).sum())
    return int(sum(right)) / len(loader.dataset)


def to_device(loader: DataLoader, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a loader where the model is; on a GPU with their channels last."""
    for images, labels in loader:
        if settings.on_gpu:
            images = images.to(settings.device, non_blocking=True)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = labels.to(settings.device, non_blocking=True)
        yield images, labels


def half(settings: Settings) -> torch.autocast:
    """Return the context of the forward pass: bf16 on a GPU."""
    return torch.autocast(
        torch.device(settings.device).type, dtype=torch.bfloat16, enabled=settings.on_gpu
    )


def work(settings: Settings) -> None:
    """Train queued plans until none is left."""
    torch.set_num_threads(settings.threads)
    study = optuna.load_study(study_name=STUDY, storage=settings.storage)
    train_loader, val_loader = make_loaders(settings)
    study.set_user_attr("train", len(train_loader.dataset))
    study.set_user_attr("validation", len(val_loader.dataset))

    def objective(trial: Trial) -> float:
        plan = suggest(trial, settings.max_depth)
        if "plan" not in trial.user_attrs:  # another worker took the last of the queue
            raise optuna.TrialPruned
        torch.manual_seed(settings.seed)
        model = Model(settings, plan, count_classes(train_loader))
        if settings.on_gpu:
            model.to(settings.device, memory_format=torch.channels_last)
        trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
        trial.set_user_attr("parameters", trainable)
        accuracy = 0.0
        curve = train(model, plan, settings, train_loader, val_loader)
        for epoch, accuracy in enumerate(curve, start=1):
            trial.report(accuracy, epoch)
        return accuracy

    while study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.optimize(objective, n_trials=1)


if __name__ == "__main__":
    work(Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
