"""What is found in a network, what is left in float and why, and which pattern names what."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from svd2onnx.network.convolution import geometry_of
from svd2onnx.network.layers import bias_of, discover, select, weight_of
from svd2onnx.network.modules import StoredWeight
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import PlanError, SourceError
from svd2onnx.values.schema import LayerSite
from tests.svd2onnx.networks import (
    NETWORKS,
    CalledTwice,
    Images,
    Mlp,
    TiedHead,
    TiedLinears,
    batches_of,
    seeded,
)

VECTORS = {"x": torch.zeros(3, 64)}


class Applied(nn.Module):
    """Holds modules by name and computes ``function`` of itself and x."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def sites_of(network: nn.Module, example: dict[str, Tensor] = VECTORS) -> dict[str, LayerSite]:
    traced = trace(network.eval().requires_grad_(False), example, {})
    return {site.name: site for site in discover(traced, example)}


def reason_of(module: nn.Module, x: Tensor) -> str | None:
    return sites_of(Applied(lambda self, x: self.m(x), m=module), {"x": x})["m"].skip_reason


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_a_linear_is_found_with_and_without_bias(bias: bool) -> None:
    linear = nn.Linear(64, 96, bias=bias).requires_grad_(False)
    network = Applied(lambda self, x: self.linear(x), linear=linear)
    assert discover(network, VECTORS) == [LayerSite("linear", "linear", (96, 64))]
    assert torch.equal(weight_of(network, discover(network, VECTORS)[0]), linear.weight)
    found = bias_of(network, "linear")
    assert torch.equal(found, linear.bias) if bias else found is None


def test_sites_come_in_the_order_of_the_modules() -> None:
    network = seeded(Mlp)
    assert [site.name for site in discover(network, batches_of(network)[0])] == ["first", "second"]


def test_linears_that_share_a_weight_are_one_site_with_all_calls() -> None:
    assert list(sites_of(seeded(TiedLinears)).values()) == [
        LayerSite("first", "linear", (64, 64), aliases=("second",), calls=2)
    ]


def test_a_tie_of_table_and_head_is_two_sites_of_their_own_kinds() -> None:
    network = seeded(TiedHead)
    sites = sites_of(network, batches_of(network)[0])
    assert sites["table"] == LayerSite("table", "embedding", (128, 64))
    assert sites["head"] == LayerSite("head", "linear", (128, 64))


def test_calls_of_one_module_are_counted() -> None:
    assert sites_of(seeded(CalledTwice))["linear"].calls == 2


def test_a_module_of_two_names_is_one_site() -> None:
    linear = nn.Linear(64, 64)
    network = Applied(lambda self, x: self.b(self.a(x)), a=linear, b=linear)
    assert list(sites_of(network).values()) == [LayerSite("a", "linear", (64, 64), calls=2)]


def test_a_weight_is_found_by_what_computes_with_it() -> None:
    network = Applied(
        lambda self, x: x @ self.read.weight.T + self.called(x),
        read=nn.Linear(64, 64),
        called=nn.Linear(64, 64),
        unused=nn.Linear(64, 64),
    )
    sites = sites_of(network)
    assert list(sites) == ["read", "called"]
    assert all(site.skip_reason is None for site in sites.values())


def test_a_small_weight_stays_float_and_the_limit_is_4096() -> None:
    assert reason_of(nn.Linear(64, 63), VECTORS["x"]) == "only 4032 weights: too small to pay"
    assert reason_of(nn.Linear(64, 64), VECTORS["x"]) is None


def test_a_weight_that_is_computed_is_one_weight_however_often_it_is() -> None:
    network = Applied(
        lambda self, x: self.c(self.b(self.a(self.a(x)))),
        a=parametrizations.weight_norm(nn.Linear(64, 64)),
        b=parametrizations.weight_norm(nn.Linear(64, 96)),
        c=parametrizations.weight_norm(nn.Linear(96, 64)),
    )
    sites = sites_of(network)
    for name, shape in {"a": (64, 64), "b": (96, 64), "c": (64, 96)}.items():
        assert sites[name].shape == shape
        assert sites[name].aliases == ()
        assert sites[name].calls == (2 if name == "a" else 1)
        assert sites[name].skip_reason is None


