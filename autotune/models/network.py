"""A trial's network: the backbone with its frozen and trainable layers, and the head.

Frozen layers get no gradient, no change of norm statistics and no dropout. ``requires_grad`` alone
does not freeze batch norm, so frozen modules return to evaluation mode whenever the network is
set to train.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autotune.errors import PlanError
from autotune.models.backbone import Backbone
from autotune.models.layers import Layer, list_layers, trained_names
from autotune.models.meta_device import MetaShapes
from autotune.models.surgery.apply import apply_layer_plans, validate_plans
from autotune.models.surgery.components import ACTIVATIONS
from autotune.models.surgery.inheritance import channel_norms
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import FITTED, KEEP, HeadPlan, LayerPlan, TrialPlan
from autotune.text import error_line, first_line


@dataclass(frozen=True, eq=False)
class FittedStart:
    """What changed layers are fitted to before they train (`init: fitted`).

    Args:
        backbone: The pretrained backbone.
        plan: The plan of the network.
        channels: Channels of the pretrained network that are left, see
            :func:`~autotune.models.surgery.apply.apply_layer_plans`.
    """

    backbone: Backbone
    plan: TrialPlan
    channels: Mapping[str, Tensor]

    def __deepcopy__(self, memo: dict[int, Any]) -> FittedStart:
        """Return itself: copies of a network have the same pretrained one."""
        return self

    def unchanged(self) -> Network:
        """Build the network of the plan without changes of its layers."""
        plan = self.plan
        kept = TrialPlan(
            plan.backbone, plan.depth, (LayerPlan(),) * plan.depth, HeadPlan(pool=plan.head.pool)
        )
        return build_network(self.backbone, kept, 2, seed=0)


class Tail(Protocol):
    """Computes the rest of a network from the tensors that cross a split."""

    def tail(self, network: Network, crossing: tuple[Tensor, ...], training: bool) -> Tensor:
        """Return the features of the backbone, ``(N, num_features)``."""


class Head(nn.Sequential):
    """The head of a plan: hidden layers, then a linear layer.

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
        self.features = output.in_features
        self.classes = classes

    @property
    def is_linear(self) -> bool:
        """Whether there are no hidden layers."""
        return len(self) == 1

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Set the weights ``(classes, features)`` and biases ``(classes,)`` of a linear head."""
        output = self[-1]
        assert self.is_linear and isinstance(output, nn.Linear)
        output.weight.copy_(weight)
        output.bias.copy_(bias)


class Network(nn.Module):
    """A backbone with ``depth`` trainable layers and a head.

    Args:
        backbone: Module without classifier; it becomes part of the network.
        layers: Its layers, the last one first.
        depth: Number of trainable layers.
        head: The head.
        stale: Number of last layers that compute or see other features than the pretrained ones:
            their norm statistics have to be measured anew.
        untrained: Names of parameters of trainable layers that do not train.
        start: What its changed layers are fitted to; ``None`` if they start as they are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: tuple[Layer, ...],
        depth: int,
        head: Head,
        stale: int = 0,
        untrained: Collection[str] = (),
        start: FittedStart | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.depth = depth
        self.layers = layers
        self.start = start
        self._trainable_names = frozenset(
            f"backbone.{name}" for layer in layers[:depth] for name in layer.names
        )
        self._trained_names = self._trainable_names - {f"backbone.{name}" for name in untrained}
        trainable_modules = {name for layer in layers[:depth] for name in layer.modules}
        # Modules outside of every layer (containers, input dropout) are frozen unless nothing
        # is: what they drop would reach the frozen layers.
        self.frozen = [
            module
            for name, module in backbone.named_modules()
            if name not in trainable_modules and depth < len(layers)
        ]
        self.stale_norms = tuple(
            module
            for layer in layers[:stale]
            for name in layer.modules
            if isinstance(module := backbone.get_submodule(name), nn.modules.batchnorm._BatchNorm)
        )
        self._split: Tail | None = None
        self._freeze_parameters(False)

    @property
    def trainable_norms(self) -> tuple[nn.modules.batchnorm._BatchNorm, ...]:
        """The batch norms of the trainable layers and the head."""
        frozen = {*self.frozen}
        return tuple(
            module
            for module in self.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in frozen
        )

    def _freeze_parameters(self, all_but_head: bool) -> None:
        self._is_head_only = all_but_head
        for name, parameter in self.backbone.named_parameters():
            trains = f"backbone.{name}" in self._trained_names
            parameter.requires_grad_(trains and not all_but_head)

    def train(self, mode: bool = True) -> Network:
        """Set the mode of the trainable part; the frozen part stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules() if self._is_head_only else self.frozen:
            module.training = False
        return self

    def freeze_all_but_head(self, freeze: bool) -> Network:
        """Switch to training, with the whole backbone frozen or as the plan says."""
        self._freeze_parameters(freeze)
        return self.train()

    def attach(self, split: Tail) -> None:
        """Let :meth:`forward` of this network and its copies take the tensors of a split."""
        self._split = split

    def forward(self, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the logits ``(N, classes)``.

        Args:
            images: Normalized images ``(N, C, H, W)``, or the crossing tensors of the attached
                split, each ``(N, *shape)``.
        """
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the pooled features ``(N, F)``, which the head takes; see :meth:`forward`."""
        if isinstance(images, tuple):
            assert self._split is not None, "crossing tensors need a split"
            return self._split.tail(self, images, self.training and not self._is_head_only)
        features: Tensor = self.backbone(images)
        return features

    def layer_of_parameters(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Yield every trainable parameter with its name and layer; the head counts as layer 0.

        Those of trainable layers are included while only the head trains.
        """
        index = {name: layer.index for layer in self.layers for name in layer.names}
        for name, parameter in self.named_parameters():
            if name in self._trained_names or name.startswith("head."):
                yield name, parameter, index.get(name.removeprefix("backbone."), 0)

    def _is_trainable(self, name: str) -> bool:
        return name in self._trainable_names or name.startswith("head.")

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the part of the state that training changes: trainable layers and head."""
        return {n: value for n, value in self.state_dict().items() if self._is_trainable(n)}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`trainable_state` returned.

        Raises:
            PlanError: When the state is that of another plan.
        """
        own = {(name, value.shape) for name, value in self.trainable_state().items()}
        if differing := own ^ {(name, value.shape) for name, value in state.items()}:
            names = sorted({name for name, _ in differing})
            raise PlanError(
                f"the stored weights belong to another plan: {len(names)} of their keys or "
                f"shapes differ, {names[0]} first"
            )
        self.load_state_dict(state, strict=False)


