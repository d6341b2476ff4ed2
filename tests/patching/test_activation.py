"""Activation patching against hooks of TransformerLens, site by site, and what must hold exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_model
from experiments import Small, experiment, naive_value, random_pairs, rows_of, small
from hooks import HOOKS
from torch import Tensor
from transformers import LlamaForCausalLM

from acdc import Experiment
from acdc.errors import AcdcError
from acdc.model import ModelSettings, load_model
from acdc.patching import patch
from acdc.patching.activation_result import Patched, SiteMap
from acdc.patching.sites import KINDS, WAYS, Site
from acdc.tasks.base import Pair, Task


class Hooked:
    """The oracle: one run of the bridge for each site, with a hook that puts the other run's value in."""

    def __init__(self, bridge: Any, pairs: list[Pair], metric: str) -> None:
        self.bridge, self.rows, self.metric = bridge, rows_of(pairs), metric
        self.tokens = {"clean": self.rows.clean, "corrupted": self.rows.corrupted}
        self.caches = {name: bridge.run_with_cache(tokens)[1] for name, tokens in self.tokens.items()}
        self.full = self.read(bridge(self.tokens["clean"]))
        n_partners = [len(p.corrupted) if isinstance(p.corrupted[0], list) else 1 for p in pairs]
        n_positions = [len(p.position) if isinstance(p.position, list) else 1 for p in pairs]
        self.pair_of = [i for i in range(len(pairs)) for _ in range(n_partners[i] * n_positions[i])]

    def read(self, logits: Tensor) -> Tensor:
        return logits[range(len(self.rows.positions)), self.rows.positions]

    def by_pair(self, logits: Tensor) -> list[float]:
        """The metric of each pair, from its definition."""
        found: dict[int, list[float]] = {}
        each = zip(logits.tolist(), self.full.tolist(), self.rows.answers, self.rows.wrong, strict=True)
        for pair, row in zip(self.pair_of, each, strict=True):
            found.setdefault(pair, []).append(naive_value(self.metric, *row))
        return [sum(values) / len(values) for values in found.values()]

    def patched(self, site: Site, direction: str) -> list[float]:
        base, source = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
        name, fired = f"blocks.{site.layer}.{HOOKS[site.kind]}", 0
        other = self.caches[source][name]
        if site.kind == "resid_mid":
            here, there = (self.caches[run][f"blocks.{site.layer}.hook_resid_mid"] for run in (base, source))
            other = self.caches[base][name] + there - here

        def put(value: Tensor, hook: Any) -> Tensor:
            nonlocal fired
            fired += 1
            value = value.clone()
            unit = slice(None) if site.head is None and site.neuron is None else site.head or site.neuron or 0
            for row, pair in enumerate(self.pair_of):
                for token in site.place.tokens[pair]:
                    at = (row, unit, token) if site.kind == "pattern" else (row, token, unit)
                    value[at] = other[at]
            return value

        logits = self.bridge.run_with_hooks(self.tokens[base], fwd_hooks=[(name, put)])
        assert fired == 1, name
        return self.by_pair(self.read(logits))


def assert_like_hooks(one: Experiment, oracle: Hooked, kinds: list[str], way: str) -> None:
    found = patch(one, site=kinds, by=way, direction="both")
    clean, corrupted = (oracle.by_pair(oracle.read(oracle.bridge(oracle.tokens[n]))) for n in ("clean", "corrupted"))
    gap = (sum(clean) - sum(corrupted)) / len(clean)
    rows = iter(found.rows())
    for site_map in found.maps:
        values = site_map.values.flatten(0, -2).tolist()
        for site, ours in zip(site_map.grid, values, strict=True):
            theirs = oracle.patched(site, site_map.direction)
            assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4), (site, site_map.direction)
            before, end = (clean, 1) if site_map.direction == "noise" else (corrupted, 0)
            each = [end + (t - b) / gap for t, b in zip(theirs, before, strict=True)]
            mean = sum(each) / len(each)
            assert mean == pytest.approx((sum(theirs) - sum(corrupted)) / (sum(clean) - sum(corrupted)))
            row = next(rows)
            assert (row["site"], row["layer"], row["head"]) == (site.kind, site.layer, site.head)
            assert row["recovery"] == pytest.approx(mean, abs=1e-4, rel=1e-4)
            std = math.sqrt(sum((x - mean) ** 2 for x in each) / (len(each) - 1))
            assert (row["std"], row["n"]) == (pytest.approx(std, abs=1e-4, rel=1e-4), len(each))
    assert next(rows, None) is None


