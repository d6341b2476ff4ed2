"""Ablation against hooks of TransformerLens: alone, in the order of a ranking, in pairs; and what must hold exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import Small, experiment, naive_value, random_pairs, rows_of, small
from hooks import HOOKS
from torch import Tensor

from acdc.errors import AcdcError
from acdc.experiment import Experiment
from acdc.files import write_csv
from acdc.patching import ablation, patch
from acdc.patching.ablation import Settings
from acdc.patching.ablation_result import Ablation
from acdc.patching.ablation_run import VALUES
from acdc.patching.sites import KINDS, Site
from acdc.tasks.base import Pair

LABELS = {6: {"two": [0, 2], "verb": 3, "end": -1}, 5: {"two": [0, 2], "verb": 2, "end": -1}}


class Hooked:
    """The oracle: the bridge's run on the clean prompts, with a hook at every ablated site."""

    def __init__(self, one: Experiment, model: Small, pairs: list[Pair], settings: Settings) -> None:
        self.bridge, self.model, self.pairs, self.settings = model.bridge, model, pairs, settings
        self.rows, self.metric = rows_of(pairs), one.metric_name
        self.tokens = {"clean": self.rows.clean, "corrupted": self.rows.corrupted}
        self.caches = {name: self.bridge.run_with_cache(tokens)[1] for name, tokens in self.tokens.items()}
        self.full = self.read(self.bridge(self.rows.clean))
        self.pair_of = list(one.batch.source)
        self.donors = ablation.check(one, settings).replacements.donors if settings.value == "resample" else None
        self.draws = settings.draws if settings.value == "resample" else 1

    def read(self, logits: Tensor) -> Tensor:
        return logits[range(len(self.rows.positions)), self.rows.positions]

    def by_pair(self, logits: Tensor) -> Tensor:
        found: dict[int, list[float]] = {}
        each = zip(logits.tolist(), self.full.tolist(), self.rows.answers, self.rows.wrong, strict=True)
        for pair, row in zip(self.pair_of, each, strict=True):
            found.setdefault(pair, []).append(naive_value(self.metric, *row))
        return torch.tensor([sum(values) / len(values) for values in found.values()], dtype=torch.float64)

    def stand_in(self, kind: str, layer: int, draw: int) -> Tensor:
        """What is put in at a hook, in the hook's own shape, rows first."""
        name = "hook_resid_mid" if kind == "resid_mid" else HOOKS[kind]
        values = self.caches[self.settings.over][f"blocks.{layer}.{name}"].clone()
        if self.settings.value == "zero":
            bias = self.model.parts.layers[layer].b_O
            return torch.zeros_like(values) + (bias if kind == "attn_out" and bias is not None else 0)
        if self.donors is not None:
            return values[self.donors[draw]]
        lengths, weights = self.rows.lengths, [1 / self.pair_of.count(pair) for pair in self.pair_of]
        token_axis = 2 if kind == "pattern" else 1
        values, out = values.movedim(token_axis, 1), torch.empty_like(values.movedim(token_axis, 1))
        for row, token in ((r, t) for r, n in enumerate(lengths) for t in range(n)):
            same = [
                (r, t)
                for r, n in enumerate(lengths)
                for t in range(n)
                if self.settings.value == "mean" or self.place(r, t) == self.place(row, token)
            ]
            total = sum(weights[r] for r, _ in same)
            out[row, token] = sum(weights[r] / total * values[r, t] for r, t in same)
        return out.movedim(1, token_axis)

    def place(self, row: int, token: int) -> Any:
        """What a token is, by index where all prompts are equally long; here by hand for the prompts of `LABELS`."""
        if len(set(self.rows.lengths)) == 1:
            return token
        return {6: ["0", "1", "+", "verb", "rest", "end"], 5: ["0", "1", "verb", "rest", "end"]}[
            self.rows.lengths[row]
        ][token]

    def hooks(self, sites: Sequence[Site], draw: int) -> list[tuple[str, Any]]:
        before: dict[int, Tensor] = {}
        hooks: list[tuple[str, Any]] = []
        for site in sites:
            other = self.stand_in(site.kind, site.layer, draw)

            def put(value: Tensor, hook: Any, site: Site = site, other: Tensor = other) -> Tensor:
                self.fired.append(site)
                value = value.clone()
                other = other - before[site.layer] if site.kind == "resid_mid" else other
                unit = site.head if site.head is not None else slice(None) if site.neuron is None else site.neuron
                for row, pair in enumerate(self.pair_of):
                    for token in site.place.tokens[pair]:
                        at = (row, unit, token) if site.kind == "pattern" else (row, token, unit)
                        value[at] = other[at]
                return value

            if site.kind == "resid_mid":
                hooks.append(
                    (f"blocks.{site.layer}.hook_resid_pre", lambda x, hook, i=site.layer: before.update({i: x}))
                )
            hooks.append((f"blocks.{site.layer}.{HOOKS[site.kind]}", put))
        return hooks

    def values(self, sites: Sequence[Site]) -> Tensor:
        """The metric of each pair, the mean over draws."""
        found = []
        for draw in range(self.draws):
            self.fired: list[Site] = []
            found.append(
                self.by_pair(self.read(self.bridge.run_with_hooks(self.rows.clean, fwd_hooks=self.hooks(sites, draw))))
            )
            assert len(self.fired) == len(sites)
        return torch.stack(found).mean(0)

    def effects(self, sites: Sequence[Site]) -> Tensor:
        sign = -1 if self.metric in ("logit_diff", "prob_diff") else 1
        return sign * (self.values(sites) - self.by_pair(self.full))


