"""The self-check: the parts, run on real tokens, must compute what the bridge itself computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.forward import Record, forward
from acdc.model.parts import LanguageModel

# Hugging Face's RMS norms compute in float32 whatever the model's precision.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@torch.no_grad()
def check_parts(model: LanguageModel, bridge: Any, tokens: Tensor) -> float:
    """Compare each part, fed with the bridge's own activations, and the whole, with the bridge.

    Parameters
    ----------
    tokens: `pair pos`, without padding.

    Returns the largest difference of the logits, relative to the largest logit.

    Raises
    ------
    ModelError: names the layer and the part that differ by more than the precision explains.
    """
    tokens = tokens.to(model.device)
    _, cache = bridge.run_with_cache(tokens)
    lengths = torch.full((len(tokens),), tokens.shape[1], device=model.device)
    mask = model.attention_mask(lengths, tokens.shape[1])
    tolerance = _TOLERANCE[model.dtype]

    def compare(part: str, ours: Tensor, hook: str) -> float:
        if hook not in cache:
            raise ModelError(f"{model.name}: the hook {hook} never fires, so {part} cannot be checked; not supported")
        theirs = cache[hook]
        if isinstance(theirs, tuple):
            theirs = theirs[0]
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0))
        if not difference <= tolerance:
            raise ModelError(
                f"{model.name}: {part} differs from the model's own by {difference:.1e} (allowed {tolerance:.0e});"
                " this architecture is not supported"
            )
        return difference

    stream = model.embed(tokens).sum(0)
    compare("the embedding", stream, "blocks.0.hook_in")
    last = len(model.layers) - 1
    for i, layer in enumerate(model.layers):
        written = Record("attn_out", "mlp_out")
        forward(model, cache[f"blocks.{i}.hook_in"], written, i, i + 1, mask=mask)
        attended = written["attn_out"][0]
        attended = attended if layer.b_O is None else attended + layer.b_O
        compare(f"attention of layer {i}", attended, f"blocks.{i}.attn.hook_out")
        if layer.mlp is not None:
            compare(f"the MLP of layer {i}", written["mlp_out"][0], f"blocks.{i}.mlp.hook_out")
    stream = forward(model, stream, Record(), mask=mask)
    compare("the unembedding", model.unembed(cache[f"blocks.{last}.hook_out"]), "unembed.hook_out")
    return compare("the whole model", model.unembed(stream), "unembed.hook_out")
