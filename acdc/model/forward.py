"""One ordinary run of a model, with every sender's output kept."""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.ablation import Values
from acdc.model.parts import LanguageModel


@torch.no_grad()
def run(model: LanguageModel, tokens: Tensor, lengths: Tensor) -> tuple[Values, Tensor]:
    """Every sender's output and the last residual stream, `pair pos d_model`.

    Parameters
    ----------
    tokens: `pair pos`, padded on the right. lengths: `pair`.
    """
    return run_from(model, model.embed(tokens), lengths)


@torch.no_grad()
def run_from(model: LanguageModel, inputs: Tensor, lengths: Tensor) -> tuple[Values, Tensor]:
    """The same from what the input senders write, `input pair pos d_model`."""
    mask = model.attention_mask(lengths, inputs.shape[-2])
    stream = inputs.sum(0)
    heads, mlps = [], []
    for layer in model.layers:
        q, k, v = (layer.project(letter, stream[None]) for letter in "qkv")
        z = layer.mix(q, k, v, mask)
        heads.append(z)
        attended = stream + layer.write_together(z)
        if layer.b_O is not None:
            attended = attended + layer.b_O
        if layer.mlp is not None:
            mlps.append(layer.mlp(stream if model.config.parallel_attn_mlp else attended))
            attended = attended + mlps[-1]
        stream = attended
    no_mlps = stream.new_zeros((0, *stream.shape))
    return Values(inputs, torch.stack(heads), torch.stack(mlps) if mlps else no_mlps), stream
