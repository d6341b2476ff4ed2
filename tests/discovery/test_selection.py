"""From scores to a circuit, on cases that can be worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from acdc.circuit import Circuit
from acdc.discovery.selection import SelectionOptions, select
from acdc.errors import ConfigError
from acdc.graph import Edge, Graph, GraphConfig

GRAPH = Graph(GraphConfig(n_layers=2, n_heads=1, d_model=4))
SCORES = {
    "m1->logits": 0.5,
    "a1.h0->logits": -0.9,
    "m0->logits": 0.1,
    "m0->m1": 0.3,
    "input->m1": -0.2,
    "m0->a1.h0<v>": 0.05,
    "a0.h0->m0": 0.8,
    "input->a0.h0<v>": 0.02,
    "input->m0": -0.7,
}


def chosen(**options: Any) -> list[str]:
    scores = {edge: SCORES.get(str(edge), 0.0) for edge in GRAPH}
    return [str(edge) for edge in select(GRAPH, scores, SelectionOptions(**options)).edges]


def test_the_best_edges() -> None:
    best = ["a1.h0->logits", "a0.h0->m0", "input->m0", "m1->logits", "m0->m1"]
    assert chosen(edges=5, prune=False) == best
    assert chosen(edges=3, absolute=False, prune=False) == ["a0.h0->m0", "m1->logits", "m0->m1"]
    # Nothing leads into a1.h0 and a0.h0, so what they send comes from nowhere.
    assert chosen(edges=5) == ["input->m0", "m1->logits", "m0->m1"]
    assert chosen(edges=0) == []


def test_a_share_of_the_edges_is_rounded_down() -> None:
    assert len(GRAPH) == 23  # 3·1 and 2 into the first layer, 3·3 and 4 into the second, 5 into the logits
    assert len(chosen(fraction=0.2, prune=False)) == 4
    assert len(chosen(fraction=0.239, prune=False)) == 5
    assert chosen(edges=1, fraction=0.5, prune=False) == ["a1.h0->logits"]
    assert len(chosen(fraction=1.0, prune=False)) == 23


def test_a_threshold_is_reached_by_what_equals_it() -> None:
    assert chosen(select="threshold", threshold=0.5, prune=False) == [
        "a1.h0->logits",
        "a0.h0->m0",
        "input->m0",
        "m1->logits",
    ]
    assert chosen(select="threshold", threshold=0.5, absolute=False, prune=False) == ["a0.h0->m0", "m1->logits"]
    assert chosen(select="threshold", threshold=0.5) == []
    assert chosen(select="threshold", threshold=0.3) == ["input->m0", "m1->logits", "m0->m1"]


def test_greedily_from_the_logits() -> None:
    """The strong edges into m0 wait until an edge from m0 is in."""
    order = ["a1.h0->logits", "m1->logits", "m0->m1", "a0.h0->m0", "input->m0", "input->m1", "m0->logits"]
    for n in range(len(order) + 1):
        assert chosen(select="greedy", edges=n, prune=False) == order[:n]
    assert chosen(select="greedy", edges=5) == ["m1->logits", "m0->m1", "input->m0"]
    signed = ["m1->logits", "m0->m1", "a0.h0->m0", "m0->logits", "input->a0.h0<v>"]
    assert chosen(select="greedy", edges=5, absolute=False, prune=False) == signed


def test_of_equals_the_first_in_the_order_of_the_tests() -> None:
    scores = dict.fromkeys(GRAPH, 1.0)
    found = list(select(GRAPH, scores, SelectionOptions(edges=4, prune=False)).edges)
    assert found == list(GRAPH)[:4]
    assert found[0] == Edge("m1", "logits")
    turned = dict(reversed(scores.items()))  # as another program's file may have them
    assert list(select(GRAPH, turned, SelectionOptions(edges=4, prune=False)).edges) == found
    greedy = select(GRAPH, scores, SelectionOptions(select="greedy", edges=4, prune=False))
    assert next(iter(greedy.edges)) == Edge("m1", "logits")
    again = select(GRAPH, turned, SelectionOptions(select="greedy", edges=4, prune=False))
    assert list(again.edges) == list(greedy.edges)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [{}, {"parallel_attn_mlp": True}, {"attn_only": True}, {"split_embedding": True}])
@pytest.mark.parametrize("way", ["top_n", "greedy"])
def test_the_least_number_of_edges_with_a_path(seed: int, shape: dict[str, Any], way: str) -> None:
    """Beside networkx, size by size; the default share is raised to it, a share that is asked for is not."""
    graph = Graph(GraphConfig(n_layers=2, n_heads=2, d_model=4, **shape))
    rng = random.Random(seed)
    scores = {edge: rng.uniform(-1, 1) for edge in graph}

    def of_size(n: int) -> Circuit:
        settings = SelectionOptions(select=way, edges=n, prune=False)
        return Circuit(graph, select(graph, scores, settings).edges)

    least = next(n for n in range(len(graph) + 1) if len(of_size(n).on_path()))
    by_default, tenth = select(graph, scores, SelectionOptions(select=way)), int(0.1 * len(graph))
    assert (by_default.asked, by_default.chosen, by_default.path_at) == (tenth, max(tenth, least), least)
    assert set(by_default.edges) == set(of_size(max(tenth, least)).on_path()) != set()
    for option in ({"edges": tenth}, {"fraction": 0.1001}, {"prune": False}):
        assert select(graph, scores, SelectionOptions(select=way, **option)).chosen == tenth


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"select": "best"}, "method.select=best is not known: choose one of top_n, threshold, greedy"),
        ({"edges": -1}, "method.edges=-1 is not allowed"),
        ({"fraction": 1.5}, "method.fraction=1.5 is not allowed: give a number from 0 to 1"),
        ({"select": "threshold"}, "needs method.threshold=NUMBER"),
        ({"threshold": 0.1}, "method.threshold=0.1 has no effect with method.select=top_n"),
        ({"select": "threshold", "threshold": 0.1, "edges": 3}, "method.edges=3 has no effect"),
        ({"select": "threshold", "threshold": 0.1, "fraction": 0.2}, "method.fraction=0.2 has no effect"),
    ],
)
def test_wrong_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SelectionOptions(**options)
