"""The C++ program: it builds without a warning, gives Python's numbers, and one line for what is wrong."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.examples.conftest import EXAMPLES, Served, assert_same, need

FOLDER = EXAMPLES / "cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("cmake", "c++"):
        need(shutil.which(tool) is not None, f"no {tool} here")
    need((FOLDER / "onnxruntime" / "lib").is_dir(), "no onnxruntime in examples/cpp")
    build = tmp_path_factory.mktemp("cpp")
    for command in (["cmake", "-S", FOLDER, "-B", build], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return build / "run"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_gives_the_numbers_of_python(program: Path, served: Served, tmp_path: Path) -> None:
    served.pixels.tofile(tmp_path / "pixels.f32")
    done = run(program, served.graph, tmp_path / "pixels.f32")
    assert done.returncode == 0, done.stderr
    assert_same(
        [[float(number) for number in line.split()] for line in done.stdout.splitlines()], served.scores
    )


def test_what_is_wrong_is_one_line(program: Path, served: Served, tmp_path: Path) -> None:
    np.zeros(65, np.float32).tofile(tmp_path / "odd.f32")
    (tmp_path / "no.onnx").write_text("no graph")
    wrong = {
        "error: expected MODEL.onnx and INPUT.f32": (),
        "error: Load model from": (tmp_path / "no.onnx", tmp_path / "odd.f32"),
        "error: cannot read": (served.graph, tmp_path / "none.f32"),
        "error: expected samples of 256 bytes": (served.graph, tmp_path / "odd.f32"),
    }
    for sentence, arguments in wrong.items():
        done = run(program, *arguments)
        assert done.returncode == (1 if arguments else 2)
        (line,) = done.stderr.splitlines()
        assert line.startswith(sentence)
