"""Retraining lowers the error on data it has not seen, and what it gives back can be stored as before."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.compression.lowrank import factorize
from svd2onnx.compression.quantize import quantize
from svd2onnx.network.layers import discover
from svd2onnx.network.rewrite import rewrite
from svd2onnx.retraining.recover import Rates, Recovered, recover
from svd2onnx.retraining.straight_through import TrainedTensor
from svd2onnx.retraining.student import Student
from svd2onnx.retraining.teacher import Teacher, error_gradient
from svd2onnx.values.errors import PlanError, SourceError
from svd2onnx.values.schema import CompressedLayer, LayerForm, LayerSite, QuantSpec
from svd2onnx_runtime import sample_errors
from tests.svd2onnx.networks import (
    Batch,
    CalledTwice,
    Compressed,
    Images,
    Mlp,
    Sequences,
    TiedHead,
    TiedLinears,
    Tokens,
    Vectors,
    batches_of,
    compress,
    seeded,
)
from tests.svd2onnx.stored_networks import Experts, Recurrent, stored_batches

COARSE = QuantSpec(2, 32)
FORMS = {
    "dense": LayerForm(COARSE),
    "pair": LayerForm(rank=32, factors=QuantSpec(4, 32)),
    "both": LayerForm(COARSE, 16, QuantSpec(4, 16)),
    "none": LayerForm(),
}


class Behind(nn.Module):
    """x [batch, 6, 40] -> [batch, 6, 48]: stored weights behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.recurrent = nn.Linear(40, 40), Recurrent()

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(self.linear(x))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On networks this small a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(network: nn.Module, count: int = 12) -> list[Batch]:
    """Batches of 60 vectors or 25 sequences."""

    def joined(seeds: range) -> Batch:
        parts = [batches_of(network, seed)[0] for seed in seeds]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return [joined(range(100 * i, 100 * i + 5)) for i in range(count)]


def retrained(result: Compressed, objective: str = "mse", steps: int = 60, **options: object) -> Recovered:
    return recover(
        result.original, result.sites, result.layers, data(result.original), objective, steps, **options
    )


def plain(weight: Tensor, form: LayerForm, mean: Tensor | None = None) -> CompressedLayer:
    """Rounded to nearest, so that retraining has something to do; ``mean`` [in] gives a shift of the bias."""
    dense = quantize(weight, form.dense) if form.dense else None
    layer = CompressedLayer((weight.shape[0], weight.shape[1]), dense)
    if form.factors:
        rest = weight - layer.weight()
        left, right = factorize(rest).truncate(form.rank).quantize(form.factors)
        layer = replace(layer, left=left, right=right)
    if mean is None:
        return layer
    return replace(layer, bias_shift=((weight - layer.weight()).double() @ mean).float())


def compressed(kind: type[nn.Module], form: LayerForm = FORMS["dense"]) -> Compressed:
    """Every Linear of a network stored as ``form``, its tables at 2 bits."""
    network = seeded(kind)
    result = compress(network, data(network), COARSE)
    layers = {
        site.name: plain(network.get_submodule(site.name).weight, form, result.statistics[site.name].mean)
        if site.kind == "linear"
        else result.layers[site.name]
        for site in result.sites
        if site.name in result.layers
    }
    return replace(result, layers=layers, network=rewrite(network, result.sites, layers))


def held_out_error(recovered: Recovered, result: Compressed, objective: str) -> float:
    """The error on batches that neither retraining nor the choice of its state has seen."""
    network = rewrite(recovered.model, result.sites, recovered.layers)
    errors = []
    with torch.no_grad():
        for batch in batches_of(result.original, seed=9999):
            wanted, found = (
                torch.utils._pytree.tree_leaves(model(**batch))[0].numpy()
                for model in (result.original, network)
            )
            errors.append(sample_errors(objective, wanted, found))
    return float(np.concatenate(errors).mean())


