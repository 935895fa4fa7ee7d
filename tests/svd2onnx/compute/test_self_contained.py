"""Tensors that are sent elsewhere take nothing else along, and lie there as they lie here."""

import pickle

import torch

from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedRows
from svd2onnx.compute.self_contained import self_contained
from svd2onnx.values.schema import LayerForm


def test_whole_values_are_returned_as_they_are() -> None:
    statistics = LayerStatistics(
        3, mean=torch.ones(4), probes=(ProbedRows(torch.ones(2), torch.ones(2), (2,), 2),)
    )
    for value in (
        torch.ones(3, 4),
        torch.ones(3, 4).T,
        statistics,
        (1, "a", LayerForm()),
        [statistics],
        None,
    ):
        assert self_contained(value) is value


def test_parts_of_others_and_what_lies_at_odd_places_are_copied_in_their_layout() -> None:
    large = torch.arange(10_000.0)
    part, odd = large[:12].view(3, 4).T, large[1:]
    statistics = LayerStatistics(3, mean=odd, probes=(ProbedRows(part, odd, (2,), 2),))
    copied = self_contained([statistics])[0]
    assert torch.equal(copied.mean, odd)
    assert copied.mean.data_ptr() % 64 == 0
    assert torch.equal(copied.probes[0].x, part)
    assert copied.probes[0].x.stride() == part.stride()
    assert len(pickle.dumps(self_contained(part))) < 1000 < len(pickle.dumps(part))


def test_a_copy_sent_elsewhere_is_laid_out_and_placed_alike() -> None:
    sent = self_contained(torch.randn(100, 64).T[3:50])
    came = pickle.loads(pickle.dumps(sent))
    assert came.stride() == sent.stride()
    assert came.data_ptr() % 64 == sent.data_ptr() % 64 == 0
    assert torch.equal(came, sent)
