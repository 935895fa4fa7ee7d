"""Weights that onnxruntime makes floats once, when it loads the file.

    MatMul(x, DequantizeLinear(codes, steps))   =>   MatMul(x, Mul(Cast(codes), Gather(steps, row's block)))

onnxruntime folds Cast, Gather and Mul of constants, and DequantizeLinear of constants it does not fold: so
this graph is as fast as the float one, and its file as small as the codes. It is the same arithmetic,
bit for bit. A weight that several MatMuls use is stored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from svd2onnx.graph import nodes
from svd2onnx.graph.constant_folding import block_index, name_makers
from svd2onnx.graph.stored_matmuls import StoredMatMul


def fold_weights(graph: ir.Graph, matmuls: Sequence[StoredMatMul]) -> Iterator[dict[str, str]]:
    """Rewrite ``graph`` in place; for each of ``matmuls``, what the metadata must add about it.

    "weight" is what the names of the nodes begin with that make the weight: none of them may run.
    """
    made: dict[tuple[str, str], ir.Value] = {}
    for matmul in matmuls:
        if matmul.weight not in made:
            made[matmul.weight] = _weight(graph, matmul)
        weight = made[matmul.weight]
        matmul.node.replace_input_with(1, weight)
        yield {"operator": "folded", "weight": str(weight.name).rpartition("/")[0]}


def _weight(graph: ir.Graph, matmul: StoredMatMul) -> ir.Value:
    node, name, steps = matmul.node, f"{matmul.node.name}.weight", matmul.steps
    # Always in float32, and float16 last: the CPU, which folds, multiplies no float16.
    half = steps.dtype == ir.DataType.FLOAT16
    codes = nodes.cast_float(graph, node, matmul.codes, f"{name}/codes")
    steps = nodes.cast_float(graph, node, steps, f"{name}/steps")
    index = block_index(graph, node, matmul.k, matmul.block_size)
    blocks = nodes.insert(graph, node, "Gather", [steps, index], f"{name}/blocks", {"axis": 0})
    weight = nodes.insert(graph, node, "Mul", [codes, blocks], f"{name}/product")
    made = [codes, blocks, weight]
    if half:
        weight = nodes.cast(graph, node, weight, ir.DataType.FLOAT16, f"{name}/half")
        made.append(weight)
    name_makers(made)
    return weight
