"""Circuits beside each other, against counts by hand and plain sets."""

from __future__ import annotations

import random

import pytest
from pages import html_of
from rich.console import Console

from acdc.circuit import Circuit
from acdc.errors import ConfigError, FormatError
from acdc.evaluation.comparison import CircuitComparison, compare_circuits
from acdc.graph import Edge, Graph, GraphConfig
from acdc.report.comparison import comparison_section, comparison_table
from acdc.report.writer import show

GRAPH = Graph(GraphConfig(2, 2, 8))
E = [Edge.parse(name) for name in ("input->m0", "m0->m1", "m1->logits", "input->logits", "a0.h0->logits")]


def circuit(edges: list[Edge], effect: float = 1.0, graph: Graph = GRAPH) -> Circuit:
    return Circuit(graph, {edge: effect * (1 + i) for i, edge in enumerate(edges)})


@pytest.fixture
def three() -> CircuitComparison:
    """{0 1 2}, {1 2 3} and {2 4}: the core is {2}, the union has all five."""
    circuits = [circuit(E[:3]), circuit(E[1:4], 10), circuit([E[2], E[4]], -1)]
    return compare_circuits(list(zip(("abc", "flipped", "a|b <c>"), circuits, strict=True)))


def test_core_and_union(three: CircuitComparison) -> None:
    assert set(three.core) == {E[2]}
    assert set(three.union) == set(E)
    assert three.kept_by == {E[0]: 1, E[1]: 2, E[2]: 3, E[3]: 1, E[4]: 1}
    assert three.kept_by_exactly() == [3, 1, 1]


def test_jaccard_of_every_two(three: CircuitComparison) -> None:
    expected = [[1, 2 / 4, 1 / 4], [2 / 4, 1, 1 / 4], [1 / 4, 1 / 4, 1]]
    assert three.jaccard == expected
    assert three.mean_jaccard == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)


def test_rows_of_two_circuits(three: CircuitComparison) -> None:
    first, *_, last = three.pair_rows()
    nodes = ({"input", "m0", "m1", "logits"}, {"m0", "m1", "logits", "input"})
    assert first == {
        "first": "abc",
        "second": "flipped",
        "first_edges": 3,
        "second_edges": 3,
        "shared_edges": 2,
        "jaccard": 0.5,
        "node_jaccard": len(nodes[0] & nodes[1]) / len(nodes[0] | nodes[1]),
    }
    # {m0 m1 logits input} and {m1 logits a0.h0}
    assert (last["second"], last["shared_edges"], last["node_jaccard"]) == ("a|b <c>", 1, 2 / 5)


def test_rows_of_edges(three: CircuitComparison) -> None:
    rows = three.edge_rows()
    assert [row["kept_by"] for row in rows] == [3, 2, 1, 1, 1]
    assert rows[0] == {
        "sender": "m1",
        "receiver": "logits",
        "kept_by": 3,
        "effect abc": 3.0,
        "effect flipped": 20.0,
        "effect a|b <c>": -1.0,
    }
    assert rows[1]["effect a|b <c>"] is None


def test_random_circuits_against_plain_sets() -> None:
    rng = random.Random(0)
    edges = list(GRAPH)
    sets = [set(rng.sample(edges, rng.randrange(5, len(edges)))) for _ in range(4)]
    found = compare_circuits([(str(i), circuit(sorted(chosen))) for i, chosen in enumerate(sets)])
    assert set(found.core) == set.intersection(*sets)
    assert set(found.union) == set.union(*sets)
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert found.jaccard[i][j] == pytest.approx(len(a & b) / len(a | b))
    assert sum(found.kept_by_exactly()) == len(set.union(*sets))
    assert sum(k * n for k, n in enumerate(found.kept_by_exactly(), 1)) == sum(map(len, sets))


def test_empty_circuits_are_alike() -> None:
    found = compare_circuits([("a", circuit([])), ("b", circuit([]))])
    assert found.jaccard == [[1, 1], [1, 1]]
    assert found.pair_rows()[0]["node_jaccard"] == 1
    assert "keep 0 edges in common" in found.words()
    assert html_of(comparison_section(found))


def test_the_summary_has_the_numbers(three: CircuitComparison) -> None:
    text = three.words()
    assert "3 circuits of 2 to 3 edges keep 1 edges in common, 20% of the 5 that any keeps" in text
    assert "0.33 on average, 0.25 to 0.50" in text


def test_what_people_see(three: CircuitComparison) -> None:
    html = html_of(comparison_section(three))
    assert "a|b &lt;c&gt;" in html
    assert "a|b <c>" not in html
    assert "3 of 3 (the common core)</td><td class=n>1<" in html
    assert html.count("<code>m1</code>") == 2  # m1->logits and m0->m1
    assert "recovery is on the pairs it was found on" in html
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(console, comparison_table(three))
    lines = console.export_text().splitlines()
    assert lines[0].rstrip().endswith("recovery is on the pairs it was found on")
    (line,) = [line for line in lines if "flipped" in line and "0.50" in line]
    assert line.split() == ["flipped", "3", "—", "0.50", "1.00", "0.25"]


@pytest.mark.parametrize(
    ("circuits", "error", "said"),
    [
        ([("a", circuit([]))], ConfigError, "two or more"),
        ([("a", circuit([])), ("a", circuit([]))], ConfigError, "both called 'a'"),
        ([("a", circuit([])), ("b", circuit([], graph=Graph(GraphConfig(3, 2, 8))))], FormatError, "another model"),
        ([("a", circuit([])), ("b", circuit([], graph=Graph(GRAPH.config, True)))], FormatError, "projection edges"),
    ],
)
def test_what_cannot_be_compared(circuits: list[tuple[str, Circuit]], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        compare_circuits(circuits)
    assert "\n" not in str(caught.value)


def test_scores_of_different_methods_are_not_called_effects_alone() -> None:
    circuits = [circuit(E[:3]), circuit(E[1:4])]
    alike, unlike = "The edges and their effects<", "effects or scores, each circuit&#39;s on a scale of its own<"
    named = [("acdc", circuits[0]), ("edge_pruning", circuits[1])]
    assert alike in html_of(comparison_section(compare_circuits(named)))
    circuits[1].method["score"] = "log α"
    assert unlike in html_of(comparison_section(compare_circuits(named)))
