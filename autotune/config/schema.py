"""The keys of a study file: one pydantic model per section, one rule per key.

Values of ``space`` are *dimensions*: a single value is fixed, a list is a choice among its
members, and ``{low, high}`` (with ``step`` or ``log``) is a range. The models keep them as the
file has them; ``autotune.search.space`` turns them into Optuna distributions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from autotune.config.backbones import MOST_KEPT, Backbones, Race, backbones_rule
from autotune.config.fields import (
    Dimension,
    FieldRule,
    all_values,
    bool_dimension,
    boolean,
    choice,
    choice_dimension,
    choices,
    depth_dimension,
    dimension_by_optimizer,
    expression,
    kernel_dimension,
    largest,
    names,
    number,
    number_choice,
    number_dimension,
    plugin_ref,
    protocol_name,
    size_dimension,
    split_names,
    width_dimension,
)
from autotune.config.notification import notification
from autotune.config.old_names import VALUES, with_new_names, with_old_names
from autotune.config.weights import HUB, NONE, Weights, weights_of, weights_problem, weights_rule
from autotune.errors import Problem, did_you_mean, format_yaml, join_sentences
from autotune.plan import KEEP, SOLVED

SAMPLERS = ("gp", "tpe", "random")
PRUNERS = ("median", "narrowing", "percentile", "hyperband", "none")
OPTIMIZERS = ("adamw", "sgd", "adagrad")
PARAMETERS = ("all", "norms", "biases")
HEAD_STARTS = ("random", SOLVED)
POOLS = (KEEP, "avg", "max", "avgmax")
INIT = tuple(VALUES["init"].values())
ACTIVATIONS = (
    "relu",
    "gelu",
    "silu",
    "hardswish",
    "leaky_relu",
    "elu",
    "selu",
    "sigmoid",
    "tanh",
    "mish",
)
LAYER_POOLS = ("max2", "max3", "avg2", "avg3")
#: Objective name -> direction of optimization.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "log_loss": "minimize",
}
#: Second objectives: costs of a plan's network, known before training.
COSTS: dict[str, Literal["maximize", "minimize"]] = {
    "latency_ms": "minimize",
    "parameters": "minimize",
    "memory_mb": "minimize",
}
#: A value that autotune chooses: ranges of learning rates, the decay of an average.
AUTO = "auto"
STRATEGIES = ("joint", "greedy")
STOPS = ("no_gain", "never")
#: Duplicate images: reported, also kept in one split, or not searched for.
DUPLICATES = ("report", "group", "off")
#: Images of an epoch: each once, or as many of every class.
SAMPLING = ("uniform", "balanced")
#: Augmentation policies: TrivialAugment (Mueller and Hutter 2021, in its version "wide") and
#: RandAugment (Cubuk et al. 2020), of torchvision.
POLICIES = ("none", "trivial", "rand")
#: What a study can be logged to, besides objects in Python.
LOGGERS = ("tensorboard", "mlflow", "wandb")
#: Limits the image sizes of a study: each has its own decoded images and features.
MAX_SIZES = 8
MAX_NAME = 100
NAME_RULE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{MAX_NAME - 1}}}")


def check_study_name(value: str | None) -> str | None:
    """Return a name of a study; raise a ValueError for what can be none."""
    if value is not None and not NAME_RULE.fullmatch(value):
        raise ValueError(
            f"a study's name has up to {MAX_NAME} letters, digits and . _ + - and starts with a "
            f"letter or digit, but got {format_yaml(value)}"
        )
    return value


def _check_not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Name = Annotated[str, AfterValidator(_check_not_empty)]
_Limit = Annotated[float | None, number(False, 0, low_open=True, optional=True)]
#: Value of ``search.patience``: ends a study by what it could gain.
NOISE = "noise"
_Count = Annotated[int | None, number(True, 1, optional=True)]
_AutoOrOff = Annotated[str, choice(("auto", "off"))]
_Share = Annotated[float, number(False, 0, 1, low_open=True, high_open=True)]


def _objectives() -> FieldRule:
    """Accept a metric and a cost, or nothing."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        rule = (
            f"must be a list of a metric and a cost such as [accuracy, latency_ms]; the metrics "
            f"are {', '.join(OBJECTIVES)}, the costs {', '.join(COSTS)}"
        )
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"{rule}; but got {format_yaml(value)}")
        for name, allowed in zip(value, (OBJECTIVES, COSTS), strict=True):
            if name not in allowed:
                hint = did_you_mean(str(name), allowed)
                raise ValueError(join_sentences(f"{rule}; but got {format_yaml(name)}", hint))
        return value

    metrics, costs = (" or ".join(f"`{name}`" for name in group) for group in (OBJECTIVES, COSTS))
    return FieldRule(check, takes=f"`[metric, cost]`: {metrics}, and {costs}; or `null`")


