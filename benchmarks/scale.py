"""How time and memory grow with the parameters of the network.

    python -m benchmarks.scale -o build/scale

Decoders like Llama, of random weights and four sizes, are written as Hugging Face folders and compressed on
random tokens, each in a process of its own, without retraining. Writes scale.json to the folder and prints a
table in Markdown with the exponents e of seconds ~ parameters^e and of memory. What is measured already is
kept, so a run that was stopped goes on with the next size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.markdown import table
from benchmarks.stages import OTHER

VOCABULARY = 8192
TOKENS = 128
SIZES = {  # hidden, intermediate, layers, heads
    "10M": (256, 704, 8, 4),
    "50M": (512, 1408, 12, 8),
    "220M": (1024, 2816, 16, 16),
    "1B": (2048, 5632, 20, 32),
}


@dataclass(frozen=True)
class Scaled:
    """One size: what it is, and what compressing it took.

    ``stages`` are seconds, and bytes but for those of files are peaks. The seconds of all processors depend
    less on what else the machine does.
    """

    size: str
    parameters: int
    seconds: float
    processor_seconds: float
    stages: dict[str, float]
    own_bytes: int
    stages_own_bytes: dict[str, int]
    mapped_bytes: int
    float_bytes: int
    file_bytes: int
    layers: int
    strict_relative_error: float


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--size", "sizes", type=click.Choice(list(SIZES)), multiple=True, help="[default: all]")
@click.option("--method", type=click.Choice(["auto", "quantize"]), default="auto", show_default=True)
@click.option("--target-size", default="0.12x", show_default=True, help="Of auto.")
@click.option("--samples", type=click.IntRange(2), default=64, show_default=True, help="Texts of 128 tokens.")
def main(output: Path, sizes: tuple[str, ...], method: str, target_size: str, samples: int) -> None:
    """Measure the sizes, or those of ``sizes``, and write and print the results."""
    output.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"method": method, "provider": "cpu", "calibration_samples": samples}
    settings |= {"bits": 4} if method == "quantize" else {"target_size": target_size}
    results = output / "scale.json"
    known: dict[str, Any] = {"settings": settings, "sizes": []}
    if results.exists():
        known = json.loads(results.read_text())
    if known["settings"] != settings:
        raise click.ClickException(f"{results} is of {known['settings']}: expected these, or another folder")
    rows = [Scaled(**row) for row in known["sizes"]]
    for size in sizes or SIZES:
        if size not in {row.size for row in rows}:
            rows.append(measured(size, output, settings, samples))
            known["sizes"] = [asdict(row) for row in rows]
            results.write_text(json.dumps(known, indent=2) + "\n")
    click.echo(markdown(rows))


def measured(size: str, folder: Path, settings: dict[str, Any], samples: int) -> Scaled:
    """Make the network of ``size`` and compress it.

    Raises:
        click.ClickException: that failed.
    """
    source, tokens = folder / size, folder / "tokens.npz"
    parameters = write_network(size, source)
    write_tokens(tokens, samples)
    asked = json.dumps(settings | {"calibration": str(tokens)})
    command = [sys.executable, "-m", "benchmarks.stages", str(source), str(folder / f"{size}.onnx"), asked]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise click.ClickException(f"compressing {size} ended with exit code {done.returncode}")
    return Scaled(size, parameters, **json.loads(done.stdout))


def write_network(size: str, folder: Path) -> int:
    """A decoder of random weights as a Hugging Face folder; the number of its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config)
    network.save_pretrained(folder)
    return sum(p.numel() for p in network.parameters())


def write_tokens(path: Path, samples: int) -> None:
    """Random tokens, the i-th with a share of 1 / i, as Zipf found in texts."""
    shares = 1 / np.arange(1, VOCABULARY + 1)
    rng = np.random.default_rng(0)
    ids = rng.choice(VOCABULARY, (samples, TOKENS), p=shares / shares.sum()).astype(np.int64)
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids))


def exponent(parameters: Sequence[float], values: Sequence[float]) -> float:
    """e of the power law that fits best: values ~ parameters^e, by least squares of the logarithms."""
    return float(np.polyfit(np.log(parameters), np.log(values), 1)[0])


def markdown(rows: Sequence[Scaled]) -> str:
    """A row for each size, one of exponents, and below the time and memory of the stages."""
    rows = sorted(rows, key=lambda row: row.parameters)
    columns = {
        "seconds": [row.seconds for row in rows],
        "of processors": [row.processor_seconds for row in rows],
        "own memory, GB": [row.own_bytes / 1e9 for row in rows],
        "with mapped files, GB": [row.mapped_bytes / 1e9 for row in rows],
    }
    sizes = [row.parameters for row in rows]
    first = [
        [row.size, f"{row.parameters / 1e6:,.0f} M", *(f"{values[i]:,.1f}" for values in columns.values())]
        for i, row in enumerate(rows)
    ]
    if len(rows) > 1:
        first.append(["exponent", "", *(f"{exponent(sizes, values):.2f}" for values in columns.values())])
    named = dict.fromkeys(stage for row in rows for stage in row.stages if stage != OTHER)
    stages = [*named, OTHER]
    seconds = [[stage, *(f"{row.stages.get(stage, 0.0):,.0f}" for row in rows)] for stage in stages]
    memory = [
        [stage, *(f"{row.stages_own_bytes.get(stage, 0) / 1e9:.1f}" for row in rows)] for stage in stages
    ]
    return "\n\n".join(
        [
            table(["size", "parameters", *columns], first),
            table(["stage, s", *(row.size for row in rows)], seconds),
            table(["own memory in a stage, GB", *(row.size for row in rows)], memory),
        ]
    )


if __name__ == "__main__":
    main()
