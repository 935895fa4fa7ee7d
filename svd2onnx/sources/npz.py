"""Arrays of .npz files: numbers alone, none of which claims to be larger than what is stored of it."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import SourceError, one_line

MOST_BYTES = 16 << 30
"""Of all arrays together; a file of compressed ones may claim any number."""


def read_npz(path: Path) -> Batch:
    """The arrays of ``path``, without objects.

    Raises:
        SourceError: it is damaged, holds objects, or arrays claim more than their members hold.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > MOST_BYTES:
                raise SourceError(
                    f"{path} unpacks to {total} bytes; expected at most {MOST_BYTES}: give fewer samples"
                )
            for member in archive.infolist():
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = _array(path, file, member.file_size)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"{path} cannot be read ({one_line(error)}); expected a .npz file that numpy.savez wrote"
        ) from error
    if not arrays:
        raise SourceError(f"{path} holds no array; expected one for each input of the network")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _array(path: Path, file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read is None:
        raise SourceError(
            f"{path} has arrays of the unknown version {version}; expected those of numpy.savez"
        )
    shape, is_fortran, dtype = read(file)
    if dtype.kind not in "fiub" or dtype.itemsize * math.prod(shape) > size:
        raise SourceError(
            f"{path} has an array of {dtype} {list(shape)} in {size} bytes; expected numbers, all of them "
            "in the file"
        )
    content = file.read(dtype.itemsize * math.prod(shape))
    array = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("=")))
