"""With a few samples far larger than the others no file is worse than rounding to nearest in its bytes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import svd2onnx
from svd2onnx.calibration.probes import batch_errors
from svd2onnx.compression.realize import realize
from svd2onnx.network.layers import discover
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.builder import Builder
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.pipeline.workspace import Workspace
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.values.schema import CompressionPlan, QuantSpec
from svd2onnx.values.settings import Settings


def prices(size: int, seed: int) -> Tensor:
    """[size, 48]: in three columns lie amounts that are not on the scale of the others."""
    x = torch.randn(size, 48, generator=torch.Generator().manual_seed(seed))
    x[:, 5:8] = torch.exp(2.7 * x[:, 5:8])
    return x


def ordinary(size: int, seed: int) -> Tensor:
    return torch.randn(size, 48, generator=torch.Generator().manual_seed(seed))


def layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(48, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 40)
    ).eval()


def spiking() -> nn.Sequential:
    """One hidden unit is silent on nine samples of ten, and a thousand times as large as the others else."""
    network = layers()
    with torch.no_grad():
        network[0].weight[17] *= 1000
        network[0].bias[17] = -1.28 * network[0].weight[17].norm()
    return network


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Sequential]
    draw: Callable[[int, int], Tensor]

    @property
    def network(self) -> nn.Sequential:
        torch.manual_seed(3)
        return self.build()


CASES = {"inputs": Case(layers, prices), "one unit": Case(spiking, ordinary)}
SETTINGS: dict[str, dict[str, Any]] = {
    "8 bits": {"method": "quantize", "bits": 8},
    "4 bits": {"method": "quantize", "bits": 4},
    "a size": {"target_size": "0.3x"},
}


@pytest.mark.usefixtures("no_bench")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_is_not_worse_than_rounding_to_nearest_in_its_forms(
    case: Case, settings: dict[str, Any], tmp_path: Path
) -> None:
    network, output = case.network, tmp_path / "small.onnx"
    batches = [case.draw(32, seed) for seed in range(8)]
    svd2onnx.compress(network, batches, output, provider="cpu", **settings)
    plan = CompressionPlan.from_json(json.loads(Path(f"{output}.plan.json").read_text()))
    sites = discover(network, {"input": batches[0]})
    nearest = rewrite(network, sites, realize(network, sites, plan, {}))

    fresh = case.draw(4096, 1000)
    options = onnxruntime.SessionOptions()  # exact products: what the CPU kernels round is no matter of codes
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(output, options, providers=["CPUExecutionProvider"])
    (shipped,) = session.run(None, {session.get_inputs()[0].name: fresh.numpy()})
    with torch.no_grad():
        reference = network(fresh)
        own, other = (
            batch_errors("mse", reference, output.double(), {})
            for output in (torch.from_numpy(shipped), nearest(fresh))
        )
    assert own.mean() <= 1.03 * other.mean()
    assert own.log().mean() < other.log().mean()  # what most samples see


def test_what_is_fitted_to_misleading_data_goes_back_to_rounding_to_nearest(tmp_path: Path) -> None:
    path = tmp_path / "network.py"
    path.write_text(
        "import torch\n"
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))\n"
        "def inputs(split):\n"
        "    torch.manual_seed(len(split))\n"
        "    for _ in range(3):\n"
        "        yield {'input': torch.randn(16, 8) @ torch.eye(8).repeat(1, 8)}\n"
    )
    prepared = prepare(path, Settings(method="quantize", bits=4))
    known = gather_statistics(prepared)
    workspace = Workspace(tmp_path / "small.onnx", tmp_path / "float.onnx")
    plan = uniform_plan(prepared.sites, QuantSpec(4, 32))

    builder = Builder(prepared, known, workspace)
    build = builder.build(plan)
    assert builder.never_worse(build) == (build, builder.judged_error(build))

    wrong = {name: replace(own, mean=own.mean + 30) for name, own in known.items() if own.mean is not None}
    builder = Builder(prepared, wrong, workspace)
    build = builder.build(plan)
    kept, error = builder.never_worse(build)
    assert error == builder.judged_error(kept) < builder.judged_error(build)
    assert all(layer.bias_shift is None for layer in kept.layers.values())
    assert kept.plan.forms == plan.forms
    assert set(kept.plan.notes.values()) == {"rounded to nearest, which was measured to be better"}

    blind = Builder(prepared, {}, workspace)
    build = blind.build(plan)
    assert blind.never_worse(build)[0] is build