class _Section(BaseModel):
    # docs/study-file.md has the texts below the keys.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LayerSpace(_Section):
    """``space.layers``: changes of trainable layers; a layer ignores values that it cannot take.

    The last ``max_layers`` layers have these fields; deeper ones keep their shape. Every searched
    field adds a parameter for each layer: a sampler cannot model hundreds of them from a few dozen
    trials.
    """

    kernel: Annotated[Dimension, kernel_dimension()] = KEEP
    """Side of the layer's spatial convolutions; their resolution stays."""
    width: Annotated[Dimension, width_dimension()] = KEEP
    """Inner channels of the layer: a ratio of the present number, or a number."""
    low_rank: Annotated[Dimension, width_dimension()] = KEEP
    """Output channels of the layer's last convolution or linear layer; a 1x1 convolution restores
    the number that the next layer expects."""
    activation: Annotated[Dimension, choice_dimension((KEEP, *ACTIVATIONS))] = KEEP
    """The layer's activation function."""
    pool: Annotated[Dimension, choice_dimension((KEEP, *LAYER_POOLS))] = KEEP
    """Type and window of the layer's pooling."""
    dropout: Annotated[Dimension, number_dimension(False, 0.0, 0.9, or_keep=True)] = KEEP
    """Dropout rate of the layer's dropout."""
    drop_path: Annotated[Dimension, number_dimension(False, 0.0, 0.9, or_keep=True)] = KEEP
    """Stochastic depth: share of images that skip the layer's residual branch in training."""
    max_layers: Annotated[int, number(True, 1)] = 8
    """Number of last layers to which these keys apply."""


class HeadSpace(_Section):
    """``space.head``: the hidden layers and the global pooling."""

    hidden_layers: Annotated[Dimension, number_dimension(True, 0, 3)] = 0
    """Number of hidden layers; each is linear, batch norm, activation, dropout."""
    units: Annotated[Dimension, number_dimension(True, 1, 65536)] = 256
    """Units of each hidden layer."""
    activation: Annotated[Dimension, choice_dimension(ACTIVATIONS)] = "relu"
    """Activation function of the hidden layers."""
    batch_norm: Annotated[bool | list[bool], bool_dimension()] = True
    """Whether the hidden layers have batch norm."""
    dropout: Annotated[Dimension, number_dimension(False, 0.0, 0.95)] = 0.0
    """Dropout rate after each hidden layer."""
    pool: Annotated[Dimension, choice_dimension(POOLS)] = KEEP
    """Global pooling before the head; `keep`: the pooling of the backbone."""


