"""config.json of a Hugging Face folder: what network it describes, bounded, and as its weights have it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from svd2onnx.sources.archive import damaged
from svd2onnx.values.errors import SourceError, one_line

WRITE_MODEL_FILE = "write a model file (.py) that loads it"
_MOST_CONFIG_BYTES = 16 << 20
_MOST_LAYERS = 2000
_MOST_PARTS = 1_000_000
_LARGEST = 1 << 31
_MOST_BUFFER_BYTES = 1 << 30
_LAYERS = re.compile(r"layer|depth|block|stage")


def description_of(folder: Path) -> dict[str, Any]:
    """config.json, with no number out of bounds."""
    path = folder / "config.json"
    description = read_json(path)
    if "quantization_config" in description:
        raise SourceError(f"{path} says that the weights are quantized already; expected float weights")
    if (folder / "adapter_config.json").is_file():
        raise SourceError(
            f"{folder} holds an adapter and no network; expected one: merge the adapter into its network"
        )
    try:
        _check_numbers(path, "", description)
    except RecursionError as error:
        raise damaged(path, error) from error
    return description


def _check_numbers(path: Path, key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_numbers(path, name, entry)
    elif isinstance(value, list):
        for entry in value:
            _check_numbers(path, key, entry)
    elif isinstance(value, int):
        is_count = key.startswith(("num_", "n_")) or key in ("depth", "depths")
        most = (_MOST_LAYERS if _LAYERS.search(key) else _MOST_PARTS) if is_count else _LARGEST
        if abs(value) > most:
            raise SourceError(
                f"{path} has {value} under {key!r}; expected at most {most}: is it the file of this network?"
            )


def kind_of_network(folder: Path, description: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of the network, and its configuration."""
    try:
        import transformers
    except ImportError:
        raise SourceError(f"{folder} needs the package transformers: pip install transformers") from None
    path = folder / "config.json"
    architectures = description.get("architectures") or [""]
    name = architectures[0] if isinstance(architectures, list) and isinstance(architectures[0], str) else ""
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise SourceError(
            f"{path} names the architecture {name!r}, which transformers {transformers.__version__} does not "
            f"have; expected one of its own, as code of the folder is not run: {WRITE_MODEL_FILE}"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
        )
    except Exception as error:
        raise SourceError(
            f"{path} cannot be read ({one_line(error)}); expected a configuration of {name}"
        ) from error
    if not isinstance(config, kind.config_class or ()):
        raise SourceError(f"{path} is of the type {config.model_type!r}, which is not that of {name}")
    return kind, config


def check_size(folder: Path, kind: Any, config: Any) -> None:
    """The network that config.json describes has no more weights than the files hold."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SourceError(
            f"{folder} holds no .safetensors file; expected the weights in that form: load the folder with "
            "transformers and write it with save_pretrained"
        )
    stored = 0
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                stored += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
            raise damaged(path, error) from error
    try:
        with torch.device("meta"):
            network = kind(config)
    except Exception as error:
        raise SourceError(
            f"{folder / 'config.json'} describes no network ({one_line(error)}); is it the right file?"
        ) from error
    wanted = sum(parameter.numel() for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    if wanted > stored or buffers > _MOST_BUFFER_BYTES:
        raise SourceError(
            f"{folder / 'config.json'} describes a network of {wanted} weights, and the .safetensors files "
            f"beside it hold {stored}; expected files that belong together: put all of them there"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size.

    Raises:
        SourceError: there is none.
    """
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MOST_CONFIG_BYTES} bytes")
        description = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read ({one_line(error)}); expected a JSON object") from error
    if not isinstance(description, dict):
        raise SourceError(f"{path} holds {type(description).__name__}; expected a JSON object")
    return description
