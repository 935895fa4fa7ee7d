"""A shelf changes where tensors lie, and nothing else."""

import errno
import gc
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.calibration import calibrate as calibrating
from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.probes import probe
from svd2onnx.compute import tensor_store as spill
from svd2onnx.compute.tensor_store import CreatedIn, TensorStore
from svd2onnx.network.layers import discover
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.values.errors import OutputError
from svd2onnx.values.settings import Settings
from tests.svd2onnx.networks import Mlp, seeded

MODEL_FILE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)).eval()

def inputs(split):
    torch.manual_seed(len(split))
    for _ in range(3):
        # Alike, so that roundings are fitted to them, and depend on how they were gathered.
        yield {"input": torch.randn(16, 8) @ torch.randn(8, 64, generator=torch.Generator().manual_seed(1))}
"""


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays in memory, however small."""
    monkeypatch.setattr(spill, "_SMALL", 1)
    monkeypatch.setattr(TensorStore.__init__, "__defaults__", (0,))


def mapped_bytes() -> int:
    """Of this process, in files that have lost their name."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [re.split("[- ]", line)[:2] for line in lines if "(deleted)" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def test_what_is_within_the_limit_stays_where_it_is() -> None:
    store, tensor = TensorStore(limit=8 << 20), torch.ones(1 << 20)
    assert store.keep(tensor) is tensor  # 4 MiB of 8
    beyond = torch.ones(2 << 20)
    assert store.keep(beyond) is not beyond
    del tensor
    assert store.keep(beyond) is beyond  # there is room again


def test_a_small_tensor_is_not_worth_a_file() -> None:
    tensor = torch.ones(3)
    assert TensorStore(limit=0).keep(tensor) is tensor


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc to see what is mapped")
def test_a_file_lives_as_long_as_its_tensor() -> None:
    before = mapped_bytes()
    tensor = TensorStore(limit=0).keep(torch.arange(1 << 20))
    assert mapped_bytes() >= before + (8 << 20)
    assert torch.equal(tensor, torch.arange(1 << 20))
    del tensor
    gc.collect()
    assert mapped_bytes() <= before


def test_modules_that_are_made_on_a_shelf_are_as_any_others(in_files: None) -> None:
    expected = seeded(Mlp).state_dict()
    with CreatedIn(TensorStore()):
        network = seeded(Mlp)
    assert list(network.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    with CreatedIn(TensorStore()), torch.device("meta"):
        assert nn.Linear(4, 4).weight.is_meta


def test_weights_of_another_dtype_are_read_onto_a_shelf(in_files: None, tmp_path: Path) -> None:
    """A folder in bfloat16, whose weights in float32 are twice as large as its files."""
    from transformers import BertConfig, BertModel

    from svd2onnx.sources.huggingface import load_folder

    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=300
    )
    seeded(lambda: BertModel(config)).bfloat16().save_pretrained(tmp_path)
    expected = load_folder(tmp_path).model
    before = mapped_bytes()
    with CreatedIn(TensorStore()):
        found = load_folder(tmp_path).model
    linears = sum(p.nbytes for name, p in found.named_parameters() if p.ndim == 2)
    assert mapped_bytes() - before >= linears
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    for (name, ours), (_, other) in zip(
        found.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert ours.dtype == other.dtype, name
        assert torch.equal(ours, other), name


def test_a_module_is_put_on_a_shelf_as_it_is(in_files: None) -> None:
    network = seeded(Mlp)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    parameters = {id(parameter) for parameter in network.parameters()}
    store = TensorStore()
    store.keep_module(network)
    moved = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    assert all(moved[name] != place for name, (place, _) in before.items())
    assert all(torch.equal(network.state_dict()[name], own) for name, (_, own) in before.items())
    assert {id(parameter) for parameter in network.parameters()} == parameters
    store.keep_module(network)  # nothing is left to do
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == moved


def test_a_full_disk_is_told(in_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"No space left on device; .*set TMPDIR"):
        TensorStore().zeros((8,))


def test_what_gradients_need_is_in_files(in_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def probing(*arguments: Any) -> tuple[Tensor, int]:
        found.append(mapped_bytes())
        return probe(*arguments)

    monkeypatch.setattr(calibrating, "probe", probing)
    network, batch = seeded(Mlp), {"x": torch.randn(2048, 64)}
    sites = discover(network, batch)
    before = mapped_bytes()
    calibrate(network, sites, [batch], "mse")
    inputs, kept_by_relu = 2048 * (64 + 96) * 4, 2048 * 96 * 4
    assert found[0] - before >= inputs + kept_by_relu
    gc.collect()
    assert mapped_bytes() == before


def test_the_file_is_the_same_wherever_tensors_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "network.py"
    source.write_text(MODEL_FILE)

    def digest(name: str) -> str:
        compress_export(source, tmp_path / name, Settings(target_size="0.45x", provider="cpu"))
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    in_memory = digest("memory.onnx")
    monkeypatch.setattr(spill, "_SMALL", 1)
    monkeypatch.setattr(TensorStore.__init__, "__defaults__", (0,))
    assert digest("files.onnx") == in_memory
