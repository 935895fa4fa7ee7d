"""What a pickle would look up is known without running it, in every form that torch.save has written."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svd2onnx.sources.pickles import foreign_globals, load_weights_only, tensors_in
from svd2onnx.sources.state_dict import load_into
from svd2onnx.values.errors import SourceError
from tests.svd2onnx.networks import Mlp, TiedHead, seeded
from tests.svd2onnx.sources.files import Harm, state_dict

FORMS = [{"_use_new_zipfile_serialization": True}, {"_use_new_zipfile_serialization": False}]


@pytest.mark.parametrize("form", FORMS, ids=["archive", "before 1.6"])
@pytest.mark.parametrize(
    "value",
    [
        state_dict(),
        OrderedDict(state_dict()),
        {"state_dict": seeded(Mlp).state_dict(), "epoch": 3, "losses": [0.1, (1, None)]},
        {
            "w": nn.Parameter(torch.ones(3)),
            "h": torch.ones(2).half(),
            "i": torch.arange(3),
            "b": torch.ones(2) > 0,
        },
        {"w": torch.arange(12.0).reshape(3, 4).T, "v": torch.arange(12.0)[3:5], "z": torch.zeros(0, 4)},
        [torch.ones(2, dtype=torch.bfloat16), torch.Size([1, 2]), torch.float16],
    ],
    ids=["dict", "ordered", "checkpoint", "types", "strides", "list"],
)
def test_tensors_in_containers_load(form: dict[str, bool], value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pt", **form)
    assert foreign_globals(tmp_path / "x.pt") == []
    loaded = dict(tensors_in(load_weights_only(tmp_path / "x.pt")))
    wanted = dict(tensors_in(value))
    assert list(loaded) == list(wanted)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, wanted[name])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMS, ids=["archive", "before 1.6"])
def test_what_would_run_is_named_and_does_not(form: dict[str, bool], protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"a": torch.ones(2), "b": Harm(mark)}, tmp_path / "x.pt", pickle_protocol=protocol, **form)
    assert any(name.endswith(".mkdir") for name in foreign_globals(tmp_path / "x.pt"))
    with pytest.raises(SourceError, match="would execute code of"):
        load_weights_only(tmp_path / "x.pt")
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_allocations_are_no_tensors(protocol: int, tmp_path: Path) -> None:
    """The weights-only unpickler of PyTorch makes a bytearray of any size that it is asked for."""

    class Big:
        def __reduce__(self) -> tuple[Any, ...]:
            return bytearray, (10,)

    torch.save([Big()], tmp_path / "x.pt", pickle_protocol=protocol)
    assert [name.rpartition(".")[2] for name in foreign_globals(tmp_path / "x.pt")] == ["bytearray"]


def test_a_list_that_holds_itself_ends(tmp_path: Path) -> None:
    value: list[Any] = [torch.ones(2)]
    value.append(value)
    torch.save(value, tmp_path / "x.pt")
    assert [name for name, _ in tensors_in(load_weights_only(tmp_path / "x.pt"))] == ["0"]


def test_a_plain_pickle_is_no_file_of_torch(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SourceError, match="damaged"):
        load_weights_only(tmp_path / "x.pt")


def test_one_of_two_tied_weights_is_enough(tmp_path: Path) -> None:
    network, other = seeded(TiedHead), seeded(TiedHead, seed=3)
    tensors = {name: tensor for name, tensor in other.state_dict().items() if name != "table.weight"}
    load_into(network, tensors, tmp_path, tmp_path)
    assert torch.equal(network.get_parameter("table.weight"), other.get_parameter("head.weight"))
