"""What edges are worth, and pruning again, against the oracle."""

from __future__ import annotations

import pytest
from experiments import experiment, naive_loss, oracle_logits, random_mask, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.discovery import discover
from acdc.evaluation.minimality import minimality, prune_again, threshold_of
from acdc.graph import Edge


@pytest.mark.parametrize(
    ("family", "metric"), [("llama", "logit_diff"), ("gpt_neox", "kl_div"), ("attention_only", "l2")]
)
def test_by_brute_force(family: str, metric: str) -> None:
    model, pairs = small(family), random_pairs(5, (5, 5, 5), partners=2)
    one, rows = experiment(model, pairs, metric), rows_of(pairs)
    edges, _ = random_mask(one.graph, 2, 0.4)
    full = oracle_logits(model.truth, rows, list(one.graph))

    losses: dict[frozenset[Edge], float] = {}

    def loss(present: list[Edge]) -> float:
        if (key := frozenset(present)) not in losses:
            losses[key] = naive_loss(metric, rows, oracle_logits(model.truth, rows, present), full)
        return losses[key]

    circuit = Circuit(one.graph, dict.fromkeys(edges, 1.0))
    worth = minimality(one, circuit).worth
    expected = {edge: loss([e for e in edges if e != edge]) - loss(edges) for edge in edges}
    for edge in edges:
        assert worth[edge] == pytest.approx(expected[edge], abs=2e-4)
    threshold = sorted(expected.values())[len(edges) // 2] + 1e-3
    below = minimality(one, circuit).below(threshold)
    assert set(below) == {edge for edge in edges if expected[edge] < threshold}
    assert below == sorted(below, key=worth.__getitem__)

    # The oracle's own loop: pass after pass over what is left, in the order of the graph.
    left, before = list(edges), -1
    while len(left) != before:
        before = len(left)
        for edge in one.graph:
            without = [e for e in left if e != edge]
            if edge in left and loss(without) - loss(left) < threshold:
                left = without
    pruned = prune_again(one, circuit, threshold)
    assert set(pruned) == set(left)
    assert all(loss([e for e in left if e != edge]) - loss(left) >= threshold for edge in left)
    assert pruned.provenance["pruned_again"]["from_edges"] == len(edges)


def test_the_threshold_of_a_file() -> None:
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    found = discover(one, threshold=0.05)
    assert threshold_of(found, one.metric_name) == 0.05
    assert threshold_of(Circuit(one.graph, {}), one.metric_name) is None
    assert prune_again(one, Circuit(one.graph, {}), 0.1).edges == {}


def test_a_threshold_of_something_else_is_none() -> None:
    """τ of one metric says nothing of another, nor does one of scores that are no effects."""
    graph = experiment(small("gpt2"), random_pairs(1)).graph
    of_logits = Circuit(graph, {}, method={"name": "eap", "threshold": 0.05}, provenance={"metric": "logit_diff"})
    assert [threshold_of(of_logits, metric) for metric in ("logit_diff", "kl_div")] == [0.05, None]
    of_importance = Circuit(graph, {}, method={"name": "hisp", "threshold": 0.05})
    assert threshold_of(of_importance, "logit_diff") is None
