"""Folders to deploy from: whole or absent, the same for the same file, and they run as the file does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result

from svd2onnx.cli.main import main
from svd2onnx.deployment.artifact import read_artifact
from svd2onnx.reporting.report import file_digest, read_report
from tests.svd2onnx.artifacts import copied, edited, in_one_file
from tests.svd2onnx.processes import finish, start
from tests.svd2onnx.triton_schema import assert_valid, parsed, shape_of

LEVELS = {
    # As Triton's onnxruntime backend reads optimization { graph { level } }.
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def package(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["package", *map(str, arguments)])


def assert_fails(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "unexpected" not in line
    for part in parts:
        assert part in line
    assert result.stdout == ""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of ``folder``, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outputs(graph: Path, options: ort.SessionOptions | None = None) -> np.ndarray:
    ids = np.arange(24, dtype=np.int64).reshape(3, 8)
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"ids": ids})
    return np.asarray(output)


def assert_checksums(folder: Path) -> None:
    """They are of every file beside them, and coreutils accepts them."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line[66:] for line in lines} == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_holds_the_file_and_all_that_is_known_of_it(compressed_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shipped"
    result = package(compressed_file, "-o", folder)
    names = ["out.onnx", "out.onnx.data", *(f"out.onnx.{end}" for end in ("report.json", "report.html"))]
    names += ["out.onnx.plan.json", "README.md", "SHA256SUMS"]
    assert (result.exit_code, result.stdout.split()) == (0, [str(folder / name) for name in names])
    assert sorted(contents(folder)) == sorted(names)
    assert (folder / "out.onnx").read_bytes() == compressed_file.read_bytes()
    assert np.array_equal(outputs(folder / "out.onnx"), outputs(compressed_file))
    assert_checksums(folder)
    assert read_report(folder / "out.onnx.report.json").sha256 in (folder / "README.md").read_text()
    assert "int4/32" in (folder / "out.onnx.report.html").read_text()


@pytest.mark.parametrize("form", ["folder", "triton"])
def test_the_same_file_gives_the_same_bytes_without_paths(
    compressed_file: Path, tmp_path: Path, form: str
) -> None:
    made = []
    for name in ("a", "b"):
        place = tmp_path / name
        place.mkdir()
        graph = copied(compressed_file, place)
        os.utime(graph, (0, 0))
        assert package(graph, "-o", place / "shipped", "--format", form).exit_code == 0
        made.append(contents(place / "shipped"))
    assert made[0] == made[1]
    for content in made[0].values():
        assert str(compressed_file.parent).encode() not in content
        assert str(tmp_path).encode() not in content


