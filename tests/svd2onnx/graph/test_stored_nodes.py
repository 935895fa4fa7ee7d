"""Stored weights in the file: integers alone, made floats at load, and the values of the network."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.graph.file_formats import to_format
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import certify
from tests.svd2onnx.graph.folded import EVERY_FORM, difference, unfolded
from tests.svd2onnx.networks import Compressed, compress, seeded
from tests.svd2onnx.stored_networks import (
    STORED_NETWORKS,
    Bags,
    Experts,
    Recurrent,
    Upsampled,
    stored,
    stored_batches,
)

_SPECS = {
    Upsampled: QuantSpec(4, 32),
    Recurrent: QuantSpec(2, 16),
    Experts: QuantSpec(8, 128),
    Bags: QuantSpec(4, 64),
}
_INTEGERS = {TensorProto.INT8, TensorProto.INT4, TensorProto.INT2}
_READERS = {
    Upsampled: {"ConvTranspose": 2},
    Recurrent: {"LSTM": 1, "GRU": 1},
    Experts: {"MatMul": 2, "FusedMatMul": 1},
    Bags: {"Gather": 1, "MatMul": 2},
}


@pytest.fixture(scope="module", params=STORED_NETWORKS, ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Path]:
    network = seeded(request.param)
    compressed = compress(network, stored_batches(network), _SPECS[request.param])
    path = tmp_path_factory.mktemp("stored") / "graph.onnx"
    compressed.export(path)
    return compressed, path


def optimized(path: Path, folder: Path) -> Counter[str]:
    """The operators that a default session runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_the_file_computes_what_the_network_does(case: tuple[Compressed, Path]) -> None:
    compressed, path = case
    onnx.checker.check_model(path, full_check=True)
    assert difference(path, compressed) <= 1e-5
    assert difference(path, compressed, strict=False) <= 1e-5


def test_weights_are_integers(case: tuple[Compressed, Path]) -> None:
    compressed, path = case
    proto = onnx.load(path)
    large = [t for t in proto.graph.initializer if np.prod(t.dims) > 512 and not t.name.startswith("blocks.")]
    assert {t.data_type for t in large} <= _INTEGERS
    assert {site.kind for site in compressed.sites if site.name in compressed.layers} == {"stored"}
    codes = [tensor.name for tensor in large if tensor.name.endswith(".codes")]
    assert len(codes) == len(compressed.layers) == sum(s.skip_reason is None for s in compressed.sites)
    assert [entry.domain for entry in proto.opset_import] == [""]


def test_all_that_makes_them_is_folded_at_load(case: tuple[Compressed, Path], tmp_path: Path) -> None:
    """The operators are those of the float network, and nothing else reads integers."""
    compressed, path = case
    ran = optimized(path, tmp_path)
    wanted = _READERS[type(compressed.original)]
    assert {op: ran[op] for op in wanted} == wanted
    assert not ran["DequantizeLinear"]
    certificate = certify(path, "cpu", inputs=as_arrays(compressed.batches[0]))
    assert certificate.ok, certificate.unfused
    assert len(certificate.folded) == certificate.planned == len(compressed.layers)


def test_a_making_that_runs_is_told(case: tuple[Compressed, Path], tmp_path: Path) -> None:
    """With codes an input of the graph nothing can be folded, nor what follows from the weight."""
    compressed, path = case
    name = next(iter(compressed.layers))
    changed = unfolded(path, tmp_path, f"{name}.dense.codes")
    certificate = certify(changed, "cpu", inputs=as_arrays(compressed.batches[0]))
    reasons = dict(certificate.unfused)
    assert "stored_0" in reasons
    assert all("made on every call" in reason for reason in reasons.values())
    assert len(certificate.folded) >= len(compressed.layers) - 2, (
        "what two of them make together is told of both"
    )


@EVERY_FORM
def test_they_stay_as_they_are_in_every_form(
    case: tuple[Compressed, Path], form: FileFormat, tmp_path: Path
) -> None:
    compressed, path = case
    if isinstance(compressed.original, Bags) and form.dtype == "float16":
        pytest.skip("the exporter writes an embedding bag as a loop, which float16 refuses")
    changed = tmp_path / "form.onnx"
    to_format(path, changed, form)
    assert difference(changed, compressed, strict=False) <= (1e-5 if form.dtype == "float32" else 5e-3)
    certificate = certify(changed, "cpu", inputs=as_arrays(compressed.batches[0]))
    assert certificate.ok, certificate.unfused
    assert certificate.planned == len(compressed.layers)


def test_a_graph_module_that_calls_its_weight(tmp_path: Path) -> None:
    """As a traced network does: a call_module node without arguments."""
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.call_module("w")
    graph.output(graph.call_function(functional.conv_transpose1d, (x, weight), {"stride": 2}))
    network = torch.fx.GraphModule(torch.nn.ModuleDict({"w": stored(32, 48, 3)}), graph).eval()
    batches = [{"x": torch.randn(size, 32, 5)} for size in (2, 3)]
    compressed = compress(network, batches, QuantSpec(8, 64))
    assert list(compressed.layers) == ["w"]
    path = tmp_path / "graph.onnx"
    compressed.export(path)
    assert difference(path, compressed) <= 1e-5
    assert certify(path, "cpu", inputs=as_arrays(batches[0])).folded == ("stored_0",)


class Twins(nn.Module):
    """ids [batch, length] -> [batch, 64]: a table and a stored weight have the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = stored(96, 64)
        self.table = nn.Embedding(96, 64)
        self.table.weight = self.bag.weight

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding_bag(ids, self.bag()) + self.table(ids[:, 0])


def test_a_table_of_the_same_content_keeps_its_own_codes(tmp_path: Path) -> None:
    network = seeded(Twins)
    batches = [{"ids": torch.randint(0, 96, (size, 5))} for size in (6, 4)]
    compressed = compress(network, batches, QuantSpec(8, 32))
    assert {site.kind for site in compressed.sites} == {"stored", "embedding"}
    path = tmp_path / "graph.onnx"
    compressed.export(path)
    assert difference(path, compressed) <= 1e-5
    assert {"bag.dense.codes", "table.codes"} <= {t.name for t in onnx.load(path).graph.initializer}


def test_a_network_is_left_as_it_was() -> None:
    network = seeded(Upsampled)
    before = copy.deepcopy(network.state_dict())
    compressed = compress(network, stored_batches(network), QuantSpec(4, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not list(compressed.network.parameters()), "the float weights went along"
