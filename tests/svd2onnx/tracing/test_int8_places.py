"""Where values are rounded: around convolutions in int8, and wherever nothing needs to go back to float."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from svd2onnx.network.layers import discover
from svd2onnx.tracing.int8_places import Place, fit_for_int8, int8_places
from svd2onnx.tracing.trace import trace

X = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))


def convolution(outputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(8, outputs, 3, padding=1)


def traced(network: nn.Module) -> fx.GraphModule:
    return trace(network.eval(), {"x": X}, {"x": {0: "batch"}})


def places(graph: fx.GraphModule, *names: str) -> dict[str, Place]:
    return {place.node: place for place in int8_places(graph.graph, names)}


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.pool = convolution(), convolution(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.pool(torch.relu(self.first(x)))))


def test_an_activation_function_belongs_to_what_it_follows_and_pooling_keeps_the_range() -> None:
    found = places(traced(Chain()), "first", "second")
    assert list(found) == ["x", "relu", "max_pool2d", "second"]
    assert {name: own.range_of for name, own in found.items()} == {
        "x": "x",
        "relu": "relu",
        "max_pool2d": "relu",
        "second": "second",
    }
    assert found["relu"].layers == ("first",)
    assert found["max_pool2d"].layers == ("second",)


def test_of_one_convolution_alone_only_what_it_takes_and_gives_is_rounded() -> None:
    assert list(places(traced(Chain()), "second")) == ["max_pool2d", "second"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = convolution(), convolution(), convolution()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return torch.sigmoid(self.third(torch.relu(self.second(y) + y)))


def test_a_sum_of_rounded_values_is_rounded_behind_its_activation_function() -> None:
    assert list(places(traced(Residual()), "first", "second", "third")) == [
        "x",
        "relu",
        "second",
        "relu_1",
        "third",
    ]


def test_a_sum_is_left_a_float_where_no_one_needs_it_rounded() -> None:
    class Last(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            return torch.sigmoid(self.second(y) + y)

    assert list(places(traced(Last()), "first", "second")) == ["x", "relu", "second"]


def test_a_clamp_with_a_positive_least_value_is_no_end_of_a_range() -> None:
    class Clamped(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.second(self.first(x).clamp(0.5, 3)))

    # Zero is always in a range, so that the clamp cannot be left to it.
    assert list(places(traced(Clamped()), "first")) == ["x", "first"]


def fit(network: nn.Module) -> set[str]:
    graph = traced(network)
    return fit_for_int8(graph.graph, discover(graph, {"x": X}))


def test_what_leaves_the_network_is_not_rounded() -> None:
    class Given(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.second(self.first(x)))

    assert fit(Chain()) == {"first", "second"}
    assert fit(Given()) == {"first"}


def test_one_that_is_called_twice_or_has_one_axis_stays_in_float() -> None:
    class Twice(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Conv1d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.line(self.second(self.first(self.first(x))).flatten(2)))

    assert fit(Twice()) == {"second"}
