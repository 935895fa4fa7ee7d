"""One entry of a cache: a safetensors file that is checked as a whole before anything in it is believed.

    length of the header, 8 bytes | JSON, padded | tensors, each at a multiple of 64 | SHA-256 of all that

Written here and not by the library, which packs tensors at odd places: they are used where they lie, mapped
into memory, and matrix products over numbers that lie elsewhere may round otherwise. Any reader of
safetensors can read it: the gaps and the checksum are tensors of bytes. No pickle is involved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from svd2onnx.memo.records import raw

_ALIGNED = 64
_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bool": "BOOL",
    **{
        f"{sign}int{bits}": f"{sign.upper()}I{bits}".replace("UI", "U")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
_CHECKSUM = hashlib.sha256().digest_size


def write_entry(path: Path, record: str, tensors: Sequence[Tensor]) -> None:
    """Write ``record`` and contiguous ``tensors`` to ``path``.

    Raises:
        OSError: the disk refuses.
    """
    header: dict[str, Any] = {"__metadata__": {"record": record}}
    end = 0
    for i, tensor in enumerate(tensors):
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[str(i)] = _described(dtype, tensor.shape, end, tensor.nbytes)
        end += tensor.nbytes
        if gap := -end % _ALIGNED:
            header[f"gap {i}"] = _described("U8", (gap,), end, gap)
            end += gap
    header["sha256"] = _described("U8", (_CHECKSUM,), end, _CHECKSUM)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    sha = hashlib.sha256()
    with path.open("wb") as file:

        def put(part: bytes | memoryview) -> None:
            file.write(part)
            sha.update(part)

        put(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            put(raw(tensor))
            put(bytes(-tensor.nbytes % _ALIGNED))
        file.write(sha.digest())


def read_entry(path: Path) -> tuple[str, list[Tensor]] | None:
    """The record and the tensors of ``path``, mapped into memory; None where it is missing or damaged."""
    try:
        with path.open("rb") as file, _mapped(file.fileno()) as content:
            body, end = memoryview(content)[:-_CHECKSUM], content[-_CHECKSUM:]
            with body:
                whole = hashlib.sha256(body).digest() == end
        if not whole:
            return None
        with safe_open(path, framework="pt") as stored:
            count = sum(name.isdigit() for name in stored.keys())  # noqa: SIM118 - it is no mapping
            tensors = [stored.get_tensor(str(i)) for i in range(count)]
            return stored.metadata()["record"], tensors
    except (OSError, ValueError, SafetensorError):
        return None


@contextlib.contextmanager
def _mapped(descriptor: int) -> Iterator[mmap.mmap]:
    content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    try:
        yield content
    finally:
        content.close()


def _described(dtype: str, shape: Sequence[int], start: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
