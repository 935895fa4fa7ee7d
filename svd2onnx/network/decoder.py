"""A causal language model that generates: keys and values of the past go in, those of the present come out.

    network    input_ids, attention_mask [batch, sequence] -> logits [batch, sequence, vocabulary]
    with past  input_ids [batch, sequence], attention_mask [batch, past + sequence],
               past_key_values.{i}.key and .value [batch, heads, past, width]
               -> logits, present.{i}.key and .value [batch, heads, past + sequence, width]

One graph of the second form serves a whole prompt (past 0) and single steps. Its names are those of Hugging
Face's Optimum and transformers.js, so whatever serves their files serves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx_runtime.dimensions import HF_BATCH, HF_PAST_LENGTH, HF_SEQUENCE
from svd2onnx_runtime.past import PAST, PRESENT, TOTAL_LENGTH

KeysAndValues = Sequence[tuple[Tensor, Tensor]]
_BATCH, _SEQUENCE, _PAST = 2, 3, 4
"""Of the example: all different, and none of them 0 or 1, which the exporter takes for constants."""


@dataclass(frozen=True)
class Traced:
    """What the exporter follows: a module, its arguments by name, and the names of what is in the graph.

    ``inputs`` and ``outputs`` name the tensors of arguments and results in order; without the first they are
    the arguments' names, without the second those of ``network.outputs``. ``dynamic_shapes`` is
    {argument: {axis: name}}, or nested as an argument is.
    """

    module: nn.Module
    arguments: Mapping[str, Any]
    dynamic_shapes: Mapping[str, Any]
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


class WithPast(nn.Module):
    """A causal language model of ``transformers`` as above; ``decoder`` is taken as it is, weights and all.

    The mask goes in ready to be added to the attention scores, and positions count the real tokens, so that
    padding may stand on either side. Attention over a window needs other masks. A network that is not of
    ``transformers`` needs a subclass, with ``forward`` and ``past`` of its own.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: KeysAndValues
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The logits of the new tokens, and the keys and values of all; see the module's docstring."""
        past = past_key_values[0][0].shape[2]
        order = torch.arange(attention_mask.shape[1], device=input_ids.device)
        seen = (order[None, :] <= order[past:, None])[None, None] & (attention_mask[:, None, None, :] > 0)
        cache = _cache_of(past_key_values)
        logits: Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=torch.where(seen, 0.0, torch.finfo(torch.float32).min),
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0)[:, past:],
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits, _contents(cache)

    def past(self, batch: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Zeros as keys and values of a past, of the sizes that a token leaves in the decoder's own cache."""
        with torch.inference_mode():
            ids = torch.zeros(1, 1, dtype=torch.int64)
            cache = self.decoder(input_ids=ids, use_cache=True).past_key_values
        return [
            (_zeros_like(key, batch, length), _zeros_like(value, batch, length))
            for key, value in _contents(cache)
        ]


def traced_with_past(module: WithPast) -> Traced:
    """``module`` for the exporter."""
    past = module.past(_BATCH, _PAST)
    lengths = {0: HF_BATCH, 2: HF_PAST_LENGTH}
    names = [f"{i}.{part}" for i in range(len(past)) for part in ("key", "value")]
    return Traced(
        module,
        {
            "input_ids": torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64),
            "attention_mask": torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
            "past_key_values": past,
        },
        {
            "input_ids": {0: HF_BATCH, 1: HF_SEQUENCE},
            "attention_mask": {0: HF_BATCH, 1: TOTAL_LENGTH},
            "past_key_values": [(lengths, lengths) for _ in past],
        },
        ("input_ids", "attention_mask", *(PAST + name for name in names)),
        ("logits", *(PRESENT + name for name in names)),
    )


def _cache_of(past: KeysAndValues) -> Any:
    """The cache of ``transformers`` that holds ``past``, of any length.

    Filled by hand: its own way begins with an empty tensor of rank 1, of which no graph can be made.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for key, value in past:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def _zeros_like(tensor: Tensor, batch: int, length: int) -> Tensor:
    return torch.zeros(batch, tensor.shape[1], length, tensor.shape[3], dtype=tensor.dtype)


def _contents(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]
