"""Evening out takes the outliers from activations, and what is left of the error is predicted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.realize import realize_forms
from svd2onnx.graph.int8_matmul import to_integer
from svd2onnx.network.layers import discover, weight_of
from svd2onnx.planning.int8_error import divisors, input_rms, rounding_errors
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.schema import CompressedLayer, LayerForm, QuantSpec
from svd2onnx_runtime import open_session, run
from tests.svd2onnx.networks import Batch, Mlp, compress, seeded

SPEC = QuantSpec(8, 32)


def batches(seed: int, outlier: float = 1.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(256, 64, generator=generator)
    rows[:, 3] *= outlier
    return [{"x": row[None]} for row in rows]


def test_divisors_have_a_geometric_mean_of_one_and_even_out() -> None:
    rms = torch.tensor([1.0, 100.0, 4.0, 0.0], dtype=torch.float64)
    d = divisors(rms)
    assert d.log().mean() == pytest.approx(0, abs=1e-6)
    assert d[1] / d[0] == pytest.approx(10)
    assert d[3] > 0


def test_the_second_factor_sees_what_the_first_makes_of_the_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator, dtype=torch.float64) + 0.3
    statistics = LayerStatistics(500, x.mean(0), torch.cov(x.T, correction=0))
    form = LayerForm(rank=32, factors=SPEC)
    (layer,) = realize_forms(torch.randn(96, 64, generator=generator), [form], None)
    rms = input_rms(layer, statistics)
    assert torch.allclose(rms["right"], x.square().mean(0).sqrt())
    assert layer.right is not None
    handed = x @ layer.right.dequantize().double().T
    assert torch.allclose(rms["left"], handed.square().mean(0).sqrt())
    assert input_rms(layer, None) == {}


@pytest.mark.parametrize("rank", [0, 32])
@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_the_error_of_int8_activations_is_predicted(outlier: float, rank: int, tmp_path: Path) -> None:
    """One layer of 8 bits in int8, and in float, on inputs that no prediction has seen."""
    network = seeded(Mlp)
    fit, judging, unseen = batches(1, outlier), batches(2, outlier), batches(3, outlier)
    sites = discover(network, fit[0])
    statistics = calibrate(network, sites, fit, "mse", judging)
    whole = compress(network, fit, SPEC, rank=rank)
    compressed = replace(whole, statistics=statistics)
    site = next(site for site in sites if site.name == "first")
    layer: CompressedLayer = whole.layers["first"]
    (predicted,) = rounding_errors(weight_of(network, site), [layer], statistics["first"])
    plain, integer = tmp_path / "plain.onnx", tmp_path / "integer.onnx"
    compressed.export(plain)
    to_integer(plain, integer, {"first": layer}, statistics)
    measured = difference(integer, plain, unseen)
    assert predicted == pytest.approx(measured, rel=0.4)


def difference(path: Path, reference: Path, batches: Sequence[Batch]) -> float:
    """The mean relative squared error of one graph against another, both as they are written."""
    sessions = [open_session(file, "cpu", strict=True) for file in (path, reference)]
    errors = []
    for batch in batches:
        y, expected = (next(iter(run(session, as_arrays(batch)).values())) for session in sessions)
        errors.append(np.square(y - expected).sum() / np.square(expected).sum())
    return float(np.mean(errors))


def test_without_data_the_error_is_that_of_normal_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4096, 64, generator=generator), torch.randn(96, 64, generator=generator)
    forms = [LayerForm(SPEC), LayerForm(rank=32, factors=SPEC)]
    dense, pair = rounding_errors(weight, list(realize_forms(weight, forms, None)), None)
    step = (x.max() - x.min()) / 255
    rounded = (x / step).round() * step
    relative = ((rounded - x) @ weight.T).square().sum() / (x @ weight.T).square().sum()
    assert dense == pytest.approx(float(relative), rel=0.3)
    assert pair == 2 * dense
