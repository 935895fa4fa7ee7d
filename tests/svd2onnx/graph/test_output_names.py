"""The outputs of a file, in a real session, are what the network's structure calls them."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.graph.export import export_float
from svd2onnx.network.decoder import Traced
from svd2onnx.network.outputs import tensors_of
from svd2onnx.values.errors import ExportError
from svd2onnx_runtime import open_session, run


@dataclasses.dataclass
class Scored:
    scores: Tensor
    note: str
    total: Tensor


class Giving(nn.Module):
    """x [batch, 8] -> what ``shape`` makes of x and of two layers' outputs."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.first, self.second, self.shape = nn.Linear(8, 8), nn.Linear(8, 8), shape

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.shape(x, h, self.second(h))


def exported(shape: Any, path: Path, outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the file gives on three rows, compared with the network."""
    torch.manual_seed(0)
    network = Giving(shape).eval().requires_grad_(False)
    traced = Traced(network, {"x": torch.randn(4, 8)}, {"x": {0: "batch"}}, outputs=outputs)
    export_float(network, {}, {}, path, traced=traced)
    onnx.checker.check_model(path, full_check=True)
    x = torch.randn(3, 8)
    found = run(open_session(path, "cpu"), {"x": x.numpy()})
    for ours, theirs in zip(found.values(), tensors_of(network(x)), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=1e-5)
    return found


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (lambda x, h, y: y, ["output"]),
        (lambda x, h, y: (y, None, h), ["output", "output_1"]),
        (lambda x, h, y: {"logits": y, "states": (h, y.sum(-1))}, ["logits", "states.0", "states.1"]),
        (lambda x, h, y: Scored(y, "text", h.mean(-1)), ["scores", "total"]),
        (lambda x, h, y: (y, 0.5, x.shape[0]), ["output"]),
        (lambda x, h, y: {"linear": y, "linear_1": h}, ["linear", "linear_1"]),
        (lambda x, h, y: {"first.weight": y, "second.bias": h}, ["first.weight", "second.bias"]),
        (lambda x, h, y: {"a": y, "b": y}, ["a", "b"]),
        (lambda x, h, y: {"y": y, "x": x}, ["y", "x_1"]),
        (lambda x, h, y: {"x": x, "again": x, "y": y}, ["x_1", "again", "y"]),
    ],
    ids=[
        "one",
        "tuple",
        "nested",
        "dataclass",
        "numbers",
        "as values",
        "as weights",
        "twice",
        "input",
        "inputs",
    ],
)
def test_outputs_are_called_as_their_structure(shape: Any, names: list[str], tmp_path: Path) -> None:
    assert list(exported(shape, tmp_path / "a.onnx")) == names


def test_given_names_come_first(tmp_path: Path) -> None:
    found = exported(lambda x, h, y: {"a": y, "b": h}, tmp_path / "a.onnx", ("logits", "features"))
    assert list(found) == ["logits", "features"]


@pytest.mark.parametrize(
    ("shape", "outputs", "message"),
    [
        (lambda x, h, y: (y, h), ("a",), "outputs names 1 tensors (a), and the network gives 2: name each"),
        (lambda x, h, y: y, ("x",), "outputs names 'x', which is an input's name: choose another"),
        (lambda x, h, y: None, (), "expected tensors from the network's forward, found NoneType"),
        (lambda x, h, y: y.mean(), (), "the network's first output is one number"),
        (
            lambda x, h, y: (y, torch.fft.rfft(h)),
            (),
            "complex64, which numpy or ONNX lacks: let forward give",
        ),
        (
            lambda x, h, y: y.bfloat16(),
            (),
            "bfloat16, which numpy or ONNX lacks: let forward give it as .float()",
        ),
    ],
    ids=["count", "input's name", "none", "number", "complex", "bfloat16"],
)
def test_outputs_that_no_file_can_have_are_refused(
    shape: Any, outputs: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        exported(shape, tmp_path / "a.onnx", outputs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = Giving(lambda x, h, y: {"logits": y}).eval()
    export_float(network, {"x": torch.ones(2, 8)}, {"x": {0: "batch"}}, tmp_path / "a.onnx")
    assert list(network(torch.ones(2, 8))) == ["logits"]
