"""The command line from the outside: what it writes, what it prints, how it fails."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from svd2onnx.cli.main import main
from svd2onnx_runtime import gpu_count
from tests.svd2onnx.conftest import MODEL_FILE

Write = Callable[..., Path]


def svd2onnx(*arguments: object) -> Result:
    """Run a command in this process; bugs pass through as they are."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_fails(result: Result, *parts: str) -> None:
    """Exit code 1 and exactly one line on stderr, which holds ``parts``."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert "unexpected" not in line
    assert result.stdout == ""


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


@dataclass(frozen=True)
class Run:
    """One finished compression."""

    method: str
    bits: int
    source: Path
    output: Path
    result: Result

    @property
    def reference(self) -> Path:
        return self.output.with_name("float.onnx")


@pytest.fixture(
    scope="module", params=[("quantize", 8), ("quantize", 4), ("quantize", 2), ("svd", 8)], ids=str
)
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    method, bits = request.param
    folder = tmp_path_factory.mktemp("cli")
    source, output = folder / "network.py", folder / "out.onnx"
    source.write_text(MODEL_FILE)
    options = ["--method", method, "--bits", bits, "--provider", "cpu"]
    options += ["--epsilon", 0.9] if method == "svd" else []
    written = ["-o", output, "--reference", folder / "float.onnx", "--report", folder / "out.html"]
    result = svd2onnx("compress-export", source, *written, *options)
    assert result.exit_code == 0, result.output
    return Run(method, bits, source, output, result)


ONE_FILE = pytest.mark.parametrize("compressed", [("quantize", 4)], indirect=True, ids=str)


def test_compress_export_writes_the_file_its_report_and_the_reference(compressed: Run) -> None:
    assert files_of(compressed.output.parent) == {
        "network.py",
        "out.onnx",
        "out.onnx.report.json",
        "out.onnx.plan.json",
        "float.onnx",
        "out.html",
    }
    report = json.loads(compressed.output.with_name("out.onnx.report.json").read_text())
    assert report["file_bytes"] == compressed.output.stat().st_size
    assert report["float_bytes"] == compressed.reference.stat().st_size
    assert report["method"] == compressed.method
    assert report["settings"]["bits"] == compressed.bits
    assert report["certificate"]["unfused"] == []
    forms = {layer["name"]: layer["form"] for layer in report["layers"]}
    block = {8: 128, 4: 32, 2: 32}[compressed.bits]
    expected = f"int{compressed.bits}/{block}"
    assert forms["table"] == f"int{compressed.bits}/{min(block, 64)}"
    if compressed.method == "svd":
        assert forms["first"].startswith("rank ")
        assert forms["first"].endswith(expected)
    else:
        assert forms["first"] == forms["second"] == expected


def test_the_result_shows_what_is_kept_and_where_the_files_are(compressed: Run) -> None:
    text = " ".join(compressed.result.stdout.split())
    kept = compressed.output.stat().st_size / compressed.reference.stat().st_size
    assert f"{1 / kept:.1f} times smaller, {kept:.1%} of float32" in text
    assert " fused of " in text
    assert f"svd2onnx bench {compressed.output} --reference {compressed.reference}" in text
    assert "out.onnx, .report.json and .plan.json beside it" in text.replace("/ ", "/")


@ONE_FILE
def test_the_page_of_an_earlier_run_is_the_one_that_the_run_wrote(compressed: Run, tmp_path: Path) -> None:
    page = compressed.output.with_name("out.html").read_text()
    assert "int4/32" in page
    assert str(compressed.source) in page
    report_json = compressed.output.with_name("out.onnx.report.json")
    result = svd2onnx("report", report_json, "-o", tmp_path / "again.html")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'again.html'}\n")
    assert (tmp_path / "again.html").read_text() == page
    (tmp_path / "x.report.json").write_bytes(report_json.read_bytes())
    result = svd2onnx("report", tmp_path / "x.report.json", "--json")
    assert json.loads(result.stdout) == {"output": str(tmp_path / "x.report.html")}
    assert (tmp_path / "x.report.html").read_text() == page


def test_the_page_cannot_be_the_graph_itself(model_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert_fails(svd2onnx("compress-export", model_file, "-o", output, "--report", output), str(output))
    assert files_of(tmp_path) == {"network.py"}


def test_a_report_that_is_none_leaves_no_page(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert_fails(svd2onnx("report", tmp_path / "a.json"), "a.json", "svd2onnx-report/1", "None")
    assert_fails(svd2onnx("report", tmp_path / "missing.json"), "missing.json", "No such file")
    assert files_of(tmp_path) == {"a.json"}


@ONE_FILE
def test_results_as_json(compressed: Run) -> None:
    certified = json.loads(svd2onnx("certify", compressed.output, "--provider", "cpu", "--json").stdout)
    assert certified["certified"] is True
    assert len(certified["fused"]) == certified["planned"] == 2
    pair = (compressed.output, "--reference", compressed.reference)
    evaluated = svd2onnx("evaluate", *pair, "--task", compressed.source, "--provider", "cpu", "--json")
    assert json.loads(evaluated.stdout)["objective"] == "cosine"
    benched = svd2onnx("bench", *pair, "--repeats", 2, "--batch", 1, "--provider", "cpu", "--json")
    assert [graph["name"] for graph in json.loads(benched.stdout)["graphs"]] == ["reference", "graph"]
    failed = svd2onnx("certify", compressed.reference, "--provider", "cpu", "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["certified"] is False
    assert failed.stderr.startswith("error: ")


def test_certify_passes(compressed: Run) -> None:
    result = svd2onnx("certify", compressed.output, "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("all ")
    assert result.stderr == ""


@ONE_FILE
def test_certify_of_folded_weights_says_so(compressed: Run, tmp_path: Path) -> None:
    from svd2onnx.graph.file_formats import to_format
    from svd2onnx.values.settings import FileFormat

    to_format(compressed.output, tmp_path / "folded.onnx", FileFormat("folded"))
    result = svd2onnx("certify", tmp_path / "folded.onnx", "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert "run as planned on cpu: " in result.stdout
    assert " folded of " in result.stdout


@ONE_FILE
def test_certify_of_a_copied_or_misplaced_node_fails(
    compressed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import svd2onnx_runtime
    from svd2onnx_runtime import Certificate

    copies = ("Memcpy_1", "copies from host to device on every call")
    certificate = Certificate("cuda", "1.31", 1, ("a",), (), misplaced=(copies,), capture_obstacles=(copies,))
    monkeypatch.setattr(svd2onnx_runtime, "certify", lambda *_: certificate)
    result = svd2onnx("certify", compressed.output)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "misplaced: Memcpy_1: copies from host to device on every call"
    assert "1 nodes of " in result.stderr


def test_evaluate_measures_both_graphs(compressed: Run) -> None:
    result = svd2onnx(
        *("evaluate", compressed.output, "--reference", compressed.reference),
        *("--task", compressed.source, "--provider", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "fidelity (cosine)" in result.stdout
    assert "positive" in result.stdout


@ONE_FILE
def test_bench_times_all_graphs(compressed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    json_path, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    result = svd2onnx(
        *("bench", compressed.output, "--reference", compressed.reference, "--repeats", 3, "--batch", 2),
        *("--against", f"a copy={compressed.output}", "--dim", "sequence=5", "--provider", "cpu"),
        *("--threads", 1, "-o", json_path, "--plot", plot),
    )
    assert result.exit_code == 0, result.output
    record = json.loads(json_path.read_text())
    names = ["reference", "graph", "a copy"]
    assert [graph["name"] for graph in record["graphs"]] == names
    assert record["graphs"][1]["file_bytes"] == compressed.output.stat().st_size
    assert (record["threads"], record["repeats"]) == (1, 3)
    (timing,) = record["batches"]
    assert timing["batch"] == 2
    assert [graph["name"] for graph in timing["graphs"]] == names
    assert plot.read_bytes().startswith(b"\x89PNG")
    for part in ("x limit", "peak MB, load", "a copy"):
        assert part in result.stdout


@ONE_FILE
def test_a_plot_without_matplotlib_is_refused_before_anything_is_timed(
    compressed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = svd2onnx("bench", compressed.output, "--plot", tmp_path / "bench.png")
    assert_fails(result, "pip install 'svd2onnx[plot]'")


def test_inspect_lists_every_layer_with_its_reason(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = svd2onnx("inspect", model_file)
    assert result.exit_code == 0, result.output
    for name in ("table", "first", "second", "norm"):
        assert name in result.stdout
    assert "LayerNorm layers are kept in float" in result.stdout


# Failures: one line, exit code 1, nothing left.


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("missing.py", None, "no such file or folder"),
        ("empty.py", "", "is empty"),
        ("model.txt", "x", "of no known kind"),
        ("broken.py", "def build(:", "SyntaxError"),
        ("no_build.py", "def inputs(split): ...", "no function build()"),
    ],
)
@pytest.mark.parametrize("command", ["compress-export", "inspect"])
def test_a_bad_source(tmp_path: Path, command: str, name: str, content: str | None, part: str) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_text(content)
    before = files_of(tmp_path)
    output = ("-o", tmp_path / "out.onnx") if command == "compress-export" else ()
    assert_fails(svd2onnx(command, source, *output), str(source), part)
    assert files_of(tmp_path) == before


NAN = "    network = Network()\n    network.first.weight.data[0, 0] = float('nan')\n    return network"


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        (("    return Network()", NAN), (), ("'first.weight'", "NaN")),
        (("    return Network()", "    raise OSError('no weights')"), (), ("build()", "OSError: no weights")),
        (("    return Network()", "    return 3"), (), ("torch.nn.Module, not int",)),
        (("(0, 160, (8", "(900, 999, (8"), (), ("forward", "index out of range")),
        (('"cosine"', '"beauty"'), (), ("objective", "'beauty'")),
        (('"ids": torch', '"idz": torch'), (), ("forward takes ['ids']", "'idz'")),
        (("    (output,)", "    raise KeyError('gold')\n    (output,)"), (), ("metric", "KeyError")),
        (("split, data=None", "split"), ("--data", "."), ("no argument 'data'",)),
        (("import torch", "import torch"), ("--data", "nowhere"), ("--data must be a folder",)),
        (("import torch", "import torch"), ("--include", "decoder.*"), ("'decoder.*'", "matches none")),
        (("import torch", "import torch"), ("--exclude", "norm"), ("'norm'", "matches none")),
        (("import torch", "import torch"), ("--exclude", "*"), ("can be compressed",)),
        (("import torch", "import torch"), ("--method", "svd", "--epsilon", "0"), ("epsilon",)),
        (("import torch", "import torch"), ("--target-size", "0.01x"), ("smallest has about",)),
        (("import torch", "import torch"), ("--min-fidelity", "2"), ("between 0 and 1", "2")),
        (
            ("import torch", "import torch"),
            ("--plan", "missing.json"),
            ("--plan missing.json", "no such file"),
        ),
        (("import torch", "import torch"), ("--plan", "a", "--target-size", "0.5x"), ("different goals",)),
        (("import torch", "import torch"), ("--method", "svd", "--plan", "a"), ("rule of its own",)),
    ],
    ids=(
        "nan build type forward objective names metric data folder include exclude all epsilon size fidelity "
        "plan goals method"
    ).split(),
)
def test_a_failure_on_the_way(
    write_model_file: Write, tmp_path: Path, change: tuple[str, str], options: tuple, parts: tuple
) -> None:
    source = write_model_file(change)
    result = svd2onnx("compress-export", source, "-o", tmp_path / "out.onnx", "--provider", "cpu", *options)
    assert_fails(result, *parts)
    assert files_of(tmp_path) == {"network.py"}


def test_an_output_that_cannot_be_written(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for output, part in [
        (tmp_path / "nowhere" / "out.onnx", "does not exist"),
        (tmp_path / "folder", "it is a folder"),
        (Path("/proc/x.onnx"), "cannot write /proc/x.onnx"),
        (model_file / "out.onnx", "cannot write"),
    ]:
        assert_fails(svd2onnx("compress-export", model_file, "-o", output), str(output), part)
    assert files_of(tmp_path) == {"network.py", "folder"}
    assert files_of(tmp_path / "folder") == set()


def test_files_of_others_are_replaced_only_with_overwrite(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its own files are, also without a name: a second run replaces what the first one wrote."""
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "float.onnx"
    theirs.write_bytes(b"of someone else")
    options = ("--method", "quantize", "--provider", "cpu", "--reference", theirs, "--report", "page.html")
    assert_fails(svd2onnx("compress-export", model_file, *options), "float.onnx", "--overwrite")
    assert theirs.read_bytes() == b"of someone else"
    for more in (("--overwrite",), ()):
        result = svd2onnx("compress-export", model_file, *options, *more)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "network.svd2onnx.onnx").stat().st_size < theirs.stat().st_size


