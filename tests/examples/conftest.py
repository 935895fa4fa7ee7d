"""One compressed network that every serving example runs, and what Python's onnxruntime gives for it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.values.settings import Settings
from svd2onnx_runtime import open_session, run

EXAMPLES = Path(__file__).parents[2] / "examples"

# Every form that a layer can have: a folded convolution; a dense term of 2 bits and a correction of 4.
PLAN = {
    "format": "svd2onnx-plan/1",
    "method": "auto",
    "layers": {
        "features.3": {"dense": {"bits": 8, "block_size": 32}},
        "hidden": {
            "dense": {"bits": 2, "block_size": 64},
            "rank": 32,
            "factors": {"bits": 4, "block_size": 32},
        },
    },
}


@dataclass(frozen=True)
class Served:
    """A compressed graph, some inputs for it, and its scores in a default session in Python.

    ``float_scores`` are those without the rounding of activations to 8 bits, which WebAssembly does not do.
    """

    graph: Path
    pixels: np.ndarray
    scores: np.ndarray
    float_scores: np.ndarray

    @property
    def body(self) -> str:
        """The inputs as JSON, as the examples take them; every float32 is a decimal that gives it back."""
        return json.dumps({"pixels": self.pixels.tolist()})

    @property
    def body_file(self) -> Path:
        path = self.graph.with_name("inputs.json")
        path.write_text(self.body)
        return path


def assert_same(found: object, expected: np.ndarray) -> None:
    """The numbers are Python's, but for the last bits: other builds may add in another order."""
    assert np.shape(found) == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def need(there: bool, what: str) -> None:
    """Skip where ``what`` is missing; under ``make test-serving``, which installs it, fail."""
    if not there:
        message = f"{what}: make test-serving installs it"
        pytest.fail(message) if os.environ.get("SVD2ONNX_TEST_SERVING") else pytest.skip(message)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("digits")
    for file in (EXAMPLES / "digits").glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    # Trained a little: what is served need not be good here.
    train = (folder / "train.py").read_text()
    assert "range(15)" in train
    (folder / "train.py").write_text(train.replace("range(15)", "range(1)"))
    done = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "plan.json").write_text(json.dumps(PLAN))
    settings = Settings(plan=folder / "plan.json", calibration_samples=200, provider="cpu")
    compress_export(folder / "digits.py", folder / "digits.onnx", settings)
    pixels = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    sessions = [open_session(folder / "digits.onnx", "cpu", strict=strict) for strict in (False, True)]
    scores, float_scores = (
        output for session in sessions for output in run(session, {"pixels": pixels}).values()
    )
    return Served(folder / "digits.onnx", pixels, scores, float_scores)
