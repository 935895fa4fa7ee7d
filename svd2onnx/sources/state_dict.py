"""State dicts: weights without a network, which ``--model file.py`` builds.

Which entry of a checkpoint holds the weights, and what wrappers (DataParallel, torch.compile, Lightning) put
before their names, is told by comparison with the network's own names and shapes: nothing is taken off
unless all of them fit then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.sources.checkpoint import (
    WRAPPERS,
    ambiguous,
    is_average,
    listed,
    parts_of,
    preferred,
    tables_in,
    taken,
)
from svd2onnx.values.errors import SourceError

_WITHIN = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Wrappers around any module of a network, whose names no network has."""
_COUNTS = "num_batches_tracked"
"""Networks before PyTorch 0.4.1 have none, some exporters drop them, and inference does not read them."""
_COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay"}
"""What averages keep beside the weights."""
_TOTALS = {"total_ops", "total_params"}
"""What thop leaves in every module whose operations it counts."""
_EXTRA = "_extra_state"
_SHOWN = 3
_MOST_PARTS = 8
_MOST_FITS = 16


@dataclass(frozen=True)
class _Fit:
    """A table of tensors whose names lose ``prefix``, held against a network."""

    place: str
    prefix: str
    tensors: dict[str, Any]
    others: list[str]
    """Names of tensors in the table without the prefix."""
    problems: list[str]
    matches: int

    @property
    def path(self) -> str:
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part)

    @property
    def is_wrapped(self) -> bool:
        """Whether the prefix is one that wrappers make, and not a network's part of that name."""
        return all(part in WRAPPERS or is_average(part) for part in parts_of(self.prefix))


def count_tensors(path: Path, loaded: Any) -> int:
    """How many tensors the largest state dict has that ``loaded`` is or holds.

    Raises:
        SourceError: there is none.
    """
    return max(
        sum(isinstance(value, Tensor) for value in table.values()) for table in _tables(path, loaded).values()
    )


def load_into(model: nn.Module, loaded: Any, path: Path, architecture: Path) -> tuple[str, ...]:
    """Put the weights in ``loaded``, a state dict or a checkpoint, into ``model``; warnings for the report.

    Raises:
        SourceError: none has the names and shapes of the model's, or several have, or there is none.
    """
    wanted = _weights(model.state_dict())
    kept = _not_stored(model, wanted)
    tables = _tables(path, loaded)
    fits = [fit for place, table in tables.items() for fit in _fits(place, table, wanted, kept)]
    if not fits:
        place, table = max(tables.items(), key=lambda item: len(item[1]))
        fits = [_fit(place, "", _weights(table), wanted, 0)]
    fitting = [fit for fit in fits if not fit.problems]
    whole = _distinct([fit for fit in fitting if _is_whole(fit, fitting)])
    if not whole:
        taken_in = _as_the_network_loads(model, wanted, fits)
        if taken_in is None:
            raise _no_fit(path, architecture, fits)
        return _noted(path, taken_in, [taken_in])
    paths = [fit.path for fit in whole]
    own = preferred(paths)
    if own is None:
        raise ambiguous(path, paths)
    fit = whole[paths.index(own)]
    with torch.no_grad():
        model.load_state_dict(fit.tensors, strict=False)
    return (*taken(path, own, [other for other in paths if other != own]), *_noted(path, fit, whole))


def _is_whole(fit: _Fit, fitting: list[_Fit]) -> bool:
    """Whether what is left out beside ``fit`` is no reason against it.

    An average comes with the weights that it is of, whatever these are called, such as ``online_model``.
    """
    averages = [own for own in fitting if own.place == fit.place and is_average(own.prefix)]
    return fit.is_wrapped or not fit.others or bool(averages)


