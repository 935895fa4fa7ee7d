"""Tiny networks that cover what the exporter meets, and one function that compresses them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.realize import realize
from svd2onnx.graph.export import export
from svd2onnx.graph.quantized_nodes import QuantizedNode
from svd2onnx.network.layers import discover
from svd2onnx.network.rewrite import rewrite
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.sources.rows import infer_dynamic_shapes
from svd2onnx.values.schema import CompressedLayer, LayerForm, LayerSite, QuantSpec

Batch = dict[str, Tensor]


class Mlp(nn.Module):
    """x [batch, 64] -> [batch, 64], two Linears with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Sequences(nn.Module):
    """x [batch, length, 112] -> [batch, length, 96]; no biases, and the last block of 112 is partial."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(112, 64, bias=False), nn.LayerNorm(64)
        self.second = nn.Linear(64, 96, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


class Embedded(nn.Module):
    """ids [batch, length] -> [batch, length, 112] by way of a table of width 48 (blocks of 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(150, 48), nn.Linear(48, 112)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.table(ids))


class TiedHead(nn.Module):
    """A language model's tie: ids [batch, length] -> [batch, length, 128], head and table share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(128, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 128, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(ids))))


class TiedLinears(nn.Module):
    """x [batch, 64] -> [batch, 64]; two modules share a weight and have biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class CalledTwice(nn.Module):
    """x [batch, 64] -> [batch, 64]; one module runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.linear(x)))


class Images(nn.Module):
    """x [batch, 6, height, width] -> [batch, 96]: convolutions of several geometries, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.point, self.wide = nn.Conv2d(32, 64, 1, bias=False), nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.head = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.depthwise(torch.relu_(self.stem(x))))
        x = self.point(x)
        x = x + torch.relu(self.wide(x))
        return self.head(x.mean((2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": Mlp,
    "sequences": Sequences,
    "embedded": Embedded,
    "tied_head": TiedHead,
    "tied_linears": TiedLinears,
    "called_twice": CalledTwice,
}


class Vectors(nn.Module):
    """x [batch, 64] -> [batch, 64] through all networks on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Mlp(), TiedLinears(), CalledTwice())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Tokens(nn.Module):
    """ids [batch, length] -> ([batch, length, 96], [batch, length, 128]) through all networks on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded, self.sequences, self.tied = Embedded(), Sequences(), TiedHead()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.sequences(self.embedded(ids)), self.tied(ids)


@dataclass(frozen=True)
class Compressed:
    """A network before and after ``rewrite``, with what was found and stored on the way."""

    original: nn.Module
    network: nn.Module
    sites: Sequence[LayerSite]
    statistics: Mapping[str, LayerStatistics]
    layers: Mapping[str, CompressedLayer]
    batches: Sequence[Batch]

    def export(self, path: Path) -> list[QuantizedNode]:
        shapes = infer_dynamic_shapes(self.batches)
        return export(
            self.network, self.layers, self.batches[0], shapes, path, metadata={"made.by": "a test"}
        )


def seeded(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network of ``kind`` with weights of its own seed, in eval mode."""
    torch.manual_seed(seed)
    return kind().eval().requires_grad_(False)


def batches_of(network: nn.Module, seed: int = 1) -> list[Batch]:
    """Two batches for one of the networks here, of different sizes in each dynamic dimension."""
    torch.manual_seed(seed)
    if isinstance(network, Embedded | TiedHead | Tokens):
        return [{"ids": torch.randint(0, 128, shape)} for shape in ((5, 7), (3, 4))]
    if isinstance(network, Images):
        return [{"x": torch.randn(shape)} for shape in ((5, 6, 16, 14), (3, 6, 12, 20))]
    if isinstance(network, Sequences):
        return [{"x": torch.randn(shape)} for shape in ((5, 7, 112), (3, 4, 112))]
    return [{"x": torch.randn(shape)} for shape in ((12, 64), (7, 64))]


def compress(
    network: nn.Module, batches: Sequence[Batch], spec: QuantSpec, rank: int | None = None
) -> Compressed:
    """Quantize every layer that can be; with ``rank``, what multiplies becomes a pair of that rank."""
    sites = discover(network, batches[0])
    statistics = calibrate(network, sites, batches)
    plan = uniform_plan(sites, spec)
    if rank:
        pairs = {s.name: LayerForm(rank=rank, factors=spec) for s in sites if s.name in statistics}
        plan = replace(plan, forms={**plan.forms, **pairs})
    layers = realize(network, sites, plan, statistics)
    return Compressed(network, rewrite(network, sites, layers), sites, statistics, layers, batches)
