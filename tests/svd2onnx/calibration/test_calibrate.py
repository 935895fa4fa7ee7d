"""Moments equal numpy's on the joined inputs, however they come in batches; padding does not count."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from svd2onnx.calibration import calibrate as calibrating
from svd2onnx.calibration import passes
from svd2onnx.calibration.accumulation import SAMPLES
from svd2onnx.calibration.calibrate import calibrate, hold_out, probe_draws
from svd2onnx.calibration.passes import in_passes
from svd2onnx.calibration.probes import probe
from svd2onnx.network.layers import discover
from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import SourceError
from svd2onnx.values.schema import LayerSite
from tests.svd2onnx.networks import TiedLinears, Tokens, batches_of, seeded


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
    with pytest.raises(SourceError, match=r"^the network gives NaN or infinity on the calibration data"):
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


# With an objective: gradients.


class Pooled(nn.Module):
    """x [batch, length, 64] -> [batch, 64], the mean over all positions, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x)).mean(1)


def probed_by_hand(network: nn.Module, batch: Batch, objective: str, seed: int = 0) -> tuple[Tensor, int]:
    """Gradients at the outputs of ``inner`` [batch, length, out] for the first probe of ``seed``."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = network.inner.register_forward_hook(keep)
    output = network(batch["x"])
    handle.remove()
    value, count = probe(objective, output, batch, torch.Generator().manual_seed(seed))
    return torch.autograd.grad(value, kept[0])[0], count


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("objective", ["cosine", "mse"])
def test_gradient_moments_are_those_of_the_definition(objective: str, masked: bool) -> None:
    """B = E[Gamma^T Gamma] and G = E[g g^T], over real positions alone: the padding is huge here."""
    network = seeded(Pooled)
    x = torch.randn(6, 5, 64, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < torch.tensor([[5], [2], [3], [1], [4], [5]])).long()
    batch = {"x": x}
    if masked:
        x[mask == 0] = 50
        batch["attention_mask"] = mask
    else:
        mask = torch.ones_like(mask)
    known = calibrate(network, discover(network, {"x": x}), [batch], objective)["inner"]
    gradients, count = probed_by_hand(network, batch, objective)
    assert count == 6
    mean = x[mask.bool()].mean(0)
    gammas = [
        g[m.bool()].T.double() @ (row[m.bool()] - mean).double()
        for g, row, m in zip(gradients, x, mask, strict=True)
    ]
    expected = sum(gamma.T @ gamma for gamma in gammas) / count
    torch.testing.assert_close(
        known.gradient_moment.double(), expected, rtol=1e-4, atol=1e-4 * expected.max()
    )
    g = gradients[mask.bool()]
    torch.testing.assert_close(known.output_moment, g.T @ g / count, rtol=1e-4, atol=1e-6)
    assert known.probes == ()


def test_probes_are_the_held_out_rows_and_their_gradients() -> None:
    """Three draws of one batch; held-out batches count in no moment."""
    network = seeded(Pooled)
    generator = torch.Generator().manual_seed(0)
    fit = {"x": torch.randn(4, 5, 64, generator=generator)}
    x = torch.randn(3, 5, 64, generator=generator)
    mask = (torch.arange(5) < torch.tensor([[5], [2], [0]])).long()
    held = {"x": x, "attention_mask": mask}
    sites = discover(network, {"x": x})
    known = calibrate(network, sites, [fit], "mse", [held], draws=3)["inner"]
    alone = calibrate(network, sites, [fit], "mse")["inner"]
    for name in ("count", "mean", "covariance", "output_moment", "gradient_moment"):
        assert torch.equal(torch.as_tensor(getattr(known, name)), torch.as_tensor(getattr(alone, name)))
    assert len(known.probes) == 3
    for probes in known.probes:
        assert probes.lengths == (5, 2, 0)
        assert probes.count == 3
        assert probes.g.shape == (7, 96)
        torch.testing.assert_close(probes.x.float(), x[mask.bool()], rtol=0.01, atol=0)
    assert not torch.equal(known.probes[0].g, known.probes[1].g)


class Chain(nn.Module):
    """Layers whose inputs differ, and are freed at once where nothing needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) + 0.1
        return x