class PolicySpace(_Section):
    """``space.training``: the training policy of a trial.

    The sources of the defaults are at :class:`autotune.plan.TrainingPolicy`.
    """

    optimizer: Annotated[Dimension, choice_dimension(OPTIMIZERS)] = "adamw"
    """Optimizer."""
    lr: Annotated[
        Dimension,
        dimension_by_optimizer(
            number_dimension(False, 0.0, 100.0, low_open=True), OPTIMIZERS, AUTO
        ),
    ] = 3e-3
    """Peak learning rate of the head. `auto`: a range that suits each optimizer, also where
    `optimizer` is given and `lr` is not."""
    layer_decay: Annotated[Dimension, number_dimension(False, 0.0, 1.0, low_open=True)] = 1.0
    """Layer `i` trains with `lr * backbone_lr * layer_decay^i`."""
    backbone_lr: Annotated[Dimension, number_dimension(False, 0.0, 100.0, low_open=True)] = 1.0
    """Learning rate of the trainable layers relative to that of the head."""
    parameters: Annotated[Dimension, choice_dimension(PARAMETERS)] = "all"
    """What trains of a trainable layer that keeps its shape: `all`, its `norms` alone, or its
    `biases` alone."""
    weight_decay: Annotated[
        Dimension, dimension_by_optimizer(number_dimension(False, 0.0, 10.0), OPTIMIZERS, AUTO)
    ] = 1e-4
    """Weight decay; norms and biases have none. `auto`: a range that suits each optimizer."""
    momentum: Annotated[Dimension, number_dimension(False, 0.0, 0.999)] = 0.9
    """Momentum of `sgd`."""
    label_smoothing: Annotated[Dimension, number_dimension(False, 0.0, 0.9)] = 0.0
    """Share of the label that is spread over all classes."""
    head_only_epochs: Annotated[Dimension, number_dimension(True, 0, 100000)] = 0
    """First epochs, in which only the head trains (LP-FT); fewer than `training.epochs`."""
    head_start: Annotated[Dimension, choice_dimension(HEAD_STARTS)] = "random"
    """Initial weights of a linear head: `random`, or `solved`: those that fit the features of the
    training images best, found in seconds."""
    l2_sp: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 0.0
    """Strength of L2-SP, which replaces weight decay in the trainable layers."""
    mixup: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 0.0
    """Parameter of mixup's beta distribution; 0: no mixup."""
    cutmix: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 0.0
    """Parameter of CutMix's beta distribution; 0: no CutMix."""


class SpaceConfig(_Section):
    """``space``: the search space.

    ``custom`` names a plugin function, ``my_file.py:function``. It receives the space of all other
    keys and returns the one to search.
    """

    trainable_layers: Annotated[Dimension, depth_dimension()] = 0
    """Number of last layers that are trainable; 0: only the head; `all`: those of the backbone, as
    in `{low: 0, high: all}`."""
    layers: LayerSpace = Field(default_factory=LayerSpace)
    head: HeadSpace = Field(default_factory=HeadSpace)
    training: PolicySpace = Field(default_factory=PolicySpace)
    custom: Annotated[str | None, plugin_ref()] = None
    """Plugin function that receives the space and returns the one to search."""


class BaselineConfig(_Section):
    """``baseline``: training policy of trial 0, the frozen backbone with a linear head.

    A key that is null takes the value of ``space.training`` if that is fixed, else a default.
    """

    optimizer: Annotated[str | None, choice(OPTIMIZERS, optional=True)] = None
    """Optimizer of the baseline trial."""
    lr: Annotated[float | None, number(False, 0, 100, low_open=True, optional=True)] = None
    """Peak learning rate of the baseline trial, unless its head is solved; the rates of the plans
    that are tried first follow it in any case."""
    weight_decay: Annotated[float | None, number(False, 0, 10, optional=True)] = None
    """Weight decay of the baseline trial."""
    momentum: Annotated[float | None, number(False, 0, 0.999, optional=True)] = None
    """Momentum of the baseline trial, for `sgd`."""
    label_smoothing: Annotated[float | None, number(False, 0, 0.9, optional=True)] = None
    """Label smoothing of the baseline trial."""
    head_start: Annotated[str | None, choice(HEAD_STARTS, optional=True)] = None
    """`solved`: the head of the baseline trial is solved, and needs no learning rate; `random`: it
    is trained."""


