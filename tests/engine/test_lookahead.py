"""Testing in batches against testing one at a time, where a loss is any function of what is left."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.engine.lookahead import Lookahead
from acdc.graph import Edge, Graph, GraphConfig

GRAPH = Graph(GraphConfig(n_layers=1000, n_heads=1, d_model=1))


class Table:
    """Removals whose losses are drawn at random for every set of edges that are left: nothing is additive."""

    def __init__(self, seed: int, most_variants: int) -> None:
        self.seed, self.most_variants = seed, most_variants
        self.left: frozenset[Edge] = frozenset()
        self.evaluated = 0

    @cache  # noqa: B019 - as short-lived as the test
    def loss(self, left: frozenset[Edge]) -> float:
        return random.Random(f"{self.seed} {sorted(map(str, left))}").random()

    def losses(self, edges: list[Edge], gone: list[bool], wanted: list[bool] | None = None) -> list[float]:
        wanted = wanted or [True] * len(edges)
        assert sum(wanted) <= self.most_variants
        self.evaluated += sum(wanted)
        left, losses = self.left, []
        for edge, goes, asked in zip(edges, gone, wanted, strict=True):
            if asked:
                losses.append(self.loss(left - {edge}))
            left = left - {edge} if goes else left
        return losses


def edges_of(receiver: str, n: int) -> list[Edge]:
    return [Edge(f"m{i}", receiver) for i in range(n)]


def one_at_a_time(
    table: Table, edges: list[Edge], threshold: float, ruled_out: frozenset[Edge] = frozenset()
) -> list[tuple[Edge, float, bool]]:
    left, current, decisions = frozenset(edges), table.loss(frozenset(edges)), []
    for edge in edges:
        loss = table.loss(left - {edge})
        kept = loss - current >= threshold and edge not in ruled_out
        if edge not in ruled_out:
            decisions.append((edge, loss, kept))
        if not kept:
            left, current = left - {edge}, loss
    return decisions


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.floats(-0.3, 0.5),
    st.integers(1, 16),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_decisions_are_those_of_one_at_a_time(
    seed: int, sizes: list[int], threshold: float, most_variants: int, batch_size: int | None, share_ruled_out: float
) -> None:
    rng = random.Random(seed)
    table = Table(seed, max(most_variants, batch_size or 1))
    lookahead = Lookahead(table, GRAPH, threshold, batch_size)
    for number, n in enumerate(sizes):
        edges = edges_of(f"m{90 + number}", n)
        table.left = frozenset(edges)
        ruled_out = frozenset(edge for edge in edges if rng.random() < share_ruled_out)
        current, decisions = table.loss(table.left), []

        def decide(edge: Edge, loss: float | None, decisions: list = decisions, out: frozenset = ruled_out) -> bool:
            kept = edge not in out and loss is not None and loss - table.loss(table.left) >= threshold
            if edge not in out:
                decisions.append((edge, loss, kept))
            if not kept:
                table.left = table.left - {edge}
            return kept

        removed = lookahead.test(edges, current, decide, ruled_out)
        assert decisions == one_at_a_time(table, edges, threshold, ruled_out)
        assert set(removed) == set(edges) - {edge for edge, _, kept in decisions if kept}


@pytest.mark.parametrize("n_kept", [0, 5, 20])
def test_receivers_alike_are_tested_with_little_waste(n_kept: int) -> None:
    """Where the same senders matter to every receiver, edges are evaluated little more often than tested."""

    class Additive(Table):
        def loss(self, left: frozenset[Edge]) -> float:  # type: ignore[override]
            return -float(sum(1 for edge in left if edge.sender in important))

    important = {f"m{i}" for i in random.Random(0).sample(range(100), n_kept)}
    table = Additive(0, 64)
    lookahead = Lookahead(table, GRAPH, 0.5)
    for number in range(10):
        edges = edges_of(f"m{900 + number}", 100)
        table.left = frozenset(edges)

        def decide(edge: Edge, loss: float) -> bool:
            kept = loss - table.loss(table.left) >= 0.5
            if not kept:
                table.left = table.left - {edge}
            return kept

        removed = lookahead.test(edges, table.loss(table.left), decide)
        assert len(removed) == 100 - n_kept
    assert table.evaluated < 1.15 * 1000
