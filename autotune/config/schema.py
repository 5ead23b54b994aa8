"""What a study file may say: one pydantic model per section, one rule per key.

Values of ``space`` are *dimensions*: a single value is fixed, a list is a choice among its
members, and ``{low, high}`` (with ``step`` or ``log``) is a range. They are kept as the plain
values of the file, so that a definition can be stored, compared and shown as it was written;
``autotune.search.space`` turns them into Optuna distributions.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from autotune.config.fields import (
    Dimension,
    FieldRule,
    bool_dimension,
    boolean,
    choice,
    choice_dimension,
    choice_or_plugin,
    expression,
    kernel_dimension,
    largest,
    name_list,
    name_or_names,
    number,
    number_dimension,
    plugin_ref,
    protocol_name,
    width_dimension,
)
from autotune.config.old_names import VALUES, with_new_names, with_old_names
from autotune.errors import Problem, did_you_mean, format_yaml, join_sentences
from autotune.plan import KEEP

SAMPLERS = ("gp", "tpe", "random")
PRUNERS = ("percentile", "median", "hyperband", "none")
OPTIMIZERS = ("adamw", "sgd", "adagrad")
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
#: What a second objective can be: costs of the network that a plan makes, known before training.
COSTS: dict[str, Literal["maximize", "minimize"]] = {
    "latency_ms": "minimize",
    "parameters": "minimize",
    "memory_mb": "minimize",
}
STRATEGIES = ("joint", "greedy")
STOPS = ("no_gain", "never")
#: What becomes of images that are there twice: said, kept in one part as well, not looked for.
DUPLICATES = ("report", "group", "off")
#: Which images an epoch shows: each once, or as many of every class.
SAMPLING = ("uniform", "balanced")
MAX_NAME = 100
NAME_RULE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{MAX_NAME - 1}}}")


def _study_name(value: str | None) -> str | None:
    if value is not None and not NAME_RULE.fullmatch(value):
        raise ValueError(
            f"a study's name has up to {MAX_NAME} letters, digits and . _ + - and starts with a "
            f"letter or digit, but got {format_yaml(value)}"
        )
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Name = Annotated[str, AfterValidator(_not_empty)]
_Part = Annotated[float, number(False, 0, 1, low_open=True, high_open=True)]


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
        for one, allowed in zip(value, (OBJECTIVES, COSTS), strict=True):
            if one not in allowed:
                hint = did_you_mean(str(one), tuple(allowed))
                raise ValueError(join_sentences(f"{rule}; but got {format_yaml(one)}", hint))
        return value

    metrics, costs = (" or ".join(f"`{one}`" for one in each) for each in (OBJECTIVES, COSTS))
    return FieldRule(check, takes=f"`[metric, cost]`: {metrics}, and {costs}; or `null`")


class _Section(BaseModel):
    # The text below a key describes it; docs/study-file.md is made of these.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LayerSpace(_Section):
    """``space.layers``: what trainable layers may become; a layer takes the values that it can.

    The last ``max_layers`` layers have these fields; deeper ones keep their shape. Every layer
    brings as many parameters as there are searched fields, and a sampler that has to model
    hundreds of them from a few dozen trials finds nothing.
    """

    kernel: Annotated[Dimension, kernel_dimension()] = KEEP
    """Side of the layer's spatial convolutions; their resolution stays."""
    width: Annotated[Dimension, width_dimension()] = KEEP
    """Number of the layer's inner channels: a ratio of what there is, or a number."""
    low_rank: Annotated[Dimension, width_dimension()] = KEEP
    """Channels that the last convolution or linear layer writes; a 1x1 convolution leads back."""
    activation: Annotated[Dimension, choice_dimension((KEEP, *ACTIVATIONS))] = KEEP
    """The layer's activation function."""
    pool: Annotated[Dimension, choice_dimension((KEEP, *LAYER_POOLS))] = KEEP
    """Type and window of the pooling that the layer has."""
    dropout: Annotated[Dimension, number_dimension(False, 0.0, 0.9, or_keep=True)] = KEEP
    """Share of activations that the layer's dropout drops."""
    drop_path: Annotated[Dimension, number_dimension(False, 0.0, 0.9, or_keep=True)] = KEEP
    """Share of images for which the layer's residual branch is left out in training."""
    max_layers: Annotated[int, number(True, 1)] = 8
    """How many of the last layers have these fields."""


