"""What rises when a head is ablated, by direct attribution by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from experiments import experiment, random_pairs, small
from test_site_ablation import Hooked, ablated, settings_of
from torch import Tensor


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("metric", ["logit_diff", "kl_div"])
def test_backup_is_direct_attribution_by_hand(kind: str, metric: str) -> None:
    model, pairs = small(kind, 3, n_layers=3), random_pairs(7, (5, 5, 5), partners=2)
    one = experiment(model, pairs, metric)
    settings = settings_of("resample", backup=["0.h1", "1.h0"])
    found, oracle = ablated(one, settings), Hooked(one, model, pairs, settings)
    original, rows = model.bridge.original_model, oracle.rows
    norm = {
        "gpt2": lambda m: m.transformer.ln_f,
        "llama": lambda m: m.model.norm,
        "gpt_neox": lambda m: m.gpt_neox.final_layer_norm,
    }[kind](original)
    unembed = original.get_output_embeddings().weight.detach().double()
    clean = oracle.caches["clean"]
    at = list(range(len(rows.positions))), rows.positions
    stream = clean["blocks.2.hook_resid_post"][at].double()
    direction = torch.stack(
        [unembed[right].mean(0) - unembed[wrong].mean(0) for right, wrong in zip(rows.answers, rows.wrong, strict=True)]
    )

    def along(written: Tensor) -> Tensor:
        """The norm with the clean run's scale, then the logit difference, of each pair."""
        written, x = written.double(), stream
        if kind != "llama":
            written, x = written - written.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        scaled = written / (x.square().mean(-1, keepdim=True) + one.model.final_norm.eps).sqrt() * norm.weight.double()
        each = (scaled * direction).sum(-1)
        return torch.stack([each[[r for r, p in enumerate(oracle.pair_of) if p == pair]].mean() for pair in range(3)])

    def parts(cache: Any) -> Tensor:
        effects = []
        for i in range(3):
            W_O = one.model.layers[i].W_O
            effects += [along(cache[f"blocks.{i}.attn.hook_z"][at][:, h] @ W_O[h]) for h in range(2)]
            effects.append(along(cache[f"blocks.{i}.hook_mlp_out"][at]))
        return torch.stack(effects)

    names = [name for i in range(3) for name in (f"a{i}.h0", f"a{i}.h1", f"m{i}")]
    for backup in found.backups:
        assert list(backup.components) == names
        torch.testing.assert_close(backup.before, parts(clean), atol=1e-4, rtol=1e-4)
        after, frozen = [], []
        for draw in range(2):
            oracle.fired = []
            with model.bridge.hooks(fwd_hooks=oracle.hooks([backup.site], draw)):
                cache = model.bridge.run_with_cache(rows.clean)[1]
            assert oracle.fired == [backup.site]
            after.append(parts(cache))
            frozen.append(along(cache["blocks.2.hook_resid_post"][at] - stream))
        torch.testing.assert_close(backup.after, torch.stack(after).mean(0), atol=1e-4, rtol=1e-4)
        # All changes of direct effects together are the change of the logit difference with the norm's scale fixed.
        torch.testing.assert_close(backup.change.sum(0), torch.stack(frozen).mean(0), atol=2e-4, rtol=1e-4)
        own = names.index(f"a{backup.site.layer}.h{backup.site.head}")
        assert backup.lost == pytest.approx(-float(backup.change[own].mean()))
        others = float(backup.change.sum(0).mean()) + backup.lost
        assert sum(backup.changes.values()) == pytest.approx(others, abs=1e-4)
        assert backup.compensation == pytest.approx(others / backup.lost, rel=1e-3)
        after_it = [name for name in names if int(name[1]) > backup.site.layer]
        same_layer = [] if kind == "gpt_neox" else [f"m{backup.site.layer}"]  # in parallel it hears nothing of the head
        assert [names[i] for i in backup.later] == same_layer + after_it


def test_backup_of_an_answer_without_a_wrong_one_is_against_all_words() -> None:
    """And of no answer at all it is that of the model's own top token. Without a norm direct effects add up to the
    logits that there are without the input and the biases."""
    model = small("attention_only", 1)
    pairs = [replace(pair, wrong_answers=()) for pair in random_pairs(3)]
    for given in (pairs, [replace(pair, answers=()) for pair in pairs]):
        one = experiment(model, given, "kl_div")
        backup = ablated(one, settings_of("zero", backup=["1.h0"])).backups[0]
        rest = one.clean.inputs[0] + sum(layer.b_O for layer in one.model.layers if layer.b_O is not None)
        logits = one.clean_logits - one.model.unembed(one.read(rest))
        tokens = [pair.answers[0] for pair in pairs] if given is pairs else one.clean_logits.argmax(-1).tolist()
        theirs = torch.stack([row[token] - row.mean() for row, token in zip(logits, tokens, strict=True)])
        torch.testing.assert_close(backup.before.sum(0), theirs.double(), atol=1e-4, rtol=1e-4)