def test_a_packaged_folder_can_be_packaged_again(compressed_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert package(compressed_file, "-o", first).exit_code == 0
    assert package(first / "out.onnx", "-o", second).exit_code == 0
    assert contents(first) == contents(second)


@pytest.mark.parametrize("is_whole", [True, False], ids=["one file", "weights beside it"])
def test_triton_gets_a_model_that_computes_the_same(
    compressed_file: Path, tmp_path: Path, is_whole: bool
) -> None:
    graph = in_one_file(compressed_file, tmp_path) if is_whole else compressed_file
    repository = tmp_path / "repository"
    result = package(
        graph, "-o", repository, "--format", "triton", "--threads", 1, "--max-batch", 4, "--json"
    )
    assert result.exit_code == 0, result.output
    data = [] if is_whole else ["out.onnx.data"]
    names = ["config.pbtxt", *(f"1/{name}" for name in ("model.onnx", *data, "README.md", "SHA256SUMS"))]
    record = json.loads(result.stdout)
    assert record["files"] == [str(repository / "out" / name) for name in names]
    assert record["remarks"] == []
    assert sorted(contents(repository)) == sorted(f"out/{name}" for name in names)
    assert_checksums(repository / "out" / "1")
    assert '"model.onnx"' in (repository / "out" / "1" / "README.md").read_text()

    config = parsed((repository / "out" / "config.pbtxt").read_text())
    assert_valid(config)
    assert (config.name, config.backend, config.max_batch_size) == ("out", "onnxruntime", 4)
    model = repository / "out" / "1" / (config.default_model_filename or "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[config.optimization.graph.level]
    options.intra_op_num_threads = int(config.parameters["intra_op_thread_count"].string_value)
    assert np.array_equal(outputs(model, options), outputs(compressed_file))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for told, seen in zip(
        (*config.input, *config.output), (*session.get_inputs(), *session.get_outputs()), strict=True
    ):
        assert told.name == seen.name
        assert shape_of(told, config) == [dim if isinstance(dim, int) else -1 for dim in seen.shape]


def test_the_level_that_triton_is_told_fuses_and_those_it_is_warned_of_do_not(
    compressed_file: Path, tmp_path: Path
) -> None:
    graph = in_one_file(compressed_file, tmp_path)
    fused = {}
    for level, own in LEVELS.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = own
        options.optimized_model_filepath = str(tmp_path / f"{level}.onnx")
        options.log_severity_level = 4
        outputs(graph, options)
        ops = [node.op_type for node in ir.load(tmp_path / f"{level}.onnx").graph]
        fused[level] = ops.count("MatMulNBits")
    assert fused == {0: 2, -1: 0, 1: 2, 2: 0}


def test_a_version_is_added_beside_those_that_are_there(compressed_file: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    options = ("-o", repository, "--format", "triton", "--name", "model")
    assert package(compressed_file, *options, "--version", 2).exit_code == 0
    config = repository / "model" / "config.pbtxt"
    config.write_text(config.read_text() + "\n# tuned by hand\n")
    before = contents(repository)
    assert_fails(package(compressed_file, *options, "--version", 2), "model/2", "another by --version")
    assert contents(repository) == before
    result = package(compressed_file, *options, "--version", 10)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (
        0,
        "config.pbtxt was there and stays as it is",
    )
    after = contents(repository)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        name.replace("/2/", "/10/") for name in before if "/2/" in name
    }
    assert package(compressed_file, "-o", repository, "--format", "triton").exit_code == 0
    assert {path.name for path in repository.iterdir()} == {"model", "out"}


def test_a_version_that_takes_something_else_is_refused(compressed_file: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert package(compressed_file, "-o", repository, "--format", "triton").exit_code == 0
    other = ir.load(repository / "out" / "1" / "model.onnx")
    other.graph.inputs[0].name = "tokens"
    ir.save(other, repository / "out" / "1" / "model.onnx")
    again = (compressed_file, "-o", repository, "--format", "triton", "--version", 2)
    assert_fails(package(*again), "tokens int64 [batch, sequence]", "ids int64", "another --name")
    shutil.rmtree(repository / "out" / "1")
    assert_fails(package(*again), "no ONNX model of Triton's")
    assert sorted(contents(repository)) == ["out/config.pbtxt"]


def test_what_is_there_is_not_replaced(compressed_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    assert_fails(package(compressed_file, "-o", folder), "there already", "name another folder")
    assert_fails(package(compressed_file, "-o", tmp_path / "no" / "where"), "does not exist")
    (tmp_path / "file").write_text("")
    for form in ("folder", "triton"):
        assert_fails(package(compressed_file, "-o", tmp_path / "file", "--format", form), "file")
    assert contents(tmp_path) == {"mine/letter.txt": b"dear", "file": b""}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--name", "a/b"], "no name of a model"),
        (["--name", ""], "no name of a model"),
        (["--provider", "cuda", "--dim", "sequence=0"], "no positive size"),
    ],
    ids=["name", "empty", "size"],
)
def test_wrong_options_are_refused(
    compressed_file: Path, tmp_path: Path, options: list[str], part: str
) -> None:
    result = package(compressed_file, "-o", tmp_path / "r", "--format", "triton", *options)
    assert result.exit_code in (1, 2)
    assert part in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_for_a_gpu_is_warmed_up_by_a_request_that_works(
    compressed_file: Path, tmp_path: Path
) -> None:
    options = ("--format", "triton", "--provider", "cuda", "--dim", "sequence=5")
    result = package(compressed_file, "-o", tmp_path / "r", *options)
    assert result.exit_code == 0, result.output
    assert "certify" in result.stdout.splitlines()[-1]
    config = parsed((tmp_path / "r" / "out" / "config.pbtxt").read_text())
    assert_valid(config)
    assert list(config.model_warmup[0].inputs["ids"].dims) == [5]


def test_a_first_request_that_fails_is_found_here(compressed_file: Path, tmp_path: Path) -> None:
    graph = in_one_file(compressed_file, tmp_path)
    model = ir.load(graph)
    # Of texts of seven tokens, as a network with a table of positions is of no longer ones than its table.
    positions = ir.Value(name="positions", const_value=ir.tensor(np.zeros(7, np.int64), name="positions"))
    model.graph.initializers.add(positions)
    add = ir.Node("", "Add", [model.graph.inputs[0], positions])
    (limited,) = add.outputs
    limited.name, limited.type = "limited", ir.TensorType(ir.DataType.INT64)
    limited.shape = ir.Shape(["batch", 7])
    model.graph.append(add)
    model.graph.outputs.append(limited)
    ir.save(model, graph)
    edited(graph, lambda report: report.update(sha256=file_digest(graph)))
    options = ("-o", tmp_path / "r", "--format", "triton", "--provider", "cuda")
    assert_fails(package(graph, *options, "--dim", "sequence=9"), "on zeros", "--dim")
    assert not (tmp_path / "r").exists()
    assert package(graph, *options, "--dim", "sequence=7").exit_code == 0


def test_a_kill_leaves_nothing_that_looks_whole_and_the_next_run_cleans_up(
    compressed_file: Path, tmp_path: Path
) -> None:
    code = (
        "import os, signal, svd2onnx.deployment.packaging as p\n"
        "p.file_digest = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from svd2onnx.cli.main import main; main()"
    )
    arguments = ("package", compressed_file, "-o", tmp_path / "r", "--format", "triton")
    code_number, _, _ = finish(start(arguments, command=(sys.executable, "-c", code)))
    assert code_number == -signal.SIGKILL
    assert not (tmp_path / "r").exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert package(*arguments[1:]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_repository_that_is_served_holds_no_drafts_of_models(
    compressed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / "other").mkdir(parents=True)
    seen = []

    def digest(path: Path) -> str:
        seen.append(sorted(own.name for own in repository.iterdir()))
        return file_digest(path)

    monkeypatch.setattr("svd2onnx.deployment.packaging.file_digest", digest)
    assert package(compressed_file, "-o", repository, "--format", "triton").exit_code == 0
    assert set(map(tuple, seen)) == {("other",)}
    assert sorted(own.name for own in repository.iterdir()) == ["other", "out"]


def test_int8_layers_are_for_the_cpu(compressed_file: Path, tmp_path: Path) -> None:
    graph = copied(compressed_file, tmp_path)
    Path(f"{graph}.plan.json").unlink()
    edited(graph, lambda report: report["layers"][0].update(form="int8/128, int8 activations"))
    options = ("-o", tmp_path / "r", "--format", "triton", "--provider")
    assert_fails(package(graph, *options, "cuda"), "1 layers of", "--provider cpu", "--activations float")
    assert package(graph, *options, "cpu").exit_code == 0
    assert "one scale for all activations" in (tmp_path / "r" / "out" / "1" / "README.md").read_text()


def test_a_name_that_the_package_needs_is_refused(compressed_file: Path, tmp_path: Path) -> None:
    graph = copied(compressed_file, tmp_path, "README.md")
    assert read_artifact(graph).report.output == "README.md"
    assert_fails(package(graph, "-o", tmp_path / "f"), "README.md is the name of another file there")
    assert not (tmp_path / "f").exists()