class HeadSpace(_Section):
    """``space.head``: the hidden layers and the global pooling."""

    hidden_layers: Annotated[Dimension, number_dimension(True, 0, 3)] = 0
    """Hidden layers of the head: linear, batch norm, activation, dropout each."""
    units: Annotated[Dimension, number_dimension(True, 1, 65536)] = 256
    """Units of each hidden layer."""
    activation: Annotated[Dimension, choice_dimension(ACTIVATIONS)] = "relu"
    """Of the hidden layers."""
    batch_norm: Annotated[bool | list[bool], bool_dimension()] = True
    """Whether the hidden layers have batch norm."""
    dropout: Annotated[Dimension, number_dimension(False, 0.0, 0.95)] = 0.0
    """Of each hidden layer."""
    pool: Annotated[Dimension, choice_dimension(POOLS)] = KEEP
    """Global pooling before the head; `keep` is that of the backbone."""


class PolicySpace(_Section):
    """``space.training``: the training policy of a trial.

    The sources of the defaults are at :class:`autotune.plan.TrainingPolicy`.
    """

    optimizer: Annotated[Dimension, choice_dimension(OPTIMIZERS)] = "adamw"
    """Optimizer."""
    lr: Annotated[Dimension, number_dimension(False, 0.0, 100.0, low_open=True)] = 3e-3
    """Peak learning rate of the head."""
    layer_decay: Annotated[Dimension, number_dimension(False, 0.0, 1.0, low_open=True)] = 1.0
    """Layer `i` trains with `lr * layer_decay^i`."""
    weight_decay: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 1e-4
    """Not on norms and biases."""
    momentum: Annotated[Dimension, number_dimension(False, 0.0, 0.999)] = 0.9
    """Of `sgd`."""
    label_smoothing: Annotated[Dimension, number_dimension(False, 0.0, 0.9)] = 0.0
    """Share of a label that is spread over all classes."""
    head_only_epochs: Annotated[Dimension, number_dimension(True, 0, 100000)] = 0
    """Epochs at the start in which the head alone trains (LP-FT); fewer than `training.epochs`."""
    l2_sp: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 0.0
    """Pull of the trainable layers towards their pretrained weights, instead of weight decay."""
    mixup: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 0.0
    """Parameter of mixup's beta distribution; 0 is none."""
    cutmix: Annotated[Dimension, number_dimension(False, 0.0, 10.0)] = 0.0
    """Parameter of CutMix's beta distribution; 0 is none."""


class SpaceConfig(_Section):
    """``space``: what is searched.

    ``custom`` names a plugin function, ``my_file.py:function``, that gets the space made
    from all other keys and returns the one to search.
    """

    trainable_layers: Annotated[Dimension, number_dimension(True, 0, 10000)] = 0
    """How many of the last layers are trainable; 0 is the head alone."""
    layers: LayerSpace = Field(default_factory=LayerSpace)
    head: HeadSpace = Field(default_factory=HeadSpace)
    training: PolicySpace = Field(default_factory=PolicySpace)
    custom: Annotated[str | None, plugin_ref()] = None
    """Plugin function that changes the space."""


class BaselineConfig(_Section):
    """``baseline``: training policy of trial 0, the frozen backbone with a linear head.

    A baseline that is trained badly flatters the search: give it the values that suit it. What is
    left out takes the study's own value where that is fixed, and a default where it is searched.
    """

    optimizer: Annotated[str | None, choice(OPTIMIZERS, optional=True)] = None
    """Of trial 0."""
    lr: Annotated[float | None, number(False, 0, 100, low_open=True, optional=True)] = None
    """Peak learning rate of trial 0."""
    weight_decay: Annotated[float | None, number(False, 0, 10, optional=True)] = None
    """Of trial 0."""
    momentum: Annotated[float | None, number(False, 0, 0.999, optional=True)] = None
    """Of trial 0, with `sgd`."""
    label_smoothing: Annotated[float | None, number(False, 0, 0.9, optional=True)] = None
    """Of trial 0."""


