"""The order of sums in an ONNX graph: a residual is added to one branch of a HetConv before the other is.

A converted layer with a residual behind it exports as Add(Add(1 x 1, K x K), residual). Runtimes can let one Conv add
one tensor, and apply ReLU, as it writes its output; so the inner Add would be used up by the two branches and the outer
one would remain, a pass over memory of its own. Add(Add(K x K, residual), 1 x 1) is the same sum, and both Adds go into
the two convolutions.
"""

from collections import Counter

import onnx

from hetconv_cli.export.graphs import names_read


def add_residuals_first(graph: onnx.GraphProto) -> int:
    """Turns (conv + other) + residual into (other + residual) + conv, in place; returns how many sums were turned.

    Only where nothing else reads the inner sum and the residual is no constant.
    """
    nodes = list(graph.node)
    maker = {name: node for node in nodes for name in node.output}
    reads = Counter(names_read(graph))
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in nodes if node.op_type == "Constant"}
    turned: set[str] = set()
    for outer in list(graph.node):
        if outer.op_type != "Add":
            continue
        for name, residual in (tuple(outer.input), tuple(reversed(outer.input))):
            inner = maker.get(name)
            late = _convolution(inner, maker) if inner is not None and reads[name] == 1 else None
            if inner is None or late is None or residual in constants:
                continue
            (early,) = (operand for operand in inner.input if operand != late)
            inner.input[:], outer.input[:] = [early, residual], [name, late]
            _move_before(nodes, inner, outer)  # where the residual, too, has been made
            turned.add(name)
            break
    if turned:
        del graph.node[:]
        graph.node.extend(nodes)
        for position in reversed(range(len(graph.value_info))):
            if graph.value_info[position].name in turned:  # another tensor by now, perhaps of another shape
                del graph.value_info[position]
    return len(turned)


def _convolution(add: onnx.NodeProto, maker: dict[str, onnx.NodeProto]) -> str | None:
    """The operand of a sum of two different tensors that a Conv makes, the first if both are."""
    if add.op_type != "Add" or len(set(add.input)) != 2:
        return None
    return next((name for name in add.input if name in maker and maker[name].op_type == "Conv"), None)


def _move_before(nodes: list[onnx.NodeProto], node: onnx.NodeProto, place: onnx.NodeProto) -> None:
    nodes.pop(next(index for index, other in enumerate(nodes) if other is node))
    nodes.insert(next(index for index, other in enumerate(nodes) if other is place), node)
