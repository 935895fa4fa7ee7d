"""An exported program becomes a network of modules that computes the same, without its classes."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.network.layers import discover
from svd2onnx.network.outputs import tensors_of
from svd2onnx.sources.exported import load_exported
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import SourceError
from tests.svd2onnx.networks import NETWORKS, Images, batches_of, seeded
from tests.svd2onnx.sources.files import Pictures, Texts, export_program, picture_program, text_program

KINDS = {"linear", "embedding", "convolution"}
TEXTS, TEXT_AXES = {"ids": torch.randint(0, 160, (3, 4))}, {"ids": {0: "batch", 1: "sequence"}}


class Frozen(nn.Module):
    """x [batch, 64] -> [batch, 64]: a part that runs without gradients, and products with matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.matrix = nn.Linear(64, 96), nn.Parameter(torch.randn(96, 64))
        self.square, self.bias = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.tanh(self.body(x))
        return torch.addmm(self.bias, torch.tanh(x @ self.matrix), self.square.T)


def assert_same(
    network: nn.Module, path: Path, batches: list[dict[str, Tensor]], decomposed: bool
) -> nn.Module:
    example = tuple(batches[0].values())
    axes = {name: dict.fromkeys((0,), "batch") for name in batches[0]}
    export_program(network, example, path, axes)
    if decomposed:
        torch.export.save(torch.export.load(path).run_decompositions(), path)
    loaded = load_exported(path)
    assert loaded.specs is not None
    assert [spec.name for spec in loaded.specs] == list(batches[0])
    expected, found = (tensors_of(own(**batches[0])) for own in (network, loaded.model))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return loaded.model


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize(
    "kind", [*NETWORKS.values(), Images, Texts, Pictures, Frozen], ids=lambda k: k.__name__
)
def test_the_graph_computes_what_the_network_did(
    kind: type[nn.Module], decomposed: bool, tmp_path: Path
) -> None:
    network = seeded(kind)
    if kind in (Texts, Pictures):
        example = torch.randint(0, 160, (2, 5)) if kind is Texts else torch.randn(2, 3, 10, 10)
        batches = [{"ids" if kind is Texts else "x": example}]
    else:
        batches = batches_of(network)
    model = assert_same(network, tmp_path / "n.pt2", batches, decomposed)
    wanted, found = (
        [site for site in discover(trace(own, batches[0], {}), batches[0]) if site.kind in KINDS]
        for own in (network, model)
    )
    shapes = sorted((site.kind, site.shape, site.calls) for site in found if site.skip_reason is None)
    if kind is Frozen:
        assert shapes == [("linear", (64, 64), 1), ("linear", (64, 96), 1), ("linear", (96, 64), 1)]
    elif not decomposed:
        assert shapes == sorted((s.kind, s.shape, s.calls) for s in wanted if s.skip_reason is None)
    else:
        assert {(kind, shape) for kind, shape, _ in shapes} >= {
            (s.kind, s.shape) for s in wanted if s.skip_reason is None and s.kind != "linear"
        }


def test_gradients_reach_every_layer(tmp_path: Path) -> None:
    model = trace(load_exported(text_program(tmp_path / "n.pt2")).model, TEXTS, TEXT_AXES)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        layer.weight.requires_grad_()
    model(torch.randint(0, 160, (3, 4)))[0].sum().backward()
    assert all(layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0 for layer in layers)


def test_names_and_sizes_are_those_of_the_program(tmp_path: Path) -> None:
    loaded = load_exported(text_program(tmp_path / "n.pt2"))
    model = trace(loaded.model, TEXTS, TEXT_AXES)
    assert {"table", "first", "norm", "second", "head"} == {name for name, _ in model.named_children()}
    assert isinstance(model.get_submodule("norm"), nn.LayerNorm)
    (spec,) = loaded.specs or ()
    assert (spec.name, spec.dtype, spec.limit) == ("ids", torch.int64, 160)
    assert spec.dynamic == {0: "batch", 1: "sequence"}
    static = load_exported(picture_program(tmp_path / "s.pt2", is_static=True)).specs
    assert static is not None
    assert static[0].shape == (2, 3, 16, 16)
    assert not static[0].dynamic


def test_a_tie_stays_one(tmp_path: Path) -> None:
    model = trace(load_exported(text_program(tmp_path / "n.pt2")).model, TEXTS, TEXT_AXES)
    assert model.get_submodule("table").weight is model.get_submodule("head").weight


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda network: network.train(), "training mode"),
        (lambda network: nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).train(), "training mode"),
    ],
    ids=["batch norm", "dropout"],
)
def test_training_mode_is_refused(
    change: Callable[[nn.Module], nn.Module], expected: str, tmp_path: Path
) -> None:
    network = change(Pictures())
    example = torch.randn(2, 3, 8, 8) if isinstance(network, Pictures) else torch.randn(2, 64)
    path = export_program(network, (example,), tmp_path / "n.pt2")
    with pytest.raises(SourceError, match=expected):
        load_exported(path)


def test_a_program_that_writes_to_its_input_is_refused(tmp_path: Path) -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operator.iadd(x, 1) * 2

    path = export_program(Writes(), (torch.randn(2, 4),), tmp_path / "n.pt2")
    with pytest.raises(SourceError, match="changes its inputs"):
        load_exported(path)


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_names_of_outputs_are_kept(decomposed: bool, tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> dict[str, object]:
            h = self.head(x)
            return {"scores": h, "parts": [h.sum(-1), None, h.mean(-1)], "scale": 2}

    network, x = Named().eval().requires_grad_(False), torch.randn(3, 8)
    model = assert_same(network, tmp_path / "n.pt2", [{"x": x}], decomposed)
    assert list(model(x)) == ["scores", "parts.0", "parts.2"]


class Sized(nn.Linear):
    """Its second output is a number."""

    def forward(self, x: Tensor) -> Any:
        return {"rows": x.shape[0], "logits": super().forward(x)}


def test_numbers_among_the_outputs_are_left_out(tmp_path: Path) -> None:
    path = export_program(Sized(64, 64), (torch.ones(4, 64),), tmp_path / "x.pt2", {"x": {0: "batch"}})
    model = load_exported(path).model
    for rows in (2, 5):
        given = model(x=torch.ones(rows, 64))
        assert {name: tuple(tensor.shape) for name, tensor in given.items()} == {"logits": (rows, 64)}
