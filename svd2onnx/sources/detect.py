"""Tell what kind of file SOURCE is, by its content: suffixes are guesses, and .pt is used for all of them.

Kinds that are read: "model file", "exported program", "pickle" (a module or a state dict), "safetensors",
"sharded" (an index.json), "hugging face" (a folder). All others are named, with what to do instead.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from svd2onnx.sources.missing import advice_for
from svd2onnx.values.errors import SourceError

_HEAD = 4096
_EXPECTED = (
    "expected a model file (.py), an exported program (.pt2), a state dict (.pt or .safetensors, with "
    "--model), a pickled module (.pt, with --trust-pickle) or a Hugging Face folder"
)
_EXPORT_AGAIN = (
    "load it in Python and write it with torch.export.save(torch.export.export(module, inputs), 'model.pt2')"
)
_OTHER: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    (b"GGUF", "a GGUF file", "give the network that it was made from, or a model file that reads it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", "give the network in PyTorch"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"<", "an HTML or XML page, as a failed download leaves it", "download the file itself"),
)


def kind_of(path: Path) -> str:
    """The kind of ``path``; see the module's docstring.

    Raises:
        SourceError: there is no such file, it cannot be read, or svd2onnx does not read files of its kind.
    """
    if not path.exists():
        raise SourceError(f"no such file or folder: {path}; {advice_for(path) or _EXPECTED}")
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder; {_EXPECTED}")
    if path.suffix == ".py":
        return "model file"
    try:
        with path.open("rb") as file:
            head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; {_EXPECTED}") from error
    if not head:
        raise SourceError(f"{path} is empty; {_EXPECTED}")
    if path.suffix.lower() in (".onnx", ".ort") or _looks_like_onnx(head):
        raise SourceError(
            f"{path} is an ONNX file, which holds no PyTorch network to compress: give the network it was "
            "exported from, as a .pt2 of torch.export.save or a model file; `svd2onnx bench` and `certify` "
            "take ONNX files"
        )
    if head[4:8] == b"TFL3":
        raise SourceError(f"{path} is a TensorFlow Lite file; {_EXPECTED}: give the network in PyTorch")
    for magic, what, advice in _OTHER:
        if head.startswith(magic):
            raise SourceError(f"{path} is {what}; {_EXPECTED}: {advice}")
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if path.name.endswith(".index.json"):
        return "sharded"
    if path.suffix == ".safetensors" or _looks_like_safetensors(head, size):
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    raise SourceError(f"{path} is of no known kind (it begins with {head[:8]!r}); {_EXPECTED}")


def _kind_of_folder(path: Path) -> str:
    if (path / "config.json").is_file():
        return "hugging face"
    if (path / "saved_model.pb").is_file():
        raise SourceError(f"{path} is a TensorFlow SavedModel; {_EXPECTED}: give the network in PyTorch")
    if any(path.glob("*.index.json")):
        raise SourceError(
            f"the folder {path} has no config.json, which says what network it is; "
            "give its index.json as SOURCE, and --model file.py"
        )
    raise SourceError(f"the folder {path} has no config.json, as one of Hugging Face has; {_EXPECTED}")


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(
            f"{path} begins as an archive of PyTorch but cannot be read ({error}): it is cut off or damaged; "
            "copy or download it again"
        ) from error
    found = set(names)
    if "archive_format" in found or any(
        name.startswith("models/") and name.endswith(".json") for name in names
    ):
        return "exported program"
    if "serialized_exported_program.json" in found:
        raise SourceError(
            f"{path} is an exported program of PyTorch before 2.8; expected one of the present format: load "
            "it with the version that wrote it, and write it again with a newer one"
        )
    if "constants.pkl" in found or any(name.startswith("code/") for name in names):
        raise SourceError(
            f"{path} is a TorchScript archive, which cannot be compressed: take the module that it was made "
            f"from, {_EXPORT_AGAIN.removeprefix('load it in Python and ')}, and give that file"
        )
    if "data.pkl" in found:
        return "pickle"
    if names and all(name.endswith(".npy") for name in names):
        raise SourceError(f"{path} holds arrays and no network: give it as --calibration; {_EXPECTED}")
    raise SourceError(f"{path} is a zip archive that PyTorch did not write; {_EXPECTED}")


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= size - 8


def _looks_like_onnx(head: bytes) -> bool:
    """An ONNX file opens with its version, the field 1, and then names its producer, the field 2."""
    return head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] == b"\x12"
