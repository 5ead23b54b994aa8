"""Replace components of a block that have no channels: activations, dropout, drop path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm import layers as timm_layers
from timm.layers.drop import DropPath
from timm.models.nfnet import GammaAct
from torch import Tensor, nn

#: Name in a study file -> activation function.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "mish": nn.Mish,
}
#: timm's own classes -> name of the function that they compute.
_TIMM_NAMES: dict[type[nn.Module], str] = {
    timm_layers.GELU: "gelu",
    timm_layers.Swish: "silu",
    timm_layers.Mish: "mish",
    timm_layers.HardSwish: "hardswish",
}
_NAMES = {kind: name for name, kind in ACTIVATIONS.items()} | _TIMM_NAMES
#: Classes that count as the activation of a block. Sigmoid and tanh do not: they are gates.
_REPLACEABLE = (
    *(kind for name, kind in ACTIVATIONS.items() if name not in ("sigmoid", "tanh")),
    *_TIMM_NAMES,
    nn.ReLU6,
    nn.PReLU,
    timm_layers.GELUTanh,
    timm_layers.HardMish,
    timm_layers.PReLU,
    timm_layers.QuickGELU,
    GammaAct,
)


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is the activation function of a block."""
    return isinstance(module, _REPLACEABLE)


def activation_name(module: nn.Module) -> str:
    """Return the name of an activation function in a study file, "" for unusual ones."""
    unusual = (
        (isinstance(module, nn.GELU) and module.approximate != "none")
        or (isinstance(module, nn.LeakyReLU) and module.negative_slope != 0.01)
        or (isinstance(module, nn.ELU) and module.alpha != 1.0)
    )
    return "" if unusual else _NAMES.get(type(module), "")


class ScaledActivation(nn.Module):
    """An activation function and a factor, instead of timm's ``GammaAct``.

    ``GammaAct`` multiplies in place, over what relu, sigmoid and tanh keep for their gradients.
    """

    def __init__(self, activation: nn.Module, gamma: float) -> None:
        super().__init__()
        self.activation = activation
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled activation, of the shape of ``x``."""
        scaled: Tensor = self.activation(x) * self.gamma
        return scaled


def set_activation(model: nn.Module, name: str, activation: str) -> None:
    """Replace an activation function by one of ``ACTIVATIONS``; NFNets keep their factor."""
    old = model.get_submodule(name)
    new: nn.Module = ACTIVATIONS[activation]()
    if isinstance(old, GammaAct):
        new = ScaledActivation(new, old.gamma)
    model.set_submodule(name, new.train(old.training))


def find_dropouts(model: nn.Module, modules: Iterable[str]) -> Iterator[str]:
    """Yield the names of dropout modules, without the dropout of attention maps."""
    for name in modules:
        if isinstance(model.get_submodule(name), nn.Dropout) and "attn_drop" not in name:
            yield name


def set_dropout(model: nn.Module, name: str, share: float) -> None:
    """Set the share of activations that a dropout module drops."""
    model.get_submodule(name).p = share  # type: ignore[assignment]


def find_drop_paths(model: nn.Module, modules: Iterable[str]) -> Iterator[str]:
    """Yield the attributes by which modules drop their residual branch, used or not.

    timm's blocks have the attribute at a rate of zero too: as an identity or as ``None``.
    """
    for name in modules:
        module = model.get_submodule(name)
        for attribute in [*vars(module), *dict(module.named_children())]:
            if "drop_path" in attribute and isinstance(
                getattr(module, attribute), DropPath | nn.Identity | None
            ):
                yield f"{name}.{attribute}"


def set_drop_path(model: nn.Module, name: str, share: float) -> None:
    """Set the share of the images for which a residual branch is left out in training."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    setattr(owner, attribute, DropPath(share).train(owner.training))
