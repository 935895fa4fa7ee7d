"""onnxsim's 4-bit methods: GPTQ, LQER and SVDQuant, with float32 scales and float32 factors.

GPTQ and LQER refine a 4-bit rounding that is already there and keep its scales. Its own
``quantize_weight_only_int4`` knows blocks of 32 alone, so the rounding (largest weight / 7) is written
here, for any block. Its ``apply_gptq`` keeps every activation in float64 and multiplies them in scalar
loops (4 minutes on MiniLM; 12 GB for the activations of SmolLM2), so its column search, which it keeps
in Python beside that and which gives the same codes, gets the same moments from us. LQER may start
from GPTQ, as its documentation advises.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.graphs import initializer, input_name, linear_nodes
from benchmarks.moments import input_moments
from benchmarks.task import Task

Matrix = NDArray[Any]
Choice = Callable[[ir.Node, Matrix, Matrix], Matrix]


def compress(
    task: Task,
    output: Path,
    *,
    algorithm: str,
    rank: int = 0,
    block: int = 32,
    smooth: float | None = None,
    damping: float = 0.01,
) -> None:
    """Quantize every MatMul with a constant weight to 4 bits.

    Args:
        task: all but "rtn" and a "svdquant" without ``smooth`` calibrate on its inputs.
        output: the file to write.
        algorithm: "rtn", "gptq", "lqer", "gptq+lqer" or "svdquant".
        rank: of the float branch of "lqer" and "svdquant".
        block: weights that share a scale.
        smooth: how much of the activations' outliers "svdquant" moves into the weights, 0 to 1.
        damping: of GPTQ, in parts of the mean of H's diagonal.
    """
    import onnxsim

    model = onnx.load(task.graph)
    feeds = [dict(feed) for feed in task.calibration]
    if algorithm == "svdquant":
        result = onnxsim.apply_svdquant(model, feeds, rank=rank, block_size=block, smooth_alpha=smooth)
    else:
        choose = _gptq(task, block, damping) if "gptq" in algorithm else None
        result = rounded(task.graph, block, choose)
        if "lqer" in algorithm:
            result = onnxsim.apply_lqer(model, result, rank=rank, calibration_data=feeds)
    onnx.save(result, output)


def rounded(graph: Path, block: int, choose: Choice | None = None) -> Any:
    """The graph as ``quantize_weight_only_int4`` would write it with blocks of ``block``: a ModelProto.

    ``choose`` gives other codes than the nearest from a node, its weight [in, out], and its scales
    [blocks, out].
    """
    model = ir.load(graph)
    for node, weight in linear_nodes(model.graph):
        assert weight.const_value is not None
        matrix = weight.const_value.numpy()
        if len(matrix) % block:
            continue  # it leaves such a layer in float, too
        blocks = matrix.reshape(-1, block, matrix.shape[1])
        scales = np.abs(blocks).max(axis=1) / np.float32(7)
        scales[scales == 0] = 1.0
        if choose is None:
            codes = np.rint(blocks / scales[:, None]).clip(-7, 7).reshape(matrix.shape)
        else:
            codes = choose(node, matrix, scales)
        integers = codes.astype(np.int8).ravel()
        packed = (integers[0::2] & 0xF | (integers[1::2] & 0xF) << 4).astype(np.uint8)
        tensor = ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape(matrix.shape))
        inputs = [
            initializer(model.graph, f"{weight.name}.codes", tensor),
            initializer(model.graph, f"{weight.name}.scales", ir.Tensor(scales)),
        ]
        attributes = {"axis": 0, "block_size": block}
        dequantize = ir.node("DequantizeLinear", inputs, attributes, name=f"{node.name}.weight")
        dequantize.outputs[0].name = f"{weight.name}.float"
        model.graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])
    return ir.to_proto(model)


def _gptq(task: Task, block: int, damping: float) -> Choice:
    """onnxsim's column search with the moments of ``task``; ``damping`` as its ``percdamp``."""
    from onnxsim.gptq import _gptq_quantize_columns

    moments = input_moments(task)

    def choose(node: ir.Node, matrix: Matrix, scales: Matrix) -> Matrix:
        arguments = (matrix.T.astype(np.float64), scales.T.astype(np.float64), block)
        codes: Matrix = _gptq_quantize_columns(*arguments, moments[input_name(node)], damping, 128)
        return codes.T

    return choose
