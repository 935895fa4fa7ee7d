"""Networks in memory and their batches, before anything is compressed."""

import copy
import functools
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

from svd2onnx.sources.live import NOT_HELD_OUT, live_source
from svd2onnx.sources.model_file import Batch
from svd2onnx.sources.source import Source
from svd2onnx.values.errors import SourceError
from svd2onnx.values.settings import Settings
from tests.svd2onnx.networks import Mlp


class Masked(nn.Module):
    """ids and mask [batch, length] are needed, scale is not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 16)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.table(ids) * mask[..., None] * scale


class AllOptional(nn.Module):
    def forward(self, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor | None:
        return ids


def numbered(*sizes: int) -> list[Tensor]:
    """Batches of samples [64] that hold their own number."""
    return list(torch.arange(sum(sizes)).float()[:, None].expand(-1, 64).split(sizes))


def source_of(calibration: Any, evaluation: Any = None, network: Any = None, samples: int = 1024) -> Source:
    return live_source(
        Mlp() if network is None else network, calibration, evaluation, Settings(calibration_samples=samples)
    )


def numbers(source: Source, split: str) -> list[int]:
    return [int(row[0]) for batch in source.inputs(split) for row in batch["x"]]


def test_every_fifth_sample_is_held_out_across_batches() -> None:
    source = source_of(numbered(4, 3, 1, 4))
    assert numbers(source, "evaluation") == [4, 9]
    assert numbers(source, "calibration") == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert numbers(source, "recovery") == numbers(source, "calibration")
    assert source.warnings == ()


def test_with_evaluation_nothing_is_held_out() -> None:
    source = source_of(numbered(5, 5), iter(numbered(2)))
    assert numbers(source, "calibration") == list(range(10))
    assert numbers(source, "evaluation") == numbers(source, "evaluation") == [0, 1]


def test_very_few_samples_serve_for_both_and_that_is_said() -> None:
    source = source_of(numbered(4))
    assert numbers(source, "evaluation") == numbers(source, "calibration") == [0, 1, 2, 3]
    assert source.warnings == (NOT_HELD_OUT,)


def test_batches_of_parts_that_are_no_rows_stay_whole() -> None:
    """As of graphs: ids of nodes, and edges between them."""
    given = [{"ids": torch.full((3,), number), "mask": torch.ones(2, 7)} for number in range(6)]
    source = source_of(given, network=Masked())
    (judged,) = source.inputs("evaluation")
    assert judged["ids"].tolist() == [4, 4, 4]
    assert [int(batch["ids"][0]) for batch in source.inputs("calibration")] == [0, 1, 2, 3, 5]


class OfOneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 64)


def test_batches_stay_whole_where_forward_takes_no_other_size() -> None:
    source = source_of(numbered(*[2] * 10), network=OfOneSize())
    assert numbers(source, "evaluation") == [8, 9, 18, 19]
    assert {len(batch["x"]) for batch in source.inputs("calibration")} == {2}
    assert source.warnings == ()


def test_samples_without_an_axis_of_batches_are_not_cut() -> None:
    source = source_of([torch.full((64,), float(i)) for i in range(10)])
    assert [tuple(batch["x"].shape) for batch in source.inputs("evaluation")] == [(64,)] * 2
    assert [float(batch["x"][0]) for batch in source.inputs("evaluation")] == [4, 9]


class Spread(nn.Module):
    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return tensors[0]


def test_arguments_without_names_are_told() -> None:
    with pytest.raises(SourceError, match=r"forward takes \*tensors.*, \*\*named.*, which names none"):
        source_of([X], network=Spread())


def test_an_endless_iterable_is_read_once_as_far_as_samples_are_asked_for() -> None:
    read = 0

    def endless() -> Iterator[Tensor]:
        nonlocal read
        while True:
            read += 1
            yield torch.randn(8, 64)

    source = source_of(endless(), numbered(2), samples=20)
    assert len(numbers(source, "calibration")) == 24
    list(source.inputs("recovery"))
    assert read == 3


IDS, MASK = torch.tensor([[1, 2]]), torch.ones(1, 2)


@pytest.mark.parametrize(
    "batch",
    [
        (IDS, MASK),
        [IDS, MASK, torch.tensor([3])],
        {"mask": MASK, "text": ["unused"], "ids": IDS},
    ],
    ids=["tuple", "with a label", "dict"],
)
def test_batches_are_named_in_the_order_of_forward(batch: Any) -> None:
    (named,) = source_of([batch], network=Masked()).inputs("calibration")
    assert list(named) == ["ids", "mask"]
    assert torch.equal(named["ids"], IDS)
    assert torch.equal(named["mask"], MASK)


def test_a_lone_tensor_is_the_first_argument_even_where_none_is_required() -> None:
    (named,) = source_of([IDS], network=AllOptional()).inputs("calibration")
    assert list(named) == ["ids"]
    with pytest.raises(SourceError, match="forward takes ids, mask; expected a tensor"):
        source_of([(IDS, MASK)], network=AllOptional())


def test_batches_are_copies_in_float32() -> None:
    buffer = torch.zeros(4, 64, dtype=torch.float64)

    def refilled() -> Iterator[Tensor]:
        for number in range(2):
            yield buffer.fill_(number)

    source = source_of(refilled(), numbered(1))
    batches: list[Batch] = list(source.inputs("calibration"))
    assert [float(batch["x"].mean()) for batch in batches] == [0, 1]
    batches[0]["x"].add_(5)
    assert batches[0]["x"].dtype == torch.float32
    assert float(buffer.max()) == 1


X = torch.zeros(6, 64)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (X, "expected calibration to be an iterable of batches, found a value of type Tensor"),
        ({"x": X}, "expected calibration to be an iterable of batches, found a dict of x"),
        (7, "found a value of type int"),
        (TensorDataset(X), "TensorDataset, which gives single samples; .*DataLoader"),
        ([], "calibration gave no batch"),
        ([X, "text"], "batch 1 of calibration is a value of type str; expected a tensor, a tuple or list"),
        ([{"y": X}], "batch 0 of calibration is a dict of y, and forward takes x, of which it lacks x"),
        ([[]], "a list of nothing, and forward takes x"),
        ([X.numpy()], "is a value of type ndarray"),
        ([(X.tolist(), X)], "has a list of list, list, list, ... for 'x'; expected a tensor"),
        ([torch.tensor(1.0)], r"has shape \[\] for 'x'; expected samples along the first axis"),
        ([X[:0]], r"has shape \[0, 64\] for 'x'"),
        ([X.log() * 0], "has NaN in 'x'"),
    ],
)
def test_a_wrong_batch_is_one_line(calibration: Any, message: str) -> None:
    for given in ((calibration, None), (numbered(5), calibration)):
        with pytest.raises(SourceError, match=message.replace("calibration", "(calibration|evaluation)")):
            source_of(*given)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("network.pt", "expected a torch.nn.Module to compress, found str"),
        (nn.LazyLinear(8), "cannot be copied .* run it once if it has lazy layers"),
    ],
)
def test_a_wrong_network_is_one_line(network: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        live_source(network, [X], None, Settings()).build()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(weights="here"),
        Settings(random_weights=True),
        Settings(input_shape=("1,64",)),
        Settings(trust_pickle=True),
    ],
)
def test_what_is_for_files_is_refused(settings: Settings) -> None:
    with pytest.raises(SourceError, match="was given, which is for networks in files"):
        live_source(Mlp(), [X], None, settings)


def test_each_copy_is_new_and_the_network_stays_as_it_is() -> None:
    network = Mlp().double()
    network.second.weight = network.first.weight = nn.Parameter(torch.randn(64, 64, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    source = source_of([X], network=network)
    first, second = source.build(), source.build()
    assert not first.training
    assert first.get_parameter("first.weight").dtype == torch.float32
    assert first.get_submodule("first").weight is first.get_submodule("second").weight
    with torch.no_grad():
        first.get_parameter("first.weight").zero_()
    assert float(second.get_parameter("first.weight").abs().max()) > 0
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(own, before[name]) for name, own in network.state_dict().items())


class Guarded(nn.Module):
    """x [batch, 64] -> same; it holds what ``copy.deepcopy`` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(64, 64), nn.Embedding(4, 64, max_norm=0.1)
        self.lock, self.tensors = threading.Lock(), {"scale": self.layer.weight.mean() + 1}
        self.generators = [torch.Generator(), iter(())]
        self.double = functools.partial(self.twice, offset=1.0)

    def twice(self, x: Tensor, offset: float) -> Tensor:
        return 2 * self.layer(x) + offset

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.double(x) * self.tensors["scale"] + self.table(torch.zeros_like(x[:, 0]).long())


