"""What every contender is given: sizes are counted in bits per Linear weight, calibration has no padding."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from benchmarks.graphs import float_shapes, tidy
from benchmarks.task import Task, unpadded

WEIGHTS = 64 * 128 + 128 * 64


def test_float_graph_has_32_bits_a_weight(task: Task, tmp_path: Path) -> None:
    bare = tmp_path / "bare.onnx"
    tidy(task.graph, bare)
    size = bare.stat().st_size
    assert task.linear_weights == WEIGHTS
    assert task.bits_per_weight(size) == 32
    assert task.bits_per_weight(size - 28 * WEIGHTS // 8) == 4
    assert task.other_bytes > 4 * 160 * 64  # the table


def test_tables_stay_in_float(task: Task) -> None:
    assert task.kept == ("table",)
    assert task.table_shapes == {(160, 64)} <= float_shapes(task.graph)


def test_calibration_holds_the_real_tokens_once(task: Task) -> None:
    assert sorted(feed["ids"].shape for feed in task.calibration) == [(5, 6), (5, 9), (6, 4)]
    assert all(feed["attention_mask"].all() for feed in task.calibration)


def test_rows_are_cut_to_their_length_and_keep_their_labels() -> None:
    ids = np.arange(6).reshape(2, 3)
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    short, long = unpadded([{"ids": ids, "attention_mask": mask, "label": np.array([7, 8])}])
    assert (short["ids"].tolist(), short["label"].tolist()) == ([[0, 1]], [7])
    assert (long["ids"].tolist(), long["label"].tolist()) == ([[3, 4, 5]], [8])


def test_batches_do_not_grow() -> None:
    feed = {"ids": np.zeros((4, 2)), "attention_mask": np.ones((4, 2), np.int64)}
    assert [len(batch["ids"]) for batch in unpadded([feed] * 3)] == [4, 4, 4]


@pytest.mark.parametrize(
    "feed",
    [{"x": np.zeros((2, 3))}, {"attention_mask": np.array([[0, 1, 1]])}],
    ids=["no mask", "padding on the left"],
)
def test_other_batches_stay_as_they_are(feed: dict[str, np.ndarray]) -> None:
    assert list(unpadded([feed])) == [feed]


def test_task_can_be_sent_to_another_process(task: Task) -> None:
    copy = pickle.loads(pickle.dumps(task))
    assert copy.bits_per_weight(task.other_bytes) == 0
    assert copy.model_file.objective == "cosine"
