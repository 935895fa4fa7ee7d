"""A model file is run by path, and each way to get it wrong ends in one line that says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from svd2onnx.sources.model_file import arguments_of, as_arrays, load_model_file
from svd2onnx.values.errors import SourceError

Write = Callable[..., Path]


def message_of(caught: pytest.ExceptionInfo[SourceError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_whole_model_file(model_file: Path) -> None:
    loaded = load_model_file(model_file)
    network = loaded.build()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    batches = list(loaded.inputs("calibration"))
    assert [batch["ids"].shape for batch in batches] == [(8, 6), (8, 9)]
    assert loaded.objective == "cosine"
    assert loaded.dynamic_shapes == {"ids": {0: "batch", 1: "sequence"}}
    assert loaded.metric is not None
    assert loaded.summary is None


def test_what_is_optional_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "least.py"
    path.write_text("def build(): ...\ndef inputs(split): ...\n")
    loaded = load_model_file(path)
    assert loaded.objective == "mse"
    assert loaded.metric is None
    assert loaded.dynamic_shapes is None


def test_a_dataclass_in_a_model_file_finds_its_module(write_model_file: Write) -> None:
    path = write_model_file(
        add="import dataclasses\n@dataclasses.dataclass\nclass Options:\n    size: 'int' = 64\n"
    )
    assert load_model_file(path).module.Options().size == 64


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.py", None, "no such model file"),
        ("folder.py", "/", "is no model file"),
        ("weights.pt", "x", "is no model file"),
        ("empty.py", "", "is empty"),
        ("broken.py", "def build(:\n", "failed in running it: SyntaxError"),
        (
            "raising.py",
            "raise ValueError('first\\nsecond')",
            "failed in running it: ValueError: first second",
        ),
        ("imports.py", "import no_such_package", "failed in running it: ModuleNotFoundError"),
        ("blank.py", "\n", "defines no function build()"),
        ("no_inputs.py", "def build(): ...", "defines no function inputs()"),
        ("not_callable.py", "build = 3\ndef inputs(split): ...", "defines no function build()"),
        ("binary.py", "\x00\x01", "failed in running it"),
    ],
)
def test_files_that_are_no_model_files(tmp_path: Path, name: str, content: str | None, expected: str) -> None:
    path = tmp_path / name
    if content == "/":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(SourceError) as caught:
        load_model_file(path)
    assert expected in message_of(caught)
    assert str(path) in str(caught.value)


def test_an_unknown_objective_is_refused(write_model_file: Write) -> None:
    path = write_model_file(('"cosine"', '"accuracy"'))
    with pytest.raises(SourceError) as caught:
        load_model_file(path)
    assert "must be one of ('cosine', 'kl', 'mse'), not 'accuracy'" in message_of(caught)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise RuntimeError('no\\nweights')", "failed in build(): RuntimeError: no weights"),
        ("raise KeyError", "failed in build(): KeyError: no message"),
        ("return {}", "must return a torch.nn.Module, not dict"),
        ("return None", "must return a torch.nn.Module, not NoneType"),
    ],
)
def test_a_build_that_fails(write_model_file: Write, body: str, expected: str) -> None:
    loaded = load_model_file(write_model_file(add=f"def build():\n    {body}"))
    with pytest.raises(SourceError) as caught:
        loaded.build()
    assert expected in message_of(caught)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return iter(())", "gave no batch"),
        ("return None", "failed in inputs('calibration'): TypeError"),
        ("return [torch.zeros(2)]", "must give dicts of tensors by argument name, not Tensor"),
        ("return [{'ids': [1, 2]}]", "must give dicts of tensors by argument name, not {'ids': 'list'}"),
        ("return [{}]", "must give dicts of tensors by argument name, not dict"),
        ("yield {'ids': torch.zeros(2)}\n    raise OSError('gone')", "OSError: gone"),
    ],
    ids=["nothing", "None", "tensor", "list", "empty dict", "late failure"],
)
def test_inputs_that_fail(write_model_file: Write, body: str, expected: str) -> None:
    loaded = load_model_file(write_model_file(add=f"def inputs(split):\n    {body}"))
    with pytest.raises(SourceError) as caught:
        list(loaded.inputs("calibration"))
    assert expected in message_of(caught)


def test_an_error_of_who_reads_the_batches_is_not_blamed_on_the_file(model_file: Path) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the error must come from the loop
        for _ in load_model_file(model_file).inputs("calibration"):
            raise ZeroDivisionError


def test_an_unknown_split_is_refused(model_file: Path) -> None:
    with pytest.raises(SourceError, match="not 'train'"):
        list(load_model_file(model_file).inputs("train"))


def test_a_data_folder_reaches_inputs(write_model_file: Write, tmp_path: Path) -> None:
    path = write_model_file(
        add="def inputs(split, data=None):\n    yield {'ids': torch.tensor([len(list(data.iterdir()))])}"
    )
    (batch,) = load_model_file(path, tmp_path).inputs("evaluation")
    assert batch["ids"].item() == len(list(tmp_path.iterdir()))


def test_a_data_folder_that_the_file_does_not_take_is_refused(
    write_model_file: Write, tmp_path: Path
) -> None:
    loaded = load_model_file(write_model_file(("(split, data=None)", "(split)")), tmp_path)
    with pytest.raises(SourceError) as caught:
        list(loaded.inputs("calibration"))
    assert "takes no argument 'data'" in message_of(caught)


def test_data_that_is_no_folder_is_refused(model_file: Path) -> None:
    for data in (model_file, model_file.parent / "nowhere"):
        with pytest.raises(SourceError, match=r"^--data must be a folder"):
            load_model_file(model_file, data)


class Two(nn.Module):
    """Takes two arguments and an optional one."""

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        return a + b


def test_arguments_come_in_the_order_of_forward_without_labels() -> None:
    zero = torch.zeros(1)
    assert list(arguments_of(Two(), {"label": zero, "b": zero, "a": zero})) == ["a", "b"]
    assert list(arguments_of(Two(), {"c": zero, "b": zero, "a": zero})) == ["a", "b", "c"]


@pytest.mark.parametrize("names", [("label",), ("a",), ("x", "y")], ids=str)
def test_a_batch_without_the_arguments_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(SourceError) as caught:
        arguments_of(Two(), {name: torch.zeros(1) for name in names})
    assert str(list(names)) in message_of(caught)


def test_arrays_are_the_tensors_values() -> None:
    arrays = as_arrays({"a": torch.arange(3), "b": torch.ones(2, requires_grad=True)})
    assert arrays["a"].tolist() == [0, 1, 2]
    assert arrays["b"].dtype == "float32"


@pytest.mark.parametrize("name", ["metric", "summary"])
def test_a_metric_that_fails_is_blamed_on_the_file(write_model_file: Write, name: str) -> None:
    loaded = load_model_file(write_model_file(add=f"def {name}(*arguments):\n    return arguments[5]"))
    with pytest.raises(SourceError) as caught:
        getattr(loaded, name)({}, {})
    assert f"failed in {name}(): IndexError" in message_of(caught)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("wrap", ["torch.compile", "nn.DataParallel"])
def test_what_compiles_or_spreads_a_network_is_taken_off(write_model_file: Write, wrap: str) -> None:
    loaded = load_model_file(write_model_file(("return Network()", f"return {wrap}(Network())")))
    network = loaded.build()
    assert type(network).__name__ == "Network"
    assert arguments_of(network, next(loaded.inputs("calibration"))).keys() == {"ids"}
