"""The Python of the documents that compresses a network, run on a small one in the place of the reader's."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from svd2onnx.pipeline import final_report
from svd2onnx.reporting.report import CompressionReport, LatencyReport
from tests.docs.documents import ROOT, Block, blocks_of

BLOCKS = [
    pytest.param(block, id=f"{name}:{block.line}")
    for name in ("README.md", "docs/how-to.md")
    for block in blocks_of(ROOT / name)
    if block.info == "python" and "svd2onnx.compress(" in block.text
]


def test_both_documents_show_it() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_runs_as_it_stands(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(final_report, "time_file", lambda *_: [LatencyReport(1, 1.0, 1.0, 1.0)])
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(60, 64), torch.randint(0, 9, (60,)))
    scope: dict[str, object] = {
        "model": nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)),
        "loader": DataLoader(data, batch_size=20, shuffle=True),
    }
    exec(block.text, scope)
    report = scope["report"]
    assert isinstance(report, CompressionReport)
    assert report.deployed.fidelity > 0.9
    assert report.file_bytes == Path(report.output).stat().st_size < report.float_bytes / 2
    for path in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
