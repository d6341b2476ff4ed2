"""Estimates beside real patching: correlations, disagreements and backup heads, each worked out another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from experiments import Small, experiment, random_pairs, rows_of, small
from torch import Tensor

from acdc import patch
from acdc.errors import AcdcError
from acdc.patching import activation, attribution
from acdc.patching.activation_result import SiteMap
from acdc.patching.attribution import Agreement
from acdc.patching.backup import LEAST, NONE_BELOW, logit_gap
from acdc.tasks.base import Pair


def map_of(values: list[float], direction: str = "denoise") -> SiteMap:
    """A map of these recoveries of a single pair."""
    found = patch(experiment(small("gpt2", 3), random_pairs(7), "logit_diff"), layers=0)
    grid = replace(found.maps[0].grid, units=tuple(range(len(values))))
    return SiteMap(grid, direction, torch.tensor(values).reshape(1, -1, 1, 1), torch.tensor([1.0]), torch.tensor([0.0]))


def test_correlations() -> None:
    a, b = [0.1, 0.4, 0.2, 0.2, -0.5], [0.3, 0.2, 0.9, 0.2, -8.0]
    both = Agreement(map_of(a), map_of(b))
    assert both.pearson == pytest.approx(np.corrcoef(a, b)[0, 1])
    ranks = [2, 5, 3.5, 3.5, 1], [4, 2.5, 5, 2.5, 1]  # by hand; ties share their mean rank
    assert both.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert [(site.head, x, y) for site, x, y in both.furthest(2)] == [
        (4, pytest.approx(-0.5), pytest.approx(-8.0)),
        (2, pytest.approx(0.2), pytest.approx(0.9)),
    ]
    assert np.isnan(Agreement(map_of([0.5, 0.5]), map_of([0.1, 0.2])).pearson)


def test_sizes_are_compared_with_sizes() -> None:
    """Two pairs whose real effects cancel: their mean size counts where estimates have no sign."""
    one = map_of([0.0, 0.0])
    values = torch.tensor([[1.0, -1.0], [0.25, 0.25]]).reshape(1, 2, 1, 2)
    real = replace(one, values=values, clean=torch.tensor([2.0, 2.0]), corrupted=torch.tensor([0.0, 0.0]))
    assert Agreement(one, real, unsigned=True).effects[1].tolist() == [0.5, 0.125]
    assert Agreement(one, real).effects[1].tolist() == [0.0, 0.125]


def test_the_result_holds_both_of_every_site() -> None:
    one = experiment(small("llama", 3, n_heads=4), random_pairs(7), "logit_diff")
    found = patch(one, "attribution", site=["q", "resid_pre"], qk_fix=True, disagreements=3)
    real = patch(one, "activation", site=["q", "resid_pre"])
    rows = found.rows()
    assert len(rows) == len(real.rows())
    for ours, theirs in zip(rows, real.rows(), strict=True):
        assert ours["real"] == pytest.approx(theirs["recovery"], abs=1e-6)
        assert ours["difference"] == pytest.approx(ours["recovery"] - theirs["recovery"], abs=1e-6)
        assert "class" not in ours
    listed = found.disagreement_rows()
    assert len(listed) == 3 * len(real.maps)
    for both in found.agreements:
        kind, direction = both.real.grid.kind.name, both.real.direction
        mine = [row for row in rows if (row["site"], row["direction"]) == (kind, direction)]
        largest = sorted((abs(row["difference"]) for row in mine), reverse=True)[:3]
        some = [row for row in listed if (row["site"], row["direction"]) == (kind, direction)]
        assert [abs(row["estimated"] - row["real"]) for row in some] == pytest.approx(largest, abs=1e-6)
    alone = patch(one, "attribution", site="q", compare=False)
    assert (alone.agreements, alone.disagreements) == ((), ())
    assert "real" not in alone.rows()[0]


def frozen_shares(model: Small, base: Any, other: Any) -> Tensor:
    """How much what each head writes into the logits at the last position moves, `layer head row vocabulary`; the final
    norm's scale is that of `base`."""
    last = len(model.parts.layers) - 1
    stream = base[f"blocks.{last}.hook_resid_post"][:, -1]
    norm = model.parts.final_norm
    assert norm.weight is not None
    scale = 1 / ((stream - stream.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + norm.eps).sqrt()
    moved = []
    for i, layer in enumerate(model.parts.layers):
        name = f"blocks.{i}.attn.hook_z"
        for head in range(layer.n_heads):
            written = (other[name] - base[name])[:, -1, head] @ layer.W_O[head]
            written = (written - written.mean(-1, keepdim=True)) * scale * norm.weight
            moved.append(written @ model.parts.W_U)
    return torch.stack(moved).unflatten(0, (last + 1, -1))


def largest_share(model: Small, base: dict[str, Tensor], rows: Any) -> float:
    """The largest mean direct share of a head or MLP in a run, by hand."""
    nothing = {name: torch.zeros_like(value) for name, value in base.items()}
    shares = -frozen_shares(model, base, nothing).flatten(0, 1)
    stream, norm = base["blocks.2.hook_resid_post"][:, -1], model.parts.final_norm
    assert norm.weight is not None
    scale = 1 / ((stream - stream.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + norm.eps).sqrt()
    mlps = torch.stack([base[f"blocks.{i}.hook_mlp_out"][:, -1] for i in range(3)])
    mlps = (mlps - mlps.mean(-1, keepdim=True)) * scale * norm.weight @ model.parts.W_U
    found = [
        torch.stack(
            [
                part[:, row, right].mean(-1) - part[:, row, wrong].mean(-1)
                for row, (right, wrong) in enumerate(zip(rows.answers, rows.wrong, strict=True))
            ]
        ).mean(0)
        for part in (shares, mlps)
    ]
    return float(torch.cat(found).abs().max())


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_backup_heads_are_those_that_move_against_the_site(direction: str) -> None:
    """By runs of the bridge with one head's output replaced."""
    model, pairs = small("gpt2", 6, n_layers=3, n_heads=4), random_pairs(7, (5, 5, 5))
    one = experiment(model, pairs, "logit_diff")
    real = activation.patch(one, activation.Settings(direction=direction)).maps[0]
    sites = [(site, direction) for site in real.grid]
    gap = float((real.clean - real.corrupted).mean())
    assert logit_gap(one) == pytest.approx(gap, rel=1e-4)
    found = attribution._backups(one, attribution.Settings(), sites)
    rows, seen = rows_of(pairs), 0
    tokens = [rows.clean, rows.corrupted][:: 1 if direction == "noise" else -1]
    with torch.no_grad():
        base, source = (model.bridge.run_with_cache(t)[1] for t in tokens)
        largest = largest_share(model, base, rows)
        for (site, _), backup in zip(sites, found, strict=True):
            patched = _run_with_head(model, tokens[0], source, site.layer, site.head)
            moved = frozen_shares(model, base, patched)
            shares = torch.stack(
                [
                    moved[:, :, row, right].mean(-1) - moved[:, :, row, wrong].mean(-1)
                    for row, (right, wrong) in enumerate(zip(rows.answers, rows.wrong, strict=True))
                ]
            ).mean(0)
            direct = float(shares[site.layer, site.head or 0])
            assert -backup.lost == pytest.approx(direct, abs=1e-4, rel=1e-3)
            expected = {
                f"a{layer}.h{head}": float(shares[layer, head])
                for layer in range(site.layer + 1, 3)
                for head in range(4)
                if abs(direct) >= NONE_BELOW * largest
                and float(shares[layer, head]) * direct < 0
                and abs(float(shares[layer, head])) >= LEAST * abs(direct)
            }
            assert backup.heads == pytest.approx(expected, abs=1e-4, rel=1e-3)
            assert list(backup.heads.values()) == sorted(backup.heads.values(), key=lambda change: -abs(change))
            seen += len(expected)
    assert seen > 3


def _run_with_head(model: Small, tokens: Tensor, source: Any, layer: int, head: int | None) -> dict[str, Tensor]:
    name, kept = f"blocks.{layer}.attn.hook_z", {}

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, :, head] = source[name][:, :, head]
        return value

    def keeping(name: str) -> Any:
        def keep(value: Tensor, hook: Any) -> None:
            kept[name] = value.clone()

        return keep

    names = [f"blocks.{i}.attn.hook_z" for i in range(len(model.parts.layers))]
    model.bridge.run_with_hooks(tokens, fwd_hooks=[(name, put), *((n, keeping(n)) for n in names)])
    return kept


def test_every_kind_of_site_can_be_checked() -> None:
    """In every family; a change of the stream before the last layer shows in that layer's heads."""
    for family, partners in (("gpt_neox", 2), ("attention_only", 1), ("gpt2", 2)):
        model = small(family, 3)
        one = experiment(model, random_pairs(7, (4, 4), positions=2, partners=partners), "prob_diff")
        kinds = ["resid_pre", "resid_post", "attn_out", "k", "pattern"]
        kinds += ["neuron", "mlp_out"] if model.parts.layers[0].mlp is not None else []
        found = patch(one, "attribution", site=kinds, disagreements=2)
        assert len(found.disagreements) == 2 * 2 * len(kinds)


def test_progress_counts_what_is_estimated_and_what_is_patched() -> None:
    heard: list[tuple[int, int]] = []
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    attribution.patch(one, attribution.Settings(site="q"), lambda *now: heard.append(now))
    assert heard[-1] == (16, 16)  # 2 directions × 2 layers × 2 heads, estimated and patched
    assert heard == sorted(heard)


# A shortlist.


def test_a_shortlist_patches_what_is_ranked_highest() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    options: dict[str, Any] = {"site": ["k", "resid_pre"], "by": "position"}
    whole = patch(one, **options)
    ranked = patch(one, "attribution", **options, qk_fix=True, compare=False).estimated
    short = patch(one, **options, shortlist="attribution", shortlist_size=3)
    for full, estimate, some in zip(whole.maps, ranked.maps, short.maps, strict=True):
        order = estimate.importance.abs().flatten().argsort(descending=True)
        kept, left = order[:3], order[3:]
        values = some.values.flatten(0, 2)
        torch.testing.assert_close(values[kept], full.values.flatten(0, 2)[kept], atol=1e-5, rtol=0)
        assert bool(values[left].isnan().all())
        assert some.skipped == len(left) == 7
        assert some.largest_skipped == pytest.approx(float(estimate.importance.flatten()[left].abs().max()))
        assert full.skipped == full.largest_skipped == 0
    rows = short.rows()
    assert len(rows) == 4 * 3
    known = {tuple(row[k] for k in ("site", "layer", "position", "direction")): row["recovery"] for row in whole.rows()}
    for row in rows:
        key = tuple(row[k] for k in ("site", "layer", "position", "direction"))
        assert row["recovery"] == pytest.approx(known[key], abs=1e-5)
    both = {(row["site"], row["layer"], row["position"]) for row in rows if row["class"]}
    for where in both:  # a class needs both directions
        assert sum((row["site"], row["layer"], row["position"]) == where for row in rows) == 2


def test_a_shortlist_of_everything_is_everything() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    whole, short = patch(one), patch(one, shortlist="attribution", shortlist_size=99)
    for a, b in zip(whole.maps, short.maps, strict=True):
        assert torch.equal(a.values, b.values)
        assert b.skipped == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("activation", {"shortlist": "random"}, "patch.shortlist=random is not known: give attribution"),
        ("activation", {"shortlist_size": 0}, "patch.shortlist_size=0 is not allowed: give 1 or more"),
        ("activation", {"shortlist_size": 5}, "patch.shortlist_size=5 has no effect without a shortlist"),
        ("attribution", {"compare": False, "disagreements": 5}, "patch.disagreements=5 has no effect with patch.comp"),
        ("attribution", {"disagreements": -1}, "patch.disagreements=-1 is not allowed: give 0 or more"),
        ("attribution", {"qk_fix": True}, "patch.qk_fix=true has no effect without queries or keys"),
        ("attribution", {"shortlist": "attribution"}, "patch=attribution has no option shortlist"),
        ("attribution", {"site": "residual"}, "patch.site=residual is not known"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(AcdcError) as error:
        patch(experiment(small("gpt2", 3), random_pairs(7), "logit_diff"), name, **options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_shortlist_needs_a_gradient() -> None:
    with pytest.raises(AcdcError, match="metric=kl_div is least on the clean run"):
        patch(experiment(small("gpt2", 3), random_pairs(7)), shortlist="attribution")
    same = [Pair([1, 2, 3], [1, 2, 3], [4], [5])]
    with pytest.raises(AcdcError, match="there is nothing to recover"):
        patch(experiment(small("gpt2", 3), same, "logit_diff"), "attribution")
