"""Batches of images for the vision model files: a folder of JPEGs, or noise where there is none.

Reading JPEGs takes Pillow: ``pip install "svd2onnx[vision]"``. They are resized and cropped as torchvision
does it for its networks. Every other file, by name, is for evaluation, the rest for calibration and
recovery. A file that is called by a number (``0207.jpg``) has it as its label, the index of its class.

The noise has the amplitudes of natural images, which fall as 1/f, and their correlation of colours. Layers
with random weights see about what they would see of photographs; whether a trained network still tells
classes apart it cannot say, and it has no labels.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of red, green and blue

_SPLITS = ("calibration", "recovery", "evaluation")  # the position is the seed of the noise
_BATCH = {"calibration": 16, "recovery": 16, "evaluation": 25}
_NOISE_BATCHES = {"calibration": 4, "recovery": 4, "evaluation": 2}
_SHARED = 0.9  # of the variance of natural images is in all three colours alike
_SUFFIXES = (".jpg", ".jpeg")


def inputs(
    split: str, data: Path | None = None, resize: int = 256, crop: int = 224
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``image``, float32 [batch, 3, crop, crop], normalised, and those of numbered files
    ``label``, int64 [batch]. No image of evaluation is in another split; calibration and recovery are the
    same ones, unless they are noise.

    Args:
        split: "calibration", "recovery" or "evaluation".
        data: the folder of the JPEGs, or that of their folder ``imagenet``; without it, noise.
        resize: length of an image's shorter side before it is cropped.
        crop: side of the square that is cut out of its middle.

    Raises:
        ValueError: the split is unknown.
        FileNotFoundError: ``data`` holds no JPEG.
        ImportError: Pillow is not installed.
    """
    check(split)
    size = _BATCH[split]
    if data is None:
        generator = torch.Generator().manual_seed(_SPLITS.index(split))
        for _ in range(_NOISE_BATCHES[split]):
            yield {"image": noise(size, crop, generator)}
        return
    paths = _paths(data)
    numbered = all(path.stem.isdecimal() for path in paths)
    if split == "evaluation":
        paths = paths[1::2]
    else:
        paths = paths[0::2]
        random.Random(0).shuffle(paths)  # they are sorted by class, and some batches judge the others
    for start in range(0, len(paths), size):
        chosen = paths[start : start + size]
        batch = {"image": normalised(np.stack([read(path, resize, crop) for path in chosen]))}
        if numbered:
            batch["label"] = torch.tensor([int(path.stem) for path in chosen])
        yield batch


def metric(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Return ``top1``, the share of images whose largest logit is their label's; {} without labels."""
    if "label" not in batch:
        return {}
    (logits,) = outputs.values()
    return {"top1": float(np.mean(logits.argmax(axis=1) == batch["label"]))}


def check(split: str) -> None:
    """Refuse what is no split.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in _SPLITS:
        raise ValueError(f"expected a split out of {', '.join(_SPLITS)}; found {split!r}")


def normalised(pixels: np.ndarray) -> Tensor:
    """Return what the networks take: uint8 [n, height, width, 3] -> float32 [n, 3, height, width]."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return ((images - mean) / deviation).contiguous()


def read(path: Path, resize: int, crop: int) -> np.ndarray:
    """Read an image, scale its shorter side, and cut out its middle: uint8 [crop, crop, 3].

    Sides, offsets and the filter (bilinear, over all pixels that an output covers) are those of
    torchvision's ``Resize`` and ``CenterCrop``.

    Raises:
        ImportError: Pillow is not installed.
    """
    image_module = _pillow()
    with image_module.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    width, height = resize * width // shorter, resize * height // shorter
    image = image.resize((width, height), image_module.Resampling.BILINEAR)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Make normal noise whose amplitudes fall as 1/f: [count, 3, size, size], mean 0 and variance 1."""
    frequency = torch.fft.fftfreq(size)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).clamp(min=1 / size)
    amplitude = radius.reciprocal()
    amplitude /= amplitude.square().mean().sqrt()
    shared, own = (torch.randn(count, n, size, size, generator=generator) for n in (1, 3))
    white = _SHARED**0.5 * shared + (1 - _SHARED) ** 0.5 * own
    # The amplitudes are even, so that only rounding makes anything imaginary.
    images: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real.contiguous()
    return images


def _paths(data: Path) -> list[Path]:
    inner = data / "imagenet"
    folder = inner if inner.is_dir() else data
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            f"expected JPEG images in {inner} or {data}; found none: "
            "put them there, or leave the data folder out to use synthetic images"
        )
    return paths


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "expected Pillow, which reads images; it is not installed: pip install 'svd2onnx[vision]'"
        ) from error
    return Image
