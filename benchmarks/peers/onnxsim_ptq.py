"""onnxsim's 4-bit methods: GPTQ, LQER and SVDQuant, with float32 scales and float32 factors.

GPTQ and LQER refine its plain 4-bit rounding, whose block is always 32.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from benchmarks.task import Task


def compress(
    task: Task,
    output: Path,
    *,
    algorithm: str,
    rank: int = 0,
    block: int = 32,
    smooth: float | None = None,
) -> None:
    """Quantize every MatMul with a constant weight to 4 bits.

    Args:
        task: all but a "svdquant" without ``smooth`` calibrate on its inputs.
        output: the file to write.
        algorithm: "rtn", "gptq", "lqer" or "svdquant".
        rank: of the float branch of "lqer" and "svdquant".
        block: weights that share a scale, for "svdquant".
        smooth: how much of the activations' outliers "svdquant" moves into the weights, 0 to 1.
    """
    import onnxsim

    model = onnx.load(task.graph)
    feeds = [dict(feed) for feed in task.calibration]
    if algorithm == "svdquant":
        result = onnxsim.apply_svdquant(model, feeds, rank=rank, block_size=block, smooth_alpha=smooth)
    else:
        result = onnxsim.quantize_weight_only_int4(model)
        if algorithm == "gptq":
            result = onnxsim.apply_gptq(model, result, feeds)
        elif algorithm == "lqer":
            result = onnxsim.apply_lqer(model, result, rank=rank, calibration_data=feeds)
    onnx.save(result, output)