def assert_single_effects(found: Ablation, oracle: Hooked) -> None:
    rows = iter(found.rows())
    for one in found.maps:
        for site, values, effects in zip(one.grid, one.values.flatten(0, -2), one.effects.flatten(0, -2), strict=True):
            theirs = oracle.values([site])
            torch.testing.assert_close(
                values, theirs, atol=1e-4, rtol=1e-4, msg=lambda text, s=site: f"{s.kind} {s}: {text}"
            )
            torch.testing.assert_close(effects, oracle.effects([site]), atol=2e-4, rtol=1e-4)
            row = next(rows)
            assert (row["site"], row["layer"], row["head"], row["n"]) == (
                site.kind,
                site.layer,
                site.head,
                len(effects),
            )
            assert row["effect"] == pytest.approx(float(oracle.effects([site]).mean()), abs=2e-4, rel=1e-4)
    assert next(rows, None) is None


def settings_of(value: str, **options: Any) -> Settings:
    options = {"draws": 2, **options} if value == "resample" else options
    return Settings(value=value, **{"ranking": None, "backup": 0, "additivity": 0, **options})


def ablated(one: Experiment, settings: Settings) -> Ablation:
    return ablation.patch(one, settings)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("kind", "metric"), [("gpt2", "logit_diff"), ("llama", "kl_div"), ("gpt_neox", "nll")])
def test_every_site_is_what_a_hook_does(kind: str, metric: str, value: str) -> None:
    model = small(kind, 3, **({"num_key_value_heads": 2} if kind == "llama" else {}))
    pairs = random_pairs(7, (4, 4, 4), partners=2 if kind == "llama" else 1)
    one = experiment(model, pairs, metric)
    names = [name for name in KINDS if not (kind == "gpt_neox" and name == "resid_mid")]
    names = [name for name in names if not (value == "mean" and name == "pattern")]
    by_layer = [name for name in names if KINDS[name].units == ""]
    by_unit = [name for name in names if name not in by_layer]
    chosen = [
        {"site": by_layer, "positions": 1, "layers": 1},
        {"site": by_unit, "layers": 0, "heads": 1, "neurons": 3},
    ]
    for options in chosen:
        over = "clean" if metric == "kl_div" and value != "zero" else "corrupted"
        settings = settings_of(value, over=over, **options)
        assert_single_effects(ablated(one, settings), Hooked(one, model, pairs, settings))


