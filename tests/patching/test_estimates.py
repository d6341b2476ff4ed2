"""Estimates from gradients against slopes of really patched runs, TransformerLens' hooks and what must hold exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from experiments import KINDS as FAMILIES
from experiments import Small, experiment, random_pairs, rows_of, small
from hooks import HOOKS
from torch import Tensor

from acdc import Experiment
from acdc.engine.joint import JointRun, Replaced
from acdc.engine.resumed import ResumedRun
from acdc.errors import AcdcError
from acdc.patching import activation, estimates
from acdc.patching.activation_result import SiteMap
from acdc.patching.sites import KINDS, WAYS, Site, SiteSettings
from acdc.tasks.base import Pair


def kinds_of(model: Small, way: str = "auto") -> list[str]:
    """The kinds of site that a model has, and that are told apart in this way."""
    config, attention_only = model.parts.config, model.parts.layers[0].mlp is None
    missing = {"resid_mid"} if config.parallel_attn_mlp else set()
    missing |= {"resid_mid", "mlp_out", "neuron"} if attention_only else set()
    return [name for name, kind in KINDS.items() if name not in missing and way in ("auto", *WAYS[kind.units])]


def estimated(one: Experiment, sites: list[str], by: str = "auto", **options: Any) -> list[SiteMap]:
    direction = options.pop("direction", "both")
    memory = options.pop("memory_gb", None)
    settings = SiteSettings("attribution", site=sites, by=by, direction=direction, memory_gb=memory)
    return estimates.estimate(one, settings, **options)


def changes(one: SiteMap) -> Iterator[tuple[Site, Tensor]]:
    """What a map says each site changes of each pair's metric, in the metric's units."""
    unpatched = one.clean if one.direction == "noise" else one.corrupted
    return zip(one.grid, (one.values - unpatched).flatten(0, 2), strict=True)


# Slopes of a run in which a site goes a small step from one run's value to the other's.


def value_of(run: ResumedRun, kind: str, layer: int) -> Tensor:
    parts, mask = run.model.layers[layer], run.experiment.attention_mask
    if kind in ("q", "k", "v"):
        value: Tensor = getattr(run, kind)[layer]
    elif kind == "pattern":
        value = parts.attend(run.q[layer], run.k[layer], mask)
    elif kind == "neuron":
        assert parts.mlp is not None
        value = parts.mlp.neurons((run.pre if run.model.config.parallel_attn_mlp else run.mid)[layer])
    elif kind == "attn_out":
        value = parts.write_together(run.values.heads[layer])
    elif kind in ("head_output", "mlp_out"):
        value = (run.values.heads if kind == "head_output" else run.values.mlps)[layer]
    else:
        value = run.mid[layer] if kind == "resid_mid" else run.pre[layer + (kind == "resid_post")]
    return value


def slope(one: Experiment, site: Site, direction: str, step: float = 1e-5) -> list[float]:
    """Of each pair, by a central difference; in float64."""
    runs = ResumedRun(one, one.clean), ResumedRun(one, one.ablated)
    base, source = runs if direction == "noise" else runs[::-1]
    here, there = (value_of(run, site.kind, site.layer) for run in (base, source))
    where = site.place.mask(one)[None, ..., None]  # variant row pos 1
    if site.head is not None:
        heads = torch.arange(here.shape[0])[None, :, None, None, None] == site.head
        where = where[:, None] & heads
    elif KINDS[site.kind].units == "head":
        where = where[:, None]
    elif site.neuron is not None:
        where = where & (torch.arange(here.shape[-1]) == site.neuron)
    ends = []
    for sign in (1, -1):
        value = here + sign * step * (there - here)
        ends.append(JointRun(base).metric_values({(site.kind, site.layer): Replaced(where, value)})[0])
    found = [0.0] * len(one.pairs)
    slopes = (ends[0] - ends[1]) / (2 * step) * one.readouts.weight * len(one.pairs)
    for row, value in zip(one.readouts.row.tolist(), slopes.tolist(), strict=True):
        found[one.batch.source[row]] += value
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_estimate_is_the_slope_of_real_patching(family: str) -> None:
    """Of every kind of site and metric, with several partners and positions; and with prompts of unequal length."""
    model = small(family, 3)
    metrics = ("logit_diff", "prob_diff", "nll")
    metric = metrics[FAMILIES.index(family) % len(metrics)]
    equal = experiment(model, random_pairs(7, (4, 4), positions=2, partners=2), metric).to("cpu", torch.float64)
    unequal = experiment(model, random_pairs(8, (3, 5)), metric).to("cpu", torch.float64)
    for one, by in ((equal, "auto"), (equal, "head_position"), (unequal, "head")):
        for site_map in estimated(one, kinds_of(model, by), by):
            for site, change in list(changes(site_map))[
                :: 7 if site_map.grid.kind.units == "neuron" else 2 + (by == "head_position") * 3
            ]:
                expected = slope(one, site, site_map.direction)
                assert change.tolist() == pytest.approx(expected, abs=1e-6, rel=1e-5), (site, site_map.direction)


def test_kl_divergence_has_a_slope_when_denoising() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, (4, 4)), "kl_div").to("cpu", torch.float64)
    for site_map in estimated(one, ["q", "resid_pre"], direction="denoise"):
        for site, change in changes(site_map):
            assert change.tolist() == pytest.approx(slope(one, site, "denoise"), abs=1e-6, rel=1e-5)


# Slopes by automatic differentiation through the bridge.


class Bridge:
    """One run of the bridge, differentiated by how far each site has gone to the other run's value."""

    def __init__(self, model: Small, pairs: list[Pair], direction: str) -> None:
        self.bridge, self.rows = model.bridge, rows_of(pairs)
        tokens = self.rows.clean, self.rows.corrupted
        self.tokens, others = tokens if direction == "noise" else tokens[::-1]
        with torch.no_grad():
            self.here, self.there = (model.bridge.run_with_cache(t)[1] for t in (self.tokens, others))

    def metric(self, hooks: list[Any]) -> Tensor:
        """The logit difference of each row."""
        logits = self.bridge.run_with_hooks(self.tokens, fwd_hooks=hooks)
        each = zip(logits, self.rows.positions, self.rows.answers, self.rows.wrong, strict=True)
        return torch.stack([x[at, right].mean() - x[at, wrong].mean() for x, at, right, wrong in each])

    def slopes(self, kind: str, layer: int, held: int | None = None) -> Tensor:
        """`row pos unit`; of the stream the unit axis is 1. `held`: a layer whose writes are constants."""
        name = f"blocks.{layer}.{HOOKS[kind]}"
        difference = self.there[name] - self.here[name]
        if kind == "resid_mid":
            mid = f"blocks.{layer}.hook_resid_mid"
            difference = self.there[mid] - self.here[mid]
        one_each = kind == "neuron"
        steps = torch.zeros(difference.shape if one_each else difference.shape[:-1], requires_grad=True)

        def put(value: Tensor, hook: Any) -> Tensor:
            return value + (steps * difference if one_each else steps[..., None] * difference)

        hooks: list[Any] = []
        if held is not None:
            hooks = [(f"blocks.{held}.{part}", lambda value, hook: value.detach()) for part in _WRITES]
        value = self.metric([*hooks, (name, put)])
        (found,) = torch.autograd.grad((value * torch.tensor(self.rows.weights)).sum(), steps)
        if kind == "pattern":
            return found.movedim(1, -1)
        return found if KINDS[kind].units else found[..., None]