def assert_storable(before: Mapping[str, CompressedLayer], after: Mapping[str, CompressedLayer]) -> None:
    assert list(after) == list(before)
    for name, layer in after.items():
        assert layer.form == before[name].form
        assert layer.stored_bytes == before[name].stored_bytes
        for part in ("dense", "left", "right"):
            old, new = getattr(before[name], part), getattr(layer, part)
            assert (old is None) == (new is None)
            if new is not None:
                low, high = new.spec.code_range
                assert new.codes.dtype == torch.int8
                assert low <= int(new.codes.min()) <= int(new.codes.max()) <= high
                assert new.codes.shape == old.codes.shape
                assert (new.scale.dtype, new.scale.shape) == (old.scale.dtype, old.scale.shape)
                assert new.unit is old.unit or torch.equal(new.unit, old.unit)
                assert bool(new.steps.isfinite().all())
                assert not bool((new.scale == 0).any())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Mlp, Sequences], ids=["biases", "plain"])
def test_unseen_error_falls_and_the_result_is_storable(kind: type[nn.Module], form: str) -> None:
    result = compressed(kind, FORMS[form])
    recovered = retrained(result, rates=Rates(0.015, 0.004, 1e-3))  # for networks of a few small layers
    assert_storable(result.layers, recovered.layers)
    start = Recovered(result.original, dict(result.layers), 0, 0, 0)
    before, after = (held_out_error(r, result, "mse") for r in (start, recovered))
    assert recovered.steps_run == 60
    if form == "none":  # nothing but the mean is left to learn, and the bias shift has it already
        assert after <= before * 1.01
    else:
        gain = 0.99 if form == "pair" else 0.95  # a truncated SVD leaves little to gain on random weights
        assert recovered.after < gain * recovered.before
        assert after < gain * before


@pytest.mark.parametrize("objective", ["cosine", "kl", "mse"])
def test_each_objective_falls(objective: str) -> None:
    result = compressed(TiedHead)
    recovered = retrained(result, objective)
    assert recovered.after < 0.9 * recovered.before
    assert held_out_error(recovered, result, objective) == pytest.approx(recovered.after, rel=0.5)


@pytest.mark.parametrize("kind", [Vectors, Tokens])
def test_the_state_given_back_is_the_one_that_was_measured(kind: type[nn.Module]) -> None:
    """Through every network at once: ties, a module called twice, tables, partial blocks."""
    result = compressed(kind)
    batches = data(result.original, 4)
    recovered = recover(result.original, result.sites, result.layers, batches, "mse", 40)
    assert recovered.after < recovered.before
    network = rewrite(recovered.model, result.sites, recovered.layers)
    held_out = batches[2]
    with torch.no_grad():
        wanted, found = (
            torch.utils._pytree.tree_leaves(model(**held_out))[0].numpy()
            for model in (result.original, network)
        )
    assert sample_errors("mse", wanted, found).mean() == pytest.approx(recovered.after, rel=1e-4)


def test_without_steps_or_effect_all_stays_as_it_was() -> None:
    result = compressed(Mlp)
    for steps, rates in ((0, Rates()), (20, Rates(0.0, 0.0, 0.0)), (20, Rates(10.0, 10.0, 10.0))):
        recovered = retrained(result, steps=steps, rates=rates)
        assert (recovered.before, recovered.steps_run) == (recovered.after, steps)
        assert recovered.layers == dict(result.layers)
        state = recovered.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in result.original.state_dict().items())


def test_stops_when_three_checks_are_worse_and_not_when_nothing_changes() -> None:
    result = compressed(Mlp)
    assert retrained(result, steps=200, rates=Rates(10.0, 10.0, 10.0)).steps_run == 60
    assert retrained(result, steps=100, rates=Rates(0.0, 0.0, 0.0)).steps_run == 100


