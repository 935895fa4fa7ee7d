"""The tokenizer of a Hugging Face folder, by ``transformers``; no code in the folder is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from svd2onnx.sources.huggingface_config import read_json
from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import SourceError, one_line

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")


def tokenizing(folder: Path, longest: int, names: Sequence[str]) -> Callable[[Sequence[str]], Batch] | None:
    """What turns texts into padded batches of ``names``, by the folder's tokenizer, read when texts come."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return None
    known: list[Any] = []

    def tokenize(texts: Sequence[str]) -> Batch:
        if not known:
            known.append(_with_padding(folder, read_tokenizer(folder)))
        (tokenizer,) = known
        made = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
            return_token_type_ids="token_type_ids" in names,
        )
        return {name: made[name] for name in names}

    return tokenize


def tokenizer_gives(folder: Path, config: Any) -> Sequence[str]:
    """What the tokenizer of ``folder`` makes of texts: what its configuration says, or its class.

    A folder without a tokenizer is taken to have the one that ``transformers`` has for ``config``.
    """
    path = folder / "tokenizer_config.json"
    names = read_json(path).get("model_input_names") if path.is_file() else None
    if isinstance(names, list):
        return [str(name) for name in names]
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    try:
        known = TOKENIZER_MAPPING[type(config)]
    except KeyError:
        return ()
    classes = known if isinstance(known, tuple) else (known,)
    return [name for kind in classes if kind is not None for name in kind.model_input_names]


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``, as ``transformers`` has it.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise SourceError(f"{folder} needs the package transformers: pip install transformers") from None

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            f"the tokenizer in {folder} cannot be read ({one_line(error)}); expected its files"
        ) from error


def _with_padding(folder: Path, tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise SourceError(
            f"the tokenizer in {folder} has no token to pad with; expected one: name it in its configuration"
        )
    return tokenizer
