"""Circuits: set algebra, paths, the networkx view and the circuit file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.graph import Edge, Graph, GraphConfig, node_of

GRAPH = Graph(GraphConfig(2, 2, 8))


@st.composite
def circuits(draw: st.DrawFn, graph: Graph | None = None) -> Circuit:
    if graph is None:
        config = GraphConfig(
            n_layers=draw(st.integers(1, 3)),
            n_heads=draw(st.integers(1, 2)),
            d_model=8,
            n_key_value_heads=draw(st.sampled_from([None, 1])),
            parallel_attn_mlp=draw(st.booleans()),
            attn_only=draw(st.booleans()),
            split_embedding=draw(st.booleans()),
        )
        graph = Graph(config, draw(st.booleans()))
    edges = draw(st.lists(st.sampled_from(list(graph)), unique=True, max_size=25))
    effects = st.floats(-10, 10, allow_nan=False)
    return Circuit(graph, {edge: draw(effects) for edge in edges})


def circuit(*names: str, graph: Graph = GRAPH, effect: float = 1.0) -> Circuit:
    return Circuit(graph, {Edge.parse(name): effect for name in names})


def test_an_edge_the_graph_lacks_is_refused() -> None:
    for name in ("m1->m0", "a0.h2->logits", "a1.h0<q>->a1.h0[q]", "m0->m0"):
        with pytest.raises(FormatError, match="does not exist"):
            circuit(name)


@given(circuits())
def test_an_edge_is_known_by_its_name_too(one: Circuit) -> None:
    for edge in one.graph:
        assert (str(edge) in one) == (edge in one) == (edge in list(one))
        assert str(edge) in one.graph


@pytest.mark.parametrize("name", ["", "m0", "m0-logits", "m0->", "m0->logit", "m0 -> logits", "m0->m1->logits"])
def test_what_is_no_name_of_an_edge_is_refused(name: str) -> None:
    for where in (circuit("m0->logits"), GRAPH):
        with pytest.raises(FormatError) as caught:
            _ = name in where
        assert any(repr(part) in str(caught.value) for part in (name, *name.partition("->")))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m7->logits", "m1->m0", "logits->m0", "a1.h0<q>->a1.h0[q]", "input.tok->logits"])
def test_a_circuit_is_not_asked_for_edges_that_its_model_lacks(name: str) -> None:
    assert name not in GRAPH
    assert Edge.parse(name) not in circuit("m0->logits")  # of another circuit, say
    with pytest.raises(FormatError, match="is not an edge of this graph"):
        _ = name in circuit("m0->logits")


@given(circuits(GRAPH), circuits(GRAPH))
def test_set_algebra_is_that_of_sets(a: Circuit, b: Circuit) -> None:
    assert set(a | b) == set(a) | set(b)
    assert set(a & b) == set(a) & set(b)
    assert set(a - b) == set(a) - set(b)
    union = set(a) | set(b)
    assert a.jaccard(b) == b.jaccard(a) == (len(set(a) & set(b)) / len(union) if union else 1.0)
    assert a.jaccard(a) == 1.0
    for both in (a | b, a & b, a - b):
        for edge, effect in both.edges.items():
            assert effect == (a.edges[edge] if edge in a else b.edges[edge])


@given(circuits(GRAPH), circuits(GRAPH))
def test_set_algebra_leaves_its_operands_alone(a: Circuit, b: Circuit) -> None:
    before = copy.deepcopy((a.edges, b.edges))
    for result in (a | b, a & b, a - b):
        result.edges.clear()
        result.tested[Edge("m0", "logits")] = 1.0
        result.method["changed"] = True
    assert (a.edges, b.edges) == before
    assert not a.tested
    assert not a.method


def test_circuits_of_different_models_are_not_compared() -> None:
    other = circuit("m0->logits", graph=Graph(GraphConfig(3, 2, 8)))
    for operation in (Circuit.__or__, Circuit.__and__, Circuit.__sub__, Circuit.jaccard):
        with pytest.raises(FormatError, match="different models"):
            operation(circuit("m0->logits"), other)


def test_circuits_with_and_without_projection_edges_are_compared_either_way() -> None:
    with_projection = Graph(GRAPH.config, projection_edges=True)
    a, b = circuit("m0->a1.h0<q>"), circuit("m0->a1.h0<q>", "a1.h0<q>->a1.h0[q]", graph=with_projection)
    assert a.jaccard(b) == b.jaccard(a) == 0.5
    assert set(b | a) == set(a | b) == set(b)
    assert set(b & a) == set(a & b) == set(a)
    assert not set(a - b)


@given(circuits())
def test_by_receiver_keeps_every_edge_in_order(one: Circuit) -> None:
    groups = one.by_receiver()
    assert sorted(edge for edges in groups.values() for edge in edges) == sorted(one)
    for receiver, edges in groups.items():
        assert edges == [edge for edge in one if edge.receiver == receiver]
    assert list(groups) == list(dict.fromkeys(edge.receiver for edge in one))


def test_nodes_in_the_graphs_order() -> None:
    assert circuit("m1->logits", "a0.h1->a1.h0<k>", "input->m0").nodes() == (
        ["input", "a0.h1", "m0", "a1.h0", "m1", "logits"]
    )


def edges_on_paths(one: Circuit) -> set[Edge]:
    """Every walk from an input to the logits, one by one."""
    found: set[Edge] = set()

    def walk(node: str, taken: list[Edge]) -> None:
        if node == "logits":
            found.update(taken)
            return
        for edge in one:
            if edge.sender != node:
                continue
            if edge.receiver == "logits" or "<" not in edge.receiver:
                walk(edge.receiver, [*taken, edge])
            elif not one.graph.projection_edges:
                walk(node_of(edge.receiver), [*taken, edge])
            elif (inside := one.graph.projection_of(edge.receiver)) in one:
                walk(node_of(edge.receiver), [*taken, edge, inside])

    for name in one.graph.inputs:
        walk(name, [])
    return found


@given(circuits())
def test_on_path_is_what_walks_pass(one: Circuit) -> None:
    left = one.on_path()
    assert set(left) == edges_on_paths(one)
    assert list(left) == [edge for edge in one if edge in left]
    assert all(left.edges[edge] == one.edges[edge] for edge in left)


def test_on_path_in_known_cases() -> None:
    path = circuit("input->a0.h0<v>", "a0.h0->m1", "m1->logits")
    assert set(path.on_path()) == set(path)
    assert not circuit("m1->logits").on_path().edges
    assert not circuit("input->m0").on_path().edges
    assert set(circuit("input->logits", "m0->logits", "input->m1").on_path()) == {Edge("input", "logits")}
    projected = Graph(GRAPH.config, projection_edges=True)
    cut = circuit("input->a0.h0<v>", "a0.h0->logits", graph=projected)
    assert not cut.on_path().edges
    assert len(cut | circuit("a0.h0<v>->a0.h0[v]", graph=projected)) == 3


@given(circuits())
def test_networkx_and_back(one: Circuit) -> None:
    view = one.to_networkx()
    back = Circuit.from_networkx(view)
    assert back.graph.config == one.graph.config
    assert back.graph.projection_edges == one.graph.projection_edges
    assert back.edges == one.edges
    assert nx.is_directed_acyclic_graph(view)
    assert {(a, b) for a, b, kind in view.edges(data="kind") if kind == "edge"} == set(map(tuple, one))
    for name, data in view.nodes(data=True):
        is_port = "<" in name or "[" in name
        assert data["kind"] == (
            "port" if is_port else name.split(".")[0] if name in ("logits", *one.graph.inputs) else
            "head" if name.startswith("a") else "mlp"
        )  # fmt: skip


@given(circuits())
def test_a_path_in_the_view_is_a_walk_through_the_circuit(one: Circuit) -> None:
    view = one.to_networkx()
    connected = any(nx.has_path(view, name, "logits") for name in one.graph.inputs)
    assert connected == bool(edges_on_paths(one))


@pytest.mark.parametrize(
    "damage",
    [
        lambda view: view.graph.pop("d_model"),
        lambda view: view.edges["m0", "logits"].pop("effect"),
        lambda view: view.add_edge("m1", "m0", kind="edge", effect=1.0),
        lambda view: view.add_edge("nothing", "logits", kind="edge", effect=1.0),
        lambda view: view.edges["m0", "logits"].update(effect="much"),
    ],
)
def test_a_graph_that_is_no_circuit_is_refused(damage: Callable[[nx.DiGraph], Any]) -> None:
    view = circuit("m0->logits").to_networkx()
    damage(view)
    with pytest.raises(FormatError) as caught:
        Circuit.from_networkx(view)
    assert "\n" not in str(caught.value)


def full_circuit() -> Circuit:
    return Circuit(
        Graph(GraphConfig(2, 4, 8, n_key_value_heads=2, parallel_attn_mlp=True), projection_edges=True),
        {Edge("m0", "logits"): 0.25, Edge("input", "a1.h3<q>"): -0.5, Edge("a1.h3<q>", "a1.h3[q]"): 1e-9},
        tested={Edge("m0", "logits"): 0.25, Edge("m1", "logits"): 0.0},
        model="é", task="ioi", method={"name": "acdc", "threshold": 0.03}, metrics={"clean": 1.5},
        provenance={"seed": 0},
    )  # fmt: skip


def test_file_and_back(tmp_path: Path) -> None:
    one = full_circuit()
    one.save(tmp_path / "circuit.json")
    back = Circuit.load(tmp_path / "circuit.json")
    assert back.graph.config == one.graph.config
    for name in ("edges", "tested", "model", "task", "method", "metrics", "provenance"):
        assert getattr(back, name) == getattr(one, name), name
    assert list(back.edges) == list(one.edges)
    assert back.as_dict() == one.as_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.json"]  # no temporary file is left


@given(circuits())
def test_records_and_back(one: Circuit) -> None:
    back = Circuit.from_dict(json.loads(json.dumps(one.as_dict())))
    assert (back.edges, back.graph.config) == (one.edges, one.graph.config)


def test_what_the_file_holds() -> None:
    data = circuit("input->logits", "m0->logits", effect=0.5).as_dict()
    assert {"format", "version", "model", "task", "method", "edges", "total_edges", "metrics", "provenance"} <= set(
        data
    )
    assert data["edges"] == [
        {"sender": "input", "receiver": "logits", "effect": 0.5},
        {"sender": "m0", "receiver": "logits", "effect": 0.5},
    ]
    assert data["on_path"] == data["edges"][:1]
    assert data["total_edges"] == len(GRAPH)
    assert data["model"]["n_heads"] == 2


def _changed(path: list[Any], value: Any) -> Callable[[dict[str, Any]], str]:
    def change(data: dict[str, Any]) -> str:
        at: Any = data
        for key in path[:-1]:
            at = at[key]
        if value is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return json.dumps(data)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "null",
        lambda _: "[]",
        lambda _: '"circuit"',
        lambda data: json.dumps(data)[:-40],
        lambda data: json.dumps(data).encode("utf-16"),
        _changed(["format"], "other"),
        _changed(["format"], KeyError),
        _changed(["version"], 99),
        _changed(["version"], KeyError),
        _changed(["model"], KeyError),
        _changed(["model"], []),
        _changed(["model", "n_layers"], KeyError),
        _changed(["model", "n_layers"], "two"),
        _changed(["model", "n_heads"], None),
        _changed(["edges"], KeyError),
        _changed(["edges"], None),
        _changed(["edges"], {"m0": 1}),
        _changed(["edges", 0, "sender"], "m7"),
        _changed(["edges", 0, "sender"], ["m0"]),
        _changed(["edges", 0, "receiver"], "nowhere"),
        _changed(["edges", 0, "effect"], KeyError),
        _changed(["edges", 0, "effect"], "much"),
        _changed(["edges", 0, "effect"], None),
        _changed(["tested"], []),
        _changed(["tested"], {"m0": 1.0}),
        _changed(["tested"], {"m0->logits": None}),
        _changed(["metrics"], 3),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(damage: Callable[[dict[str, Any]], str | bytes], tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    content = damage(full_circuit().as_dict())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError) as caught:
        Circuit.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        Circuit.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
