"""bert-large-uncased, a text encoder of the article (335.1M parameters), as a model file.

Its output is the pooler's embedding of a text. The weights come from the folder ``weights``, one with the
files of the Hugging Face hub, else from the local cache of the hub; with ``random_weights`` they are drawn,
and the network shows size, speed and memory. Nothing is downloaded.

The text is that of ``texts.py``, read by the tokenizer that lies with the weights and cut into pieces of 128
tokens. Where there is no tokenizer, and with random weights, the tokens are random.

What svd2onnx reads here: ``build``, ``inputs``, ``objective`` and ``dynamic_shapes``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface import Checkpoint, initial, pretrained
from texts import pieces, random_pieces
from torch import Tensor, nn

objective = "cosine"
dynamic_shapes = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "sequence"},
}

_TOKENS = 128
_PIECES = {"calibration": 128, "recovery": 256, "evaluation": 64}
_BATCH = 8
_VOCABULARY = 30522

_checkpoint = Checkpoint("google-bert/bert-large-uncased", "bert-large-uncased")


class TextEncoder(nn.Module):
    """A BERT encoder with its pooler, a Linear and tanh on the first token."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a batch: two int64 [batch, sequence] -> float32 [batch, 1024].

        The mask goes in ready to be added to the attention scores, and the token types are given:
        left to itself ``transformers`` makes both by indexing, which exports as more nodes.
        """
        real = attention_mask.to(torch.float32)
        embedding: Tensor = self.encoder(
            input_ids=input_ids,
            attention_mask=(1.0 - real[:, None, None, :]) * torch.finfo(torch.float32).min,
            token_type_ids=torch.zeros_like(input_ids),
        ).pooler_output
        return embedding


def architecture(**changes: Any) -> nn.Module:
    """Return BERT-large, or one with ``changes`` to its configuration, with random weights."""
    from transformers import BertModel

    published: dict[str, Any] = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
    }
    return TextEncoder(initial(BertModel, **(published | changes))).eval()


def build(weights: Path | None = None, random_weights: bool = False) -> nn.Module:
    """Return the network: float32, eval mode.

    Raises:
        FileNotFoundError: no weights are found, and random ones are not asked for.
        ValueError: some of the weights are missing.
    """
    folder = _checkpoint.choose(weights, random_weights)
    if folder is None:
        return architecture()
    from transformers import BertModel

    return TextEncoder(pretrained(BertModel, folder)).eval()


def inputs(
    split: str, data: Path | None = None, weights: Path | None = None, random_weights: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``input_ids`` and ``attention_mask``, int64 [8, 128].

    Raises:
        ValueError: the split is unknown.
        FileNotFoundError: ``data`` is given, and WikiText-2 is not there or there is no tokenizer for it.
    """
    ids = _pieces(split, data, _checkpoint.tokenizer(data, weights, random_weights))
    for start in range(0, len(ids), _BATCH):
        rows = ids[start : start + _BATCH]
        yield {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


def _pieces(split: str, data: Path | None, tokenizer: Any) -> Tensor:
    if tokenizer is None:
        return random_pieces(split, _PIECES, _TOKENS, _VOCABULARY)

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    inner = pieces(split, _PIECES, _TOKENS - 2, tokenize, data)
    first, last = (
        inner.new_full((len(inner), 1), i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id)
    )
    return torch.cat([first, inner, last], dim=1)