def kinds_of(model: Small) -> list[str]:
    parallel = model.parts.config.parallel_attn_mlp
    return [kind for kind in KINDS if not (parallel and kind == "resid_mid")]


@pytest.mark.parametrize("way", ["auto", "position", "head_position"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gpt_neox_sequential"])
def test_every_site_is_what_a_hook_does(kind: str, way: str) -> None:
    config = {"num_key_value_heads": 2} if kind == "llama" else {}
    model = small(kind, 3, **config)
    metric = {"gpt2": "logit_diff", "llama": "kl_div", "gpt_neox": "prob_diff", "gpt_neox_sequential": "nll"}[kind]
    pairs = random_pairs(7, (5, 5, 5), positions=2 if way == "auto" else None, partners=2 if way == "position" else 1)
    units = [u for u, ways in WAYS.items() if way == "auto" or way in ways]
    kinds = [name for name in kinds_of(model) if KINDS[name].units in units]
    assert_like_hooks(experiment(model, pairs, metric), Hooked(model.bridge, pairs, metric), kinds, way)


def test_neurons_at_single_positions_are_what_a_hook_does() -> None:
    model, pairs = small("llama", 3), random_pairs(8, (4, 4))
    assert_like_hooks(experiment(model, pairs), Hooked(model.bridge, pairs, "kl_div"), ["neuron"], "neuron_position")


def test_grouped_heads_have_keys_and_values_of_their_own(tmp_path: Path) -> None:
    """As in the same model with the keys and values of a group written out for each head."""
    grouped = make_model("llama", 4, n_heads=4)
    state = grouped.state_dict()
    for name in [n for n in state if n.endswith(("k_proj.weight", "v_proj.weight"))]:
        state[name] = state[name].unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1)
    config = type(grouped.config)(**grouped.config.to_dict() | {"num_key_value_heads": 4})
    spread = LlamaForCausalLM(config)
    spread.load_state_dict(state)
    spread.save_pretrained(tmp_path / "spread")
    _, bridge = load_model(ModelSettings("local", str(tmp_path / "spread"), device="cpu"))
    pairs = random_pairs(9)
    one = experiment(small("llama", 4, n_heads=4), pairs)
    assert one.model.layers[0].W_K.shape[0] == 2
    assert_like_hooks(one, Hooked(bridge, pairs, "kl_div"), ["q", "k", "v", "pattern"], "head")


@pytest.mark.parametrize("kind", ["attention_only", "bidirectional"])
def test_native_models_are_what_a_hook_does(kind: str) -> None:
    model, pairs = small(kind, 1), random_pairs(3)
    kinds = ["resid_pre", "attn_out", "head_output", "q", "k", "v", "pattern"]
    for way in ("auto", "position"):
        assert_like_hooks(experiment(model, pairs), Hooked(model.bridge, pairs, "kl_div"), kinds, way)


# What must hold exactly.


@pytest.mark.parametrize("metric", ["logit_diff", "kl_div"])
def test_all_of_the_stream_is_the_other_run(metric: str) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), metric)
    found = patch(one, site=["resid_pre", "resid_mid", "resid_post"], positions="0:5")
    for site_map in found.maps:
        end = site_map.corrupted if site_map.direction == "noise" else site_map.clean
        torch.testing.assert_close(site_map.values, end.expand_as(site_map.values), atol=1e-5, rtol=0)
        torch.testing.assert_close(site_map.importance, torch.ones_like(site_map.importance), atol=1e-5, rtol=0)
    assert set(found.classes().values()) == {"necessary_and_sufficient"}


