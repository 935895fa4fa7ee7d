"""The forms that a file can be shipped in; each is made from the graph that ``export`` wrote.

| operator    | a quantized MatMul is                        | at run time                          |
|-------------|----------------------------------------------|--------------------------------------|
| dequantize  | DequantizeLinear and MatMul                  | fused into MatMulNBits at load       |
| folded      | Cast, Gather, Mul and MatMul                 | a float MatMul: folded at load       |
| matmulnbits | com.microsoft.MatMulNBits                    | MatMulNBits, as written              |
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from svd2onnx.graph.export import drop_inferable, save
from svd2onnx.graph.float16 import to_half
from svd2onnx.graph.folded_weights import fold_weights
from svd2onnx.graph.matmul_nbits import pack_weights
from svd2onnx.graph.stored_matmuls import plan_again, planned, stored_matmuls
from svd2onnx.values.settings import FileFormat


def to_format(source: Path, output: Path, form: FileFormat) -> None:
    """Write the graph at ``source``, as ``export`` made it, to ``output`` in ``form``.

    Args:
        source: its metadata name the MatMuls.
        output: may be ``source``.
        form: how to write it.

    Raises:
        ExportError: the graph cannot compute in float16.
    """
    model = ir.load(source)
    if form.dtype == "float16":
        to_half(model)
    matmuls = stored_matmuls(model)
    if form.operator == "folded":
        added = list(fold_weights(model.graph, matmuls))
    elif form.operator == "matmulnbits":
        added = list(pack_weights(model.graph, matmuls))
    else:
        added = [{} for _ in matmuls]
    by_node = {matmul.node.name: more for matmul, more in zip(matmuls, added, strict=True)}
    plan_again(model, [entry | by_node.get(entry["node"], {}) for entry in planned(model)])
    RemoveUnusedNodesPass()(model)
    drop_inferable(model)
    save(model, output)
