"""onnxruntime's MatMulNBitsQuantizer: round to nearest, HQQ, k-quant and GPTQ.

"default" is its own rounding to nearest (C++ kernels); "k_quant" and "gptq" come from Intel's Neural
Compressor. "k_quant" takes its bits only node by node, "gptq" none but 4. In onnxruntime 1.31.1 "gptq"
is rounding to nearest, whatever the data: it reads the triangular factor by its columns where the rows
are meant, so that no column's error reaches the columns after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from benchmarks.task import Feed, Task


def compress(
    task: Task,
    output: Path,
    *,
    algorithm: str,
    bits: int,
    block: int,
    symmetric: bool = False,
    qdq: bool = False,
) -> None:
    """Quantize every MatMul with a constant weight.

    Args:
        task: "gptq" calibrates on its inputs.
        output: the file to write.
        algorithm: "default", "hqq", "k_quant" or "gptq".
        bits: of a code.
        block: weights that share a scale.
        symmetric: without zero points, for "default" and "gptq".
        qdq: DequantizeLinear and MatMul in place of the contrib operator, for "default".
    """
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    logging.getLogger(nbits.__name__).setLevel(logging.ERROR)
    model = onnx.load(task.graph)
    by_node = {node.name: {"bits": bits} for node in model.graph.node if node.op_type == "MatMul"}
    configuration: Any
    if algorithm == "default":
        configuration = nbits.DefaultWeightOnlyQuantConfig(
            block_size=block,
            is_symmetric=symmetric,
            bits=bits,
            quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
        )
    elif algorithm == "hqq":
        configuration = nbits.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
    elif algorithm == "k_quant":
        configuration = nbits.KQuantWeightOnlyQuantConfig(customized_weight_config=by_node)
    else:
        configuration = nbits.GPTQWeightOnlyQuantConfig(_Reader(task.calibration), block_size=block)
        # Its code asks for this field, which its configuration does not set.
        configuration.customized_weight_config = None
    quantizer = nbits.MatMulNBitsQuantizer(
        model, block_size=block, is_symmetric=symmetric, algo_config=configuration
    )
    quantizer.process()
    onnx.save(quantizer.model.model, output)


class _Reader:
    """The calibration inputs, as often as they are asked for."""

    def __init__(self, feeds: Any) -> None:
        self._feeds = feeds

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds)
