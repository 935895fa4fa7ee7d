"""Phi-2, a causal language model of the article (2.78 billion parameters), as a model file.

The weights come from the folder ``weights``, one with the files of the Hugging Face hub, else from the local
cache of the hub; with ``random_weights`` they are drawn, and the network shows size, speed and memory.
Nothing is downloaded. In float32 it takes 11 GB.

The text is that of ``texts.py``, read by the tokenizer that lies with the weights and cut into pieces of 256
tokens. Where there is no tokenizer, and with random weights, the tokens are random and have no perplexity.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``summary``, ``objective``, ``dynamic_shapes``,
``with_past`` and ``tokenizer``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import Checkpoint, initial, pretrained
from smollm2 import CausalLanguageModel
from smollm2 import metric as losses
from smollm2 import with_past as with_past
from texts import pieces, random_pieces
from torch import Tensor, nn

objective = "kl"
dynamic_shapes = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "sequence"},
}

_TOKENS = 256
_PIECES = {"calibration": 32, "recovery": 64, "evaluation": 16}
_BATCH = 2  # logits take 52 MB a piece, and the exporter would take a batch of 1 for a constant
_VOCABULARY = 51200

_checkpoint = Checkpoint("microsoft/phi-2")


def architecture(**changes: Any) -> nn.Module:
    """Return Phi-2, or one with ``changes`` to its configuration, with random weights."""
    from transformers import PhiForCausalLM

    published: dict[str, Any] = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 10240,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }
    return CausalLanguageModel(initial(PhiForCausalLM, **(published | changes))).eval()


def build(weights: Path | None = None, random_weights: bool = False) -> nn.Module:
    """Return the network: float32, eval mode.

    Raises:
        FileNotFoundError: no weights are found, and random ones are not asked for.
        ValueError: some of the weights are missing.
    """
    folder = _checkpoint.choose(weights, random_weights)
    if folder is None:
        return architecture()
    from transformers import PhiForCausalLM

    return CausalLanguageModel(pretrained(PhiForCausalLM, folder)).eval()


def inputs(
    split: str, data: Path | None = None, weights: Path | None = None, random_weights: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``input_ids`` and ``attention_mask``, int64 [2, 256], and where they are of text ``piece``,
    int64 [2], which counts its pieces.

    Raises:
        ValueError: the split is unknown.
        FileNotFoundError: ``data`` is given, and WikiText-2 is not there or there is no tokenizer for it.
    """
    reader = _checkpoint.tokenizer(data, weights, random_weights)
    if reader is None:
        ids = random_pieces(split, _PIECES, _TOKENS, _VOCABULARY)
    else:
        ids = pieces(split, _PIECES, _TOKENS, lambda text: reader(text, verbose=False)["input_ids"], data)
    for start in range(0, len(ids), _BATCH):
        rows = ids[start : start + _BATCH]
        batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        yield batch if reader is None else batch | {"piece": torch.arange(start, start + len(rows))}


def tokenizer(weights: Path | None = None, random_weights: bool = False) -> Any:
    """Return the tokenizer that lies with the weights.

    Raises:
        FileNotFoundError: there is none.
    """
    found = _checkpoint.tokenizer(None, weights, random_weights)
    if found is None:
        raise FileNotFoundError(
            "expected the tokenizer of microsoft/phi-2; there is none in the local Hugging Face cache: "
            "give --weights DIR, a folder that holds it beside the weights"
        )
    return found


def metric(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the negative log-likelihood in nats of every token that follows another, as ``loss``.

    The network's only output are the logits [batch, sequence, vocabulary]. Random tokens give {}.
    """
    return losses(outputs, batch) if "piece" in batch else {}


def summary(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the perplexity over the joined losses, and its logarithm, which is the article's measure."""
    nats = float(columns["loss"].mean())
    return {"ln_perplexity": nats, "perplexity": float(np.exp(nats))}