_WRITES = ("hook_attn_out", "hook_mlp_out")


def assert_like_bridge(site_map: SiteMap, of_layer: dict[int, Tensor]) -> None:
    """`of_layer`: of each layer, `row pos unit`, of rows that have one pair each."""
    for site, change in changes(site_map):
        unit = site.head if site.neuron is None else site.neuron
        scores = of_layer[site.layer][..., slice(None) if unit is None else [unit]]
        for pair, (ours, theirs) in enumerate(zip(change.tolist(), scores, strict=True)):
            expected = float(theirs[sorted(site.place.tokens[pair])].sum()) * len(change)
            assert ours == pytest.approx(expected, abs=1e-4, rel=1e-3), (site, site_map.direction, pair)


@pytest.mark.parametrize(("family", "by"), [("gpt2", "head_position"), ("llama", "auto"), ("gpt_neox", "auto")])
def test_an_estimate_is_the_gradient_of_the_bridge(family: str, by: str) -> None:
    model = small(family, 4, **({"num_key_value_heads": 2} if family == "llama" else {}))
    pairs = random_pairs(7, (4, 4))
    one = experiment(model, pairs, "logit_diff")
    for site_map in estimated(one, kinds_of(model, by), by):
        bridge = Bridge(model, pairs, site_map.direction)
        assert_like_bridge(site_map, {i: bridge.slopes(site_map.grid.kind.name, i) for i in site_map.grid.layers})


