"""The small networks of the zoo that are not a plain ``nn.Sequential``.

Each is as small as its kind allows, so that a dense Hessian takes well under a second, and has the feature it is
here for: a shared tensor, a parameter of the root module, a branch that is never taken, an exactly flat direction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualCNN(nn.Module):
    """Conv - BN - ReLU - (conv - BN + skip) - ReLU - mean - linear on (N, 1, 6, 6) images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.inner = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.inner_norm(self.inner(x)))
        return self.head(x.mean(dim=(2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer over (N, T, 3) and a linear head on its last state."""

    def __init__(self, layer: type[nn.RNNBase], hidden: int = 4) -> None:
        super().__init__()
        self.cell = layer(3, hidden, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        return self.head(states[:, -1])


class Attention(nn.Module):
    """Self-attention with separate projections; ``fused`` takes ``F.scaled_dot_product_attention``.

    The bias of the keys adds the same number to every score of a row, and softmax does not see it: its block of the
    Hessian is exactly zero.
    """

    def __init__(self, width: int, heads: int, fused: bool, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.fused, self.causal = heads, fused, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            layer(x).view(n, t, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
            if self.causal:
                later = torch.ones(t, t, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, float("-inf"))
            mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, width))


class TiedTransformer(nn.Module):
    """A causal pre-LayerNorm transformer block whose output layer is its token embedding; logits are (N, V, T)."""

    def __init__(self, vocabulary: int = 9, width: int = 4, length: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.3 * torch.randn(length, width))
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=2, fused=False, causal=True)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width))
        self.readout = nn.Linear(width, vocabulary, bias=False)
        self.readout.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        x = x + self.attention(self.norm_1(x))
        x = x + self.mlp(self.norm_2(x))
        return self.readout(x).transpose(1, 2)


class AttentionClassifier(nn.Module):
    """Attention over (N, T, 4), averaged over T, with a linear head. ``kind``: "sdpa", "multihead" or "encoder"."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "sdpa":
            self.mix: nn.Module = Attention(4, heads=2, fused=True)
        elif kind == "multihead":
            self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        else:
            self.mix = nn.TransformerEncoderLayer(
                4, 2, dim_feedforward=6, dropout=0.0, activation="gelu", batch_first=True
            )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x, x, x, need_weights=False)[0] if self.kind == "multihead" else self.mix(x)
        return self.head(torch.tanh(mixed).mean(dim=1))


class SharedTwice(nn.Module):
    """One matrix under two names, and one module called twice: three uses of four parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x))
        return self.head(torch.tanh(self.first(x)))


class PartlyFrozen(nn.Module):
    """A frozen weight between trainable layers, a frozen integer parameter, and a trainable head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.fixed = nn.Linear(5, 5)
        self.fixed.weight.requires_grad_(False)
        self.order = nn.Parameter(torch.tensor([4, 2, 0, 1, 3]), requires_grad=False)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))[:, self.order]
        return self.head(torch.tanh(self.fixed(x)))


class RootParameters(nn.Module):
    """Parameters of the root module itself, one of them a scalar of shape (), around a child module."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(4))
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.sin(x + self.shift)) * self.temperature.exp()


class WithUnusedBranch(nn.Module):
    """``unused`` is trainable and never called: the loss does not depend on it at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.unused = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


class TwoInputs(nn.Module):
    """Takes two inputs: the batch's inputs are a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(3, 4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.pair(left, right)))


class WordBag(nn.Module):
    """The mean of embedded tokens with a linear head.

    The row of the ``padding`` index takes part in the mean, but autograd holds it constant: so do the references.
    """

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, padding_idx=padding)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens).mean(dim=1)))


def gpt2() -> nn.Module:
    """A one-layer GPT-2 language model from its configuration, without dropout, in its default attention."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=11, n_positions=6, n_embd=4, n_layer=1, n_head=2, n_inner=6, use_cache=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def bert(task: str) -> nn.Module:
    """A one-layer BERT without dropout. ``task``: "words" (masked language model) or "sentence" (three classes)."""
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(
        vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
        max_position_embeddings=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
        pad_token_id=0,
    )  # fmt: skip
    return BertForMaskedLM(config) if task == "words" else BertForSequenceClassification(config)
