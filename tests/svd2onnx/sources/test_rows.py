"""Batches of fewer samples or more: only what has samples is cut or repeated."""

import torch

from svd2onnx.sources.rows import exact_rows, first_rows, row_axes, row_count, slices, small

X = torch.arange(6).reshape(3, 2)
STATE = torch.arange(12).reshape(2, 3, 2)
EDGES, SCALE, LABELS = torch.zeros(3, 5), torch.tensor(2.0), torch.arange(3)
SHAPES = {"x": {0: "batch"}, "state": {1: "batch"}, "edges": {1: "edges"}}
BATCH = {"x": X, "state": STATE, "edges": EDGES, "scale": SCALE, "labels": LABELS}
AXES = row_axes({name: BATCH[name] for name in ("x", "state", "edges", "scale")}, SHAPES)


def test_samples_lie_along_the_axis_called_batch() -> None:
    assert AXES == {"x": 0, "state": 1, "edges": None, "scale": None}
    assert row_count(BATCH, AXES) == 3
    dim = torch.export.Dim("batch")
    assert row_axes({"x": X}, {"x": {0: dim}}) == {"x": 0}  # type: ignore[dict-item]
    assert row_axes({"x": X}, {"x": {0: "n"}}, "n") == {"x": 0}
    assert row_axes({"x": X}, {"x": {0: "n"}}) == {"x": None}
    assert row_axes({"x": X}, {"x": {1: "batch_size"}}) == {"x": 1}


def test_rows_come_again_until_there_are_enough() -> None:
    many = exact_rows(BATCH, 8, AXES)
    assert many["x"].tolist() == X[[0, 1, 2, 0, 1, 2, 0, 1]].tolist()
    assert many["state"].tolist() == STATE[:, [0, 1, 2, 0, 1, 2, 0, 1]].tolist()
    assert many["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert many["edges"] is EDGES  # though it has as many rows as the batch
    assert many["scale"] is SCALE


def test_the_first_rows_are_no_more_than_there_are() -> None:
    few = first_rows(BATCH, 2, AXES)
    assert (few["x"].tolist(), few["state"].shape, few["labels"].tolist()) == (
        X[:2].tolist(),
        (2, 2, 2),
        [0, 1],
    )
    assert few["edges"] is EDGES
    assert len(first_rows(BATCH, 100, AXES)["x"]) == 3


def test_parts_are_the_batch_in_order() -> None:
    parts = slices(BATCH, 2, AXES)
    assert [len(part["x"]) for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part["state"] for part in parts], 1), STATE)


def test_what_has_no_samples_stays_whole() -> None:
    axes = {"edges": None, "x": None}
    assert exact_rows(BATCH, 8, axes) is first_rows(BATCH, 1, axes) is BATCH
    assert slices(BATCH, 1, axes) == [BATCH]
    assert row_count(BATCH, axes) == 3
    assert row_count(BATCH, {"scale": None}) == 1


def test_small_parts_are_equal_and_none_has_a_single_sample() -> None:
    batch = {"x": torch.arange(70).reshape(7, 10), "labels": torch.arange(7)}
    parts = small(batch, 25, {"x": 0})
    assert [part["labels"].tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]
    assert torch.cat([part["x"] for part in parts]).equal(batch["x"])
    assert [len(part["x"]) for part in small(batch, 1, {"x": 0})] == [3, 2, 2]
    assert small(batch, 70, {"x": 0}) == [batch]
    assert small(batch, 1, {"x": None}) == [batch]