def test_what_is_the_same_in_both_runs_has_no_effect_at_all() -> None:
    pairs = [Pair([1, 2, 3, 4], [1, 2, 5, 4], [6], [7]), Pair([4, 1, 3, 4], [4, 1, 7, 4], [2], [3])]
    found = patch(experiment(small("gpt2", 3), pairs, "logit_diff"), site="resid_pre")
    for site_map in found.maps:
        before = site_map.importance[:, :, :2]
        assert torch.equal(before, torch.zeros_like(before))
        assert bool(site_map.importance[0, 0, 2] != 0)
        assert float(site_map.importance[0, 0, 3]) == 0  # at the embedding only what differs matters


def test_heads_written_together_are_the_attention_output() -> None:
    one = experiment(small("gpt_neox_sequential", 3), random_pairs(7))
    heads, attention = (patch(one, site=site, by="position") for site in ("head_output", "attn_out"))
    for a, b in zip(heads.maps, attention.maps, strict=True):
        torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=0)


def test_memory_decides_nothing() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, partners=2))
    wide = patch(one, site=["k", "neuron", "resid_pre"])
    for memory in (2e-5, 1e-6):  # some sites at once; blocks of rows
        thin = patch(one, site=["k", "neuron", "resid_pre"], memory_gb=memory)
        for a, b in zip(wide.maps, thin.maps, strict=True):
            torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=0)


def labelled(lengths: tuple[int, ...]) -> list[Pair]:
    pairs = random_pairs(5, lengths)
    return [
        replace(p, labels={"middle": n // 2, "two": [0, 2], "end": -1}) for p, n in zip(pairs, lengths, strict=True)
    ]


def test_labels_find_their_tokens_in_pairs_of_any_length() -> None:
    pairs = labelled((3, 6, 5))
    model = small("gpt2", 3)
    found = patch(experiment(model, pairs), site=["resid_pre", "k"], by="position")
    assert [place.name for place in found.maps[0].grid.places] == ["middle", "two", "end"]
    for i, pair in enumerate(pairs):
        alone = patch(
            experiment(model, [pair]), site=["resid_pre", "k"], by="position", positions=["middle", "two", "end"]
        )
        for a, b in zip(found.maps, alone.maps, strict=True):
            torch.testing.assert_close(a.values[..., i], b.values[..., 0], atol=1e-5, rtol=0)
    assert [row["std"] for row in alone.rows()] == [None] * len(alone.rows())


def test_a_place_is_found_by_index_label_and_span() -> None:
    one = experiment(small("gpt2", 3), labelled((6, 6)))
    for name, indices in (("middle", [3]), ("two", [0, 1]), ("2:4", [2, 3]), (-1, [5]), ("end", [5]), (4, [4])):
        named = patch(one, site="q", positions=name).maps[0].values
        torch.testing.assert_close(named, patch(one, site="q", positions=indices).maps[0].values)


def test_a_subset_is_the_rows_of_the_whole_sweep() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7))
    whole = {(r["layer"], r["head"], r["position"], r["direction"]): r for r in patch(one, by="head_position").rows()}
    some = patch(one, by="head_position", layers=1, heads=[1], positions=[4, 2]).rows()
    assert len(some) == 4
    for row in some:
        key = (1, 1, row["position"], row["direction"])
        assert row["recovery"] == pytest.approx(whole[key]["recovery"], abs=1e-5)
        assert (row["subset"], whole[key]["subset"]) == ("layers=1 heads=1 positions=4,2", "")


