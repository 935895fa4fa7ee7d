"""What belongs together is read together and names no folder; all else is refused in one line."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from svd2onnx.deployment.artifact import read_artifact, without_paths
from svd2onnx.reporting.report import read_report
from svd2onnx.values.errors import PlanError, ReportError
from svd2onnx_runtime import GraphError
from tests.svd2onnx.artifacts import copied, edited, in_one_file
from tests.svd2onnx.reports import a_report


def test_a_file_is_read_with_what_is_beside_it(compressed_file: Path) -> None:
    artifact = read_artifact(compressed_file)
    assert artifact.files == (compressed_file, Path(f"{compressed_file}.data"))
    assert artifact.plan == Path(f"{compressed_file}.plan.json").read_text()
    assert artifact.signature.is_batched
    assert artifact.signature.made_by == artifact.report.versions["svd2onnx"]
    assert artifact.report.machine
    assert (artifact.report.source, artifact.report.output) == ("network.py", "out.onnx")


def test_a_file_that_was_renamed_is_the_same_file(compressed_file: Path, tmp_path: Path) -> None:
    artifact = read_artifact(copied(compressed_file, tmp_path, "served.onnx"))
    assert artifact.report.output == "served.onnx"
    assert [file.name for file in artifact.files] == ["served.onnx", "out.onnx.data"]


def test_weights_may_be_in_the_file_and_the_plan_elsewhere(compressed_file: Path, tmp_path: Path) -> None:
    graph = in_one_file(compressed_file, tmp_path)
    Path(f"{graph}.plan.json").unlink()
    artifact = read_artifact(graph)
    assert (artifact.data, artifact.plan) == (None, None)


def assert_refused(graph: Path, error: type[Exception], *parts: str) -> None:
    with pytest.raises(error) as failure:
        read_artifact(graph)
    line = str(failure.value)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_a_file_without_a_report_is_refused(compressed_file: Path, tmp_path: Path) -> None:
    graph = copied(compressed_file, tmp_path)
    Path(f"{graph}.report.json").unlink()
    assert_refused(graph, ReportError, "has no out.onnx.report.json beside it", "put it there")
    Path(f"{graph}.report.json").write_text("{}")
    assert_refused(graph, ReportError, "svd2onnx-report/1")


def test_a_file_of_others_is_refused(compressed_file: Path, tmp_path: Path) -> None:
    reference = compressed_file.with_name("float.onnx")
    assert_refused(reference, ReportError, "not made by svd2onnx", "float.onnx.report.json")
    assert_refused(tmp_path / "no.onnx", GraphError, "No such file")


@pytest.mark.parametrize("name", ["out.onnx", "out.onnx.data"])
def test_a_file_that_is_not_the_report_s_is_refused(compressed_file: Path, tmp_path: Path, name: str) -> None:
    graph = copied(compressed_file, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    place = content.find(b"Identity") if name == "out.onnx" and b"Identity" in content else len(content) - 1
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    assert_refused(graph, Exception, "out.onnx")
    if name.endswith("data"):
        assert_refused(graph, ReportError, "another out.onnx.data", "sha256 differs", "run compress-export")


def test_the_report_of_another_file_is_refused(compressed_file: Path, tmp_path: Path) -> None:
    graph = edited(copied(compressed_file, tmp_path), lambda report: report.update(sha256="0" * 64))
    assert_refused(graph, ReportError, "another out.onnx (its sha256 differs)")


def test_weights_that_are_missing_or_elsewhere_are_refused(compressed_file: Path, tmp_path: Path) -> None:
    graph = copied(compressed_file, tmp_path)
    Path(f"{graph}.data").unlink()
    assert_refused(graph, GraphError, "out.onnx.data, which is not beside it")
    for place, part in (("../xx.data", "outside of its own folder"), ("sub/x.data__", "one file beside it")):
        content = compressed_file.read_bytes().replace(b"out.onnx.data", place.ljust(13, "_").encode()[:13])
        graph.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        edited(graph, lambda report, digest=digest: report.update(sha256=digest))  # type: ignore[misc]
        assert_refused(graph, GraphError, part)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda plan: plan.update(format="x"), "is no plan"),
        (lambda plan: plan["layers"].popitem(), "not the plan of"),
        (lambda plan: plan["layers"]["first"]["dense"].update(bits=8), "not the plan of"),
    ],
    ids=["format", "layer", "bits"],
)
def test_the_plan_of_another_file_is_refused(
    compressed_file: Path, tmp_path: Path, edit: Any, part: str
) -> None:
    assert_refused(edited(copied(compressed_file, tmp_path), edit, ".plan.json"), PlanError, part)


def test_a_report_keeps_names_and_no_paths() -> None:
    report = a_report(
        source="/home/ann/models/minilm.py",
        output="../secret/out.onnx",
        settings={
            "calibration": "/home/ann/data.npz",
            "weights": "C:\\Users\\ann\\w",
            "bits": 4,
            "cache": None,
        },
        warnings=("no data were given", "/home/ann/out.onnx.cache could not keep all"),
        command="svd2onnx compress-export minilm.py --calibration /home/ann/data.npz",
    )
    shared = without_paths(report, "out.onnx")
    assert (shared.source, shared.output) == ("minilm.py", "out.onnx")
    assert shared.settings == {"calibration": "data.npz", "weights": "w", "bits": 4, "cache": None}
    assert shared.warnings == ("no data were given",)
    assert shared.command is None
    assert "ann/" not in shared.to_json()


def test_a_report_tells_of_the_machine_and_the_weights(compressed_file: Path) -> None:
    report = read_report(Path(f"{compressed_file}.report.json"))
    assert report.machine
    assert report.data_sha256
    assert report.data_sha256 != report.sha256
