"""Each form of a file computes what the exported graph computes, and runs as it is meant to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from svd2onnx.graph.file_formats import to_format
from svd2onnx.graph.int8_matmul import to_integer
from svd2onnx.graph.matmul_nbits import pack
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import certify, open_session, run
from tests.svd2onnx.graph.exported import CASES, Case
from tests.svd2onnx.graph.exported import Exported as ExportedOnce
from tests.svd2onnx.networks import Compressed, compress, seeded
from tests.written_graphs import differences, invalid

FORMS = [
    FileFormat("folded"),
    FileFormat("matmulnbits"),
    FileFormat("dequantize", "float16"),
    FileFormat("folded", "float16"),
    FileFormat("matmulnbits", "float16"),
]
EXACT = 1e-6
HALF = 4e-3
"""What float16 adds, relative to an output, in networks of a few layers."""
DEPLOYED = 0.03
"""What a default session rounds."""


@dataclass(frozen=True)
class Exported:
    """A compressed network, its file as ``export`` wrote it, and what that computes strictly."""

    compressed: Compressed
    path: Path
    expected: list[np.ndarray]


def exported(compressed: Compressed, folder: Path) -> Exported:
    path = folder / "plain.onnx"
    compressed.export(path)
    return Exported(compressed, path, outputs(path, compressed, strict=True))


def outputs(path: Path, compressed: Compressed, *, strict: bool = False) -> list[np.ndarray]:
    session = open_session(path, "cpu", strict=strict)
    return [y for batch in compressed.batches for y in run(session, as_arrays(batch)).values()]


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    assert [x.dtype for x in a] == [y.dtype for y in b]
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module", params=CASES)
def plain(request: pytest.FixtureRequest, export_once: Callable[[Case], ExportedOnce]) -> Exported:
    made = export_once(request.param)
    return Exported(made.compressed, made.path, outputs(made.path, made.compressed, strict=True))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.operator}-{form.dtype}")
def test_a_form_computes_the_same_and_runs_as_meant(
    plain: Exported, form: FileFormat, tmp_path: Path
) -> None:
    path, compressed = tmp_path / "form.onnx", plain.compressed
    to_format(plain.path, path, form)
    deployed = difference(outputs(path, compressed), plain.expected)
    rounding = HALF if form.dtype == "float16" else EXACT
    assert deployed < (rounding if form.operator == "folded" else DEPLOYED)
    # With all optimizations off too, where MatMulNBits once gave other numbers.
    assert difference(outputs(path, compressed, strict=True), plain.expected) < rounding
    inputs = as_arrays(compressed.batches[0])
    certificate = certify(path, "cpu", inputs=inputs)
    assert certificate.ok, certificate.unfused
    planned = set(certify(plain.path, "cpu", inputs=inputs).fused)
    assert set(certificate.folded if form.operator == "folded" else certificate.fused) == planned


@pytest.mark.parametrize("form", FORMS[:2], ids=lambda form: form.operator)
def test_in_float32_a_form_strictly_equals_the_exported_graph(
    plain: Exported, form: FileFormat, tmp_path: Path
) -> None:
    """The strict check reads the shipped file itself then."""
    path = tmp_path / "form.onnx"
    to_format(plain.path, path, form)
    assert difference(outputs(path, plain.compressed, strict=True), plain.expected) == 0


def test_matmulnbits_rounds_as_a_default_session_does_with_the_pair(plain: Exported, tmp_path: Path) -> None:
    path = tmp_path / "form.onnx"
    to_format(plain.path, path, FileFormat("matmulnbits"))
    fused = outputs(plain.path, plain.compressed)
    assert difference(outputs(path, plain.compressed), fused) < EXACT


def test_every_form_is_valid_and_computes_the_same_simplified_and_optimized(
    plain: Exported, tmp_path: Path
) -> None:
    path = tmp_path / "form.onnx"
    for form in FORMS:
        to_format(plain.path, path, form)
        assert list(problems(path)) == [], form
    to_integer(plain.path, path, plain.compressed.layers, plain.compressed.statistics)
    assert list(problems(path)) == []
    assert list(problems(plain.path)) == []


def problems(path: Path) -> Iterator[str]:
    data = path.read_bytes()
    yield from invalid(data)
    yield from differences(data)


def test_matmulnbits_of_a_constant_weight_would_differ_without_optimizations(
    plain: Exported, tmp_path: Path
) -> None:
    """Why there is an Identity; and that the test above would find it missing."""
    path = tmp_path / "form.onnx"
    to_format(plain.path, path, FileFormat("matmulnbits"))
    model = onnx.load(path)
    same = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
    found = list(differences(model.SerializeToString()))
    assert any("all optimizations: output" in line for line in found)


def tensors_of(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("operator", ["folded", "matmulnbits"])
def test_a_weight_that_several_matmuls_use_is_stored_once(
    plain: Exported, operator: str, tmp_path: Path
) -> None:
    path = tmp_path / "form.onnx"
    to_format(plain.path, path, FileFormat(operator))
    certificate = certify(plain.path, "cpu", inputs=as_arrays(plain.compressed.batches[0]))
    codes = [name for name in tensors_of(path) if ".codes" in name and "table" not in name]
    sites = [site for site in plain.compressed.sites if site.kind == "linear"]
    pairs = len(certificate.fused) // sum(site.calls for site in sites)
    assert len(codes) == len(sites) * pairs
    assert len(codes) <= len(certificate.fused)


class Wide(nn.Module):
    """x [batch, length, 512] -> the same shape, with weights that are most of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.operator}-{form.dtype}")
def test_the_file_stays_as_small(form: FileFormat, tmp_path: Path) -> None:
    network = seeded(Wide)
    torch.manual_seed(0)
    batches = [{"x": torch.randn(3, rows, 512)} for rows in (4, 5)]
    plain = exported(compress(network, batches, QuantSpec(4, 32)), tmp_path)
    path = tmp_path / "form.onnx"
    to_format(plain.path, path, form)
    assert path.stat().st_size <= 1.01 * plain.path.stat().st_size


def test_packed_codes_are_those_of_the_kernel_s_layout() -> None:
    codes = np.array([[-8, 7, 0, -1, 3]])
    assert pack(codes, 4, 4).tolist() == [[[0xF0, 0x78], [0x8B, 0x88]]]


@given(st.sampled_from([8, 4, 2]), st.integers(1, 5), st.integers(1, 70), st.sampled_from([16, 32]))
def test_packed_codes_can_be_read_back(bits: int, n: int, k: int, block_size: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-(1 << bits - 1), 1 << bits - 1, (n, k))
    packed = pack(codes, bits, block_size)
    assert packed.shape == (n, -(-k // block_size), block_size * bits // 8)
    parts = [packed >> np.uint8(bits * i) & np.uint8((1 << bits) - 1) for i in range(8 // bits)]
    unpacked = np.stack(parts, axis=-1).reshape(n, -1).astype(int) - (1 << bits - 1)
    assert np.array_equal(unpacked[:, :k], codes)
    assert not unpacked[:, k:].any()
