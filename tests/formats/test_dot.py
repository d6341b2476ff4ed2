"""The DOT text, read by Graphviz's own parser."""

from __future__ import annotations

import random
from pathlib import Path

import networkx as nx
import pygraphviz

from acdc.circuit import Circuit
from acdc.formats.dot import Marks, dot_source, write_dot
from acdc.graph import Edge, Graph, GraphConfig

EDGES = {
    Edge("m1", "logits"): 2.0,
    Edge("a1.h0", "m1"): 1.0,
    Edge("a0.h1", "a1.h0<q>"): 0.5,
    Edge("a0.h1", "a1.h0<k>"): -1.5,
    Edge("input", "a0.h1<v>"): 0.25,
    Edge("input", "a0.h0<q>"): 3.0,  # leads nowhere
}


def parsed(text: str) -> dict[str, dict[str, str]]:
    """The edges' attributes by edge name, a head's port put back together from Graphviz's own head port."""
    graph, edges = pygraphviz.AGraph(string=text), {}
    for edge in graph.edges():
        attributes = {key: edge.attr[key] for key in ("headport", "penwidth", "style", "color", "effect")}
        port = attributes["headport"].split(":")[0]
        edges[f"{edge[0]}->{edge[1]}" + (f"<{port}>" if port in ("q", "k", "v") else "")] = attributes
    return edges


def circuit(edges: dict[Edge, float] = EDGES, projection_edges: bool = False) -> Circuit:
    return Circuit(Graph(GraphConfig(2, 2, 8), projection_edges), edges, model="pocket", task="ioi")


def test_every_edge_on_a_path_is_drawn_once_with_its_port() -> None:
    assert parsed(dot_source(circuit())).keys() == {str(edge) for edge in EDGES} - {"input->a0.h0<q>"}
    assert parsed(dot_source(circuit(), on_path=False)).keys() == {str(edge) for edge in EDGES}


def test_width_follows_strength_and_dashes_the_sign() -> None:
    edges = parsed(dot_source(circuit()))
    by_width = sorted(edges, key=lambda name: float(edges[name]["penwidth"]))
    assert by_width == sorted(edges, key=lambda name: abs(EDGES[Edge.parse(name)]))
    assert [name for name in edges if edges[name]["style"] == "dashed"] == ["a0.h1->a1.h0<k>"]
    assert all(float(edges[name]["effect"]) == EDGES[Edge.parse(name)] for name in edges)


def test_width_is_relative_to_the_largest_effect() -> None:
    small = circuit({edge: effect / 1e6 for edge, effect in EDGES.items()})
    widths = [{name: edge["penwidth"] for name, edge in parsed(dot_source(c)).items()} for c in (circuit(), small)]
    assert widths[0] == widths[1]


def test_a_sender_has_one_colour_and_neighbours_have_others() -> None:
    colours: dict[str, set[str]] = {}
    for name, edge in parsed(dot_source(circuit())).items():
        colours.setdefault(name.split("->")[0], set()).add(edge["color"])
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 4


def test_projection_edges_are_not_drawn() -> None:
    heads = [e for e in EDGES if "<" in e.receiver]
    projections = {Edge(e.receiver, e.receiver.replace("<", "[").replace(">", "]")): 1.0 for e in heads}
    names = parsed(dot_source(circuit(EDGES | projections, projection_edges=True))).keys()
    assert names == {str(edge) for edge in EDGES} - {"input->a0.h0<q>"}


def test_the_strongest_edges_are_chosen_and_the_picture_says_so() -> None:
    text = dot_source(circuit(), on_path=False, max_edges=2)
    assert parsed(text).keys() == {"m1->logits", "input->a0.h0<q>"}
    assert "drawn: 2 of 6 edges, the strongest" in text
    assert "strongest" not in dot_source(circuit(), max_edges=5)