@pytest.mark.parametrize(("family", "direction"), [("gpt2", "denoise"), ("llama", "noise")])
def test_grad_drop_is_the_mean_size_over_layers_held_fixed(family: str, direction: str) -> None:
    """By hooks that make what a layer writes constant."""
    n_layers = 3
    model = small(family, 5, n_layers=n_layers, **({"num_key_value_heads": 2} if family == "llama" else {}))
    pairs = random_pairs(7, (4, 4))
    one = experiment(model, pairs, "logit_diff")
    for site_map in estimated(one, kinds_of(model), grad_drop=True, direction=direction):
        bridge, kind = Bridge(model, pairs, site_map.direction), site_map.grid.kind.name
        inside = not kind.startswith("resid")
        gap = float((site_map.clean - site_map.corrupted).mean())
        sign = (1 if gap > 0 else -1) * (1 if site_map.direction == "denoise" else -1)
        by_held = {
            (i, held): bridge.slopes(kind, i, held)
            for i in range(n_layers)
            for held in range(n_layers)
            if not (inside and held == i)
        }
        for site, change in changes(site_map):
            unit = site.head if site.neuron is None else site.neuron
            chosen = [by_held[site.layer, held] for held in range(n_layers) if (site.layer, held) in by_held]
            for pair, ours in enumerate(change.tolist()):
                tokens = sorted(site.place.tokens[pair])
                sizes = [abs(float(x[pair, tokens][:, 0 if unit is None else unit].sum())) * 2 for x in chosen]
                expected = sign * sum(sizes) / (n_layers - inside)
                assert ours == pytest.approx(expected, abs=1e-4, rel=1e-3), (site, site_map.direction)


def replacing(other: Tensor, tokens: list[int], head: int | None) -> Any:
    """A hook that puts a head's value of other run in at some tokens."""

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, tokens, head] = other[:, tokens, head]
        return value

    return put


@pytest.mark.parametrize("letter", ["q", "k"])
@pytest.mark.parametrize("by", ["head", "head_position"])
def test_the_qk_fix_computes_the_pattern_anew(by: str, letter: str) -> None:
    """The pattern is read from a run of the bridge with the query or key really patched; then it is linear."""
    model, pairs = small("gpt_neox_sequential", 4), random_pairs(7, (4, 4))
    one = experiment(model, pairs, "logit_diff")
    for site_map in estimated(one, [letter], by, qk_fix=True):
        bridge = Bridge(model, pairs, site_map.direction)
        for site, change in changes(site_map):
            name, pattern = f"blocks.{site.layer}.attn.hook_{letter}", f"blocks.{site.layer}.attn.hook_pattern"
            tokens = sorted(site.place.tokens[0])
            seen: list[Tensor] = []

            put = replacing(bridge.there[name], tokens, site.head)
            with torch.no_grad():
                bridge.metric([(name, put), (pattern, lambda value, hook, seen=seen: seen.append(value.clone()))])
            difference = seen[0] - bridge.here[pattern]
            step = torch.zeros(len(pairs), requires_grad=True)
            value = bridge.metric([(pattern, lambda x, hook: x + step[:, None, None, None] * difference)])  # noqa: B023
            (expected,) = torch.autograd.grad(value.sum(), step)
            assert change.tolist() == pytest.approx(expected.tolist(), abs=1e-4, rel=1e-3), site


# What must hold exactly.


def test_where_the_rest_is_linear_estimates_are_real() -> None:
    """Without norms and MLPs the last layer's heads reach the logits linearly, and so does what its pattern mixes."""
    one = experiment(small("attention_only", 1), random_pairs(3), "logit_diff")
    sites = ["resid_post", "attn_out", "head_output", "v", "pattern", "q", "k"]
    settings = activation.Settings(site=sites, by="position", layers=[1])
    found, really = estimates.estimate(one, settings, qk_fix=True), activation.patch(one, settings).maps
    for ours, theirs in zip(found, really, strict=True):
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-5, rtol=1e-5)
    plain = estimates.estimate(one, activation.Settings(site=["q", "k"], layers=[1]))
    real = activation.patch(one, activation.Settings(site=["q", "k"], layers=[1])).maps
    assert max(float((a.values - b.values).abs().max()) for a, b in zip(plain, real, strict=True)) > 0.01


def test_what_is_the_same_in_both_runs_has_no_estimate() -> None:
    pairs = [Pair([1, 2, 3, 4], [1, 2, 5, 4], [6], [7])]
    for site_map in estimated(experiment(small("gpt2", 3), pairs, "logit_diff"), ["resid_pre", "q"], "position"):
        assert torch.equal(site_map.importance[:, :, :2], torch.zeros(2, 1, 2).double())


@pytest.mark.parametrize("grad_drop", [False, True])
def test_memory_decides_nothing(grad_drop: bool) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, partners=2), "logit_diff")
    wide, thin = (
        estimated(one, ["k", "neuron", "resid_pre"], qk_fix=True, grad_drop=grad_drop, memory_gb=memory)
        for memory in (None, 1e-6)
    )
    for a, b in zip(wide, thin, strict=True):
        torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=0)


def test_what_has_no_gradient_is_refused() -> None:
    for metric in ("kl_div", "l2"):
        with pytest.raises(AcdcError, match=f"metric={metric} is least on the clean run"):
            estimated(experiment(small("gpt2", 3), random_pairs(7), metric), ["q"])
    one = experiment(small("gpt2", 3, n_layers=1), random_pairs(7), "logit_diff")
    with pytest.raises(AcdcError, match=r"patch\.grad_drop=true averages over a site's other layers"):
        estimated(one, ["q"], grad_drop=True)
