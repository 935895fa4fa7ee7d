"""Convolutions in the file: integers alone, folded when it is loaded, and the values of the network."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from svd2onnx.graph.file_formats import to_format
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.schema import Geometry, LayerForm, LayerSite, QuantSpec
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import certify
from svd2onnx_runtime.certify import METADATA_KEY
from tests.svd2onnx.graph.folded import EVERY_FORM, difference, unfolded
from tests.svd2onnx.networks import Compressed, Images, batches_of, compress, seeded

CASES = [(8, None), (4, None), (2, None), (4, 16), (2, 16)]
_INTEGERS = {TensorProto.INT8, TensorProto.INT4, TensorProto.INT2}


class Shared(nn.Module):
    """x [batch, 32, *] -> same: two convolutions have one weight, and one of them runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.first(torch.relu(self.second(torch.tanh(self.first(x)))))


@pytest.fixture(scope="module", params=CASES, ids=[f"int{b}-{'pair' if r else 'dense'}" for b, r in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Path]:
    bits, rank = request.param
    network = seeded(Images)
    compressed = compress(network, batches_of(network), QuantSpec(bits, 32), rank)
    path = tmp_path_factory.mktemp("images") / "graph.onnx"
    compressed.export(path)
    return compressed, path


def test_the_file_computes_what_the_network_does(case: tuple[Compressed, Path]) -> None:
    compressed, path = case
    onnx.checker.check_model(path, full_check=True)
    one = {"x": compressed.batches[0]["x"][:1]}
    assert difference(path, compressed, one) <= 1e-5
    assert difference(path, compressed, one, strict=False) <= 0.02  # the head's activations are rounded


def test_weights_are_integers(case: tuple[Compressed, Path]) -> None:
    compressed, path = case
    tensors = onnx.load(path).graph.initializer
    large = [t for t in tensors if np.prod(t.dims) > 512 and not t.name.startswith("blocks.")]
    assert large
    assert {t.data_type for t in large} <= _INTEGERS
    assert set(compressed.layers) == {"stem", "depthwise", "point", "wide", "head"}


def test_their_making_is_folded_at_load(case: tuple[Compressed, Path]) -> None:
    compressed, path = case
    certificate = certify(path, "cpu", inputs=as_arrays(compressed.batches[0]))
    assert certificate.ok, certificate.unfused
    pairs = sum(layer.left is not None for name, layer in compressed.layers.items() if name != "head")
    assert len(certificate.folded) == 4 + pairs
    assert len(certificate.fused) == certificate.planned - len(certificate.folded) > 0


def test_a_making_that_runs_is_told(case: tuple[Compressed, Path], tmp_path: Path) -> None:
    """With its codes an input of the graph nothing can be folded."""
    compressed, path = case
    changed = unfolded(path, tmp_path, "wide.dense.codes", "wide.right.codes")
    certificate = certify(changed, "cpu", inputs=as_arrays(compressed.batches[0]))
    assert [reason for _, reason in certificate.unfused if "made on every call" in reason]


def test_convolutions_of_one_weight_share_its_codes(tmp_path: Path) -> None:
    network = seeded(Shared)
    batches = [{"x": torch.randn(size, 32, 5, 6)} for size in (2, 3)]
    compressed = compress(network, batches, QuantSpec(4, 32))
    (site,) = compressed.sites
    assert (site.aliases, site.calls, site.copies) == (("second",), 3, 1)
    path = tmp_path / "graph.onnx"
    compressed.export(path)
    graph = onnx.load(path).graph
    assert Counter(t.data_type for t in graph.initializer)[TensorProto.INT4] == 1
    assert Counter(node.op_type for node in graph.node)["Conv"] == 3
    assert difference(path, compressed, {"x": batches[0]["x"][:1]}) <= 1e-5


@EVERY_FORM
def test_they_stay_as_they_are_in_every_form(
    case: tuple[Compressed, Path], form: FileFormat, tmp_path: Path
) -> None:
    compressed, path = case
    changed = tmp_path / "form.onnx"
    to_format(path, changed, form)
    one = {"x": compressed.batches[0]["x"][:1]}
    assert difference(changed, compressed, one, strict=False) <= 0.02
    if form.dtype == "float32":
        certificate = certify(changed, "cpu", inputs=as_arrays(compressed.batches[0]))
        assert certificate.ok, certificate.unfused
    before, after = (_convolutions(p) for p in (path, changed))
    assert before == after


def test_the_index_of_blocks_is_narrow(case: tuple[Compressed, Path]) -> None:
    _, path = case
    indices = [t for t in onnx.load(path).graph.initializer if t.name.startswith("blocks.")]
    assert indices
    assert {t.data_type for t in indices} == {TensorProto.UINT8}


@pytest.mark.parametrize(
    ("form", "groups", "said"),
    [
        (LayerForm(QuantSpec(4, 32), activations="int8"), 1, "leave the network as floats"),
        (LayerForm(), 1, "no size"),
        (LayerForm(rank=16, factors=QuantSpec(4, 32)), 4, "no low-rank pair"),
        (LayerForm(rank=64, factors=QuantSpec(4, 32)), 1, "exceeds 30"),
        (LayerForm(QuantSpec(2, 16)), 1, None),
    ],
)
def test_forms_that_a_convolution_cannot_have(form: LayerForm, groups: int, said: str | None) -> None:
    geometry = Geometry((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), groups)
    problem = form.problem_with(LayerSite("c", "convolution", (30, 90), geometry=geometry))
    assert problem is None if said is None else problem is not None and said in problem


def _convolutions(path: Path) -> list[dict[str, object]]:
    entries = {p.key: p.value for p in onnx.load(path).metadata_props}[METADATA_KEY]
    return [entry for entry in json.loads(entries) if entry.get("op") == "Conv"]


def test_a_network_is_left_as_it_was() -> None:
    network = seeded(Images)
    before = copy.deepcopy(network.state_dict())
    compressed = compress(network, batches_of(network), QuantSpec(4, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not list(compressed.network.parameters()), "the float weights went along"
