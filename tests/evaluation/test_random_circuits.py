"""Random circuits: their size, that paths are paths, that edges are any edges."""

from __future__ import annotations

from collections import Counter

import pytest

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.random_circuits import random_circuits
from acdc.graph import Graph, GraphConfig


@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("attn_only", [False, True])
def test_paths(projection_edges: bool, attn_only: bool) -> None:
    graph = Graph(GraphConfig(3, 2, 8, attn_only=attn_only, split_embedding=attn_only), projection_edges)
    for size in (8, 25, 50):
        circuit = Circuit(graph, dict.fromkeys(list(graph)[:size], 1.0))
        drawn = random_circuits(circuit, 5, seed=size)
        assert [len(other) for other in drawn] == [size] * 5
        assert len({frozenset(other) for other in drawn}) == 5
        assert [frozenset(o) for o in random_circuits(circuit, 5, seed=size)] == [frozenset(o) for o in drawn]
        if not projection_edges:  # there a path leads through a port's projection too, so that more edges go at once
            assert all(len(other.on_path()) == size for other in drawn)


def test_all_and_none() -> None:
    graph = Graph(GraphConfig(2, 2, 8))
    for edges in (list(graph), []):
        for kind in ("paths", "edges"):
            (drawn,) = random_circuits(Circuit(graph, dict.fromkeys(edges, 0.0)), 1, kind=kind)
            assert set(drawn) == set(edges)


def test_edges_are_drawn_alike() -> None:
    graph = Graph(GraphConfig(1, 2, 8))
    circuit = Circuit(graph, dict.fromkeys(list(graph)[:4], 0.0))
    counts = Counter(edge for drawn in random_circuits(circuit, 2000, kind="edges") for edge in drawn)
    expected = 2000 * 4 / len(graph)
    assert all(abs(counts[edge] - expected) < 5 * expected**0.5 for edge in graph)


def test_another_kind() -> None:
    with pytest.raises(ConfigError, match="choose one of paths, edges"):
        random_circuits(Circuit(Graph(GraphConfig(1, 1, 4)), {}), 1, kind="nodes")
