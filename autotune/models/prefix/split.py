"""A network in two: the prefix, which never changes, and the tail, which trains.

What depends on the images and on frozen state alone is the same in every epoch. The prefix
computes it once for each image; the tail goes on from the tensors that cross, with the very
modules and parameters of the network. Where several cuts would do, the one is taken whose
tensors have the fewest bytes: cheap operations may lie on either side, or on both.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from autotune.errors import SplitError
from autotune.models.backbone import first_line
from autotune.models.device_errors import is_device_error
from autotune.models.network import Network
from autotune.models.prefix.batch_analysis import (
    BatchMultiple,
    Constant,
    GraphAnalysis,
    Kind,
    Nested,
    analyze,
    for_other_mode,
    from_parts,
    to_parts,
)
from autotune.models.prefix.graph import (
    Function,
    TraceClone,
    compile_graph,
    is_backbone_attr,
    is_expensive,
    same_graphs,
    trace,
)
from autotune.models.prefix.min_cut import (
    cheapest_cut,
    crossing_kind,
    dependencies,
    first_nodes,
    output_of,
    varies,
)

#: Largest relative difference between a network that is split and the whole one, by what its
#: products are computed in: four to ten times the unit roundoff, which is 2^-9 in bf16 and 2^-12
#: in fp16 (https://en.wikipedia.org/wiki/Bfloat16_floating-point_format). Where the layout of a
#: tensor changes at the cut, another kernel may go on from there, and add in another order.
_ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-3}


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a network as a function.

    Args:
        function: Takes the owner of the modules, what ``needs`` names, and the constants.
        needs: Keys of what it is given.
        constants: Tensors that are the same for all images.
        source: What the function does.
    """

    function: Function
    needs: tuple[str, ...]
    constants: tuple[Tensor, ...]
    source: str

    def __call__(self, owner: nn.Module, given: Sequence[Tensor]) -> Any:
        return self.function(owner, *given, *self.constants)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The part of a network that never changes, from the images or from features of them.

    It computes without gradients and in evaluation mode, whatever the mode of the network.

    Args:
        needs: Keys of the tensors that it is given, in order; empty for images.
    """

    needs: tuple[str, ...]
    _part: _Part
    _owner: nn.Module

    @torch.no_grad()
    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that cross, each ``(N, *shape)``.

        Args:
            given: Normalised images ``(N, C, H, W)``, or the tensors that ``needs`` names, each
                ``(N, *shape)``. They are not changed.
        """
        crossing: tuple[Tensor, ...] = self._part(self._owner, given)
        return crossing


@dataclass(frozen=True, eq=False)
class PrefixSplit:
    """A network that is cut where training begins.

    Args:
        keys: What each crossing tensor is, 32 hexadecimal digits: equal keys are equal features,
            given the backbone's weights and the precision. They are the same in every process.
        shapes: Shape of one image's part of each.
        dtypes: Their types.
        trivial: Whether nothing that costs anything lies before the cut.
    """

    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    is_trivial: bool
    _flow: GraphAnalysis
    _evaluation: _Part
    _training: _Part

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixSplit:
        """Return itself: nothing of it belongs to one copy of a network."""
        return self

    def prefix(self, known: Sequence[str] = ()) -> Prefix | None:
        """Return the part before the cut.

        Args:
            known: Keys of tensors to begin with, as other splits of the backbone have them; the
                prefix needs no more of them than it uses. Empty for images.

        Returns:
            The prefix, or ``None`` where the known tensors do not suffice.
        """
        part = _prefix_part(self._flow, self.keys, known or None)
        if part is None:
            return None
        return Prefix(part.needs if known else (), part, self._flow.root)

    def tail(self, network: nn.Module, crossing: tuple[Tensor, ...], training: bool) -> Tensor:
        """Return the pooled features ``(N, F)``.

        Args:
            network: The network that was split, or a copy of it.
            crossing: The crossing tensors, each ``(N, *shape)``. They are not changed.
            training: Whether trainable layers train; else they work as in evaluation.
        """
        part = self._training if training else self._evaluation
        features: Tensor = part(network, crossing)
        return features


