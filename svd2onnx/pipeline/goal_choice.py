"""From the settings to a goal: a rule that gives one plan, or candidates and what to reach with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from svd2onnx.calibration.calibrate import first_rows
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.network_error import drop_errors, error_count
from svd2onnx.compression.lowrank import Decompose, factorize
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.compute.progress import Track
from svd2onnx.latency.latency_model import LatencyModel
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.planning.candidates import BLOCKS, Candidate, candidates
from svd2onnx.planning.fixed_rules import article_plan, uniform_plan, with_activations
from svd2onnx.planning.goals import FidelityGoal, GivenPlan, Goal, LatencyGoal, SizeGoal, allowed_error
from svd2onnx.sources.model_file import Batch
from svd2onnx.values.errors import PlanError, one_line
from svd2onnx.values.schema import BITS, CompressionPlan, LayerSite, QuantSpec
from svd2onnx.values.settings import DEFAULT_TARGET, Settings, target_bytes

_DROP_ERRORS = 8
INT8_ON_CPU = (
    "int8 activations are for the CPU: {} has no kernel for MatMulInteger and would run it there; "
    "use --provider cpu or --activations float"
)
GoalWithin = Callable[[float], Goal]
"""The goal, given what all layers together may take in ms."""


def choose_goal(
    prepared: Prepared,
    settings: Settings,
    statistics: Mapping[str, LayerStatistics],
    judging: Sequence[Batch],
    float_bytes: int,
    provider: str,
    latency_model: LatencyModel | None,
    track: Track,
    decompose: Decompose = factorize,
    memoize: Memoize = no_memo,
) -> GoalWithin:
    """What ``settings`` ask for, for a float32 file of ``float_bytes``.

    Raises:
        PlanError: there is nothing to compress, or the goal or the plan cannot be.
    """
    sites = prepared.sites
    if all(site.skip_reason for site in sites):
        raise PlanError(f"none of the {len(sites)} layers can be compressed; `svd2onnx inspect` says why")
    given = _given_plan(prepared, settings, statistics, track, decompose)
    if given is not None:
        if settings.activations != "auto":
            given = with_activations(given, sites, settings.activations)
        if provider != "cpu" and any(form.activations == "int8" for form in given.forms.values()):
            raise PlanError(INT8_ON_CPU.format(provider))
        return lambda _allowed: GivenPlan(given)
    activations = settings.choice_of_activations(provider)
    uniform = [with_activations(plan, sites, own) for plan in uniform_plans(sites) for own in activations]
    menu = priced_menu(
        prepared, statistics, judging, activations, track, memoize, only_promising=latency_model is None
    )
    if latency_model is not None:
        menu = latency_model.timed(menu)
    if settings.min_fidelity is not None:
        asked, largest = settings.min_fidelity, allowed_error(prepared.objective, settings.min_fidelity)
        return lambda allowed: FidelityGoal(menu, uniform, largest, asked, allowed)
    if settings.target_size is None and latency_model is not None:
        return lambda allowed: LatencyGoal(menu, uniform, allowed)
    target = target_bytes(settings.target_size or DEFAULT_TARGET, float_bytes)
    return lambda allowed: SizeGoal(menu, uniform, float_bytes, target, allowed)


def _given_plan(
    prepared: Prepared,
    settings: Settings,
    statistics: Mapping[str, LayerStatistics],
    track: Track,
    decompose: Decompose,
) -> CompressionPlan | None:
    """The plan of a file or of a rule; None where one is to be chosen from candidates."""
    if settings.plan is not None:
        return read_plan(settings.plan, prepared)
    if settings.method == "quantize":
        return uniform_plan(prepared.sites, settings.spec)
    if settings.method == "auto":
        return None
    if not statistics:
        raise PlanError("--method svd measures each layer on calibration data: use --calibration-samples")
    spec, epsilon = settings.spec, settings.epsilon
    assert epsilon is not None  # settings give svd its default
    return article_plan(prepared.model, prepared.sites, statistics, spec, epsilon, track, decompose)


def uniform_plans(sites: Sequence[LayerSite]) -> list[CompressionPlan]:
    """Plain quantization at every width and block that a candidate may have."""
    return [uniform_plan(sites, QuantSpec(bits, block)) for bits in BITS for block in BLOCKS]


def priced_menu(
    prepared: Prepared,
    statistics: Mapping[str, LayerStatistics],
    judging: Sequence[Batch],
    activations: Sequence[str],
    track: Track,
    memoize: Memoize = no_memo,
    only_promising: bool = True,
) -> dict[str, list[Candidate]]:
    """The candidates of every layer, with what dropping a layer costs measured on a few held-out rows."""
    dropped = memoize("dropped", (), lambda: _dropped(prepared, statistics, judging, track))
    model, sites, device = prepared.model, prepared.sites, prepared.device
    return candidates(model, sites, statistics, dropped, activations, track, memoize, device, only_promising)


def _dropped(
    prepared: Prepared, statistics: Mapping[str, LayerStatistics], judging: Sequence[Batch], track: Track
) -> dict[str, float]:
    objective = prepared.objective
    (network,) = prepared.placed(prepared.model)
    # Of a language model every token has an error, so that one row will do.
    each = max(1, error_count(network, first_rows(judging[0], 1), objective))
    few = first_rows(judging[0], -(-_DROP_ERRORS // each))
    droppable = {site.name for site in prepared.sites if site.kind == "linear"}
    means = {n: own.mean for n, own in statistics.items() if n in droppable and own.mean is not None}
    return drop_errors(network, means, few, objective, track)


def read_plan(path: Path, prepared: Prepared) -> CompressionPlan:
    """The plan in the JSON file at ``path``, checked against the layers of the network.

    Raises:
        PlanError: the file is no plan, or names a layer that cannot be compressed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise PlanError(f"cannot read the plan {path}: {one_line(error)}") from error
    try:
        plan = CompressionPlan.from_json(record)
    except PlanError as error:
        raise PlanError(f"{path}: {one_line(error)}") from error
    usable = {site.name: site for site in prepared.sites if site.skip_reason is None}
    for name, form in plan.forms.items():
        if name not in usable:
            raise PlanError(
                f"{path}: the network has no compressible layer {name!r}; `svd2onnx inspect` lists them"
            )
        if problem := form.problem_with(usable[name]):
            raise PlanError(f"{path}: layer {name!r} cannot be stored as {form}: {problem}")
    return plan
