"""Plain recurrent layers, in either direction and of any length, are what PyTorch computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.graph.export import export_float
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import ExportError
from svd2onnx_runtime import open_session, run


class Sequences(nn.Module):
    """x [batch, length, 6] -> the output, and the last states."""

    def __init__(self, recurrent: nn.Module, is_turned: bool) -> None:
        super().__init__()
        self.recurrent, self.is_turned = recurrent, is_turned

    def forward(self, x: Tensor) -> Any:
        return self.recurrent(x.transpose(0, 1) if self.is_turned else x)


@pytest.mark.parametrize(
    "settings",
    [
        {"nonlinearity": "relu", "batch_first": True},
        {"num_layers": 2, "bidirectional": True, "bias": False},
    ],
    ids=["relu", "two layers, both directions"],
)
def test_they_are_what_pytorch_computes(tmp_path: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = Sequences(nn.RNN(6, 8, **settings), not settings.get("batch_first")).eval()
    example, axes = {"x": torch.randn(3, 5, 6)}, {"x": {0: "batch", 1: "length"}}
    path = tmp_path / "float.onnx"
    export_float(trace(network, example, axes), example, axes, path)
    x = torch.randn(2, 7, 6)
    outputs = run(open_session(path, "cpu", strict=True), {"x": x.numpy()})
    for output, expected in zip(outputs.values(), network(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected)


def test_a_projection_that_onnx_lacks_is_told() -> None:
    network = Sequences(nn.LSTM(6, 8, proj_size=4, batch_first=True), False).eval()
    with pytest.raises(ExportError, match=r"an nn\.LSTM with proj_size, and ONNX has no such operator"):
        trace(network, {"x": torch.randn(3, 5, 6)}, {"x": {0: "batch"}})
