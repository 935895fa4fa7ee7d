"""A VGG for Fashion-MNIST (27.4M parameters, 26.2M of them in two Linears), as a model file.

It stands in for VGG19 where that one's weights are out of reach: seven 3x3 convolutions, then Linears
2304 -> 4096 -> 4096 -> 10 with dropout, trained as Simonyan and Zisserman (2014) did, with weight decay on
all of them. Nobody publishes its weights; half an hour of one core makes them::

    apt-get install dataset-fashion-mnist
    python models/fashion_vgg.py train -o DIR

``weights`` is a folder that holds ``fashion_vgg.safetensors``, which training writes to DIR. ``data`` is one
that holds the four gz files of Fashion-MNIST, or a folder ``fashion-mnist`` with them; without it, they are
read from where the Debian package puts them. Calibration and recovery have training images, each its own;
evaluation has the 10,000 test images.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``objective`` and ``dynamic_shapes``.
"""

import argparse
import gzip
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from images import check
from images import metric as metric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from vgg19 import classifier, initialize

objective = "kl"
dynamic_shapes = {"image": {0: "batch"}}

_PACKAGED = Path("/usr/share/datasets/fashion-mnist")
_WEIGHTS, _REPORT = "fashion_vgg.safetensors", "fashion_vgg.json"
_STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))  # channels, in multiples of the width, and convolutions
_SIDE = 3  # of an image of 28 after three poolings
_WIDE = ("classifier.0", "classifier.3")
_MEAN, _DEVIATION = 0.2860, 0.3530  # of the training images
_ROWS = {"calibration": slice(0, 2048), "recovery": slice(2048, 18432), "evaluation": slice(None)}
_BATCH = {"calibration": 64, "recovery": 64, "evaluation": 250}
_HELD_OUT = 5000  # the last training images tell, after each epoch, how it goes
_SHIFT = 2  # pixels, at most, each way
_TRAINING_BATCH, _RATE, _MOMENTUM, _DECAY = 256, 0.1, 0.9, 5e-4
_WARM_UP = 300  # steps
_SHARES = (0.9, 0.99)


