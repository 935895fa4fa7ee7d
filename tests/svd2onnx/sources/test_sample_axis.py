"""The axis that is called "batch" in an exported program: samples lie along it, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export, save

from svd2onnx.sources.exported import load_exported
from svd2onnx.sources.inputs import random_batch


class Function(nn.Module):
    """``function`` of what goes in."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


class Recurrent(nn.Module):
    """A step with a state that goes in and comes out, with samples along axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 6)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h[0])[None]
        return h[0], h


B, N = Dim("b"), Dim("n")
X, Y = torch.randn(5, 4), torch.randn(5, 4)


def axes_of(path: Path, network: nn.Module, arguments: tuple[Tensor, ...], shapes: Any) -> list[Any]:
    """The dynamic axes of each input, as the program at ``path`` has them when it is loaded."""
    save(export(network.eval(), arguments, dynamic_shapes=shapes), path)
    specs = load_exported(path).specs
    assert specs is not None
    return [spec.dynamic for spec in specs]


def function_axes(path: Path, function: Callable[..., Any], y: Tensor, axes: dict[int, Any]) -> list[Any]:
    return axes_of(path, Function(function), (X, y), {"x": {0: B}, "y": axes})


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: (x * y).sum(1),
        lambda x, y: (x.repeat_interleave(3, 0) * 2, y),  # three rows of a sample, one behind the other
        lambda x, y: (x * y, torch.ones(2)),
        lambda x, y: (x[:, :1] > 0, y),
    ],
    ids=["sum", "fewer axes", "merged axes", "a constant", "truth values"],
)
def test_samples_are_independent(function: Callable[..., Any], tmp_path: Path) -> None:
    axes = function_axes(tmp_path / "p.pt2", function, Y, {0: B})
    assert axes == [{0: "batch"}, {0: "batch"}]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x - y.mean(0),
        lambda x, y: x.cumsum(0) + y,
        lambda x, y: x.flip(0).cumsum(0) + y,
        lambda x, y: (x + y).softmax(0),
        lambda x, y: (x + y).amax(0),
        lambda x, y: x @ y.T,
        lambda x, y: x + y + torch.arange(x.shape[0])[:, None],
    ],
    ids=["mean", "those before", "those behind", "attention", "pooled", "pairs", "position"],
)
def test_points_steps_and_pairs_are_no_samples(function: Callable[..., Any], tmp_path: Path) -> None:
    axes = function_axes(tmp_path / "p.pt2", function, Y, {0: B})
    assert axes == [{0: "dim_0"}, {0: "dim_0"}]


def test_nodes_and_edges_are_no_samples(tmp_path: Path) -> None:
    def passed(x: Tensor, edges: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])

    edges = torch.randint(0, 5, (2, 7))
    assert function_axes(tmp_path / "p.pt2", passed, edges, {1: N}) == [{0: "dim_0"}, {1: "dim_1"}]


def test_samples_of_a_recurrent_state_lie_along_its_second_axis(tmp_path: Path) -> None:
    arguments = (torch.randn(3, 4), torch.randn(1, 3, 6))
    axes = axes_of(tmp_path / "p.pt2", Recurrent(), arguments, ({0: B}, {1: B}))
    assert axes == [{0: "batch"}, {1: "batch"}]


def test_an_axis_of_multiples_has_a_size_that_fits(tmp_path: Path) -> None:
    """``4 * Dim`` is loaded, and random inputs have the example's size there."""
    half = Dim("half", min=2, max=64)
    pooled = nn.Sequential(nn.MaxPool2d(4), nn.ConvTranspose2d(3, 2, 4, 4))
    x = torch.randn(2, 3, 24, 12)
    axes = axes_of(tmp_path / "p.pt2", pooled, (x,), ({0: B, 2: 4 * half},))
    assert axes == [{0: "batch", 2: "dim_1"}]
    loaded = load_exported(tmp_path / "p.pt2")
    (tensor,) = random_batch(loaded.specs or (), 0).values()
    assert tensor.shape == (8, 3, 24, 12)
    torch.testing.assert_close(loaded.model(tensor), pooled(tensor))


def test_an_axis_of_multiples_is_none_of_samples(tmp_path: Path) -> None:
    axes = axes_of(tmp_path / "p.pt2", nn.Linear(4, 4), (torch.randn(6, 4),), ({0: 2 * Dim("pairs")},))
    assert axes == [{0: "dim_0"}]