def split_network(network: Network, images: Tensor) -> PrefixSplit:
    """Cut a network where training begins.

    Args:
        network: The network, already on its device; it is not changed. Where it trains under
            autocast, this has to run under it too: what crosses has the types of now.
        images: Some normalised images ``(N, C, H, W)``; the first is looked at.

    Raises:
        SplitError: With the reason, when the backbone cannot be traced, or what crosses belongs
            to no image alone.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        try:
            return _split(network, images.clone())
        except SplitError:
            raise
        except Exception as error:  # each architecture fails in its own way
            if is_device_error(error):
                raise
            raise SplitError(
                f"the backbone cannot be taken apart ({type(error).__name__}: {first_line(error)})"
            ) from error


def _split(network: Network, images: Tensor) -> PrefixSplit:
    trainable = frozenset(network.trainable_state())  # buffers that are not saved are tables
    shape, one = tuple(images.shape[1:]), images[:1]
    shadow = TraceClone(network, training=False)
    graph = trace(shadow)
    flow = analyze(shadow, graph, trainable, shape, images)
    flows = [flow]
    if network.depth:
        active = TraceClone(network, training=True)
        trained = trace(active)
        if same_graphs(trained, active, graph, shadow):
            flows.append(for_other_mode(active, flow, shape))
        else:
            flows.append(analyze(active, trained, trainable, shape, images, flow.kinds))
    keys = cheapest_cut(flows)
    kinds = [crossing_kind(flow, key) for key in keys]
    prefix = _prefix_part(flow, keys)
    assert prefix is not None, "the images always suffice"
    crossing = prefix(shadow, [one])
    evaluation = _tail_part(flow, keys, crossing)
    _compare(evaluation(shadow, crossing), shadow(one))
    training = evaluation
    if network.depth:
        training = _tail_part(flows[1], keys, [part.repeat_interleave(2, 0) for part in crossing])
    return PrefixSplit(
        keys,
        tuple(kind.shape for kind in kinds),
        tuple(kind.dtype for kind in kinds),
        not any(
            is_expensive(node, shadow) and varies(flow, node)
            for node in dependencies(flow, first_nodes(flow, keys))
        ),
        flow,
        evaluation,
        training,
    )


def _compare(found: Tensor, expected: Tensor) -> None:
    """Refuse a split network that does something else than the whole one."""
    if found.shape == expected.shape:
        single, whole = found.float(), expected.float()
        off = float((single - whole).norm() / whole.norm().clamp_min(1e-30))
        if off <= _ROUNDING[_computed_in(expected.device)]:
            return
        raise SplitError(f"prefix and tail differ from the whole backbone by {off:.1e}")
    raise SplitError(
        f"prefix and tail give {tuple(found.shape)} instead of {tuple(expected.shape)}"
    )


def _computed_in(device: torch.device) -> torch.dtype:
    """Return what products are rounded to: float32 on a GPU may be TF32, of the bits of fp16."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float16 if device.type == "cuda" else torch.float32


def _prefix_part(
    flow: GraphAnalysis, keys: Sequence[str], known: Sequence[str] | None = None
) -> _Part | None:
    """Make the part before the cut, from images or from the tensors of some keys."""
    wanted = first_nodes(flow, keys)
    if known is None:
        known = [flow.digests[node] for node in flow.graph.nodes if node.op == "placeholder"]
    needed = dependencies(flow, wanted, known)
    reached = {flow.digests[node] for node in needed if node in flow.frozen}
    used = tuple(dict.fromkeys(key for key in known if key in reached))
    if any(node.op == "placeholder" and flow.digests[node] not in used for node in needed):
        return None
    rewritten = {flow.digests[node] for node in flow.rewritten}
    written = [_given(index) for index, key in enumerate(used) if key in rewritten]
    return _part(flow, used, wanted, written, as_parts=True)


