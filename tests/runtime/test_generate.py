"""Generation over a graph with a cache: tokens as of whole texts, ends, padding, pieces, and refusals."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from svd2onnx_runtime import (
    Footprint,
    GraphError,
    InputsError,
    Roofline,
    bench,
    evaluate,
    generate,
    open_session,
    run,
    synthetic_inputs,
)
from svd2onnx_runtime.generate import logits_in_pieces
from svd2onnx_runtime.past import past_names, results_of
from tests.runtime.past_graphs import HEAD, TABLE, continued, logits_of, past_graph
from tests.runtime.quantized_graphs import token_graph

PROMPT = [3, 1, 4]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("past") / "past.onnx"
    past_graph(path)
    return path


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("prompt", [PROMPT, [7]], ids=["three", "one"])
def test_tokens_are_the_likeliest_after_the_whole_text(path: Path, prompt: list[int], strict: bool) -> None:
    made = generate(open_session(path, "cpu", strict=strict), np.array([prompt]), 12)
    assert made.tokens.tolist() == [continued(prompt, 12)]
    assert made.tokens.dtype == np.int64
    assert made.prefill_s > 0
    assert len(made.step_s) == 11
    assert made.tokens_per_s == pytest.approx(1 / np.median(made.step_s))
    assert len(set(continued(prompt, 12))) > 1  # or any loop would do


def test_texts_of_other_lengths_are_padded_on_the_left(path: Path) -> None:
    ids = np.array([[3, 1, 4], [9, 9, 7]])
    mask = np.array([[1, 1, 1], [0, 0, 1]])
    made = generate(open_session(path, "cpu"), ids, 6, attention_mask=mask)
    assert made.tokens.tolist() == [continued([3, 1, 4], 6), continued([7], 6)]


def test_a_text_ends_with_its_end_token_and_waits_for_the_others(path: Path) -> None:
    session = open_session(path, "cpu")
    first, second = continued([3, 1, 4], 8), continued([5, 5, 5], 8)
    end = next(token for token in first if token not in second[:3])
    place = first.index(end)
    alone = generate(session, np.array([[3, 1, 4]]), 8, end_tokens=[end])
    assert alone.tokens.tolist() == [first[: place + 1]]
    both = generate(session, np.array([[3, 1, 4], [5, 5, 5]]), 8, end_tokens=[end])
    expected = second[: second.index(end) + 1] if end in second else second
    assert both.tokens[0, place:].tolist() == [end] * (both.tokens.shape[1] - place)
    assert both.tokens[1, : len(expected)].tolist() == expected[: both.tokens.shape[1]]


def test_one_token_takes_no_step(path: Path) -> None:
    made = generate(open_session(path, "cpu"), np.array([PROMPT]), 1)
    assert made.tokens.tolist() == [continued(PROMPT, 1)]
    assert made.step_s == ()
    assert made.tokens_per_s is None


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12])
def test_pieces_give_the_logits_of_the_whole_text(path: Path, length: int) -> None:
    rng = np.random.default_rng(length)
    ids, mask = rng.integers(0, 11, (3, length)), np.ones((3, length), np.int64)
    mask[1, : length // 2] = 0
    logits = logits_in_pieces(open_session(path, "cpu"), {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(logits, logits_of(ids, mask), rtol=0, atol=1e-5)


def test_pieces_show_what_a_whole_text_does_not(tmp_path: Path) -> None:
    """A cache that holds the wrong tensor."""
    path = tmp_path / "forgets.onnx"
    past_graph(path, forgets=True)
    session = open_session(path, "cpu")
    ids = np.arange(10)[None] % 11
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = logits_of(ids, np.ones_like(ids))
    np.testing.assert_allclose(run(session, feeds)["logits"], expected, rtol=0, atol=1e-5)
    assert np.abs(logits_in_pieces(session, feeds) - expected).max() > 0.1


def test_a_past_that_is_not_given_is_empty(path: Path) -> None:
    session = open_session(path, "cpu")
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    outputs = run(session, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert outputs["present.0.key"].shape == (2, 1, 3, 4)
    np.testing.assert_allclose(outputs["present.0.value"][:, 0], 2 * TABLE[ids])
    half = {"input_ids": ids, "attention_mask": np.ones((2, 5), np.int64)}
    half["past_key_values.0.key"] = np.zeros((2, 1, 2, 4), np.float32)
    with pytest.raises(InputsError, match=r"needs input 'past_key_values\.0\.value'"):
        run(session, half)


def test_only_results_are_asked_for_and_judged(path: Path) -> None:
    session = open_session(path, "cpu")
    assert results_of(session) == ["logits"]
    ids = np.array([[1, 2, 3]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    assert list(run(session, batch, ["logits"])) == ["logits"]
    seen = []
    result = evaluate(
        path, path, [batch], lambda outputs, _: float(len(seen.append(outputs) or outputs)), "kl"
    )
    assert result.fidelity == 1
    assert [list(outputs) for outputs in seen] == [["logits"], ["logits"]]


def test_synthetic_inputs_of_a_step_have_a_mask_over_past_and_new(path: Path) -> None:
    session = open_session(path, "cpu")
    sizes = {"batch": 2, "sequence": 1, "past_sequence": 5}
    shapes = {name: array.shape for name, array in synthetic_inputs(session, sizes).items()}
    assert shapes["attention_mask"] == (2, 6)
    assert shapes["past_key_values.0.value"] == (2, 1, 5, 4)
    begun = synthetic_inputs(session, {"batch": 2, "sequence": 3})
    assert begun["past_key_values.0.key"].shape == (2, 1, 0, 4)
    with pytest.raises(InputsError, match=r"dimension 'sequence'.*--dim sequence=SIZE"):
        synthetic_inputs(session, {"batch": 2, "past_sequence": 4})


def test_sizes_by_the_names_of_hugging_face_are_the_same(path: Path) -> None:
    session = open_session(path, "cpu")
    sizes = {"batch_size": 2, "sequence_length": 1, "past_sequence_length": 5}
    shapes = {name: array.shape for name, array in synthetic_inputs(session, sizes).items()}
    assert shapes["attention_mask"] == (2, 6)
    assert shapes["past_key_values.0.value"] == (2, 1, 5, 4)


def test_a_benchmark_tells_the_length_of_the_past(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("svd2onnx_runtime.bench")  # whose name is a function in the package
    for name, known in (  # what takes seconds to measure, and is not asked about here
        ("measure_footprint", Footprint(0.0, None, None, None, None, None)),
        ("measure_roofline", Roofline(1e9, {"float32": 1e9})),
    ):
        monkeypatch.setattr(module, name, lambda *_, known=known: known)
    session = open_session(path, "cpu")
    batches = [
        synthetic_inputs(session, {"batch": 1, "sequence": sequence, "past_sequence": past})
        for sequence, past in ((4, 0), (1, 4))
    ]
    result = bench({"graph": path}, batches, "cpu", repeats=2, warmup=0)
    assert [timing.past for timing in result.batches] == [0, 4]


@pytest.mark.parametrize(
    ("ids", "mask", "count", "part"),
    [
        (np.array([1, 2]), None, 4, r"int64 input_ids \[batch, length\].*found int64 \[2\]"),
        (np.zeros((1, 0), np.int64), None, 4, r"found int64 \[1, 0\]"),
        (np.array([[1, 2]], np.int32), None, 4, "found int32"),
        (np.array([[1, 2]]), None, 0, "0 new tokens"),
        (np.array([[1, 2]]), np.ones((1, 3), np.int64), 4, r"attention_mask \[1, 2\]; found int64 \[1, 3\]"),
        (np.array([[1, 2]]), np.ones((1, 2), bool), 4, "found bool"),
    ],
    ids=["rank", "empty", "type", "count", "mask", "mask type"],
)
def test_arrays_that_do_not_fit_are_refused(
    path: Path, ids: np.ndarray, mask: np.ndarray | None, count: int, part: str
) -> None:
    with pytest.raises(InputsError, match=part) as caught:
        generate(open_session(path, "cpu"), ids, count, attention_mask=mask)
    assert "\n" not in str(caught.value)


def test_a_token_that_the_network_does_not_know_fails_in_one_line(path: Path) -> None:
    with pytest.raises(GraphError, match="failed while running") as caught:
        generate(open_session(path, "cpu"), np.array([[1, 99]]), 4)
    assert "\n" not in str(caught.value)


def test_graphs_without_a_whole_cache_are_refused(tmp_path: Path) -> None:
    token_graph(tmp_path / "tokens.onnx")
    with pytest.raises(GraphError, match=r"past_key_values.*--with-past"):
        generate(open_session(tmp_path / "tokens.onnx", "cpu"), np.array([PROMPT]), 4)
    past_graph(tmp_path / "half.onnx", presents=False)
    half = open_session(tmp_path / "half.onnx", "cpu")
    with pytest.raises(GraphError, match=r"gives no 'present\.0\.key'"):
        past_names(half)
    with pytest.raises(GraphError, match=r"gives no 'present\.0\.key'"):
        generate(half, np.array([PROMPT]), 4)


def test_the_graph_of_these_tests_depends_on_all_of_its_past() -> None:
    assert len({tuple(continued([first, 4], 3)) for first in range(11)}) > 3
    assert TABLE.shape[1] == HEAD.shape[0]
