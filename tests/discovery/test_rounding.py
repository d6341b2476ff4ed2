"""Decisions that rounding might turn are those of a brute force in float64."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from checkpoints import NATIVE_KINDS, make_model, make_native
from experiments import Small, assert_same_decisions, decide, experiment, oracle_acdc, random_pairs, small

from acdc.engine.incremental import IncrementalPruning
from acdc.engine.pruning import FullPruning
from acdc.graph import Edge
from acdc.metrics import METRICS
from acdc.model.load import read_parts
from acdc.tasks.base import Pair


def noisy(monkeypatch: pytest.MonkeyPatch, size: float, where: str) -> None:
    """Both engines err by up to `size` at receivers whose name begins with `where`, more than any formula expects; the
    same edge always by as much."""
    for engine in (IncrementalPruning, FullPruning):

        def losses(
            self: Any, edges: list[Edge], gone: list[bool], wanted: Any = None, right: Any = engine.losses
        ) -> list[float]:
            asked = [edge for edge, one in zip(edges, wanted or [True] * len(edges), strict=True) if one]
            off = [size * (2 * random.Random(str(edge)).random() - 1) for edge in asked]
            found = right(self, edges, gone, wanted)
            return [
                x + e if edge.receiver.startswith(where) else x for x, e, edge in zip(found, off, asked, strict=True)
            ]

        monkeypatch.setattr(engine, "losses", losses)


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize("where", ["", "a1", "m0", "a0"])
def test_errors_larger_than_expected_are_found_out(where: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand times the usual, everywhere or from some layer on; thresholds beside effects that it may turn."""
    it, pairs = small("gpt2", n_layers=3), random_pairs(12)
    one = experiment(it, pairs, "logit_diff")
    noisy(monkeypatch, 3e-3, where)
    again = 0
    for expected, threshold in beside_effects(it, pairs, "logit_diff", count=3):
        circuit, decisions = decide(one, threshold, engine=engine, verify_every=0)
        assert_same_decisions(decisions, expected, tolerance=0.02)
        again += circuit.metrics["made_again"]
        compared = [d for d in decisions if d.near_tie or d.compared is not None]
        assert circuit.metrics["compared"] == len(compared) / len(decisions)
        assert circuit.metrics["largest_rounding"] > 0
    assert again or where == "a0"


def test_what_is_compared_does_not_hang_on_batches() -> None:
    one = experiment(small("llama", n_layers=3), random_pairs(13))
    runs = [decide(one, 0.02, batch_size=size)[1] for size in (1, 5, "auto")]
    chosen = [[d.edge for d in run if d.compared is not None] for run in runs]
    assert chosen[0]
    assert chosen[0] == chosen[1] == chosen[2]


def beside_effects(
    it: Small, pairs: list[Pair], metric: str, count: int, start: float = 0.02
) -> Iterator[tuple[list[tuple[Edge, float, bool]], float]]:
    """Thresholds beside effects of a brute force in float64, with its decisions there."""
    base = oracle_acdc(it.truth, pairs, metric, start)
    effects = [effect for _, effect, _ in base if abs(effect) > 1e-6]
    for i, effect in enumerate(random.Random(0).sample(effects, min(count, len(effects)))):
        threshold = effect * (1 + 1e-7 * (-1) ** i)
        yield oracle_acdc(it.truth, pairs, metric, threshold), threshold


def palindromes(seed: int, steps: int) -> tuple[Small, list[Pair]]:
    """A small attention-only model with layer norm that tells palindromes by large logits, and pairs for it."""
    bridge = make_native("attention_only", seed, 2, 4, 8, d_vocab=8, normalization_type="LN")
    model, generator = bridge.original_model, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, 4, (n, 4), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        tokens[mirrored, 2:] = tokens[mirrored, :2].flip(1)
        is_one = (tokens == tokens.flip(1)).all(1)
        ends = torch.tensor([[4], [5]]).expand(2, n)
        return torch.cat([ends[0][:, None], tokens, ends[1][:, None]], 1), 6 + is_one.long()

    for _ in range(steps):
        tokens, labels = batch(128)
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, -1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # larger logits: more of float32 is lost
        dict(model.named_parameters())["head._original_component.weight"].mul_(8)
    tokens, labels = batch(100)
    right, wrong = tokens[labels == 7].tolist(), tokens[labels == 6].tolist()
    pairs = [Pair(a, b, [7], [6]) for a, b in zip(right[:6], wrong[:6], strict=True)]
    return Small(read_parts(bridge, "palindromes"), bridge, oracle.read(bridge)), pairs


def decided_as_by_brute_force(it: Small, pairs: list[Pair], metric: str, count: int, start: float) -> None:
    one = experiment(it, pairs, metric)
    thresholds = list(beside_effects(it, pairs, metric, count, start))
    assert thresholds
    for expected, threshold in thresholds:
        for engine in ("full", "incremental"):
            decisions = decide(one, threshold, engine=engine)[1]
            assert [(d.edge, d.kept) for d in decisions] == [(edge, kept) for edge, _, kept in expected], threshold


@pytest.mark.parametrize("metric", ["logit_diff", "kl_div"])
def test_thresholds_beside_effects_of_a_trained_classifier(metric: str) -> None:
    it, pairs = palindromes(0, 60)
    decided_as_by_brute_force(it, pairs, metric, 3, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS.built_in)
@pytest.mark.parametrize("seed", range(3))
def test_many_thresholds_beside_effects_of_trained_classifiers(seed: int, metric: str) -> None:
    it, pairs = palindromes(seed, 300)
    decided_as_by_brute_force(it, pairs, metric, 20, 0.05 if metric != "prob_diff" else 0.005)


@pytest.mark.parametrize("change", ["outlier", "rare", "tiny", "logits"])
@pytest.mark.parametrize("kind", ["llama", "attention_only"])
def test_thresholds_beside_effects_of_extreme_weights(kind: str, change: str) -> None:
    decided_as_by_brute_force(extreme(kind, change, 0), random_pairs(14), "logit_diff", 1, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS.built_in)
@pytest.mark.parametrize("change", ["outlier", "rare", "tiny", "logits"])
@pytest.mark.parametrize("kind", ["llama", "attention_only", "layer_norm"])
def test_many_thresholds_beside_effects_of_extreme_weights(kind: str, change: str, metric: str) -> None:
    for seed in range(2):
        decided_as_by_brute_force(extreme(kind, change, seed), random_pairs(seed), metric, 6, 0.01)


@torch.no_grad()
def extreme(kind: str, change: str, seed: int) -> Small:
    """A random model with two dimensions far out, with some embeddings far larger than others, with next to nothing in
    the stream, or with large logits."""
    it = small(kind, seed)
    parts, W_E = it.parts, it.parts.W_E.clone()
    truth = oracle.read(it.bridge if kind in NATIVE_KINDS else make_model(kind, seed))
    if change == "outlier":
        W_E[:, 0] += 300
        W_E[:, 1] -= 100
    elif change == "rare":
        W_E[::3] *= 100
    elif change == "tiny":
        W_E *= 1e-3
    else:  # by a power of two, which rounds nothing
        right = truth.unembed
        truth.unembed = lambda x: 32 * right(x)
        parts = replace(parts, W_U=parts.W_U * 32)
    truth.tok.weight.copy_(W_E)
    return Small(replace(parts, W_E=W_E, self_check=None), it.bridge, truth)
