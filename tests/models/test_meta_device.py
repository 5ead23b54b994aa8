from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from autotune.models.meta_device import MetaShapes

Form = Callable[[str], Tensor]

FORMS: dict[str, Form] = {
    "contiguous": lambda device: torch.zeros(2, 8, 4, 4, device=device),
    "channels last": lambda device: torch.zeros(2, 4, 4, 8, device=device).permute(0, 3, 1, 2),
    "cut out": lambda device: torch.zeros(2, 8, 6, 4, device=device)[:, :, :4],
    "expanded": lambda device: torch.zeros(2, 8, 4, 1, device=device).expand(2, 8, 4, 4),
    "halves": lambda device: torch.zeros(2, 8, 4, 4, device=device, dtype=torch.bfloat16),
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "batch norm of each batch": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "layer norm": lambda: nn.LayerNorm(4),
    "layer norm over two": lambda: nn.LayerNorm((4, 4)),
    "layer norm without weights": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "linear": lambda: nn.Linear(4, 6),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "leaky relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "relu6 in place": lambda: nn.ReLU6(inplace=True),
    "hardswish in place": lambda: nn.Hardswish(inplace=True),
    "mish in place": lambda: nn.Mish(inplace=True),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + x,
    "add twice": lambda x: torch.add(x, x, alpha=2),
    "add a row": lambda x: x + x[:1, :, :1],
    "add another type": lambda x: x + x.double(),
    "add another layout": lambda x: x + x.contiguous(),
    "add a number": lambda x: x + 2.5,
    "multiply": lambda x: x * x,
    "a gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "add a number in place": lambda x: x.clone().add_(2),
    "multiply in place": lambda x: x.clone().mul_(x),
    "a row in place": lambda x: x.clone().add_(x[:, :3, :3]),
    "random numbers": lambda x: nn.init.trunc_normal_(x.clone(), std=0.02),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "rows": lambda x: F.linear(x[0, 0], x[0, 1], x[0, 1, 0]),
}


def form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def outcome(compute: Callable[[Tensor], Tensor], make: Form) -> object:
    """Return the form of an output, or the message of the error."""
    try:
        with torch.no_grad():
            return form(compute(make("meta")))
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_modules_give_what_they_give_without_it(
    module: Callable[[], nn.Module], make: Form
) -> None:
    module = module().eval().to("meta")
    expected = outcome(module, make)
    with MetaShapes():
        assert outcome(module, make) == expected


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_give_what_they_give_without_it(
    function: Callable[[Tensor], Tensor], make: Form
) -> None:
    expected = outcome(function, make)
    with MetaShapes():
        assert outcome(function, make) == expected


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(7),
        nn.LayerNorm(5),
        nn.LayerNorm((8, 4)),
        nn.GroupNorm(3, 9),
        nn.Linear(5, 2),
    ],
    ids=str,
)
def test_what_does_not_fit_fails_with_the_same_message(module: nn.Module) -> None:
    module = module.eval().to("meta")
    expected = outcome(module, FORMS["contiguous"])
    assert isinstance(expected, str)
    with MetaShapes():
        assert outcome(module, FORMS["contiguous"]) == expected


def test_other_devices_compute() -> None:
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.BatchNorm2d(3), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    expected = net(image)
    with MetaShapes():
        assert torch.equal(net(image), expected)