class DataConfig(_Section):
    """``data``: how the images are split and read.

    Shares are of all readable images; a split that the folder already has keeps its images.
    """

    validation: _Share = 0.2
    """Share of the images in the validation split, which evaluates trials; ignored where the
    folder has one."""
    test: _Share = 0.2
    """Share of the images in the test split, which only `autotune refit` reads; ignored where the
    folder has one."""
    splits: Annotated[str | dict[str, list[str]], split_names()] = "auto"
    """Names of the splits in the data set: folders, values of a column, splits on a hub. `auto`:
    usual names are recognized; `none`: it has no splits, and all its folders are classes."""
    protocol: Annotated[str | None, protocol_name()] = None
    """`30-per-class`: 30 images of each class for training and validation, all others for the
    test; `data.validation` is then a share of the 30."""
    train_per_class: _Count = None
    """Limit of training images of each class; null: all images."""
    folds: Annotated[int | None, number(True, 2, 20, optional=True)] = None
    """Number of cross-validation folds over all images outside the test split; a trial's value is
    the mean over the folds. null: one validation split."""
    seed: Annotated[int, number(True, 0, 2**32 - 1)] = 0
    """Seed of the split."""
    image_size: Annotated[Dimension | None, size_dimension(8, 4096, MAX_SIZES)] = None
    """Side of the square input in pixels; null: the size of the backbone. With several sizes each
    trial trains, and is evaluated, at its own."""
    max_unreadable_share: Annotated[float, number(False, 0, 1, high_open=True)] = 0.01
    """Largest share of unreadable images; with more the study does not start."""
    decode: Annotated[str, choice(("exact", "fast"))] = "exact"
    """`exact`: decode every image at its full size; `fast`: decode large JPEGs at a half, a
    quarter or an eighth of it."""
    group: Annotated[str | None, expression()] = None
    """Regular expression; images whose keys agree in its first group stay in one split."""
    duplicates: Annotated[str, choice(DUPLICATES)] = "report"
    """`report`: count duplicate images; `group`: also keep them in one split; `off`: no duplicate
    check."""


class AugmentConfig(_Section):
    """``training.augment``: random changes between the views of an image."""

    crop: Annotated[float, number(False, 0, 1, low_open=True)] = 0.5
    """Smallest share of the image that a random crop keeps."""
    flip: Annotated[float, number(False, 0, 1)] = 0.5
    """Probability of a horizontal flip."""
    rotate: Annotated[float, number(False, 0, 180)] = 0.0
    """Largest rotation to either side, in degrees."""
    jitter: Annotated[float, number(False, 0, 1)] = 0.0
    """Strength of random changes in brightness, contrast and saturation."""
    policy: Annotated[str, choice(POLICIES)] = "none"
    """`trivial`: TrivialAugment, one change of fourteen kinds of a random strength; `rand`:
    RandAugment, two changes of the same strength; `none`: neither."""
    strength: Annotated[float | list[float], number_choice(0, 1)] = 0.3
    """Strength of `policy`, of `trivial` the greatest; 0: no change, 1: as strong as it gets. With
    several strengths each trial has its own."""
    erasing: Annotated[float, number(False, 0, 1)] = 0.0
    """Probability that a rectangle of 2 to 33 % of the image is erased."""


#: ``training.num_views``: new augmentations in every epoch, and no cached features.
ONLINE = "online"