def _tail_part(flow: GraphAnalysis, keys: tuple[str, ...], crossing: Sequence[Tensor]) -> _Part:
    """Make the part behind the cut, and try it.

    Args:
        flow: The graph of one mode.
        keys: What crosses.
        crossing: The crossing tensors of some images.
    """
    wanted = output_of(flow).all_input_nodes
    part = _part(flow, keys, wanted)
    tried = {_given(index): one.clone() for index, one in enumerate(crossing)}
    tried |= {_constant(index): one.clone() for index, one in enumerate(part.constants)}
    versions = {name: one._version for name, one in tried.items()}
    part.function(flow.root, *tried.values())
    written = [name for name, one in tried.items() if one._version != versions[name]]
    return _part(flow, keys, wanted, written) if written else part


def _given(index: int) -> str:
    return f"given_{index}"


def _constant(index: int) -> str:
    return f"constant_{index}"


def _part(
    flow: GraphAnalysis,
    given: tuple[str, ...],
    wanted: Sequence[Node],
    written: Collection[str] = (),
    as_parts: bool = False,
) -> _Part:
    """Make a function of some nodes of a graph.

    Args:
        flow: The graph.
        given: Keys of the tensors that it is given, as parts ``(N, *shape)``.
        wanted: The nodes whose values it returns.
        written: The arguments that nodes write to: they get copies.
        as_parts: Whether to return a tuple of parts, and not the one value as it is; what writes
            to buffers belongs to the latter alone.
    """
    needed = dependencies(flow, wanted if as_parts else [*wanted, *flow.effects], given)
    nodes = [node for node in flow.graph.nodes if node in needed]
    fixed = {node: flow.kinds[flow.digests[node]] for node in nodes if _is_fixed(flow, node)}
    values = [kind.value for kind in fixed.values() if isinstance(kind, Constant)]
    tensors = {id(one): one for one in tree_leaves(values) if isinstance(one, Tensor)}
    graph = fx.Graph()
    inputs = {key: graph.placeholder(_given(index)) for index, key in enumerate(given)}
    constants = {one: graph.placeholder(_constant(index)) for index, one in enumerate(tensors)}
    images = graph.call_method("size", (next(iter(inputs.values())), 0))

    def argument(place: Node) -> Node:
        return graph.call_method("clone", (place,)) if place.name in written else place

    def literal(kind: Kind) -> Any:
        if isinstance(kind, Constant):
            return tree_map_only(Tensor, lambda one: argument(constants[id(one)]), kind.value)
        if isinstance(kind, BatchMultiple):
            return graph.call_function(operator.mul, (images, kind.each))
        assert isinstance(kind, Nested)
        items = [literal(one) for one in kind.items]
        return items if kind.type is list else tuple(items)

    made: dict[Node, Any] = {}
    results: dict[Node, Node] = {}
    for node in nodes:
        key = flow.digests[node]
        if node in fixed:
            made[node] = literal(fixed[node])
        elif node in flow.frozen and key in inputs:
            kind = crossing_kind(flow, key)
            made[node] = argument(inputs[key])
            if not kind.plain:
                layout = (kind.dim, kind.before, kind.each)
                made[node] = graph.call_function(from_parts, (made[node], *layout))
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
        if as_parts and node in wanted:
            kept = made[node]
            if node in flow.rewritten:  # by a node that may come
                kept = graph.call_method("clone", (kept,))
            kind = crossing_kind(flow, key)
            if not kind.plain:
                kept = graph.call_function(to_parts, (kept, kind.dim, kind.before, kind.each))
            results[node] = kept
    if not images.users:
        graph.erase_node(images)
    graph.output(tuple(results[one] for one in wanted) if as_parts else made[wanted[0]])
    function, source = compile_graph(graph)
    return _Part(function, given, tuple(tensors.values()), source)


def _is_fixed(flow: GraphAnalysis, node: Node) -> bool:
    """Say whether a frozen node gives constants and numbers of images alone."""
    if node not in flow.frozen or varies(flow, node):
        return False
    return node.op != "get_attr" or not is_backbone_attr(node)
