"""Small probabilities are right to what onnxruntime's Sigmoid gives, and all else to what float32 does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.graph.export import export_float
from svd2onnx.pipeline.kernel_rounding import SIGMOID, rounding_of
from svd2onnx.pipeline.strict_check import TOLERANCE, check_strict
from svd2onnx.values.errors import VerificationError
from tests.svd2onnx.networks import seeded

BATCH = {"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(1))}


class Scores(nn.Module):
    """Two rare events, both of them, their sum, and a number that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)
        nn.init.constant_(self.layer.bias, -8.0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second, third = self.layer(x).split(1, dim=1)
        first, second = torch.sigmoid(first).squeeze(1), torch.sigmoid(second[:, 0])
        return torch.stack([first, second], 1), first * second, first + second, third


@pytest.fixture
def scores(tmp_path: Path) -> tuple[nn.Module, Path]:
    network, path = seeded(Scores).eval(), tmp_path / "scores.onnx"
    export_float(network, BATCH, {"x": {0: "batch"}}, path)
    return network, path


def test_it_is_known_of_probabilities_alone(scores: tuple[nn.Module, Path]) -> None:
    _network, path = scores
    assert rounding_of(path) == [2 * SIGMOID, 2 * SIGMOID, 0, 0]


class Rare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 1)
        nn.init.constant_(self.layer.bias, -8.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(x)).squeeze(1)


def test_small_probabilities_pass_and_wrong_ones_do_not(tmp_path: Path) -> None:
    network, path = seeded(Rare).eval(), tmp_path / "rare.onnx"
    export_float(network, BATCH, {"x": {0: "batch"}}, path)
    with torch.no_grad():
        assert 1e-6 < float(network(BATCH["x"]).mean()) < 1e-2
    assert check_strict(path, network, network, [BATCH], "mse").relative_error <= TOLERANCE
    with torch.no_grad():
        network.get_parameter("layer.bias").add_(0.01)
    with pytest.raises(VerificationError, match="differs from the compressed network"):
        check_strict(path, network, network, [BATCH], "mse")
