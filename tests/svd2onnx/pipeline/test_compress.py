"""One call for a network in memory, from batches to the file that is on disk."""

import copy
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import svd2onnx
from svd2onnx.values.errors import SourceError, Svd2OnnxError
from svd2onnx_runtime import certify
from tests.svd2onnx.networks import Mlp, seeded
from tests.svd2onnx.stored_networks import Experts

pytestmark = pytest.mark.usefixtures("no_bench")

QUICK: dict[str, Any] = {"method": "quantize", "bits": 8, "provider": "cpu"}


class Images(nn.Module):
    """x [batch, 3, 10, 10] -> [batch, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)
        self.dropout, self.head = nn.Dropout(), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.convolution(x))).mean((2, 3))))


class Pair(nn.Module):
    """left, right [batch, 64] -> [batch, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.left(left)) * self.right(right)


def outputs(path: Path, **inputs: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert isinstance(result, np.ndarray)
    return result


def test_a_plan_for_an_mlp_from_text_paths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, page, reference = Mlp(), tmp_path / "page.html", tmp_path / "float.onnx"
    output = tmp_path / "mlp.onnx"
    report = svd2onnx.compress(
        network,
        calibration=[torch.randn(20, 64) for _ in range(4)],
        output=str(output),
        target_size="0.4x",
        provider="cpu",
        page=str(page),
        reference=str(reference),
    )
    assert (report.source, report.output, report.method) == ("Mlp", str(output), "auto")
    assert report.file_bytes == os.path.getsize(output) <= 0.4 * os.path.getsize(reference)
    assert page.exists()
    assert Path(f"{output}.report.json").exists()
    assert report.warnings == ()
    x = torch.randn(7, 64)
    expected = network(x).detach().numpy()
    np.testing.assert_allclose(outputs(reference, x=x), expected, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(outputs(output, x=x) - expected) < 0.1 * np.linalg.norm(expected)


def test_a_network_in_training_stays_there_and_its_labels_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Images()
    nn.init.uniform_(network.norm.running_var, 0.5, 2)
    nn.init.normal_(network.norm.running_mean)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    data = TensorDataset(torch.randn(48, 3, 10, 10), torch.randint(0, 9, (48,)))
    loader = DataLoader(data, batch_size=16, shuffle=True)
    drawn = torch.get_rng_state()
    with torch.no_grad():  # as evaluation loops have it around all they do
        report = svd2onnx.compress(network, loader, tmp_path / "images.onnx", **QUICK)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(module.training for module in network.modules())
    assert isinstance(network.norm, nn.BatchNorm2d)
    assert all(torch.equal(own, before[name]) for name, own in network.state_dict().items())
    assert all(own.requires_grad and own.grad is None for own in network.parameters())
    assert report.deployed.fidelity > 0.999
    x = torch.randn(5, 3, 10, 10)
    expected = network.eval()(x).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "images.onnx", x=x), expected, atol=0.03)


def test_the_same_seed_shuffles_a_loader_alike_and_gives_the_same_bytes(tmp_path: Path) -> None:
    # Inputs that go together, or rounding to nearest is as good, which sees no data.
    network, data = Mlp(), TensorDataset(torch.randn(40, 12) @ torch.randn(12, 64))
    digests = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        loader = DataLoader(data, batch_size=8, shuffle=True)
        path = tmp_path / "mlp.onnx"
        svd2onnx.compress(network, loader, path, **QUICK | {"bits": 4}, seed=seed, calibration_samples=16)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_dicts_and_an_evaluation_of_ones_own(tmp_path: Path) -> None:
    network = Pair()

    def batch(rows: int) -> dict[str, Tensor]:
        return {name: torch.randn(rows, 64) for name in ("label", "right", "left")}

    output = tmp_path / "pair.onnx"
    report = svd2onnx.compress(
        network, [batch(9), batch(6)], output, evaluation=[batch(4), batch(3)], objective="cosine", **QUICK
    )
    assert (report.deployed.samples, report.settings["objective"]) == (7, "cosine")
    fresh = batch(5)
    del fresh["label"]
    expected = network(**fresh).detach().numpy()
    np.testing.assert_allclose(outputs(output, **fresh), expected, atol=0.02)


