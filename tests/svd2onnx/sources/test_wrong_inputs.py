"""Files and options that are wrong each end in one line that names the file, and in no file."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from svd2onnx.cli.main import main
from tests.svd2onnx.networks import Mlp, seeded
from tests.svd2onnx.sources import files
from tests.svd2onnx.sources.files import Harm

Make = Callable[[Path], list[object]]
"""Writes files into a folder; gives the arguments behind the command, the first of which is SOURCE."""


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def saved(folder: Path, value: object, name: str = "x.pt") -> Path:
    torch.save(value, folder / name)
    return folder / name


def tensors(folder: Path, changes: dict[str, torch.Tensor | None] | None = None) -> Path:
    """A .safetensors of weights for the model file, with some changed or left out."""
    found = {**files.state_dict(), **(changes or {})}
    save_file(
        {name: tensor for name, tensor in found.items() if tensor is not None}, folder / "x.safetensors"
    )
    return folder / "x.safetensors"


def with_model(folder: Path, source: Path) -> list[object]:
    return [source, "--model", files.model_file(folder / "network.py")]


def network(folder: Path, *options: object) -> list[object]:
    return [files.pickled(folder / "x.pt"), "--trust-pickle", *options]


def program(folder: Path, *options: object) -> list[object]:
    return [files.text_program(folder / "x.pt2"), *options]


def cut(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def bert(folder: Path, change: Callable[[Path], object], *options: object) -> list[object]:
    path = files.bert_folder(folder / "bert")
    change(path)
    return [path, *options]


def configured(**changes: object) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def index(folder: Path, content: object) -> list[object]:
    return with_model(folder, written(folder, "model.safetensors.index.json", json.dumps(content)))


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def npy_header(folder: Path, shape: str, dtype: str = "<f4") -> Path:
    """A .npz whose array claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("x.npy", header + bytes(64))
    return folder / "data.npz"


def pictures(folder: Path, *broken: str) -> Path:
    path = files.picture_folder(folder / "pictures", 2)
    for name in broken:
        written(path, name, b"no picture")
    return path


