"""Where a network is cut: what has to lie before, and the fewest bytes that separate it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch.fx import Node

from autotune.errors import SplitError
from autotune.models.prefix.batch_analysis import GraphAnalysis, PerImage, varies_by_image
from autotune.models.prefix.graph import is_expensive

#: Stands for "no cut here".
_ENDLESS = 2**30


def crossing_kind(flow: GraphAnalysis, key: str) -> PerImage:
    """Return what is known of a crossing tensor."""
    kind = flow.kinds[key]
    assert isinstance(kind, PerImage), "only such tensors are cut"
    return kind


def varies(flow: GraphAnalysis, node: Node) -> bool:
    """Say whether a frozen node gives something that differs from image to image."""
    return varies_by_image(flow.kinds[flow.digests[node]])


def dependencies(
    flow: GraphAnalysis, wanted: Iterable[Node], given: Iterable[str] = ()
) -> set[Node]:
    """List the nodes that some nodes depend on, themselves included, as far as what is given.

    Args:
        flow: The graph.
        wanted: The nodes.
        given: Digests of frozen nodes whose values are there.
    """
    found: set[Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            known = node in flow.frozen and (flow.digests[node] in given or not varies(flow, node))
            if not known:
                waiting += node.all_input_nodes
    return found


def output_of(flow: GraphAnalysis) -> Node:
    """Return the node that ends the graph."""
    return flow.graph.output_node()


def first_nodes(flow: GraphAnalysis, keys: Sequence[str]) -> list[Node]:
    """Find the first node of each key."""
    nodes: dict[str, Node] = {}
    for node in flow.graph.nodes:
        if node in flow.frozen:
            nodes.setdefault(flow.digests[node], node)
    return [nodes[key] for key in keys]


def cheapest_cut(flows: Sequence[GraphAnalysis]) -> tuple[str, ...]:
    """Choose what crosses: the fewest bytes that separate all that is expensive from the tail.

    A minimum cut of the frozen nodes that differ from image to image, those of the graphs of both
    modes in one. The images and the expensive nodes are its sources; what nodes of the tail read
    are its sinks.

    Returns:
        The digests of the nodes, in the order of the graph.

    Raises:
        SplitError: When something would have to cross that belongs to no image alone.
    """
    bytes_of: dict[str, int] = {}
    edges: set[tuple[str, str]] = set()
    sources: set[str] = set()
    sinks: set[str] = set()
    for flow in flows:
        needed = dependencies(flow, [output_of(flow), *flow.effects])
        for node in [one for one in flow.graph.nodes if one in needed]:
            key, inner = flow.digests[node], node in flow.frozen
            if inner and not varies(flow, node):
                continue
            if inner:
                kind = flow.kinds[key]
                bytes_of[key] = max(kind.bytes, 1) if isinstance(kind, PerImage) else _ENDLESS
                if node.op == "placeholder" or is_expensive(node, flow.root):
                    sources.add(key)
            for one in node.all_input_nodes:
                if one in flow.frozen and varies(flow, one):
                    if inner:
                        edges.add((flow.digests[one], key))
                    else:
                        sinks.add(flow.digests[one])
    return _minimum_cut(bytes_of, edges, sources, sinks)


def _minimum_cut(
    bytes_of: Mapping[str, int],
    edges: Collection[tuple[str, str]],
    sources: Collection[str],
    sinks: Collection[str],
) -> tuple[str, ...]:
    """Return the vertices of least weight that separate sources from sinks.

    Of several such sets the one nearest to the sinks is taken: less is computed behind it.
    """
    keys = list(bytes_of)
    # Every vertex is an arc of its weight, from its entrance to its exit.
    enter = {key: 2 * index for index, key in enumerate(keys)}
    source, sink = 2 * len(keys), 2 * len(keys) + 1
    arcs = [(enter[key], enter[key] + 1, bytes_of[key]) for key in keys]
    arcs += [(enter[one] + 1, enter[other], _ENDLESS) for one, other in edges]
    arcs += [(source, enter[key], _ENDLESS) for key in sources]
    arcs += [(enter[key] + 1, sink, _ENDLESS) for key in sinks]
    tails, heads, sizes = np.array(arcs, dtype=np.int32).reshape(-1, 3).T
    capacity = csr_array(coo_array((sizes, (tails, heads)), shape=(sink + 1, sink + 1)))
    flow = maximum_flow(capacity, source, sink).flow
    passing = int(flow[:, [sink]].toarray().astype(np.int64).sum())
    if not passing:
        raise SplitError("what the backbone gives does not depend on the images")
    if passing >= _ENDLESS:
        raise SplitError("what the trainable layers read belongs to no image alone")
    left = csr_array(capacity - flow)
    left.eliminate_zeros()
    behind = set(breadth_first_order(csr_array(left.T), sink, return_predecessors=False).tolist())
    return tuple(key for key in keys if enter[key] not in behind and enter[key] + 1 in behind)