def test_the_reference_cannot_be_the_output_itself(model_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert_fails(svd2onnx("compress-export", model_file, "-o", output, "--reference", output), str(output))
    assert files_of(tmp_path) == {"network.py"}


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU")
@ONE_FILE
@pytest.mark.parametrize("command", ["compress-export", "certify", "bench", "evaluate"])
def test_cuda_without_a_gpu(compressed: Run, tmp_path: Path, command: str) -> None:
    arguments = {
        "compress-export": (compressed.source, "-o", tmp_path / "out.onnx"),
        "certify": (compressed.output,),
        "bench": (compressed.output,),
        "evaluate": (compressed.output, "--reference", compressed.reference, "--task", compressed.source),
    }
    assert_fails(svd2onnx(command, *arguments[command], "--provider", "cuda"), "'cuda' needs a GPU")
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize("content", [None, b"", b"no protobuf"], ids=["missing", "empty", "junk"])
@pytest.mark.parametrize("command", ["certify", "bench"])
def test_a_graph_that_is_none(tmp_path: Path, command: str, content: bytes | None) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    assert_fails(svd2onnx(command, path, "--provider", "cpu"), str(path))


@ONE_FILE
def test_certify_of_a_float_graph_has_nothing_to_certify(compressed: Run) -> None:
    assert_fails(svd2onnx("certify", compressed.reference, "--provider", "cpu"), "no quantized weight")


@ONE_FILE
@pytest.mark.parametrize(
    "arguments",
    [
        ("shrink", "model.py"),
        ("compress-export",),
        ("compress-export", "model.py", "--bits", "3"),
        ("compress-export", "model.py", "--block-size", "8"),
        ("compress-export", "model.py", "--calibration-samples", "-1"),
        ("bench", "graph.onnx", "--dim", "sequence"),
        ("bench", "graph.onnx", "--repeats", "0"),
        ("bench", "graph.onnx", "--against", "other.onnx"),
        ("bench", "graph.onnx", "--against", "graph=other.onnx"),
        ("evaluate", "graph.onnx"),
        ("certify", "graph.onnx", "--provider", "tpu"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], compressed: Run) -> None:
    arguments = tuple(str(compressed.output) if a == "graph.onnx" else a for a in arguments)
    result = svd2onnx(*arguments)
    assert result.exit_code == 2, result.output
    assert "Usage:" in result.stderr


def test_an_unexpected_failure_is_one_line_that_asks_for_a_report(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("svd2onnx.pipeline.compress_export.compress_export", broken)
    result = svd2onnx("compress-export", model_file, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: unexpected ZeroDivisionError: first second (a bug")
    monkeypatch.setenv("SVD2ONNX_DEBUG", "1")
    result = svd2onnx("compress-export", model_file, "-o", tmp_path / "out.onnx")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("case", ["missing source", "failure at the end"])
def test_a_process_of_its_own_fails_alike(write_model_file: Write, tmp_path: Path, case: str) -> None:
    """With everything that libraries write to stderr behind Python's back."""
    source = tmp_path / "missing.py"
    if case == "failure at the end":
        source = write_model_file(("(0, 160, (8", "(0, 160 if split != 'evaluation' else 999, (8"))
    before = files_of(tmp_path)
    command = (sys.executable, "-c", "from svd2onnx.cli.main import main; main()", "compress-export")
    done = subprocess.run(
        [*command, str(source), "-o", str(tmp_path / "out.onnx"), "--provider", "cpu"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert done.stdout == ""
    assert files_of(tmp_path) == before
