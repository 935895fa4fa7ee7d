"""Which options go with which kind of SOURCE, as far as the kind tells; torch is not imported."""

from __future__ import annotations

from pathlib import Path

from svd2onnx.values.errors import SourceError
from svd2onnx.values.settings import Settings


def check_options(path: Path, kind: str, settings: Settings, data: Path | None) -> None:
    """Refuse the options that have no effect for a SOURCE of this ``kind``, see ``detect.kind_of``.

    A pickle may hold a network or a state dict, which is known when it is loaded.

    Raises:
        SourceError: an option does not fit, or a state dict lacks its --model.
    """
    if kind != "pickle":
        _refuse(settings.trust_pickle, "--trust-pickle", path, "a pickle")
    if kind not in ("pickle", "safetensors", "sharded"):
        _refuse(settings.checkpoint_key is not None, "--checkpoint-key", path, "a checkpoint")
    if kind in ("safetensors", "sharded") and settings.model is None:
        raise SourceError(
            f"{path} holds tensors and no network; expected --model FILE.py, a Python file whose build() "
            "makes the network they belong to"
        )
    if kind == "model file":
        _refuse(settings.model is not None, "--model", path, "a state dict")
        if settings.input_shape:
            raise SourceError(f"--input-shape was given, and {path} tells its inputs itself: leave it out")
    if kind in ("exported program", "hugging face"):
        check_network_options(path, settings, data)


def check_network_options(path: Path, settings: Settings, data: Path | None) -> None:
    """Refuse what only a model file or a state dict takes, for a file that holds its network.

    Raises:
        SourceError: such an option was given.
    """
    _refuse(settings.model is not None, "--model", path, "a state dict")
    _refuse(data is not None, "--data", path, "a model file")
    _refuse(settings.weights is not None, "--weights", path, "a model file")
    _refuse(settings.random_weights, "--random-weights", path, "a model file")


def check_live_options(settings: Settings) -> None:
    """Refuse what says how a file is loaded, for a network that is in memory already.

    Raises:
        SourceError: such an option was given.
    """
    for name in ("weights", "random_weights", "model", "calibration", "input_shape", "trust_pickle"):
        if getattr(settings, name):
            raise SourceError(
                f"{name} was given, which is for networks in files, and this one is in memory: leave it out"
            )


def _refuse(given: bool, option: str, path: Path, kind: str) -> None:
    if given:
        raise SourceError(f"{option} was given, and {path} is not {kind}: leave it out")