WRONG: dict[str, tuple[Make, tuple[str, ...]]] = {
    "nothing there": (lambda d: [d / "x.pt"], ("no such file or folder",)),
    "empty": (lambda d: [written(d, "x.pt", b"")], ("is empty",)),
    "text": (lambda d: [written(d, "x.pt", "hello")], ("no known kind", "hello")),
    "one byte": (lambda d: [written(d, "x.pt", b"\x08")], ("no known kind",)),
    "a web page": (lambda d: [written(d, "x.pt", "<!DOCTYPE html>")], ("HTML", "download")),
    "a pointer": (
        lambda d: [written(d, "x.pt", "version https://git-lfs.github.com/spec/v1")],
        ("git lfs pull",),
    ),
    "onnx": (
        lambda d: [written(d, "x.onnx", b"\x08\x0a\x12\x07pytorch")],
        ("ONNX file", "torch.export.save"),
    ),
    "onnx as pt": (lambda d: [written(d, "x.pt", b"\x08\x0a\x12\x07pytorch")], ("ONNX file",)),
    "gguf": (lambda d: [written(d, "x.gguf", b"GGUF" + bytes(64))], ("GGUF",)),
    "keras": (lambda d: [written(d, "x.h5", b"\x89HDF\r\n\x1a\n")], ("HDF5",)),
    "tflite": (lambda d: [written(d, "x.tflite", b"\x1c\0\0\0TFL3")], ("TensorFlow Lite",)),
    "gzip": (lambda d: [written(d, "x.pt.gz", b"\x1f\x8b\x08")], ("unpack it",)),
    "torchscript": (
        lambda d: [torchscript(d / "x.pt")],
        ("TorchScript", "torch.export.save"),
    ),
    "another zip": (lambda d: [a_zip(d / "x.pt", "readme.txt")], ("PyTorch did not write",)),
    "npz as source": (lambda d: [files.token_arrays(d / "x.npz")], ("--calibration",)),
    "old pt2": (lambda d: [a_zip(d / "x.pt2", "serialized_exported_program.json")], ("before 2.8",)),
    "pickled module": (
        lambda d: [files.pickled(d / "x.pt")],
        ("--trust-pickle", "tests.svd2onnx.networks.Mlp"),
    ),
    "pickle that acts": (lambda d: [saved(d, Harm(d / "mark"))], ("--trust-pickle",)),
    "state dict that acts": (
        lambda d: [saved(d, {"w": torch.ones(2), "x": Harm(d / "mark")})],
        ("--trust-pickle",),
    ),
    "old pickle that acts": (
        lambda d: [written(d, "x.pt", pickle.dumps(Harm(d / "mark"), protocol=2))],
        ("--trust-pickle",),
    ),
    "missing class": (
        lambda d: [forgotten(d / "x.pt"), "--trust-pickle"],
        ("needs the code", "no_such_package"),
    ),
    "trusted number": (lambda d: [saved(d, 3), "--trust-pickle"], ("holds int",)),
    "no model": (lambda d: [saved(d, files.state_dict())], ("7 tensors and no network", "--model")),
    "no tensors": (lambda d: with_model(d, saved(d, {"epoch": 3})), ("holds int under 'epoch'",)),
    "empty state dict": (lambda d: with_model(d, saved(d, {})), ("an empty dict",)),
    "huge tensor": (
        lambda d: with_model(d, saved(d, {"x": torch.ones(1).expand(10**6, 10**6)})),
        ("4 are stored", ".contiguous()"),
    ),
    "missing key": (lambda d: with_model(d, tensors(d, {"first.bias": None})), ("lacks 'first.bias'",)),
    "unknown key": (
        lambda d: with_model(d, tensors(d, {"third": torch.ones(1)})),
        ("has 'third' that build()",),
    ),
    "shape": (
        lambda d: with_model(d, tensors(d, {"second.bias": torch.ones(63)})),
        ("'second.bias'", "[63], not [64]"),
    ),
    "nan": (lambda d: with_model(d, tensors(d, {"second.bias": torch.full((64,), torch.nan)})), ("64 NaN",)),
    "cut pt": (lambda d: with_model(d, cut(saved(d, files.state_dict()))), ("cut off",)),
    "cut safetensors": (lambda d: with_model(d, cut(tensors(d))), ("cut off",)),
    "header of safetensors": (
        lambda d: with_model(d, written(d, "x.safetensors", (1 << 62).to_bytes(8, "little") + b"{}")),
        ("damaged",),
    ),
    "model of another": (
        lambda d: program(d, "--model", d / "x.py"),
        ("--model was given", "not a state dict"),
    ),
    "model missing": (lambda d: [tensors(d)], ("holds tensors and no network", "--model FILE.py")),
    "pickle of another": (
        lambda d: program(d, "--trust-pickle"),
        ("--trust-pickle was given", "not a pickle"),
    ),
    "weights of another": (lambda d: program(d, "--weights", d), ("--weights was given", "not a model file")),
    "no model file": (lambda d: [tensors(d), "--model", d / "no.py"], ("--model", "no such file")),
    "index": (lambda d: index(d, {"weight_map": 3}), ("weight_map",)),
    "index elsewhere": (lambda d: index(d, {"weight_map": {"a": "../../x.safetensors"}}), ("beside it",)),
    "index of missing": (lambda d: index(d, {"weight_map": {"a": "x.safetensors"}}), ("put all its files",)),
    "cut pt2": (lambda d: [cut(files.text_program(d / "x.pt2"))], ("cut off",)),
    "pt2 without graph": (
        lambda d: [
            files.edited_archive(files.text_program(d / "y.pt2"), d / "x.pt2", "model.json", lambda _: None)
        ],
        ("programs",),
    ),
    "shape of nothing": (lambda d: network(d), ("does not tell what it takes", "--input-shape")),
    "no shape": (lambda d: network(d, "--input-shape", "wide"), ("'wide'", "1,3,224,224")),
    "huge shape": (lambda d: network(d, "--input-shape", "99999,99999"), ("elements",)),
    "shape of no input": (lambda d: network(d, "--input-shape", "y=1,64"), ("['x']",)),
    "wrong shape": (lambda d: network(d, "--input-shape", "1,63"), ("forward fails",)),
    "shape told twice": (lambda d: program(d, "--input-shape", "1,3"), ("leave it out",)),
    "recover": (lambda d: program(d, "--recover", "5"), ("--calibration",)),
    "objective": (lambda d: [files.model_file(d / "n.py"), "--objective", "mse"], ("says 'cosine'",)),
    "no calibration": (
        lambda d: program(d, "--calibration", d / "no.npz"),
        ("--calibration", "no.npz", "no such file"),
    ),
    "calibration kind": (lambda d: program(d, "--calibration", written(d, "a.csv", "1")), (".npz",)),
    "npz text": (lambda d: program(d, "--calibration", written(d, "a.npz", "1")), ("numpy.savez",)),
    "npz names": (
        lambda d: program(d, "--calibration", npz(d, a=np.ones(3), b=np.ones(3))),
        ("holds a, b", "ids is missing"),
    ),
    "npz type": (lambda d: program(d, "--calibration", npz(d, ids=np.ones((4, 3)))), ("float64", "int64")),
    "npz rows": (
        lambda d: program(d, "--calibration", npz(d, ids=np.ones((4, 3), int), b=np.ones(3))),
        ("equally many",),
    ),
    "npz objects": (
        lambda d: program(d, "--calibration", npz(d, ids=np.array([{}, {}]))),
        ("expected numbers",),
    ),
    "npz nan": (lambda d: network(d, "--calibration", npz(d, x=np.full((3, 64), np.nan))), ("NaN",)),
    "npz claim": (
        lambda d: network(d, "--calibration", npy_header(d, "(99999999, 99999999)")),
        ("all of them in the file",),
    ),
    "npz negative": (lambda d: network(d, "--calibration", npy_header(d, "(-4, -4)")), ("data.npz",)),
    "npz of ids out of range": (
        lambda d: program(d, "--calibration", npz(d, ids=np.full((8, 4), 999))),
        ("forward fails",),
    ),
    "texts without tokenizer": (
        lambda d: program(d, "--calibration", files.text_file(d / "a.txt")),
        ("no tokenizer",),
    ),
    "pictures for texts": (lambda d: program(d, "--calibration", pictures(d)), ("--input-shape",)),
    "a broken picture": (
        lambda d: [files.picture_program(d / "x.pt2"), "--calibration", pictures(d, "3.png")],
        ("3.png", "cannot be read as an image"),
    ),
    "no pictures": (
        lambda d: [files.picture_program(d / "x.pt2"), "--calibration", empty(d / "none")],
        ("no image",),
    ),
    "folder of nothing": (lambda d: [empty(d / "none")], ("no config.json",)),
    "config": (lambda d: bert(d, lambda p: (p / "config.json").write_text("{")), ("config.json", "JSON")),
    "config of a list": (lambda d: bert(d, lambda p: (p / "config.json").write_text("[]")), ("list",)),
    "architecture": (lambda d: bert(d, configured(architectures=["os"])), ("'os'", "model file")),
    "code of the folder": (
        lambda d: bert(d, configured(architectures=["Own"], auto_map={"AutoModel": "own.Own"})),
        ("'Own'", "not run"),
    ),
    "layers": (lambda d: bert(d, configured(num_hidden_layers=10**9)), ("num_hidden_layers",)),
    "width": (lambda d: bert(d, configured(hidden_size=10**9)), ("config.json",)),
    "vocabulary": (lambda d: bert(d, configured(vocab_size=10**6)), ("belong together",)),
    "more layers": (lambda d: bert(d, configured(num_hidden_layers=3)), ("belong together",)),
    "no weights": (lambda d: bert(d, lambda p: (p / "model.safetensors").unlink()), (".safetensors",)),
    "cut weights": (
        lambda d: bert(d, lambda p: cut(p / "model.safetensors")),
        ("model.safetensors", "cut off"),
    ),
    "quantized": (lambda d: bert(d, configured(quantization_config={})), ("quantized already",)),
    "a tokenizer": (
        lambda d: bert(
            d,
            lambda p: (p / "tokenizer.json").write_text("{}"),
            "--calibration",
            files.text_file(d / "a.txt"),
        ),
        ("tokenizer",),
    ),
    "no texts": (lambda d: bert(d, lambda _: None, "--calibration", written(d, "a.txt", "\n")), ("no text",)),
    "binary texts": (
        lambda d: bert(d, lambda _: None, "--calibration", written(d, "a.txt", b"\xff\xfe\x00")),
        ("UTF-8",),
    ),
}


