"""The tutorial, run block by block from its first to its last, and what it promises of the results."""

import json
from pathlib import Path

import pytest

from tests.docs.documents import ROOT, blocks_of, words_of
from tests.docs.running import run_command, write_block

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after the whole tutorial, and what its commands printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    printed: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks_of(TUTORIAL):
            kind = block.info.split(" ")[0]
            if kind == "python":
                assert block.title, f"line {block.line}: a block of Python must say which file it is"
                write_block(block.title, block.text)
            elif kind == "sh":
                for line in block.text.splitlines():
                    if "-m pip install" not in line:  # done: this test runs
                        printed[line] = run_command(words_of(line))
            else:
                assert kind == "text", f"line {block.line}: a block is python, sh or text"
    return folder, printed


def of(printed: dict[str, str], start: str) -> str:
    (text,) = (text for line, text in printed.items() if line.startswith(start))
    return text


def test_its_files_are_those_of_the_example() -> None:
    files = {block.title: block.text for block in blocks_of(TUTORIAL) if block.title}
    for name in ("network.py", "train.py", "digits.py"):
        assert files[name] == (ROOT / "examples" / "digits" / name).read_text(encoding="utf-8")


def test_the_network_learns(done: tuple[Path, dict[str, str]]) -> None:
    assert float(of(done[1], "python train.py").removeprefix("accuracy ")) > 0.95


def test_the_file_keeps_its_promises(done: tuple[Path, dict[str, str]]) -> None:
    folder, printed = done
    report = json.loads((folder / "digits.onnx.report.json").read_text())
    assert report["file_bytes"] == (folder / "digits.onnx").stat().st_size
    assert report["file_bytes"] <= 0.15 * report["float_bytes"]
    assert report["strict_relative_error"] < 1e-5
    assert report["deployed"]["fidelity"] > 0.999
    measured, float_metric = report["deployed"]["metric"], report["deployed"]["reference_metric"]
    assert abs(measured["accuracy"] - float_metric["accuracy"]) <= 0.01
    assert report["certificate"]["unfused"] == []
    assert of(printed, "svd2onnx certify").startswith("all quantized weights run as planned on cpu: ")


def test_the_plan_given_back_gives_the_same_layers(done: tuple[Path, dict[str, str]]) -> None:
    plans = [json.loads((done[0] / f"{name}.onnx.plan.json").read_text()) for name in ("digits", "again")]
    assert plans[0]["layers"] == plans[1]["layers"]


def test_the_served_file_reads_digits(done: tuple[Path, dict[str, str]]) -> None:
    predicted, labelled = of(done[1], "python predict.py").splitlines()
    digits = [line.split("[")[1].rstrip("]").split() for line in (predicted, labelled)]
    assert len(digits[1]) == 5
    assert sum(a == b for a, b in zip(*digits, strict=True)) >= 4
