"""Several sites replaced at once, against TransformerLens' hooks."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from experiments import experiment, naive_value, random_pairs, rows_of, small
from hooks import HOOKS
from torch import Tensor

from acdc.engine.joint import JointRun, Replaced
from acdc.engine.resumed import ResumedRun

UNITS = {name: "head" for name in ("q", "k", "v", "pattern", "head_output")} | {"neuron": "neuron"}


def values_of(run: ResumedRun, name: str, layer: int) -> Tensor:
    """A site's value in a stored run, as `Replaced` has it."""
    parts, mask = run.model.layers[layer], run.experiment.attention_mask
    if name == "neuron":
        assert parts.mlp is not None
        return parts.mlp.neurons((run.pre if run.model.config.parallel_attn_mlp else run.mid)[layer])
    return {
        "resid_pre": lambda: run.pre[layer],
        "resid_mid": lambda: run.mid[layer],
        "resid_post": lambda: run.pre[layer + 1],
        "attn_out": lambda: parts.write_together(run.values.heads[layer]),
        "mlp_out": lambda: run.values.mlps[layer],
        "head_output": lambda: run.values.heads[layer],
        "pattern": lambda: parts.attend(run.q[layer], run.k[layer], mask),
        "q": lambda: run.q[layer],
        "k": lambda: run.k[layer],
        "v": lambda: run.v[layer],
    }[name]()


def hooked(bridge: Any, tokens: Tensor, source: Any, chosen: list[tuple[str, int, int, int]]) -> Tensor:
    """The logits with the source's value put in at (name, layer, unit, position), all of them in one run."""
    fired, before = [], {}
    hooks = []
    for name, layer, unit, token in chosen:
        at = f"blocks.{layer}.{HOOKS[name]}"

        def put(
            value: Tensor, hook: Any, name: str = name, layer: int = layer, unit: int = unit, token: int = token
        ) -> Tensor:
            fired.append(name)
            value = value.clone()
            if name == "resid_mid":
                value[:, token] = source[f"blocks.{layer}.hook_resid_mid"][:, token] - before[layer][:, token]
            elif name == "pattern":
                value[:, unit, token] = source[hook.name][:, unit, token]
            elif name in UNITS:
                value[:, token, unit] = source[hook.name][:, token, unit]
            else:
                value[:, token] = source[hook.name][:, token]
            return value

        if name == "resid_mid":
            hooks.append((f"blocks.{layer}.hook_resid_pre", lambda value, hook, at=layer: before.update({at: value})))
        hooks.append((at, put))
    logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    assert sorted(fired) == sorted(name for name, *_ in chosen)
    return logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gpt_neox_sequential"])
def test_sites_replaced_together_are_what_hooks_do(kind: str) -> None:
    model = small(kind, 5, **({"num_key_value_heads": 2} if kind == "llama" else {}))
    pairs, rng = random_pairs(3, (5, 5, 5)), random.Random(kind)
    one = experiment(model, pairs, "logit_diff")
    rows = rows_of(pairs)
    clean, corrupted = ResumedRun(one, one.clean), ResumedRun(one, one.ablated)
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(rows.corrupted)
        for _ in range(12):
            names = [n for n in HOOKS if not (n == "resid_mid" and model.parts.config.parallel_attn_mlp)]
            chosen = [(name, rng.randrange(2), rng.randrange(2), rng.randrange(5)) for name in rng.sample(names, 3)]
            replaced = {}
            for name, layer, unit, token in chosen:
                value = values_of(corrupted, name, layer)
                where = torch.zeros(1, *value.shape, dtype=torch.bool)
                if name == "neuron":
                    where[0, :, token, unit] = True
                elif name in UNITS:
                    where[0, unit, :, token] = True
                else:
                    where[0, :, token] = True
                replaced[name, layer] = Replaced(where, value)
            ours = JointRun(clean).metric_values(replaced)[0]
            logits = hooked(model.bridge, rows.clean, cache, chosen)
            each = zip(
                logits[range(len(rows.positions)), rows.positions].tolist(), rows.answers, rows.wrong, strict=True
            )
            theirs = [naive_value("logit_diff", row, row, *answers) for row, *answers in each]
            assert ours.tolist() == pytest.approx(theirs, abs=1e-4, rel=1e-4), chosen


def test_each_variant_has_sites_of_its_own() -> None:
    """One variant with nothing replaced, one with everything: the clean and the corrupted run."""
    model, pairs = small("gpt2", 5), random_pairs(3, (5, 4, 5))
    one = experiment(model, pairs, "kl_div")
    clean, corrupted = ResumedRun(one, one.clean), ResumedRun(one, one.ablated)
    where = torch.tensor([False, True])[:, None, None, None]
    replaced = {("resid_pre", 0): Replaced(where, corrupted.pre[0])}
    found = JointRun(clean).run(replaced)
    for i, run in enumerate((clean, corrupted)):
        torch.testing.assert_close(found.stream[i], run.pre[-1])
        torch.testing.assert_close(found.heads[1][i], run.values.heads[1])
        torch.testing.assert_close(found.mlps[1][i], run.values.mlps[1])


def test_what_lies_before_the_first_replaced_position_is_the_base_run() -> None:
    """Readouts before it, variants with nothing replaced, and a value that is the same at every position."""
    model, pairs = small("gpt2", 5), random_pairs(3, (5, 4, 5), positions=3)
    one = experiment(model, pairs, "logit_diff")
    clean, corrupted = ResumedRun(one, one.clean), ResumedRun(one, one.ablated)
    for start in range(5):
        where = torch.zeros(2, 3, 5, 1, dtype=torch.bool)
        where[1, :, start:] = True
        none, some = JointRun(clean).metric_values({("resid_post", 0): Replaced(where, corrupted.pre[1])})
        torch.testing.assert_close(none, clean.unchanged)
        before = one.readouts.position < start
        torch.testing.assert_close(some[before], clean.unchanged[before])
        # All of it from there on: what the corrupted stream gives behind a clean beginning, layer by layer.
        whole = JointRun(clean).run({("resid_post", 0): Replaced(where, corrupted.pre[1])})
        expected = one.metric.values(model.parts.unembed(one.read(whole.stream[1]), one.metric.columns))
        torch.testing.assert_close(some, expected)
        zero = {("mlp_out", 1): Replaced(where, torch.zeros(3, 1, 8))}
        full = {("mlp_out", 1): Replaced(where, torch.zeros(3, 5, 8))}
        torch.testing.assert_close(JointRun(clean).metric_values(zero), JointRun(clean).metric_values(full))
