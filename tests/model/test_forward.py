"""The one step of the transformer: what passes its sites, against TransformerLens' own activations."""

from __future__ import annotations

import pytest
import torch
from experiments import small
from hooks import HOOKS
from torch import Tensor

from acdc.model.forward import SITES, Given, Record, Site, forward, run

KINDS = ("gpt2", "llama", "gpt_neox", "gpt_neox_sequential", "attention_only")
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def mask_of(kind: str) -> Tensor:
    return small(kind).parts.attention_mask(torch.tensor([5, 5]), 5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gpt_neox_sequential"])
@torch.no_grad()
def test_every_site_has_the_bridges_value(kind: str) -> None:
    model = small(kind)
    _, cache = model.bridge.run_with_cache(TOKENS)
    seen: list[Site] = []
    record = Record(*SITES)

    def at(site: Site, value: Tensor | None) -> Tensor | None:
        seen.append(site)
        return record(site, value)

    forward(model.parts, model.parts.embed(TOKENS).sum(0), at, mask=mask_of(kind))
    kinds = [name for name in SITES if not name.endswith("_input")]
    assert seen == [Site(name, layer) for layer in range(2) for name in kinds]
    for name, hook in HOOKS.items():
        for layer, ours in enumerate(record[name]):
            theirs = cache[f"blocks.{layer}.{hook}"]
            if name == "resid_mid":  # the bridge has no hook for it
                theirs = theirs + cache[f"blocks.{layer}.hook_resid_pre"]
            elif name == "attn_out" and (bias := model.parts.layers[layer].b_O) is not None:
                theirs = theirs - bias
            elif name in ("q", "k", "v", "head_output"):
                theirs = theirs.movedim(2, 0)
                groups = len(ours) // len(theirs)
                theirs = theirs.repeat_interleave(groups, 0)
                if name in ("q", "k") and model.parts.layers[layer].rotary is not None:
                    continue  # the bridge's are not rotated
            elif name == "pattern":
                theirs = theirs.movedim(1, 0)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=f"{name} of layer {layer}")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_streams_of_their_own_for_each_head_change_nothing_where_they_are_alike(kind: str) -> None:
    model, mask = small(kind).parts, mask_of(kind)
    stream = model.embed(TOKENS).sum(0)
    together = forward(model, stream, Record(), mask=mask)
    apart = forward(model, stream, Record(), mask=mask, heads=lambda _: slice(None))
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layers_in_two_parts_and_stored_outputs_give_the_same_stream(kind: str) -> None:
    model, mask = small(kind).parts, mask_of(kind)
    values, last = run(model, TOKENS, torch.tensor([5, 5]))
    half = forward(model, values.inputs.sum(0), Record(), 0, 1, mask=mask)
    torch.testing.assert_close(forward(model, half, Record(), 1, mask=mask), last, rtol=0, atol=0)
    computed: list[Site] = []

    class Watched(Given):
        def __call__(self, site: Site, value: Tensor | None) -> Tensor | None:
            if site.kind in ("q", "pattern", "neuron") and value is not None:
                computed.append(site)
            return super().__call__(site, value)

    given = forward(model, values.inputs.sum(0), Watched(values), mask=mask)
    torch.testing.assert_close(given, last, rtol=1e-4, atol=1e-4)
    assert not computed, "what is given need not be computed"


@torch.no_grad()
def test_an_output_that_is_taken_away_adds_nothing() -> None:
    model = small("gpt2").parts

    def silent(site: Site, value: Tensor | None) -> Tensor | None:
        return None if site.kind in ("attn_out", "mlp_out") else value

    stream = model.embed(TOKENS).sum(0)
    biases = sum(layer.b_O for layer in model.layers if layer.b_O is not None)
    torch.testing.assert_close(forward(model, stream, silent, mask=mask_of("gpt2")), stream + biases)
