"""``--calibration PATH``: samples from a file or a folder, and what is kept of them to judge on.

.npz, .safetensors   arrays named as the inputs are, with samples along their first axis
a folder             images
a text file          one text a line, read by the tokenizer that lies with the network
a model file (.py)   its inputs(split)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from svd2onnx.sources.images import ImageSamples, Preprocessing, images_in
from svd2onnx.sources.inputs import BOXES, required_arguments, rows_of
from svd2onnx.sources.model_file import Batch
from svd2onnx.sources.network import Network
from svd2onnx.sources.npz import read_npz
from svd2onnx.sources.safetensor_files import read_safetensors
from svd2onnx.values.errors import SourceError

EVALUATED = 5
"""One sample in so many is held out for evaluation, and at most MOST_EVALUATED."""
MOST_EVALUATED = 256
BATCH = 32
_FORMS = "expected .npz or .safetensors arrays, a folder of images, a .txt file or a model file (.py)"


class Samples(Protocol):
    """Data that batches are taken from."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Batch:
        """The batch of the samples at ``indices``."""


@dataclass(frozen=True)
class ArraySamples:
    """Rows of tensors that have equally many."""

    tensors: Batch

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, indices: Sequence[int]) -> Batch:
        return {name: tensor[list(indices)] for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class TextSamples:
    """Texts, for the tokenizer of ``network``."""

    texts: Sequence[str]
    network: Network

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Batch:
        assert self.network.tokenize is not None
        return self.network.tokenize([self.texts[index] for index in indices])


@dataclass(frozen=True)
class Splits:
    """Samples in the splits of a model file: every fifth is held out, a single one is in both."""

    samples: Samples
    rows: int

    def inputs(self, split: str) -> Iterator[Batch]:
        """The batches of ``split``; recovery is on what calibration is on."""
        count = len(self.samples)
        judged = held_out(count)
        fit = sorted(set(range(count)) - set(judged))
        chosen = judged if split == "evaluation" and judged else fit
        for start in range(0, len(chosen), self.rows):
            indices = chosen[start : start + self.rows]
            # A network with a batch of one size takes no less.
            yield self.samples.take((indices * self.rows)[: self.rows] if self.is_fixed else indices)

    is_fixed: bool = False

    @property
    def holds_out(self) -> bool:
        """Whether evaluation is on samples that calibration does not see."""
        return len(self.samples) >= EVALUATED


def held_out(count: int) -> list[int]:
    """Those of ``count`` samples that evaluation is on, and calibration is not; none of very few."""
    return list(range(EVALUATED - 1, count, EVALUATED))[:MOST_EVALUATED]


def limited(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """Whole batches until there are at least ``samples`` rows, and one in any case."""
    rows = 0
    for batch in batches:
        yield batch
        rows += next(iter(batch.values())).shape[0]
        if rows >= samples:
            return


def read_samples(path: Path, network: Network) -> Splits:
    """The samples at ``path``, which is no model file, for ``network``.

    Raises:
        SourceError: the file is damaged, of no known kind, or does not fit the network's inputs.
    """
    if not path.exists():
        raise SourceError(f"no such --calibration: {path}; {_FORMS}")
    samples: Samples
    if path.is_dir():
        samples = _images(path, network)
    elif path.suffix == ".npz":
        samples = _arrays(path, read_npz(path), network)
    elif path.suffix == ".safetensors":
        samples = _arrays(path, read_safetensors(path), network)
    elif path.suffix == ".txt":
        samples = _texts(path, network)
    else:
        raise SourceError(f"--calibration {path} is of no known kind; {_FORMS}")
    if network.specs is None:
        return Splits(samples, BATCH)
    rows = rows_of(network.specs, BATCH)
    first = network.specs[0]
    return Splits(samples, rows, is_fixed=bool(first.shape) and 0 not in (first.dynamic or {}))


def _arrays(path: Path, arrays: Batch, network: Network) -> ArraySamples:
    wanted = [spec.name for spec in network.specs] if network.specs else required_arguments(network.model)
    if len(arrays) == len(wanted) == 1:
        arrays = dict(zip(wanted, arrays.values(), strict=True))  # one array needs no name
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise SourceError(
            f"{path} holds {', '.join(arrays)}; expected arrays named {', '.join(wanted)}, as the network's "
            f"inputs, and {missing[0]} is missing"
        )
    sizes = {name: len(tensor) if tensor.ndim else 0 for name, tensor in arrays.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise SourceError(
            f"{path} has arrays of {sizes} samples; expected equally many of each, and one at least"
        )
    types = {spec.name: spec.dtype for spec in network.specs or ()}
    return ArraySamples({name: _typed(path, name, t, types.get(name)) for name, t in arrays.items()})


def _typed(path: Path, name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if tensor.is_floating_point() != dtype.is_floating_point:
        raise SourceError(
            f"{path} has {tensor.dtype} under {name!r}; expected {dtype}, which the network takes there"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise SourceError(
            f"{path} has NaN or infinite values under {name!r}; expected finite samples: leave them out"
        )
    return tensor.to(dtype)


def _texts(path: Path, network: Network) -> TextSamples:
    if any(spec.name == BOXES for spec in network.specs or ()):
        raise SourceError(
            f"{path} holds text, and {network.path} takes 'bbox' too, which says where words lie on a page; "
            "expected arrays of all its inputs: give an .npz"
        )
    if network.tokenize is None:
        raise SourceError(
            f"{path} holds text, and no tokenizer lies with {network.path}; expected a Hugging Face folder "
            "with its tokenizer as SOURCE, or token ids as .npz"
        )
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise SourceError(
            f"{path} cannot be read ({error}); expected a text in UTF-8, one sample a line"
        ) from error
    if not texts:
        raise SourceError(f"{path} holds no text; expected one sample a line")
    return TextSamples(texts, network)


def _images(path: Path, network: Network) -> ImageSamples:
    paths = images_in(path)
    specs = network.specs or ()
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].shape[1] not in (1, 3):
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs) or "inputs of unknown sizes"
        raise SourceError(
            f"{path} holds images, and {network.path} takes {found}; expected one input [batch, 3, height, "
            "width]: give --input-shape 1,3,HEIGHT,WIDTH, or arrays as .npz"
        )
    _, channels, height, width = specs[0].shape
    return ImageSamples(
        paths, specs[0].name, (channels, height, width), network.preprocessing or Preprocessing()
    )