class DataConfig(_Section):
    """``data``: how the images are split and read.

    Shares are of all readable images; they are ignored for a part that the folder already has.
    With ``protocol`` that many images of each class train and validate, and all others test.
    With ``folds`` there is no validation part: all images but those of the test part take turns.
    ``group`` is a regular expression that is searched in the key of an image; its first group
    names the group of images that stay in one part.
    """

    validation: _Part = 0.2
    """Share of all images that judges trials; a part that a folder has is kept."""
    test: _Part = 0.2
    """Share of all images that `autotune refit` alone reads; a part that a folder has is kept."""
    protocol: Annotated[str | None, protocol_name()] = None
    """`30-per-class`: 30 images of each class train and validate, all others test;
    `data.validation` is then a share of the 30."""
    train_per_class: Annotated[int | None, number(True, 1, optional=True)] = None
    """Fewer training images of each class; null is all."""
    folds: Annotated[int | None, number(True, 2, 20, optional=True)] = None
    """Every image outside of the test part validates once, and a value is the mean over the
    networks; null is one split."""
    seed: Annotated[int, number(True, 0, 2**32 - 1)] = 0
    """Of the split."""
    image_size: Annotated[int | None, number(True, 8, 4096, optional=True)] = None
    """Side of the square input in pixels; null is that of the backbone."""
    max_unreadable_share: Annotated[float, number(False, 0, 1, high_open=True)] = 0.01
    """Share of images that may be damaged; above it nothing starts."""
    decode: Annotated[str, choice(("exact", "fast"))] = "exact"
    """`fast` decodes JPEGs that are much larger than the input at a half, a quarter or an eighth
    of their size."""
    group: Annotated[str | None, expression()] = None
    """Images whose keys have its first group in common stay in one part."""
    duplicates: Annotated[str, choice(DUPLICATES)] = "report"
    """Images that are there twice are counted; `group`: they stay in one split as well; `off`:
    no duplicate check."""


class AugmentConfig(_Section):
    """``training.augment``: what differs between the views of an image."""

    crop: Annotated[float, number(False, 0, 1, low_open=True)] = 0.5
    """Least share of the image that a random crop keeps."""
    flip: Annotated[float, number(False, 0, 1)] = 0.5
    """Probability of a horizontal flip."""
    rotate: Annotated[float, number(False, 0, 180)] = 0.0
    """Degrees to either side."""
    jitter: Annotated[float, number(False, 0, 1)] = 0.0
    """Strength of changes in brightness, contrast, saturation."""


#: As ``training.num_views``: an image is augmented anew in every epoch, and nothing of it is kept.
ONLINE = "online"


