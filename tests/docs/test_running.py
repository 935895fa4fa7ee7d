"""The commands of the documents, run with all their options, on tiny networks in the model files' places.

The tiny ones have the names, the inputs and the objective of the real ones, which tests/models checks. Each
document is run from its first command to its last in one folder, because later ones read what earlier ones
wrote. ``AS_IF`` says what a word is replaced by, and ``THERE`` which files are there before.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from svd2onnx_runtime import gpu_count
from tests.docs.documents import ROOT, commands_of
from tests.docs.running import run_command

STAND_INS = {
    "images": ("fashion_vgg", "mobilenetv2", "resnet20", "resnet101", "vgg19"),
    "texts": ("bert", "minilm"),
    "language": ("phi2", "smollm2"),
}
AS_IF = {
    "SOURCE": "models/minilm.py",
    "OPERATOR": "folded",
    "DTYPE": "float16",
    # Tiny networks gain no time, and are timed by busy machines.
    **dict.fromkeys(("0.42x", "0.9x"), "20x"),
    **({} if gpu_count() else {"cuda": "cpu"}),
}
THERE = {
    "README.md": ("OUT.onnx", "FLOAT.onnx", "OTHER.onnx", "LANGUAGE.onnx"),
    "docs/how-to.md": ("mobilenetv2.onnx", "minilm.onnx", "minilm.float32.onnx"),
    "docs/serving.md": ("digits.onnx",),
    "docs/speed.md": ("minilm.onnx", "minilm.float32.onnx", "dynamic.onnx", "int8.onnx"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory: stand-ins in models/, and what the documents call DATA and WEIGHTS."""
    for name in ("models", "DATA", "DIR", "WEIGHTS"):
        (tmp_path / name).mkdir()
    for kind, names in STAND_INS.items():
        for name in names:
            shutil.copy(
                Path(__file__).parent / "stand_ins" / f"{kind}.py", tmp_path / "models" / f"{name}.py"
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_document(name: str, only: Callable[[list[str]], bool] = lambda _: True) -> int:
    """Run its commands of svd2onnx for which ``only`` holds, and return their number."""
    if THERE.get(name):
        run_command(["svd2onnx", *"compress-export models/minilm.py -o given.onnx --method quantize".split()])
        for given in THERE[name]:
            if given == "LANGUAGE.onnx":
                options = "--method quantize --calibration-samples 8 --with-past"
                run_command(["svd2onnx", *f"compress-export models/smollm2.py -o {given} {options}".split()])
                continue
            shutil.copy("given.onnx", given)
            shutil.copy("given.onnx.report.json", f"{given}.report.json")
    count = 0
    for _, words in commands_of(ROOT / name):
        if words[0] == "svd2onnx" and only(words):
            words = [AS_IF.get(word, word) for word in words]
            run_command(words)
            if "-o" in words:
                assert os.path.exists(words[words.index("-o") + 1])
            count += 1
    return count


def is_quick(words: list[str]) -> bool:
    """Whether nothing is planned."""
    return words[1] not in ("compress-export", "sweep") or "quantize" in words


@pytest.mark.parametrize(
    ("name", "least"), [("docs/how-to.md", 8), ("README.md", 4), ("docs/serving.md", 3)], ids=str
)
def test_what_is_quick(folder: Path, name: str, least: int) -> None:
    assert run_document(name, is_quick) >= least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("docs/how-to.md", 18), ("README.md", 7), ("docs/speed.md", 5), ("docs/study.md", 5)],
    ids=str,
)
def test_the_whole_document(folder: Path, name: str, least: int) -> None:
    assert run_document(name) >= least
