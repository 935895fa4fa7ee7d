"""Any SOURCE as a network with its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from svd2onnx.sources.calibration import read_samples
from svd2onnx.sources.checkpoint import choose, networks_in, tables_in
from svd2onnx.sources.detect import kind_of
from svd2onnx.sources.exported import load_exported
from svd2onnx.sources.inputs import parse_shapes, random_batch, required_arguments
from svd2onnx.sources.model_file import Batch, ModelFile, load_model_file
from svd2onnx.sources.network import Network
from svd2onnx.sources.pickled import as_network, load_pickle, needs_script
from svd2onnx.sources.safetensor_files import read_safetensors, read_sharded
from svd2onnx.sources.source import Source
from svd2onnx.sources.source_options import check_network_options, check_options
from svd2onnx.sources.state_dict import count_tensors, load_into
from svd2onnx.values.errors import SourceError
from svd2onnx.values.settings import Settings

NO_DATA = (
    "no --calibration was given: the fidelity was measured on random inputs, which tell little of real "
    "ones; give --calibration for a plan that fits your data"
)
NOT_HELD_OUT = (
    "--calibration has fewer than 5 samples: the fidelity was measured on those that were calibrated on"
)


def load_source(path: Path, settings: Settings, data: Path | None = None) -> Source:
    """The network at ``path`` with its data; see ``svd2onnx.sources``.

    Raises:
        SourceError: it cannot be loaded, or options are missing or do not fit its kind.
    """
    return replace(_load(path, settings, data), name=str(path))


def _load(path: Path, settings: Settings, data: Path | None) -> Source:
    kind = kind_of(path)
    check_options(path, kind, settings, data)
    if kind == "model file":
        return _of_model_file(_model_file(path, settings, data), settings)
    if kind in ("safetensors", "sharded"):
        tensors = read_safetensors(path) if kind == "safetensors" else read_sharded(path)
        key = settings.checkpoint_key
        return _of_state_dict(path, tensors if key is None else choose(path, tensors, key), settings, data)
    if kind == "pickle":
        return _of_pickle(path, settings, data)
    if kind == "exported program":
        network = load_exported(path)
    else:
        from svd2onnx.sources.huggingface import load_folder

        network = load_folder(path)
    return with_data(network, settings)


def with_data(network: Network, settings: Settings) -> Source:
    """``network`` with the samples of ``--calibration``, or random ones where there are none."""
    return replace(_with_data(network, settings), with_past=network.with_past, outputs=network.outputs)


def _with_data(network: Network, settings: Settings) -> Source:
    if settings.input_shape:
        if network.specs is not None:
            raise SourceError(
                f"--input-shape was given, and {network.path} tells its inputs itself: leave it out"
            )
        network = replace(network, specs=parse_shapes(settings.input_shape, network.model, network.path))
    objective = settings.objective or network.objective
    shapes = (
        None if network.specs is None else {spec.name: dict(spec.dynamic or {}) for spec in network.specs}
    )
    path = settings.calibration
    if path is not None and path.suffix == ".py":
        file = load_model_file(path)
        return Source(lambda: network.model, file.inputs, objective, file.metric, file.summary, shapes)
    if path is not None:
        splits = read_samples(path, network)
        warnings = () if splits.holds_out else (NOT_HELD_OUT,)
        return Source(
            lambda: network.model, splits.inputs, objective, dynamic_shapes=shapes, warnings=warnings
        )
    if network.specs is None:
        names = ", ".join(required_arguments(network.model))
        raise SourceError(
            f"{network.path} does not tell what it takes; expected --calibration FILE.npz with the arrays "
            f"{names}, or --input-shape NAME=1,3,224,224 for each of them"
        )
    if settings.recover:
        raise SourceError("--recover retrains on data, and there is none: give --calibration")
    specs = network.specs

    def inputs(split: str) -> Iterator[Batch]:
        for seed in range(4 if split == "evaluation" else 1):
            yield random_batch(specs, seed)

    return Source(
        lambda: network.model,
        inputs,
        objective,
        dynamic_shapes=shapes,
        calibrated=False,
        warnings=(NO_DATA,),
    )


def _of_model_file(file: ModelFile, settings: Settings) -> Source:
    source = Source.of_model_file(file)
    if settings.input_shape:
        raise SourceError(f"--input-shape was given, and {file.path} tells its inputs itself: leave it out")
    if settings.objective and hasattr(file.module, "objective"):
        raise SourceError(
            f"--objective was given, and {file.path} says {file.objective!r}: leave it out, or change that"
        )
    source = replace(source, objective=settings.objective or source.objective)
    if settings.calibration is None:
        return source
    network = Network(file.path, file.build(), None, source.objective)
    other = with_data(network, settings)

    def inputs(split: str) -> Iterator[Batch]:
        """Evaluation stays what the model file says."""
        return source.inputs(split) if split == "evaluation" else other.inputs(split)

    return replace(source, build=other.build, inputs=inputs)


def _of_pickle(path: Path, settings: Settings, data: Path | None) -> Source:
    """A network, or a state dict; the model file also defines the classes of the script that wrote it."""
    file = None
    if settings.trust_pickle and settings.model is not None and needs_script(path):
        file = _model_file(settings.model, settings, data, needs=())
    loaded = load_pickle(path, trusted=settings.trust_pickle, script=None if file is None else file.module)
    if settings.checkpoint_key is not None:
        if isinstance(loaded, nn.Module):
            raise SourceError(
                f"--checkpoint-key was given, and {path} is one network, not a checkpoint: leave it out"
            )
        loaded = choose(path, loaded, settings.checkpoint_key)
    if not networks_in(loaded) and (isinstance(loaded, Mapping) or tables_in(loaded)):
        return _of_state_dict(path, loaded, settings, data)
    if file is None:
        check_network_options(path, settings, data)
    else:
        check_network_options(path, replace(settings, model=None), None)
    model, warnings = as_network(loaded, path)
    if file is None:
        return _warned(with_data(Network(path, model, None), settings), warnings)
    return _warned(_of_built(path, model, file, settings), warnings)


def _of_state_dict(path: Path, loaded: Any, settings: Settings, data: Path | None) -> Source:
    if settings.model is None:
        raise SourceError(
            f"{path} holds {count_tensors(path, loaded)} tensors and no network; expected --model FILE.py, a "
            "Python file whose build() makes the network they belong to"
        )
    needs = ("build", "inputs") if _takes_own_data(settings) else ("build",)
    file = _model_file(settings.model, settings, data, needs=needs)
    model = file.build()
    warnings = load_into(model, loaded, path, settings.model)
    return _warned(_of_built(path, model, file, settings), warnings)


def _of_built(path: Path, model: nn.Module, file: ModelFile, settings: Settings) -> Source:
    """``model`` with what is asked for, or else with the data of the model file that defines it."""
    if _takes_own_data(settings) and hasattr(file.module, "inputs"):
        return replace(_of_model_file(file, settings), build=lambda: model)
    objective = settings.objective or file.objective
    network = Network(path, model, None, objective, with_past=file.with_past, outputs=file.outputs)
    return with_data(network, settings)


def _takes_own_data(settings: Settings) -> bool:
    return settings.calibration is None and not settings.input_shape


def _warned(source: Source, warnings: tuple[str, ...]) -> Source:
    return replace(source, warnings=source.warnings + warnings)


def _model_file(
    path: Path, settings: Settings, data: Path | None, needs: tuple[str, ...] = ("build", "inputs")
) -> ModelFile:
    return load_model_file(path, data, settings.weights, random_weights=settings.random_weights, needs=needs)
