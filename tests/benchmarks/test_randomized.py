"""Projections and whole decompositions are compared on the same weights."""

import pytest
import torch
from click.testing import CliRunner

from benchmarks import randomized
from benchmarks.randomized import compared, curvature_of, main, weight_of


def test_singular_values_fall_as_asked() -> None:
    values = torch.linalg.svdvals(weight_of(64, 0.5))
    assert torch.allclose(values, torch.arange(1, 65).float() ** -0.5, rtol=1e-3)


def test_what_is_the_same_has_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = compared(weight_of(64, 0.5), curvature_of(64), 0.5, 32, 1)  # too small for projections
    assert (row.side, row.rank, row.truncated, row.rounded) == (64, 32, 1, 1)
    monkeypatch.setattr("svd2onnx.compression.lowrank._LARGE", 64)
    monkeypatch.setattr("svd2onnx.compression.lowrank._POWERS", 0)
    row = compared(weight_of(64, 0.5), curvature_of(64), 0.5, 8, 1)
    assert 1 < row.truncated < 1.5
    assert row.projected_seconds > 0


def test_the_table_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomized, "RANKS", (32,))
    result = CliRunner().invoke(main, ["--side", "64", "--runs", "1"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 2 + len(randomized.DECAYS)