class FashionVGG(nn.Module):
    """VGG with batch normalization, for small images of one channel."""

    def __init__(self, width: int = 32, hidden: int = 4096, classes: int = 10) -> None:
        super().__init__()
        channels = 1
        layers: list[nn.Module] = []
        for multiple, count in _STAGES:
            for _ in range(count):
                outputs = multiple * width
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                channels = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers[:-1])  # 3 x 3 pixels are left as they are
        self.classifier = classifier(channels * _SIDE * _SIDE, hidden, classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Classify: float32 [batch, 1, 28, 28] -> logits [batch, classes]."""
        logits: Tensor = self.classifier(self.features(image).flatten(1))
        return logits


def build(weights: Path | None = None, random_weights: bool = False) -> nn.Module:
    """Return the network with trained or initial weights, in eval mode.

    Raises:
        ValueError: neither is asked for.
        FileNotFoundError: the folder ``weights`` does not hold them.
    """
    how = f"`python {Path(__file__).name} train -o DIR` writes it"
    if random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return FashionVGG().eval()
    if weights is None:
        raise ValueError(
            f"expected --weights DIR, a folder with {_WEIGHTS} ({how}), "
            "or --random-weights, which needs no file; found neither option"
        )
    path = weights / _WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"expected {_WEIGHTS} in {weights}; found none: {how}")
    with torch.device("meta"):  # the weights come from the file: none are drawn first
        network = FashionVGG()
    network.load_state_dict(load_file(path), assign=True)
    return network.eval()


def inputs(split: str, data: Path | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``image``, float32 [batch, 1, 28, 28], normalised, and ``label``, int64 [batch]. No two
    splits share an image.

    Raises:
        ValueError: the split is unknown, or a file is not what it should be.
        FileNotFoundError: the images are not there.
    """
    check(split)
    images, labels = read("t10k" if split == "evaluation" else "train", data)
    images, labels = images[_ROWS[split]], labels[_ROWS[split]]
    for rows in _batches(len(images), _BATCH[split]):
        yield {"image": normalised(images[rows]), "label": labels[rows]}


def normalised(pixels: Tensor) -> Tensor:
    """Return what the network takes: uint8 [n, 28, 28] -> float32 [n, 1, 28, 28]."""
    return (pixels[:, None].float() / 255 - _MEAN) / _DEVIATION


def read(part: str, data: Path | None = None) -> tuple[Tensor, Tensor]:
    """Read the images, uint8 [n, 28, 28], and labels, int64 [n], of a part, "train" or "t10k".

    Raises:
        ValueError: a file is not in the IDX format, or there is not one label for each image.
        FileNotFoundError: a file is not there.
    """
    images = torch.from_numpy(read_idx(_find(f"{part}-images-idx3-ubyte.gz", data)))
    labels = torch.from_numpy(read_idx(_find(f"{part}-labels-idx1-ubyte.gz", data))).long()
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise ValueError(
            f"expected images [n, 28, 28] and labels [n] of {part}; "
            f"found {list(images.shape)} and {list(labels.shape)}"
        )
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """Read a gz file of bytes in the IDX format: two zeros, 8, the dimensions, and the bytes.

    Raises:
        ValueError: it is something else.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"expected a whole gz file in {path}: {error}") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError(f"expected bytes in the IDX format in {path}; it begins with {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    if len(content) - start != shape.prod():
        raise ValueError(f"expected {shape.prod()} bytes of data in {path}; found {len(content) - start}")
    return np.frombuffer(bytearray(content[start:]), np.uint8).reshape(shape)


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    after_epoch: Callable[[int, float], None],
) -> None:
    """Train with momentum, weight decay and a rate that falls as a cosine, always in the same order.

    Args:
        network: trained in place.
        images: uint8 [n, 28, 28]; they are shifted and mirrored at random.
        labels: int64 [n].
        epochs: how often each image is seen.
        after_epoch: called with the number of the epoch, from 1, and the mean loss in it.
    """
    generator = torch.Generator().manual_seed(0)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), _RATE, _MOMENTUM, weight_decay=_DECAY, fused=True)
    per_epoch = len(images) // _TRAINING_BATCH or 1
    for epoch in range(epochs):
        network.train()
        losses = []
        order = torch.randperm(len(images), generator=generator)[: per_epoch * _TRAINING_BATCH]
        for step, rows in enumerate(torch.split(order, _TRAINING_BATCH), epoch * per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, epochs * per_epoch)
            losses.append(train_step(network, optimizer, augmented(images[rows], generator), labels[rows]))
        after_epoch(epoch + 1, sum(losses) / len(losses))
    network.eval()


def rate(step: int, steps: int) -> float:
    """Return the learning rate: a line up, then half a cosine down."""
    return _RATE * min(1, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor) -> float:
    """Make one step, and return the loss before it."""
    loss = nn.functional.cross_entropy(_logits(network, image), label)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by a few pixels, mirror every other one, and normalise: see ``normalised``."""
    count, height, width = pixels.shape
    padded = nn.functional.pad(pixels, (_SHIFT,) * 4)
    rows, columns = torch.randint(2 * _SHIFT + 1, (2, count), generator=generator)
    shifted = padded.unfold(1, height, 1).unfold(2, width, 1)[torch.arange(count), rows, columns]
    is_mirrored = torch.rand(count, 1, 1, generator=generator) < 0.5
    return normalised(torch.where(is_mirrored, shifted.flip(2), shifted))


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is their label's."""
    network.eval()
    hits = [
        network(normalised(images[rows])).argmax(1) == labels[rows]
        for rows in _batches(len(images), _BATCH["evaluation"])
    ]
    return torch.cat(hits).double().mean().item()


def ranks(weight: Tensor, moment: Tensor | None = None, shares: Sequence[float] = _SHARES) -> list[int]:
    """Count the singular values that hold each share of the energy, of ``W`` or of ``W A^(1/2)``.

    Args:
        weight: W, [outputs, inputs].
        moment: A, the second moment of the inputs, [inputs, inputs].
        shares: of the sum of the squared singular values.
    """
    weight = weight.double()
    if moment is not None:
        gram = weight @ moment.double() @ weight.T
    else:
        gram = weight @ weight.T if len(weight) < weight.shape[1] else weight.T @ weight
    energy = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).cumsum(0)
    return [int((energy < share * energy[-1]).sum()) + 1 for share in shares]


