"""A trial's network: the backbone with its frozen and trainable layers, and the head.

Frozen means frozen: no gradient, no change of norm statistics, no dropout. ``requires_grad``
alone does not freeze batch norm, so the frozen modules are put back into evaluation mode
whenever the network is told to train.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.backbone import Backbone
from autotune.models.layers import Layer, list_layers
from autotune.models.surgery.apply import apply_layer_plans, validate_plans
from autotune.models.surgery.components import ACTIVATIONS
from autotune.models.surgery.inheritance import channel_norms
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import KEEP, HeadPlan, TrialPlan


class Tail(Protocol):
    """What computes the rest of a network from the tensors that cross a split."""

    def tail(self, network: Network, crossing: tuple[Tensor, ...], training: bool) -> Tensor:
        """Return the features of the backbone, ``(N, num_features)``."""


class Head(nn.Sequential):
    """The head of a plan on ``features`` inputs: hidden layers, then a linear layer.

    A hidden layer is linear, batch norm, activation, dropout: the paper's order with an
    activation.

    Shapes:
        input ``(N, features)``, output ``(N, classes)``.
    """

    def __init__(self, plan: HeadPlan, features: int, classes: int) -> None:
        modules: list[nn.Module] = []
        for hidden in plan.hidden:
            modules.append(nn.Linear(features, hidden.units, bias=not plan.batch_norm))
            if plan.batch_norm:
                modules.append(nn.BatchNorm1d(hidden.units))
            modules += [ACTIVATIONS[plan.activation](), nn.Dropout(hidden.dropout)]
            features = hidden.units
        output = nn.Linear(features, classes)
        nn.init.normal_(output.weight, std=0.01)
        nn.init.zeros_(output.bias)
        super().__init__(*modules, output)
        self.classes = classes


class Network(nn.Module):
    """A backbone with ``depth`` trainable layers and a head.

    Args:
        backbone: Module without classifier; it becomes part of the network.
        layers: Its layers, the last one first.
        depth: How many of them are trainable.
        head: The head.
        stale: How many of the last layers compute or see other features than the pretrained
            ones, so that their norm statistics describe what is no longer there.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: tuple[Layer, ...],
        depth: int,
        head: Head,
        stale: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.depth = depth
        self.layers = layers
        trainable = {name for layer in layers[:depth] for name in layer.names}
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in trainable)
        inside = {name for layer in layers[:depth] for name in layer.modules}
        # Modules outside of every layer (containers, input dropout) count as frozen unless
        # nothing is: what they drop would reach the frozen layers.
        self.frozen = [
            module
            for name, module in backbone.named_modules()
            if name not in inside and depth < len(layers)
        ]
        self.stale_norms = tuple(
            module
            for layer in layers[:stale]
            for name in layer.modules
            if isinstance(module := backbone.get_submodule(name), nn.modules.batchnorm._BatchNorm)
        )
        self._trainable_names = frozenset(f"backbone.{name}" for name in trainable)
        self._head_alone = False
        self._split: Tail | None = None

    def train(self, mode: bool = True) -> Network:
        """Set the mode of the trainable part; the frozen part stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules() if self._head_alone else self.frozen:
            module.training = False
        return self

    def freeze_all_but_head(self, alone: bool) -> Network:
        """Switch to training, with the trainable layers frozen like the others or not.

        While they are, nothing of the backbone needs a gradient, and none is computed for it.
        """
        self._head_alone = alone
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(not alone and f"backbone.{name}" in self._trainable_names)
        return self.train()

    def attach(self, split: Tail) -> None:
        """Let :meth:`forward` take the crossing tensors of a split; copies of the network too."""
        self._split = split

    def forward(self, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the logits ``(N, classes)``.

        Args:
            images: Normalised images ``(N, C, H, W)``, or what crosses of them: a tuple of tensors
                ``(N, *shape)`` in the order of the split that is attached.
        """
        if isinstance(images, tuple):
            assert self._split is not None, "crossing tensors need a split"
            training = self.training and not self._head_alone
            features = self._split.tail(self, images, training)
        else:
            features = self.backbone(images)
        logits: Tensor = self.head(features)
        return logits

    def layer_of_parameters(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Yield every trainable parameter with its name and layer; the head counts as layer 0.

        Those of trainable layers are among them while the head trains alone.
        """
        index = {name: layer.index for layer in self.layers for name in layer.names}
        for name, parameter in self.named_parameters():
            if name in self._trainable_names or name.startswith("head."):
                yield name, parameter, index.get(name.removeprefix("backbone."), 0)

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the part of the state that training changes: trainable layers and head."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if name.startswith("head.") or name in self._trainable_names
        }

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`trainable_state` returned.

        Raises:
            PlanError: When the state is that of another plan.
        """
        own = {name: value.shape for name, value in self.trainable_state().items()}
        if own != {name: value.shape for name, value in state.items()}:
            differing = sorted(
                name
                for name in own.keys() | state.keys()
                if name not in own or name not in state or own[name] != state[name].shape
            )
            raise PlanError(
                f"the stored weights belong to another plan: {len(differing)} of their keys or "
                f"shapes differ, {differing[0]} first"
            )
        self.load_state_dict(state, strict=False)


def build_network(
    backbone: Backbone,
    plan: TrialPlan,
    classes: int,
    seed: int,
    sample: Callable[[], Tensor] | None = None,
) -> Network:
    """Apply a trial plan to a backbone.

    Args:
        backbone: The pretrained backbone; it is copied, not changed.
        plan: The plan.
        classes: Number of classes.
        seed: Seed of the initial weights of the head and of what inheritance draws.
        sample: Gives some normalised training images ``(N, C, H, W)``; needed by plans with
            ``inherit: data``.

    Raises:
        PlanError: When the plan does not fit the backbone.
    """
    module = backbone.fresh()
    layers = list_layers(module)
    check_plan(plan, backbone.name, len(layers))
    stale = 0
    if plan.reshaped:
        offers = cached_capabilities(backbone, layers, max(plan.reshaped))
        validate_plans(plan, offers)
        norms = None
        if plan.inherit == "data" and any(layer.width != KEEP for layer in plan.layers):
            assert sample is not None, "inherit: data needs images"
            readers = [
                name for offer in offers for group in offer.groups for name in group.readers
            ]
            norms = channel_norms(module.eval(), readers, sample())
        apply_layer_plans(module, plan, offers, seed, norms)
        differing = [
            index
            for index in plan.reshaped
            if not offers[index - 1].is_function_preserving(plan.layers[index - 1], plan.inherit)
        ]
        stale = max(differing, default=0)
        layers = list_layers(module)
    set_pool(module, plan.head.pool, backbone.name)
    features = feature_count(module, backbone.data_config["input_size"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(plan.head, features, classes)
    return Network(module, layers, plan.depth, head, stale)


def check_plan(plan: TrialPlan, name: str, layers: int) -> None:
    """Refuse a plan that asks for more layers than there are."""
    if not 0 <= plan.depth <= layers or len(plan.layers) != plan.depth:
        raise PlanError(
            f"depth must be between 0 and the {layers} layers of {name!r} with one layer plan "
            f"each, but got depth {plan.depth} with {len(plan.layers)} layer plans"
        )


def set_pool(module: nn.Module, pool: str, name: str) -> None:
    """Change the global pooling of a backbone.

    Raises:
        PlanError: When its architecture does not offer that pooling.
    """
    if pool == KEEP:
        return
    try:
        module.reset_classifier(0, pool)  # type: ignore[operator]
    except Exception as error:  # each architecture refuses in its own way
        raise PlanError(
            f"head.pool: the backbone {name!r} cannot pool with {pool!r} "
            f"({type(error).__name__}: {error}); 'keep' always works"
        ) from error


def pool_problem(model: nn.Module, name: str, pool: str, input_size: tuple[int, int, int]) -> str:
    """Try a global pooling without weights.

    Args:
        model: The backbone on the meta device; it is not changed.
        name: Its name.
        pool: The pooling.
        input_size: Channels, height and width of its images.

    Returns:
        Why it does not work, or an empty string.
    """
    if pool == KEEP:
        return ""
    changed = copy.deepcopy(model)
    try:
        set_pool(changed, pool, name)
        with torch.device("meta"):
            feature_count(changed, input_size)
    except (PlanError, RuntimeError, ValueError, AssertionError) as error:
        return f"cannot pool with {pool!r} ({str(error).splitlines()[0][:120]})"
    return ""


def feature_count(module: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the number of pooled features, measured with one image."""
    device = next(module.parameters()).device
    with torch.no_grad():
        features = module.eval()(torch.zeros(1, *input_size, device=device))
    if features.ndim != 2:
        raise PlanError(f"the backbone must pool to (N, features), but gave {features.shape}")
    return int(features.shape[1])
