"""A latency is that of as many rows as it says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svd2onnx.pipeline import timing
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.values.settings import Settings
from svd2onnx_runtime.timing import time_runs

NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, {arguments}):
        h = torch.relu(self.body(x))
        return self.head({hidden})

def build():
    torch.manual_seed(0)
    return Network()

def inputs(split):
    torch.manual_seed(len(split))
    for _ in range(3):
        yield {batch}
"""
Time = Callable[..., list[tuple[int, dict[str, tuple[int, ...]]]]]


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Time:
    """Compress a network of the text, and give what its file was really run on: the batch, and all shapes."""
    fed: list[Mapping[str, np.ndarray]] = []

    def once(paths: Any, inputs: Mapping[str, np.ndarray], *others: Any, **_: Any) -> Any:
        fed.append(inputs)
        return time_runs(paths, inputs, *others, repeats=1, warmup=0)

    monkeypatch.setattr(timing, "time_runs", once)

    def of(batch: str, shapes: str = "", *, arguments: str = "x", hidden: str = "h") -> list[Any]:
        source = tmp_path / "network.py"
        text = NETWORK.format(batch=batch, arguments=arguments, hidden=hidden)
        source.write_text(text + (f"dynamic_shapes = {shapes}\n" if shapes else ""))
        settings = Settings("quantize", bits=8, provider="cpu", calibration_samples=16)
        report = compress_export(source, tmp_path / "out.onnx", settings)
        shown = [{name: array.shape for name, array in own.items()} for own in fed]
        return list(zip([own.batch for own in report.latency], shown, strict=True))

    return of


@pytest.mark.parametrize("rows", [2, 30])
def test_rows_come_again_where_a_batch_has_too_few(rows: int, timed: Time) -> None:
    assert timed(f'{{"x": torch.randn({rows}, 64)}}') == [(1, {"x": (1, 64)}), (8, {"x": (8, 64)})]


def test_a_loader_of_single_rows_is_timed_at_eight(timed: Time) -> None:
    assert timed('{"x": torch.randn(1, 64)}') == [(1, {"x": (1, 64)}), (8, {"x": (8, 64)})]


def test_only_what_is_called_batch_is_cut(timed: Time) -> None:
    """Along its own axis; the table, of as many rows, stays as it is."""
    found = timed(
        '{"x": torch.randn(4, 64), "state": torch.randn(2, 4, 128), "table": torch.randn(4, 128)}',
        '{"x": {0: "batch"}, "state": {1: "batch"}, "table": {0: "entries"}}',
        arguments="x, state, table",
        hidden="h + state.sum(0) + table.mean(0)",
    )
    shapes = [{"x": (n, 64), "state": (2, n, 128), "table": (4, 128)} for n in (1, 8)]
    assert found == [(1, shapes[0]), (8, shapes[1])]


def test_nodes_of_a_graph_are_no_samples(timed: Time) -> None:
    """Nobody named the axes: what is left of the nodes would not fit the edges."""
    found = timed(
        '{"x": torch.randn(12, 64), "edges": torch.randint(0, 12, (2, 20))}',
        arguments="x, edges",
        hidden="h.index_add(0, edges[1], h[edges[0]])",
    )
    assert found == [(12, {"x": (12, 64), "edges": (2, 20)})]


def test_inputs_without_a_batch_are_timed_as_they_are(timed: Time) -> None:
    found = timed('{"x": torch.randn(6, 64)}', '{"x": {0: "points"}}')
    assert found == [(6, {"x": (6, 64)})]