def test_a_network_with_what_cannot_be_copied() -> None:
    network, x = Guarded(), torch.randn(3, 64)
    with pytest.raises(TypeError, match="lock"):
        copy.deepcopy(network)
    made = source_of([x], network=network).build()
    table = network.table.weight.detach().clone()
    with torch.no_grad():
        got = made(x)
        assert torch.equal(network.table.weight, table), "the copy wrote into the network's weights"
        torch.testing.assert_close(got, network(x))
        network.layer.weight.zero_()
        torch.testing.assert_close(made(x), got, msg="the copy calls a layer of the network")
    assert network.training
    assert network.tensors["scale"].requires_grad


def test_layers_beside_what_cannot_be_copied_are_refused() -> None:
    """Shared, they would be run in the mode that they are in."""
    network = Mlp()
    network.parts = {"lock": threading.Lock(), "norm": nn.BatchNorm1d(64)}
    with pytest.raises(SourceError, match=r"cannot be copied .* hold no layers together with"):
        source_of([X], network=network).build()


def test_a_compiled_network_is_compressed_as_what_it_was_made_of() -> None:
    source = source_of([X], network=torch.compile(Mlp(), backend="eager"))
    assert type(source.build()) is Mlp
    assert source.name == "Mlp"


def test_a_forward_that_calls_the_network_itself_is_refused() -> None:
    """A copy would run the original, in training as it may be, and change it."""
    network = nn.Sequential(Mlp(), nn.ReLU())
    original = network[0].forward
    network[0].forward = lambda x: original(x) * 2
    with pytest.raises(
        SourceError, match="the forward of 0 was replaced by a function that calls the network"
    ):
        source_of([X], network=network)


