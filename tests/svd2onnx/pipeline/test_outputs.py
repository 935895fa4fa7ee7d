"""One application runs every file of a network: the names of its outputs are the same in all of them."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.values.errors import ExportError, SourceError
from svd2onnx.values.settings import Settings

pytestmark = pytest.mark.usefixtures("no_bench")

NAMED = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return {"logits": self.head(h), "features": {"last": h}, "count": 3}

def build():
    torch.manual_seed(0)
    return Network()

def inputs(split):
    torch.manual_seed(len(split))
    for _ in range(2):
        yield {"x": torch.randn(8, 64)}
"""
SETTINGS = Settings("quantize", bits=8, provider="cpu", calibration_samples=16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(NAMED)
    return path


def names(path: Path) -> list[str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [output.name for output in session.get_outputs()]


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 4},
        {"method": "svd", "epsilon": 0.2},
        {"activations": "int8"},
        {"dtype": "float16"},
        {"operator": "matmulnbits"},
        {"operator": "folded"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_the_names_are_those_of_the_network_in_every_form(
    changes: dict[str, str], source: Path, tmp_path: Path
) -> None:
    output, reference = tmp_path / "out.onnx", tmp_path / "float.onnx"
    compress_export(source, output, replace(SETTINGS, **changes), reference=reference)  # type: ignore[arg-type]
    assert names(output) == names(reference) == ["logits", "features.last"]


def test_a_model_file_may_name_them(source: Path, tmp_path: Path) -> None:
    source.write_text(NAMED + 'outputs = ["action", "state"]\n')
    output, reference = tmp_path / "out.onnx", tmp_path / "float.onnx"
    compress_export(source, output, SETTINGS, reference=reference)
    assert names(output) == names(reference) == ["action", "state"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ('["action"]', ExportError, "outputs names 1 tensors (action), and the network gives 2"),
        ('["a", "a"]', SourceError, "must be a list of different names"),
        ('"action"', SourceError, "must be a list of different names"),
        ("[]", SourceError, "must be a list of different names"),
        ("[1, 2]", SourceError, "must be a list of different names"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    given: str, error: type[Exception], message: str, source: Path, tmp_path: Path
) -> None:
    source.write_text(f"{NAMED}outputs = {given}\n")
    with pytest.raises(error, match=r"outputs") as caught:
        compress_export(source, tmp_path / "out.onnx", SETTINGS)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("*.onnx*"))
