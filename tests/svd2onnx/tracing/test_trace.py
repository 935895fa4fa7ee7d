"""The graph computes what the network does, and its layers are found by what computes with their weights."""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from svd2onnx.graph.export import export_float
from svd2onnx.network.layers import discover, weight_of
from svd2onnx.network.outputs import tensors_of
from svd2onnx.tracing.trace import fixed_axes, trace
from svd2onnx.values.errors import ExportError, SourceError

Forward = Callable[[Any, Tensor], Any]
X = {"x": torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))}
AXES = {"x": {0: "batch", 1: "sequence"}}


class Network(nn.Module):
    """``forward`` of x [batch, sequence, 64] and the parts that ``make`` puts into the network."""

    def __init__(self, make: Mapping[str, Callable[[], Any]], forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, part in make.items():
            setattr(self, name, part())
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def traced(network: nn.Module, arguments: dict[str, Tensor] = X) -> fx.GraphModule:
    """The graph, which was compared with the network on sizes that it was not traced with."""
    graph = trace(network.eval(), arguments, AXES)
    for x in (X["x"], torch.randn(2, 7, 64)):
        expected, found = (tensors_of(own(x=x)) for own in (network, graph))
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    return graph


def parameter(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(*shape) / 8)


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(64, 80), "weight", 0.5)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter that is added to its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(80, 64) / 8), nn.Parameter(torch.randn(80))
        self.a, self.b = nn.Parameter(torch.randn(4, 64)), nn.Parameter(torch.randn(80, 4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight + self.b @ self.a, self.bias)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def half() -> nn.Parameter:
    return nn.Parameter(torch.randn(80, 64).half() / 8)


PRODUCTS: dict[str, tuple[dict[str, Callable[[], Any]], Forward, tuple[int, int]]] = {
    "linear": ({"w": lambda: nn.Linear(64, 80)}, lambda m, x: m.w(x), (80, 64)),
    "subclass": ({"w": lambda: Scaled(64, 80)}, lambda m, x: m.w(x), (80, 64)),
    "function": ({"w": parameter(80, 64)}, lambda m, x: functional.linear(x, m.w), (80, 64)),
    "matrix on the right": ({"w": parameter(64, 80)}, lambda m, x: x @ m.w, (80, 64)),
    "transposed matrix": ({"w": parameter(80, 64)}, lambda m, x: x @ m.w.T, (80, 64)),
    "matrix on the left": ({"w": parameter(80, 64)}, lambda m, x: m.w @ x.transpose(1, 2), (80, 64)),
    "addmm": (
        {"w": parameter(64, 80), "b": parameter(80)},
        lambda m, x: torch.addmm(m.b, x.reshape(-1, 64), m.w),
        (80, 64),
    ),
    "addmm on the left": (
        {"w": parameter(80, 64), "b": parameter(80, 1)},
        lambda m, x: torch.addmm(m.b, m.w, x.reshape(-1, 64).T),
        (80, 64),
    ),
    "bias that depends on x": (
        {"w": parameter(80, 64)},
        lambda m, x: functional.linear(x, m.w, x.mean((0, 1)).repeat(2)[:80]),
        (80, 64),
    ),
    "einsum": ({"w": parameter(64, 80)}, lambda m, x: torch.einsum("bld,df->blf", x, m.w), (80, 64)),
    "einsum that moves axes": (
        {"w": parameter(64, 4, 20)},
        lambda m, x: torch.einsum("bld,dhk->bhlk", x, m.w),
        (80, 64),
    ),
    "einsum over two axes": (
        {"w": parameter(80, 4, 16)},
        lambda m, x: torch.einsum("fhk,...hk->...f", m.w, x.unflatten(-1, (4, 16))),
        (80, 64),
    ),
    "weight norm": (
        {"w": lambda: parametrizations.weight_norm(nn.Linear(64, 80))},
        lambda m, x: m.w(x),
        (80, 64),
    ),
    "spectral norm": (
        {"w": lambda: parametrizations.spectral_norm(nn.Linear(64, 80))},
        lambda m, x: m.w(x),
        (80, 64),
    ),
    "pruning mask": ({"w": pruned}, lambda m, x: m.w(x), (80, 64)),
    "adapter": ({"w": Adapted}, lambda m, x: m.w(x), (80, 64)),
    "half precision": ({"w": half}, lambda m, x: functional.linear(x, m.w.float()), (80, 64)),
    "part of a packed weight": (
        {"w": parameter(160, 64)},
        lambda m, x: functional.linear(x, m.w[80:]),
        (80, 64),
    ),
    "no gradients": ({"w": lambda: nn.Linear(64, 80)}, torch.no_grad()(lambda m, x: m.w(x)), (80, 64)),
    "keyword": ({"w": lambda: nn.Linear(64, 80)}, lambda m, x: m.w(input=x), (80, 64)),
}


@pytest.mark.parametrize(("make", "forward", "shape"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_with_a_constant_are_linear_layers(
    make: dict[str, Callable[[], Any]], forward: Forward, shape: tuple[int, int]
) -> None:
    graph = traced(Network(make, forward))
    (site,) = [site for site in discover(graph, X) if site.kind == "linear"]
    assert (site.name, site.shape, site.skip_reason) == ("w", shape, None)
    assert weight_of(graph, site).is_contiguous()


STORED: dict[str, tuple[dict[str, Callable[[], Any]], Forward, dict[str, tuple[int, int]]]] = {
    "transposed convolution": (
        {"w": lambda: nn.ConvTranspose1d(64, 32, 4, 2)},
        lambda m, x: m.w(x.transpose(1, 2)),
        {"w": (64, 128)},
    ),
    "lstm": (
        {"w": lambda: nn.LSTM(64, 32, batch_first=True)},
        lambda m, x: m.w(x)[0],
        {"w.weight_ih_l0": (128, 64), "w.weight_hh_l0": (128, 32)},
    ),
    "gru in both directions": (
        {"w": lambda: nn.GRU(64, 64, batch_first=True, bidirectional=True)},
        lambda m, x: m.w(x)[0],
        {f"w.weight_{part}_l0{way}": (192, 64) for way in ("", "_reverse") for part in ("ih", "hh")},
    ),
    "rnn": (
        {"w": lambda: nn.RNN(64, 64)},
        lambda m, x: m.w(x)[1],
        {"w.weight_ih_l0": (64, 64), "w.weight_hh_l0": (64, 64)},
    ),
    "one step of an lstm": (
        {"w": lambda: nn.LSTMCell(64, 32)},
        lambda m, x: m.w(x[:, 0])[0],
        {"w.weight_ih": (128, 64), "w.weight_hh": (128, 32)},
    ),
    "experts": (
        {"w": parameter(4, 64, 32)},
        lambda m, x: x.unsqueeze(1) @ m.w,
        {"w": (256, 32)},
    ),
}


@pytest.mark.parametrize(("make", "forward", "shapes"), STORED.values(), ids=STORED)
def test_weights_of_other_operators_are_stored(
    make: dict[str, Callable[[], Any]], forward: Forward, shapes: dict[str, tuple[int, int]]
) -> None:
    graph = traced(Network(make, forward))
    assert {site.name: site.shape for site in discover(graph, X) if site.kind == "stored"} == shapes


def test_what_vmap_goes_over_is_one_batch() -> None:
    """A network over the samples, and the members of an ensemble."""
    network = Network(
        {"w": lambda: nn.Linear(64, 64), "members": parameter(3, 64, 64)},
        lambda m, x: torch.func.vmap(lambda own: torch.func.vmap(m.w)(x) @ own)(m.members).mean(0),
    )
    kinds = {site.name: site.kind for site in discover(traced(network), X)}
    assert kinds == {"w": "linear", "members": "stored"}


def test_rows_of_a_largest_norm_are_scaled_at_once() -> None:
    """PyTorch writes them back into its table, which the graph does not."""
    torch.manual_seed(0)
    network = nn.Embedding(10, 64, max_norm=2.0).eval().requires_grad_(False)
    table = network.weight.clone()
    graph = trace(network, {"input": torch.arange(4)}, {"input": {0: "batch"}})
    assert torch.equal(network.weight, table)
    assert not any("renorm_" in str(node.target) for node in graph.graph.nodes)  # ONNX has none
    ids = torch.arange(10)
    found = graph(ids)
    torch.testing.assert_close(found, network(ids))
    assert float(found.norm(dim=-1).max()) == pytest.approx(2, abs=1e-4)


def writes(m: Any, x: Tensor) -> Tensor:
    m.table[1:3].zero_()
    m.table.t()[0].copy_(x.mean((0, 1)))
    return m.w(x) + torch.nn.functional.linear(x, m.table)


def test_what_is_written_through_a_view_is_no_weight_and_no_state() -> None:
    network = Network(
        {"w": lambda: nn.Linear(64, 64), "table": lambda: nn.Buffer(torch.ones(64, 64))}, writes
    )
    graph = trace(network.eval(), X, AXES)
    for x in (X["x"], torch.randn(2, 7, 64)):
        found = graph(x)
        assert torch.equal(network.get_buffer("table")[0, :1], torch.ones(1))
        torch.testing.assert_close(found, copy.deepcopy(network)(x), rtol=1e-5, atol=1e-5)


def test_packed_attention_is_two_linear_layers() -> None:
    network = Network(
        {"a": lambda: nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)}, lambda m, x: m.a(x)
    )
    names = {site.name: site.shape for site in discover(traced(network), X) if site.kind == "linear"}
    assert names == {
        "a.self_attn.in_proj": (192, 64),
        "a.self_attn.out_proj": (64, 64),
        "a.linear1": (96, 64),
        "a.linear2": (64, 96),
    }


def test_tied_weights_stay_one_and_are_called_as_their_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    graph = trace(Tied().eval(), {"ids": torch.zeros(2, 3, dtype=torch.int64)}, {"ids": {0: "batch"}})
    assert graph.get_submodule("table").weight is graph.get_submodule("head").weight


def test_the_network_stays_as_it_was() -> None:
    network = Network(
        {"w": lambda: nn.Linear(64, 64), "norm": lambda: nn.BatchNorm1d(64)},
        lambda m, x: m.norm(m.w(x).transpose(1, 2)),
    ).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    graph = traced(network)
    for tensor in graph.parameters():
        with torch.no_grad():
            tensor.requires_grad_(False).data = torch.zeros_like(tensor)
    assert all(own.requires_grad for own in network.parameters())
    assert not network._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_state_that_does_not_reach_the_output_is_left_behind() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(64, 64)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.w(x)

    network = Counts()
    graph = traced(network)
    calls = network.calls.clone()
    graph(x=X["x"])
    assert torch.equal(network.calls, calls)


def test_outputs_keep_their_names() -> None:
    class Result(NamedTuple):
        scores: Tensor
        parts: list[Tensor]

    network = Network({"w": lambda: nn.Linear(64, 64)}, lambda m, x: Result(m.w(x), [x + 1, x * 2]))
    assert list(traced(network)(x=X["x"])) == ["scores", "parts.0", "parts.1"]


def test_an_axis_that_forward_fixes_is_known() -> None:
    network = Network({"w": parameter(5, 64)}, lambda m, x: x + m.w)
    graph = trace(network.eval(), X, AXES)
    assert fixed_axes(graph.graph, AXES) == {"x": {1: 5}}


def test_the_length_of_a_tensor_fixes_nothing() -> None:
    network = Network(
        {"w": lambda: nn.Linear(64, 64), "start": parameter(1, 1, 64)},
        lambda m, x: {"all": m.w(torch.cat([m.start.expand(len(x), -1, -1), x], 1))},
    )
    graph = traced(network)
    assert fixed_axes(graph.graph, AXES) == {}
    assert list(graph(x=X["x"])) == ["all"]
    assert [site.name for site in discover(graph, X) if site.kind == "linear"] == ["w"]


def rotated(m: Any, x: Tensor) -> Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], 4, -1, 2))
    turned = z * m.turns[: x.shape[1], None] * 2
    turned = turned.transpose(-1, -2) * torch.polar(x.mean(-1), x.mean(-1))[..., None, None]
    return (
        m.w(torch.view_as_real(turned.transpose(2, 3)).flatten(2))
        + turned.real.flatten(2).mean(-1)[..., None]
    )


