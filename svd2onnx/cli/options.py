"""The options that commands share, and what their values mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from svd2onnx.values.settings import Settings

Command = Callable[..., None]
PATH = click.Path(path_type=Path)
PROVIDER = click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Execution provider; auto is CUDA where there is a GPU.",
)
THREADS = click.option("--threads", type=click.IntRange(1), help="Threads within an operator.")
DIM = click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a dynamic dimension.")
WEIGHTS = click.option(
    "--weights", type=PATH, help="Folder with the trained weights, for model files that ask for one."
)
RANDOM_WEIGHTS = click.option(
    "--random-weights",
    is_flag=True,
    help="Untrained weights, to learn size, speed and memory, for model files that offer it.",
)
EXECUTOR = click.option(
    "--executor",
    type=click.Choice(["auto", "threads", "processes", "ray"]),
    default="auto",
    show_default=True,
    help="What works on layers, and on points of a sweep; ray: the cluster at RAY_ADDRESS, or one here.",
)
DATA = click.option("--data", type=PATH, help="Folder of better data, if the model file takes one.")


def source_options(command: Command) -> Command:
    """The options that say what to compress, and on what it is judged."""
    options = [
        click.option(
            "--only", type=click.Choice(["linear", "convolution", "embedding"]),
            help="Compress layers of this kind alone.",
        ),
        WEIGHTS,
        RANDOM_WEIGHTS,
        click.option(
            "--model", type=PATH, metavar="FILE.py",
            help="For state dicts: the Python file whose build() makes their network.",
        ),
        click.option(
            "--trust-pickle", is_flag=True,
            help="Unpickle a network, which runs whatever code its file holds: only if you trust its maker.",
        ),
        click.option(
            "--calibration", type=PATH, metavar="PATH",
            help="Samples: .npz or .safetensors arrays, a folder of images, a .txt file, or a model file.",
        ),
        click.option(
            "--input-shape", multiple=True, metavar="[NAME=]1,3,224,224",
            help="Of an input that neither SOURCE nor --calibration tells; :int64 behind it for integers.",
        ),
        click.option(
            "--objective", type=click.Choice(["cosine", "kl", "mse"]),
            help="What is kept: direction, distribution or values.  [default: as SOURCE says, or mse]",
        ),
        click.option("--include", multiple=True, metavar="GLOB", help="Compress only these layers."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these layers in float."),
        click.option(
            "--calibration-samples", type=click.IntRange(0), default=1024, show_default=True,
            help="Inputs to calibrate on; 0 does without data.",
        ),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True,
            help="Of whatever is drawn: probes, samples, the order of retraining.",
        ),
        DATA,
        PROVIDER,
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
            help="What calibrates, decomposes, rounds and retrains; auto is CUDA where there is a GPU.",
        ),
    ]  # fmt: skip
    return _with(options, command)


def run_options(command: Command) -> Command:
    """The options of what writes files after long work, and those of ``source_options``."""
    options = [
        click.option(
            "--recover", type=click.IntRange(0), default=0, metavar="STEPS",
            help="Retrain the compressed network briefly, by distillation on the recovery split.",
        ),
        click.option(
            "--resume", is_flag=True,
            help="Go on from what a stopped run finished, and keep what this one does, in OUTPUT.cache.",
        ),
        click.option(
            "--cache", type=PATH, metavar="DIR",
            help="Keep calibration, prices and codes here, and take them from here; runs may share it.",
        ),
        EXECUTOR,
    ]  # fmt: skip
    return _with(options, source_options(command))


def compression_options(command: Command) -> Command:
    """The options that say how to compress, and those of ``run_options``."""
    options = [
        click.option(
            "--method",
            type=click.Choice(["auto", "quantize", "svd"]),
            default="auto",
            show_default=True,
            help="Plan the whole network; or plain quantization; or the article's low rank.",
        ),
        click.option(
            "--target-size", metavar="SIZE",
            help="auto: bytes of the finished file, as 0.15x of float32 or 40MB.  [default: 0.15x]",
        ),
        click.option(
            "--min-fidelity", type=float, metavar="F",
            help="auto: the smallest file of at least this fidelity; 1 is a perfect copy.",
        ),
        click.option(
            "--target-latency", metavar="TIME",
            help="auto: at most so much time, as 0.5x of float32 or 12ms, on --provider with --threads.",
        ),
        click.option(
            "--batch", type=click.IntRange(1), default=1, show_default=True,
            help="Batch that --target-latency is for.",
        ),
        click.option(
            "--sequence", type=click.IntRange(1), default=128, show_default=True,
            help="Length of texts that --target-latency is for: the dynamic dimension \"sequence\".",
        ),
        click.option(
            "--latency-table", type=PATH,
            help="OUTPUT.latency.json of an earlier run on this machine, so as not to time layers again.",
        ),
        click.option(
            "--plan", type=PATH, help="Store the layers as this file says (OUTPUT.plan.json, edited)."
        ),
        click.option(
            "--bits", type=click.Choice(["8", "4", "2"]), default="4", show_default=True,
            help="quantize, svd: bits of a code.",
        ),
        click.option(
            "--block-size", type=click.Choice(["16", "32", "64", "128", "256"]),
            help="quantize, svd: weights that share a scale.  [default: 128 at 8 bits, else 32]",
        ),
        click.option(
            "--epsilon", type=float, default=0.1, show_default=True,
            help="svd: largest relative output error of a layer.",
        ),
        click.option(
            "--activations", type=click.Choice(["auto", "float", "int8"]), default="auto", show_default=True,
            help="What MatMuls compute with; int8 is faster on CPUs at many rows, and rounds more. "
            "auto chooses for each layer if there is a --target-latency, and is float if not.",
        ),
        click.option(
            "--operator", type=click.Choice(["dequantize", "folded", "matmulnbits"]), default="dequantize",
            show_default=True,
            help="Weights in standard operators, fused at load; or made floats then; or as the fused kernel.",
        ),
        click.option(
            "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
            help="What the graph computes in; float16 is for CUDA. Inputs and outputs stay float32.",
        ),
        click.option(
            "--external-data", is_flag=True,
            help="Write the weights to OUTPUT.data, which is mapped into memory where OUTPUT is loaded.",
        ),
        click.option(
            "--with-past", is_flag=True,
            help="Past keys and values as inputs and outputs, to generate text a token at a time.",
        ),
        THREADS,
    ]  # fmt: skip
    return _with(options, run_options(command))


def examples(*lines: str) -> str:
    """The epilog of a command: ``lines`` as they are to be typed."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def settings_of(arguments: dict[str, Any]) -> Settings:
    """The values of ``compression_options``, as the compressor takes them."""
    from svd2onnx.values.settings import Settings

    block_size = arguments.pop("block_size")
    return Settings(
        bits=int(arguments.pop("bits")),
        block_size=int(block_size) if block_size else None,
        **arguments,
    )


def sizes_of(dims: Iterable[str]) -> dict[str, int]:
    """``NAME=SIZE`` options as sizes; a dynamic dimension called "sequence" defaults to 64."""
    sizes = {"sequence": 64}
    for name, size in pairs(dims, "--dim", "NAME=SIZE").items():
        if not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"{size!r} is no positive size", param_hint="--dim")
        sizes[name] = int(size)
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


def _with(options: Sequence[Any], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