@torch.no_grad()
def spectra(network: nn.Module, images: Tensor) -> dict[str, dict[str, list[int]]]:
    """Return the ranks of each wide layer, ``plain`` and ``weighted`` by its inputs' centred moment."""
    network.eval()
    found = {}
    for name in _WIDE:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        moment = _moment(network, layer, images)
        found[name] = {"plain": ranks(layer.weight), "weighted": ranks(layer.weight, moment)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the weights and what is known of them."""
    parser = argparse.ArgumentParser(description="Train a VGG on Fashion-MNIST.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train", help="write the weights, and a report, to a folder")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--data", type=Path, metavar="DIR", help=f"default: {_PACKAGED}")
    command.add_argument("--epochs", type=int, default=12)
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    try:
        images, labels = read("train", asked.data)
        test = read("t10k", asked.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    asked.output.mkdir(parents=True, exist_ok=True)
    network, begin = FashionVGG(), time.perf_counter()

    def after_epoch(epoch: int, loss: float) -> None:
        with _autocast():
            held_out = accuracy(network, images[-_HELD_OUT:], labels[-_HELD_OUT:])
        _save(network, asked.output / _WEIGHTS)
        minutes = (time.perf_counter() - begin) / 60
        _say(f"epoch {epoch:3d}  loss {loss:.4f}  held-out accuracy {held_out:.4f}  {minutes:5.1f} min")

    train(network, images[:-_HELD_OUT], labels[:-_HELD_OUT], asked.epochs, after_epoch)
    report = {"epochs": asked.epochs, "minutes": round((time.perf_counter() - begin) / 60, 1)}
    report |= {"test_accuracy": accuracy(network, *test)}
    _say(f"test accuracy {report['test_accuracy']:.4f}")
    found = spectra(network, images[: _ROWS["recovery"].stop])
    for name, kinds in found.items():
        for kind, (most, nearly_all) in kinds.items():
            _say(f"{name}  {kind:8}  rank of 90% of the energy {most:4d}, of 99% {nearly_all:4d}")
    (asked.output / _REPORT).write_text(json.dumps(report | {"ranks": found}, indent=2) + "\n")


def _find(name: str, data: Path | None) -> Path:
    folders = [_PACKAGED] if data is None else [data / _PACKAGED.name, data]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = " or ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"expected {name} in {places}; found none: apt-get install dataset-fashion-mnist, "
        "or give --data DIR, a folder with the four files of Fashion-MNIST"
    )


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _autocast() -> torch.autocast:
    """Calculate in bfloat16 where the processor does; the weights stay as they are."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def _logits(network: nn.Module, image: Tensor) -> Tensor:
    with _autocast():
        logits: Tensor = network(image.to(memory_format=torch.channels_last))
    return logits.float()


def _moment(network: nn.Module, layer: nn.Linear, images: Tensor) -> Tensor:
    """The centred second moment of what the layer is given, in float64."""
    total = torch.zeros(layer.in_features, dtype=torch.float64)
    products = torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64)

    def gather(_layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].double()
        total.add_(x.sum(0))
        products.addmm_(x.T, x)

    hook = layer.register_forward_pre_hook(gather)
    for rows in _batches(len(images), 1024):
        network(normalised(images[rows]))
    hook.remove()
    mean = total / len(images)
    return products / len(images) - torch.outer(mean, mean)


def _save(network: nn.Module, path: Path) -> None:
    """Write next to it first: an interruption leaves the file before."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, partial)
    partial.replace(path)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
