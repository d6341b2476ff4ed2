"""GraphML read back by plain networkx and by ourselves."""

from __future__ import annotations

import random
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.formats.graphml import read_graphml, write_graphml
from acdc.graph import Edge, Graph, GraphConfig

CONFIGS = [
    GraphConfig(4, 4, 128),
    GraphConfig(3, 8, 64, n_key_value_heads=4),
    GraphConfig(2, 2, 8, parallel_attn_mlp=True),
    GraphConfig(2, 2, 8, attn_only=True, split_embedding=True),
]


def some_circuit(config: GraphConfig, projection_edges: bool) -> Circuit:
    graph, rng = Graph(config, projection_edges), random.Random(0)
    return Circuit(graph, {e: rng.gauss(0, 1) for e in rng.sample(list(graph), 20)}, model="pocket", task="<ioi> & co")


@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_circuit_comes_back_whole(tmp_path: Path, config: GraphConfig, projection_edges: bool) -> None:
    circuit = some_circuit(config, projection_edges)
    write_graphml(circuit, tmp_path / "c.graphml")
    back = read_graphml(tmp_path / "c.graphml")
    assert list(back.edges.items()) == list(circuit.edges.items())
    assert back.graph.config == config
    assert back.graph.projection_edges is projection_edges
    assert (back.model, back.task) == ("pocket", "<ioi> & co")
    assert back.on_path().edges == circuit.on_path().edges


def test_other_programs_find_numbers_labels_and_paths(tmp_path: Path) -> None:
    edges = {Edge("input", "a0.h1<v>"): 0.5, Edge("a0.h1", "m1"): -0.25, Edge("m1", "logits"): 2.0}
    write_graphml(Circuit(Graph(GraphConfig(2, 2, 8)), edges), tmp_path / "c.graphml")
    view = nx.read_graphml(tmp_path / "c.graphml")
    assert nx.shortest_path(view, "input", "logits") == ["input", "a0.h1<v>", "a0.h1", "m1", "logits"]
    assert view.edges["a0.h1", "m1"]["effect"] == -0.25
    assert view.edges["a0.h1<v>", "a0.h1"] == {"kind": "inside", "weight": 0.5}
    assert all(data["label"] == name for name, data in view.nodes(data=True))
    assert view.graph["n_layers"] == 2


def test_gephi_finds_a_positive_weight_on_every_edge(tmp_path: Path) -> None:
    """Gephi drops edges of weight 0, does not draw negative ones, and takes 1 where there is none."""
    edges = {Edge("input", "a1.h0<k>"): -0.5, Edge("m0", "a1.h0<k>"): 0.25, Edge("a1.h0", "logits"): 0.0}
    write_graphml(Circuit(Graph(GraphConfig(2, 2, 8)), edges), tmp_path / "c.graphml")
    root = ElementTree.parse(tmp_path / "c.graphml").getroot()
    (key,) = [key for key in root.iterfind("{*}key") if key.get("attr.name") == "weight"]
    assert (key.get("for"), key.get("attr.type")) == ("edge", "double")
    weights = {
        (edge.get("source"), edge.get("target")): float(data.text or "nan")
        for edge in root.iterfind(".//{*}edge")
        for data in edge.iterfind("{*}data")
        if data.get("key") == key.get("id")
    }
    no_effect = weights.pop(("a1.h0", "logits"))
    assert 0 < no_effect < 1e-9
    assert weights == {("input", "a1.h0<k>"): 0.5, ("m0", "a1.h0<k>"): 0.25, ("a1.h0<k>", "a1.h0"): 0.75}


def test_key_ids_are_unique(tmp_path: Path) -> None:
    """`label` belongs to nodes and to edges; a strict reader wants a key of its own for each."""
    write_graphml(some_circuit(CONFIGS[0], False), tmp_path / "c.graphml")
    keys = [key.get("id") for key in ElementTree.parse(tmp_path / "c.graphml").iterfind("{*}key")]
    assert len(keys) == len(set(keys)) > 5


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no XML",
        "<graphml/>",
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed"/></graphml>',
    ],
)
def test_other_files_are_one_line_errors(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.graphml").write_text(content)
    with pytest.raises(FormatError) as raised:
        read_graphml(tmp_path / "c.graphml")
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere\.graphml cannot be read"):
        read_graphml(tmp_path / "nowhere.graphml")
