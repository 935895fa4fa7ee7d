"""Sizes are compressed each in its own process, and their time and memory follow a power law."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import scale
from benchmarks.scale import Scaled, exponent, main, markdown
from benchmarks.stages import Stages


def test_the_exponent_is_that_of_a_power_law() -> None:
    assert exponent([10, 100, 1000], [3 * n**1.3 for n in (10, 100, 1000)]) == pytest.approx(1.3)


def test_a_stage_within_a_stage_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("benchmarks.stages.time.perf_counter", lambda: float(next(now)))
    stages = Stages()
    for _ in stages([1, 2], "Sweeping"):
        list(stages([1, 2, 3], "Exporting"))
    stages.settle()
    assert stages.current == "other"
    assert stages.seconds == {"other": 2, "Sweeping": 3, "Exporting": 2}


def test_the_table_has_a_row_for_each_size_and_the_exponents() -> None:
    of_small: dict = {
        "seconds": 10.0,
        "processor_seconds": 15.0,
        "stages": {"other": 2.0, "Calibrating": 8.0},
        "own_bytes": 10**9,
        "stages_own_bytes": {"other": 5 * 10**8, "Calibrating": 10**9},
        "mapped_bytes": 2 * 10**9,
    }
    of_large: dict = {
        "seconds": 1000.0,
        "processor_seconds": 1500.0,
        "stages": {"other": 1000.0},
        "own_bytes": 10**10,
        "stages_own_bytes": {"other": 10**10},
        "mapped_bytes": 2 * 10**10,
    }
    same: dict = {"float_bytes": 1, "file_bytes": 1, "layers": 1, "strict_relative_error": 0.0}
    rows = [Scaled("small", 10_000_000, **of_small, **same), Scaled("large", 10**9, **of_large, **same)]
    text = markdown(rows)
    assert "| small | 10 M | 10.0 | 15.0 | 1.0 | 2.0 |" in text
    assert "| exponent |  | 1.00 | 1.00 | 0.50 | 0.50 |" in text
    assert "| Calibrating | 8 | 0 |" in text
    assert "| Calibrating | 1.0 | 0.0 |" in text
    assert "| other | 0.5 | 10.0 |" in text


@pytest.mark.slow
def test_a_size_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "VOCABULARY", 256)
    monkeypatch.setattr(scale, "SIZES", {"10M": (64, 128, 1, 2)})
    arguments = ["-o", str(tmp_path), "--size", "10M", "--samples", "8", "--target-size", "0.3x"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "scale.json").read_text())["sizes"]
    assert row["parameters"] == 256 * 64 * 2 + 4 * 64**2 + 3 * 64 * 128 + 3 * 64
    assert row["processor_seconds"] > 0
    assert row["seconds"] == pytest.approx(sum(row["stages"].values()))
    assert row["stages"].keys() >= {"Calibrating", "Pricing candidates", "Quantizing", "Verifying"}
    assert 0 < row["own_bytes"] <= row["mapped_bytes"]
    assert row["own_bytes"] == max(row["stages_own_bytes"].values())
    monkeypatch.setattr(scale, "measured", pytest.fail)
    again = CliRunner().invoke(main, arguments)
    assert result.stdout.endswith(again.stdout)
    other = CliRunner().invoke(main, [*arguments[:-1], "0.2x"])
    assert other.exit_code == 1
    assert "expected these, or another folder" in other.output
