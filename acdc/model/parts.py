"""The parts of a transformer as plain functions on tensors.

Shapes: `...` stands for any leading axes (usually a variant), then `row pos d_model`; per-head tensors have a head
axis before `row`: `... head row pos d_head`. A part takes the raw residual stream at its port and applies its own
norm. Attention output biases belong to the residual stream (`Layer.b_O`), never to a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from acdc.graph import GraphConfig
from acdc.model.linear import linear

T = TypeVar("T", bound="Rotary | Norm | Mlp | Layer | LanguageModel")


def moved(part: T, device: torch.device | str, dtype: torch.dtype) -> T:
    """A dataclass of tensors (and of such dataclasses) on another device or in another precision."""

    def move(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    # Rotary tables are rounded where they are used, as Hugging Face's are.
    return _mapped(part, move, tables=lambda value: value.to(device))


def _mapped(part: T, change: Callable[[Tensor], Tensor], tables: Callable[[Tensor], Tensor] | None = None) -> T:
    """A dataclass of tensors (and of such dataclasses) with every tensor changed, those of `Rotary` by `tables`."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Rotary):
            return _mapped(value, tables or change)
        if isinstance(value, (Norm, Mlp, Layer)):
            return _mapped(value, change, tables)
        if isinstance(value, tuple):
            return tuple(mapped(item) for item in value)
        return value

    return replace(part, **{f.name: mapped(getattr(part, f.name)) for f in fields(part)})


