"""The options that commands share, and the groups in which their help shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import cloup

from svd2onnx.values.choices import DEVICES

PATH = click.Path(path_type=Path)
SOURCE = click.argument("source", type=PATH)
PROVIDER = cloup.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Execution provider of onnxruntime; auto is CUDA where there is a GPU.",
)
THREADS = cloup.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads for each operator.  [default: all cores]"
)
DIM = cloup.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a dynamic dimension.")
WEIGHTS = cloup.option(
    "--weights",
    type=PATH,
    metavar="DIR",
    help="Folder with the trained weights, for model files that ask for it.",
)
RANDOM_WEIGHTS = cloup.option(
    "--random-weights",
    is_flag=True,
    help="Use untrained weights, to learn size, speed and memory; for model files that offer it.",
)
DATA = cloup.option(
    "--data", type=PATH, metavar="DIR", help="Folder with your own data, for model files that take one."
)
CALIBRATION = cloup.option(
    "--calibration",
    type=PATH,
    metavar="PATH",
    help="Samples to calibrate on: .npz or .safetensors arrays, a folder of images, a .txt file with one "
    "text a line, or a model file.",
)
_SOURCE_AND_DATA = (
    cloup.option(
        "--model",
        type=PATH,
        metavar="FILE.py",
        help="For a state dict: the Python file whose build() makes its network. For a pickled network of a "
        "script: the file that defines its classes.",
    ),
    cloup.option(
        "--checkpoint-key",
        metavar="KEY",
        help="Where in a checkpoint the weights lie, such as ema or model.state_dict.  [default: where they "
        "fit the network; plain weights before averages]",
    ),
    WEIGHTS,
    RANDOM_WEIGHTS,
    cloup.option(
        "--trust-pickle",
        is_flag=True,
        help="Unpickle a network, which runs whatever code its file holds: only if you trust its maker.",
    ),
    DATA,
    cloup.option(
        "--input-shape",
        multiple=True,
        metavar="[NAME=]1,3,224,224",
        help="Shape of an input that neither SOURCE nor --calibration tells; add :int64 for integers.",
    ),
    cloup.option(
        "--objective",
        metavar="[OUTPUT=]KIND",
        help="What fidelity compares: the direction of outputs (cosine, for embeddings), their distribution "
        "(kl, for logits) or their values (mse); of the first output, or of the one that is named, as in "
        "boxes=mse.  [default: as SOURCE says, or mse]",
    ),
    cloup.option(
        "--calibration-samples",
        type=click.IntRange(0),
        metavar="N",
        default=1024,
        show_default=True,
        help="Number of samples to calibrate on; 0 compresses without data.",
    ),
    cloup.option(
        "--seed", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="Random seed."
    ),
)
DEVICE = cloup.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where PyTorch calibrates, decomposes, rounds and retrains; auto is CUDA where there is a GPU.",
)
EXECUTOR = cloup.option(
    "--executor",
    type=click.Choice(["auto", "threads", "processes", "ray"]),
    default="auto",
    show_default=True,
    help="Workers for the layers, and for the points of a sweep; ray uses the cluster at RAY_ADDRESS, or "
    "starts one here.",
)
RECOVER = cloup.option(
    "--recover",
    type=click.IntRange(0),
    default=0,
    metavar="STEPS",
    help="Retrain the compressed network for a few steps, by distillation from the original.",
)
LAYER_OPTIONS = cloup.option_group(
    "Layers",
    cloup.option(
        "--only",
        type=click.Choice(["linear", "convolution", "embedding", "stored"]),
        help="Compress layers of this kind only.",
    ),
    cloup.option(
        "--include", multiple=True, metavar="PATTERN", help="Compress only the layers of this name or glob."
    ),
    cloup.option(
        "--exclude", multiple=True, metavar="PATTERN", help="Keep the layers of this name or glob in float."
    ),
)
CACHE_OPTIONS = cloup.option_group(
    "Caching",
    cloup.option(
        "--cache",
        type=PATH,
        metavar="DIR",
        help="Keep calibration, candidates and codes here, and reuse them in later runs; runs may share it.",
    ),
    cloup.option(
        "--resume",
        is_flag=True,
        help="Continue from what a stopped run finished, and keep what this one finishes, in a cache beside "
        "the output.",
    ),
)


class Command(cloup.Command):
    """Options outside of any group say what is written and printed: they are the last group."""

    def get_default_option_group(
        self, ctx: click.Context, is_the_only_visible_option_group: bool = False
    ) -> cloup.OptionGroup:
        group = super().get_default_option_group(ctx, is_the_only_visible_option_group)
        if not is_the_only_visible_option_group:
            group.title = "Output"
        return group


def command(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., None]], Command]:
    """Like ``click.command``, with options in groups."""
    return cloup.command(name, cls=Command, **attributes)


def source_options(*more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The group of the options that say what is compressed, after ``more`` of them."""
    return cloup.option_group("Source and data", *more, *_SOURCE_AND_DATA)


def examples(*lines: str) -> str:
    """The epilog of a command: ``lines`` as they are to be typed."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def sizes_of(dims: Iterable[str]) -> dict[str, int]:
    """``NAME=SIZE`` options as sizes; a dynamic dimension called "sequence" defaults to 64.

    Names of Hugging Face, such as "sequence_length", are under the short ones, which mean the same.
    """
    from svd2onnx_runtime.dimensions import SEQUENCE, canonical

    sizes = {SEQUENCE: 64}
    for name, size in pairs(dims, "--dim", "NAME=SIZE").items():
        if not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"{size!r} is no positive size", param_hint="--dim")
        sizes[canonical(name)] = int(size)
    return sizes


def pairs(options: Iterable[str], hint: str, form: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a dict, for an option ``hint`` that is to have this ``form``."""
    found = {}
    for option in options:
        name, _, value = option.partition("=")
        if not name or not value:
            raise click.BadParameter(f"{option!r} is not {form}", param_hint=hint)
        found[name] = value
    return found