@pytest.mark.parametrize("value", ["mean", "mean_by_position", "resample"])
def test_prompts_of_different_lengths_are_what_a_hook_does(value: str) -> None:
    pairs = [replace(pair, labels=LABELS[len(pair.clean)]) for pair in random_pairs(2, (6, 5, 6, 5), partners=2)]
    model = small("llama", 3, num_key_value_heads=2)
    one = experiment(model, pairs, "logit_diff")
    settings = settings_of(value, site=["head_output", "k", "mlp_out"], by="auto", layers=1)
    assert_single_effects(ablated(one, settings), Hooked(one, model, pairs, settings))


def test_native_models_are_what_a_hook_does() -> None:
    for kind in ("attention_only", "bidirectional"):
        model, pairs = small(kind, 1), random_pairs(3)
        one = experiment(model, pairs)
        settings = settings_of("mean", site=["attn_out", "head_output", "q"], by="position", positions=[0, 3])
        assert_single_effects(ablated(one, settings), Hooked(one, model, pairs, settings))


@pytest.mark.parametrize("value", ["zero", "mean_by_position", "resample"])
def test_the_curve_is_what_many_hooks_do(value: str) -> None:
    model, pairs = small("gpt2", 3), random_pairs(7, (5, 5, 5), partners=2)
    one = experiment(model, pairs, "logit_diff")
    order = ["mlp_out:0@2", "attn_out:1@4", "mlp_out:1@4", "attn_out:0@2"]
    options = {"site": ["mlp_out", "attn_out"], "positions": [2, 4], "orders": 2, "additivity": order[:3]}
    settings = settings_of(value, ranking="given", order=order, **options)
    found, oracle = ablated(one, settings), Hooked(one, model, pairs, settings)
    curve = found.curve
    assert curve is not None
    assert curve.ranked is not None
    assert curve.counts == (0, 1, 2, 3, 4)
    assert [found.names.name(site) for site in curve.sites] == order
    for count, effects in zip(curve.counts, curve.ranked, strict=True):
        theirs = oracle.effects(curve.sites[:count]) if count else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(effects, theirs, atol=2e-4, rtol=1e-4)
    # Random orders are of the same sites: alike at both ends.
    torch.testing.assert_close(curve.shuffled[:, -1], curve.ranked[-1].expand(2, -1), atol=1e-5, rtol=0)
    alone = [float(oracle.effects([site]).mean()) for site in curve.sites]
    for effects in curve.shuffled:
        assert any(float(effects[1].mean()) == pytest.approx(effect, abs=1e-4) for effect in alone)
    means = curve.ranked.mean(-1).tolist()
    assert curve.area(curve.ranked) == pytest.approx(sum(a + b for a, b in pairwise(means)) / 8)
    # The same sites in pairs and together.
    assert found.additivity is not None
    sites = found.additivity.sites
    assert sites == curve.sites[:3]
    torch.testing.assert_close(found.additivity.whole, curve.ranked[3], atol=1e-5, rtol=0)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        interaction = oracle.effects([sites[i], sites[j]]) - oracle.effects([sites[i]]) - oracle.effects([sites[j]])
        torch.testing.assert_close(found.additivity.interactions[i, j], interaction, atol=5e-4, rtol=1e-3)
    rows = found.additivity_rows()
    named = [f"{order[i]} {order[j]}" for i, j in ((0, 1), (0, 2), (1, 2))]
    assert [row["sites"] for row in rows] == [*named, " ".join(order[:3])]


# What must hold exactly.


