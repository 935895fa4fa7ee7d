"""In float16 a graph computes what it did, also where float16 is too narrow for a step between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from svd2onnx.graph.export import export_float
from svd2onnx.graph.float16 import to_half
from svd2onnx.values.errors import ExportError
from svd2onnx_runtime import open_session, run

TOLERANCE = 4e-3


def in_half(path: Path) -> Path:
    """The graph at ``path`` in float16, beside it."""
    model = ir.load(path)
    to_half(model)
    RemoveUnusedNodesPass()(model)
    half = path.with_name("half.onnx")
    ir.save(model, half)
    return half


def check(network: nn.Module, folder: Path, **inputs: Tensor) -> Path:
    """Compare ``network`` in float16 with itself; the file."""
    path = folder / "float.onnx"
    network = network.eval().requires_grad_(False)
    export_float(network, inputs, {}, path)
    half = in_half(path)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    for strict in (True, False):
        (found,) = run(open_session(half, "cpu", strict=strict), arrays).values()
        expected = network(**inputs).numpy()
        assert found.dtype == expected.dtype
        assert np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected)
    return half


class RmsNorm(nn.Module):
    """Its squares exceed float16 where x exceeds 256; of zeros the root's inverse does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.ones(32)), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.linear(self.scale * (x * inverse))


def test_squares_are_summed_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32) * 3000
    x[2] = 0
    check(RmsNorm(), tmp_path, x=x)


class Rotary(nn.Module):
    """ids -> a table's rows, turned by angles that grow with the position."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(16, 32), nn.Linear(32, 32)
        self.register_buffer("frequencies", 10000 ** (-torch.arange(0, 32) / 32))

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        angles = positions[..., None].float() @ self.frequencies[None]
        x = self.linear(self.table(ids))
        return self.linear(x * angles.cos() + x.flip(-1) * angles.sin())


def test_positions_beyond_2048_keep_their_angles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    positions = torch.tensor([[1, 2049, 4097, 8191]])
    check(Rotary(), tmp_path, ids=torch.tensor([[1, 2, 3, 4]]), positions=positions)


class Masked(nn.Module):
    """Attention with a padding and a causal mask of float32's lowest number, and a mean by the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float32).min
        padding = (1.0 - mask[:, None, :].float()) * lowest
        causal = torch.full((8, 8), lowest).triu(1)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5
        weights = torch.softmax(scores + padding / 2 + causal / 2, dim=-1)
        weighted = (weights @ self.value(x)) * mask[..., None].float()
        return weighted.sum(1) / mask.sum(1, keepdim=True).float().clamp(min=1e-9)


def test_masks_stay_finite_also_in_rows_that_are_all_masked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask = torch.ones(3, 8, dtype=torch.int64)
    mask[1, :3] = 0
    mask[2] = 0
    check(Masked(), tmp_path, x=torch.randn(3, 8, 32), mask=mask)


def test_the_matmuls_compute_in_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    half = onnx.load(check(RmsNorm(), tmp_path, x=torch.randn(4, 32)))
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    (weight,) = (t for t in half.graph.initializer if list(t.dims) == [32, 32])
    assert weight.data_type == TensorProto.FLOAT16
    (product,) = (node for node in half.graph.node if node.op_type in ("Gemm", "MatMul"))
    assert {types[name] for name in (*product.input, *product.output) if name in types} == {
        TensorProto.FLOAT16
    }


def graph(nodes: list[onnx.NodeProto], **initializers: np.ndarray) -> ir.Model:
    """x [2, 4] -> y."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return ir.serde.deserialize_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)]))


def test_a_weight_beyond_float16_is_refused_by_name() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    with pytest.raises(ExportError, match=r"'w' has 1\.0e\+06: leave out --dtype float16"):
        to_half(graph(nodes, w=np.full((4, 4), 1e6, np.float32)))


@pytest.mark.parametrize("step", [1e-12, 1e6])
def test_steps_beyond_float16_are_refused_by_name(step: float) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    arrays = {"codes": np.ones((4, 4), np.int8), "steps": np.full(4, step, np.float32)}
    with pytest.raises(ExportError, match=r"'steps' has .*: leave out --dtype float16"):
        to_half(graph(nodes, **arrays))


def test_control_flow_is_refused_by_name() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4])],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)]
    with pytest.raises(ExportError, match="the If node 'choice' holds graphs"):
        to_half(graph(nodes, c=np.array(True)))