def test_classes_follow_the_limits() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7))
    found = patch(one, layers=0)
    clean, corrupted = torch.tensor([1.0]), torch.tensor([0.0])
    grid = replace(found.maps[0].grid, units=(0, 1, 2, 3))

    def with_recovery(direction: str, values: list[float]) -> SiteMap:
        return SiteMap(grid, direction, torch.tensor(values).reshape(1, 4, 1, 1), clean, corrupted)

    maps = with_recovery("noise", [0.5, 0.75, 0.5, 0.75]), with_recovery("denoise", [0.25, 0.25, 0.125, 0.125])
    result = Patched(maps, "logit_diff", "", sufficient_from=0.25, necessary_from=0.5)
    assert list(result.classes().values()) == [
        "necessary_and_sufficient",
        "sufficient_redundant",
        "necessary_only",
        "irrelevant",
    ]
    assert [row["class"] for row in result.rows()] == 2 * list(result.classes().values())
    assert not Patched(maps[:1], "logit_diff", "", 0.25, 0.5).classes()


def test_progress_comes_to_its_end() -> None:
    heard: list[tuple[int, int]] = []
    from acdc.patching import activation

    one = experiment(small("gpt2", 3), random_pairs(7))
    activation.patch(one, activation.Settings(site=["q", "resid_pre"]), lambda *now: heard.append(now))
    assert heard[-1] == (28, 28)  # 2 directions × (2 layers × 2 heads + 2 layers × 5 positions)
    assert heard == sorted(heard)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"site": "residual"}, "patch.site=residual is not known: choose from resid_pre"),
        ({"site": []}, "patch.site is empty"),
        ({"by": "token"}, "patch.by=token is not known: choose one of auto, position, head"),
        ({"site": "mlp_out", "by": "head"}, "patch.by=head does not fit patch.site=mlp_out: choose auto or position"),
        ({"direction": "up"}, "patch.direction=up is not known: choose one of noise, denoise, both"),
        ({"layers": [0, 2]}, "patch.layers=2 is not there: give numbers from 0 to 1"),
        ({"heads": []}, "patch.heads=[] is not there"),
        ({"heads": 0, "site": "attn_out"}, "patch.heads has no effect with patch.site=attn_out"),
        ({"heads": 0, "by": "position"}, "patch.heads has no effect with patch.by=position"),
        ({"neurons": 0}, "patch.neurons has no effect with patch.site=head_output"),
        ({"positions": 5}, "patch.positions=5 lies outside the prompts of 5 tokens: give indices from 0 to 4"),
        ({"positions": []}, "patch.positions=[] is no position: give indices from 0 to 4"),
        ({"positions": "3:3"}, "patch.positions=3:3 lies outside"),
        ({"positions": "subject"}, "patch.positions=subject is not a position"),
        ({"positions": [1, -4], "by": "position"}, "patch.positions has 1 twice"),
        ({"memory_gb": 0.0}, "patch.memory_gb=0.0 is not allowed"),
        ({"layer": 0}, "patch=activation has no option layer: choose from name, site"),
    ],
)
def test_what_cannot_be_patched_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AcdcError) as error:
        patch(experiment(small("gpt2", 3), random_pairs(7)), **options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_what_model_or_pairs_do_not_have_is_refused() -> None:
    pairs = random_pairs(7)
    with pytest.raises(AcdcError, match=r"resid_mid: attention and MLP of .* work in parallel"):
        patch(experiment(small("gpt_neox", 3), pairs), site="resid_mid")
    with pytest.raises(AcdcError, match="neuron: attention_only has no MLPs"):
        patch(experiment(small("attention_only", 1), pairs), site="neuron")
    with pytest.raises(AcdcError, match="the pairs have 4 to 5 tokens and share no labels"):
        patch(experiment(small("gpt2", 3), random_pairs(7, (4, 5))), site="resid_pre")
    with pytest.raises(
        AcdcError, match="an index is not the same place in all of them: give the labels middle, two, end"
    ):
        patch(experiment(small("gpt2", 3), labelled((4, 5))), positions=1)
    with pytest.raises(AcdcError, match="ablation=zero does not fit job=patch"):
        patch(experiment(small("gpt2", 3), pairs, ablation="zero"))
    same = [Pair([1, 2, 3], [1, 2, 3], [4], [5])]
    with pytest.raises(AcdcError, match="there is nothing to recover"):
        patch(Experiment.build(small("gpt2", 3).parts, Task("same", same, "logit_diff")))
