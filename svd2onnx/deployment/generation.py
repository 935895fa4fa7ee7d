"""What graphs with a cache make of a prompt, and how fast: one token at a time, the likeliest each."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from svd2onnx.compute.progress import Track, silent
from svd2onnx.sources.model_file import load_model_file
from svd2onnx.sources.tokenizer import read_tokenizer
from svd2onnx.values.errors import SourceError, one_line
from svd2onnx_runtime import Generation, generate, open_session, provider_of
from svd2onnx_runtime.errors import naming
from svd2onnx_runtime.session import open_reference, ort_version

_REST_S = 0.03
"""In which the threads of the session before come to rest."""


@dataclass(frozen=True)
class GeneratedText:
    """What one graph adds to the prompt; ``text`` stops where the tokenizer's end token comes.

    ``prefill_ms`` is the time of the prompt, ``tokens_per_s`` the rate of the tokens after it, and
    ``speed_ratio`` that rate over the first graph's: above 1 is faster. All are medians, and the graphs
    generate in turn in one process. ``same_tokens`` counts how many are the first graph's before one differs.
    """

    name: str
    path: str
    text: str
    tokens: tuple[int, ...]
    prefill_ms: float
    tokens_per_s: float
    speed_ratio: float
    same_tokens: int


@dataclass(frozen=True)
class GeneratedTexts:
    """The continuations of one prompt, the reference's first, and the conditions they shared."""

    prompt: str
    prompt_tokens: int
    provider: str
    onnxruntime: str
    threads: int | None
    repeats: int
    graphs: tuple[GeneratedText, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def tokenizer_of(task: Path, weights: Path | None = None) -> Any:
    """That of a model file, or of a Hugging Face folder.

    Raises:
        SourceError: there is none.
    """
    if task.is_dir():
        return read_tokenizer(task)
    return load_model_file(task, weights=weights, needs=()).tokenizer()


def generate_texts(
    paths: Mapping[str, Path],
    tokenizer: Any,
    prompt: str,
    tokens: int,
    *,
    provider: str = "auto",
    threads: int | None = None,
    repeats: int = 3,
    track: Track = silent,
) -> GeneratedTexts:
    """Let the graphs ``paths`` (name -> file; the first is the reference) continue ``prompt`` in turn.

    Args:
        paths: files with a cache, of one network.
        tokenizer: with ``encode``, ``decode`` and ``eos_token_id``.
        prompt: of at least one token.
        tokens: how many to add, at least two: what comes after an end is timed and not shown.
        provider: of the sessions.
        threads: of an operator.
        repeats: how often each graph does it.
        track: shows the progress.

    Raises:
        SourceError: the tokenizer gives no tokens.
        Svd2OnnxError: a file cannot be loaded, has no cache, or does not know the tokens.
    """
    ids = _encoded(tokenizer, prompt)
    sessions = {}
    for i, (name, path) in enumerate(paths.items()):
        sessions[name] = (open_session if i else open_reference)(path, provider, threads=threads)
    runs: dict[str, list[Generation]] = {name: [] for name in paths}
    for turn in track(range(repeats), "Generating", repeats):
        for name in list(paths) if turn % 2 == 0 else reversed(list(paths)):
            time.sleep(_REST_S)
            with naming(paths[name]):
                runs[name].append(generate(sessions[name], ids, tokens))
    reference = next(iter(runs.values()))
    return GeneratedTexts(
        prompt=prompt,
        prompt_tokens=ids.shape[1],
        provider=provider_of(next(iter(sessions.values()))),
        onnxruntime=ort_version(),
        threads=threads,
        repeats=repeats,
        graphs=tuple(_summed_up(name, paths[name], own, reference, tokenizer) for name, own in runs.items()),
    )


def _summed_up(
    name: str, path: Path, runs: list[Generation], reference: list[Generation], tokenizer: Any
) -> GeneratedText:
    made, others = runs[0].tokens[0], reference[0].tokens[0]
    different = np.flatnonzero(made != others)
    ends = np.flatnonzero(made == tokenizer.eos_token_id)
    steps = [median(run.step_s) for run in runs]
    return GeneratedText(
        name=name,
        path=str(path),
        text=str(tokenizer.decode(made[: ends[0] if ends.size else None].tolist())),
        tokens=tuple(made.tolist()),
        prefill_ms=median(run.prefill_s for run in runs) * 1e3,
        tokens_per_s=1 / median(steps),
        speed_ratio=median(median(r.step_s) / own for r, own in zip(reference, steps, strict=True)),
        same_tokens=int(different[0]) if different.size else len(made),
    )


def _encoded(tokenizer: Any, prompt: str) -> np.ndarray:
    """The prompt's tokens, int64 [1, length]."""
    try:
        ids = np.array([tokenizer.encode(prompt)], np.int64)
    except (AttributeError, TypeError, ValueError) as error:
        raise SourceError(
            f"the tokenizer cannot read the prompt ({one_line(error)}); expected encode(text) "
            "to give a list of integers"
        ) from error
    if not ids.size:
        raise SourceError("the prompt has no token: give one with some text")
    return ids