class TrainingConfig(_Section):
    """``training``: what all trials of the study share."""

    epochs: Annotated[int, number(True, 1, 100000)] = 20
    """Of every trial."""
    batch_size: Annotated[int, number(True, 2, 65536)] = 64
    """Images of a step."""
    objective: Annotated[str, choice(tuple(OBJECTIVES))] = "accuracy"
    """What a trial is judged by, on the validation part after its last epoch."""
    sampling: Annotated[str, choice(SAMPLING)] = "uniform"
    """Each image once in an epoch; `balanced`: every class equally often, with repeats."""
    num_views: Annotated[int | str, number(True, 1, 1024, words=(ONLINE,))] = 8
    """Deterministic augmented views of each image; 1 is no augmentation; `online`: another one in
    every epoch, and no features are kept."""
    warmup: Annotated[float, number(False, 0, 1, high_open=True)] = 0.1
    """Share of the steps in which the learning rate rises; a cosine follows."""
    clip_grad_norm: Annotated[float | None, number(False, 0, low_open=True, optional=True)] = 1.0
    """Largest norm of the gradient; null is no limit."""
    ema: Annotated[
        float | None, number(False, 0, 1, low_open=True, high_open=True, optional=True)
    ] = None
    """Decay of a moving average of the weights, which is then what is judged; null is none."""
    precision: Annotated[str, choice(("auto", "off", "bf16", "fp16"))] = "auto"
    """Mixed precision: `auto` takes half precision on a GPU, and on a CPU where a comparison finds
    it 1.3 times as fast."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)

    @property
    def view_count(self) -> int:
        """Views of each training image; with ``online`` no epoch shows one that was shown."""
        return self.epochs if isinstance(self.num_views, str) else self.num_views


class GreedyConfig(_Section):
    """``search.greedy``: the order of AutoTune, for ``search.strategy: greedy``.

    ``margin`` is in units of the objective; ``trials_per_stage`` left out shares ``search.trials``
    among the stages that are left.
    """

    stop: Annotated[str, choice(STOPS)] = "no_gain"
    """At the first layer that does not help; `never`: all layers."""
    margin: Annotated[float, number(False, 0)] = 0.0
    """What a stage must gain to be accepted, in units of the objective."""
    trials_per_stage: Annotated[int | None, number(True, 1, optional=True)] = None
    """Finished trials of each stage; null shares `search.trials` among the stages left."""


class SearchConfig(_Section):
    """``search``: how the space is searched, and for how long.

    ``sampler`` and ``pruner`` may be plugins, ``my_file.py:MySampler``, relative to the study
    file.
    Of the budgets (``trials``, ``timeout``, ``device_hours``, ``patience``) the first that
    is used up ends the study.
    """

    sampler: Annotated[str, choice_or_plugin(SAMPLERS)] = "gp"
    """Chooses the next plan."""
    pruner: Annotated[str, choice_or_plugin(PRUNERS)] = "percentile"
    """Ends a trial before its last epoch."""
    strategy: Annotated[str, choice(STRATEGIES)] = "joint"
    """`joint`: all parameters together; `greedy`: layer by layer, as AutoTune."""
    greedy: GreedyConfig = Field(default_factory=GreedyConfig)
    default_plans: Annotated[bool, boolean()] = True
    """Plans that often work are tried after the baseline."""
    warm_start: Annotated[list[str], name_list("studies")] = Field(default_factory=list)
    """Studies of the same storage whose best plans are tried first."""
    trials: Annotated[int, number(True, 1)] = 40
    """Finished trials, however many workers, restarts and crashes."""
    timeout: Annotated[float | None, number(False, 0, low_open=True, optional=True)] = None
    """Seconds of a run after which no new trial starts; null is no limit."""
    device_hours: Annotated[float | None, number(False, 0, low_open=True, optional=True)] = None
    """Hours that trials have held a device, over all workers, after which no new one starts; null
    is no limit."""
    patience: Annotated[int | None, number(True, 1, optional=True)] = None
    """Finished trials without a better one after which no new one starts; null is no limit."""
    seed: Annotated[int, number(True, 0, 2**31 - 1)] = 0
    """Of the sampler and of every training."""


#: Keys of ``search`` that may change between two runs of the same study.
BUDGETS = ("trials", "timeout", "device_hours", "patience")


#: Keys that may name a plugin, ``my_file.py:name``.
PLUGIN_KEYS = ("search.sampler", "search.pruner", "space.custom")


class ConstraintsConfig(_Section):
    """``constraints``: what a network may cost; a plan beyond a limit is never the best one."""

    max_parameters: Annotated[int | None, number(True, 1, optional=True)] = None
    """Of the network, head included; null is no limit."""
    max_latency_ms: Annotated[float | None, number(False, 0, low_open=True, optional=True)] = None
    """Of one image on the device that trains; null is no limit."""
    max_memory_mb: Annotated[float | None, number(False, 0, low_open=True, optional=True)] = None
    """Of the training; null is no limit."""

    @property
    def limits(self) -> dict[str, float]:
        """Costs that are limited, with the most that each may be."""
        given = {cost: getattr(self, f"max_{cost}") for cost in COSTS}
        return {cost: limit for cost, limit in given.items() if limit is not None}


#: As ``refit.ema``: an average as long as suits the number of steps.
AUTO = "auto"


class RefitConfig(_Section):
    """``refit``: how the final fit trains, the best plan and the baseline alike.

    It is no part of what a study is: nothing of it is used before the search is over.
    """

    views: Annotated[str, choice((ONLINE, "study"))] = "study"
    """The views of the search; `online`: every image augmented anew in every epoch, unless
    `training.num_views` is 1."""
    ema: Annotated[
        float | str, number(False, 0, 1, low_open=True, high_open=True, words=(AUTO, "off"))
    ] = AUTO
    """Decay of the average of the weights over the steps, such as 0.999; `auto`: by the number of
    steps; `off`: the last weights."""


class CacheConfig(_Section):
    """``cache``: how much is kept of what could be computed again.

    It changes how long a study takes, not what it is. A null limit is a share of what the machine
    has, see ``autotune.data.cache.array_cache`` and ``autotune.data.memory_budget``.
    """

    disk_gb: Annotated[float | None, number(False, 0, low_open=True, optional=True)] = None
    """What decoded images and features together may take in the folder `files`; null is half of
    what is free or taken by them."""
    memory_gb: Annotated[float | None, number(False, 0, optional=True)] = None
    """What a worker keeps in memory of views; null is a quarter of the machine's (or its
    container's) memory, divided by the number of workers."""
    features: Annotated[str, choice(("auto", "off"))] = "auto"
    """Features of frozen layers are kept; `off`: every trial computes the whole network."""
    cuda_graphs: Annotated[str, choice(("auto", "off"))] = "auto"
    """On a GPU the steps of long trainings on features are captured once and replayed; `off`:
    every step is launched anew."""

    @property
    def disk_bytes(self) -> int | None:
        """What everything kept on disk may take; None where the machine decides."""
        return None if self.disk_gb is None else round(self.disk_gb * 1e9)

    @property
    def memory_bytes(self) -> int | None:
        """What a worker may keep in memory; None where the machine decides."""
        return None if self.memory_gb is None else round(self.memory_gb * 1e9)


