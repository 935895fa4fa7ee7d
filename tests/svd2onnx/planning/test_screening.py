"""What is left out is no better a deal than what is kept."""

import pytest
import torch

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.realize import Realizer, realize_forms
from svd2onnx.compression.rounding import Curvature
from svd2onnx.planning.candidates import forms_of
from svd2onnx.planning.convex_hull import ConvexHull
from svd2onnx.planning.screening import realize_promising
from svd2onnx.values.schema import LayerSite

SHAPE = (192, 160)


def lowrank_weight(rank: int, noise: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    rows, columns = SHAPE
    left, right = (
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, columns, generator=generator),
    )
    return left @ right / rank**0.5 + noise * torch.randn(SHAPE, generator=generator)


def statistics_of(seed: int) -> LayerStatistics:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, SHAPE[1], generator=generator) * torch.rand(SHAPE[1], generator=generator)
    x = x @ torch.randn(SHAPE[1], SHAPE[1], generator=generator)
    g = torch.randn(2000, SHAPE[0], generator=generator) * torch.rand(SHAPE[0], generator=generator)
    mean = x.double().mean(0)
    covariance = x.double().T @ x.double() / len(x) - torch.outer(mean, mean)
    return LayerStatistics(len(x), mean, covariance, output_moment=g.T @ g / len(g))


@pytest.mark.parametrize(("rank", "noise"), [(20, 0.02), (40, 0.3), (160, 1.0)])
@pytest.mark.parametrize("calibrated", [True, False])
def test_what_is_left_out_is_above_the_hull(rank: int, noise: float, calibrated: bool) -> None:
    weight, statistics = lowrank_weight(rank, noise), statistics_of(rank) if calibrated else None
    forms = forms_of(LayerSite("a", "linear", SHAPE))
    kept = list(realize_promising(weight, forms, statistics, sweeps=1))
    every = {layer.form: layer for layer in realize_forms(weight, forms, statistics, sweeps=1)}
    judge = Realizer(weight, [], statistics)
    hull = ConvexHull()
    for layer in kept:
        hull.add(layer.stored_bytes, judge.loss(layer))
        assert torch.equal(layer.weight(), every[layer.form].weight())
    assert len(kept) < len(every)
    for form in set(every) - {layer.form for layer in kept}:
        assert form.factors
        assert hull.is_below(every[form].stored_bytes, 1.01 * judge.loss(every[form]))


def test_pairs_are_kept_where_the_weight_has_a_low_rank_and_not_where_it_has_none() -> None:
    forms = forms_of(LayerSite("a", "linear", SHAPE))
    plain = [form for form in forms if not form.factors]

    def kept(rank: int, noise: float) -> list[str]:
        found = realize_promising(lowrank_weight(rank, noise), forms, statistics_of(1), 1)
        return [str(layer.form) for layer in found if layer.form.factors]

    assert len(kept(20, 0.02)) >= 4
    assert len(kept(160, 1.0)) < (len(forms) - len(plain)) / 2


def test_losses_are_those_of_the_whole_change() -> None:
    weight, statistics = lowrank_weight(40, 0.3), statistics_of(3)
    forms = forms_of(LayerSite("a", "linear", SHAPE))
    realizer, curvature = Realizer(weight, forms, statistics, 1), Curvature.of(statistics)
    for form in forms:
        layer = realizer.layer(form)
        loss = realizer.loss(layer)
        assert loss == pytest.approx(curvature.loss(weight - layer.weight()), rel=1e-3)
        if form.factors and not form.dense:
            assert loss >= realizer.least_loss(form) * (1 - 1e-4)
