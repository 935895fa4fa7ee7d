"""The main job on a real network: all-MiniLM-L6-v2 through the command line, held to its promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from svd2onnx.cli.main import main
from svd2onnx.pipeline import final_report
from svd2onnx.reporting.report import LatencyReport
from svd2onnx_runtime import open_session, run

SOURCE = Path(__file__).parents[1] / "models" / "minilm.py"
MATMULS = 36  # six for each of six layers


def compress_export(folder: Path, *options: str) -> dict[str, Any]:
    """Run the command on the CPU and return its report."""
    output = folder / "minilm.onnx"
    arguments = ["compress-export", SOURCE, "-o", output, "--provider", "cpu", *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(output.with_name("minilm.onnx.report.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("minilm")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """Of int4 with the tables quantized too."""
    return compress_export(folder, *"--method quantize --bits 4 --calibration-samples 96".split())


def test_four_bits_keep_at_most_0_16_of_the_bytes(folder: Path, report: dict[str, Any]) -> None:
    assert report["file_bytes"] == (folder / "minilm.onnx").stat().st_size
    assert report["file_bytes"] <= 0.16 * report["float_bytes"]
    # The float graph is the network: 22.6 million float32 parameters and little else.
    assert 90e6 < report["float_bytes"] < 91e6


def test_four_bits_keep_the_embeddings(report: dict[str, Any]) -> None:
    assert report["strict_relative_error"] < 1e-5
    assert report["deployed"]["objective"] == "cosine"
    assert report["deployed"]["samples"] == 256
    assert report["deployed"]["fidelity"] >= 0.96
    assert abs(report["deployed"]["fidelity"] - report["strict_fidelity"]) < 0.01


def test_every_matmul_is_certified(report: dict[str, Any]) -> None:
    certificate = report["certificate"]
    assert certificate["provider"] == "cpu"
    assert certificate["unfused"] == []
    assert certificate["planned"] == len(certificate["fused"]) == MATMULS


def test_the_file_serves_any_batch_and_length(folder: Path, report: dict[str, Any]) -> None:
    session = open_session(folder / "minilm.onnx", "cpu")
    for shape in ((1, 3), (3, 40)):
        ids = np.random.default_rng(0).integers(1000, 20000, shape)
        (output,) = run(session, {"input_ids": ids, "attention_mask": np.ones_like(ids)}).values()
        assert output.shape == (shape[0], 384)
        np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, rtol=0, atol=1e-5)


def test_low_rank_pairs_of_the_first_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The run above has timed MiniLM.
    monkeypatch.setattr(final_report, "time_file", lambda *_: [LatencyReport(1, 1.0, 1.0, 1.0)])
    options = "--method svd --bits 8 --epsilon 0.3 --calibration-samples 64 --include *layer.0*".split()
    report = compress_export(tmp_path, *options)
    chosen = {r["name"]: r for r in report["layers"] if "layer.0." in r["name"] and r["kind"] == "linear"}
    pairs = {name: entry for name, entry in chosen.items() if entry["form"].startswith("rank ")}
    assert len(chosen) == 6
    assert pairs
    for entry in pairs.values():
        rows, columns = entry["shape"]
        assert entry["stored_bytes"] < rows * columns + 2 * rows * -(-columns // 128)
    assert report["certificate"]["unfused"] == []
    assert report["certificate"]["planned"] == len(chosen) + len(pairs)
    # Each layer may err by 0.3 of its output; together that costs 0.07 (measured).
    assert report["deployed"]["fidelity"] > 0.9
    untouched = [r for r in report["layers"] if "layer.1." in r["name"] and r["kind"] == "linear"]
    assert {(r["form"], r["note"]) for r in untouched} == {("float", "not matched by --include")}


@pytest.mark.slow
def test_a_plan_of_the_first_layer_hits_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_report, "time_file", lambda *_: [LatencyReport(1, 1.0, 1.0, 1.0)])
    target = 84_200_000  # 83.2 MB are no Linears of this layer; the rest is about 4.4 bits a weight
    options = f"--target-size {target} --calibration-samples 96 --include *layer.0.*".split()
    report = compress_export(tmp_path, *options)
    assert 0.99 * target < report["file_bytes"] <= target
    assert report["certificate"]["unfused"] == []
    forms = {entry["form"] for entry in report["layers"] if "layer.0." in entry["name"]}
    assert len(forms - {"float"}) >= 1
    assert 0 < report["predicted_error"] < 0.02
    assert report["strict_error"] < 0.02
    choice = report["choice"]
    assert choice["uniform_fits"]
    shipped_uniform = choice["uniform_error"] < choice["planned_error"]
    assert (report["method"] == "quantize") == shipped_uniform
    plan = json.loads((tmp_path / "minilm.onnx.plan.json").read_text())
    assert set(plan["layers"]) <= {entry["name"] for entry in report["layers"]}
