"""Damaged ONNX files given to certify, bench and evaluate: one line that names the file, or success.

They are opened in a process of their own, which tells a crash or a hang of native code from a failure.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.values.settings import Settings
from tests.svd2onnx.conftest import MODEL_FILE
from tests.svd2onnx.fuzz_worker import run_command
from tests.svd2onnx.mutations import damaged_bytes, damaged_graph

FEW = settings(
    derandomize=True, max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
MANY = settings(FEW, max_examples=350)
"""For each of three commands and two kinds of damage: 2,100 together."""
LONGEST_S = 120
NOTES = ("not fused: ", "misplaced: ")


@dataclass(frozen=True)
class Files:
    """A good graph, what it is compared with, and the process that tries others."""

    content: bytes
    reference: Path
    task: Path
    pool: ProcessPoolExecutor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    folder = tmp_path_factory.mktemp("graphs")
    task, output, reference = folder / "network.py", folder / "out.onnx", folder / "float.onnx"
    task.write_text(MODEL_FILE)
    compress_export(task, output, Settings(method="quantize", provider="cpu"), reference=reference)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield Files(output.read_bytes(), reference, task, pool)


def check(files: Files, folder: Path, command: str, content: bytes) -> None:
    graph = folder / "graph.onnx"
    graph.write_bytes(content)
    job = files.pool.submit(run_command, command, graph, files.reference, files.task)
    code, out, err = job.result(LONGEST_S)
    assert list(folder.iterdir()) == [graph]
    if code == 0:
        assert err == ""
        assert out
        return
    assert code == 1, err
    assert out == ""
    *notes, line = err.splitlines()
    assert line.startswith("error: "), err
    assert "unexpected" not in line, line
    assert command == "certify" or not notes, err
    assert all(note.startswith(NOTES) for note in notes), err
    assert str(graph) in line or notes, line


COMMANDS = pytest.mark.parametrize("command", ["certify", "bench", "evaluate"])
DAMAGES = pytest.mark.parametrize("damage", [damaged_bytes, damaged_graph], ids=["bytes", "protobuf"])


@COMMANDS
def test_the_good_graph_is_taken(files: Files, tmp_path: Path, command: str) -> None:
    (tmp_path / "graph.onnx").write_bytes(files.content)
    graph = tmp_path / "graph.onnx"
    code, _, err = files.pool.submit(run_command, command, graph, files.reference, files.task).result()
    assert (code, err) == (0, "")


@DAMAGES
@COMMANDS
@given(data=st.data())
@FEW
def test_a_damaged_graph(files: Files, tmp_path: Path, command: str, damage, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    check(files, tmp_path, command, data.draw(damage(files.content)))


@pytest.mark.slow
@DAMAGES
@COMMANDS
@given(data=st.data())
@MANY
def test_two_thousand_damaged_graphs(  # type: ignore[no-untyped-def]
    files: Files, tmp_path: Path, command: str, damage, data: st.DataObject
) -> None:
    check(files, tmp_path, command, data.draw(damage(files.content)))
