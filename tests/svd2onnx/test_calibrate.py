"""Moments equal numpy's on the joined inputs, however they come in batches; padding does not count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from svd2onnx.calibrate import SAMPLES, calibrate
from svd2onnx.errors import SourceError
from svd2onnx.layers import discover
from svd2onnx.schema import LayerSite
from tests.svd2onnx.networks import TiedLinears, seeded


class Masked(nn.Module):
    """x [batch, length, 64] and a mask that it ignores; its pooled layer sees [batch, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.pooled = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.pooled(self.tokens(x).mean(1))


class One(nn.Module):
    """x [rows, 64] -> [rows, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


ONE = [LayerSite("linear", "linear", (64, 64))]


def assert_moments(statistics, rows: np.ndarray) -> None:
    """Against numpy's on ``rows`` [n, in], in float64."""
    rows = rows.astype(np.float64)
    assert statistics.count == len(rows)
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-10, atol=1e-12)
    assert_covariance(statistics, rows)


def assert_covariance(statistics, rows: np.ndarray) -> None:
    """Centred batches are multiplied in float32: what rounds is the size of the deviations."""
    covariance = np.cov(rows.astype(np.float64), rowvar=False, bias=True)
    size = np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    assert (np.abs(statistics.covariance.numpy() - covariance) <= 2e-6 * size + 1e-12).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 2**16), st.floats(-20, 20))
def test_moments_do_not_depend_on_the_split_into_batches(sizes: list[int], seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 64, generator=generator) * torch.linspace(0.1, 3, 64) + shift
    batches = [{"x": part} for part in rows.split(sizes)]
    assert_moments(calibrate(seeded(One), ONE, batches)["linear"], rows.numpy())


def test_a_large_mean_does_not_drown_the_covariance() -> None:
    """The sum of squares minus the squared mean would lose 12 of 16 digits here."""
    rows = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)) + 1e4
    batches = [{"x": part} for part in rows.split(100)]
    statistics = calibrate(seeded(One), ONE, batches)["linear"]
    assert_covariance(statistics, rows.numpy())


def test_padding_is_left_out_where_inputs_are_laid_out_like_the_mask() -> None:
    network = seeded(Masked)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for length in (5, 9):
        x = torch.randn(4, length, 64, generator=generator)
        mask = (torch.arange(length) < torch.tensor([[length], [2], [3], [1]])).long()
        x[mask == 0] = 1e6
        batches.append({"x": x, "attention_mask": mask})
    statistics = calibrate(network, discover(network, batches[0]), batches)
    assert_moments(
        statistics["tokens"], np.concatenate([b["x"][b["attention_mask"].bool()] for b in batches])
    )
    assert float(statistics["tokens"].samples.abs().max()) < 1e3
    # One row for each batch entry: there is no padding to leave out.
    assert statistics["pooled"].count == 8


def test_shared_weights_gather_the_inputs_of_all_their_calls() -> None:
    network = seeded(TiedLinears)
    batch = {"x": torch.randn(10, 64, generator=torch.Generator().manual_seed(0))}
    statistics = calibrate(network, discover(network, batch), [batch])
    hidden = torch.relu(network.first(batch["x"]))
    assert list(statistics) == ["first"]
    assert_moments(statistics["first"], torch.cat([batch["x"], hidden]).numpy())


def test_inputs_by_keyword_count() -> None:
    class Keyword(One):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(input=x)

    batch = {"x": torch.randn(10, 64, generator=torch.Generator().manual_seed(0))}
    assert_moments(calibrate(seeded(Keyword), ONE, [batch])["linear"], batch["x"].numpy())


def test_samples_are_inputs_evenly_thinned() -> None:
    rows = torch.arange(3 * 4000.0).reshape(-1, 1).expand(-1, 64)
    batches = [{"x": part.contiguous()} for part in rows.split(500)]
    samples = calibrate(seeded(One), ONE, batches)["linear"].samples
    assert SAMPLES // 2 < len(samples) <= SAMPLES
    assert len(samples.unique(dim=0)) == len(samples)
    every_batch = (samples[:, 0] // 500).unique()
    assert len(every_batch) == len(batches)


def test_only_compressible_linears_are_gathered() -> None:
    skipped = [LayerSite("linear", "linear", (64, 64), skip_reason="matched by --exclude")]
    assert calibrate(seeded(One), skipped, [{"x": torch.zeros(2, 64)}]) == {}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    x = torch.zeros(4, 64)
    x[2, 3] = bad
    with pytest.raises(SourceError, match=r"^the inputs of layer 'linear' are missing or not finite"):
        calibrate(seeded(One), ONE, [{"x": torch.zeros(4, 64)}, {"x": x}])


def test_a_network_that_fails_leaves_no_hook_behind() -> None:
    class Failing(One):
        def forward(self, x: Tensor) -> Tensor:
            self.linear(x)
            raise RuntimeError("after the layer")

    network = seeded(Failing)
    with pytest.raises(RuntimeError, match="after the layer"):
        calibrate(network, ONE, [{"x": torch.zeros(4, 64)}])
    assert not network.linear._forward_pre_hooks