def test_complex_numbers_become_pairs() -> None:
    def turns() -> nn.Buffer:
        angles = torch.outer(torch.arange(16.0), 0.5 ** torch.arange(8.0))
        return nn.Buffer(torch.polar(torch.ones_like(angles), angles))

    graph = traced(Network({"w": lambda: nn.Linear(64, 64), "turns": turns}, rotated))
    assert not any(tensor.is_complex() for tensor in graph.buffers())
    assert not any("complex" in str(node.target) for node in graph.graph.nodes)


def test_complex_numbers_of_other_operators_stay() -> None:
    graph = traced(Network({"w": lambda: nn.Linear(64, 64)}, lambda m, x: torch.fft.fft(m.w(x)).abs()))
    assert any("fft" in str(node.target) for node in graph.graph.nodes)


REFUSED: dict[str, tuple[Forward, str]] = {
    "decides by values": (
        lambda m, x: x if x.sum() > 0 else -x,
        r"forward decides by the values of a tensor at \S*test_trace\.py:\d+ \(.*use torch\.where",
    ),
    "autocast": (
        lambda m, x: torch.autocast("cpu", torch.bfloat16)(m.w)(x),
        "forward computes in bfloat16 under torch.autocast",
    ),
    "generator": (
        lambda m, x: m.w(x) + torch.rand(64, generator=torch.Generator().manual_seed(1)),
        "draws random numbers from a torch.Generator",
    ),
    "no tensor": (lambda m, x: None, "expected tensors from the network's forward"),
}


