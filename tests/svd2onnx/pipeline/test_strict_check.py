"""A file that computes something else than the compressed network does not pass."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from svd2onnx.graph.export import export_float
from svd2onnx.pipeline.strict_check import TOLERANCE, check_strict
from svd2onnx.values.errors import VerificationError
from svd2onnx.values.schema import QuantSpec
from tests.svd2onnx.networks import Compressed, Sequences, batches_of, compress, seeded

OBJECTIVES = ("cosine", "kl", "mse")


@pytest.fixture(scope="module")
def compressed() -> Compressed:
    network = seeded(Sequences)
    return compress(network, batches_of(network), QuantSpec(4, 32))


@pytest.fixture(scope="module")
def graph(compressed: Compressed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "graph.onnx"
    compressed.export(path)
    return path


def check(path: Path, compressed: Compressed, objective: str = "mse"):
    return check_strict(path, compressed.network, compressed.original, compressed.batches, objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_faithful_graph_passes_with_its_fidelity(
    graph: Path, compressed: Compressed, objective: str
) -> None:
    result = check(graph, compressed, objective)
    assert 0 <= result.relative_error <= TOLERANCE
    assert result.batches == 2
    assert 0.9 < result.fidelity < 1
    with torch.inference_mode():
        pairs = [(compressed.network(**batch), compressed.original(**batch)) for batch in compressed.batches]
    if objective == "mse":
        errors = [
            ((ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2))) for ours, theirs in pairs
        ]
    elif objective == "cosine":
        errors = [1 - torch.cosine_similarity(ours, theirs, dim=-1).flatten() for ours, theirs in pairs]
    else:
        logs = [(ours.log_softmax(-1), theirs.log_softmax(-1)) for ours, theirs in pairs]
        errors = [(theirs.exp() * (theirs - ours)).sum(-1).flatten() for ours, theirs in logs]
    mean = float(torch.cat(errors).double().mean())
    expected = np.exp(-mean) if objective == "kl" else 1 - mean
    assert result.fidelity == pytest.approx(expected, abs=1e-5)


def rescale(model: onnx.ModelProto) -> None:
    """The scale of one block falls by a half."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".scale"))
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] //= 2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def flip_code(model: onnx.ModelProto) -> None:
    """The lowest bit of one byte of int4 codes."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".codes"))
    raw = bytearray(tensor.raw_data)
    raw[0] ^= 1
    tensor.raw_data = bytes(raw)


def poison(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".unit"))
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def add_output(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Neg", [output.name], ["negative"]))
    negative = model.graph.output.add()
    negative.CopyFrom(output)
    negative.name = "negative"


def fold_batch(model: onnx.ModelProto) -> None:
    """Another shape, equal values."""
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Flatten", [output.name], ["flat"]))
    output.CopyFrom(helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["rows", "columns"]))


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (rescale, "differs from the compressed network by"),
        (flip_code, "differs from the compressed network by"),
        (poison, "not finite"),
        (add_output, "has 2 outputs and the network 1"),
        (fold_batch, "where the network gives shape"),
    ],
)
def test_a_graph_that_was_changed_is_refused(
    graph: Path,
    compressed: Compressed,
    tmp_path: Path,
    tamper: Callable[[onnx.ModelProto], None],
    expected: str,
) -> None:
    model = onnx.load(graph)
    tamper(model)
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    with pytest.raises(VerificationError) as caught:
        check(path, compressed)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_graph_of_another_network_is_refused(compressed: Compressed, tmp_path: Path) -> None:
    """The float network itself: close, but it is not what was compressed."""
    path = tmp_path / "float.onnx"
    shapes = {"x": {0: "batch", 1: "length"}}
    export_float(compressed.original, compressed.batches[0], shapes, path)
    with pytest.raises(VerificationError, match="differs from the compressed network"):
        check(path, compressed)


def test_every_output_of_a_network_is_compared(tmp_path: Path) -> None:
    class Several(nn.Module):
        """x [batch, 64] -> (first [batch, 64], {"second": [batch, 96]})."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 96)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.first(x), {"second": self.second(x)}

    torch.manual_seed(0)
    result = compress(seeded(Several), [{"x": torch.randn(6, 64)}], QuantSpec(4, 32))
    path = tmp_path / "several.onnx"
    result.export(path)
    check(path, result)
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if list(t.dims) == [96])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(model, path)
    with pytest.raises(VerificationError, match="differs"):
        check(path, result)


def test_padding_does_not_count_in_the_fidelity_of_tokens(tmp_path: Path) -> None:
    """With objective "kl" an attention mask chooses the tokens: what padding gives is no one's concern."""

    class Padded(nn.Module):
        """Logits [batch, length, 64] of x [batch, length, 64]; padding gets a thousand times the weight."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.linear(x) * torch.where(attention_mask.bool(), 1.0, 1000.0)[..., None]

    torch.manual_seed(0)
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[2:, 3:] = 0
    batches = [{"x": torch.randn(4, 6, 64), "attention_mask": mask}]
    result = compress(seeded(Padded), batches, QuantSpec(4, 32))
    path = tmp_path / "padded.onnx"
    result.export(path)
    assert check(path, result, "kl").fidelity > 0.98


class Masked(nn.Module):
    """x [batch, 64] -> scores [batch, 64], of which those that x says get ``value``."""

    value = float("-inf")

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(x > 1, self.value)


@pytest.mark.parametrize("value", [float("-inf"), -1e9])
def test_masked_values_are_equal_and_hide_nothing(tmp_path: Path, value: float) -> None:
    torch.manual_seed(0)
    network = seeded(Masked)
    network.value = value
    result = compress(network, [{"x": torch.randn(6, 64)}], QuantSpec(4, 32))
    path = tmp_path / "masked.onnx"
    result.export(path)
    (own,) = check(path, result).outputs
    assert 0.9 < own.fidelity < 0.99999
    assert 0.1 < own.masked < 0.25
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if list(t.dims) == [64])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))
    onnx.save(model, path)
    with pytest.raises(VerificationError, match="differs from the compressed network"):
        check(path, result)


@pytest.mark.parametrize("other", [float("inf"), float("nan"), -1e9])
def test_infinities_must_be_equal(tmp_path: Path, other: float) -> None:
    torch.manual_seed(0)
    result = compress(seeded(Masked), [{"x": torch.randn(6, 64)}], QuantSpec(4, 32))
    path = tmp_path / "masked.onnx"
    result.export(path)
    result.network.value = other
    with pytest.raises(VerificationError, match="infinite values must be equal in both, and none may be NaN"):
        check(path, result)


def test_nan_does_not_equal_nan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = compress(seeded(Masked), [{"x": torch.randn(6, 64)}], QuantSpec(4, 32))
    result.network.value = float("nan")
    path = tmp_path / "masked.onnx"
    result.export(path)
    with pytest.raises(VerificationError, match="none may be NaN"):
        check(path, result)
