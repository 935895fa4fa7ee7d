"""A network in memory with batches from there, as ``svd2onnx.compress`` takes them.

The network stays as it is: each ``build`` gives another copy, on the CPU, in float32 and eval mode. Batches
are copied too, because a forward may write into its inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from svd2onnx.compute.device import CPU
from svd2onnx.sources.calibration import held_out, limited
from svd2onnx.sources.first_axis import MIXED, SAMPLES, first_axis
from svd2onnx.sources.inputs import required_arguments
from svd2onnx.sources.live_copy import live_copy
from svd2onnx.sources.model_file import Batch
from svd2onnx.sources.rows import infer_dynamic_shapes
from svd2onnx.sources.source import Source
from svd2onnx.sources.source_options import check_live_options
from svd2onnx.sources.wrappings import unwrapped
from svd2onnx.values.errors import SourceError
from svd2onnx.values.settings import Settings

_ROWS = "dim_0"
_MIXES_ROWS = (
    "the first axis of the batches holds no samples, for forward mixes its rows: the file calls it "
    f"{_ROWS}, and other axes take any size only where batches differ"
)
LiveBatch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
_FORMS = (
    "expected a tensor, a tuple or list of tensors in forward's order, or a dict of them by argument name"
)
NOT_HELD_OUT = (
    "calibration is too little to hold some of it out: the fidelity was measured on what was calibrated on; "
    "give evaluation"
)


def live_source(
    network: nn.Module,
    calibration: Iterable[LiveBatch],
    evaluation: Iterable[LiveBatch] | None,
    settings: Settings,
) -> Source:
    """``network`` with its data, of which ``calibration`` is read now as far as ``settings`` ask for samples.

    Without ``evaluation``, a fifth of what was read is held out for it, as of samples in files. Batches are
    taken apart by rows for that where these are samples, see ``first_axis``; else whole ones are held out.

    Raises:
        SourceError: the network cannot be copied, a batch does not fit its forward, there is none, or
            ``settings`` say how a file is loaded.
    """
    check_live_options(settings)
    network = _checked(network)
    fit = list(limited(_batches(network, calibration, "calibration"), settings.calibration_samples))
    kind = first_axis(live_copy(network), fit)
    if evaluation is None:
        fit, judged = _parted(fit, by_rows=kind == SAMPLES)
    else:
        judged = list(_batches(network, evaluation, "evaluation"))
    shapes = infer_dynamic_shapes([*fit, *judged], first=_ROWS) if kind == MIXED else None
    warnings = (*(() if judged else (NOT_HELD_OUT,)), *((_MIXES_ROWS,) if kind == MIXED else ()))
    judged = judged or fit
    return Source(
        lambda: live_copy(network),
        lambda split: iter(judged if split == "evaluation" else fit),
        settings.objective or "mse",
        dynamic_shapes=shapes,
        warnings=warnings,
        name=type(network).__name__,
    )


def _checked(network: object) -> nn.Module:
    if isinstance(network, torch.jit.ScriptModule):
        raise SourceError("a TorchScript network cannot be compressed: give the module it was made from")
    if not isinstance(network, nn.Module):
        raise SourceError(f"expected a torch.nn.Module to compress, found {type(network).__name__}")
    original = unwrapped(network)
    for name, module in original.named_modules():
        if _calls_back(vars(module).get("forward"), original):
            raise SourceError(
                f"the forward of {name or 'the network'} was replaced by a function that calls the network "
                "itself, as copies of it would too; expected forward to be a method: define it in a subclass"
            )
    return original


def _calls_back(forward: object, network: nn.Module) -> bool:
    """Whether this is a function that names a module of ``network``, or a method of one."""
    if not inspect.isfunction(forward):
        return False  # methods are copied with what they belong to
    seen = inspect.getclosurevars(forward)
    named = (*seen.nonlocals.values(), *seen.globals.values())
    own = {id(module) for module in network.modules()}
    return any(id(getattr(value, "__self__", value)) in own for value in named)


def _batches(network: nn.Module, given: Iterable[LiveBatch], role: str) -> Iterator[Batch]:
    """The batches of ``given``, by forward's arguments and in their order."""
    if isinstance(given, Tensor | Mapping | str) or not isinstance(given, Iterable | Dataset):
        raise SourceError(
            f"expected {role} to be an iterable of batches, found {_kind(given)}: put it in a list"
        )
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise SourceError(
            f"{role} is a {type(given).__name__}, which gives single samples; expected an iterable of "
            "batches: put it into a torch.utils.data.DataLoader"
        )
    count = 0
    for batch in given:
        yield _arguments(network, batch, f"batch {count} of {role}")
        count += 1
    if not count:
        raise SourceError(f"{role} gave no batch; expected one at least (a generator gives its batches once)")


