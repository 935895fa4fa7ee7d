"""What ships is compared with the network that the user handed in: what goes wrong on the way is found."""

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.reporting.report import CompressionReport
from svd2onnx.tracing import batchnorm, graph_network
from svd2onnx.values.errors import VerificationError
from svd2onnx.values.settings import Settings
from tests.written_graphs import WrittenGraphs

pytestmark = pytest.mark.usefixtures("no_bench")

SETTINGS = Settings("quantize", provider="cpu", calibration_samples=16)

IMAGES = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(own, 32, 3, padding=1) for own in (3, 32, 32))
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(32, 128)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(x + self.c(torch.relu(self.b(x))))
        return self.head(x.mean((2, 3)))

def build():
    torch.manual_seed(0)
    network = Network()
    nn.init.uniform_(network.norm.running_var, 0.5, 2)
    nn.init.normal_(network.norm.running_mean)
    return network.eval()

def inputs(split):
    torch.manual_seed(len(split))
    for _ in range(2):
        yield {"x": torch.randn(8, 3, 12, 12)}

dynamic_shapes = {"x": {0: "batch"}}
"""

TOKENS = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.mix(x))))

def build():
    torch.manual_seed(0)
    network = Network()
    nn.init.uniform_(network.norm.running_var, 0.2, 3)
    nn.init.normal_(network.norm.running_mean)
    return network.eval()

def inputs(split):
    torch.manual_seed(len(split))
    for _ in range(2):
        yield {"x": torch.randn(8, 64, 64)}

dynamic_shapes = {"x": {0: "batch"}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], CompressionReport]:
    """Compress the network of a text; nothing may be left behind where that fails."""

    def compressed(text: str) -> CompressionReport:
        source, output = tmp_path / "network.py", tmp_path / "out.onnx"
        source.write_text(text)
        try:
            return compress_export(source, output, SETTINGS, reference=tmp_path / "float.onnx")
        except VerificationError:
            assert not list(tmp_path.glob("*.onnx*"))
            raise

    return compressed


def test_files_are_valid_and_their_nodes_sorted(
    run: Callable[[str], CompressionReport], tmp_path: Path
) -> None:
    """Convolutions of one size share the nodes that spread their scales."""
    run(IMAGES)
    for name in ("out.onnx", "float.onnx"):
        onnx.checker.check_model(tmp_path / name, full_check=True)


def test_a_norm_over_tokens_is_not_folded_into_the_layer_before_it(
    run: Callable[[str], CompressionReport], tmp_path: Path
) -> None:
    """Its channels are the second axis, and the layer's outputs are the last: here both have 64."""
    run(TOKENS)
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(TOKENS, scope)
    x = torch.randn(3, 64, 64)
    expected = scope["build"]()(x).detach().numpy()
    (output,) = onnxruntime.InferenceSession(tmp_path / "float.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_a_fault_in_folding_is_found(
    run: Callable[[str], CompressionReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(layer: nn.Module, norm: nn.Module) -> nn.Module:
        return layer  # and the normalization is gone

    monkeypatch.setattr(batchnorm, "fuse_conv_bn_eval", wrong)
    with pytest.raises(VerificationError, match="the float32 graph differs from the network that was handed"):
        run(IMAGES)


def test_a_fault_in_finding_layers_is_found(
    run: Callable[[str], CompressionReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graph_network._with

    def wrong(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
        made = right(module, parameters)
        if isinstance(made, nn.Linear):
            made.weight = nn.Parameter(2 * made.weight, requires_grad=False)
        return made

    monkeypatch.setattr(graph_network, "_with", wrong)
    with pytest.raises(VerificationError, match="the float32 graph differs from the network that was handed"):
        run(IMAGES)


def test_a_file_that_onnx_refuses_is_not_written(
    run: Callable[[str], CompressionReport], monkeypatch: pytest.MonkeyPatch, written_graphs: WrittenGraphs
) -> None:
    monkeypatch.setattr("onnx_ir.Graph.sort", lambda _graph: None)
    with pytest.raises(VerificationError, match="the exported graph is no valid ONNX"):
        run(IMAGES)
    written_graphs.forget()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return self.head(", "return self.head(torch.rand(()) * "),
        (
            "x = torch.relu(self.norm(self.a(x)))",
            "self.seen = getattr(self, 'seen', 0) + 1; x = self.a(x) * self.seen",
        ),
    ],
    ids=["random", "keeps a state"],
)
def test_a_network_that_changes_from_call_to_call_is_told(
    run: Callable[[str], CompressionReport], old: str, new: str
) -> None:
    assert old in IMAGES
    with pytest.raises(VerificationError, match="gives other outputs for the same inputs when it is called"):
        run(IMAGES.replace(old, new))


def test_a_network_that_differs_each_time_it_is_loaded_is_told(
    run: Callable[[str], CompressionReport],
) -> None:
    with pytest.raises(VerificationError, match="the network differs each time it is loaded"):
        run(IMAGES.replace("torch.manual_seed(0)", "torch.seed()"))


def test_random_numbers_of_a_seed_are_told(
    run: Callable[[str], CompressionReport], written_graphs: WrittenGraphs
) -> None:
    """Called again, such a network gives the same; a file cannot."""
    with pytest.raises(VerificationError, match=r"forward draws random numbers \(rand\)"):
        run(IMAGES.replace("return self.head(", "torch.manual_seed(1); return self.head(torch.rand(32) + "))
    written_graphs.forget()  # the draft, whose numbers are random


def test_a_norm_that_stays_in_training_takes_the_batch_s_statistics(
    run: Callable[[str], CompressionReport], tmp_path: Path
) -> None:
    text = IMAGES.replace("x = torch.relu(self.norm", "self.norm.train(); x = torch.relu(self.norm")
    run(text)
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(text, scope)
    x = torch.randn(3, 3, 12, 12)
    expected = scope["build"]()(x).detach().numpy()
    (output,) = onnxruntime.InferenceSession(tmp_path / "float.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_another_batch_size_than_the_examples_is_tried(run: Callable[[str], CompressionReport]) -> None:
    """What depends on the number of rows in Python is frozen by the exporter."""
    with pytest.raises(VerificationError, match="decides something in Python"):
        run(IMAGES.replace("return self.head(", "return self.head((2.0 if len(x) > 4 else 1.0) * "))


USED_OTHERWISE = {
    "asks for a layer's class": (
        "self.head(x.mean",
        "(self.head if isinstance(self.head, nn.Linear) else abs)(x.mean",
    ),
    "reads a layer's weight": (
        "self.head(x.mean((2, 3)))",
        "self.head(x.mean((2, 3))) + self.head.weight.sum()",
    ),
    "calls the function": (
        "self.head(x.mean((2, 3)))",
        "nn.functional.linear(x.mean((2, 3)), self.head.weight, self.head.bias)",
    ),
    "hook": (
        "return network.eval()",
        "network.head.register_forward_hook(lambda _module, _args, y: 2 * y); return network.eval()",
    ),
    "hook before": (
        "return network.eval()",
        "network.head.register_forward_pre_hook(lambda _module, x: (x[0] + 1,)); return network.eval()",
    ),
    "forward of its own": (
        "return network.eval()",
        "old = network.head.forward; network.head.forward = lambda x: 3 * old(x); return network.eval()",
    ),
    "subclass": ("nn.Linear(32, 128)", "type('Own', (nn.Linear,), {})(32, 128)"),
    "weight norm": (
        "nn.Linear(32, 128)",
        "torch.nn.utils.parametrizations.weight_norm(nn.Linear(32, 128))",
    ),
    "no gradients": (
        "return self.head(x.mean((2, 3)))",
        "with torch.no_grad(): return self.head(x.mean((2, 3)))",
    ),
}


@pytest.mark.parametrize(("old", "new"), USED_OTHERWISE.values(), ids=USED_OTHERWISE)
def test_a_layer_is_found_however_it_is_used(
    run: Callable[[str], CompressionReport], tmp_path: Path, old: str, new: str
) -> None:
    assert old in IMAGES
    text = IMAGES.replace(old, new)
    report = run(text)
    (head,) = (layer for layer in report.layers if layer.name == "head")
    assert head.form != "float"
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(text, scope)
    x = torch.randn(3, 3, 12, 12)
    expected = scope["build"]()(x).detach()
    (output,) = onnxruntime.InferenceSession(tmp_path / "out.onnx").run(None, {"x": x.numpy()})
    assert torch.nn.functional.cosine_similarity(torch.tensor(output), expected).min() > 0.99