def _as_the_network_loads(model: nn.Module, wanted: Mapping[str, Any], fits: list[_Fit]) -> _Fit | None:
    """The nearest of ``fits``, if ``model`` takes its old names for new ones, as weight norm of PyTorch does.

    What is loaded from another one before is written over, or an error ends the run.
    """
    places = _places(wanted)
    for fit in sorted(fits, key=lambda own: (own.matches, not is_average(own.path)), reverse=True)[:_SHOWN]:
        is_coded = any(_loses(tensor, wanted[n]) for n, tensor in fit.tensors.items() if n in wanted)
        if is_coded or (fit.others and not fit.is_wrapped):
            continue
        try:
            with torch.no_grad():
                left = model.load_state_dict(dict(fit.tensors), strict=False)
        except Exception:  # other shapes, or a hook of the network's own
            continue
        missing = set(left.missing_keys)
        is_there = [
            name.rpartition(".")[2] == _COUNTS or any(n not in missing for n in places[_place(wanted[name])])
            for name in missing
        ]
        if all(is_there) and not left.unexpected_keys:
            return fit
    return None


def _tables(path: Path, loaded: Any) -> dict[str, dict[str, Any]]:
    tables = tables_in(loaded)
    if tables:
        return tables
    if not isinstance(loaded, Mapping) or not loaded:
        found = type(loaded).__name__ if not isinstance(loaded, Mapping) else "an empty dict"
        raise SourceError(f"{path} holds {found}; expected a state dict, from names to tensors")
    name, value = next(iter(loaded.items()))
    raise SourceError(
        f"{path} holds {type(value).__name__} under {str(name)[:80]!r}; expected a state dict, from names to "
        "tensors: save network.state_dict()"
    )


