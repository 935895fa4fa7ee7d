"""Codes in the graph: the values of the rewritten network, standard operators, and no float weight left."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.compression.quantize import quantize
from svd2onnx.graph.export import export_float
from svd2onnx.graph.qdq import insert_dequantize
from svd2onnx.graph.quantized_nodes import FusedMatMul
from svd2onnx.network.rewrite import rewrite
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.errors import ExportError
from svd2onnx.values.schema import CompressedLayer, QuantSpec
from svd2onnx_runtime import certify, open_session, run
from tests.svd2onnx.graph.exported import CASES, Case, Exported
from tests.svd2onnx.networks import Batch, Compressed, compress, seeded

CODES = {TensorProto.INT8: 8, TensorProto.INT4: 4, TensorProto.INT2: 2}
OVERHEAD = 500
"""Bytes of names, types and shapes that a file may have beyond its tensors, for each of its nodes."""


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, export_once: Callable[[Case], Exported]) -> Exported:
    return export_once(request.param)


def with_layers(compressed: Compressed, layers: Mapping[str, CompressedLayer]) -> Compressed:
    """The same network with other stored tensors."""
    network = rewrite(compressed.original, compressed.sites, layers)
    return replace(compressed, network=network, layers=layers)


def assert_strictly_equal(path: Path, network: nn.Module, batches: Sequence[Batch]) -> None:
    """Each output of the file is that of ``network`` to 1e-5 of its norm."""
    session = open_session(path, "cpu", strict=True)
    for batch in batches:
        with torch.inference_mode():
            result = network(**batch)
        expected = [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]
        for output, reference in zip(run(session, as_arrays(batch)).values(), expected, strict=True):
            assert output.shape == reference.shape
            assert np.linalg.norm(output - reference) <= 1e-5 * np.linalg.norm(reference)


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Of the packed values."""
    bits = CODES.get(tensor.data_type)
    if bits:
        return -(-int(np.prod(tensor.dims)) * bits // 8)
    return numpy_helper.to_array(tensor).nbytes


def test_the_file_is_a_valid_graph_of_standard_operators(exported: Exported) -> None:
    onnx.checker.check_model(exported.path, full_check=True)
    proto = exported.proto
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [
        ("", 25 if exported.bits == 2 else 21)
    ]
    assert proto.ir_version <= 13


def test_a_strict_session_computes_what_the_rewritten_network_does(exported: Exported) -> None:
    """Also for sizes that differ from those it was exported with, in each dynamic dimension."""
    first = exported.compressed.batches[0]
    batches = list(exported.compressed.batches)
    batches.append({name: tensor[:1] for name, tensor in first.items()})
    batches.append({name: torch.cat([tensor, tensor]) for name, tensor in first.items()})
    if "ids" in first:
        batches += [{"ids": first["ids"][:2, :1]}, {"ids": torch.cat([first["ids"]] * 3, dim=1)}]
    assert_strictly_equal(exported.path, exported.compressed.network, batches)


def test_every_matmul_fuses_on_the_cpu(exported: Exported) -> None:
    inputs = as_arrays(exported.compressed.batches[0])
    certificate = certify(exported.path, "cpu", inputs=inputs)
    assert certificate.ok, certificate.unfused
    assert certificate.fused == tuple(matmul.node for matmul in exported.planned)
    linears = [site for site in exported.compressed.sites if site.kind == "linear"]
    calls = sum(site.calls for site in linears if site.name in exported.compressed.layers)
    assert certificate.planned == calls * (2 if exported.rank else 1) > 0


def test_no_float_weight_is_left(exported: Exported) -> None:
    """Only biases, norms, scalars and units are float32; the rest is codes, scales and shapes."""
    compressed = exported.compressed
    floats = [
        tensor
        for tensor in exported.proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and not tensor.name.endswith(".unit")
    ]
    assert not [tensor.name for tensor in floats if len(tensor.dims) > 1]
    remaining = sum(int(np.prod(tensor.dims)) for tensor in floats)
    modules = [compressed.network.get_submodule(n) for s in compressed.sites for n in s.names]
    small = sum(m.bias.numel() for m in modules if getattr(m, "bias", None) is not None)
    small += sum(m.weight.numel() for m in modules if isinstance(m, nn.LayerNorm))
    assert remaining <= small + 16


def test_the_file_is_the_sum_of_what_it_stores(exported: Exported) -> None:
    tensors = list(exported.proto.graph.initializer)
    codes = [t for t in tensors if t.name.split(".")[-1].isdigit() or "codes" in t.name]
    scales = [t for t in tensors if t.name.endswith((".scale", ".unit"))]
    stored = sum(
        exported.compressed.layers[site.name].stored_bytes * site.copies
        for site in exported.compressed.sites
        if site.name in exported.compressed.layers
    )
    assert sum(bytes_of(t) for t in [*codes, *scales]) == stored
    everything = sum(bytes_of(t) for t in tensors)
    assert (
        everything <= exported.path.stat().st_size <= everything + OVERHEAD * len(exported.proto.graph.node)
    )


def stem_of(exported: Exported, matmul: FusedMatMul) -> str:
    """What the names of the codes, scales and unit of ``matmul`` begin with, found along the graph."""
    made_by = {name: node for node in exported.proto.graph.node for name in node.output}
    node = next(node for node in exported.proto.graph.node if node.name == matmul.node)
    codes = made_by[node.input[1]].input[0]
    assert codes.startswith(f"{matmul.layer}.{matmul.factor}.")
    return codes.removesuffix(".codes")


def test_the_stored_codes_and_scales_give_the_network_s_weights_bit_for_bit(exported: Exported) -> None:
    initializers = {t.name: t for t in exported.proto.graph.initializer}
    for matmul in exported.planned:
        stem = stem_of(exported, matmul)
        codes = numpy_helper.to_array(initializers[f"{stem}.codes"]).astype(np.float32)
        scale = numpy_helper.to_array(initializers[f"{stem}.scale"])
        unit = numpy_helper.to_array(initializers[f"{stem}.unit"])
        assert scale.dtype == np.int8
        assert (unit.shape, unit.dtype) in (((1, 1), np.float32), ((1, matmul.n), np.float16))
        assert codes.shape == (matmul.k, matmul.n)
        steps = (scale * unit.astype(np.float32)).repeat(matmul.block_size, axis=0)[: matmul.k]
        module = exported.compressed.network.get_submodule(matmul.layer)
        assert np.array_equal(codes * steps, getattr(module, matmul.factor).numpy())


def test_every_matmul_has_initializers_of_its_own(exported: Exported) -> None:
    uses = Counter(name for node in exported.proto.graph.node for name in node.input)
    for matmul in exported.planned:
        stem = stem_of(exported, matmul)
        assert uses[f"{stem}.codes"] == uses[f"{stem}.scale"] == uses[f"{stem}.unit"] == 1
    assert len({matmul.node for matmul in exported.planned}) == len(exported.planned)


# Cases that need a network of their own.


class TableTwice(nn.Module):
    """ids [..] -> ([.., 64], [.., 64]): a table that is an output itself and is looked up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 64, padding_idx=0)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.table(ids), -self.table(ids + 1)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2)], ids=str)
def test_a_table_is_exact_and_stored_once(tmp_path: Path, bits: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {"ids": torch.randint(0, 99, shape, generator=generator)}
    compressed = compress(seeded(TableTwice), [batch], QuantSpec(bits, 32))
    path = tmp_path / "table.onnx"
    assert compressed.export(path) == []
    onnx.checker.check_model(path, full_check=True)
    outputs = run(open_session(path, "cpu", strict=True), as_arrays(batch)).values()
    with torch.inference_mode():
        expected = compressed.network(**batch)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(outputs, expected, strict=True))
    deployed = run(open_session(path, "cpu"), as_arrays(batch)).values()
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(deployed, expected, strict=True))
    tensors = onnx.load(path).graph.initializer
    assert sum(int(np.prod(t.dims)) for t in tensors if t.name == "table.codes") == 100 * 64 * bits // 8
    assert sum(bytes_of(t) for t in tensors) < compressed.layers["table"].stored_bytes + 500


class Twins(nn.Module):
    """x [batch, 64] -> [batch, 64]; two Linears of equal weights that are not tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.load_state_dict(self.first.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_layers_of_equal_content_are_each_named_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 64)}
    compressed = compress(seeded(Twins), [batch], QuantSpec(8, 32))
    codes = quantize(compressed.original.first.weight, QuantSpec(8, 32))
    planned = with_layers(
        compressed, {name: CompressedLayer((64, 64), codes) for name in ("first", "second")}
    ).export(tmp_path / "twins.onnx")
    assert sorted(matmul.layer for matmul in planned) == ["first", "second"]
    assert certify(tmp_path / "twins.onnx", "cpu", inputs=as_arrays(batch)).ok


