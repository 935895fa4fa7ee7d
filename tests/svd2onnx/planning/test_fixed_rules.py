"""Every layer gets a form that its shape allows, and a reason where that is not the one asked for."""

import pytest
import torch
from torch import nn

from svd2onnx.planning.fixed_rules import article_plan, fitting_spec, uniform_plan
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import LayerForm, LayerSite, QuantSpec
from tests.svd2onnx.networks import Mlp, batches_of, compress, seeded

SPEC = QuantSpec(4, 64)


def test_a_uniform_plan_gives_every_usable_layer_its_spec() -> None:
    sites = [
        LayerSite("a", "linear", (64, 64)),
        LayerSite("b", "embedding", (100, 64)),
        LayerSite("c", "LayerNorm", (64,), skip_reason="LayerNorm layers are kept in float"),
    ]
    plan = uniform_plan(sites, SPEC)
    assert plan.forms == {"a": LayerForm(SPEC), "b": LayerForm(SPEC)}
    assert plan.notes == {}


@pytest.mark.parametrize(
    ("kind", "shape", "asked", "given"),
    [
        ("linear", (64, 100), QuantSpec(4, 64), QuantSpec(4, 64)),  # a partial block is fine
        ("linear", (64, 64), QuantSpec(2, 32), QuantSpec(2, 32)),
        ("linear", (66, 64), QuantSpec(2, 32), QuantSpec(4, 32)),  # int2 goes wrong in onnxruntime
        ("linear", (66, 64), QuantSpec(8, 32), QuantSpec(8, 32)),
        ("embedding", (100, 48), QuantSpec(4, 64), QuantSpec(4, 16)),
        ("stored", (65, 70), QuantSpec(2, 16), QuantSpec(2, 16)),
        ("embedding", (100, 192), QuantSpec(8, 128), QuantSpec(8, 64)),
        ("embedding", (101, 64), QuantSpec(2, 32), QuantSpec(2, 32)),
    ],
)
def test_a_spec_is_fitted_to_the_shape(kind: str, shape: tuple, asked: QuantSpec, given: QuantSpec) -> None:
    site = LayerSite("a", kind, shape)
    assert fitting_spec(site, asked) == given
    plan = uniform_plan([site], asked)
    assert plan.forms == {"a": LayerForm(given)}
    assert ("a" in plan.notes) == (given != asked)


def test_a_layer_whose_copies_would_outgrow_it_stays_float() -> None:
    site = LayerSite("a", "linear", (64, 64), calls=8)
    plan = uniform_plan([site], SPEC)
    assert plan.forms == {}
    assert "8 calls would need 8 copies" in plan.notes["a"]
    assert uniform_plan([LayerSite("a", "linear", (64, 64), calls=7)], SPEC).forms


def low_rank_mlp() -> nn.Module:
    """The first layer has rank 8, the second is full."""
    network = seeded(Mlp)
    network.first = nn.Linear(256, 256)
    network.second = nn.Linear(256, 256)
    generator = torch.Generator().manual_seed(0)
    network.first.weight.data = torch.randn(256, 8, generator=generator) @ torch.randn(
        8, 256, generator=generator
    )
    network.second.weight.data = torch.randn(256, 256, generator=generator)
    return network.eval().requires_grad_(False)


def test_the_article_gives_pairs_where_they_are_smaller_and_says_where_not() -> None:
    network = low_rank_mlp()
    batches = [{"x": torch.randn(64, 256, generator=torch.Generator().manual_seed(1))}]
    known = compress(network, batches, QuantSpec(8, 64))
    plan = article_plan(network, known.sites, known.statistics, QuantSpec(8, 64), 0.05)
    assert plan.method == "svd"
    assert plan.forms["first"] == LayerForm(rank=16, factors=QuantSpec(8, 64))
    assert plan.forms["first"].stored_bytes((256, 256)) < QuantSpec(8, 64).stored_bytes(256, 256)
    assert plan.forms["second"] == LayerForm(QuantSpec(8, 64))
    assert plan.notes["second"].startswith("dense: no smaller low-rank pair")


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan")])
def test_an_epsilon_that_bounds_nothing_is_refused(epsilon: float) -> None:
    network = seeded(Mlp)
    known = compress(network, batches_of(network), SPEC)
    with pytest.raises(PlanError, match="must be positive"):
        article_plan(network, known.sites, known.statistics, SPEC, epsilon)
