"""What the layers of a backbone compute and write, counted in one pass on the meta device."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from autotune.errors import BackboneError
from autotune.models.layers import Layer

#: The remainder's place among the layers: operations of none of them.
UNASSIGNED = -1


class FlopsProfile:
    """One pass of one image on the meta device: what each layer computes and writes.

    An operation belongs to the layer whose parameter it reads, wherever it runs; one that reads
    none (the products of attention) to the innermost running module that lies in a layer.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, int, int]
    ) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._place = {name: layer.index for layer in layers for name in layer.modules}
        self._owner = {
            tensors[name].untyped_storage()._cdata: layer.index
            for layer in layers
            for name in layer.names
        }
        self._input_size = input_size
        self._last_channels = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self._running: list[int] = []
        self._flops: Counter[int] = Counter()
        #: What the largest modules of each layer wrote, and what others did.
        self._outputs: dict[int, tuple[int, ...]] = {}
        self._inner: dict[int, tuple[int, ...]] = {}
        self.total = 0
        self.features = 0

    @classmethod
    def from_model(
        cls, model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, int, int]
    ) -> FlopsProfile:
        """Run a copy of a backbone and watch it.

        Raises:
            BackboneError: When it does not run on the meta device.
        """
        # Parameters that ask for gradients would make torch's counter follow the graph.
        model = copy.deepcopy(model).eval().requires_grad_(False)
        seen = cls(model, layers, input_size)
        counter = FlopCounterMode(
            display=False,
            custom_mapping={
                operation: seen._counting(formula) for operation, formula in flop_registry.items()
            },
        )
        with ExitStack() as stack:
            for name, module in model.named_modules():
                place = seen._place.get(name)
                stack.callback(module.register_forward_pre_hook(seen._enter(place)).remove)
                outputs = seen._outputs if seen._is_top(name) else seen._inner
                hook = seen._leave(place, outputs)
                stack.callback(module.register_forward_hook(hook).remove)
            try:
                with torch.no_grad(), torch.device("meta"), counter:
                    output = model(torch.zeros(1, *input_size))
            except Exception as error:  # whatever a network makes of the meta device
                raise BackboneError(
                    f"the backbone cannot be inspected without its weights "
                    f"({type(error).__name__}: {str(error).splitlines()[0][:160]})"
                ) from error
        seen.total = counter.get_total_flops() // 2
        seen.features = int(output.shape[-1])
        return seen

    @property
    def macs(self) -> Counter[int]:
        """Multiply-accumulates by layer, those of no layer under ``UNASSIGNED``."""
        return Counter({index: flops // 2 for index, flops in self._flops.items()})

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Shapes of the layers' outputs, see :class:`InspectedLayer`."""
        found = self._inner | self._outputs
        return {index: self._without_batch(shape) for index, shape in found.items()}

    def _counting(self, formula: Callable[..., int]) -> Callable[..., int]:
        """Make a formula of torch note the layer of every operation that it counts."""

        def count(*args: Any, **kwargs: Any) -> int:
            flops = formula(*args, **kwargs)
            self._flops[self._layer_of(args)] += flops
            return flops

        count._get_raw = True  # type: ignore[attr-defined]  # tensors, not shapes
        return count

    def _layer_of(self, operands: tuple[Any, ...]) -> int:
        for operand in operands:
            if isinstance(operand, Tensor):
                owner = self._owner.get(operand.untyped_storage()._cdata)
                if owner is not None:
                    return owner
        return self._running[-1] if self._running else UNASSIGNED

    def _enter(self, place: int | None) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            outer = self._running[-1] if self._running else UNASSIGNED
            self._running.append(outer if place is None else place)

        return hook

    def _is_top(self, name: str) -> bool:
        return self._place.get(name) != self._place.get(name.rpartition(".")[0])

    def _leave(
        self, place: int | None, outputs: dict[int, tuple[int, ...]]
    ) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()
            if isinstance(output, list | tuple):
                output = next((one for one in output if isinstance(one, Tensor)), None)
            if place is None or not isinstance(output, Tensor) or output.ndim < 2:
                return
            shape = tuple(output.shape)
            # Pooling at the end of a layer is the head's business, unless that is all it does.
            if self._positions(shape) > 1 or self._positions(outputs.get(place, ())) <= 1:
                outputs[place] = shape

        return hook

    def _without_batch(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) == 4 and self._channels_last(shape):
            return shape[3], shape[1], shape[2]
        return shape[1:]

    def _positions(self, shape: tuple[int, ...]) -> int:
        """Count the pixels or tokens of an output."""
        found = self._without_batch(shape)
        return math.prod(found[1:] if len(found) == 3 else found[:-1])

    def _channels_last(self, shape: tuple[int, ...]) -> bool:
        """Tell where the channels of a map are by the sides that have the image's proportions."""
        _, height, width = self._input_size
        first = shape[2] * width == shape[3] * height
        last = shape[1] * width == shape[2] * height
        return last and (self._last_channels or not first)
