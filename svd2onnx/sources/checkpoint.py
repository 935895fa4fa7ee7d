"""Checkpoints: containers that hold weights or networks beside other things.

Where something lies in one is written as a dotted path, such as ``model.state_dict``: keys of dicts and
positions in lists. ``--checkpoint-key`` is such a path. Its end may also be the common beginning of names of
tensors: ``state_dict.teacher`` is what is named ``teacher.…`` in ``state_dict``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from svd2onnx.values.errors import SourceError

WRAPPERS = (
    "state_dict", "model_state_dict", "net_state_dict", "network_state_dict", "model", "module", "net",
    "network", "weights", "_orig_mod",
)  # fmt: skip
"""What training scripts and wrapping modules call the network itself."""
_AVERAGE = re.compile(r"(?:^|_)(?:ema|swa|averaged?|shadow)(?:_|\d|$)")
_SHOWN = 6
_LONGEST_KEY = 200
_DEEPEST = 8
_MOST_ENTRIES = 100_000


def tables_in(loaded: Any) -> dict[str, dict[str, Any]]:
    """The dicts in ``loaded`` with a tensor under a name, by path; ``loaded`` itself has the path "".

    Entries that are no tensors are kept: they are epochs, names and the like.
    """
    return {
        path: {name: entry for name, entry in value.items() if isinstance(name, str)}
        for path, value in _walk(loaded)
        if isinstance(value, Mapping)
        and any(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    }


def networks_in(loaded: Any) -> dict[str, nn.Module]:
    """The modules in ``loaded`` by path; criteria and metrics, which have no parameters, are none."""
    return {
        path: value
        for path, value in _walk(loaded)
        if isinstance(value, nn.Module) and next(value.parameters(), None) is not None
    }


def choose(path: Path, loaded: Any, key: str) -> Any:
    """What lies at the path ``key`` in ``loaded``, which the file at ``path`` holds.

    Raises:
        SourceError: nothing does, or something that can hold no weights.
    """
    value, rest = loaded, key
    while rest:
        entries = dict(_entries(value))
        own = max((k for k in entries if rest == k or rest.startswith(f"{k}.")), key=len, default=None)
        if own is not None:
            value, rest = entries[own], rest[len(own) + 1 :]
            continue
        group = {k.removeprefix(f"{rest}."): v for k, v in entries.items() if k.startswith(f"{rest}.")}
        if not any(isinstance(entry, Tensor) for entry in group.values()):
            raise SourceError(f"{path} has nothing under --checkpoint-key {key}; {_known(loaded)}")
        return group
    if not isinstance(value, Mapping | list | tuple | nn.Module):
        raise SourceError(
            f"{path} has {type(value).__name__} under --checkpoint-key {key}, which holds no weights; "
            f"{_known(loaded)}"
        )
    return value


def preferred(paths: Sequence[str]) -> str | None:
    """Which of several fitting ``paths`` to take: plain ones before averages; None where two are alike."""
    if "" in paths:
        return ""  # what the file itself is
    plain = [path for path in paths if not is_average(path)] or list(paths)
    usual = [path for path in plain if all(part in WRAPPERS for part in parts_of(path))]
    best = plain if len(plain) == 1 else usual
    return best[0] if len(best) == 1 else None


def is_average(path: str) -> bool:
    """Whether the names in ``path`` say that it is a moving average of weights, such as ``model_ema``."""
    return any(_AVERAGE.search(part.lower()) for part in parts_of(path))


def parts_of(path: str) -> list[str]:
    """The names that ``path`` is made of."""
    return [part for part in path.split(".") if part]


def ambiguous(path: Path, paths: Sequence[str]) -> SourceError:
    """What to say where several parts of a file fit, and none is the usual one."""
    return SourceError(
        f"{path} holds {len(paths)} networks that fit equally, under {listed(paths)}; expected one: choose "
        f"with --checkpoint-key {paths[0]}"
    )


def taken(path: Path, own: str, others: Sequence[str]) -> tuple[str, ...]:
    """A warning for the report that ``own`` was taken, and not one of the ``others`` that fit too."""
    if not others:
        return ()
    average = next((other for other in others if is_average(other)), None)
    other = average or others[0]
    what = "a moving average of the weights is" if average else "another network is"
    place = f"under {own!r}" if own else "at its top"
    return (
        f"{path.name} holds several networks that fit: that {place} was taken; {what} under {other!r}, "
        f"which --checkpoint-key {other} takes",
    )


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """A few of ``names``, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name[:80]) for name in names[:shown]) + more


def _known(loaded: Any) -> str:
    """The keys that could be meant, those with most tensors first."""
    sizes = {
        path: sum(isinstance(v, Tensor) for v in own.values()) for path, own in tables_in(loaded).items()
    }
    names = sorted((path for path in sizes if path), key=lambda path: -sizes[path])
    names = [*networks_in(loaded), *names]
    if not names:
        names = list(dict.fromkeys(parts_of(key)[0] for key, _ in _entries(loaded) if parts_of(key)))
    return f"expected one of {listed(names)}" if names else "it has no keys: leave it out"


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container with the keys that a path can name: text of a sane length, and numbers."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if (isinstance(key, str) and len(key) <= _LONGEST_KEY) or (
                isinstance(key, int) and abs(key) < _MOST_ENTRIES
            ):
                yield str(key), entry
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield str(index), entry


def _walk(loaded: Any) -> Iterator[tuple[str, Any]]:
    """Containers and modules in nested containers with their paths, outermost first.

    A container can hold itself, and a hostile one can be so deep or wide that its paths fill the memory:
    no deeper and no further is gone than weights lie.
    """
    waiting = deque([("", loaded)])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_ENTRIES:
        path, value = waiting.popleft()
        yield path, value
        is_new = id(value) not in seen
        seen.add(id(value))
        if is_new and path.count(".") < _DEEPEST:
            for key, entry in _entries(value):
                if len(waiting) >= _MOST_ENTRIES:
                    break
                if isinstance(entry, Mapping | list | tuple | nn.Module):
                    waiting.append((f"{path}.{key}" if path else key, entry))
