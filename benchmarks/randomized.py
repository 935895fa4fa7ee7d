"""Leading ranks by random projections against the whole decomposition: time, and the error that is predicted.

    python -m benchmarks.randomized

For weights whose singular values fall as i^-decay (0 as of random weights, .5 to 1 as of trained ones), with
skewed moments of inputs and outputs, it prints the time of projections over that of the whole decomposition
(medians of runs that take turns), and by how much tr(G D H D^T), the error that the decomposition minimises
and that pairs are priced by, is larger: of the truncated factors, and once they are rounded to 4 bits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from benchmarks.markdown import table
from svd2onnx.compression.factors import Target, quantized_pair
from svd2onnx.compression.lowrank import Factorization, Weighting
from svd2onnx.compression.rounding import Curvature
from svd2onnx.values.schema import QuantSpec

SIDES = (1024, 2048, 4096)
DECAYS = (0.0, 0.5, 1.0)
RANKS = (32, 128)
_SPEC = QuantSpec(4, 32)


@dataclass(frozen=True)
class Compared:
    """Projections over the whole decomposition: ``seconds`` of both, and ratios of errors."""

    side: int
    decay: float
    rank: int
    projected_seconds: float
    whole_seconds: float
    truncated: float
    rounded: float


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--side", "sides", type=int, multiple=True, default=SIDES, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
def main(sides: tuple[int, ...], runs: int) -> None:
    """Compare on square weights of these ``sides`` and print the table."""
    rows = []
    for side in sides:
        for decay in DECAYS:
            weight, curvature = weight_of(side, decay), curvature_of(side)
            rows += [compared(weight, curvature, decay, rank, runs) for rank in RANKS]
    click.echo(markdown(rows))


def compared(weight: Tensor, curvature: Curvature, decay: float, rank: int, runs: int) -> Compared:
    """Both decompositions of ``weight`` [side, side] at ``rank``."""
    weighting, target = Weighting(curvature.inputs, curvature.outputs), Target(weight, curvature)
    ways: list[Callable[[], Factorization]] = [
        lambda: weighting.factorize(weight, rank),
        lambda: weighting.factorize(weight).truncate(rank),
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(runs):
        for way, taken in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
    projected, whole = (way() for way in ways)
    truncated = [target.loss_with(own.left, own.right) for own in (projected, whole)]
    rounded = [_rounded_loss(target, own) for own in (projected, whole)]
    return Compared(
        side=len(weight),
        decay=decay,
        rank=rank,
        projected_seconds=statistics.median(seconds[0]),
        whole_seconds=statistics.median(seconds[1]),
        truncated=truncated[0] / truncated[1],
        rounded=rounded[0] / rounded[1],
    )


def weight_of(side: int, decay: float) -> Tensor:
    """A weight [side, side] with singular values i^-decay, in random directions."""
    generator = torch.Generator().manual_seed(side)
    left, right = (torch.linalg.qr(torch.randn(side, side, generator=generator)).Q for _ in range(2))
    weight: Tensor = left * torch.arange(1, side + 1).float().pow(-decay) @ right.T
    return weight


def curvature_of(side: int) -> Curvature:
    """Moments of inputs and outputs with variances that span two orders of magnitude, and correlations."""
    generator = torch.Generator().manual_seed(side + 1)

    def moment() -> Tensor:
        spread = torch.logspace(-1, 1, side)[torch.randperm(side, generator=generator)]
        mixed = torch.eye(side) + torch.randn(side, side, generator=generator) / (2 * side**0.5)
        rows = mixed * spread.sqrt()
        product: Tensor = rows.T @ rows
        return product

    return Curvature(moment().double(), moment())


def markdown(rows: list[Compared]) -> str:
    """One line for each comparison."""
    header = ["side", "decay", "rank", "whole, s", "by projections", "error", "error, 4 bits"]
    return table(
        header,
        [
            [
                str(row.side),
                f"{row.decay:g}",
                str(row.rank),
                f"{row.whole_seconds:.2f}",
                f"x {row.projected_seconds / row.whole_seconds:.2f}",
                f"x {row.truncated:.4f}",
                f"x {row.rounded:.4f}",
            ]
            for row in rows
        ],
    )


def _rounded_loss(target: Target, factors: Factorization) -> float:
    left, right = quantized_pair(target, factors, _SPEC)
    return target.loss_with(left.dequantize(), right.dequantize())


if __name__ == "__main__":
    main()
