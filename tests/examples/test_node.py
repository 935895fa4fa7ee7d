"""The Node script: Python's numbers, and one line for what is wrong."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, Served, assert_same, need

FOLDER = EXAMPLES / "node"


def node(*arguments: object) -> subprocess.CompletedProcess[str]:
    need(shutil.which("node") is not None, "no node here")
    need((FOLDER / "node_modules" / "onnxruntime-node").is_dir(), "no onnxruntime-node in examples/node")
    command = ["node", FOLDER / "run.js", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_gives_the_numbers_of_python(served: Served) -> None:
    done = node(served.graph, served.body_file)
    assert done.returncode == 0, done.stderr
    (scores,) = json.loads(done.stdout).values()
    assert_same(scores, served.scores)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ("pixels", "the inputs are no JSON"),
        ("null", "the inputs are no object"),
        ("{}", "the inputs hold no pixels"),
        ('{"pixels": [[1], [2, 3]]}', "make them equally long"),
        ('{"pixels": ["a"]}', "not numbers"),
        ('{"pixels": [1]}', "Invalid rank for input: pixels"),
    ],
)
def test_what_is_wrong_is_one_line(served: Served, tmp_path: Path, inputs: str, sentence: str) -> None:
    (tmp_path / "inputs.json").write_text(inputs)
    done = node(served.graph, tmp_path / "inputs.json")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_a_missing_file_is_one_line(served: Served, tmp_path: Path) -> None:
    for arguments in ((tmp_path / "none.onnx", served.body_file), (served.graph, tmp_path / "none.json"), ()):
        done = node(*arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