@pytest.mark.parametrize(
    ("module", "x", "reason"),
    [
        (nn.LayerNorm(64), torch.zeros(2, 64), "LayerNorm layers are kept in float"),
        (nn.Linear(64, 64).double(), torch.zeros(2, 64).double(), "its weight is torch.float64, not float32"),
        (nn.Embedding(300, 40), torch.zeros(2, dtype=torch.int64), "width 40 is no multiple of 16"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_other_layers_say_why_they_stay_float(module: nn.Module, x: Tensor, reason: str) -> None:
    assert reason_of(module, x).startswith(reason)


def test_a_subclass_is_the_layer_that_it_calls() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    assert reason_of(Scaled(64, 64), VECTORS["x"]) is None
    assert reason_of(Renamed(64, 64), VECTORS["x"]) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    network = Applied(lambda self, x: self.linear(x), linear=nn.Linear(64, 64))
    network.linear.weight.data[3, 5] = value
    with pytest.raises(SourceError, match=r"^the tensor 'linear\.weight' holds 1 NaN or infinite"):
        sites_of(network)


def test_a_mask_may_be_infinite_but_not_nan() -> None:
    network = Applied(lambda self, x: self.linear(x) + self.mask, linear=nn.Linear(64, 64))
    network.register_buffer("mask", torch.full((64,), -torch.inf))
    sites_of(network)
    network.mask[3] = torch.nan
    with pytest.raises(SourceError, match=r"^the tensor 'mask' holds 1 NaN or infinite"):
        sites_of(network)


def test_weights_that_cannot_be_squared_are_refused() -> None:
    network = Applied(lambda self, x: self.linear(x), linear=nn.Linear(64, 64))
    network.linear.weight.data[3, 5] = -1e15
    sites_of(network)
    network.linear.weight.data[3, 5] = -1e16
    with pytest.raises(
        SourceError, match=r"^the parameter 'linear\.weight' holds a value of magnitude 1e\+16"
    ):
        sites_of(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_discovery_leaves_no_hook_behind(name: str) -> None:
    network = seeded(NETWORKS[name])
    discover(network, batches_of(network)[0])
    assert not any(module._forward_hooks for module in network.modules())


SITES = (
    LayerSite("layer.0.query", "linear", (64, 64)),
    LayerSite("layer.1.query", "linear", (64, 64), aliases=("tied.query",)),
    LayerSite("norm", "LayerNorm", (64,), skip_reason="LayerNorm layers are kept in float"),
)


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ((), (), ["layer.0.query", "layer.1.query"]),
        (("layer.0.*",), (), ["layer.0.query"]),
        ((), ("layer.0.*",), ["layer.1.query"]),
        (("layer.*",), ("*.1.*",), ["layer.0.query"]),
        (("tied.query",), (), ["layer.1.query"]),
        (("*.query",), ("tied.*",), ["layer.0.query"]),
    ],
)
def test_patterns_choose_layers(include: tuple, exclude: tuple, chosen: list[str]) -> None:
    selected = select(SITES, include, exclude)
    assert [site.name for site in selected] == [site.name for site in SITES]
    assert [site.name for site in selected if site.skip_reason is None] == chosen
    assert selected[2] == SITES[2]  # its own reason stays


def test_a_name_with_brackets_names_itself() -> None:
    sites = [LayerSite(name, "linear", (64, 64)) for name in ("block[0].up", "block0.up", "block[1].up")]

    def chosen(*include: str) -> list[str]:
        return [site.name for site in select(sites, include) if site.skip_reason is None]

    assert chosen("block[0].up") == ["block[0].up"]  # as a glob it is block0.up
    assert chosen("block[01].up") == ["block0.up"]
    assert chosen("block[[]*") == ["block[0].up", "block[1].up"]
    assert [site.name for site in select(sites, exclude=["block[1].up"]) if site.skip_reason] == [
        "block[1].up"
    ]


@pytest.mark.parametrize("pattern", ["decoder.*", "norm", "LAYER.0.query"])
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_no_compressible_layer_is_refused(pattern: str, option: str) -> None:
    with pytest.raises(PlanError) as caught:
        select(SITES, **{option: [pattern]})
    message = str(caught.value)
    assert repr(pattern) in message
    assert "layer.0.query" in message
    assert "\n" not in message


def test_a_network_that_does_not_run_is_told_in_one_line() -> None:
    network = Applied(lambda self, x: self.linear(x[:, :63]), linear=nn.Linear(64, 64))
    with pytest.raises(SourceError, match=r"^the network's forward fails .*: RuntimeError: [^\n]+$"):
        sites_of(network)
    assert not network._forward_hooks


@pytest.mark.parametrize(
    ("module", "x", "shape", "groups"),
    [
        (nn.Conv1d(16, 32, 5), torch.zeros(2, 16, 9), (32, 80), 1),
        (nn.Conv2d(16, 32, 3), torch.zeros(2, 16, 9, 9), (32, 144), 1),
        (nn.Conv3d(8, 16, 2), torch.zeros(2, 8, 3, 3, 3), (16, 64), 1),
        (nn.Conv2d(64, 64, 3, groups=64), torch.zeros(2, 64, 5, 5), (64, 9), 64),
    ],
    ids=["1d", "2d", "3d", "depthwise"],
)
def test_a_convolution_is_found_with_its_flat_weight(
    module: nn.Module, x: Tensor, shape: tuple[int, int], groups: int
) -> None:
    network = Applied(lambda self, x: self.m(x), m=module)
    (site,) = discover(network.eval().requires_grad_(False), {"x": x})
    assert site == LayerSite("m", "convolution", shape, geometry=geometry_of(module))
    assert site.groups == groups
    assert torch.equal(weight_of(network, site), module.weight.flatten(1))


def test_a_small_convolution_stays_float() -> None:
    x = torch.zeros(2, 16, 9, 9)
    assert reason_of(nn.Conv2d(16, 4, 1), x) == "only 64 weights: too small to pay"


@pytest.mark.parametrize(
    ("rows_of", "shape"), [(1, (8, 1152)), (2, (256, 36)), (3, (1536, 6))], ids=["first", "two", "three"]
)
def test_a_stored_weight_is_found_as_a_matrix(rows_of: int, shape: tuple[int, int]) -> None:
    weight = nn.Parameter(torch.randn(8, 32, 6, 6))
    network = Applied(lambda self, x: x + self.w().sum() + self.w().mean(), w=StoredWeight(weight, rows_of))
    (site,) = discover(network.eval(), {"x": torch.zeros(2, 3)})
    assert site == LayerSite("w", "stored", shape, calls=2)
    assert site.copies == 1
    assert torch.equal(weight_of(network, site), weight.reshape(shape))


def test_a_small_stored_weight_stays_float() -> None:
    network = Applied(lambda self, x: x + self.w().sum(), w=StoredWeight(nn.Parameter(torch.randn(63, 65))))
    (site,) = discover(network.eval(), {"x": torch.zeros(2, 3)})
    assert site.skip_reason == "only 4095 weights: too small to pay"


@pytest.mark.parametrize("rows_of", [0, 2])
def test_a_stored_weight_has_rows_and_columns(rows_of: int) -> None:
    with pytest.raises(ValueError, match="below the 2 axes"):
        StoredWeight(nn.Parameter(torch.randn(4, 4)), rows_of)


def test_only_one_kind() -> None:
    network = seeded(Images)
    sites = discover(network, batches_of(network)[0])
    linear = select(sites, only="linear")
    assert [site.name for site in linear if site.skip_reason is None] == ["head"]
    assert linear[0].skip_reason == "not a linear layer, and --only linear was given"
    with pytest.raises(PlanError, match="no compressible layer of this kind"):
        select(sites, only="embedding")
    with pytest.raises(PlanError, match="matches none of the 1 compressible"):
        select(sites, exclude=["stem"], only="linear")


class Halved(nn.Module):
    """Was loaded in half precision, which its forward counts on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.half())


def test_a_forward_that_asks_for_half_precision_is_told_that_networks_are_in_float32() -> None:
    with pytest.raises(SourceError, match=r"compressed in float32: let forward take types from its weights"):
        discover(Halved().eval(), VECTORS)
