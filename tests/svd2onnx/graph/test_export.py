"""What the file says of itself, which dimensions vary, and how the exporter's failures are told."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import onnxscript_apis

from svd2onnx.graph.export import export_float, opset_for, weights_file
from svd2onnx.graph.file_formats import to_format
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.sources.rows import infer_dynamic_shapes
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import ExportError
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import graph_bytes, open_session, run
from tests.svd2onnx.networks import Mlp, Tokens, batches_of, compress, seeded


def test_metadata_says_what_made_the_file_and_which_matmuls_are_planned(tmp_path: Path) -> None:
    network = seeded(Mlp)
    planned = compress(network, batches_of(network), QuantSpec(4, 32), rank=16).export(tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "svd2onnx"
    assert model.producer_version == metadata["svd2onnx.version"] != ""
    assert metadata["made.by"] == "a test"
    entries = json.loads(metadata["svd2onnx.matmuls"])
    assert entries == [matmul.to_json() for matmul in planned]
    assert [(e["layer"], e["factor"], e["bits"], e["k"], e["n"]) for e in entries] == [
        ("first", "right", 4, 64, 16),
        ("first", "left", 4, 16, 96),
        ("second", "right", 4, 96, 16),
        ("second", "left", 4, 16, 64),
    ]


def test_files_hold_no_paths_of_this_machine(tmp_path: Path) -> None:
    """The exporter would put a stack trace on each node."""
    network = seeded(Tokens)
    compressed = compress(network, batches_of(network), QuantSpec(8, 32))
    compressed.export(tmp_path / "codes.onnx")
    export_float(network, compressed.batches[0], {"ids": {0: "batch", 1: "length"}}, tmp_path / "float.onnx")
    for name in ("codes", "float"):
        content = (tmp_path / f"{name}.onnx").read_bytes()
        assert b".py" not in content
        assert str(Path(__file__).parent).encode() not in content


def test_files_spend_no_bytes_on_what_is_inferred(tmp_path: Path) -> None:
    network = seeded(Mlp)
    compress(network, batches_of(network), QuantSpec(4, 32)).export(tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert not graph.value_info
    assert len({node.name for node in graph.node} - {""}) == len(graph.node)


def test_exports_share_the_exporter_s_table_of_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it parses the source of 500 functions."""
    reads, read = [], onnxscript_apis.get_torchlib_ops

    def counting() -> list[Any]:
        reads.append(read())
        return reads[-1]

    monkeypatch.setattr(onnxscript_apis, "get_torchlib_ops", counting)
    network = seeded(Mlp)
    for name in ("first.onnx", "second.onnx"):
        export_float(network, batches_of(network)[0], {"x": {0: "batch"}}, tmp_path / name)
    assert len(reads) == 1
    assert onnxscript_apis.get_torchlib_ops is counting


def test_export_is_reproducible(tmp_path: Path) -> None:
    network = seeded(Mlp)
    for name in ("a", "b"):
        compress(network, batches_of(network), QuantSpec(4, 32)).export(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("bits", "opset"), [((8, 4), 21), ((8, 2), 25), ((2,), 25), ((), 21)], ids=str)
def test_the_opset_is_the_lowest_that_has_the_types(bits: tuple[int, ...], opset: int) -> None:
    network = seeded(Mlp)
    layers = [compress(network, batches_of(network), QuantSpec(b, 32)).layers["first"] for b in bits]
    assert opset_for({str(number): layer for number, layer in enumerate(layers)}) == opset


def shapes_of(*sizes: dict[str, tuple[int, ...]]) -> dict[str, dict[int, str]]:
    return infer_dynamic_shapes([{name: torch.zeros(shape) for name, shape in s.items()} for s in sizes])


def test_dimensions_that_differ_are_dynamic_and_those_that_agree_share_a_name() -> None:
    shapes = shapes_of({"ids": (4, 7), "mask": (4, 7)}, {"ids": (4, 9), "mask": (4, 9)})
    assert shapes["ids"][0] == shapes["mask"][0] == "batch"
    assert shapes["ids"][1] == shapes["mask"][1] != "batch"