def test_effects_of_a_linear_model_add_up() -> None:
    """One layer, no norm: the heads add to the logits, so no two interact."""
    one = experiment(small("attention_only", 1, n_layers=1, n_heads=4), random_pairs(3), "logit_diff")
    found = ablated(one, settings_of("mean", additivity=4, ranking="effect"))
    assert found.additivity is not None
    assert found.curve is not None
    assert float(found.additivity.single.abs().mean()) > 0.01
    for interaction in (found.additivity.interactions, found.additivity.interaction):
        torch.testing.assert_close(interaction, torch.zeros_like(interaction), atol=5e-5, rtol=0)
    # So no order is above that of the effects, at any point.
    assert found.curve.ranked is not None
    assert bool((found.curve.ranked.mean(-1) >= found.curve.shuffled.mean(-1) - 1e-5).all())
    assert found.curve.areas["effect"] >= found.curve.areas["random"]


def test_positive_means_that_the_site_helps_in_every_metric() -> None:
    for metric in ("logit_diff", "prob_diff", "nll", "kl_div", "l2"):
        one = experiment(small("gpt2", 3), random_pairs(7), metric)
        found = ablated(one, settings_of("zero", site="resid_post", layers=1))
        sign = -1 if metric in ("logit_diff", "prob_diff") else 1
        torch.testing.assert_close(found.maps[0].effects, sign * (found.maps[0].values - found.scale.clean))
        gap = float(sign * (found.scale.corrupted - found.scale.clean).mean())
        for row in found.rows():
            assert row["share"] == pytest.approx(row["effect"] / gap)


def test_memory_decides_nothing() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, (4, 4, 4), partners=2))
    options = {"site": ["k", "neuron", "resid_pre"], "neurons": 3, "positions": [1, 3], "orders": 1, "additivity": 2}
    options |= {"ranking": "effect", "backup": ["k:0.h1@1,3", "neuron:1.n3@1,3"], "points": 3}
    wide = ablated(one, settings_of("resample", **options))
    for memory in (1e-4, 1e-6):  # some sites at once; blocks of rows
        thin = ablated(one, settings_of("resample", memory_gb=memory, **options))
        for a, b in zip(wide.maps, thin.maps, strict=True):
            torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=0)
        for a, b in zip(wide.backups, thin.backups, strict=True):
            torch.testing.assert_close(a.after, b.after, atol=1e-5, rtol=0)
        assert wide.curve is not None
        assert thin.curve is not None
        torch.testing.assert_close(wide.curve.shuffled, thin.curve.shuffled, atol=1e-5, rtol=0)


def test_the_seed_decides_the_draws() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, (5,) * 8))
    first, same, other = (ablated(one, settings_of("resample", seed=seed)).maps[0].values for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    donors = ablation.check(one, settings_of("resample", draws=50)).replacements.donors
    assert all(set(donors[:, row].tolist()) == set(range(8)) - {row} for row in range(8))


def test_a_file_ranks_the_sites(tmp_path: Path) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    for direction in ("noise", "denoise", "both"):
        found = patch(one, "activation", direction=direction)
        rows = [row for row in found.rows() if row["direction"] == (direction if direction != "both" else "denoise")]
        path = tmp_path / f"{direction}.csv"
        write_csv(path, found.rows())
        rows.sort(key=lambda row: row["recovery"], reverse=direction != "noise")
        curve = ablated(one, settings_of("zero", ranking=str(path))).curve
        assert curve is not None
        assert [(site.layer, site.head) for site in curve.sites] == [(row["layer"], row["head"]) for row in rows]
        assert curve.ranking == f"{direction}.csv"
    first = ablated(one, settings_of("zero"))
    write_csv(tmp_path / "patch.csv", first.rows())
    (tmp_path / "names.csv").write_text("name\n1.h0\n0.h1\n7.h7\n")
    by_effect, by_name = (
        ablated(one, settings_of("zero", ranking=str(tmp_path / name))).curve for name in ("patch.csv", "names.csv")
    )
    assert by_effect is not None
    assert by_name is not None
    assert list(by_effect.sites) == [site for site, _ in first.ranked()]
    assert [site.name for site in by_name.sites] == ["a1.h0", "a0.h1"]


def test_a_long_curve_has_as_many_points_as_asked_for() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7))
    curve = ablated(one, settings_of("zero", site="neuron", ranking="effect", points=6, orders=0)).curve
    assert curve is not None
    assert curve.counts == (0, 6, 13, 19, 26, 32)
    assert len(curve.shuffled) == 0
    assert "random" not in curve.areas


