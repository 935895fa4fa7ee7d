"""Where the nodes of a run were: on the provider asked for, without copies between host and device.

onnxruntime leaves a node without a CUDA kernel to the CPU, in silence, with a copy before and one after it.
What computes shapes stays on the CPU by design (it is a few integers that the host needs anyway).
A CUDA graph can be captured where there is no control flow, no copy and no other node on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from svd2onnx_runtime.profile import ExecutedNode

_COPIES = {
    "MemcpyFromHost": "copies from host to device on every call",
    "MemcpyToHost": "copies from device to host on every call",
}
_CONTROL_FLOW = ("If", "Loop", "Scan")
_LARGEST_SHAPE = 16
"""Elements of a vector that may be a shape."""


def misplaced(executed: Sequence[ExecutedNode], provider: str) -> tuple[tuple[str, str], ...]:
    """(name, reason) of each node that copies, or ran elsewhere than on ``provider`` (its long name)."""
    found = {}
    for node in executed:
        if node.op in _COPIES:
            found[node.name] = _COPIES[node.op]
        elif node.provider != provider and node.op not in _CONTROL_FLOW and not _makes_shapes(node):
            found[node.name] = f"this {node.op} ran on {node.provider}, not on {provider}"
    return tuple(found.items())


def capture_obstacles(executed: Sequence[ExecutedNode]) -> tuple[tuple[str, str], ...]:
    """(name, reason) of each node of a run on CUDA that a CUDA graph cannot hold."""
    flow = {node.name: f"{node.op} is control flow" for node in executed if node.op in _CONTROL_FLOW}
    return (*flow.items(), *misplaced(executed, "CUDAExecutionProvider"))


def _makes_shapes(node: ExecutedNode) -> bool:
    """Whether all that ``node`` makes is numbers or short vectors, as shapes and their parts are."""
    return bool(node.output_shapes) and all(
        len(shape) == 0 or (len(shape) == 1 and shape[0] <= _LARGEST_SHAPE) for shape in node.output_shapes
    )