@dataclass(frozen=True)
class Norm:
    """Layer norm, RMS norm or none. `weight` and `bias` have shape `d_model` or are absent."""

    kind: str
    eps: float = 0.0
    weight: Float[Tensor, " d_model"] | None = None
    bias: Float[Tensor, " d_model"] | None = None

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if self.kind == "none":
            return x
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        normalised = (x * self.scale(x)).to(x.dtype)
        return normalised if self.weight is None else normalised * self.weight

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """What the norm multiplies each `... d_model` with (layer norm after it is centred), `... 1`.

        In single precision at least, as Hugging Face has it: in half precision the square of 256 overflows.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.kind == "none":
            return x.new_ones((*x.shape[:-1], 1))
        centred = self.kind == "layer"
        power = x.var(-1, correction=0, keepdim=True) if centred else x.square().mean(-1, keepdim=True)
        return torch.rsqrt(power + self.eps)

    def held(
        self, direction: Float[Tensor, "*#batch d_model"], at: Float[Tensor, "*#batch d_model"]
    ) -> Float[Tensor, "... d_model"]:
        """What a direction behind the norm is before it, with the scale that `at` has: the norm is linear then.

        direction · norm(at) is held(direction, at) · at, and direction · bias. Each `... d_model`.
        """
        if self.kind == "none":
            return direction
        if self.weight is not None:
            direction = direction * self.weight
        if self.kind == "layer":
            direction = direction - direction.mean(-1, keepdim=True)
        return (direction * self.scale(at)).to(torch.promote_types(direction.dtype, at.dtype))


@dataclass(frozen=True)
class Rotary:
    """Rotary positions on the first `cos.shape[-1]` of each head's dimensions. `cos`, `sin`: `pos d_rotary`.

    `adjacent`: pairs are neighbours (2i, 2i+1), as in TransformerLens-native models; otherwise halves, as in Hugging
    Face's.
    """

    cos: Float[Tensor, "n_ctx d_rotary"]
    sin: Float[Tensor, "n_ctx d_rotary"]
    adjacent: bool

    def __call__(
        self, x: Float[Tensor, "*batch pos d_head"], positions: Int[Tensor, "... #pos"] | None = None
    ) -> Float[Tensor, "*batch pos d_head"]:
        """Rotate queries or keys, `... pos d_head`; `positions` (broadcast against `... pos`) if not 0, 1, ...

        The tables are kept in single precision and rounded to that of `x`.
        """
        if positions is None:
            cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        else:
            cos, sin = self.cos[positions], self.sin[positions]
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        d_rotary = cos.shape[-1]
        turned, rest = x[..., :d_rotary], x[..., d_rotary:]
        if self.adjacent:
            half = torch.stack((-turned[..., 1::2], turned[..., 0::2]), -1).flatten(-2)
        else:
            half = torch.cat((-turned[..., d_rotary // 2 :], turned[..., : d_rotary // 2]), -1)
        turned = turned * cos + half * sin
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


@dataclass(frozen=True)
class Mlp:
    """`W_in` and `W_gate`: `d_model d_mlp`; `W_out`: `d_mlp d_model`. The output bias belongs to the output."""

    norm: Norm
    activation: Callable[[Tensor], Tensor]
    W_in: Float[Tensor, "d_model d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"] | None = None
    b_out: Float[Tensor, " d_model"] | None = None
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the MLP writes for the residual stream `x`, `... d_model` to the same."""
        return self.write(self.neurons(x))

    def write(self, neurons: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_model"]:
        """What neurons write, the output bias with it: `... d_mlp` → `... d_model`."""
        return linear(neurons, self.W_out.T, self.b_out)

    def neurons(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        """The neurons for the residual stream `x`, as `W_out` reads them: `... d_model` → `... d_mlp`."""
        x = self.norm(x)
        hidden = linear(x, self.W_in.T, self.b_in)
        if self.W_gate is not None:
            return self.activation(linear(x, self.W_gate.T, self.b_gate)) * hidden
        return self.activation(hidden)


@dataclass(frozen=True)
class Layer:
    """One block.

    `W_Q`: `head d_model d_head`; `W_K`, `W_V`: `kv_head d_model d_head`; `b_*` without `d_model`; `W_O`:
    `head d_head d_model`; `b_O`: `d_model`. With grouped-query attention head h reads key-value head
    `h // (heads per group)`.
    """

    norm: Norm
    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    b_Q: Float[Tensor, "head d_head"] | None
    b_K: Float[Tensor, "kv_head d_head"] | None
    b_V: Float[Tensor, "kv_head d_head"] | None
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"] | None
    scale: float
    rotary: Rotary | None
    mlp: Mlp | None

    @property
    def n_heads(self) -> int:
        return self.W_Q.shape[0]

    def weights(self, letter: str) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
        """The projection and bias of q, k or v, one row per query head (`head d_model d_head`, `head d_head`)."""
        W, b = {"q": (self.W_Q, self.b_Q), "k": (self.W_K, self.b_K), "v": (self.W_V, self.b_V)}[letter]
        if (group := self.n_heads // W.shape[0]) > 1:
            W, b = W.repeat_interleave(group, 0), None if b is None else b.repeat_interleave(group, 0)
        return W, b

    def project(self, letter: str, x: Tensor, heads: Tensor | slice = slice(None)) -> Tensor:
        """The port's residual stream to q, k or v: `... head row pos d_model` → `... head row pos d_head`.

        `heads` says which heads the head axis stands for. Queries and keys come out rotated.
        """
        W, b = self.weights(letter)
        W = W[heads]
        projected = torch.einsum("...hptd,hde->...hpte", self.norm(x), W)
        if b is not None:
            projected = projected + b[heads][:, None, None, :]
        return self.rotary(projected) if self.rotary is not None and letter != "v" else projected

    def project_together(
        self, letter: str, x: Float[Tensor, "*batch row pos d_model"], positions: Int[Tensor, "... #pos"] | None = None
    ) -> Float[Tensor, "*batch head row pos d_head"]:
        """Every head's q, k or v of one residual stream: `... row pos d_model` → `... head row pos d_head`.

        `positions`: which positions the position axis stands for, if not 0, 1, ...; broadcast against `... pos`.
        """
        W, b = {"q": (self.W_Q, self.b_Q), "k": (self.W_K, self.b_K), "v": (self.W_V, self.b_V)}[letter]
        flat = linear(self.norm(x), W.transpose(1, 2).flatten(0, 1), None if b is None else b.flatten())
        projected: Tensor = flat.unflatten(-1, (W.shape[0], W.shape[2])).movedim(-2, -4)
        if self.rotary is not None and letter != "v":
            projected = self.rotary(projected, positions)
        group = self.n_heads // W.shape[0]
        return projected.repeat_interleave(group, -4) if group > 1 else projected

    def project_head(
        self,
        letter: str,
        head: int,
        x: Float[Tensor, "*batch pos d_model"],
        positions: Int[Tensor, "... #pos"] | None = None,
    ) -> Float[Tensor, "*batch pos d_head"]:
        """One head's q, k or v: `... pos d_model` → `... pos d_head`.

        `positions`: which positions the position axis stands for, if not 0, 1, ...; broadcast against `... pos`.
        """
        W, b = {"q": (self.W_Q, self.b_Q), "k": (self.W_K, self.b_K), "v": (self.W_V, self.b_V)}[letter]
        row = head // (self.n_heads // W.shape[0])
        projected = linear(self.norm(x), W[row].T, None if b is None else b[row])
        if self.rotary is None or letter == "v":
            return projected
        return self.rotary(projected, positions)

    def mix(
        self,
        q: Float[Tensor, "*#batch row query d_head"],
        k: Float[Tensor, "*#batch row key d_head"],
        v: Float[Tensor, "*#batch row key d_head"],
        mask: Bool[Tensor, "#row #query #key"],
    ) -> Float[Tensor, "*batch row query d_head"]:
        """Attention: q, k, v `... row pos d_head` to z of the same shape. `mask`: True where a query may not look."""
        return self.attend(q, k, mask) @ v

    def attend(
        self,
        q: Float[Tensor, "*#batch row query d_head"],
        k: Float[Tensor, "*#batch row key d_head"],
        mask: Bool[Tensor, "#row #query #key"],
    ) -> Float[Tensor, "*batch row query key"]:
        """The attention pattern: q, k `... row pos d_head` → `... row query key`."""
        scores = (q @ k.transpose(-2, -1)) * self.scale
        return scores.masked_fill(mask, float("-inf")).softmax(-1)

    def write_together(
        self,
        z: Float[Tensor, "*batch head row pos d_head"],
        heads: Sequence[int] | Int[Tensor, " head"] | slice = slice(None),
    ) -> Float[Tensor, "*batch row pos d_model"]:
        """What heads write in all: `... head row pos d_head` → `... row pos d_model`, without the layer's bias."""
        return linear(z.movedim(-4, -2).flatten(-2), self.W_O[heads].flatten(0, 1).T)

    def write(
        self, z: Float[Tensor, "*batch head row pos d_head"], heads: Int[Tensor, " head"] | slice = slice(None)
    ) -> Float[Tensor, "*batch head row pos d_model"]:
        """What heads write: `... head row pos d_head` → `... head row pos d_model`, without the layer's bias."""
        return torch.einsum("...hpte,hed->...hptd", z, self.W_O[heads])


@dataclass(frozen=True)
class LanguageModel:
    """A model as parts.

    `W_E`: `vocabulary d_model`; `W_pos`: `n_ctx d_model` or absent; `W_U`: `d_model vocabulary`; `b_U`: `vocabulary`.
    `max_length`: the longest prompt the model can be given, `limit`: why, if not by its positions. `tokenizer`: Hugging
    Face's, or None. `window`: the positions that a query looks at, its own too; None is all. `notes`: what the user
    should hear of the checkpoint. `self_check`: compares these parts with the model they were read from, on prompts of
    lengths not seen before; None where there is nothing to compare with.
    """

    name: str
    config: GraphConfig
    W_E: Float[Tensor, "vocabulary d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    layers: tuple[Layer, ...]
    final_norm: Norm
    W_U: Float[Tensor, "d_model output"]
    b_U: Float[Tensor, " output"] | None
    causal: bool
    max_length: int
    tokenizer: Any
    window: int | None = None
    limit: str = ""
    notes: tuple[str, ...] = ()
    self_check: Callable[[LanguageModel, Sequence[Sequence[int]]], None] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def device(self) -> torch.device:
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_E.dtype

    @property
    def d_head(self) -> int:
        return self.layers[0].W_Q.shape[-1]

    @property
    def vocabulary_size(self) -> int:
        return self.W_E.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LanguageModel:
        """The same model elsewhere or in another precision."""
        return moved(self, device, dtype)

    def trainable(self) -> LanguageModel:
        """The same model; weights that were made in inference mode, which autograd refuses, are copied."""
        return _mapped(self, lambda t: t.clone() if t.is_inference() else t)

    def embed(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "input row pos d_model"]:
        """Token ids `row pos` to the graph's input senders, `input row pos d_model` (one, or token and position)."""
        token_part = self.W_E[tokens]
        if self.W_pos is None:
            return token_part[None]
        position_part = self.W_pos[: tokens.shape[1]].expand_as(token_part)
        if self.config.split_embedding:
            return torch.stack((token_part, position_part))
        return (token_part + position_part)[None]

    def unembed(
        self, x: Float[Tensor, "*batch d_model"], columns: Int[Tensor, " column"] | None = None
    ) -> Float[Tensor, "*batch _"]:
        """The residual stream `... d_model` to logits `... vocabulary`, or only to some columns of it."""
        W, b = self.W_U, self.b_U
        if columns is not None:
            W, b = W[:, columns], None if b is None else b[columns]
        return linear(self.final_norm(x), W.T, b)

    def attention_mask(self, lengths: Int[Tensor, " row"], n_positions: int) -> Bool[Tensor, "#row pos pos"]:
        """`row query key`, True where a query may not look: the future in a causal model, padding in any other; and
        what lies before its window.
        """
        positions = torch.arange(n_positions, device=lengths.device)
        if self.causal:  # padding is behind every real position
            back = positions[:, None] - positions[None, :]
            return ((back < 0) | (back >= (self.window or n_positions)))[None]
        return (positions[None, :] >= lengths[:, None])[:, None, :].expand(-1, n_positions, -1)
