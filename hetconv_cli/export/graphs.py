"""Walking an ONNX graph, with the graphs that If and Loop nodes hold."""

from collections.abc import Iterator

import onnx


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of inner graphs too."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from all_nodes(inner)


def names_read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Every reading of a tensor's name by a node or the graphs in it."""
    yield from node.input
    for inner in inner_graphs(node):
        yield from names_read(inner)


def names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Every reading of a tensor's name by the graph's nodes and as its outputs."""
    for node in graph.node:
        yield from names_read_by(node)
    for output in graph.output:
        yield output.name
