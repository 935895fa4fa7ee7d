"""Networks of the Hugging Face hub, read from this machine only: a folder, or the local cache."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")


class Checkpoint:
    """The folder of a network that is known to the hub by any of ``names``."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def choose(self, weights: Path | None, random_weights: bool) -> Path | None:
        """Return the folder to read: the one given, else that in the cache, or None for random weights.

        Raises:
            FileNotFoundError: the folder holds no network, or none is given and the cache has none.
        """
        if random_weights:
            return None
        folder = weights or self._cached()
        if folder is None:
            raise FileNotFoundError(
                f"expected {self.names[0]} in the local Hugging Face cache; it is not there: fetch it once "
                f"(hf download {self.names[0]}), or give --weights DIR, a folder with its files, "
                "or --random-weights"
            )
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"expected the files of {self.names[0]} in {folder}; found no config.json there"
            )
        return folder

    def tokenizer(self, data: Path | None, weights: Path | None, random_weights: bool) -> Any:
        """Return the tokenizer that lies with the weights of ``choose``, None where there is none.

        Raises:
            FileNotFoundError: there is none, and ``data`` holds text that wants one.
        """
        folder = None if random_weights else weights or self._cached()
        if folder is not None and any((folder / name).is_file() for name in _TOKENIZERS):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if data is not None:
            place = "with random weights" if random_weights else f"in {folder or 'the Hugging Face cache'}"
            raise FileNotFoundError(
                f"expected the tokenizer of {self.names[0]} to read the text in {data}; "
                f"there is none {place}: leave the data folder out to use random tokens"
            )
        return None

    def _cached(self) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        for name in self.names:
            try:
                return Path(snapshot_download(name, local_files_only=True))
            except LocalEntryNotFoundError:
                continue
        return None


def pretrained(kind: Any, folder: Path) -> nn.Module:
    """Return the network of class ``kind`` in ``folder``: float32, eval mode, attention in plain operations.

    Raises:
        ValueError: the files lack some of its weights, which ``transformers`` would draw at random.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Files may hold more, such as the head of another task.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        network, found = kind.from_pretrained(
            folder,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"expected all weights of {kind.__name__} in {folder}; "
            f"{len(missing)} are missing, such as {missing[0]}"
        )
    module: nn.Module = network.eval()
    return module


def initial(kind: Any, **configuration: Any) -> nn.Module:
    """Return a network of class ``kind`` with random weights, always the same ones, in eval mode."""
    config = kind.config_class(**configuration, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = kind(config).eval()
    return network