class StudyConfig(_Section):
    """A whole study file."""

    name: Annotated[str | None, AfterValidator(_study_name)] = None
    """Of the study in the storage; null is that of the file, see [Names](#names)."""
    description: str = ""
    """Shown by `autotune ls`."""
    dataset: Name
    """A data set by name, or the path of images."""
    backbone: Annotated[str | list[str], name_or_names("backbones")]
    """timm model, best with its pretrained tag: `resnet50.a1_in1k`; or a list of them."""
    weights: Name = "hub"
    """`hub`, the path of a `.safetensors`, `.pth` or `.pt` file, or `none`."""
    init: Annotated[Dimension, choice_dimension(INIT)] = "pretrained"
    """What changed layers start from."""
    data: DataConfig = Field(default_factory=DataConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    objectives: Annotated[list[str] | None, _objectives()] = None
    """A metric and a cost: a Pareto study; null is `training.objective` alone."""
    constraints: ConstraintsConfig = Field(default_factory=ConstraintsConfig)
    refit: RefitConfig = Field(default_factory=RefitConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    storage: Name = "sqlite:///storage/autotune.db"
    """URL of the database; `postgresql://user:password@host/database` for several machines."""
    files: str | None = None
    """Folder of artifacts, checkpoints and caches; null is beside the database."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Choose what is left out so that it goes with what is given."""
        if not isinstance(values, dict):
            return values
        values, _ = with_new_names(values)  # of a definition that an earlier version stored
        search, training = values.get("search") or {}, values.get("training") or {}
        objectives = values.get("objectives")
        if isinstance(objectives, list) and objectives:
            search = {"pruner": "none", **search} if isinstance(search, dict) else search
            if isinstance(training, dict) and objectives[0] in tuple(OBJECTIVES):
                training = {"objective": objectives[0], **training}
        if isinstance(search, dict) and search.get("strategy") == "greedy":
            search = {"default_plans": False, **search}
        given = {"search": search, "training": training}
        return {**values, **{key: value for key, value in given.items() if value}}

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of the backbones, one or more."""
        return tuple([self.backbone] if isinstance(self.backbone, str) else self.backbone)

    @property
    def directions(self) -> dict[str, Literal["maximize", "minimize"]]:
        """Objective names with their directions: one, or a metric and a cost."""
        names = self.objectives or [self.training.objective]
        return {name: (OBJECTIVES | COSTS)[name] for name in names}

    @property
    def costs(self) -> tuple[str, ...]:
        """Costs that the study asks for: those that are limited, and the second objective."""
        asked = {*self.constraints.limits, *self.directions}
        return tuple(cost for cost in COSTS if cost in asked)

    def identity(self) -> dict[str, Any]:
        """Return what makes the study the study it is, as plain JSON values.

        Left out is what may change between two runs of the same study: its description, its
        budget, how its final fit trains, what is kept of what was computed, and where it is
        stored.
        """
        free = {"name", "description", "refit", "cache", "storage", "files"}
        values = self.model_dump(mode="json", exclude=free)
        for key in BUDGETS:
            del values["search"][key]
        return values

    def stable_identity(self) -> dict[str, Any]:
        """Return :meth:`identity` under names that never change, for digests that are stored."""
        return with_old_names(self.identity())

    def cross_field_problems(self) -> list[Problem]:
        """Find keys that are right by themselves and do not go together."""
        search, objectives = self.search, self.objectives
        greedy = search.strategy == "greedy"
        head_epochs = largest(self.space.training.head_only_epochs)
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
            and (objectives or len(self.backbones) > 1)
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
            "space.custom": len(self.backbones) > 1
            and self.space.custom
            and f"must be left out where there are several backbones, but got {self.space.custom}",
            "weights": len(self.backbones) > 1
            and self.weights not in ("hub", "none")
            and f"must be hub or none where there are several backbones, but got {self.weights}",
        }
        return [Problem(key, message) for key, message in rules.items() if message]
