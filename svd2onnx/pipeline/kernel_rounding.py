"""What onnxruntime's own kernels round away, where that is more than float32 does.

Its Sigmoid (1.31, on the CPU) is right to 1.4e-7, whatever the value is: of a probability of 1e-3 that is
1e-4. Rare events and scores of detectors have such probabilities, and PyTorch computes them to the last bit.
"""

from __future__ import annotations

from pathlib import Path

import onnx

SIGMOID = 2.0**-22
"""The largest error of one value."""
_SAME_VALUES = {
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather",
    "Expand",
}  # fmt: skip
"""Of their first input."""
_OF_ALL = {"Concat", "Mul", "Max", "Min"}
"""Errors of probabilities add up at most: none is larger than 1."""


def rounding_of(path: Path) -> list[float]:
    """How much of the error of a value is the kernels', for each output of the graph at ``path``."""
    graph = onnx.load(path, load_external_data=False).graph
    makers = {output: node for node in graph.node for output in node.output}
    return [_error(output.name, makers) for output in graph.output]


def _error(name: str, makers: dict[str, onnx.NodeProto]) -> float:
    """0 for what is no probability."""
    node = makers.get(name)
    if node is None:
        return 0.0
    if node.op_type == "Sigmoid":
        return SIGMOID
    if node.op_type in _SAME_VALUES:
        return _error(node.input[0], makers)
    if node.op_type in _OF_ALL:
        errors = [_error(own, makers) for own in node.input]
        return sum(errors) if all(errors) else 0.0
    return 0.0