def torchscript(path: Path) -> Path:
    """Traced where PyTorch still offers it; its archive is known by the code in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"archive/{name}", b"\x80\x02.")
    return path


def a_zip(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"{}")
    return path


def forgotten(path: Path) -> Path:
    """A module whose class nobody can import."""
    kind = type("Forgotten", (Mlp,), {"__module__": "no_such_package"})
    module = seeded(Mlp)
    module.__class__ = kind
    import sys
    from types import ModuleType

    fake = ModuleType("no_such_package")
    fake.Forgotten = kind  # type: ignore[attr-defined]
    sys.modules["no_such_package"] = fake
    try:
        torch.save(module, path)
    finally:
        del sys.modules["no_such_package"]
    return path


def empty(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_ends_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, parts = WRONG[name]
    arguments = make(tmp_path)
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    monkeypatch.chdir(tmp_path)
    output = ("-o", tmp_path / "out.onnx", "--provider", "cpu")
    result = CliRunner().invoke(main, ["compress-export", *map(str, (*arguments, *output))])
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "a bug: please report" not in line
    assert any(str(part) in line for part in (*arguments, *before)), line
    for part in parts:
        assert part in line
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_trusted_pickle_does_run(tmp_path: Path) -> None:
    """What the option allows, and nothing else does: the pickles that act, above, left no mark."""
    source = saved(tmp_path, Harm(tmp_path / "mark"))
    CliRunner().invoke(main, ["inspect", str(source), "--trust-pickle"])
    assert (tmp_path / "mark").exists()


def test_a_network_may_lie_in_a_checkpoint(tmp_path: Path) -> None:
    from svd2onnx.sources.pickled import as_network
    from svd2onnx.values.errors import SourceError

    with pytest.raises(SourceError, match="holds Linear2"):
        as_network(type("Linear2", (), {})(), tmp_path / "x.pt")
    loaded, warnings = as_network({"epoch": 3, "model": nn.Linear(2, 2).half()}, tmp_path / "x.pt")
    assert warnings == ()
    assert isinstance(loaded, nn.Linear)
    assert loaded.weight.dtype == torch.float32
    assert not loaded.training
