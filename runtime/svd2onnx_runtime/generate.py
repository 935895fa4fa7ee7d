"""Generate text with a graph that takes and gives keys and values (``past``), one token at a time.

The first run reads the whole prompt, every further one a single token. Keys and values stay where the graph
runs, on the GPU too: what a run gives is bound as the next one's past and never copied to the host.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from svd2onnx_runtime.errors import GraphError, InputsError
from svd2onnx_runtime.past import past_names, results_of
from svd2onnx_runtime.session import Array, Session, graph_inputs, provider_of, stating_failures

_LAST_STEPS = 4


@dataclass(frozen=True)
class Generation:
    """What was generated: ``tokens`` int64 [batch, new]; and the seconds that it took.

    ``prefill_s`` is for the prompt, which gives the first token, and ``step_s`` for each further one.
    """

    tokens: Array
    prefill_s: float
    step_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float | None:
        """Of all texts together, at the median step; None where the prompt gave the only token."""
        return len(self.tokens) / median(self.step_s) if self.step_s else None


def generate(
    session: Session,
    input_ids: Array,
    max_new_tokens: int,
    *,
    attention_mask: Array | None = None,
    end_tokens: Collection[int] = (),
) -> Generation:
    """Continue texts greedily: every token is the likeliest.

    Args:
        session: of a graph with a cache, as ``open_session`` gives it.
        input_ids: int64 [batch, length] of at least one token; shorter texts are padded on the left.
        max_new_tokens: how many tokens to add, unless all texts end before.
        attention_mask: int64 [batch, length], 0 where padding is; without it there is none.
        end_tokens: a text that gives one of them ends with it; the same token fills it up to the others.

    Raises:
        InputsError: the arrays do not fit.
        GraphError: the graph takes no past, or fails.
    """
    ids, mask = _checked(input_ids, attention_mask, max_new_tokens)
    ends = np.array(sorted(end_tokens), np.int64)
    steps = _Steps(session)
    tokens, seconds = np.empty((len(ids), 0), np.int64), []
    while tokens.shape[1] < max_new_tokens:
        started = time.perf_counter()
        following = steps.logits(ids, mask)[:, -1].argmax(axis=-1).astype(np.int64)
        if tokens.shape[1]:
            following = np.where(np.isin(tokens[:, -1], ends), tokens[:, -1], following)
        seconds.append(time.perf_counter() - started)
        ids = following[:, None]
        tokens = np.concatenate([tokens, ids], axis=1)
        if np.isin(following, ends).all():
            break
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return Generation(tokens, seconds[0], tuple(seconds[1:]))


def logits_in_pieces(session: Session, inputs: Mapping[str, Array]) -> Array:
    """The logits [batch, length, vocabulary] of whole texts, which the graph reads in pieces.

    Half of them comes at once, then what follows but for the last tokens, which come one by one.
    """
    ids, mask = _checked(inputs["input_ids"], inputs.get("attention_mask"), 1)
    length = ids.shape[1]
    cuts = {length // 2, *range(max(length - _LAST_STEPS, length // 2), length)} - {0}
    steps = _Steps(session)
    pieces, begin = [], 0
    for end in (*sorted(cuts), length):
        pieces.append(steps.logits(ids[:, begin:end], mask[:, :end]))
        begin = end
    return np.concatenate(pieces, axis=1)


class _Steps:
    """The runs of a graph over one growing text: each takes the keys and values that the last one gave."""

    def __init__(self, session: Session) -> None:
        self._session, self._device = session, provider_of(session)
        self._names = past_names(session)
        results = results_of(session)
        if not self._names or not results:
            raise GraphError(
                "the graph does not take past_key_values and give logits, so it cannot generate token by "
                "token: export it with svd2onnx compress-export --with-past"
            )
        self._logits = results[0]
        self._past: dict[str, Any] = {}

    def logits(self, ids: Array, mask: Array) -> Array:
        """Of the new tokens ``ids`` [batch, new], [batch, new, vocabulary]; ``mask`` is of past and new."""
        binding = self._session.io_binding()
        feeds = {"input_ids": ids, "attention_mask": mask}
        for name, array in (feeds if self._past else graph_inputs(self._session, feeds)).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(self._logits, "cpu")
        for name in self._names.values():
            binding.bind_output(name, self._device)
        with stating_failures():
            self._session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        self._past = dict(zip(self._names, presents, strict=True))
        result: Array = logits.numpy()
        return result


def _checked(input_ids: Array, attention_mask: Array | None, new_tokens: int) -> tuple[Array, Array]:
    ids = np.asarray(input_ids)
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    if ids.ndim != 2 or not ids.size or ids.dtype != np.int64 or new_tokens < 1:
        raise InputsError(
            "expected int64 input_ids [batch, length] of a token at least, and one new token or more; "
            f"found {ids.dtype} {list(ids.shape)} and {new_tokens} new tokens"
        )
    if mask.shape != ids.shape or mask.dtype != np.int64:
        raise InputsError(
            f"expected an int64 attention_mask {list(ids.shape)}; found {mask.dtype} {list(mask.shape)}"
        )
    return ids, mask
