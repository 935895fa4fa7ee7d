"""Find the weights that can be compressed, and say why the others cannot.

The network is a traced one (``svd2onnx.tracing``), whose operators with weights are modules: an nn.Linear is
a "linear" site, an nn.Embedding an "embedding" site, an nn.Conv1d, 2d or 3d a "convolution" site, a
StoredWeight a "stored" site; every other module that owns parameters stays float. A weight that several
modules share is one site.
"""

from __future__ import annotations

import fnmatch
import glob
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.network.convolution import CONVOLUTIONS, geometry_of
from svd2onnx.network.first_batch import first_batch
from svd2onnx.network.modules import StoredWeight
from svd2onnx.values.errors import PlanError, SourceError
from svd2onnx.values.schema import BLOCK_SIZES, LayerSite

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Embedding: "embedding",
    nn.Conv1d: "convolution",
    nn.Conv2d: "convolution",
    nn.Conv3d: "convolution",
    StoredWeight: "stored",
}
SMALLEST_WEIGHT = {"linear": 4096, "embedding": 4096, "convolution": 512, "stored": 4096}
"""Weights with fewer elements stay float: the nodes that store them outweigh the bytes, and a fused kernel of
its own costs time, which convolutions, whose weights are made at load, do not need."""
LARGEST_WEIGHT = 1e15
"""Sums of squares of larger ones leave float32, and no network that was trained has them."""


def discover(model: nn.Module, example: Mapping[str, Tensor]) -> list[LayerSite]:
    """All sites of ``model``, compressible or not, in the order of its modules.

    Args:
        model: in eval mode; it is run once on ``example``.
        example: the forward's arguments by name.

    Raises:
        SourceError: a parameter or buffer holds a NaN or an infinity, or a parameter is too large to square,
            or the network does not run.
    """
    _check_values(model)
    calls = _count_calls(model, example)
    groups: dict[tuple[int, str], list[str]] = defaultdict(list)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        # What other operators take lies in plain modules: it is no layer.
        holds_some = any(True for _ in module.parameters(recurse=False))
        if holds_some and type(module) is not nn.Module and module is not model:
            groups[id(getattr(module, "weight", module)), _kind(module)].append(name)
    sites = []
    for (_, kind), names in groups.items():
        module = modules[names[0]]
        total = sum(calls[name] for name in names)
        weight = getattr(module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        if kind == "convolution":
            shape = (shape[0], math.prod(shape[1:]))
        elif isinstance(module, StoredWeight):
            shape = tuple(module.matrix.shape)
        sites.append(
            LayerSite(
                name=names[0],
                kind=kind,
                shape=shape,
                aliases=tuple(names[1:]),
                calls=total,
                skip_reason=_skip_reason(module, kind),
                geometry=geometry_of(module) if isinstance(module, CONVOLUTIONS) else None,
            )
        )
    return sites


def select(
    sites: Sequence[LayerSite],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    only: str | None = None,
) -> list[LayerSite]:
    """The sites with those skipped that ``include`` leaves out or ``exclude`` names, or of another kind.

    Patterns are names of modules, which may hold brackets, or shell globs over them
    (``encoder.layer.*.attention.*``); ``only`` is a kind, or None for all of them.

    Raises:
        PlanError: a pattern matches no compressible layer, or there is none of the kind.
    """
    if only is not None:
        sites = [_of_kind(site, only) for site in sites]
    usable = [site for site in sites if site.skip_reason is None]
    if only is not None and not usable:
        raise PlanError(f"--only {only}: the network has no compressible layer of this kind")
    names = {name for site in sites for name in site.names}
    globs = {own: glob.escape(own) if own in names else own for own in (*include, *exclude)}
    for pattern in globs:
        if not any(_matches(site, [globs[pattern]]) for site in usable):
            examples = ", ".join(site.name for site in usable[:3]) or "none at all"
            raise PlanError(
                f"the layer pattern {pattern!r} matches none of the {len(usable)} compressible "
                f"layers (such as {examples}); `svd2onnx inspect` lists them"
            )
    included, excluded = ([globs[own] for own in patterns] for patterns in (include, exclude))
    return [_select_one(site, included, excluded) for site in sites]


def weight_of(model: nn.Module, site: LayerSite) -> Tensor:
    """The float32 weight of ``site``, detached, as a matrix of the site's shape."""
    module = model.get_submodule(site.name)
    weight = module.matrix if isinstance(module, StoredWeight) else module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


def bias_of(model: nn.Module, name: str) -> Tensor | None:
    """The bias of the module ``name``, detached, or None."""
    bias = getattr(model.get_submodule(name), "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _of_kind(site: LayerSite, only: str) -> LayerSite:
    if site.skip_reason is not None or site.kind == only:
        return site
    return replace(site, skip_reason=f"not a {only} layer, and --only {only} was given")


def _select_one(site: LayerSite, include: Sequence[str], exclude: Sequence[str]) -> LayerSite:
    if site.skip_reason is not None:
        return site
    reason = None
    if include and not _matches(site, include):
        reason = "not matched by --include"
    elif _matches(site, exclude):
        reason = "matched by --exclude"
    return replace(site, skip_reason=reason)


def _matches(site: LayerSite, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for name in site.names for p in patterns)


def _kind(module: nn.Module) -> str:
    return KINDS.get(type(module), type(module).__name__)


def _skip_reason(module: nn.Module, kind: str) -> str | None:
    weight = getattr(module, "weight", None)
    if kind not in KINDS.values():
        return f"{kind} layers are kept in float"
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        return f"its weight is {getattr(weight, 'dtype', 'missing')}, not float32"
    if weight.numel() < SMALLEST_WEIGHT[kind]:
        return f"only {weight.numel()} weights: too small to pay"
    if isinstance(module, nn.Embedding) and module.embedding_dim % min(BLOCK_SIZES):
        return f"width {module.embedding_dim} is no multiple of {min(BLOCK_SIZES)}, the least block"
    return None


def _count_calls(model: nn.Module, example: Mapping[str, Tensor]) -> Counter[str]:
    counts: Counter[str] = Counter()
    handles = []
    for name, module in model.named_modules():
        if _kind(module) in KINDS.values():

            def count(_module: nn.Module, _args: Any, _output: Any, name: str = name) -> None:
                counts[name] += 1

            handles.append(module.register_forward_hook(count))
    try:
        with first_batch(), torch.inference_mode():
            model(**example)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _check_values(model: nn.Module) -> None:
    """Buffers may be infinite: masks are."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        sound = torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else ~torch.isnan(tensor)
        if tensor.is_floating_point() and not bool(sound.all()):
            raise SourceError(
                f"the tensor {name!r} holds {int((~sound).sum())} NaN or infinite values of "
                f"{tensor.numel()}; finite weights are needed: repair or retrain the network"
            )
    for name, parameter in model.named_parameters():
        largest = float(parameter.detach().abs().max()) if parameter.numel() else 0.0
        if largest > LARGEST_WEIGHT:
            raise SourceError(
                f"the parameter {name!r} holds a value of magnitude {largest:.3g}; expected at most "
                f"{LARGEST_WEIGHT:g}, as squares overflow float32: repair or retrain the network"
            )
