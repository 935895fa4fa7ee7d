"""Size against accuracy, as the article draws it: many settings of one network, each exported and measured.

Every point is written to the folder's sweep.json as soon as it is measured, and a run that finds points there
goes on with the others. Threads measure one after another; other workers load the network themselves, each
its own, and find what points share in the cache.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from svd2onnx.compute.atomic_output import atomic_files
from svd2onnx.compute.draft_folder import draft_folder
from svd2onnx.compute.executors import current
from svd2onnx.compute.progress import Track, silent
from svd2onnx.compute.workers import finished
from svd2onnx.memo.cache import Cache, open_cache
from svd2onnx.pipeline.judged_output import with_judged_output
from svd2onnx.pipeline.preparation import Prepared, prepare
from svd2onnx.study.measurement import Study
from svd2onnx.study.points import Point, Setting, Sweep
from svd2onnx.values.errors import OutputError
from svd2onnx.values.settings import Settings

RESULTS = "sweep.json"
_FLOAT32 = "float32.onnx"


def sweep(
    source: Path,
    folder: Path,
    wanted: Sequence[Setting],
    settings: Settings,
    data: Path | None = None,
    track: Track = silent,
) -> Sweep:
    """Measure the points ``wanted`` of the model file ``source``, and write them to ``folder``.

    Args:
        source: the model file.
        folder: made if it is not there; sweep.json and sweep.csv are written to it.
        wanted: the settings; those that sweep.json holds are not measured again.
        settings: ``recover`` is the number of steps of the series "retrained".
        data: as of ``compress_export``.
        track: shows the progress.

    Raises:
        Svd2OnnxError: the network cannot be compressed at all. A point that cannot be reached is noted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    prepared = prepare(source, settings, data, track)
    before = results = Sweep.read(folder / RESULTS, str(source), prepared.source.objective)
    kept = settings.resume or settings.cache is not None
    where = settings.cache or folder / "cache"
    with open_cache(where, fresh=False, kept=kept) as cache, draft_folder(folder, "sweep") as drafts:
        missing = [setting for setting in wanted if not results.has(setting)]
        origin = _Origin(Path.cwd(), source, settings, data)
        points = _points(missing, prepared, origin, drafts, cache)
        measured: dict[Setting, Point] = {}
        for setting, point in track(points, "Sweeping", len(missing)):
            measured[setting] = point
            new = (measured[own] for own in missing if own in measured)
            results = replace(before, points=(*before.points, *new))
            with atomic_files(folder / RESULTS, folder / "sweep.csv") as (json_draft, csv_draft):
                json_draft.write_text(results.to_json(), encoding="utf-8")
                csv_draft.write_text(results.to_csv(), encoding="utf-8")
    return results


@dataclass(frozen=True)
class _Origin:
    """What a worker loads the network from; ``here`` is what paths are relative to."""

    here: Path
    source: Path
    settings: Settings
    data: Path | None


def _points(
    missing: Sequence[Setting], prepared: Prepared, origin: _Origin, drafts: Path, cache: Cache
) -> Iterator[tuple[Setting, Point]]:
    """Those of ``missing``, in the order in which they are measured."""
    if not missing:
        return
    float32 = drafts / _FLOAT32
    prepared.export_float(float32)
    prepared = with_judged_output(prepared, float32)
    study = Study(prepared, drafts, float32, cache)
    if current().in_process:
        yield from ((setting, study.point(setting)) for setting in missing)
        return
    study.share(missing)
    del study
    # What is drawn and summed up is remembered for this number of threads, and no other.
    threads = torch.get_num_threads()
    # On the same device as here, whatever a worker has.
    settings = replace(origin.settings, device=prepared.device.type)
    origin = replace(origin, settings=settings)
    work = functools.partial(_measured, origin, drafts.absolute(), cache.folder.absolute())
    yield from finished(work, missing, lambda setting: (setting,), threads)


def _measured(origin: _Origin, drafts: Path, cache: Path, setting: Setting) -> Point:
    """One point, in a worker."""
    os.chdir(origin.here)
    prepared = with_judged_output(_prepared(origin), drafts / _FLOAT32)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(draft_folder(drafts, "point"))
        return Study(prepared, folder, drafts / _FLOAT32, Cache(cache, stack)).point(setting)


@functools.lru_cache(maxsize=1)
def _prepared(origin: _Origin) -> Prepared:
    """The network in a worker, which measures several points of it."""
    return prepare(origin.source, origin.settings, origin.data)
