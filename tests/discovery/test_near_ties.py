"""What counts as a near-tie, and how it is settled."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments import KINDS, decide, experiment, oracle_logits, random_mask, random_pairs, rows_of, small

from acdc.discovery.near_ties import NearTies
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.engine.state import CircuitState
from acdc.graph import Edge, Graph


@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_smaller_and_smaller_masks(kind: str, projection_edges: bool) -> None:
    """Each from what the one before left, against complete evaluations."""
    one = experiment(small(kind), random_pairs(5)).to("cpu", torch.float64)
    graph = Graph(one.model.config, projection_edges)
    for seed in range(3):
        masks = [random_mask(graph, seed, share=0.8)[1]]
        for edge in random_mask(graph, seed, share=0.1)[0][:6]:
            masks.append(masks[-1].without(edge))
        state, full = CircuitState(one, EdgeMask.all(graph)), FullEngine(one)
        for some in (masks, masks[-2:], masks[:1]):
            assert state.losses_of(some) == pytest.approx(full.losses(some), abs=1e-10)


@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_settled_in_float64_from_the_edge_set(engine: str) -> None:
    one = experiment(small("gpt2"), random_pairs(6))
    edges, mask = random_mask(one.graph, 1)
    before, after = NearTies(one, 1e-6, engine, None).settle(mask, edges[3])
    exact = FullEngine(one.to("cpu", torch.float64))
    assert before == pytest.approx(exact.loss(mask), abs=1e-12)
    assert after == pytest.approx(exact.loss(EdgeMask.of(one.graph, [e for e in edges if e != edges[3]])), abs=1e-12)


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize("n_pairs", [3, 7, 50])
def test_weights_rounded_to_single_precision_decide_nothing(n_pairs: int, engine: str) -> None:
    """A threshold between a large effect and what it would be with 1/n in float32."""
    it, pairs = small("attention_only"), random_pairs(9, lengths=(5,) * n_pairs)
    scale = 1024.0  # a power of two, so that logits become larger and nothing else
    one = experiment(replace(it.parts, W_U=it.parts.W_U * scale), pairs, "logit_diff")
    first = Edge(one.graph.test_order[0][1][0], "logits")
    rows, graph = rows_of(pairs), one.graph

    def differences(edges: list[Edge]) -> list[float]:
        logits = oracle_logits(it.truth, rows, edges).tolist()
        return [scale * (x[r[0]] - x[w[0]]) for x, r, w in zip(logits, rows.answers, rows.wrong, strict=True)]

    without = differences([edge for edge in graph if edge != first])
    total = math.fsum(a - b for a, b in zip(differences(list(graph)), without, strict=True))
    effect, rounded = total / n_pairs, total * float(np.float32(1 / n_pairs))
    assert abs(effect) > 5
    assert abs(effect - rounded) > 1e-8 * abs(effect)
    for share in (0.25, 0.5):  # from the effect to the wrong one
        threshold = effect + share * (rounded - effect)
        decision = decide(one, threshold, engine=engine)[1][0]
        assert (decision.edge, decision.kept) == (first, effect >= threshold)
        assert decision.effect == pytest.approx(effect, rel=1e-12)


def window(ties: NearTies, receiver: str = "m1", loss: float = 0.5) -> float:
    """Below the threshold, in units, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ties.holds(receiver, -middle, 0.0, loss) else (low, middle)
    return low / ties.unit(loss)


def test_the_window_follows_the_errors_that_were_seen() -> None:
    one = experiment(small("gpt2"), random_pairs(7))
    ties = NearTies(one, 1e-6, "incremental", None)
    unit = ties.unit(0.5)
    logits = float(one.clean_logits.double().square().mean().sqrt())
    assert unit == pytest.approx(1e-6 * (1 + 0.5 + logits))
    assert window(ties) == pytest.approx(1, rel=1e-4)  # nothing is known
    ties.learn("m1", 0.1 * unit, 0.0, 0.5)
    assert window(ties) == pytest.approx((8 + 64) * 0.1, rel=1e-4)  # few may be small by chance
    assert ties.largest == pytest.approx(0.1)
    for _ in range(7):
        ties.learn("m1", 0.0, 0.0, 0.5)
    assert window(ties) == pytest.approx((8 + 8) * 0.1, rel=1e-4)
    for _ in range(8):
        ties.learn("a0.h0<q>", 0.001 * unit, 0.0, 0.5)
    assert window(ties, "a0.h1<v>") == pytest.approx((8 + 8) * 0.001, rel=1e-4)  # another layer
    ties.learn("m1", 4 * unit, 0.0, 0.5)
    assert ties.largest == pytest.approx(4 / 1.6)
    assert window(ties) == pytest.approx((8 + 64 / 9) * 4, rel=1e-4)
    silent = NearTies(one, 1e-6, "incremental", None)
    for n in range(16):
        assert window(silent) == pytest.approx(1 if n < 8 else 1 / 64, rel=1e-4)
        silent.learn("m1", 0.0, 0.0, 0.5)
    off = NearTies(one, 0.0, "incremental", None)
    off.learn("m1", 1.0, 0.0, 0.5)
    assert not off.holds("m1", 0.2, 0.2, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", ["kl_div", "logit_diff"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_half_precision_is_decided_as_float64_would(kind: str, metric: str, dtype: torch.dtype) -> None:
    """On the same weights, rounded to half precision; many tests are near-ties there."""
    one = experiment(small(kind), random_pairs(8), metric).to("cpu", dtype)
    exact = decide(one.to("cpu", torch.float64), 0.05, engine="full")[1]
    circuit, decisions = decide(one, 0.05)
    assert [(d.edge, d.kept) for d in decisions] == [(d.edge, d.kept) for d in exact]
    assert 0 < circuit.metrics["near_ties"] <= len(decisions)
