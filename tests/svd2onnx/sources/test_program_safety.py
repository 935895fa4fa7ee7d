"""An exported program cannot run code, name what is not its own, or claim what it does not hold."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svd2onnx.sources.exported import load_exported
from svd2onnx.sources.program_safety import safe_copy
from svd2onnx.values.errors import SourceError
from tests.svd2onnx.sources.files import Harm, edited_archive, edited_json, text_program

Edit = Callable[[Any], object]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_program(tmp_path_factory.mktemp("program") / "whole.pt2")


def refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        load_exported(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def graph(value: Any) -> Any:
    return value["graph_module"]["graph"]


def set_in(value: Any, key: str, new: object) -> None:
    """Replace the first entry called ``key``, however deep."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, entry in entries:
        if name == key:
            value[name] = new
            raise StopIteration
        set_in(entry, key, new)


def setting(key: str, new: object) -> Edit:
    def edit(value: Any) -> None:
        with pytest.raises(StopIteration):
            set_in(value, key, new)

    return edit


def layout(kind: str, context: object) -> str:
    return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": []}])


HARMFUL: dict[str, tuple[Edit, str]] = {
    "a function of torch": (setting("target", "torch.load"), "torch.load"),
    "a module of torch": (setting("target", "torch.os.system"), "torch.os.system"),
    "an operator that opens files": (setting("target", "torch.ops.aten.from_file.default"), "from_file"),
    "an operator that is none": (setting("target", "torch.ops.aten.no_such.default"), "no_such"),
    "another library": (setting("target", "torch.ops.shop.relu.default"), "shop"),
    "attributes of operators": (setting("target", "torch.ops.aten.relu.__class__"), "__class__"),
    "a call as a size": (setting("expr_str", "__import__('os').mkdir('mark')"), "no arithmetic"),
    "an attribute as a size": (setting("expr_str", "s0.__class__"), "no arithmetic"),
    "a huge power": (setting("expr_str", "9**9**9"), "no arithmetic"),
    "a huge sympy power": (setting("expr_str", "Pow(Integer(9), Integer(999999999))"), "no arithmetic"),
    "a function as a size": (setting("expr_str", "eval('1')"), "no arithmetic"),
    "a symbol that is code": (setting("expr_str", "Symbol('s0); import os')"), "no arithmetic"),
    "code as a name": (setting("name", "x=__import__('os').mkdir('mark')"), "no identifier"),
    "a dotted name": (setting("name", "torch.load"), "no identifier"),
    "code of guards": (lambda value: value.update(guards_code=["__import__('os').mkdir('mark')"]), ""),
    "an import as a layout": (
        setting("in_spec", layout("collections.defaultdict", ["os", "x"])),
        "defaultdict",
    ),
    "an enum in a layout": (setting("out_spec", layout("builtins.dict", {"__enum__": "os"})), "keys"),
    "a layout that is none": (setting("in_spec", "no json"), "no JSON"),
    "an operator as an argument": (
        lambda value: graph(value)["nodes"][0]["inputs"][0].update(arg={"as_operator": "torch.load"}),
        "code of its own",
    ),
    "a weight named after a method": (setting("parameter_name", "forward.weight"), "forward.weight"),
    "a weight named after nothing good": (setting("parameter_name", "__class__"), "__class__"),
    "deep nesting": (lambda value: value.update(deep=json.loads("[" * 300 + "]" * 300)), "deep"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_graph_with_more_than_operators(
    name: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, expected = HARMFUL[name]
    monkeypatch.chdir(tmp_path)
    path = edited_json(program, tmp_path / "n.pt2", "models/model.json", edit)
    if expected:
        assert expected in refused(path)
        assert "is not loaded, because" in refused(path)
    else:
        load_exported(path)  # what is not needed is left out
    assert {entry.name for entry in tmp_path.iterdir()} == {"n.pt2"}


def weights(edit: Callable[[dict[str, Any]], object]) -> Edit:
    return lambda value: edit(value["config"]["first.weight"])


CLAIMS: dict[str, tuple[Edit, str]] = {
    "pickled": (weights(lambda entry: entry.update(use_pickle=True)), "pickled object"),
    "larger than stored": (
        weights(lambda e: e["tensor_meta"].update(sizes=[{"as_int": 10**6}, {"as_int": 10**6}])),
        "claims the shape",
    ),
    "negative": (weights(lambda e: e["tensor_meta"].update(sizes=[{"as_int": -1}])), "shape or type"),
    "no type": (weights(lambda e: e["tensor_meta"].update(dtype=99)), "shape or type"),
    "elsewhere": (weights(lambda entry: entry.update(path_name="../../x")), "missing"),
    "no table": (lambda value: value.update(config=[]), "is none"),
    "no entry": (lambda value: value["config"].update({"first.weight": 3}), "is none"),
    "a method": (lambda value: value["config"].update({"train": value["config"]["first.weight"]}), "train"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_weights_that_claim_more(name: str, program: Path, tmp_path: Path) -> None:
    edit, expected = CLAIMS[name]
    path = edited_json(program, tmp_path / "n.pt2", "model_weights_config.json", edit)
    assert expected in refused(path)


def test_a_pickle_in_place_of_weights_is_not_loaded(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "n.pt2"
    edited_json(
        program, path, "model_constants_config.json",
        lambda value: value["config"].update(
            x={"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        ),
    )  # fmt: skip
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Harm(mark)))
    assert "pickled object" in refused(path)
    assert not mark.exists()


def test_example_inputs_that_run_code_are_left_out(program: Path, tmp_path: Path) -> None:
    mark, harmful = tmp_path / "mark", tmp_path / "harmful.pt"
    torch.save(((Harm(mark),), {}), harmful)
    path = edited_archive(
        program, tmp_path / "n.pt2", "sample_inputs/model.pt", lambda _: harmful.read_bytes()
    )
    assert load_exported(path).specs
    assert not mark.exists()


def test_compiled_libraries_and_legacy_weights_are_left_out(program: Path, tmp_path: Path) -> None:
    mark, harmful = tmp_path / "mark", tmp_path / "harmful.pt"
    torch.save(Harm(mark), harmful)
    path = tmp_path / "n.pt2"
    shutil.copy(program, path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/weights/model.pt", harmful.read_bytes())
        archive.writestr(f"{root}/data/aotinductor/model/lib.so", b"\x7fELF")
    with safe_copy(path) as copy, zipfile.ZipFile(copy) as inside:
        assert not any(
            "aotinductor" in name or name.endswith("weights/model.pt") for name in inside.namelist()
        )
    assert load_exported(path).specs
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x"])
def test_members_that_would_leave_their_folder(name: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.pt2"
    shutil.copy(program, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    assert "names within the archive" in refused(path)


def test_a_bomb(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.pt2"
    shutil.copy(program, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("whole/data/weights/weight_99", bytes(10_000_000))
    assert os.path.getsize(path) < 1_000_000
    assert "compressed" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.pt2"
    shutil.copy(program, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(next(n for n in archive.namelist() if n.endswith("model.json")), b"{}")
    assert "a name twice" in refused(path)


def test_a_program_of_a_gpu_is_loaded_on_the_cpu(program: Path, tmp_path: Path) -> None:
    def edit(content: bytes) -> bytes:
        return content.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')

    path = edited_archive(program, tmp_path / "n.pt2", ".json", edit)
    model = load_exported(path).model
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
