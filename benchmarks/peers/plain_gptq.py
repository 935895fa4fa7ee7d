"""GPTQ as its paper has it (Frantar et al., arXiv 2210.17323): the yardstick, at every number of bits.

    for column i of W [out, in], in order:    q_i = round_to_grid(w_i)
        W[:, i+1:] -= (w_i - q_i) / U_ii  U[i, i+1:]        U = chol((H + damp I)^-1)^T, H = sum x x^T

The grid of a block (scale and zero point from its smallest and largest weight) is taken when the block
is reached, from the weights as they have become. Written as onnxruntime's MatMulNBits with float32
scales, which is what its own quantizers write. onnxruntime's GPTQ is rounding to nearest (see
``ort_nbits``), onnxsim's has 4 bits, no order, and the scales of plain rounding, and NNCF has none for ONNX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.graphs import initializer, input_name, linear_nodes
from benchmarks.moments import Moment, input_moments
from benchmarks.task import Task


def compress(
    task: Task, output: Path, *, bits: int, block: int, order: bool = False, damping: float = 0.01
) -> None:
    """Quantize every MatMul with a constant weight.

    Args:
        task: its calibration inputs give H.
        output: the file to write.
        bits: of a code: 2, 4 or 8.
        block: weights that share a scale and a zero point.
        order: by falling diagonal of H, the authors' "act-order", with the grids taken beforehand.
        damping: added to the diagonal of H, in parts of its mean.
    """
    moments = input_moments(task)
    model = ir.load(task.graph)
    model.graph.opset_imports["com.microsoft"] = 1
    for node, weight in linear_nodes(model.graph):
        assert weight.const_value is not None
        matrix = weight.const_value.numpy().astype(np.float64)
        moment = moments[input_name(node)]
        codes, scales, zeros = quantize(matrix, moment, bits, block, order=order, damping=damping)
        _replace(model.graph, node, bits, block, codes, scales, zeros)
    ir.save(model, output)


def quantize(
    weight: NDArray[np.float64],
    moment: Moment,
    bits: int,
    block: int,
    *,
    order: bool = False,
    damping: float = 0.01,
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Codes [in, out], scales and zero points [blocks, out] of ``weight`` [in, out]."""
    weight, size = weight.copy(), len(weight)
    diagonal = np.diag(moment)
    unseen = diagonal == 0
    damped = moment + np.diag(np.where(unseen, 1.0, 0.0) + damping * diagonal.mean() + 1e-12)
    sequence = np.argsort(-diagonal, kind="stable") if order else np.arange(size)
    inverse = np.linalg.inv(damped[np.ix_(sequence, sequence)])
    upper = np.linalg.cholesky(inverse).T
    codes = np.zeros(weight.shape, np.uint8)
    grids = [_grid(weight[start : start + block], bits) for start in range(0, size, block)]
    for start in range(0, size, block):
        here = sequence[start : start + block]
        stop = start + len(here)
        if not order:
            grids[start // block] = _grid(weight[here], bits)
        work, losses = weight[here], np.zeros((len(here), weight.shape[1]))
        for i, column in enumerate(here):
            scale, zero = grids[column // block]
            code = np.clip(np.rint(work[i] / scale) + zero, 0, 2**bits - 1)
            codes[column] = code
            losses[i] = (work[i] - (code - zero) * scale) / upper[start + i, start + i]
            work[i + 1 :] -= np.outer(upper[start + i, start + i + 1 : stop], losses[i])
        weight[sequence[stop:]] -= upper[start:stop, stop:].T @ losses
    return codes, np.stack([scale for scale, _ in grids]), np.stack([zero for _, zero in grids])


def _grid(rows: NDArray[np.float64], bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and zero point of each column: from the smallest to the largest value, 0 included."""
    low, high = np.minimum(rows.min(axis=0), 0), np.maximum(rows.max(axis=0), 0)
    scale = np.where(high > low, (high - low) / (2**bits - 1), 1.0)
    return scale.astype(np.float32).astype(np.float64), np.rint(-low / scale)


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    bits: int,
    block: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float64],
    zeros: NDArray[np.float64],
) -> None:
    """Put a MatMulNBits of the codes in the place of ``node``; it wants [out, blocks, bytes of a block]."""
    size, width = codes.shape
    padded = np.pad(codes, ((0, -size % block), (0, 0))).T.reshape(width, -1, block)
    arrays: dict[str, NDArray[Any]] = {
        "codes": _packed(padded, bits),
        "scales": np.ascontiguousarray(scales.T, np.float32),
        "zeros": _packed(np.ascontiguousarray(zeros.T).astype(np.uint8), bits),
    }
    stored = [
        initializer(graph, f"{node.name}.{kind}", ir.Tensor(array, name=kind))
        for kind, array in arrays.items()
    ]
    inputs = [node.inputs[0], *stored]
    attributes = {"K": size, "N": width, "bits": bits, "block_size": block}
    new = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=f"{node.name}.gptq")
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Several codes in each byte of the last axis, the first ones in the lowest bits."""
    count = 8 // bits
    spare = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % count)]
    parts = np.pad(values, spare).reshape(*values.shape[:-1], -1, count)
    shifted = parts << (np.arange(count, dtype=np.uint8) * bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=-1).astype(np.uint8)
    return packed