class InPlace(nn.Module):
    """A residual stream that is added to in place between two layers, and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x += self.first(x)
        x += torch.relu_(self.second(x))
        return self.third(x)


@pytest.mark.parametrize("objective", [None, "mse"])
@pytest.mark.parametrize("kind", [Chain, InPlace])
def test_the_inputs_of_one_layer_are_not_those_of_another(
    kind: type[nn.Module], objective: str | None
) -> None:
    network = seeded(kind)
    batches = [{"x": torch.randn(n, 64, generator=torch.Generator().manual_seed(n))} for n in (9, 5)]
    seen: dict[nn.Module, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.setdefault(m, []).append(args[0].clone()))
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    for batch in batches:
        network(batch["x"])
    for handle in handles:
        handle.remove()
    held = batches[1:] if objective else []
    known = calibrate(network, discover(network, batches[0]), batches, objective, held)
    for name, own in known.items():
        inputs = seen[network.get_submodule(name)]
        assert_moments(own, torch.cat(inputs).numpy())
        for probes in own.probes:
            torch.testing.assert_close(probes.x.float(), inputs[1], rtol=0.01, atol=1e-6)


class Watched(Chain):
    """Keeps weak references to what flows through it, a residual stream that is added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.1
            x += torch.tanh(layer(x))
            self.seen.append(weakref.ref(x))
        return x


@pytest.mark.parametrize("objective", [None, "mse"])
def test_no_graph_outlives_its_batch(objective: str | None) -> None:
    """Without waiting for the garbage collector: graphs are large."""
    network = seeded(Watched)
    batches = [{"x": torch.randn(4, 64, generator=torch.Generator().manual_seed(0))}] * 3
    sites = discover(network, batches[0])
    network.seen.clear()
    gc.collect()
    gc.disable()
    try:
        known = calibrate(network, sites, batches, objective, batches if objective else ())
        assert len(network.seen) == 8 * (6 if objective else 3)
        assert [reference() for reference in network.seen] == [None] * len(network.seen)
    finally:
        gc.enable()
    assert known


def test_layers_that_no_gradient_reaches_have_none() -> None:
    network = seeded(Tokens)
    batches = batches_of(network)
    known = calibrate(network, discover(network, batches[0]), batches, "mse", batches)
    assert {name for name, own in known.items() if own.probes} == {
        "embedded.table",
        "embedded.linear",
        "sequences.first",
        "sequences.second",
    }
    assert known["tied.middle"].output_moment is None
    assert known["tied.middle"].covariance is not None


class NoGrad(One):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Inference(One):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Argmax(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).argmax(-1)


class Rounded(One):
    """Its gradients are there, and 0."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).round()


@pytest.mark.parametrize("kind", [NoGrad, Inference, Argmax, Rounded])
def test_networks_that_let_no_gradient_through_are_refused(kind: type[One]) -> None:
    batches = [{"x": torch.randn(4, 64, generator=torch.Generator().manual_seed(0))}]
    with pytest.raises(SourceError, match="no gradients reach the layers"):
        calibrate(seeded(kind), ONE, batches, "mse", batches)
    assert_moments(calibrate(seeded(kind), ONE, batches)["linear"], batches[0]["x"].numpy())


class Distances(One):
    """Those that are ruled out are infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(x.abs() > 1, float("inf"))


def test_masks_of_plus_infinity_are_left_out_but_leave_no_distribution() -> None:
    batches = [{"x": torch.randn(4, 64, generator=torch.Generator().manual_seed(0))}]
    known = calibrate(seeded(Distances), ONE, batches, "mse", batches)["linear"].output_moment
    assert known is not None
    assert bool(known.isfinite().all())
    assert float(known.abs().max()) > 0
    with pytest.raises(SourceError, match="NaN or infinity"):
        calibrate(seeded(Distances), ONE, batches, "kl", batches)


def test_an_objective_needs_a_layer_to_look_at() -> None:
    skipped = [LayerSite("linear", "linear", (64, 64), skip_reason="matched by --exclude")]
    assert calibrate(seeded(One), skipped, [{"x": torch.zeros(2, 64)}], "mse") == {}


# Which batches fit and which judge.