class TrainingConfig(_Section):
    """``training``: settings that all trials of the study share."""

    epochs: Annotated[int, number(True, 1, 100000)] = 20
    """Epochs of every trial."""
    batch_size: Annotated[int, number(True, 2, 65536)] = 64
    """Images of a training step."""
    objective: Annotated[str, choice(tuple(OBJECTIVES))] = "accuracy"
    """Metric of a trial, on the validation split after its last epoch."""
    sampling: Annotated[str, choice(SAMPLING)] = "uniform"
    """`uniform`: each image once in an epoch; `balanced`: every class equally often, with
    repeats."""
    num_views: Annotated[int | str, number(True, 1, 1024, words=(ONLINE,))] = 8
    """Number of fixed augmented views of each image; 1: no augmentation; `online`: a new view in
    every epoch, without cached features."""
    warmup: Annotated[float, number(False, 0, 1, high_open=True)] = 0.1
    """Share of the steps in which the learning rate rises; then it falls along a cosine."""
    clip_grad_norm: _Limit = 1.0
    """Largest norm of the gradient; null: no limit."""
    ema: Annotated[
        float | None, number(False, 0, 1, low_open=True, high_open=True, optional=True)
    ] = None
    """Decay of a moving average of the weights, which is then evaluated; null: no average."""
    precision: Annotated[str, choice(("auto", "off", "bf16", "fp16"))] = "auto"
    """Mixed precision; `auto`: half precision on a GPU, and on a CPU if it is measured to be 1.3
    times as fast."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)

    @property
    def view_count(self) -> int:
        """Number of views of each training image; with ``online`` a new one for every epoch."""
        return self.epochs if isinstance(self.num_views, str) else self.num_views


class GreedyConfig(_Section):
    """``search.greedy``: layer by layer as AutoTune does, for ``search.strategy: greedy``."""

    stop: Annotated[str, choice(STOPS)] = "no_gain"
    """`no_gain`: stop at the first layer without a gain; `never`: search all layers."""
    margin: Annotated[float, number(False, 0)] = 0.0
    """Smallest gain of an accepted stage, in units of the objective."""
    trials_per_stage: _Count = None
    """Finished trials of each stage; null: `search.trials` shared among the remaining stages."""


class SearchConfig(_Section):
    """``search``: how the space is searched, and for how long.

    The path of a plugin, ``my_file.py:MySampler``, is relative to the study file. The study ends
    when the first of its budgets is used up: ``trials``, ``timeout``, ``device_hours``,
    ``patience``.
    """

    sampler: Annotated[str, choice(SAMPLERS, plugin=True)] = "gp"
    """Sampler, which chooses the next plan."""
    pruner: Annotated[str, choice(PRUNERS, plugin=True)] = "median"
    """Pruner, which ends bad trials before their last epoch."""
    strategy: Annotated[str, choice(STRATEGIES)] = "joint"
    """`joint`: all parameters together; `greedy`: layer by layer, as AutoTune does."""
    greedy: GreedyConfig = Field(default_factory=GreedyConfig)
    default_plans: Annotated[bool, boolean()] = True
    """Whether to try plans that often work, after the baseline."""
    warm_start: Annotated[list[str], names("studies", optional=True)] = Field(default_factory=list)
    """Studies of the same storage; their best plans are tried first."""
    trials: Annotated[int, number(True, 1)] = 40
    """Finished trials in all, over all workers and restarts."""
    timeout: _Limit = None
    """Seconds of a run after which no new trial starts; null: no limit."""
    device_hours: _Limit = None
    """Hours of device time over all workers after which no new trial starts; null: no limit."""
    patience: Annotated[int | str | None, number(True, 1, optional=True, words=(NOISE,))] = None
    """Finished trials without improvement after which no new trial starts; `noise`: none starts
    when as many trials again would gain less than the error of a comparison; null: no limit."""
    seed: Annotated[int, number(True, 0, 2**31 - 1)] = 0
    """Seed of the sampler and of every training; `autotune run --seeds 5` runs five studies."""


#: Keys of ``search`` that may change between two runs of the same study.
BUDGETS = ("trials", "timeout", "device_hours", "patience")


#: Other limits that may change: they decide whether a study starts, and not what it finds.
LIMITS = ("data.max_unreadable_share",)


#: May change between two runs from one built-in pruner to another: what has ended keeps its value.
PRUNER = "search.pruner"


#: Keys that may name a plugin, ``my_file.py:name``.
PLUGIN_KEYS = ("search.sampler", PRUNER, "space.custom")


class ConstraintsConfig(_Section):
    """``constraints``: limits of a network's costs; a plan beyond one is never the best."""

    max_parameters: _Count = None
    """Limit of the network's parameters, head included; null: no limit."""
    max_latency_ms: _Limit = None
    """Limit of the latency of one image on the training device, in ms; null: no limit."""
    max_memory_mb: _Limit = None
    """Limit of the memory of a training, in MB; null: no limit."""

    @property
    def limits(self) -> dict[str, float]:
        """Limited costs by name, with their limits."""
        limits = {cost: getattr(self, f"max_{cost}") for cost in COSTS}
        return {cost: limit for cost, limit in limits.items() if limit is not None}


