"""The GPU benchmark, on the CPU: a folder is built here, and measured where torch and onnx are blocked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu, gpu_graphs
from benchmarks.gpu_folder import GraphEntry, Manifest, read_manifest

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own

ROOT = Path(__file__).parents[2]
NAMES = [
    *("float32", "float16", "onnxruntime 4-bit", "onnxruntime dynamic int8"),
    *("svd2onnx", "svd2onnx folded", "svd2onnx matmulnbits", "svd2onnx float16"),
    *("svd2onnx folded float16", "svd2onnx matmulnbits float16", "svd2onnx int8 activations"),
]

BLOCK_AND_RUN = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "click", "matplotlib", "svd2onnx"):
    sys.modules[name] = None  # importing it raises ImportError
import svd2onnx_runtime.memory
svd2onnx_runtime.memory._PROCESSES = 1
from benchmarks.gpu import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    arguments = [str(source), "-o", str(folder), "--target-size", "0.5x", "--calibration-samples", "16"]
    done = CliRunner().invoke(gpu_graphs.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder


def measure(folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    arguments = [*("--provider", "cpu"), *("--batches", "1,2"), *("--sequence", "7"), *("--threads", "1")]
    return subprocess.run(
        [sys.executable, "-c", BLOCK_AND_RUN, str(folder), "-o", str(output), *arguments, "--repeats", "3"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "runtime")))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_is_measured_without_torch_and_onnx(folder: Path, tmp_path: Path) -> None:
    done = measure(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    assert [graph["name"] for graph in record["graphs"]] == NAMES
    for graph in record["graphs"]:
        assert graph["failure"] is None
        assert graph["fidelity"] > 0.9
        assert graph["unfused"] == []
    assert record["graphs"][NAMES.index("svd2onnx")]["quantized"] == 2
    assert [timing["batch"] for timing in record["bench"]["batches"]] == [1, 2]
    assert [graph["name"] for graph in record["bench"]["graphs"]] == NAMES
    assert "| svd2onnx |" in done.stdout


def test_a_graph_that_fails_is_reported_and_the_others_are_measured(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (manifest.graphs[0].file, *manifest.batches):
        (broken / file).write_bytes((folder / file).read_bytes())
    (broken / "junk.onnx").write_bytes(b"no protobuf")
    entries = (manifest.graphs[0], GraphEntry("junk", "junk.onnx", "no graph"))
    Manifest(manifest.source, manifest.objective, entries, manifest.batches).write(broken)
    done = measure(broken, tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["graphs"][0]["fidelity"] == 1
    assert "cannot load" in record["graphs"][1]["failure"]
    assert [graph["name"] for graph in record["bench"]["graphs"]] == ["float32"]
    assert "fails: onnxruntime cannot load" in done.stdout


def test_a_provider_that_is_not_here_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("svd2onnx_runtime.session.gpu_count", lambda: 0)
    assert gpu.main([str(folder), "-o", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: provider 'cuda' needs a GPU")


def test_graphs_of_the_folder_are_not_built_again(folder: Path, source: Path) -> None:
    made = {path: path.stat().st_mtime_ns for path in folder.glob("svd2onnx*.onnx")}
    assert len(made) == 7
    CliRunner().invoke(gpu_graphs.main, [str(source), "-o", str(folder), "--calibration-samples", "16"])
    assert {path: path.stat().st_mtime_ns for path in folder.glob("svd2onnx*.onnx")} == made


def test_the_inputs_are_those_that_the_graphs_take(folder: Path) -> None:
    batches = list(read_manifest(folder).inputs(folder))
    assert [set(batch) for batch in batches] == [{"ids", "attention_mask"}] * 2
    assert all(np.issubdtype(array.dtype, np.int64) for batch in batches for array in batch.values())