@given(st.integers(2, 40))
def test_every_batch_fits_or_judges(count: int) -> None:
    batches = [{"x": torch.full((1,), i)} for i in range(count)]
    fit, judge = hold_out(batches)
    numbers = [[int(batch["x"]) for batch in part] for part in (fit, judge)]
    assert sorted(itertools.chain(*numbers)) == list(range(count))
    assert len(judge) == -(-(count - 1) // 6)
    assert fit


@given(st.integers(2, 40))
def test_a_single_batch_is_split_by_its_rows(rows: int) -> None:
    batch = {"x": torch.arange(rows), "y": torch.arange(2 * rows).reshape(rows, 2)}
    (fit,), (judge,) = hold_out([batch])
    for name, tensor in batch.items():
        assert torch.equal(torch.cat([fit[name], judge[name]]), tensor)
    assert len(judge["x"]) == max(1, rows // 6)


@pytest.mark.parametrize(
    "batch",
    [{"x": torch.zeros(1, 3)}, {"x": torch.zeros(4, 3), "scale": torch.zeros(2)}],
    ids=["row", "shared"],
)
def test_a_batch_that_cannot_be_split_serves_for_both(batch: Batch) -> None:
    assert hold_out([batch]) == ([batch], [batch])


def test_few_samples_are_probed_more_often() -> None:
    assert [probe_draws([{"x": torch.zeros(rows, 2)}] * 2) for rows in (1, 100, 128, 129, 256, 4000)] == [
        *(2, 2, 2, 2, 1, 1)
    ]


def test_probes_stop_where_they_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    network = seeded(Tokens)
    batches = batches_of(network)
    sites = discover(network, batches[0])
    for limit, count in ((1 << 30, 2), (1, 1)):
        monkeypatch.setattr(calibrating, "MOST_PROBE_BYTES", limit)
        statistics = calibrate(network, sites, batches, "cosine", batches)
        assert {len(own.probes) for own in statistics.values() if own.probes} == {count}


@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 5), (1000, [2, 1, 2])])
def test_small_batches_give_the_same_moments(
    most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "MOST_PASS_BYTES", 1)
    monkeypatch.setattr(passes, "FEW_NUMBERS", most)
    network = seeded(Masked)
    batches = [
        {"x": torch.randn(3, 7, 64), "attention_mask": torch.ones(3, 7)},
        {"x": torch.randn(2, 5, 64), "attention_mask": torch.ones(2, 5)},
    ]
    rows = in_passes(network, {network.tokens, network.pooled}, batches, {"x": 0, "attention_mask": 0})
    assert [len(batch["x"]) for batch in rows] == sizes
    assert all(batch["attention_mask"].shape == batch["x"].shape[:2] for batch in rows)
    sites = discover(network, batches[0])
    together, alone = (calibrate(network, sites, own, "mse") for own in (batches, rows))
    for name, expected in together.items():
        assert alone[name].count == expected.count
        torch.testing.assert_close(alone[name].mean, expected.mean)
        torch.testing.assert_close(alone[name].covariance, expected.covariance, rtol=1e-5, atol=1e-7)


class ThrowsAway(nn.Module):
    """x [batch, length, 64], pad [batch, length] -> [batch, 64]: padding is NaN for a while, and then 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        h = self.second(torch.where(pad[..., None], torch.nan, torch.tanh(self.first(x))))
        return torch.where(pad[..., None], 0.0, h).sum(1)


def test_rows_that_are_nan_and_thrown_away_are_left_out() -> None:
    torch.manual_seed(0)
    network, x = ThrowsAway().eval().requires_grad_(False), torch.randn(4, 6, 64)
    pad = torch.zeros(4, 6, dtype=torch.bool)
    pad[:, 4:] = True
    whole = [{"x": x, "pad": pad}]
    short = [{"x": x[:, :4], "pad": pad[:, :4]}]
    sites = discover(network, whole[0])
    for name in ("first", "second"):
        found, expected = (calibrate(network, sites, own, "mse", own)[name] for own in (whole, short))
        assert found.output_moment is not None
        torch.testing.assert_close(found.output_moment, expected.output_moment, rtol=1e-4, atol=1e-6)
        assert found.count == (16 if name == "second" else 24)
