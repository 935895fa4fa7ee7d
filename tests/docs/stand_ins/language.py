"""Stands in for SmolLM2 and Phi-2: input_ids, attention_mask [batch, sequence] -> logits of a tied head."""

import torch
from torch import nn

from svd2onnx.network.decoder import WithPast

objective = "kl"
dynamic_shapes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(256, 64), nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)
        self.head = nn.Linear(64, 256, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids, attention_mask):
        words = self.words(input_ids) * attention_mask[..., None]
        return self.head(self.norm(words + self.down(torch.relu(self.up(words)))))


class Remembering(WithPast):
    """Keeps the tokens as keys and values of one head."""

    def forward(self, input_ids, attention_mask, past_key_values):
        new = input_ids[:, None, :, None].float()
        present = [tuple(torch.cat([old, new], 2) for old in pair) for pair in past_key_values]
        return self.decoder(input_ids, attention_mask[:, -input_ids.shape[1] :]), present

    def past(self, batch, length):
        return [(torch.zeros(batch, 1, length, 1), torch.zeros(batch, 1, length, 1))]


class Bytes:
    """A tokenizer."""

    eos_token_id = 0

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def with_past(network):
    return Remembering(network)


def tokenizer(weights=None):
    return Bytes()


def build(weights=None, random_weights=False):
    torch.manual_seed(0)
    return Network()


def inputs(split, data=None):
    torch.manual_seed({"calibration": 1, "recovery": 2, "evaluation": 3}[split])
    for _ in range(4):
        yield {
            "input_ids": torch.randint(0, 256, (4, 10)),
            "attention_mask": torch.ones(4, 10, dtype=torch.long),
        }
