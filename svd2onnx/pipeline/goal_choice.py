"""From the settings to a goal: a rule that gives one plan, or candidates and what to reach with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.network_error import drop_errors, error_count
from svd2onnx.compression.lowrank import Decompose
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.latency.latency_model import LatencyModel
from svd2onnx.pipeline.int8_convolutions import Int8Convolutions
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.pipeline.workspace import Workspace
from svd2onnx.planning.candidates import BLOCKS, Candidate, candidates, least_bytes
from svd2onnx.planning.fixed_rules import article_plan, uniform_plan, with_activations
from svd2onnx.planning.goals import (
    FidelityGoal,
    GivenPlan,
    Goal,
    LatencyGoal,
    SizeGoal,
    allowed_error,
    check_reachable,
)
from svd2onnx.sources.rows import first_rows
from svd2onnx.values.errors import PlanError, one_line
from svd2onnx.values.schema import BITS, CompressionPlan, LayerSite, QuantSpec
from svd2onnx.values.settings import DEFAULT_TARGET, Settings, target_bytes
from svd2onnx_runtime.session import resolve_provider

_DROP_ERRORS = 8
INT8_ON_CPU = (
    "int8 activations are for the CPU: {} lacks kernels for MatMulInteger and QLinearConv, and would run "
    "them there; "
    "use --provider cpu or --activations float"
)
GoalWithin = Callable[[float], Goal]
"""The goal, given what all layers together may take in ms."""


def resolved_provider(settings: Settings) -> str:
    """The execution provider that ``settings`` ask for.

    Raises:
        PlanError: it cannot compute what they ask for.
    """
    provider = resolve_provider(settings.provider)
    if settings.activations == "int8" and provider != "cpu":
        raise PlanError(INT8_ON_CPU.format(provider))
    return provider


def check_goal(prepared: Prepared, workspace: Workspace) -> None:
    """Refuse what can be known to fail before anything is calibrated.

    Raises:
        PlanError: there is nothing to compress, or no file is as small as asked.
    """
    sites, size = prepared.sites, prepared.settings.target_size
    if all(site.skip_reason for site in sites):
        raise PlanError(f"none of the {len(sites)} layers can be compressed; `svd2onnx inspect` says why")
    if size is not None:
        float_bytes = workspace.float_bytes
        check_reachable(target_bytes(size, float_bytes), least_bytes(sites, float_bytes), float_bytes)


def choose_goal(
    prepared: Prepared,
    statistics: Mapping[str, LayerStatistics],
    workspace: Workspace,
    latency_model: LatencyModel | None,
    convolutions: Int8Convolutions,
) -> GoalWithin:
    """What the settings ask for, as a goal within a limit of time; ``latency_model`` where they have one.

    ``convolutions`` tell what those in int8 cost besides.

    Raises:
        PlanError: the goal or the plan cannot be.
    """
    settings, sites, provider = prepared.settings, prepared.sites, prepared.provider
    given = _given_plan(prepared, statistics, workspace.decompose)
    if given is not None:
        if settings.activations != "auto":
            given = with_activations(given, sites, settings.activations)
        if provider != "cpu" and any(form.activations == "int8" for form in given.forms.values()):
            raise PlanError(INT8_ON_CPU.format(provider))
        return lambda _allowed: GivenPlan(given)
    activations = settings.choice_of_activations(provider)
    uniform = [with_activations(plan, sites, own) for plan in uniform_plans(sites) for own in activations]
    memo, only_promising = workspace.memo, latency_model is None
    rounding = convolutions.rounding if "int8" in activations else None
    menu = priced_menu(
        prepared, statistics, activations, memo, rounding=rounding, only_promising=only_promising
    )
    if latency_model is not None:
        menu = latency_model.timed(menu)
    if settings.min_fidelity is not None:
        asked, largest = settings.min_fidelity, allowed_error(prepared.objective, settings.min_fidelity)
        return lambda allowed: FidelityGoal(menu, uniform, largest, asked, allowed)
    if settings.target_size is None and latency_model is not None:
        return lambda allowed: LatencyGoal(menu, uniform, allowed)
    float_bytes = workspace.float_bytes
    target = target_bytes(settings.target_size or DEFAULT_TARGET, float_bytes)
    return lambda allowed: SizeGoal(menu, uniform, float_bytes, target, allowed)


def _given_plan(
    prepared: Prepared, statistics: Mapping[str, LayerStatistics], decompose: Decompose
) -> CompressionPlan | None:
    """The plan of a file or of a rule; None where one is to be chosen from candidates."""
    settings = prepared.settings
    if settings.plan is not None:
        return read_plan(settings.plan, prepared)
    if settings.method == "quantize":
        return uniform_plan(prepared.sites, settings.spec)
    if settings.method == "auto":
        return None
    if not statistics and any(site.multiplies and not site.skip_reason for site in prepared.sites):
        raise PlanError("--method svd measures each layer on calibration data: use --calibration-samples")
    spec, epsilon = settings.spec, settings.epsilon
    assert epsilon is not None  # settings give svd its default
    model, sites, track = prepared.model, prepared.sites, prepared.track
    return article_plan(model, sites, statistics, spec, epsilon, track=track, decompose=decompose)


def uniform_plans(sites: Sequence[LayerSite]) -> list[CompressionPlan]:
    """Plain quantization at every width and block that a candidate may have."""
    return [uniform_plan(sites, QuantSpec(bits, block)) for bits in BITS for block in BLOCKS]


def priced_menu(
    prepared: Prepared,
    statistics: Mapping[str, LayerStatistics],
    activations: Sequence[str] = ("float",),
    memoize: Memoize = no_memo,
    *,
    rounding: Mapping[str, float] | None = None,
    only_promising: bool = True,
) -> dict[str, list[Candidate]]:
    """The candidates of every layer, with what dropping a layer costs measured on a few held-out rows."""
    dropped = memoize("dropped", (), lambda: _dropped(prepared, statistics))
    return candidates(
        prepared.model,
        prepared.sites,
        statistics,
        dropped,
        activations,
        rounding=rounding,
        track=prepared.track,
        memoize=memoize,
        device=prepared.device,
        only_promising=only_promising,
    )


def _dropped(prepared: Prepared, statistics: Mapping[str, LayerStatistics]) -> dict[str, float]:
    objective, judging, axes = prepared.objective, prepared.judging, prepared.row_axes
    place, track = prepared.judged, prepared.track
    (network,) = prepared.placed(prepared.model)
    # Of a language model every token has an error, so that one row will do.
    each = max(1, error_count(network, first_rows(judging[0], 1, axes), objective, place))
    few = first_rows(judging[0], -(-_DROP_ERRORS // each), axes)
    droppable = {site.name for site in prepared.sites if site.kind == "linear"}
    means = {n: own.mean for n, own in statistics.items() if n in droppable and own.mean is not None}
    return drop_errors(network, means, few, objective, place=place, track=track)


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
