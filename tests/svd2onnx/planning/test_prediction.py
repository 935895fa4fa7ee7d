"""Predicted errors are those of the definition, by either path, and those that are measured."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedRows
from svd2onnx.calibration.network_error import mean_error
from svd2onnx.network.layers import discover
from svd2onnx.planning import prediction as score
from svd2onnx.planning.prediction import ErrorPredictor, RelativeChange
from tests.svd2onnx.networks import Embedded, Mlp, Sequences, batches_of, seeded

LENGTHS = ((3, 0, 5, 1), (1500, 700))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def probed(seed: int, lengths: tuple[int, ...], ids: bool) -> ProbedRows:
    rows = sum(lengths)
    x = torch.arange(rows) * 7 % 20 if ids else normal(seed, rows, 16).bfloat16()
    return ProbedRows(x, normal(seed + 1, rows, 24).bfloat16(), lengths, count=len(lengths))


def statistics(ids: bool = False) -> LayerStatistics:
    probes = tuple(probed(10 * i, lengths, ids) for i, lengths in enumerate(LENGTHS))
    return LayerStatistics(10, None if ids else normal(5, 16).double(), probes=probes)


def by_definition(own: LayerStatistics, change: Tensor) -> float:
    """1/2 mean over samples of ( sum_t g_t . D (x_t - mu) )^2, in float64; one-hot inputs of a table."""
    total, count = 0.0, 0
    for probes in own.probes:
        if own.mean is None:
            outputs = change.double()[probes.x]
        else:
            outputs = (probes.x.double() - own.mean) @ change.double().T
        products = (outputs * probes.g.double()).sum(1)
        total += sum(float(part.sum()) ** 2 for part in products.split(probes.lengths))
        count += probes.count
    return total / (2 * count)


def test_predictions_are_those_of_the_definition() -> None:
    own, changes = statistics(), [normal(seed, 24, 16) for seed in range(3)]
    expected = [by_definition(own, change) for change in changes]
    assert ErrorPredictor(own)(changes) == pytest.approx(expected, rel=1e-4)


def test_tables_count_the_rows_that_are_looked_up() -> None:
    own, changes = statistics(ids=True), [normal(seed, 20, 24) for seed in range(3)]
    expected = [by_definition(own, change) for change in changes]
    assert ErrorPredictor(own)(changes) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("together", [1, 24 * 16, 24 * 16 * 3], ids=["rows", "one at a time", "three"])
def test_layers_of_any_size_are_predicted_alike(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """With gammas of some samples at a time, or none where one would be too large."""
    own, changes = statistics(), [normal(seed, 24, 16) for seed in range(3)]
    expected = ErrorPredictor(own)(changes)
    monkeypatch.setattr(score, "_TOGETHER", together)
    assert ErrorPredictor(own)(changes) == pytest.approx(expected, rel=1e-5)


def test_errors_grow_with_the_square_of_the_change() -> None:
    change = normal(0, 24, 16)
    memoize, twice, none = ErrorPredictor(statistics())([change, 2 * change, torch.zeros(24, 16)])
    assert twice == pytest.approx(4 * memoize, rel=1e-5)
    assert none == 0


def test_without_probes_there_is_no_prediction() -> None:
    with pytest.raises(ValueError, match="hold no probes"):
        ErrorPredictor(LayerStatistics(3, torch.zeros(16).double()))


def test_without_data_it_is_the_relative_change() -> None:
    weight = normal(0, 24, 16)
    assert RelativeChange(weight)([weight, weight / 2, 0 * weight]) == pytest.approx([1, 0.25, 0])
    assert RelativeChange(torch.zeros(3, 3))([torch.zeros(3, 3)]) == [0]


class Attention(nn.Module):
    """ids [batch, length] -> [batch, 32]: positions without a batch axis, and one input for three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(128, 64), nn.Embedding(80, 64)
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))
        self.other, self.head = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids) + self.places(torch.arange(ids.shape[1]).unsqueeze(0))
        query, key, value = self.query(h), self.key(h), self.value(h)
        mixed = (query @ key.mT / 8).softmax(-1) @ value
        h += mixed  # in place, before another layer reads it
        return self.head(torch.tanh(self.other(h)))


def attention_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"ids": torch.randint(0, 128, (24, 6), generator=generator)}]


CASES: dict[str, tuple[type[nn.Module], Callable[[], list[dict[str, Tensor]]], str, int]] = {
    "vectors, mse": (Mlp, lambda: [{"x": normal(1, 64, 64)}], "mse", 60),
    "sequences, cosine": (Sequences, lambda: [{"x": normal(1, 32, 5, 112)}], "cosine", 30),
    "tokens, kl": (Embedded, lambda: batches_of(seeded(Embedded)), "kl", 150),
    "attention, cosine": (Attention, attention_batches, "cosine", 200),
}


@pytest.mark.parametrize(("kind", "batches", "objective", "draws"), CASES.values(), ids=CASES)
def test_every_layer_is_predicted_as_it_measures(
    kind: type[nn.Module], batches: Callable[[], list[dict[str, Tensor]]], objective: str, draws: int
) -> None:
    """A small random change of each weight alone, its mean effect taken up by the bias."""
    network, data = seeded(kind), batches()
    sites = [site for site in discover(network, data[0]) if site.skip_reason is None]
    known = calibrate(network, sites, data, objective, data, draws=draws)
    assert len(sites) >= 2
    for number, site in enumerate(sites):
        weight = network.get_submodule(site.name).weight
        change = normal(number, *site.shape) * weight.std() * 0.02
        (predicted,) = ErrorPredictor(known[site.name])([change])
        other = seeded(kind)
        module = other.get_submodule(site.name)
        module.weight -= change
        if known[site.name].mean is not None:
            shift = (change.double() @ known[site.name].mean).float()
            module.bias = nn.Parameter(shift if module.bias is None else module.bias + shift)
        measured = mean_error(network, other, data, objective)
        # Four standard errors: draws of the whole batch as one sample have the most, sqrt(2 / 200).
        assert predicted == pytest.approx(measured, rel=0.4 if site.name == "places" else 0.15), site.name
