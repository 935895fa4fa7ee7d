"""What lies along the first axis of batches in memory is found by running forward on fewer rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.sources.first_axis import MIXED, SAMPLES, WHOLE, first_axis
from tests.svd2onnx.networks import Mlp, seeded

X = torch.randn(6, 4, 64, generator=torch.Generator().manual_seed(0))


class Given(nn.Module):
    """x -> what a function gives."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)  # type: ignore[operator]


FUNCTIONS = {
    "rows apart": (lambda x: torch.tanh(x).sum(-1), SAMPLES),
    "a loss besides": (lambda x: (x.sum(-1), torch.ones(3)), SAMPLES),
    "rows one behind the other": (lambda x: x.flatten(0, 1), SAMPLES),
    "labels": (lambda x: x.argmax(-1), SAMPLES),
    "masked": (lambda x: x.masked_fill(x < 0, -torch.inf), SAMPLES),
    "steps in time": (lambda x: x.cumsum(0), MIXED),
    "statistics of the batch": (lambda x: x - x.mean(0), MIXED),
    "samples along another axis": (lambda x: x.sum(0), MIXED),
    "one size": (lambda x: x.view(6, 256), WHOLE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_are_samples_where_forward_keeps_them_apart(name: str) -> None:
    function, kind = FUNCTIONS[name]
    assert first_axis(Given(function), [{"x": X}]) == kind


def test_a_recurrent_network_of_steps_is_told_from_one_of_samples() -> None:
    torch.manual_seed(0)
    for batch_first, kind in ((True, SAMPLES), (False, MIXED)):
        network = nn.GRU(64, 32, batch_first=batch_first).eval()
        assert first_axis(network, [{"input": X}]) == kind


def test_tensors_of_other_lengths_and_single_rows_are_not_tried() -> None:
    edges = {"x": X, "edges": torch.zeros(2, 9)}
    assert first_axis(Given(lambda x: x), [edges]) == WHOLE
    assert first_axis(Given(lambda x: x.flip(0)), [{"x": X[:1]}]) == SAMPLES
    # It fails, which is told elsewhere.
    assert first_axis(seeded(Mlp), [{"x": torch.zeros(4, 63)}]) == SAMPLES