def _arguments(network: nn.Module, batch: object, where: str) -> Batch:
    parameters = list(inspect.signature(network.forward).parameters)
    required = required_arguments(network)
    named: Mapping[str, object]
    if isinstance(batch, Mapping):
        named = batch
    elif isinstance(batch, Tensor):
        named = dict(zip((required or parameters)[:1], [batch], strict=False))
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        named = dict(zip(required, batch, strict=False))  # what exceeds them are labels
    else:
        raise SourceError(f"{where} is {_kind(batch)}; {_FORMS}")
    spread = [
        str(own)
        for own in inspect.signature(network.forward).parameters.values()
        if own.kind in (own.VAR_POSITIONAL, own.VAR_KEYWORD)
    ]
    if spread and len(spread) == len(parameters):
        raise SourceError(
            f"forward takes {', '.join(spread)}, which names none of its inputs; expected arguments with "
            "names: wrap the network in a module whose forward has them"
        )
    missing = [name for name in required if name not in named]
    taken = [name for name in parameters if name in named]
    if missing or not taken:
        raise SourceError(
            f"{where} is {_kind(batch)}, and forward takes {', '.join(parameters) or 'nothing'}"
            f"{f', of which it lacks {missing[0]}' if missing else ''}; {_FORMS}"
        )
    return _tensors({name: named[name] for name in taken}, where)


def _tensors(named: Mapping[str, object], where: str) -> Batch:
    """Copies of tensors on the CPU; floating-point ones in float32, as the network's weights are."""
    tensors: Batch = {}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise SourceError(f"{where} has {_kind(value)} for {name!r}; expected a tensor")
        if value.is_floating_point() and bool(value.isnan().any()):
            raise SourceError(f"{where} has NaN in {name!r}; expected numbers: leave such samples out")
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        tensors[name] = value.detach().to(CPU, dtype, copy=True)
    name, first = next(iter(tensors.items()))
    if not first.ndim or not len(first):
        raise SourceError(
            f"{where} has shape {list(first.shape)} for {name!r}; expected samples along the first axis, and "
            "one at least"
        )
    return tensors


def _parted(batches: Sequence[Batch], *, by_rows: bool) -> tuple[list[Batch], list[Batch]]:
    counts = [len(next(iter(batch.values()))) if by_rows else 1 for batch in batches]
    chosen, start = set(held_out(sum(counts))), 0
    fit: list[Batch] = []
    judged: list[Batch] = []
    for batch, count in zip(batches, counts, strict=True):
        own = [row for row in range(count) if start + row in chosen]
        rest = [row for row in range(count) if start + row not in chosen]
        for part, rows in ((fit, rest), (judged, own)):
            if len(rows) == count:
                part.append(batch)
            elif rows:
                part.append({name: tensor[rows] for name, tensor in batch.items()})
        start += count
    return fit, judged


def _kind(value: object) -> str:
    """For messages: what this is, and what is in it."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list | tuple):
        kinds = [type(own).__name__ for own in value[:3]] + ["..."] * (len(value) > 3)
        return f"a {type(value).__name__} of {', '.join(kinds) or 'nothing'}"
    return f"a value of type {type(value).__name__}"
