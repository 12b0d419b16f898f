"""What an exporter leaves in an ONNX graph that nobody needs."""

from typing import Any

import onnx

from hetconv_cli.export.graphs import all_nodes, inner_graphs, names_read


def strip_metadata(model: onnx.ModelProto) -> None:
    """Removes the stack traces that the exporter notes on each node, with the paths of this machine's files."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in all_nodes(model.graph):
        del node.metadata_props[:]
        node.doc_string = ""


def join_identities(graph: onnx.GraphProto) -> None:
    """Removes Identity nodes that only rename an initializer.

    The TorchScript exporter makes one wherever two weights happen to hold the same numbers, so that two networks of
    one structure would get different graphs.
    """
    stored = {tensor.name for tensor in graph.initializer}
    kept = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type != "Identity" or node.output[0] in kept:
            continue
        source = renamed.get(node.input[0], node.input[0])
        if source in stored:
            renamed[node.output[0]] = source
            graph.node.remove(node)
    _rename_reads(graph, renamed)


def _rename_reads(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
        for inner in inner_graphs(node):
            _rename_reads(inner, names)
    for output in graph.output:  # of inner graphs: the outer one's names are kept
        output.name = names.get(output.name, output.name)


def prune(graph: onnx.GraphProto) -> None:
    """Removes constants that nothing reads, and the shapes noted for tensors that are gone."""
    read = set(names_read(graph))
    for node in list(graph.node):
        if node.op_type == "Constant" and node.output[0] not in read:
            graph.node.remove(node)
    _keep(graph.initializer, read)
    _keep(graph.value_info, {name for node in graph.node for name in node.output})


def _keep(entries: Any, names: set[str]) -> None:
    for position in reversed(range(len(entries))):
        if entries[position].name not in names:
            del entries[position]
