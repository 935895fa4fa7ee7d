"""What is rewritten in plain linear layers computes the same, in all ways it can be called."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.network.layers import discover
from svd2onnx.network.plain import PlainAttention, make_plain

WIDTH, HEADS = 48, 3


def attention(**options: Any) -> tuple[nn.MultiheadAttention, PlainAttention]:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(WIDTH, HEADS, **options).eval().requires_grad_(False)
    if original.in_proj_bias is not None:
        nn.init.normal_(original.in_proj_bias)  # they begin at zero
    return original, PlainAttention(original)


def close(original: nn.Module, plain: nn.Module, *args: Tensor, **options: Any) -> None:
    for wanted, found in zip(original(*args, **options), plain(*args, **options), strict=True):
        assert (wanted is None) == (found is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted)


QUERIES, KEYS = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
PADDING = torch.arange(7) >= torch.tensor([[4], [7]])
CAUSAL = torch.ones(5, 7).triu(1).bool()
CALLS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "each head": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "padding": {"key_padding_mask": PADDING},
    "padding in floats": {"key_padding_mask": PADDING * -3.0},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "mask in floats": {"attn_mask": torch.randn(5, 7)},
    "masks of each head": {"attn_mask": torch.randn(2 * HEADS, 5, 7) > 1, "key_padding_mask": PADDING},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_every_call_gives_the_same(options: dict[str, Any]) -> None:
    close(*attention(batch_first=True), QUERIES, KEYS, KEYS, **options)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_sequence_may_come_first_or_alone(bias: bool) -> None:
    original, plain = attention(bias=bias)
    close(original, plain, *(x.transpose(0, 1) for x in (QUERIES, KEYS, KEYS)), key_padding_mask=PADDING)
    close(original, plain, QUERIES[0], KEYS[0], KEYS[0], key_padding_mask=PADDING[0])


def test_keys_and_values_may_have_widths_of_their_own() -> None:
    original, plain = attention(batch_first=True, kdim=20, vdim=32)
    close(original, plain, QUERIES, torch.randn(2, 7, 20), torch.randn(2, 7, 32))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_keys_of_its_own_are_not_plain(options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="of its own"):
        attention(**options)
    kept = nn.Sequential(nn.MultiheadAttention(WIDTH, HEADS, **options))
    assert type(make_plain(kept)[0]) is nn.MultiheadAttention


def test_an_encoder_is_rewritten_whole_and_all_its_linears_are_found() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().requires_grad_(False)
    x, padding = torch.randn(3, 6, 64), torch.arange(6) >= torch.tensor([[6], [3], [5]])
    expected = model(x, src_key_padding_mask=padding)
    plain = make_plain(model)
    found = plain(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-4, atol=1e-5)
    usable = [site.name for site in discover(plain, {"src": x}) if site.skip_reason is None]
    assert len(usable) == 12
    assert "layers.1.self_attn.k_proj" in usable


def test_a_module_in_two_places_stays_one() -> None:
    shared = nn.MultiheadAttention(WIDTH, HEADS)
    model = make_plain(nn.ModuleList([shared, nn.Linear(2, 2), shared]))
    assert model[0] is model[2]
    assert isinstance(model[0], PlainAttention)


def test_conv1d_of_transformers_is_a_linear() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    original = pytorch_utils.Conv1D(96, 64).requires_grad_(False)
    nn.init.normal_(original.bias)
    model = make_plain(nn.Sequential(original))
    assert isinstance(model[0], nn.Linear)
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(model(x), original(x))
    assert isinstance(make_plain(original), nn.Linear)