class Around(nn.Module):
    """x [.., 64] -> [.., 64]: Linears beside nodes that onnxruntime merges with a MatMul, if left to it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        names = "relu clamp above below one_of_two gelu scaled".split()
        self.linears = nn.ModuleDict({name: nn.Linear(64, 64, bias=bias) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        use = self.linears
        both = use["one_of_two"](x)
        terms = (
            torch.relu(use["relu"](x)),
            use["clamp"](x).clamp(-0.5, 0.25),
            use["above"](x).clamp(max=0.25),
            use["below"](x).clamp(min=0.25),
            torch.relu(both) * both,
            functional.gelu(use["gelu"](x)),
            use["scaled"](x * 0.5) / 8 + x,
        )
        return torch.stack(terms).cumsum(0)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("ndim", [2, 3], ids=["2d", "3d"])
def test_a_matmul_fuses_whatever_stands_beside_it(tmp_path: Path, ndim: int, bias: bool) -> None:
    torch.manual_seed(0)
    network = Around(bias).eval().requires_grad_(False)
    batches = [{"x": torch.randn(rows, 3, 64) if ndim == 3 else torch.randn(rows, 64)} for rows in (5, 4)]
    compressed = compress(network, batches, QuantSpec(4, 32))
    # The mean's shift would give every layer a bias.
    layers = {name: replace(layer, bias_shift=None) for name, layer in compressed.layers.items()}
    compressed = with_layers(compressed, layers)
    path = tmp_path / "around.onnx"
    planned = compressed.export(path)
    certificate = certify(path, "cpu", inputs=as_arrays(batches[0]))
    layer_of = {matmul.node: matmul.layer for matmul in planned}
    assert {layer_of[node]: reason for node, reason in certificate.unfused} == {}
    assert certificate.planned == len(network.linears)
    assert_strictly_equal(path, compressed.network, batches)


class Outputs(nn.Module):
    """ids [batch, length] -> a table's rows and a Relu's values, which the exporter rewrites."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(100, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.table(ids)
        return rows, torch.relu(self.linear(rows.sum(1)))