def test_of_a_chosen_part_every_edge_lies_on_a_drawn_path() -> None:
    text = dot_source(circuit(), max_edges=4)
    assert parsed(text).keys() == {"m1->logits", "a1.h0->m1", "a0.h1->a1.h0<k>", "input->a0.h1<v>"}
    assert "drawn: 4 of 5 edges, those on the strongest paths from input to logits" in text
    assert parsed(dot_source(circuit(), max_edges=1)).keys() == parsed(text).keys()  # one whole path at least
    split = Graph(GraphConfig(2, 2, 8, split_embedding=True))
    for projection_edges in (False, True):
        graph = Graph(GraphConfig(4, 3, 8), projection_edges)
        for seed, of in enumerate((graph, split) * 6):
            rng = random.Random(seed)
            edges = {edge: rng.gauss(0, 1) for edge in rng.sample(list(of), len(of) * 2 // 3)}
            for max_edges in (5, 20, 60):
                assert_connected(Circuit(of, edges), max_edges)


def assert_connected(found: Circuit, max_edges: int) -> None:
    """No node hangs, the strongest edge is there, and where the strongest are connected they are what is drawn."""
    whole = {edge: effect for edge, effect in found.on_path().edges.items() if not edge.is_projection}
    graph = pygraphviz.AGraph(string=dot_source(found, max_edges=max_edges))
    view = nx.DiGraph([(edge[0], edge[1]) for edge in graph.edges()])
    if not whole:
        assert not graph.edges()
        return
    assert set(view) == set(graph.nodes())
    reached = set().union(*(nx.descendants(view, name) | {name} for name in found.graph.inputs if name in view))
    assert set(view) == reached == nx.ancestors(view, "logits") | {"logits"}
    drawn = {Edge.parse(name) for name in parsed(graph.to_string())}
    ranked = sorted(whole, key=lambda edge: -abs(whole[edge]))
    assert drawn <= set(whole)
    assert ranked[0] in drawn
    assert len(drawn) <= max(max_edges, 2 * found.graph.config.n_layers + 1)
    strongest = Circuit(Graph(found.graph.config), {edge: whole[edge] for edge in ranked[:max_edges]})
    if len(strongest.on_path()) == len(strongest):
        assert drawn == set(strongest)


def test_a_node_has_the_same_colour_in_every_picture() -> None:
    graph = Graph(GraphConfig(6, 12, 96))
    rng = random.Random(0)
    pictures = [dict.fromkeys(rng.sample(list(graph), size), 1.0) for size in (40, 200, 600)]
    pictures.append({Edge(sender, "logits"): 1.0 for sender in graph.senders})
    seen: dict[str, set[str]] = {}
    for edges in pictures:
        for name, edge in parsed(dot_source(Circuit(graph, edges), on_path=False)).items():
            seen.setdefault(name.split("->")[0], set()).add(edge["color"])
    assert all(len(colours) == 1 for colours in seen.values())
    colours = {name: next(iter(found)) for name, found in seen.items()}
    for layer in range(6):  # side by side and one above the other, nodes can be told apart
        row = ["input", f"m{layer}", *(f"a{layer}.h{head}" for head in range(12))]
        assert len({colours[name] for name in row}) == len(row)
    assert len({colours[f"m{layer}"] for layer in range(6)}) == 6


def test_the_title_says_what_is_left_out_and_takes_any_text() -> None:
    assert "1 of 6 kept edges" in dot_source(circuit())
    assert "not drawn" not in dot_source(circuit(), on_path=False)
    graph = pygraphviz.AGraph(string=dot_source(circuit(), title='<b> & "τ" \x01\n\\', legend=False))
    assert "&lt;b&gt; &amp; &quot;τ&quot;" in graph.graph_attr["label"]
    assert "port of a head" not in graph.graph_attr["label"]
    assert "TABLE" not in dot_source(circuit({}), title="", legend=False)


def test_an_empty_circuit_shows_input_and_logits() -> None:
    graph = pygraphviz.AGraph(string=dot_source(circuit({})))
    assert sorted(graph.nodes()) == ["input", "logits"]
    assert not graph.edges()


def test_many_edges_survive_the_way_through_a_file(tmp_path: Path) -> None:
    graph, rng = Graph(GraphConfig(12, 12, 768)), random.Random(0)
    chosen = {edge: rng.gauss(0, 1) for edge in rng.sample(list(graph), 3000)}
    write_dot(Circuit(graph, chosen), tmp_path / "c.dot", on_path=False)
    assert parsed((tmp_path / "c.dot").read_text()).keys() == {str(edge) for edge in chosen}


def test_marks_colour_edges_by_something_else() -> None:
    marks = Marks({Edge("m1", "logits"): "#aa0000", Edge("a1.h0", "m1"): "#00aa00"}, {"#aa0000": "shared"}, "how many")
    text = dot_source(circuit(), marks=marks)
    edges = parsed(text)
    assert (edges["m1->logits"]["color"], edges["a1.h0->m1"]["color"]) == ("#aa0000", "#00aa00")
    assert len({edges[name]["color"] for name in edges} - {"#aa0000", "#00aa00"}) == 1  # the others are faint
    assert "shared" in text
    assert "width by how many" in text
    assert "colour of its sender" not in text
