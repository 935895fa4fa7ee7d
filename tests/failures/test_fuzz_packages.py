"""Damaged reports, plans and graphs to package: a whole folder, or one line and nothing."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svd2onnx.cli.main import main
from tests.svd2onnx.artifacts import copied, in_one_file
from tests.svd2onnx.mutations import damaged_bytes, damaged_graph, damaged_json
from tests.svd2onnx.triton_schema import assert_valid, parsed

FEW = settings(
    derandomize=True, max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
MANY = settings(FEW, max_examples=1000)
FORMS = st.sampled_from(["folder", "triton"])


def check(compressed_file: Path, suffix: str, content: bytes, form: str) -> None:
    """Package a copy of the file, one part of which is ``content``; a graph keeps a report of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph = copied(compressed_file, folder) if suffix else in_one_file(compressed_file, folder)
        Path(f"{graph}{suffix}").write_bytes(content)
        if not suffix:
            report = json.loads(Path(f"{graph}.report.json").read_text())
            report["sha256"] = hashlib.sha256(content).hexdigest()
            Path(f"{graph}.report.json").write_text(json.dumps(report))
        before = {path.name for path in folder.iterdir()}
        target = folder / "packaged"
        result = CliRunner().invoke(main, ["package", str(graph), "-o", str(target), "--format", form])
        if result.exit_code == 0:
            if form == "triton":
                assert_valid(parsed((target / "out" / "config.pbtxt").read_text()))
            shutil.rmtree(target)
        else:
            (line,) = result.stderr.splitlines()
            assert result.exit_code == 1
            assert line.startswith("error: ")
            assert not line.startswith("error: unexpected")  # a bug
            assert len(line) < 2000
        assert {path.name for path in folder.iterdir()} == before


def damaged(compressed_file: Path, suffix: str) -> st.SearchStrategy[bytes]:
    if suffix:
        return damaged_json(json.loads(Path(f"{compressed_file}{suffix}").read_text()))
    with tempfile.TemporaryDirectory() as name:
        content = in_one_file(compressed_file, Path(name)).read_bytes()
    return st.one_of(damaged_graph(content), damaged_bytes(content))


PARTS = pytest.mark.parametrize("suffix", [".report.json", ".plan.json", ""], ids=["report", "plan", "graph"])


@PARTS
@given(data=st.data(), form=FORMS)
@FEW
def test_a_damaged_part(compressed_file: Path, suffix: str, data: st.DataObject, form: str) -> None:
    check(compressed_file, suffix, data.draw(damaged(compressed_file, suffix)), form)


@pytest.mark.slow
@PARTS
@given(data=st.data(), form=FORMS)
@MANY
def test_thousands_of_damaged_parts(
    compressed_file: Path, suffix: str, data: st.DataObject, form: str
) -> None:
    check(compressed_file, suffix, data.draw(damaged(compressed_file, suffix)), form)
