"""Every output is measured: one by the objective, the others by what they hold."""

import numpy as np
import pytest

from svd2onnx_runtime import InputsError, OutputErrors, OutputFidelity

FLOATS, LABELS = np.array([[3.0, 4.0], [6.0, 8.0]]), np.array([1, 2, 3, 4])


def collected(pairs: list[tuple[np.ndarray, np.ndarray]], **options: str) -> dict[str, OutputFidelity]:
    """The outputs a, b, ... as (reference, output), in one batch."""
    errors = OutputErrors("abcdef"[: len(pairs)], options.pop("objective", "mse"), **options)
    errors.add([reference for reference, _ in pairs], [output for _, output in pairs], {})
    return {own.name: own for own in errors.every()}


def test_floats_by_their_size_and_labels_by_those_that_are_equal() -> None:
    found = collected(
        [(FLOATS, FLOATS), (FLOATS, FLOATS + np.array([[0, 1], [0, 2]])), (LABELS, np.array([1, 2, 3, 9]))],
        objective="cosine",
    )
    assert [(own.objective, own.fidelity) for own in found.values()] == [
        ("cosine", 1.0),
        ("mse", pytest.approx(1 - 5 / 125)),
        ("equal elements", 0.75),
    ]


def test_the_first_of_floats_is_judged_unless_another_is_named() -> None:
    pairs = [(LABELS, LABELS), (FLOATS, FLOATS), (FLOATS, 2 * FLOATS)]
    for options, name, error in (({}, "b", 0), ({"output": "c"}, "c", 1)):
        errors = OutputErrors("abc", "mse", **options)
        errors.add(*map(list, zip(*pairs, strict=True)), {})
        judged, samples = errors.judged()
        assert (judged, samples.tolist()) == (name, [error, error])


def test_an_unknown_output_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputsError, match=r"'boxes'.*logits, masks"):
        OutputErrors(["logits", "masks"], "mse", "boxes")


def test_sums_go_over_the_batches() -> None:
    errors = OutputErrors("ab", "mse")
    for change in (0.0, 1.0):
        errors.add([FLOATS, FLOATS], [FLOATS, FLOATS + change], {})
    assert errors.every()[1].mean_error == pytest.approx(4 / 250)


def test_constants_have_nothing_to_lose_and_numbers_without_an_axis_count() -> None:
    anchors, energy = np.full((3, 2), 5e4), np.array(2.0)
    found = collected([(FLOATS, FLOATS), (anchors, anchors), (energy, 2.2 * energy / 2)])
    assert (found["b"].fidelity, found["c"].mean_error) == (1, pytest.approx(0.01))


def test_masked_values_are_counted_and_named() -> None:
    reference = FLOATS.copy()
    reference[:, 1] = -np.inf
    output = reference + np.array([[0.3, 0], [0, 0]])
    for judged in (0, 1):
        pairs = [(FLOATS, FLOATS), (FLOATS, FLOATS)]
        pairs[judged] = reference, output
        found = list(collected(pairs).values())[judged]
        assert (found.masked, found.masks) == (0.5, ("-inf",))
        assert found.mean_error == pytest.approx(0.005 if judged == 0 else 0.09 / 45)
    big = np.full((1, 4), -1e9)
    assert collected([(big, big)])["a"].masks == ("-1e9",)


@pytest.mark.parametrize("broken", [np.inf, -np.inf])
def test_an_infinity_of_one_alone_loses_the_batch(broken: float) -> None:
    output = FLOATS.copy()
    output[0, 0] = broken
    assert collected([(FLOATS, FLOATS), (FLOATS, output)])["b"].mean_error >= 1
    assert collected([(FLOATS, FLOATS), (output, FLOATS)])["b"].mean_error >= 1


def test_another_shape_is_lost_and_nan_is_refused() -> None:
    assert collected([(FLOATS, FLOATS), (FLOATS, FLOATS[:1])])["b"].fidelity == 0
    assert collected([(FLOATS, FLOATS), (LABELS, LABELS[:1])])["b"].fidelity == 0
    nan = FLOATS * np.nan
    with pytest.raises(InputsError, match="'b' holds NaN"):
        collected([(FLOATS, FLOATS), (nan, nan)])


def test_graphs_with_other_outputs_are_refused() -> None:
    errors = OutputErrors("ab", "mse")
    with pytest.raises(InputsError, match=r"2 outputs \(a, b\), found 1"):
        errors.add([FLOATS, FLOATS], [FLOATS], {})