def test_inference_mode_around_it_does_no_harm(tmp_path: Path) -> None:
    with torch.inference_mode():
        network, x = Mlp(), torch.randn(12, 64)
        report = svd2onnx.compress(network, [x], tmp_path / "mlp.onnx", **QUICK)
    assert report.deployed.fidelity > 0.999


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    wrong = [torch.randn(8, 63)]
    with pytest.raises(SourceError, match="Mlp: the network's forward fails on the first calibration batch"):
        svd2onnx.compress(Mlp(), wrong, tmp_path / "mlp.onnx", **QUICK)
    with pytest.raises(Svd2OnnxError, match=r"did you mean 0\.15x"):
        svd2onnx.compress(Mlp(), [torch.randn(8, 64)], tmp_path / "mlp.onnx", target_size=0.15)
    with pytest.raises(TypeError, match="'bit'"):
        svd2onnx.compress(Mlp(), [torch.randn(8, 64)], tmp_path / "mlp.onnx", bit=4)
    assert not list(tmp_path.iterdir())


class Locked(nn.Module):
    """x [batch, 64] -> same; a lock is held while it runs, and no copy of a lock can be made."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lock = Mlp(), threading.Lock()
        self.scale = self.body.first.bias.mean() + 1

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.body(x) * self.scale


def test_a_network_that_cannot_be_copied_is_compressed_and_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, calls = Locked(), []
    network.body.second.eval()
    network.body.first.weight.requires_grad_(False)
    network.body.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(TypeError, match="lock"):
        copy.deepcopy(network)
    parts = {name: (module, module.training) for name, module in network.named_modules()}
    held = {name: (own, own.clone(), own.requires_grad) for name, own in network.named_parameters()}
    hooks = dict(network.body._forward_hooks)
    report = svd2onnx.compress(network, [torch.randn(12, 64)], tmp_path / "locked.onnx", **QUICK)
    assert report.deployed.fidelity > 0.999
    assert {name: (module, module.training) for name, module in network.named_modules()} == parts
    for name, own in network.named_parameters():
        same, values, wants_gradient = held[name]
        assert own is same
        assert torch.equal(own, values)
        assert own.requires_grad == wants_gradient
        assert own.grad is None
    assert network.body._forward_hooks == hooks
    assert not network._forward_hooks
    x = torch.randn(5, 64)
    expected = network(x).detach().numpy()
    np.testing.assert_allclose(outputs(tmp_path / "locked.onnx", x=x), expected, atol=0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_on_a_gpu_stays_there(tmp_path: Path) -> None:
    network = Mlp().cuda()
    batches = [torch.randn(12, 64, device="cuda")]
    report = svd2onnx.compress(network, batches, tmp_path / "mlp.onnx", **QUICK)
    assert report.deployed.fidelity > 0.999
    assert all(own.is_cuda for own in network.parameters())


def test_a_network_of_stored_weights_alone(tmp_path: Path) -> None:
    """From prices to the file; --method svd has no pair for them, and quantizes plainly."""
    network = seeded(Experts)
    batches = [torch.randn(16, 4, 32, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    path = tmp_path / "experts.onnx"
    report = svd2onnx.compress(network, batches, path, provider="cpu", target_size="0.3x")
    assert [(layer.kind, layer.form != "float") for layer in report.layers] == [("stored", True)] * 2
    assert report.strict_fidelity > 0.9
    plain = svd2onnx.compress(network, batches, path, provider="cpu", method="svd")
    assert {layer.form for layer in plain.layers} == {"int4/32"}
    assert certify(path, "cpu", {"batch": 2}).summary == "2 folded of 2"
