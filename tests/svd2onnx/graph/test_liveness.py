"""Dead is what no output depends on, and the export of a network with dead layers goes through."""

from pathlib import Path

import torch
from torch import Tensor, nn

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.compression.realize import realize
from svd2onnx.graph.export import export
from svd2onnx.graph.liveness import dead_layers
from svd2onnx.network.layers import discover
from svd2onnx.network.rewrite import rewrite
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.values.schema import CompressionPlan, LayerForm, QuantSpec
from svd2onnx_runtime import open_session, run
from tests.svd2onnx.networks import Mlp, seeded
from tests.svd2onnx.stored_networks import stored


class Branches(nn.Module):
    """x [batch, 64] -> [batch, 64]: a branch of two layers beside a shortcut, and a wide float layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.second = (nn.Linear(64, 64) for _ in range(3))
        self.last = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(torch.relu_(self.first(x)) * torch.sigmoid(self.gate(x)))
        return self.last(x + branch)


NAMES = ("first", "gate", "second", "last")
X = {"x": torch.randn(3, 64)}


def compressed(*dropped: str) -> tuple[nn.Module, dict]:
    network = seeded(Branches)
    sites = discover(network, X)
    plan = uniform_plan(sites, QuantSpec(4, 32))
    forms = {name: LayerForm() if name in dropped else form for name, form in plan.forms.items()}
    del forms["last"]  # stays a float weight, larger than what is lost
    layers = realize(network, sites, CompressionPlan("auto", forms), calibrate(network, sites, [X]))
    return rewrite(network, sites, layers), layers


def test_all_layers_of_a_whole_network_live() -> None:
    assert dead_layers(seeded(Mlp), ["first", "second"], X) == set()
    assert dead_layers(compressed()[0], NAMES, X) == set()


def test_what_feeds_a_layer_of_rank_0_alone_is_dead() -> None:
    assert dead_layers(compressed("second")[0], NAMES, X) == {"first", "gate"}
    assert dead_layers(compressed("gate")[0], NAMES, X) == set()


def test_a_stored_weight_that_feeds_a_layer_of_rank_0_alone_is_dead() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.late, self.linear = stored(64, 64), stored(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.linear(x @ self.mix())) @ self.late()

    network = seeded(Mixed)
    sites = discover(network, X)
    forms = {**uniform_plan(sites, QuantSpec(4, 32)).forms, "linear": LayerForm()}
    rewritten = rewrite(network, sites, realize(network, sites, CompressionPlan("auto", forms), {}))
    assert dead_layers(rewritten, ("mix", "late", "linear"), X) == {"mix"}


def test_dead_layers_are_missing_in_the_file_and_nothing_is_said(tmp_path: Path) -> None:
    network, layers = compressed("second")
    path = tmp_path / "graph.onnx"
    export(network, layers, X, {"x": {0: "batch"}}, path)
    (output,) = run(open_session(path, "cpu", strict=True), {"x": X["x"].numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(output), network(**X), rtol=1e-4, atol=1e-5)