@pytest.mark.parametrize(("forward", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_told_in_one_line(forward: Forward, told: str) -> None:
    with pytest.raises(ExportError, match=told) as caught:
        trace(Network({"w": lambda: nn.Linear(64, 64)}, forward).eval(), X, AXES)
    assert "\n" not in str(caught.value)


def test_a_number_less_a_tensor_of_integers_is_exported(tmp_path: Path) -> None:
    """As masks are made: 1.0 - mask. torch.onnx fails at converting it."""
    graph = traced(Network({"w": lambda: nn.Linear(64, 64)}, lambda m, x: m.w(x) + (1.5 - (x > 0).int())))
    export_float(graph, X, {}, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in X.items()})
    torch.testing.assert_close(torch.from_numpy(found), graph(**X), rtol=1e-5, atol=1e-5)


def test_nothing_but_that_line_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.export prints the graph as far as it came."""
    with pytest.raises(ExportError, match="decides by the values"):
        trace(Network({"w": lambda: nn.Linear(64, 64)}, REFUSED["decides by values"][0]).eval(), X, AXES)
    assert capfd.readouterr() == ("", "")


def test_a_part_in_torchscript_is_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        scripted = torch.jit.script(nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(ExportError, match="'part' is a TorchScript module"):
        trace(Network({"part": lambda: scripted}, lambda m, x: m.part(x)).eval(), X, AXES)


def test_a_forward_that_fails_is_told_as_that() -> None:
    with pytest.raises(SourceError, match=r"^the network's forward fails .*: RuntimeError: [^\n]+$"):
        trace(Network({"w": lambda: nn.Linear(63, 64)}, lambda m, x: m.w(x)).eval(), X, AXES)


def test_automatic_types_of_another_device_change_nothing() -> None:
    network = Network(
        {"w": lambda: nn.Linear(64, 64)}, lambda m, x: torch.autocast("cuda", enabled=False)(m.w)(x)
    )
    assert [site.name for site in discover(traced(network), X)] == ["w"]