def test_tables_and_the_network_given_stay_bit_for_bit() -> None:
    result = compressed(TiedHead)
    layers = {"middle": result.layers["middle"]}
    before = copy.deepcopy(result.original.state_dict())
    recovered = recover(result.original, result.sites, layers, data(result.original), "mse", 40)
    after = recovered.model.state_dict()
    assert recovered.after < recovered.before
    assert torch.equal(after["table.weight"], before["table.weight"])
    assert recovered.model.head.weight is recovered.model.table.weight
    assert not torch.equal(after["middle.bias"], before["middle.bias"])
    assert all(torch.equal(result.original.state_dict()[name], before[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in result.original.parameters())
    stored = retrained(result, steps=20)
    assert stored.layers["table"] is result.layers["table"]


def test_tied_linears_share_codes_and_keep_biases_of_their_own() -> None:
    result = compressed(TiedLinears)
    recovered = retrained(result)
    network = rewrite(recovered.model, result.sites, recovered.layers)
    assert list(recovered.layers) == ["first"]
    assert recovered.layers["first"].bias_shift is None
    assert torch.equal(network.first.dense, network.second.dense)
    assert not torch.equal(network.first.bias, network.second.bias)


def test_a_linear_without_bias_keeps_its_shift() -> None:
    result = compressed(Sequences)
    recovered = retrained(result)
    for name, layer in result.layers.items():
        assert not torch.equal(recovered.layers[name].bias_shift, layer.bias_shift)
    bare = {name: replace(layer, bias_shift=None) for name, layer in result.layers.items()}
    recovered = recover(result.original, result.sites, bare, data(result.original), "mse", 20)
    assert all(layer.bias_shift is None for layer in recovered.layers.values())


def test_one_seed_gives_one_result() -> None:
    result = compressed(Mlp)
    first, second, other = (retrained(result, steps=30, seed=seed) for seed in (3, 3, 4))
    assert first.after == second.after
    assert all(torch.equal(first.layers[n].dense.codes, second.layers[n].dense.codes) for n in result.layers)
    assert any(
        not torch.equal(first.layers[n].dense.steps, other.layers[n].dense.steps) for n in result.layers
    )


def test_stored_weights_are_trained() -> None:
    """Under the linear layer of an LSTM, whose outputs may come in bfloat16."""
    network = seeded(Behind)
    batches = [stored_batches(network.recurrent, seed)[0] for seed in range(8)]
    result = compress(network, batches, QuantSpec(2, 64))
    recovered = recover(network, result.sites, result.layers, batches, "mse", 40)
    assert recovered.after < 0.9 * recovered.before
    layers = [result.layers[name] for name in ("recurrent.inputs.0", "recurrent.gru_hidden")]
    for before, name in zip(layers, ("recurrent.inputs.0", "recurrent.gru_hidden"), strict=True):
        after = recovered.layers[name]
        assert not torch.equal(after.weight(), before.weight())
        assert (after.kind, after.form, after.stored_bytes) == ("stored", before.form, before.stored_bytes)


def test_the_student_starts_as_the_compressed_network() -> None:
    for kind in (Vectors, Tokens):
        result = compressed(kind, FORMS["both"])
        student = Student(result.original, result.sites, result.layers)
        batch = batches_of(result.original)[0]
        with torch.no_grad():
            torch.testing.assert_close(student.network(**batch), result.network(**batch))
        snapshot = student.snapshot()
        for name, layer in result.layers.items():
            assert torch.equal(snapshot.layers[name].weight(), layer.weight())


def test_the_student_has_stored_weights_in_their_shapes() -> None:
    network = seeded(Experts)
    batches = stored_batches(network)
    result = compress(network, batches, QuantSpec(4, 32))
    student = Student(network, result.sites, result.layers)
    with torch.no_grad():
        torch.testing.assert_close(student.network(**batches[0]), result.network(**batches[0]))


def test_gradients_reach_codes_scales_biases_and_norms_alone() -> None:
    result = compressed(Sequences, FORMS["both"])
    student = Student(result.original, result.sites, result.layers)
    student.network(**batches_of(result.original)[0]).square().sum().backward()
    student.pull()
    trained = {name for name, p in student.network.named_parameters() if p.grad is not None}
    parts = {f"{part}.{kind}" for part in ("dense", "left", "right") for kind in ("codes", "ratios")}
    layers = {f"{name}.layer.{part}" for name in ("first", "second") for part in (*parts, "shift")}
    assert trained == {*layers, "norm.weight", "norm.bias"}


def test_gradients_of_codes_and_ratios_are_those_of_the_weight() -> None:
    """dL/dv = dL/dW s and dL/dr = sum dL/dW W, a partial last block included."""
    torch.manual_seed(0)
    weight = torch.randn(5, 40)
    stored = plain(weight, LayerForm(QuantSpec(4, 16))).dense
    trained = TrainedTensor(stored, weight)
    assert torch.equal(trained.weight, stored.dequantize())
    gradient = torch.randn(5, 40)
    (trained.weight * gradient).sum().backward()
    trained.pull()
    steps = stored.steps.repeat_interleave(16, dim=1)[:, :40]
    torch.testing.assert_close(trained.codes.grad.flatten(1)[:, :40], gradient * steps)
    product = nn.functional.pad(gradient * stored.dequantize(), (0, 8)).reshape(5, 3, 16).sum(-1)
    torch.testing.assert_close(trained.ratios.grad, product)
    assert torch.equal(trained.stored().codes, stored.codes)


@pytest.mark.parametrize("objective", ["cosine", "kl", "mse"])
def test_gradient_of_the_error(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As central differences of the runtime's own error, in any chunks, where padding does not count."""
    torch.manual_seed(0)
    reference, output = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]]) if objective == "kl" else None
    batch = {} if mask is None else {"attention_mask": mask}

    def error(at: Tensor) -> float:
        arrays = reference.numpy(), at.numpy(), None if mask is None else mask.numpy()
        return float(sample_errors(objective, *arrays).mean())

    whole = error_gradient(objective, reference, output, batch)
    monkeypatch.setattr("svd2onnx.retraining.teacher._ELEMENTS", 4)
    torch.testing.assert_close(error_gradient(objective, reference, output, batch), whole)
    for place in ((0, 0, 0), (1, 1, 2), (1, 2, 5)):
        change = torch.zeros_like(output, dtype=torch.float64)
        change[place] = 1e-5
        slope = (error(output.double() + change) - error(output.double() - change)) / 2e-5
        assert float(whole[place]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("cached", [0, 1 << 26], ids=["fresh", "cached"])
def test_rows_in_pieces_give_the_same(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compressed(TiedHead)
    batch = data(result.original, 1)[0]
    found = []
    for elements in (1 << 23, 128 * 7 * 2):
        monkeypatch.setattr("svd2onnx.retraining.teacher._ELEMENTS", elements)
        monkeypatch.setattr("svd2onnx.retraining.teacher._CACHED", cached)
        teacher = Teacher(result.original, "kl", batch)
        student = Student(result.original, result.sites, result.layers)
        for _ in range(2):
            teacher.backward(student.network, batch)
        gradients = [tensor.weight.grad for tensor in student.tensors]
        found.append((teacher.rows, teacher.error_of(student.network, [batch]), gradients))
    (all_rows, error, gradients), (few_rows, same_error, same_gradients) = found
    assert (all_rows, few_rows) == (9362, 2)
    assert same_error == pytest.approx(error, rel=1e-5)
    for gradient, same in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(same, gradient, rtol=0, atol=0.02 * float(gradient.abs().max()))


def test_what_cannot_be_done_is_refused() -> None:
    result = compressed(CalledTwice)
    sites: list[LayerSite] = list(discover(result.original, data(result.original)[0]))
    with pytest.raises(PlanError, match="0 or more, not -1"):
        recover(result.original, sites, result.layers, data(result.original), "mse", -1)
    with pytest.raises(SourceError, match=r"2 batches at least.*found 1"):
        recover(result.original, sites, result.layers, data(result.original)[:1], "mse", 5)


@pytest.mark.parametrize("rank", [None, 16], ids=["dense", "pair"])
def test_convolutions_are_retrained_and_stored(rank: int | None) -> None:
    network = seeded(Images)
    compressed = compress(network, batches_of(network), COARSE, rank)
    torch.manual_seed(2)
    batches = [{"x": torch.randn(8, 6, 16, 14)} for _ in range(14)]
    result = recover(network, compressed.sites, compressed.layers, batches[2:], "mse", 30)
    rebuilt = rewrite(result.model, compressed.sites, result.layers)
    teacher = Teacher(network, "mse", batches[0])
    before, after = (teacher.error_of(own, batches[:2]) for own in (compressed.network, rebuilt))
    assert after < 0.9 * before
    assert {name: layer.kind for name, layer in result.layers.items()} == {
        name: layer.kind for name, layer in compressed.layers.items()
    }
