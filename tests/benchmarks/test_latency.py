"""The latency benchmark on the tiny network: graphs are built once, judged, and timed side by side."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.latency import contenders, main

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own


def test_graphs_are_judged_and_timed_and_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svd2onnx_runtime.memory._PROCESSES", 1)
    arguments = [str(source), "-o", str(tmp_path), "--bits", "8", "--batch", "2", "--sequence", "7"]
    arguments += ["--threads", "1", "--repeats", "3", "--calibration-samples", "16"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "latency.json").read_text())
    names = ["float32", "float32, shapes noted", *(contender.name for contender in contenders(8.0))]
    assert list(record["quality"]) == names
    (result,) = record["results"]
    assert [graph["name"] for graph in result["graphs"]] == names
    assert (result["threads"], result["repeats"]) == (1, 3)
    (timing,) = result["batches"]
    assert timing["batch"] == 2
    assert all(graph["median_ms"] > 0 for graph in timing["graphs"])
    assert record["quality"]["float32"] == {"error": 0.0, "bits_per_weight": 32.0}
    for name in names[2:]:
        assert 0 < record["quality"][name]["error"] < 0.1
        assert 4 < record["quality"][name]["bits_per_weight"] < 14
    assert f"| {names[-1]} |" in done.output
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("svd2onnx*.onnx")}
    assert len(made) == 2
    CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("svd2onnx*.onnx")} == made
