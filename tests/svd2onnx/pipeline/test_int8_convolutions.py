"""Convolutions in int8, from the command's settings to onnxruntime's kernels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import svd2onnx
from svd2onnx.graph import int8_convolution
from svd2onnx.reporting.report import CompressionReport
from svd2onnx.values.errors import PlanError, VerificationError
from svd2onnx_runtime import certify

pytestmark = pytest.mark.usefixtures("no_bench")

SETTINGS: dict[str, Any] = {"provider": "cpu", "activations": "int8"}


class Network(nn.Module):
    """images [batch, 3, height, width] -> [batch, 64]: a depthwise block, a way around it, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.widen, self.depthwise = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.narrow, self.last = nn.Conv2d(64, 32, 1), nn.Conv2d(32, 64, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(64, 64)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(images)))
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.widen(x))))
        x = self.pool(x + self.narrow(y))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


CONVOLUTIONS = ["stem", "widen", "depthwise", "narrow", "last"]


def batches(count: int = 6, rows: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"images": torch.randn(rows, 3, 20, 20, generator=generator)} for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = Network()
    made.train()
    with torch.no_grad():
        for batch in batches():
            made(**batch)
    return made.eval()


def compressed(network: nn.Module, output: Path, **settings: Any) -> CompressionReport:
    return svd2onnx.compress(network, batches(), output, **SETTINGS | settings)


def kernels(path: Path, folder: Path) -> Counter[str]:
    """What onnxruntime makes of the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_convolution_becomes_an_int8_kernel_and_nothing_between_goes_back(
    network: nn.Module, tmp_path: Path, bits: int
) -> None:
    path = tmp_path / "int8.onnx"
    report = compressed(network, path, method="quantize", bits=bits)
    forms = {layer.name: layer.form for layer in report.layers}
    assert all("int8 activations" in forms[name] for name in CONVOLUTIONS if forms[name] != "float")
    integer = [name for name in CONVOLUTIONS if forms[name] != "float"]
    assert set(integer) >= {"stem", "widen", "narrow", "last"}
    assert report.certificate.ok
    made = kernels(path, tmp_path)
    assert made["QLinearConv"] == len(integer)
    assert made["Conv"] + made["FusedConv"] == len(CONVOLUTIONS) - len(integer)
    assert report.strict_relative_error < 1e-5
    assert report.strict_fidelity > (0.99 if bits == 8 else 0.6)
    # Default sessions compute in int8 what strict ones compute in float.
    assert report.deployed.fidelity == pytest.approx(report.strict_fidelity, abs=0.01)


def test_the_file_holds_codes_of_few_bits_and_no_scales_that_follow_from_them(
    network: nn.Module, tmp_path: Path
) -> None:
    compressed(network, tmp_path / "int8.onnx", method="quantize", bits=4)
    stored = onnx.load(tmp_path / "int8.onnx").graph.initializer
    convolutions = [own for own in stored if own.name.split(".")[0] in CONVOLUTIONS]
    assert Counter(own.data_type for own in convolutions)[TensorProto.INT4] == 5
    # The bias in int32, and one unit; the scales of the int8 weight and of the bias are made at load.
    floats = [own for own in convolutions if own.data_type == TensorProto.FLOAT]
    assert all(np.prod(own.dims) == 1 for own in floats)
    assert not any(name in own.name for own in stored for name in ("first.", ".scale.") if own.dims)


def test_a_pair_rounds_between_its_two_convolutions(network: nn.Module, tmp_path: Path) -> None:
    factors = {"bits": 8, "block_size": 32}
    plan = {
        "format": "svd2onnx-plan/1",
        "layers": {
            "narrow": {"dense": factors, "activations": "int8"},
            "last": {"rank": 32, "factors": factors, "activations": "int8"},
        },
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    report = compressed(network, tmp_path / "pair.onnx", plan=tmp_path / "plan.json", activations="auto")
    assert report.certificate.ok
    assert kernels(tmp_path / "pair.onnx", tmp_path)["QLinearConv"] == 3
    assert report.strict_relative_error < 1e-5
    assert report.strict_fidelity > 0.8


def test_the_planner_weighs_what_rounding_costs(network: nn.Module, tmp_path: Path) -> None:
    report = compressed(network, tmp_path / "planned.onnx", target_size="0.4x")
    integer = [layer for layer in report.layers if "int8 activations" in layer.form]
    assert {layer.name for layer in integer} >= set(CONVOLUTIONS)  # none is a float amid the others
    floats = svd2onnx.compress(
        network, batches(), tmp_path / "float.onnx", provider="cpu", target_size="0.4x", activations="float"
    )
    assert report.predicted_error is not None
    assert floats.predicted_error is not None
    assert report.predicted_error > floats.predicted_error
    assert report.certificate.ok


def test_the_same_seed_gives_the_same_bytes(network: nn.Module, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}.onnx" for name in ("first", "second"))
    for path in (first, second):
        compressed(network, path, method="quantize", bits=4)
    assert first.read_bytes() == second.read_bytes()


def test_a_wrong_scale_is_found_code_by_code(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_convolution, "LARGEST", 126)
    with pytest.raises(VerificationError, match="steps from the network's value"):
        compressed(network, tmp_path / "wrong.onnx", method="quantize", bits=4)
    assert not (tmp_path / "wrong.onnx").exists()


def test_without_data_there_are_no_ranges(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="ranges that were calibrated"):
        compressed(network, tmp_path / "none.onnx", method="quantize", bits=8, calibration_samples=0)


def test_a_convolution_that_fell_back_to_float_is_named(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    compressed(network, path, method="quantize", bits=8)
    model = onnx.load(path)
    (relu,) = [node for node in model.graph.node if node.op_type == "Relu"][-1:]
    relu.op_type = "Tanh"  # which no int8 kernel takes in
    onnx.save(model, path)
    certificate = certify(path, "cpu", inputs={"images": batches(1)[0]["images"].numpy()})
    assert not certificate.ok
    ((node, reason),) = certificate.unfused
    assert "not as QLinearConv" in reason
    assert node


class Small(Network):
    """With a depthwise convolution that is too small to be compressed, amid others in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        with torch.no_grad():  # one scale for all of these would leave the small ones nothing
            self.small.weight *= torch.logspace(-2, 1, 32)[:, None, None, None]

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.small(torch.relu(self.norm(self.stem(images)))))
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.widen(x))))
        return self.head(torch.relu(self.last(self.pool(self.narrow(y)))).mean((2, 3)))


def test_a_convolution_on_floats_amid_others_keeps_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = compressed(Small().eval(), tmp_path / "small.onnx", method="quantize", bits=8)
    made = kernels(tmp_path / "small.onnx", tmp_path)
    assert (made["QLinearConv"], made["Conv"] + made["FusedConv"]) == (5, 1)
    assert report.deployed.fidelity == pytest.approx(report.strict_fidelity, abs=0.005)
