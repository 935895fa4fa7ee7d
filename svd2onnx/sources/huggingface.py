"""Hugging Face folders: the architecture from config.json, by the installed ``transformers`` alone.

Nothing is fetched, no code in the folder is run, and weights are read from .safetensors alone. What
config.json says is bounded before a network is made of it, and must agree with the weights that are there.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svd2onnx.network.decoder import WithPast
from svd2onnx.sources.huggingface_config import (
    WRITE_MODEL_FILE,
    check_size,
    description_of,
    kind_of_network,
    read_json,
)
from svd2onnx.sources.huggingface_networks import ImageNetwork, TextNetwork, text_network
from svd2onnx.sources.images import Preprocessing
from svd2onnx.sources.inputs import BOXES, ROWS, InputSpec
from svd2onnx.sources.network import Network
from svd2onnx.sources.tokenizer import tokenizer_gives, tokenizing
from svd2onnx.values.errors import SourceError, one_line
from svd2onnx_runtime.dimensions import HF_BATCH, HF_SEQUENCE

LONGEST = 128
"""Tokens of a text that is calibrated on."""
_EXAMPLE_LENGTH = 32
_CAUSAL = re.compile(r"ForCausalLM|LMHeadModel")
_LOGITS = re.compile(r"ForCausalLM|ForMaskedLM|LMHead|Classification")
_OF_ONE_TEXT = re.compile(r"Classification|QuestionAnswering")
"""Encoders with a decoder that give the decoder the same text."""
_NO_TEXTS = (
    "pixel_values", "image", "input_features", "input_values", "visual_embeds", "visual_feats",
    "xpath_tags_seq",
)  # fmt: skip
"""What networks of texts take besides, and judge by where they have it."""


def load_folder(folder: Path) -> Network:
    """The network in ``folder``, with inputs as its config.json tells them.

    Raises:
        SourceError: ``transformers`` is missing or has no such network, or a file is missing or damaged.
    """
    description = description_of(folder)
    kind, config = kind_of_network(folder, description)
    takes_two = (
        config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(kind.forward).parameters
    )
    if takes_two and not _OF_ONE_TEXT.search(kind.__name__):
        raise SourceError(
            f"{folder} is an encoder with a decoder; expected a network of one part: {WRITE_MODEL_FILE}"
        )
    check_size(folder, kind, config)
    network = _pretrained(folder, kind)
    options = {"return_dict": True} | ({"use_cache": False} if hasattr(config, "use_cache") else {})
    objective = "kl" if _LOGITS.search(kind.__name__) else "cosine"
    if kind.main_input_name == "input_ids":
        _check_takes_texts_alone(folder, kind, config)
        longest = min(LONGEST, getattr(config, "max_position_embeddings", LONGEST + 2) - 2)
        shape, axes = (ROWS, min(_EXAMPLE_LENGTH, longest)), {0: HF_BATCH, 1: HF_SEQUENCE}
        generates = _generates(kind, config)
        # ``WithPast`` takes neither boxes nor types.
        boxes = 0 if generates else _box_limit(folder, kind, config)
        has_types = not generates and _takes_types(folder, kind, config)
        limits = {
            "input_ids": config.vocab_size,
            **({BOXES: boxes} if boxes else {}),
            "attention_mask": 2,
            **({"token_type_ids": config.type_vocab_size} if has_types else {}),
        }
        specs = tuple(
            InputSpec(name, (*shape, 4) if name == BOXES else shape, torch.int64, axes, limit)
            for name, limit in limits.items()
        )
        return Network(
            folder,
            text_network(network, options, has_boxes=bool(boxes), has_types=has_types),
            specs,
            objective,
            None if boxes else tokenizing(folder, longest, tuple(limits)),
            with_past=_with_past if generates else None,
        )
    size = getattr(config, "image_size", None) or _size_of(folder)
    if kind.main_input_name == "pixel_values" and size is not None:
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        spec = InputSpec(
            "pixel_values", (ROWS, getattr(config, "num_channels", 3), height, width), dynamic={0: HF_BATCH}
        )
        model = ImageNetwork(network, {"return_dict": True})
        return Network(folder, model, (spec,), objective, preprocessing=_preprocessing(folder))
    raise SourceError(
        f"{folder} takes {kind.main_input_name!r}; expected texts or images of one size: {WRITE_MODEL_FILE}"
    )


def _generates(kind: Any, config: Any) -> bool:
    """Whether it is a causal language model with a cache, whose layers all attend to all of the past.

    ``WithPast`` has no other. A forward without positions derives them, or biases, from a mask of rank 2.
    """
    taken = inspect.signature(kind.forward).parameters
    if not _CAUSAL.search(kind.__name__) or not {"past_key_values", "position_ids"} <= set(taken):
        return False
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def _check_takes_texts_alone(folder: Path, kind: Any, config: Any) -> None:
    """Networks of texts and something else, such as CLIP, may have a configuration of texts within theirs."""
    taken = inspect.signature(kind.forward).parameters
    others = [name for name in _NO_TEXTS if name in taken]
    if hasattr(config, "type_vocab_sizes"):
        others.append("token_type_ids of several columns")
    if others:
        raise SourceError(
            f"{folder} takes {' and '.join(('input_ids', *others))}; expected a network of texts or of "
            f"images alone: {WRITE_MODEL_FILE}, or save the part that is wanted as a folder of its own"
        )
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise SourceError(
            f"{folder / 'config.json'} has no 'vocab_size'; expected how many token ids the network knows: "
            f"{WRITE_MODEL_FILE}"
        )


def _box_limit(folder: Path, kind: Any, config: Any) -> int:
    """Below what the integers in ``bbox`` are, the places of tokens on a page; 0 if it takes none."""
    if BOXES not in inspect.signature(kind.forward).parameters:
        return 0
    limit = getattr(config, "max_2d_position_embeddings", None)
    if not isinstance(limit, int):
        raise SourceError(
            f"{folder} takes 'bbox' and does not say in 'max_2d_position_embeddings' how large its integers "
            f"may be: {WRITE_MODEL_FILE}"
        )
    return limit


def _takes_types(folder: Path, kind: Any, config: Any) -> bool:
    """Whether texts come with ``token_type_ids``: the network has several, and its tokenizer gives them.

    Those of RoBERTa and its like have weights for types too, and are never given any.
    """
    if "token_type_ids" not in inspect.signature(kind.forward).parameters:
        return False
    types = getattr(config, "type_vocab_size", 0)
    return isinstance(types, int) and types > 1 and "token_type_ids" in tokenizer_gives(folder, config)


def _with_past(network: nn.Module) -> WithPast:
    assert isinstance(network, TextNetwork)
    return WithPast(network.network)


def _pretrained(folder: Path, kind: Any) -> nn.Module:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        network, found = kind.from_pretrained(
            folder,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_traceable(kind),
        )
    except Exception as error:
        raise SourceError(
            f"{folder} cannot be loaded ({one_line(error)}); expected the files of a {kind.__name__}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(found["missing_keys"])
    if missing:
        raise SourceError(
            f"{folder} lacks {len(missing)} weights of {kind.__name__}, such as {missing[0]!r}; expected all "
            "of them: does config.json name the architecture that was trained?"
        )
    module: nn.Module = network.eval().requires_grad_(False)
    return module


def _traceable(kind: Any) -> dict[str, str]:
    """Experts by products that ONNX has; others sort tokens by expert, or loop over those that are chosen."""
    can_set = getattr(kind, "_can_set_experts_implementation", None)
    return {"experts_implementation": "batched_mm"} if can_set is not None and can_set() else {}


def _preprocessing(folder: Path) -> Preprocessing | None:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    description = read_json(path)
    mean, std = description.get("image_mean"), description.get("image_std")
    if not all(isinstance(p, list) and all(isinstance(x, int | float) for x in p) for p in (mean, std)):
        return None
    return Preprocessing(tuple(mean or ()), tuple(std or ()))


def _size_of(folder: Path) -> int | None:
    """Of the images that a network without a size of its own was trained on."""
    path = folder / "preprocessor_config.json"
    size = read_json(path).get("size") if path.is_file() else None
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return size if isinstance(size, int) and 0 < size <= 4096 else None
