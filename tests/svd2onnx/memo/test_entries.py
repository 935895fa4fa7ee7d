"""An entry is read as it was written, or not at all; and any reader of safetensors can read it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from svd2onnx.memo.entries import read_entry, write_entry

TENSORS = [
    torch.randn(3, 5),
    torch.randint(-8, 8, (7,), dtype=torch.int8),
    torch.randn(4).double(),
    torch.tensor(2.5).bfloat16(),
    torch.zeros(0, 4),
    torch.tensor([True, False]),
    torch.arange(5),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("entries") / "entry"
    write_entry(path, '{"a": "\\u00e4"}', TENSORS)
    return path


def test_tensors_come_back_where_products_round_alike(written: Path) -> None:
    found = read_entry(written)
    assert found is not None
    record, tensors = found
    assert record == '{"a": "\\u00e4"}'
    for tensor, own in zip(tensors, TENSORS, strict=True):
        assert tensor.dtype == own.dtype
        assert tensor.shape == own.shape
        assert torch.equal(tensor, own)
        assert not own.numel() or tensor.data_ptr() % 64 == 0


def test_the_library_reads_it(written: Path) -> None:
    stored = load_file(written)
    assert torch.equal(stored["0"], TENSORS[0])
    assert "sha256" in stored


def test_many_tensors_keep_their_numbers(tmp_path: Path) -> None:
    write_entry(tmp_path / "entry", "{}", [torch.tensor(float(i)) for i in range(30)])
    found = read_entry(tmp_path / "entry")
    assert found is not None
    assert [float(tensor) for tensor in found[1]] == list(range(30))


@pytest.mark.parametrize("content", [None, b"", b"x", b"x" * 31, b"x" * 200], ids=str)
def test_what_is_no_entry_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "entry"
    if content is not None:
        path.write_bytes(content)
    assert read_entry(path) is None


@given(st.data())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_damage_is_found(written: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    damaged = written.with_name("damaged")
    damaged.write_bytes(content)
    assert read_entry(damaged) is None