class RefitConfig(_Section):
    """``refit``: how the final fit trains the best plan and the baseline.

    It is not part of the study's definition: nothing of it is used before the search has ended.
    """

    views: Annotated[str, choice((ONLINE, "study"))] = "study"
    """`study`: the views of the search; `online`: a new view in every epoch, unless
    `training.num_views` is 1."""
    ema: Annotated[
        float | str, number(False, 0, 1, low_open=True, high_open=True, words=(AUTO, "off"))
    ] = AUTO
    """Decay of the average of the weights over the steps, such as 0.999; `auto`: chosen by the
    number of steps; `off`: the last weights."""


class CacheConfig(_Section):
    """``cache``: limits of the caches, which change the speed of a study and not its results.

    A null limit is a share of what the machine has, see ``autotune.data.cache.array_cache`` and
    ``autotune.data.memory_budget``.
    """

    disk_gb: _Limit = None
    """Limit of decoded images and features in the folder `files`, in GB; null: half of the space
    that is free or already used by them."""
    memory_gb: Annotated[float | None, number(False, 0, optional=True)] = None
    """Limit of the views that a worker caches in memory, in GB; null: a quarter of the memory of
    the machine or container, divided by the number of workers."""
    features: _AutoOrOff = "auto"
    """`auto`: cache the features of frozen layers; `off`: every trial computes the whole
    network."""
    cuda_graphs: _AutoOrOff = "auto"
    """`auto`: on a GPU capture the training steps on features as CUDA graphs and replay them;
    `off`: launch every step."""

    @property
    def disk_bytes(self) -> int | None:
        """Limit of the caches on disk; None where the machine decides."""
        return None if self.disk_gb is None else round(self.disk_gb * 1e9)

    @property
    def memory_bytes(self) -> int | None:
        """Limit of a worker's caches in memory; None where the machine decides."""
        return None if self.memory_gb is None else round(self.memory_gb * 1e9)


def _with_own_rates(space: Any) -> Any:
    """Give each optimizer its own learning rates where others than the default are chosen."""
    policy = space.get("training") if isinstance(space, dict) else None
    if not isinstance(policy, dict) or policy.get("optimizer", "adamw") == "adamw":
        return space
    return {**space, "training": {"lr": AUTO, **policy}}