def build_network(
    backbone: Backbone,
    plan: TrialPlan,
    classes: int,
    seed: int,
    sample: Callable[[], Tensor] | None = None,
) -> Network:
    """Apply a trial plan to a copy of a backbone.

    Args:
        backbone: The pretrained backbone.
        plan: The plan.
        classes: Number of classes.
        seed: Seed of the head's initial weights and of what inheritance draws.
        sample: Returns normalized training images ``(N, C, H, W)``; needed by plans with
            ``init: activations``.

    Raises:
        PlanError: When the plan does not fit the backbone.
    """
    module = backbone.fresh()
    layers = list_layers(module)
    check_plan(plan, backbone.name, len(layers))
    stale, start = 0, None
    if plan.reshaped:
        capabilities = cached_capabilities(backbone, layers, max(plan.reshaped))
        validate_plans(plan, capabilities)
        norms = None
        if plan.inherit == "data" and any(layer.width != KEEP for layer in plan.layers):
            assert sample is not None, "init: activations needs images"
            readers = [
                name for layer in capabilities for group in layer.groups for name in group.readers
            ]
            norms = channel_norms(module.eval(), readers, sample())
        channels = apply_layer_plans(module, plan, capabilities, seed, norms)
        for index in plan.reshaped:
            layer_plan = plan.layers[index - 1]
            if not capabilities[index - 1].is_function_preserving(layer_plan, plan.inherit):
                stale = max(stale, index)
        if stale and plan.inherit == FITTED:
            start = FittedStart(backbone, plan, channels)
        layers = list_layers(module)
    set_pool(module, plan.head.pool, backbone.name)
    features = feature_count(module, backbone.data_config["input_size"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(plan.head, features, classes)
    untrained = [
        name
        for layer, layer_plan in zip(layers, plan.layers, strict=False)
        if not layer_plan.changes()
        for name in set(layer.names) - set(trained_names(module, layer, plan.policy.parameters))
    ]
    return Network(module, layers, plan.depth, head, stale, untrained, start)


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
    except Exception as error:  # each architecture fails in its own way
        raise PlanError(
            f"head.pool: the backbone {name!r} cannot pool with {pool!r} "
            f"({error_line(error)}); 'keep' always works"
        ) from error


def pool_problem(model: nn.Module, name: str, pool: str, input_size: tuple[int, int, int]) -> str:
    """Return why a backbone on the meta device cannot have a global pooling, "" if it can."""
    if pool == KEEP:
        return ""
    changed = copy.deepcopy(model)
    try:
        set_pool(changed, pool, name)
        with torch.device("meta"), MetaShapes():
            feature_count(changed, input_size)
    except (PlanError, RuntimeError, ValueError, AssertionError) as error:
        return f"cannot pool with {pool!r} ({first_line(error, 120)})"
    return ""


def feature_count(module: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the number of pooled features, measured with one image."""
    device = next(module.parameters()).device
    with torch.no_grad():
        features = module.eval()(torch.zeros(1, *input_size, device=device))
    if features.ndim != 2:
        raise PlanError(f"the backbone must pool to (N, features), but gave {features.shape}")
    return int(features.shape[1])
