"""Batch normalization goes into the layer before it where nothing else reads that, and only there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from svd2onnx.network.batchnorm import fold_batchnorm
from svd2onnx.values.errors import ExportError

Forward = Callable[[nn.Module, Tensor], Tensor]


class Network(nn.Module):
    """``forward`` of a convolution ``a``, one ``b``, a normalization ``norm``, and a second one ``other``."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def network(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(Network(forward))


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalizations as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.normal_(module.bias)
    return model.eval().requires_grad_(False)


IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
FOLDED: dict[str, tuple[Forward, int]] = {
    "after it": (lambda m, x: m.norm(m.a(x)), 1),
    "both": (lambda m, x: m.other(m.b(torch.relu_(m.norm(m.a(x))))), 2),
    "beside a shortcut": (lambda m, x: x + m.norm(m.a(x)), 1),
}
KEPT: dict[str, Forward] = {
    "its product is read elsewhere": lambda m, x: (lambda y: m.norm(y) + y)(m.a(x)),
    "the layer is called twice": lambda m, x: m.norm(m.a(m.a(x))),
    "the normalization is called twice": lambda m, x: m.norm(m.norm(m.a(x))),
    "something stands between": lambda m, x: m.norm(torch.relu(m.a(x))),
    "the normalization comes first": lambda m, x: m.a(m.norm(x)),
    "the weight is computed": lambda m, x: m.norm(nn.functional.conv2d(x, 2 * m.a.weight)),
}


@pytest.mark.parametrize(("forward", "count"), FOLDED.values(), ids=FOLDED)
def test_folding_changes_no_output(forward: Forward, count: int) -> None:
    model = network(forward)
    expected = model(IMAGES)
    assert fold_batchnorm(model, {"x": IMAGES}) == count
    torch.testing.assert_close(model(IMAGES), expected)
    assert isinstance(model.norm, nn.Identity)
    assert model.a.bias is not None


@pytest.mark.parametrize("forward", KEPT.values(), ids=KEPT)
def test_where_it_cannot_be_folded_all_stays(forward: Forward) -> None:
    model = network(forward)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fold_batchnorm(model, {"x": IMAGES}) == 0
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_linear_layers_take_it_in_too() -> None:
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()))
    x = torch.randn(5, 8)
    expected = model(x)
    assert fold_batchnorm(model, {"input": x}) == 1
    torch.testing.assert_close(model(x), expected)


def test_a_parametrized_weight_is_left_alone() -> None:
    model = network(FOLDED["after it"][0])
    parametrizations.weight_norm(model.a)
    assert fold_batchnorm(model, {"x": IMAGES}) == 0


def test_a_network_without_is_not_traced() -> None:
    def fails(_module: nn.Module, x: Tensor) -> Tensor:
        raise AssertionError("traced")

    model = Network(fails).eval()
    model.norm, model.other = nn.Identity(), nn.Identity()
    assert fold_batchnorm(model, {"x": IMAGES}) == 0


def test_what_cannot_be_traced_is_told_in_one_line() -> None:
    model = network(lambda m, x: m.norm(m.a(x)) if bool(x.sum() > 0) else x)
    with pytest.raises(ExportError, match=r"torch\.export cannot trace the network") as caught:
        fold_batchnorm(model, {"x": IMAGES})
    assert "\n" not in str(caught.value)
