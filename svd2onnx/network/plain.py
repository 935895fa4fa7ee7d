"""Rewrite modules that hide linear layers as such layers, so that these are found like any other.

    nn.MultiheadAttention       query, key and value packed in one weight    four nn.Linear, and the same sums
    transformers' Conv1D        the weight of a linear layer, transposed     nn.Linear

Source: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def make_plain(model: nn.Module) -> nn.Module:
    """``model``, changed in place where it holds such modules; itself replaced if it is one."""
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in made:
            made[module] = _plain(module)
        if name and made[module] is not module:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made[module])
    return made[model]


class PlainAttention(nn.Module):
    """nn.MultiheadAttention in eval mode, without its packed weight.

    Raises:
        ValueError: ``original`` has keys or values of its own (``add_bias_kv``, ``add_zero_attn``).
    """

    # PyTorch's encoder layers ask for these before they take a fused path around the modules; so they do not.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        if original.bias_k is not None or original.add_zero_attn:
            raise ValueError("attention with keys or values of its own is not plain")
        self.num_heads, self.batch_first = original.num_heads, original.batch_first
        bias = original.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.detach().chunk(3)
        if original.in_proj_weight is not None:
            weights: tuple[Tensor, ...] = original.in_proj_weight.detach().chunk(3)
        else:
            weights = tuple(getattr(original, f"{name}_proj_weight").detach() for name in ("q", "k", "v"))
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        out = original.out_proj
        self.out_proj = _linear(out.weight.detach(), None if out.bias is None else out.bias.detach())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention, where ``is_causal`` too is but a hint of what ``attn_mask`` holds."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            self._heads(projection(x))
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        if key_padding_mask is not None:
            scores = scores + _added(key_padding_mask, scores)[:, None, None, :]
        if attn_mask is not None:
            mask = _added(attn_mask, scores)
            scores = scores + (mask if mask.ndim == 2 else mask.reshape(scores.shape))
        weights = torch.softmax(scores, dim=-1)
        output = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        if not batched:
            output, weights = output.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, weights.mean(-3) if average_attn_weights else weights

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, length, width] -> [batch, heads, length, width / heads]."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


def _plain(module: Any) -> nn.Module:
    if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
        return PlainAttention(module).eval()
    if (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D"):
        return _linear(module.weight.detach().T, module.bias.detach()).eval()
    original: nn.Module = module
    return original


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask as what is added to scores: where a boolean one is true there is nothing to attend to."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -math.inf)