def test_the_first_dimension_is_dynamic_even_where_it_never_differed() -> None:
    assert shapes_of({"image": (4, 3, 8, 8)}) == {"image": {0: "batch"}}


def test_dimensions_that_differ_apart_have_names_of_their_own() -> None:
    shapes = shapes_of({"a": (4, 7), "b": (4, 5)}, {"a": (2, 9), "b": (2, 5)}, {"a": (2, 9), "b": (2, 6)})
    names = [shapes["a"][0], shapes["a"][1], shapes["b"][1]]
    assert len(set(names)) == 3
    assert shapes["b"][0] == "batch"


def test_the_float_reference_is_the_network(tmp_path: Path) -> None:
    network, path = seeded(Mlp), tmp_path / "float.onnx"
    batch = batches_of(network)[1]
    export_float(network, batches_of(network)[0], {"x": {0: "batch"}}, path)
    (output,) = run(open_session(path, "cpu"), {"x": batch["x"].numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(output), network(**batch), rtol=0, atol=1e-5)
    onnx.checker.check_model(path, full_check=True)


class Branching(nn.Module):
    """x [batch, 64]: a decision in Python that depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_network_that_cannot_be_exported_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        export_float(Branching(), {"x": torch.ones(3, 64)}, {"x": {0: "batch"}}, tmp_path / "a.onnx")
    message = str(caught.value)
    assert message.startswith("torch.onnx cannot export the network: ")
    assert "\n" not in message
    assert "data-dependent" in message  # the cause, not the exporter's general advice
    assert "\x1b" not in message  # which it colours
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


class Filtered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        low = torch.zeros_like(spectrum)
        low[:, :5] = spectrum[:, :5]
        return torch.fft.irfft(low)


def test_a_filter_of_spectra_is_told_what_hinders(tmp_path: Path) -> None:
    x = {"x": torch.ones(3, 64)}
    with pytest.raises(ExportError, match="compute with their real and imaginary parts") as caught:
        export_float(trace(Filtered(), x, {}), x, {}, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def test_weights_beyond_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = seeded(Mlp), torch.ones(3, 64)
    export_float(network, {"x": x}, {"x": {0: "batch"}}, tmp_path / "whole.onnx")
    monkeypatch.setattr("svd2onnx.graph.export.LARGEST_WEIGHTS", 40_000)
    export_float(network, {"x": x}, {"x": {0: "batch"}}, tmp_path / "a.onnx")
    whole, parts = tmp_path / "whole.onnx", tmp_path / "a.onnx"
    assert parts.stat().st_size < whole.stat().st_size / 4
    assert weights_file(parts).stat().st_size > 40_000
    assert graph_bytes(parts) == pytest.approx(graph_bytes(whole), rel=0.1)
    feed = {"x": x.numpy()}
    expected, found = (run(open_session(path, "cpu"), feed) for path in (whole, parts))
    assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize("operator", ["folded", "matmulnbits"])
def test_every_form_keeps_weights_beyond_one_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    network = seeded(Mlp)
    batches = batches_of(network)
    compressed = compress(network, batches, QuantSpec(8, 32))
    plain, form = tmp_path / "plain.onnx", tmp_path / "form.onnx"
    with monkeypatch.context() as limited:
        limited.setattr("svd2onnx.graph.export.LARGEST_WEIGHTS", 1000)
        compressed.export(plain)
        to_format(plain, form, FileFormat(operator))
    assert weights_file(plain).exists()
    assert weights_file(form).exists()
    feed = as_arrays(batches[0])
    parts = run(open_session(form, "cpu"), feed)
    to_format(plain, form, FileFormat(operator))
    assert not weights_file(form).exists()
    whole = run(open_session(form, "cpu"), feed)
    assert all((parts[name] == whole[name]).all() for name in whole)
