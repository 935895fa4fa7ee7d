"""The work of a run, counted by hand beside what the profile tells, and the limit that follows from it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from svd2onnx_runtime import Roofline, Work, count_work, measure_roofline
from tests.runtime.quantized_graphs import float_matmul, quantized_matmul

ROWS, K, N = 3, 128, 64


def test_the_work_of_a_float_product(tmp_path: Path) -> None:
    float_matmul(tmp_path / "float.onnx", np.ones((K, N)))
    work = count_work(tmp_path / "float.onnx", {"x": np.ones((ROWS, K), np.float32)}, "cpu", 1)
    assert work.operations == 2 * ROWS * K * N
    assert work.moved_bytes == 4 * (K * N + ROWS * K + ROWS * N)
    assert work.elsewhere == ()


def test_a_quantized_product_moves_its_codes_and_scales(tmp_path: Path) -> None:
    quantized_matmul(tmp_path / "int4.onnx", k=K, n=N, bits=4, block=32)
    work = count_work(tmp_path / "int4.onnx", {"x": np.ones((ROWS, K), np.float32)}, "cpu", 1)
    assert work.operations == 2 * ROWS * K * N
    codes, scales = K * N // 2, 4 * (K // 32) * N  # the scales are made float32 at load
    assert work.moved_bytes == codes + scales + 4 * (ROWS * K + ROWS * N)


def test_a_convolution_and_a_table(tmp_path: Path) -> None:
    """One of 100 entries is gathered and goes through a kernel of 3: [1, 8, 5] -> [1, 4, 3]."""
    arrays = {"table": np.ones((100, 1, 8, 5), np.float32), "w": np.ones((4, 8, 3), np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "row"], ["rows"]),
            helper.make_node("Conv", ["rows", "w"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("row", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "conv.onnx")
    work = count_work(tmp_path / "conv.onnx", {"row": np.array(7)}, "cpu", 1)
    assert work.operations == 2 * (4 * 3) * (8 * 3)
    assert work.moved_bytes == 4 * (8 * 5 + 4 * 8 * 3) + 8 + 4 * 4 * 3


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(Work(1000, 100, ()), 5.0), (Work(1000, 1, ()), 1.0)],
    ids=["bytes decide", "operations decide"],
)
def test_the_limit_is_that_of_bytes_or_of_the_fastest_arithmetic(work: Work, seconds: float) -> None:
    assert Roofline(20.0, {"float32": 250.0, "int8": 1000.0}).limit_s(work) == seconds


def test_the_roofline_is_measured() -> None:
    roofline = measure_roofline("cpu", 1)
    assert roofline.bytes_per_s > 0
    assert set(roofline.operations_per_s) == {"float32", "int8"}
    assert min(roofline.operations_per_s.values()) > 0
