"""Where nodes ran is judged by what a profile says; no GPU is needed for that."""

from typing import Any

import pytest

from svd2onnx_runtime.placement import capture_obstacles, misplaced
from svd2onnx_runtime.profile import ExecutedNode, executed_nodes

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def node(op: str, provider: str = CUDA, *shapes: tuple[int, ...]) -> ExecutedNode:
    return ExecutedNode(op, f"node_{op}", provider, shapes or ((8, 64, 384),))


LAYERS = [node("LayerNormalization"), node("MatMulNBits"), node("Softmax")]
SHAPES = [node("Shape", CPU, (2,)), node("Gather", CPU, ()), node("Concat", CPU, (4,))]


def test_computing_shapes_on_the_cpu_is_in_place() -> None:
    assert misplaced([*SHAPES, *LAYERS], CUDA) == ()
    assert capture_obstacles([*SHAPES, *LAYERS]) == ()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (node("MatMulInteger", CPU), f"this MatMulInteger ran on {CPU}, not on {CUDA}"),
        (node("CumSum", CPU, (64,)), f"this CumSum ran on {CPU}, not on {CUDA}"),
        (node("Split", CPU, (2,), (8, 64)), f"this Split ran on {CPU}, not on {CUDA}"),
        (node("MemcpyFromHost", CUDA, (1,)), "copies from host to device on every call"),
        (node("MemcpyToHost", CUDA, (2,)), "copies from device to host on every call"),
    ],
    ids=lambda value: value.op if isinstance(value, ExecutedNode) else "",
)
def test_a_node_elsewhere_and_a_copy_are_named_with_the_reason(wrong: ExecutedNode, reason: str) -> None:
    assert misplaced([*SHAPES, wrong, *LAYERS], CUDA) == ((wrong.name, reason),)
    assert capture_obstacles([*SHAPES, wrong, *LAYERS]) == ((wrong.name, reason),)


def test_a_node_that_runs_many_times_is_named_once() -> None:
    assert len(misplaced([node("MatMulInteger", CPU)] * 3, CUDA)) == 1


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_control_flow_is_in_place_but_not_for_a_cuda_graph(op: str) -> None:
    executed = [*LAYERS, node(op, CPU)]
    assert misplaced(executed, CUDA) == ()
    assert capture_obstacles(executed) == ((f"node_{op}", f"{op} is control flow"),)


def event(name: str, **args: Any) -> dict[str, Any]:
    return {"cat": "Node", "name": name, "args": args}


def test_a_profile_s_kernels_are_read_and_the_rest_is_left() -> None:
    """The events are as onnxruntime 1.31.1 writes them, without what nobody reads."""
    events = [
        {"cat": "Session", "name": "session_initialization", "args": {}},
        event("node_view_fence_before", op_name="Reshape"),
        event(
            "node_Split_kernel_time",
            op_name="Split",
            provider=CUDA,
            output_type_shape=[{"float": [2, 8]}, {"float": []}],
        ),
        event("node_If_kernel_time", op_name="If", provider=CPU),
    ]
    assert executed_nodes(events) == [
        ExecutedNode("Split", "node_Split", CUDA, ((2, 8), ())),
        ExecutedNode("If", "node_If", CPU, ()),
    ]