class StudyConfig(_Section):
    """A study file."""

    name: Annotated[str | None, AfterValidator(check_study_name)] = None
    """Name of the study in the storage; null: the name of the file, see [Names](#names)."""
    description: str = ""
    """Description that `autotune ls` shows."""
    dataset: Name
    """Name of a data set, or path of images."""
    backbone: Annotated[Backbones, backbones_rule()]
    """timm model, best with its pretrained tag (`resnet50.a1_in1k`), or a list of models;
    `hf-hub:owner/name` and `local-dir:folder` are models that timm saved. `race`: the best of a
    list enter the study, see [the race](search.md#a-race-among-backbones); `{race: ...}` has names
    of your own, or `small` or `large`."""
    weights: Annotated[Weights, weights_rule()] = "hub"
    """`hub`, the path of a file or folder ([weights from a file](#weights-from-a-file)), or
    `none`; one for all backbones, a list in their order, or a mapping, where `hub` is left out."""
    init: Annotated[Dimension, choice_dimension(INIT)] = "pretrained"
    """Initial weights of changed layers. `pretrained`: the pretrained ones, channels chosen by
    magnitude; `fitted`: the same, fitted to what the pretrained layers compute on training images;
    `activations`: channels chosen by activity on training images; `random`: new ones."""
    data: DataConfig = Field(default_factory=DataConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    objectives: Annotated[list[str] | None, _objectives()] = None
    """A metric and a cost, for a Pareto study; null: only `training.objective`."""
    constraints: ConstraintsConfig = Field(default_factory=ConstraintsConfig)
    refit: RefitConfig = Field(default_factory=RefitConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    loggers: Annotated[list[str], choices(LOGGERS)] = Field(default_factory=list)
    """Where trials are logged besides the study, see [loggers.md](loggers.md)."""
    notify: Annotated[str | None, notification()] = None
    """URL that gets a JSON object when a run has ended, or shell command that is run then, see
    [loggers.md](loggers.md#a-notification-at-the-end); it is stored nowhere."""
    storage: Name = "sqlite:///storage/autotune.db"
    """URL of the database; `postgresql://user:password@host/database` for several machines."""
    files: str | None = None
    """Folder of artifacts, checkpoints and caches; null: beside the database."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Choose defaults that suit the given keys."""
        if not isinstance(values, dict):
            return values
        values, _ = with_new_names(values)  # definitions that an earlier version stored
        search, training = values.get("search") or {}, values.get("training") or {}
        objectives = values.get("objectives")
        if isinstance(objectives, list) and objectives:
            search = {"pruner": "none", **search} if isinstance(search, dict) else search
            if isinstance(training, dict) and objectives[0] in tuple(OBJECTIVES):
                training = {"objective": objectives[0], **training}
        if isinstance(search, dict) and search.get("strategy") == "greedy":
            search = {"default_plans": False, **search}
        space = _with_own_rates(values.get("space"))
        sections = {"search": search, "training": training, "space": space}
        return {**values, **{key: section for key, section in sections.items() if section}}

    @property
    def race(self) -> Race | None:
        """The race that chooses the backbones; ``None`` where they are named."""
        return Race.from_value(self.backbone)

    @property
    def kept(self) -> int:
        """Most backbones that the race lets into the study: one where it can have only one."""
        if self.race is not None and self.race.keep is not None:
            return self.race.keep
        return 1 if self.search.strategy == "greedy" or self.space.custom else MOST_KEPT

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of the backbones, one or more; before a race, those that may take part."""
        if (race := self.race) is not None:
            return race.names()
        return (self.backbone,) if isinstance(self.backbone, str) else tuple(self.backbone)

    @property
    def image_sizes(self) -> tuple[int | None, ...]:
        """Sizes of the images, the largest, which is that of the baseline, first."""
        sizes = all_values(self.data.image_size)
        return tuple(sorted(sizes, reverse=True)) if len(sizes) > 1 else tuple(sizes)

    @property
    def image_size(self) -> int | None:
        """The size of all images; of several, the configuration of a plan has one."""
        (size,) = self.image_sizes
        return size

    @property
    def image_dimensions(self) -> dict[str, Dimension]:
        """What a study searches of how its images look, by the field of a plan."""
        values: dict[str, Any] = {
            "image_size": self.data.image_size,
            "augment_strength": self.training.augment.strength,
        }
        return {name: value for name, value in values.items() if len(all_values(value)) > 1}

    def for_images(self, image_size: int | None, augment_strength: float | None) -> StudyConfig:
        """Return a copy with the size and the strength of a plan; ``None`` keeps the study's."""
        data, training = self.data, self.training
        if image_size is not None:
            data = data.model_copy(update={"image_size": image_size})
        if augment_strength is not None:
            augment = training.augment.model_copy(update={"strength": augment_strength})
            training = training.model_copy(update={"augment": augment})
        return self.model_copy(update={"data": data, "training": training})

    def weights_of(self, backbone: str) -> str:
        """Return ``hub``, ``none`` or the path of the weights of one of the backbones."""
        return weights_of(self.weights, self.backbones, backbone)

    def with_backbones(self, names: Sequence[str]) -> StudyConfig:
        """Return a copy with some backbones of the race, and their weights."""
        sources = {name: self.weights_of(name) for name in names}
        weights = sources if set(sources.values()) - {HUB, NONE} else next(iter(sources.values()))
        chosen = names[0] if len(names) == 1 else list(names)
        return self.model_copy(update={"backbone": chosen, "weights": weights})

    def without_race(self, backbone: str = "") -> StudyConfig:
        """Return a copy with one backbone of the race, by default the first, without weights."""
        chosen = self.with_backbones([backbone or self.backbones[0]])
        return chosen.model_copy(update={"weights": NONE})

    @property
    def directions(self) -> dict[str, Literal["maximize", "minimize"]]:
        """Objective names with their directions: one, or a metric and a cost."""
        names = self.objectives or [self.training.objective]
        return {name: (OBJECTIVES | COSTS)[name] for name in names}

    @property
    def costs(self) -> tuple[str, ...]:
        """Costs to compute: the limited ones and the second objective."""
        return tuple(
            cost for cost in COSTS if cost in {*self.constraints.limits, *self.directions}
        )

    def identity(self) -> dict[str, Any]:
        """Return the definition of the study as plain JSON values.

        Keys that may change between two runs are left out: name, description, budgets, ``refit``,
        ``cache``, ``loggers``, ``notify`` and where it is stored.
        """
        free = {"name", "description", "refit", "cache", "storage", "files", "loggers", "notify"}
        values = self.model_dump(mode="json", exclude=free)
        for key in BUDGETS:
            del values["search"][key]
        return values

    def stable_identity(self) -> dict[str, Any]:
        """Return :meth:`identity` under names that never change, for digests that are stored."""
        return with_old_names(self.identity())

    def without_limits(self) -> StudyConfig:
        """Return a copy with the default of each of the :data:`LIMITS`, for digests of results."""
        default = DataConfig.model_fields["max_unreadable_share"].default
        data = self.data.model_copy(update={"max_unreadable_share": default})
        return self.model_copy(update={"data": data})

    def cross_field_problems(self) -> list[Problem]:
        """Return a problem for each key that contradicts another one."""
        search, objectives = self.search, self.objectives
        greedy = search.strategy == "greedy"
        head_epochs = largest(self.space.training.head_only_epochs)
        augment = self.training.augment
        has_several = len(self.backbones) > 1 if self.race is None else self.kept > 1
        rules = {
            "objectives": objectives
            and objectives[0] != self.training.objective
            and f"must start with training.objective ({self.training.objective}), but got "
            f"{objectives[0]}; give one of the two",
            "search.pruner": objectives
            and search.pruner != "none"
            and f"must be none, because a trial of two objectives cannot be judged by its first "
            f"epochs, but got {search.pruner}; leave it out or change objectives",
            "search.patience": objectives
            and search.patience
            and f"must be left out where there are two objectives, but got {search.patience}",
            "search.strategy": greedy
            and (objectives or has_several)
            and "must be joint where there are several "
            f"{'objectives' if objectives else 'backbones'}, but got greedy",
            "search.default_plans": greedy
            and search.default_plans
            and "must be false with search.strategy: greedy, which starts from the baseline, but "
            "got true",
            "search.warm_start": greedy
            and search.warm_start
            and "must be left out with search.strategy: greedy, which starts from the baseline, "
            f"but got {format_yaml(search.warm_start)}",
            "space.training.head_only_epochs": head_epochs >= self.training.epochs
            and f"must be below training.epochs ({self.training.epochs}), but got {head_epochs}",
            "space.custom": has_several
            and self.space.custom
            and f"must be left out where there are several backbones, but got {self.space.custom}",
            "training.augment.strength": "augment_strength" in self.image_dimensions
            and (augment.policy == "none" or self.training.num_views == 1)
            and f"must be one number without {'views' if augment.policy != 'none' else 'a policy'}"
            f", which it is the strength of, but got {format_yaml(augment.strength)}; set "
            f"{'training.num_views' if augment.policy != 'none' else 'training.augment.policy'}",
            "weights": self._weights_problem(),
        }
        return [Problem(key, message) for key, message in rules.items() if message]

    def _weights_problem(self) -> str:
        if problem := self.race_weights_problem():
            # 'race' alone may be a study that exists, and has the backbone of these weights.
            return "" if self.race == Race() else problem
        return weights_problem(self.weights, self.backbones)

    def race_weights_problem(self) -> str:
        """Say what is wrong with the weights of a race: a file has those of one backbone."""
        is_file = isinstance(self.weights, str) and self.weights not in (HUB, NONE)
        if self.race is None or not is_file:
            return ""
        return (
            f"must be hub or none in a race, or name its backbone, but got {self.weights}; "
            "backbone=resnet18 (make: BACKBONE=resnet18) says whose weights they are"
        )


def all_fields(
    model: type[BaseModel] = StudyConfig, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key that a study file may have, with its field."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