def test_outputs_keep_the_names_they_have_in_the_float_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = {"ids": torch.randint(0, 100, (5, 3))}
    compressed = compress(seeded(Outputs), [batch], QuantSpec(4, 32))
    compressed.export(tmp_path / "codes.onnx")
    export_float(compressed.original, batch, {"ids": {0: "batch"}}, tmp_path / "float.onnx")
    codes, floats = (open_session(tmp_path / f"{name}.onnx", "cpu") for name in ("codes", "float"))
    assert [o.name for o in codes.get_outputs()] == [o.name for o in floats.get_outputs()]
    assert [o.shape for o in codes.get_outputs()] == [o.shape for o in floats.get_outputs()]
    assert certify(tmp_path / "codes.onnx", "cpu", inputs=as_arrays(batch)).ok


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding], ids=["linear", "table"])
@pytest.mark.parametrize("size", [1e-12, 1e12], ids=str)
def test_float32_scales_are_stored_as_such(tmp_path: Path, kind: type[nn.Module], size: float) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64, bias=False) if kind is nn.Linear else nn.Embedding(100, 64)
            self.layer.weight.data.mul_(size)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 64) if kind is nn.Linear else torch.randint(0, 100, (6, 4))}
    compressed = compress(seeded(Scaled), [batch], QuantSpec(4, 32))
    path = tmp_path / "scaled.onnx"
    compressed.export(path)
    assert_strictly_equal(path, compressed.network, [batch])
    scale = next(t for t in onnx.load(path).graph.initializer if t.name.endswith(".scale"))
    assert scale.data_type == TensorProto.FLOAT
    assert certify(path, "cpu", inputs=as_arrays(batch)).ok


# Graphs that do not hold the weights as expected.


def graph_with(nodes: list[onnx.NodeProto], weight: np.ndarray) -> ir.Graph:
    """A graph x [2, 64] -> y whose initializer w is ``weight``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return ir.serde.deserialize_model(helper.make_model(graph)).graph


def one_layer() -> dict[str, CompressedLayer]:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return {"body.linear": CompressedLayer((64, 64), quantize(weight, QuantSpec(4, 32)))}


@pytest.mark.parametrize(
    ("op", "inputs"),
    [("Add", ["x", "w"]), ("MatMul", ["w", "x"]), ("Gemm", ["x", "w"]), ("Gather", ["w", "x"])],
    ids=["Add", "left of a MatMul", "Gemm", "Gather"],
)
def test_a_weight_that_another_node_uses_is_refused_by_name(op: str, inputs: list[str]) -> None:
    layers = one_layer()
    weight = np.ascontiguousarray(layers["body.linear"].weight().numpy().T)
    graph = graph_with([helper.make_node(op, inputs, ["y"], name="culprit")], weight)
    with pytest.raises(ExportError) as caught:
        insert_dequantize(graph, layers)
    message = str(caught.value)
    assert "'body.linear'" in message
    assert f"the {op} node 'culprit'" in message
    assert "--exclude" in message
    assert "\n" not in message


def test_a_weight_that_is_not_in_the_graph_is_refused_by_name() -> None:
    layers = one_layer()
    changed = np.ascontiguousarray(layers["body.linear"].weight().numpy().T)
    changed[3, 4] = np.nextafter(changed[3, 4], np.float32(1))
    graph = graph_with([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], changed)
    with pytest.raises(ExportError, match=r"does not hold the compressed weights of: body\.linear;"):
        insert_dequantize(graph, layers)