def _weights(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without epochs and the like; what a module keeps by get_extra_state may be anything."""
    return {k: v for k, v in table.items() if isinstance(v, Tensor) or k.endswith(_EXTRA)}


def _not_stored(model: nn.Module, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Buffers that ``build()`` makes anew and older releases of a network stored, such as position ids."""
    return {name: buffer for name, buffer in model.named_buffers() if name not in wanted}


def _is_superfluous(name: str, value: Any, kept: Mapping[str, Tensor]) -> bool:
    """Whether this is what ``build()`` makes itself, the same, or what counted operations (thop)."""
    if name.rpartition(".")[2] in _TOTALS:
        return True
    for own_name, own in kept.items():
        is_own = name == own_name or name.endswith(f".{own_name}")
        if is_own and isinstance(value, Tensor) and _shape(own) == _shape(value):
            return torch.equal(own.cpu().to(value.dtype), value.cpu())
    return False


def _fits(
    place: str, table: Mapping[str, Any], wanted: Mapping[str, Any], kept: Mapping[str, Tensor]
) -> list[_Fit]:
    """The table as it is where that fits, else without each prefix that may, the nearest first.

    None where no tensor is the network's: optimizers have thousands of such tables.
    """
    tensors = {
        name: value
        for name, value in _weights(table).items()
        if name in wanted or not _is_superfluous(name, value, kept)
    }
    inner = {".".join(p for p in name.split(".") if p not in _WITHIN): t for name, t in tensors.items()}
    if len(inner) == len(tensors) and not any(_WITHIN & set(name.split(".")) for name in wanted):
        tensors = inner
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        start = 0
        for _ in range(_MOST_PARTS):
            if name[start:] in wanted and _shape(wanted[name[start:]]) == _shape(tensor):
                counts[name[:start]] += 1
            start = name.find(".", start) + 1
            if not start:
                break
    best = [prefix for prefix, matches in counts.most_common(_MOST_FITS) if matches]
    fits = [_fit(place, prefix, tensors, wanted, counts[prefix]) for prefix in best]
    as_it_is = [fit for fit in fits if not fit.prefix and not fit.problems]
    return as_it_is or fits


def _fit(
    place: str, prefix: str, tensors: Mapping[str, Any], wanted: Mapping[str, Any], matches: int
) -> _Fit:
    own = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    others = [name for name in tensors if not name.startswith(prefix)]
    places = _places(wanted)
    missing = [
        name
        for name in wanted
        if name.rpartition(".")[2] != _COUNTS
        and not any(alias in own for alias in places[_place(wanted[name])])
    ]
    unknown = [name for name in own if name not in wanted]
    differing = [n for n, t in own.items() if n in wanted and _shape(t) != _shape(wanted[n])]
    codes = [name for name, tensor in own.items() if name in wanted and _loses(tensor, wanted[name])]
    problems = []
    if codes:
        problems.append(
            f"has {listed(codes, _SHOWN)} in {_dtype(own[codes[0]])}, where the network has "
            f"{_dtype(wanted[codes[0]])}, as if it were quantized already"
        )
    if missing:
        problems.append(f"lacks {listed(missing, _SHOWN)}")
    if unknown:
        problems.append(f"has {listed(unknown, _SHOWN)} that build() does not")
    if differing:
        name = differing[0]
        shapes = f"{_shape(own[name])}, not {_shape(wanted[name])}"
        problems.append(f"has {listed(differing, _SHOWN)} of other shapes ({shapes})")
    return _Fit(place, prefix, own, others, problems, matches)


def _no_fit(path: Path, architecture: Path, fits: list[_Fit]) -> SourceError:
    """The nearest is told of: its faults, or what else lies beside the part that fits."""
    parts = [fit.path for fit in _distinct([fit for fit in fits if not fit.problems])]
    if len(parts) > 1:
        return ambiguous(path, parts)
    nearest = max(fits, key=lambda fit: (not fit.problems, fit.matches, not is_average(fit.path)))
    named = f", under {nearest.place!r}," if nearest.place else ""
    if not nearest.problems:
        return SourceError(
            f"{path}{named} does not fit the network of {architecture} as a whole, but its tensors under "
            f"{nearest.prefix!r} do, without {listed(nearest.others, _SHOWN)}; if they are meant, give "
            f"--checkpoint-key {nearest.path}"
        )
    without = f" without {nearest.prefix!r} before its names" if nearest.prefix else ""
    return SourceError(
        f"{path}{named} does not fit the network of {architecture}{without}: "
        f"it {'; it '.join(nearest.problems)}; expected exactly the names and shapes of build().state_dict()"
    )


def _noted(path: Path, fit: _Fit, whole: list[_Fit]) -> tuple[str, ...]:
    """What was taken off or left out and is not plainly a wrapper's."""
    notes = []
    if not fit.is_wrapped:
        notes.append(
            f"the names in {path.name} fit the network without {fit.prefix!r} before them: it was taken off"
        )
    known = tuple(other.prefix for other in whole if other.place == fit.place and other.prefix)
    left = [name for name in fit.others if not name.startswith(known) and name not in _COUNTERS]
    if left:
        notes.append(
            f"tensors of {path.name} that are not the network's were left out: {listed(left, _SHOWN)}"
        )
    return tuple(notes)


def _distinct(fits: list[_Fit]) -> list[_Fit]:
    """Without those that hold the same tensors again: a dict may lie in a file twice."""
    found: dict[tuple[tuple[int, ...], ...], _Fit] = {}
    for fit in fits:
        found.setdefault(tuple(_place(tensor) for _name, tensor in sorted(fit.tensors.items())), fit)
    return list(found.values())


def _places(wanted: Mapping[str, Any]) -> dict[tuple[int, ...], list[str]]:
    places: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in wanted.items():
        places.setdefault(_place(tensor), []).append(name)
    return places


def _place(value: Any) -> tuple[int, ...]:
    """Tensors of one place are one: safetensors stores one of tied weights."""
    is_stored = isinstance(value, Tensor) and value.numel()
    return (value.data_ptr(), *value.shape) if is_stored else (id(value),)


def _loses(stored: Any, own: Any) -> bool:
    """Whether ``stored`` is of another kind of numbers: codes of a quantized weight are no weight."""
    if not (isinstance(stored, Tensor) and isinstance(own, Tensor)):
        return False
    is_code = own.is_floating_point() and not (stored.is_floating_point() or stored.is_complex())
    return is_code or (stored.is_complex() and not own.is_complex())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None
