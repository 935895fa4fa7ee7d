"""A convolution is its matrix times patches, whatever its geometry; its gradients are those of autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.network.convolution import Convolution, convolve, geometry_of, mix, patches, weight_gradients
from svd2onnx.values.schema import Geometry

ALL = 10**6
GEOMETRIES: dict[str, tuple[type[Convolution], dict[str, Any], tuple[int, ...]]] = {
    "1d": (nn.Conv1d, {"kernel_size": 5, "padding": 2, "stride": 2}, (23,)),
    "2d": (nn.Conv2d, {"kernel_size": 3}, (9, 7)),
    "3d": (nn.Conv3d, {"kernel_size": (1, 3, 2), "padding": (0, 1, 1)}, (3, 6, 5)),
    "pointwise, strided": (nn.Conv2d, {"kernel_size": 1, "stride": 2}, (9, 8)),
    "dilated": (
        nn.Conv2d,
        {"kernel_size": (3, 5), "dilation": (2, 1), "stride": (1, 3), "padding": 4},
        (9, 11),
    ),
    "same": (nn.Conv2d, {"kernel_size": 4, "padding": "same", "dilation": 2}, (8, 9)),
    "reflected": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}, (6, 7)),
    "around": (nn.Conv1d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (10,)),
    "grouped": (nn.Conv2d, {"kernel_size": 3, "groups": 2, "stride": 2}, (9, 7)),
    "depthwise": (nn.Conv2d, {"kernel_size": 3, "groups": 4, "padding": 1}, (6, 6)),
}
UNGROUPED = [name for name, (_, arguments, _) in GEOMETRIES.items() if "groups" not in arguments]


def made(name: str) -> tuple[Convolution, Tensor]:
    """The convolution and inputs of two samples."""
    kind, arguments, space = GEOMETRIES[name]
    torch.manual_seed(0)
    return kind(4, 6 if arguments.get("groups") != 4 else 8, **arguments), torch.randn(2, 4, *space)


@pytest.mark.parametrize("name", UNGROUPED)
def test_the_flat_weight_times_patches_is_the_convolution(name: str) -> None:
    module, x = made(name)
    with torch.no_grad():
        expected = module(x).flatten(2)
        rows = patches(module, x, ALL)
        product = rows @ module.weight.flatten(1).T + module.bias
    assert rows.shape == (2 * expected.shape[2], module.weight[0].numel())
    torch.testing.assert_close(product.unflatten(0, (2, -1)).transpose(1, 2), expected)


def test_some_patches_of_each_sample_are_among_all_of_them() -> None:
    module, x = made("2d")
    some, whole = patches(module, x, 4), patches(module, x, ALL)
    assert some.shape == (8, whole.shape[1])
    assert torch.equal(some.unflatten(0, (2, 4))[:, 0], whole.unflatten(0, (2, -1))[:, 0])
    assert torch.equal(some.unflatten(0, (2, 4))[:, -1], whole.unflatten(0, (2, -1))[:, -1])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_of_each_sample_are_those_of_autograd(name: str) -> None:
    module, x = made(name)
    g = torch.randn_like(module(x))
    found = list(weight_gradients(module, x, g))
    assert len(found) == 2
    for i, gradient in enumerate(found):
        (expected,) = torch.autograd.grad(module(x[i : i + 1]), module.weight, g[i : i + 1])
        torch.testing.assert_close(gradient, expected.flatten(1))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_another_weight_takes_the_geometry(name: str) -> None:
    module, x = made(name)
    with torch.no_grad():
        torch.testing.assert_close(convolve(module, x, module.weight, module.bias), module(x))
        doubled = convolve(module, x, 2 * module.weight, module.bias + module.bias)
        torch.testing.assert_close(doubled, 2 * module(x))


@pytest.mark.parametrize("name", ["1d", "2d", "3d"])
def test_mixing_multiplies_channels_at_each_place(name: str) -> None:
    module, x = made(name)
    weight, bias = torch.randn(5, 4), torch.randn(5)
    mixed = mix(x, weight.reshape(5, 4, *(1 for _ in module.kernel_size)), bias)
    expected = functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    torch.testing.assert_close(mixed, expected)


def test_geometry_is_told_as_onnx_has_it() -> None:
    """Of an even kernel "same" pads one more behind."""
    assert geometry_of(nn.Conv2d(4, 6, (2, 3), padding="same")) == Geometry(
        (2, 3), (1, 1), (0, 1, 1, 1), (1, 1), 1
    )
    found = geometry_of(nn.Conv2d(4, 6, 3, stride=(1, 2), padding=(0, 2), dilation=2, groups=2))
    assert found == Geometry((3, 3), (1, 2), (0, 2, 0, 2), (2, 2), 2)
    assert str(found) == "3x3 stride 1x2 padding 0x2x0x2 dilation 2x2 groups 2"