def test_a_forward_bound_to_the_network_goes_with_the_copy() -> None:
    network = Mlp()
    network.forward = types.MethodType(lambda self, x: self.first(x) * 2, network)
    copy = source_of([X], network=network).build()
    with torch.no_grad():
        network.first.weight.zero_()
    x = torch.randn(2, 64)
    first = copy.get_submodule("first")
    torch.testing.assert_close(copy(x), first(x) * 2)
    assert float(first(x).abs().max()) > 1


class Kept(nn.Module):
    """Its first layer is pruned and its second normalized; it keeps what it computed, to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.pruned = prune.random_unstructured(nn.Linear(64, 64), "weight", 0.5)
        with pytest.warns(FutureWarning):
            self.normed = torch.nn.utils.weight_norm(nn.Linear(64, 64))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.normed(torch.relu(self.pruned(x)))
        self.seen.append(y)
        return y


def test_tensors_computed_with_gradients_are_copied_too() -> None:
    network, x = Kept(), torch.randn(2, 64)
    expected = network(x)
    copy = source_of([X], network=network).build()
    torch.testing.assert_close(copy(x), expected)
    with torch.no_grad():
        copy.get_parameter("normed.weight_v").zero_()
    assert network.seen[0].requires_grad
    torch.testing.assert_close(network(x), expected)


class Steps(nn.Module):
    """x [time, batch, 64] -> [time, batch, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


def test_steps_in_time_are_not_cut_and_not_called_a_batch() -> None:
    torch.manual_seed(0)
    source = source_of([torch.randn(6, 4 + i % 2, 64) for i in range(10)], network=Steps().eval())
    assert [len(batch["x"]) for batch in source.inputs("evaluation")] == [6, 6]
    assert source.dynamic_shapes == {"x": {0: "dim_0", 1: "dim_1"}}
    (warning,) = source.warnings
    assert "holds no samples" in warning
