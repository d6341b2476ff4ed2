"""MIB's circuit file against examples written by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.formats.mib import read_mib_json, write_mib_json
from acdc.graph import Edge, Graph, GraphConfig

ONE_LAYER = {
    "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8},
    "nodes": {
        "input": {"in_graph": True},
        "a0.h0": {"in_graph": True},
        "m0": {"in_graph": False},
        "logits": {"in_graph": True},
    },
    "edges": {
        "input->logits": {"score": 0.25, "in_graph": False},
        "a0.h0->logits": {"score": 1.5, "in_graph": True},
        "m0->logits": {"score": -0.5, "in_graph": False},
        "input->m0": {"score": 0.0, "in_graph": False},
        "a0.h0->m0": {"score": 0.0, "in_graph": False},
        "input->a0.h0<q>": {"score": 0.0, "in_graph": False},
        "input->a0.h0<k>": {"score": 0.0, "in_graph": False},
        "input->a0.h0<v>": {"score": 2.0, "in_graph": True},
    },
}
TESTED = {
    Edge("a0.h0", "logits"): 1.5,
    Edge("m0", "logits"): -0.5,
    Edge("input", "logits"): 0.25,
    Edge("input", "a0.h0<v>"): 2.0,
}
KEPT = {edge: TESTED[edge] for edge in (Edge("a0.h0", "logits"), Edge("input", "a0.h0<v>"))}


def test_a_small_circuit_is_written_as_by_hand(tmp_path: Path) -> None:
    write_mib_json(Circuit(Graph(GraphConfig(1, 1, 8)), KEPT, TESTED), tmp_path / "circuit.mib.json")
    assert json.loads((tmp_path / "circuit.mib.json").read_text()) == ONE_LAYER


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(ONE_LAYER))
    circuit = read_mib_json(tmp_path / "c.json")
    assert circuit.edges == KEPT
    assert circuit.tested == TESTED
    assert circuit.graph.config == GraphConfig(1, 1, 8)


def test_gpt2_small_has_its_32491_edges_and_158_nodes(tmp_path: Path) -> None:
    graph = Graph(GraphConfig(12, 12, 768))
    write_mib_json(Circuit(graph, {}), tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    assert len(data["edges"]) == 32_491
    assert len(data["nodes"]) == 158
    assert {"a0.h3->m5", "a0.h3->a5.h1<q>", "input->a0.h0<v>", "m11->logits"} <= data["edges"].keys()
    assert [name for name, node in data["nodes"].items() if node["in_graph"]] == ["input", "logits"]


def test_projection_edges_are_left_out(tmp_path: Path) -> None:
    graph = Graph(GraphConfig(1, 1, 8), projection_edges=True)
    projection = {Edge(f"a0.h0<{letter}>", f"a0.h0[{letter}]"): 9.0 for letter in "qkv"}
    write_mib_json(Circuit(graph, KEPT | projection, TESTED | projection), tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text()) == ONE_LAYER


def test_parallel_models_and_models_without_mlps_come_back(tmp_path: Path) -> None:
    for config in (GraphConfig(3, 2, 8, parallel_attn_mlp=True), GraphConfig(3, 2, 8, attn_only=True)):
        graph = Graph(config)
        edges = {edge: random.Random(0).random() for edge in random.Random(1).sample(list(graph), 9)}
        write_mib_json(Circuit(graph, edges), tmp_path / "c.json")
        circuit = read_mib_json(tmp_path / "c.json")
        assert circuit.graph.config == config
        assert circuit.edges == edges
        assert len(circuit.graph) == len(json.loads((tmp_path / "c.json").read_text())["edges"])


def test_a_split_embedding_is_refused_and_nothing_written(tmp_path: Path) -> None:
    circuit = Circuit(Graph(GraphConfig(1, 1, 8, split_embedding=True)), {})
    with pytest.raises(FormatError, match=r"input\.tok and input\.pos"):
        write_mib_json(circuit, tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"cfg": {"n_layers": 1}, "nodes": {}, "edges": {}}',
        json.dumps(ONE_LAYER | {"edges": {"m0->a0.h0<q>": {"score": 1.0, "in_graph": True}}}),
        json.dumps(ONE_LAYER | {"edges": {"input->m0": {"score": None, "in_graph": True}}}),
        json.dumps(ONE_LAYER | {"edges": {"input->m0": 1.0}}),
        json.dumps(ONE_LAYER | {"cfg": ONE_LAYER["cfg"] | {"n_layers": "one"}}),
    ],
)
def test_malformed_files_are_one_line_errors(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(FormatError, match=r"c\.json") as raised:
        read_mib_json(tmp_path / "c.json")
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere\.json cannot be read"):
        read_mib_json(tmp_path / "nowhere.json")
