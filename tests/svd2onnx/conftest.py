"""Model files that tests write, run and break."""

from collections.abc import Callable
from pathlib import Path

import pytest

MODEL_FILE = '''
"""ids [batch, length] -> [batch, length, 64]: a table and two Linears."""
import torch
from torch import nn

objective = "cosine"
dynamic_shapes = {"ids": {0: "batch", 1: "sequence"}}

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(160, 64)
        self.first, self.norm, self.second = nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64)

    def forward(self, ids):
        return self.second(torch.relu(self.norm(self.first(self.table(ids)))))

def build():
    torch.manual_seed(0)
    return Network()

def inputs(split, data=None):
    torch.manual_seed({"calibration": 1, "recovery": 2, "evaluation": 3}[split])
    for length in (6, 9):
        yield {"ids": torch.randint(0, 160, (8, length)), "label": torch.zeros(8)}

def metric(outputs, batch):
    (output,) = outputs.values()
    return {"positive": float((output > 0).mean())}
'''


@pytest.fixture
def write_model_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a model file: a whole one, with text replaced (each must occur) or added at its end."""

    def write(*replacements: tuple[str, str], add: str = "", name: str = "network.py") -> Path:
        text = MODEL_FILE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(f"{text}\n{add}\n")
        return path

    return write


@pytest.fixture
def model_file(write_model_file: Callable[..., Path]) -> Path:
    return write_model_file()


@pytest.fixture(scope="session")
def compressed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed file with its weights, its report and its plan beside it; not to be changed."""
    from tests.svd2onnx.artifacts import compress

    return compress(tmp_path_factory.mktemp("compressed"))
