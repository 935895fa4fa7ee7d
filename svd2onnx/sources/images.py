"""A folder of images as calibration data: scaled to the network's size, and normalized as it was trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import SourceError, one_line

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class Preprocessing:
    """Pixels from 0 to 1, minus ``mean``, divided by ``std`` of each channel; by default ImageNet's."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSamples:
    """The images at ``paths`` for the argument ``name``, [channels, height, width] each."""

    paths: Sequence[Path]
    name: str
    shape: tuple[int, int, int]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> Batch:
        """The batch of the images at ``indices``."""
        return {self.name: torch.stack([self._image(self.paths[index]) for index in indices])}

    def _image(self, path: Path) -> Tensor:
        from PIL import Image

        channels, height, width = self.shape
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    image.draft("RGB", (width, height))
                    pixels = np.asarray(
                        image.convert("L" if channels == 1 else "RGB").resize((width, height))
                    )
        except Exception as error:
            raise SourceError(
                f"{path} cannot be read as an image ({one_line(error)}); expected images in the folder of "
                "--calibration: take it out"
            ) from error
        scaled = (
            torch.from_numpy(pixels.astype(np.float32) / 255)
            .reshape(height, width, channels)
            .permute(2, 0, 1)
        )
        mean, std = (
            torch.tensor(part[:channels]).reshape(-1, 1, 1)
            for part in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (scaled - mean) / std


def images_in(folder: Path) -> list[Path]:
    """All image files of ``folder`` and the folders in it, in order.

    Raises:
        SourceError: there is none, or Pillow is not installed.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise SourceError(
            f"the folder {folder} of --calibration holds no image; expected files such as .jpg or .png, or a "
            ".npz, .safetensors, .txt or .py file instead of a folder"
        )
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise SourceError(f"reading the images in {folder} needs Pillow: pip install pillow") from None
    return found
