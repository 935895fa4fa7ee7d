"""Batch normalization goes into the layer before it where nothing else reads that, and only there."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from svd2onnx.tracing.batchnorm import fold_batchnorm
from svd2onnx.tracing.trace import trace

Forward = Callable[[nn.Module, Tensor], Tensor]


class Network(nn.Module):
    """``forward`` of a convolution ``a``, one ``b``, a normalization ``norm``, and a second one ``other``."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def network(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(Network(forward))


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalizations as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.normal_(module.bias)
    return model.eval().requires_grad_(False)


def scaled(model: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    norm = model.norm
    return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, weight, bias)


IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
FOLDED: dict[str, tuple[Forward, int]] = {
    "after it": (lambda m, x: m.norm(m.a(x)), 1),
    "both": (lambda m, x: m.other(m.b(torch.relu_(m.norm(m.a(x))))), 2),
    "beside a shortcut": (lambda m, x: x + m.norm(m.a(x)), 1),
    "it scales alone": (lambda m, x: scaled(m, m.a(x), m.norm.weight, None), 1),
    "it shifts alone": (lambda m, x: scaled(m, m.a(x), None, m.norm.bias), 1),
    "one tensor scales and shifts": (
        lambda m, x: scaled(m, m.a(x), m.norm.weight, None) + scaled(m, m.b(x), None, m.norm.weight),
        2,
    ),
    "the weight is computed": (lambda m, x: m.norm(nn.functional.conv2d(x, 2 * m.a.weight)), 1),
}
KEPT: dict[str, Forward] = {
    "its product is read elsewhere": lambda m, x: (lambda y: m.norm(y) + y)(m.a(x)),
    "the layer is called twice": lambda m, x: m.norm(m.a(m.a(x))),
    "something stands between": lambda m, x: m.norm(torch.relu(m.a(x))),
    "the normalization comes first": lambda m, x: m.a(m.norm(x)),
    "the batch's own statistics": lambda m, x: nn.functional.batch_norm(m.a(x), None, None, training=True),
    "the weight is read elsewhere": lambda m, x: (
        m.norm(m.a(x)) + nn.functional.conv2d(x, m.a.weight, padding=1)
    ),
}


def folded(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, int]:
    graph = trace(model, {next(iter(inspect.signature(model.forward).parameters)): x}, {})
    return graph, fold_batchnorm(graph)


def norms(graph: nn.Module) -> list[nn.Module]:
    return [module for module in graph.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize(("forward", "count"), FOLDED.values(), ids=FOLDED)
def test_folding_changes_no_output(forward: Forward, count: int) -> None:
    model = network(forward)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph, found = folded(model, IMAGES)
    assert found == count
    assert not norms(graph)
    torch.testing.assert_close(graph(IMAGES), model(IMAGES))
    # The user's network stays as it was.
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("forward", KEPT.values(), ids=KEPT)
def test_where_it_cannot_be_folded_it_stays(forward: Forward) -> None:
    model = network(forward)
    graph, count = folded(model, IMAGES)
    assert count == 0
    torch.testing.assert_close(graph(IMAGES), model(IMAGES))


@pytest.mark.parametrize("affine", [True, False])
def test_linear_layers_take_it_in_too(affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, affine=affine)
    model = with_statistics(nn.Sequential(nn.Linear(8, 6, bias=False), norm, nn.ReLU()))
    x = torch.randn(5, 8)
    graph, count = folded(model, x)
    assert count == 1
    torch.testing.assert_close(graph(x), model(x))


def test_a_norm_over_tokens_is_none_of_a_linear_layers_outputs() -> None:
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    x = torch.randn(5, 6, 6)
    graph, count = folded(model, x)
    assert count == 0
    torch.testing.assert_close(graph(x), model(x))


class Shared(nn.Module):
    """One norm behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.SyncBatchNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) + self.norm(self.b(x))


def test_one_norm_goes_into_two_layers() -> None:
    model = with_statistics(Shared())
    graph, count = folded(model, IMAGES)
    assert count == 2
    assert not norms(graph)
    torch.testing.assert_close(graph(IMAGES), model(IMAGES))
