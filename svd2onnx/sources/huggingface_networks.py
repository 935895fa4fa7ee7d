"""Networks of ``transformers`` with a forward that takes what ONNX files of them take, and gives tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class FirstOutputs(nn.Module):
    """A network of ``transformers`` with its tensors by their fields' names, and no cache among them."""

    def __init__(self, network: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.options = network, dict(options)

    def outputs(self, **arguments: Tensor) -> dict[str, Tensor]:
        """The tensors that the network gives, such as ``logits`` or ``last_hidden_state``."""
        results = self.network(**arguments, **self.options)
        return {name: value for name, value in results.items() if isinstance(value, Tensor)}


class TextNetwork(FirstOutputs):
    """input_ids, attention_mask [batch, sequence] -> what the network gives."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return self.outputs(input_ids=input_ids, attention_mask=attention_mask)


class TypedTextNetwork(FirstOutputs):
    """input_ids, attention_mask, token_type_ids [batch, sequence] -> what the network gives."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
        return self.outputs(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)


class BoxedTextNetwork(FirstOutputs):
    """input_ids, attention_mask [batch, sequence], bbox [batch, sequence, 4] -> what the network gives."""

    def forward(self, input_ids: Tensor, bbox: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return self.outputs(input_ids=input_ids, bbox=bbox, attention_mask=attention_mask)


class TypedBoxedTextNetwork(FirstOutputs):
    """As ``BoxedTextNetwork``, and token_type_ids [batch, sequence]."""

    def forward(
        self, input_ids: Tensor, bbox: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> dict[str, Tensor]:
        return self.outputs(
            input_ids=input_ids, bbox=bbox, attention_mask=attention_mask, token_type_ids=token_type_ids
        )


def text_network(
    network: nn.Module, options: Mapping[str, Any], *, has_boxes: bool, has_types: bool
) -> FirstOutputs:
    """``network`` of texts, taking boxes and types where it has them."""
    kinds = {
        (False, False): TextNetwork,
        (False, True): TypedTextNetwork,
        (True, False): BoxedTextNetwork,
        (True, True): TypedBoxedTextNetwork,
    }
    return kinds[has_boxes, has_types](network, options)


class ImageNetwork(FirstOutputs):
    """pixel_values [batch, channels, height, width] -> what the network gives."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return self.outputs(pixel_values=pixel_values)
