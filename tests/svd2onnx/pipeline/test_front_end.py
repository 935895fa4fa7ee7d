"""What a source is traced with: its largest batch, and axes of any size as far as forward allows it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.pipeline.front_end import trace_source
from svd2onnx.sources.source import Source
from svd2onnx.values.errors import ExportError


class Network(nn.Module):
    """``function`` of a linear layer, a mask and ids."""

    def __init__(self, function: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.places = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4))
        self.function = function

    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        return self.function(self, mask, x)


def free(m: nn.Module, mask: Tensor, x: Tensor) -> Tensor:
    return m.layer(x) * mask[..., None]


def fixed(m: nn.Module, mask: Tensor, x: Tensor) -> Tensor:
    return free(m, mask, x) + m.places


def batches(*sizes: tuple[int, int]) -> list[dict[str, Tensor]]:
    return [
        {"x": torch.randn(rows, length, 4), "mask": torch.ones(rows, length), "label": torch.zeros(rows)}
        for rows, length in sizes
    ]


def source(network: nn.Module, **settings: object) -> Source:
    return Source(lambda: network, lambda _split: iter(()), **settings)  # type: ignore[arg-type]


def test_the_example_is_the_largest_batch_in_forwards_order_without_labels() -> None:
    network = Network(free).eval()
    traced = trace_source(source(network), network, batches((2, 3), (5, 3), (3, 3)), with_past=False)
    assert list(traced.example) == ["mask", "x"]
    assert traced.example["x"].shape == (5, 3, 4)
    assert traced.dynamic_shapes == {"mask": {0: "batch"}, "x": {0: "batch"}}


def test_axes_that_differ_may_have_any_size() -> None:
    network = Network(free).eval()
    traced = trace_source(source(network), network, batches((2, 3), (2, 5)), with_past=False)
    x, mask = torch.randn(7, 9, 4), torch.ones(7, 9)
    torch.testing.assert_close(traced.model(mask, x), network(mask, x))
    assert not traced.warnings


def test_a_batch_of_one_row_fixes_nothing() -> None:
    network = Network(free).eval()
    traced = trace_source(source(network), network, batches((1, 3)), with_past=False)
    assert traced.example["x"].shape == (2, 3, 4)
    x, mask = torch.randn(7, 3, 4), torch.ones(7, 3)
    torch.testing.assert_close(traced.model(mask, x), network(mask, x))


def test_an_axis_that_forward_fixes_is_declared_and_told() -> None:
    network = Network(fixed).eval()
    shapes = {"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    traced = trace_source(source(network, dynamic_shapes=shapes), network, batches((2, 3)), with_past=False)
    assert traced.dynamic_shapes == {"mask": {0: "batch"}, "x": {0: "batch"}}
    assert (
        traced.warnings[0] == "the file takes 'mask' with exactly 3 along axis 1 (length): forward fixes it"
    )


def test_an_axis_of_one_that_forward_fixes_stays_one() -> None:
    network = Network(lambda m, mask, x: m.layer(x.view(3, 4))).eval()
    traced = trace_source(source(network), network, batches((1, 3)), with_past=False)
    assert traced.example["x"].shape == (1, 3, 4)
    assert traced.dynamic_shapes["x"] == {}


def test_batches_that_forward_does_not_take_are_told() -> None:
    def by_size(m: nn.Module, mask: Tensor, x: Tensor) -> Tensor:
        return m.layer(x) * torch.tensor([2.0] * x.shape[1])[:, None]

    network = Network(by_size).eval()
    with pytest.raises(ExportError, match=r"forward takes 'x' with 5 along axis 1 .* batches have 3, 5"):
        trace_source(source(network), network, batches((2, 3), (2, 5)), with_past=False)


def test_batches_of_evaluation_have_the_size_that_forward_fixes() -> None:
    network = Network(lambda m, mask, x: torch.stack([m.layer(own) for own in x])).eval()
    traced = trace_source(source(network), network, batches((4, 3), (4, 3)), with_past=False)
    (own,) = batches((4, 3))
    traced.check_sizes(own)
    with pytest.raises(ExportError, match=r"'x' with exactly 4 along axis 0.* has 2: let forward"):
        traced.check_sizes({name: tensor[:2] for name, tensor in own.items()})
