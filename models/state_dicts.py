"""Trained weights from files of torchvision's kind: a state dict that torch.save wrote, found in a folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def pretrained_or_random(
    architecture: Callable[[], nn.Module], weights: Path | None, random_weights: bool, pattern: str, url: str
) -> nn.Module:
    """Return the network with the weights that were asked for, in eval mode.

    Args:
        architecture: makes the network, with initial weights.
        weights: a folder with a file whose name fits ``pattern``.
        random_weights: keep the initial weights instead, always the same ones.
        pattern: such as ``"vgg19-*.pth"``.
        url: where the file is published.

    Raises:
        ValueError: neither was asked for.
        FileNotFoundError: no such file, or more than one.
    """
    if random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return architecture().eval()
    if weights is None:
        raise ValueError(
            f"expected --weights DIR, a folder with {pattern} from {url}, "
            "or --random-weights, which needs no file; found neither option"
        )
    return pretrained(architecture, find(weights, pattern, url))


def find(folder: Path, pattern: str, url: str) -> Path:
    """Return the one file of ``folder`` whose name fits.

    Raises:
        FileNotFoundError: there is none, or more than one.
    """
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(f"expected {pattern} in {folder}; found none: {url} publishes it")
    names = ", ".join(path.name for path in found)
    raise FileNotFoundError(f"expected one {pattern} in {folder}; found {names}: keep one of them there")


def pretrained(architecture: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Return the network with exactly the tensors of the file, in eval mode.

    Raises:
        RuntimeError: names or shapes differ.
    """
    with torch.device("meta"):  # the weights come from the file: none are drawn first
        network = architecture()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    return network.eval()
