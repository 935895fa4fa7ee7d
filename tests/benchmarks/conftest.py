"""A network of a table and two Linears, as a model file and as the task that contenders get."""

from pathlib import Path

import pytest

from benchmarks.judging import Judge, judge_of
from benchmarks.task import Task, load_task

MODEL_FILE = '''
"""ids and mask [batch, length] -> [batch, 64]: a table, two Linears, and the mean over the real tokens."""
import torch
from torch import nn

objective = "cosine"
dynamic_shapes = {name: {0: "batch", 1: "sequence"} for name in ("ids", "attention_mask")}
remark = "made by a test"

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(160, 64)
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, ids, attention_mask):
        hidden = self.second(torch.relu(self.first(self.table(ids))))
        return (hidden * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)

def build():
    torch.manual_seed(0)
    return Network()

def inputs(split, data=None):
    torch.manual_seed({"calibration": 1, "recovery": 2, "evaluation": 3}[split])
    for length in (6, 9):
        mask = torch.ones(8, length, dtype=torch.int64)
        mask[:3, 4:] = 0
        yield {"ids": torch.randint(0, 160, (8, length)), "attention_mask": mask}

def metric(outputs, batch):
    (output,) = outputs.values()
    return {"positive": output[:, 0] > 0}

def summary(columns):
    return {"share": float(columns["positive"].mean())}
'''


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.py"
    path.write_text(MODEL_FILE)
    return path


@pytest.fixture(scope="session")
def task(source: Path) -> Task:
    return load_task(source, None, 16, source.with_name("float32.onnx"))


@pytest.fixture(scope="session")
def judge(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return judge_of(task, tmp_path_factory.mktemp("answers"))