def test_progress_comes_to_its_end() -> None:
    heard: list[tuple[int, int]] = []
    one = experiment(small("gpt2", 3), random_pairs(7))
    settings = settings_of("resample", ranking="effect", orders=2, backup=2, additivity=3, memory_gb=1e-6)
    ablation.patch(one, settings, lambda *now: heard.append(now))
    total = 4 + 3 * 4 + 2 + 4
    assert heard[-1] == heard[-2] == (total, total)  # it is there before the end is declared
    assert heard == sorted(heard)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"value": "noise"}, "patch.value=noise is not known: choose one of zero, mean"),
        ({"over": "both"}, "patch.over=both is not known: choose clean or corrupted"),
        ({"by": "token"}, "patch.by=token is not known"),
        ({"value": "zero", "over": "clean"}, "patch.over=clean has no effect with patch.value=zero"),
        ({"draws": 3}, "patch.draws=3 has no effect with patch.value=mean"),
        ({"value": "resample", "draws": 0}, "patch.draws=0 is not allowed"),
        ({"ranking": "best"}, "patch.ranking=best is not known: choose effect, given, random, a file (.csv) or null"),
        ({"ranking": "none.csv"}, "patch.ranking=none.csv cannot be read"),
        ({"ranking": "given"}, "patch.ranking=given needs patch.order"),
        ({"order": ["0.h0"]}, "patch.order has no effect with patch.ranking=effect"),
        ({"ranking": "given", "order": []}, "patch.order=[] is not allowed"),
        ({"ranking": "given", "order": ["0.h0", "5.h0"]}, "patch.order=5.h0 is not among the 4 chosen sites: give"),
        ({"ranking": "given", "order": ["0.h0", "0.h0"]}, "patch.order has 0.h0 twice"),
        ({"ranking": "random", "orders": 0}, "patch.orders=0 leaves nothing"),
        ({"points": 1}, "patch.points=1 is not allowed: give 2 or more"),
        ({"backup": ["m1"]}, "patch.backup=m1 is not among the 4 chosen sites: give names such as a0.h0, a0.h1"),
        ({"backup": ["1@0"], "site": "resid_pre"}, "patch.backup=1@0: patch.site=resid_pre is not of one head"),
        ({"backup": -1}, "patch.backup=-1 is not allowed: give 0 or more"),
        ({"additivity": ["0.h0"]}, "patch.additivity=['0.h0'] is not allowed: give at least two sites, or 0"),
        ({"additivity": 1}, "patch.additivity=1 is not allowed"),
        ({"shift_limit": 0.0}, "patch.shift_limit=0.0 is not allowed"),
        ({"site": "pattern"}, "patch.value=mean does not fit patch.site=pattern"),
        ({"layers": 2}, "patch.layers=2 is not there"),
        ({"memory_gb": 0.0}, "patch.memory_gb=0.0 is not allowed"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AcdcError) as error:
        patch(experiment(small("gpt2", 3), random_pairs(7)), "ablation", **options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_positions_that_do_not_correspond_are_refused() -> None:
    model = small("gpt2", 3)
    with pytest.raises(AcdcError, match=r"^patch.value=mean_by_position averages .* choose patch.value=mean, resample"):
        patch(experiment(model, random_pairs(7, (4, 5))), "ablation", value="mean_by_position")
    with pytest.raises(AcdcError, match=r"^patch.value=resample takes values of another pair, and for pair 0 there is"):
        patch(experiment(model, random_pairs(7, (4, 5))), "ablation", value="resample")
    with pytest.raises(AcdcError, match="ablation=zero is not what patch=ablation puts in"):
        patch(experiment(model, random_pairs(7), ablation="zero"), "ablation")
