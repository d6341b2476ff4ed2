"""Variations of a circuit against the oracle, whatever is removed, added or both."""

from __future__ import annotations

import random

import pytest
from experiments import KINDS, experiment, naive_loss, oracle_logits, random_pairs, rows_of, small

import acdc.engine.variations
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.graph import Edge, Graph

METRICS = ("logit_diff", "kl_div", "prob_diff", "l2", "nll")


def variations_of(kept: list[Edge], graph: Graph, rng: random.Random) -> list[list[Edge]]:
    """One edge less, a few more, everything else, none, all, the circuit itself."""
    gone = rng.choice(kept)
    more = rng.sample([edge for edge in graph if edge not in kept], 3)
    rest = [edge for edge in graph if edge not in kept]
    return [[edge for edge in kept if edge != gone], kept + more, rest, [], list(graph), kept]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_oracles(kind: str) -> None:
    model, rng = small(kind), random.Random(KINDS.index(kind))
    metric = METRICS[KINDS.index(kind) % len(METRICS)]
    lengths = (5, 5, 5) if kind == "bidirectional" else (5, 4, 3)
    pairs = random_pairs(1, lengths, positions=2, partners=2)
    one = experiment(model, pairs, metric)
    graph = Graph(one.model.config, projection_edges=kind == "gpt2")
    kept = [edge for edge in graph if rng.random() < 0.4]
    engine = Variations(one, EdgeMask.of(graph, kept))
    rows = rows_of(pairs)
    full = oracle_logits(model.truth, rows, list(graph), projection=graph.projection_edges)
    for _ in range(2):  # each is put back before the next
        chosen = variations_of(kept, graph, rng)
        losses = engine.losses([EdgeMask.of(graph, edges) for edges in chosen])
        for edges, loss in zip(chosen, losses, strict=True):
            logits = oracle_logits(model.truth, rows, edges, projection=graph.projection_edges)
            assert loss == pytest.approx(naive_loss(metric, rows, logits, full), abs=2e-4)
        kept = chosen[1]
        engine.rebase(EdgeMask.of(graph, kept))


def test_pairs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one = experiment(small("gpt2"), random_pairs(0, (5, 4, 5), partners=2))
    kept = [edge for i, edge in enumerate(one.graph) if i % 2]
    masks = [EdgeMask.of(one.graph, edges) for edges in (kept[1:], kept[2:], list(one.graph))]
    whole = Variations(one, EdgeMask.of(one.graph, kept)).values(masks)
    monkeypatch.setattr(acdc.engine.variations, "budget_bytes", lambda device: 20_000)
    engine = Variations(one, EdgeMask.of(one.graph, kept))
    assert len(engine.blocks) > 1
    assert engine.values(masks).sub(whole).abs().max() < 1e-5
