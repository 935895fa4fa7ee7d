"""Read a model file: a Python file that holds a network, its data, and what "the same output" means.

    build() -> nn.Module              float32, eval mode, loaded offline; optional arguments: weights, a
                                      folder that holds them, and random_weights, which asks for none
    inputs(split) -> batches          split is "calibration", "recovery" or "evaluation"; each batch is a
                                      dict of tensors by argument name, and of labels under other names;
                                      optional arguments: data, a folder, and those of build
    objective                         "cosine", "kl" or "mse" (default "mse"), of the first output; or
                                      "boxes=mse", of the one of this name
    metric(outputs, batch)            optional; numpy in, a number or a dict of numbers or arrays out
    summary(columns)                  optional; reduces the arrays that metric gave over all batches
    dynamic_shapes                    optional; {argument: {dimension: name}}, as torch.export takes it
    outputs                           optional; a list of names for the tensors that forward gives, in order
                                      (default: the keys or fields of what holds them, else "output", ...)
    with_past(network)                optional; what --with-past exports in place of a causal language model
                                      that build() gave, or of the compressed one: a ``decoder.WithPast``
    tokenizer()                       optional; encode(text), decode(ids) and eos_token_id, as transformers'
                                      have them, for `svd2onnx generate`; optional arguments: those of build

A model file is a program: running it is what is asked for. Nothing else is executed.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from svd2onnx.compute.device import device_of, on
from svd2onnx.network.decoder import WithPast
from svd2onnx.sources.wrappings import unwrapped
from svd2onnx.values.errors import PlanError, SourceError, Svd2OnnxError
from svd2onnx.values.objective import parse_objective
from svd2onnx.values.settings import AnyPath

SPLITS = ("calibration", "recovery", "evaluation")
Batch = dict[str, Tensor]
DynamicShapes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class ModelFile:
    """A loaded model file; see the module's docstring for the protocol."""

    path: Path
    module: ModuleType
    data: Path | None = None
    weights: Path | None = None
    random_weights: bool = False

    @property
    def objective(self) -> str:
        return str(getattr(self.module, "objective", "mse"))

    @property
    def metric(self) -> Callable[..., Any] | None:
        return self._optional("metric")

    @property
    def summary(self) -> Callable[..., dict[str, float]] | None:
        return self._optional("summary")

    @property
    def dynamic_shapes(self) -> DynamicShapes | None:
        return getattr(self.module, "dynamic_shapes", None)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names for the outputs; empty where the file gives none. A SourceError where they are no names."""
        names = getattr(self.module, "outputs", None)
        if names is None:
            return ()
        known = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
        if not known or not names or len(set(names)) != len(names):
            raise SourceError(
                f"outputs in {self.path} must be a list of different names, one for each tensor that forward "
                f"gives, not {names!r}"
            )
        return tuple(names)

    @property
    def with_past(self) -> Callable[[nn.Module], WithPast] | None:
        """What makes a network of the file generate; a SourceError where it gives something else."""
        make = self._optional("with_past")
        if make is None:
            return None

        def checked(network: nn.Module) -> WithPast:
            made = make(network)
            if not isinstance(made, WithPast):
                raise SourceError(
                    f"with_past() in {self.path} must return a WithPast, not {type(made).__name__}: "
                    "see svd2onnx.network.decoder"
                )
            return made

        return checked

    def tokenizer(self) -> Any:
        """What turns text into tokens and back.

        Raises:
            SourceError: the file has none, or it fails.
        """
        make = self._optional("tokenizer")
        if make is None:
            raise SourceError(
                f"{self.path} defines no function tokenizer(), which reads a prompt: add one "
                "(svd2onnx.sources.model_file says what it gives)"
            )
        known = inspect.signature(self.module.tokenizer).parameters
        return make(**{name: value for name, value in self._asked_weights().items() if name in known})

    def build(self) -> nn.Module:
        """The network, in eval mode.

        Raises:
            SourceError: ``build`` fails or returns something else than a module, or knows nothing of the
                weights that are asked for.
        """
        asked = self._asked_weights()
        known = inspect.signature(self.module.build).parameters
        for name in asked:
            if name not in known:
                option = f"--{name.replace('_', '-')}"
                raise SourceError(
                    f"{option} was given, but build() in {self.path} takes no argument {name!r}"
                )
        with _blamed_on(self.path, "build()"):
            model = self.module.build(**asked)
        if not isinstance(model, nn.Module):
            raise SourceError(
                f"build() in {self.path} must return a torch.nn.Module, not {type(model).__name__}"
            )
        return unwrapped(model).eval().requires_grad_(False)

    def inputs(self, split: str) -> Iterator[Batch]:
        """The batches of ``split``, one at a time.

        Raises:
            SourceError: ``inputs`` fails, gives no batch, or gives something else than dicts of tensors.
        """
        if split not in SPLITS:
            raise SourceError(f"a split is one of {SPLITS}, not {split!r}")
        known = inspect.signature(self.module.inputs).parameters
        # A tokenizer lies with the weights; most networks' data do not.
        arguments = {name: value for name, value in self._asked_weights().items() if name in known}
        if self.data is not None:
            if "data" not in known:
                raise SourceError(
                    f"--data was given, but inputs(split) in {self.path} takes no argument 'data'"
                )
            arguments["data"] = self.data
        count = 0
        with _blamed_on(self.path, f"inputs({split!r})"):
            for batch in self.module.inputs(split, **arguments):
                count += 1
                yield self._checked(batch, split)
        if count == 0:
            raise SourceError(f"inputs({split!r}) in {self.path} gave no batch; one is needed")

    def _asked_weights(self) -> dict[str, Any]:
        given = {} if self.weights is None else {"weights": self.weights}
        return {**given, "random_weights": True} if self.random_weights else given

    def _optional(self, name: str) -> Callable[..., Any] | None:
        """The function ``name`` of the file, whose failures are SourceErrors; None where there is none."""
        function = getattr(self.module, name, None)
        if function is None:
            return None

        def call(*arguments: Any, **named: Any) -> Any:
            with _blamed_on(self.path, f"{name}()"):
                return function(*arguments, **named)

        return call

    def _checked(self, batch: Any, split: str) -> Batch:
        entries = dict(batch) if isinstance(batch, Mapping) else {}
        if not entries or not all(isinstance(value, Tensor) for value in entries.values()):
            found = {name: type(value).__name__ for name, value in entries.items()}
            raise SourceError(
                f"inputs({split!r}) in {self.path} must give dicts of tensors by argument name, "
                f"not {found or type(batch).__name__}"
            )
        return entries


def load_model_file(
    path: AnyPath,
    data: AnyPath | None = None,
    weights: AnyPath | None = None,
    *,
    random_weights: bool = False,
    needs: Sequence[str] = ("build", "inputs"),
) -> ModelFile:
    """Run the model file at ``path`` and check that it follows the protocol, as far as ``needs`` asks for it.

    Raises:
        SourceError: no such file, not a Python file, it fails to run, or a part of it is missing.
    """
    path = Path(path)
    data, weights = (None if folder is None else Path(folder) for folder in (data, weights))
    if not path.exists():
        raise SourceError(f"no such model file: {path}")
    if path.is_dir() or path.suffix != ".py":
        raise SourceError(
            f"{path} is no model file: a Python file (.py) with build() and inputs(split) is needed"
        )
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty: a model file defines build() and inputs(split)")
    for option, folder in (("--data", data), ("--weights", weights)):
        if folder is not None and not folder.is_dir():
            raise SourceError(f"{option} must be a folder, and {folder} is none")
    module = _execute(path)
    for name in needs:
        if not callable(getattr(module, name, None)):
            raise SourceError(f"{path} defines no function {name}(): a model file needs one")
    model_file = ModelFile(path, module, data, weights, random_weights)
    try:
        parse_objective(model_file.objective)
    except PlanError as error:
        raise SourceError(f"in {path}, {error}") from error
    return model_file


def arguments_of(model: nn.Module, batch: Batch) -> Batch:
    """The entries of ``batch`` that the network's forward takes, in the order of its parameters, where it is.

    Raises:
        SourceError: the batch holds none of them.
    """
    parameters = inspect.signature(model.forward).parameters
    arguments = {name: batch[name] for name in parameters if name in batch}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in batch
    ]
    if not arguments or missing:
        raise SourceError(
            f"forward takes {list(parameters)}, but the batch holds {list(batch)}; "
            f"name the batch's tensors by forward's arguments"
        )
    return on(device_of(model), arguments)


def as_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The batch as numpy arrays, for onnxruntime."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in batch.items()}


def _execute(path: Path) -> ModuleType:
    name = f"svd2onnx_model_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look themselves up here.
    sys.modules[name] = module
    # As a script does, it may import what lies beside it.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with _blamed_on(path, "running it"):
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


class _blamed_on:  # noqa: N801 - reads as a statement: "with _blamed_on(path, ...)"
    """Turn whatever the user's code raises into one line that names the file and the step."""

    def __init__(self, path: Path, step: str) -> None:
        self.path, self.step = path, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Svd2OnnxError):
            line = " ".join(str(error).split()) or "no message"
            raise SourceError(
                f"the model file {self.path} failed in {self.step}: {type(error).__name__}: {line}"
            ) from error
