"""Stored weights: made floats once, when onnxruntime loads the file, whatever operator takes them.

    Stored(W)   =>   Mul(Cast(codes), blocks of steps)

``network.modules.CompressedStored`` puts Stored behind its matrix, lest the exporter compute with that. What
the exporter adds behind it (the gates of an LSTM in ONNX's order, a shape) follows from constants, and
onnxruntime folds that too: at run time the operator has a float weight, as in the float graph.
"""

from __future__ import annotations

import onnx_ir as ir

from svd2onnx.graph.constant_folding import constants, name_makers, weight_nodes
from svd2onnx.graph.quantized_nodes import FoldedWeight
from svd2onnx.network.modules import STORED_DOMAIN, STORED_OP
from svd2onnx.values.schema import QuantizedTensor


class StoredNodes:
    """The stored weights of one graph, each made once, whoever uses it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[str, ir.Value] = {}
        self.folded: list[FoldedWeight] = []

    def fold(self, node: ir.Node, layer: str, tensor: QuantizedTensor) -> None:
        """Put the float weight of ``tensor`` in the place of the node Stored."""
        if layer not in self._made:
            name = f"stored_{len(self._made)}"
            made = weight_nodes(self._graph, name, f"{layer}.dense", tensor)
            name_makers(made)
            self._made[layer] = made[-1]
            n, k = tensor.codes.shape
            bits, block_size = tensor.spec.bits, tensor.spec.block_size
            self.folded.append(FoldedWeight(name, layer, "dense", bits, block_size, k, n, name, op=STORED_OP))
        weight, output = self._made[layer], node.outputs[0]
        weight.shape = output.shape
        ir.convenience.replace_all_uses_with(output, weight, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)

    def finish(self) -> None:
        """Call what follows from each weight alone like the nodes that make it: none of it may run."""
        if not self._made:
            return
        self._graph.opset_imports.pop(STORED_DOMAIN, None)
        self._graph.sort()
        constant = constants(self._graph)
        for folded, weight in zip(self.folded, self._made.values(), strict=True):
            known: set[ir.Node] = set()
            todo = [weight]
            while todo:
                for user, _ in todo.pop().uses():
                    if user not in known and user.graph is self._graph and user.outputs[0] in constant:
                        user.name = f"{folded.weight}/{len(known)}"
                        known.add(user)
                        todo.extend(user.outputs)
