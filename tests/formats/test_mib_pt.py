"""MIB's .pt file against a matrix written by hand and a loader made from the format's description alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.formats.mib_pt import read_mib_pt, write_mib_pt
from acdc.graph import Edge, Graph, GraphConfig

# One layer, one head. Rows: input, a0.h0, m0. Columns: a0.h0<q>, <k>, <v>, m0, logits.
BY_HAND = {
    "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8},
    "src_nodes": ["input", "a0.h0", "m0"],
    "dst_nodes": ["a0.h0<q>", "a0.h0<k>", "a0.h0<v>", "m0", "logits"],
    "edges_scores": torch.tensor([[0, 0, 2, 0, 0.25], [0, 0, 0, 0, 1.5], [0, 0, 0, 0, -0.5]]),
    "edges_in_graph": torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool(),
    "nodes_in_graph": torch.tensor([True, True, False]),
}
TESTED = {
    Edge("a0.h0", "logits"): 1.5,
    Edge("m0", "logits"): -0.5,
    Edge("input", "logits"): 0.25,
    Edge("input", "a0.h0<v>"): 2.0,
}
KEPT = {edge: TESTED[edge] for edge in (Edge("a0.h0", "logits"), Edge("input", "a0.h0<v>"))}


def by_description(path: Path) -> dict[str, tuple[float, bool]]:
    """Score and membership of every edge; written from the format's description and nothing of the package."""
    data = torch.load(path, weights_only=True)
    cfg = data["cfg"]
    layers, heads = cfg["n_layers"], cfg["n_heads"]
    assert data["edges_scores"].shape == data["edges_in_graph"].shape
    assert data["edges_scores"].shape == (1 + layers * (heads + 1), layers * (3 * heads + 1) + 1)
    assert (data["edges_scores"].dtype, data["edges_in_graph"].dtype) == (torch.float32, torch.bool)
    forward = {"input": (0, -1)}  # index, and how deep the node stands
    for layer in range(layers):
        for head in range(heads):
            forward[f"a{layer}.h{head}"] = (1 + layer * (heads + 1) + head, 2 * layer)
        forward[f"m{layer}"] = (1 + layer * (heads + 1) + heads, 2 * layer + 1)
    backward = {"logits": (-1, 2 * layers)}
    for layer in range(layers):
        for i, letter in enumerate("qkv"):
            for head in range(heads):
                backward[f"a{layer}.h{head}<{letter}>"] = (layer * (3 * heads + 1) + i * heads + head, 2 * layer)
        backward[f"m{layer}"] = (layer * (3 * heads + 1) + 3 * heads, 2 * layer + (not cfg["parallel_attn_mlp"]))
    assert [data["src_nodes"][i] for i, _ in forward.values()] == list(forward)
    assert [data["dst_nodes"][i] for i, _ in backward.values()] == list(backward)
    edges, real = {}, torch.zeros(data["edges_scores"].shape, dtype=torch.bool)
    for sender, (row, at) in forward.items():
        for receiver, (column, depth) in backward.items():
            if at < depth:
                real[row, column] = True
                score, is_kept = data["edges_scores"][row, column], data["edges_in_graph"][row, column]
                edges[f"{sender}->{receiver}"] = (score.item(), is_kept.item())
    assert not data["edges_in_graph"][~real].any()
    assert not data["edges_scores"][~real].any()
    ends = {part.split("<")[0] for name, (_, kept) in edges.items() if kept for part in name.split("->")} | {"input"}
    assert {n for n, is_in in zip(data["src_nodes"], data["nodes_in_graph"], strict=True) if is_in} == ends - {"logits"}
    return edges


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_small_circuit_is_written_as_by_hand(tmp_path: Path) -> None:
    write_mib_pt(Circuit(Graph(GraphConfig(1, 1, 8)), KEPT, TESTED), tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert list(content) == list(BY_HAND)
    for key, value in BY_HAND.items():
        assert torch.equal(content[key], value) if isinstance(value, torch.Tensor) else content[key] == value, key


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_written_by_hand_is_read(tmp_path: Path, legacy: bool) -> None:
    scores = {"nodes_scores": torch.full((3,), torch.nan), "neurons_in_graph": torch.ones(3, 8, dtype=torch.bool)}
    torch.save(BY_HAND | scores, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    circuit = read_mib_pt(tmp_path / "c.pt")
    assert (circuit.edges, circuit.tested) == (KEPT, TESTED)
    assert circuit.graph.config == GraphConfig(1, 1, 8)


def test_edges_that_no_model_has_are_passed_over(tmp_path: Path) -> None:
    """EAP-IG's selection of whole nodes marks a row to its end."""
    everywhere = {"edges_in_graph": torch.ones(3, 5), "edges_scores": torch.ones(3, 5)}
    circuit = read_mib_pt(saved(tmp_path / "c.pt", BY_HAND | everywhere))
    assert circuit.edges == circuit.tested == dict.fromkeys(circuit.graph, 1.0)
    assert len(circuit) == 8


CONFIGS = st.builds(
    GraphConfig,
    n_layers=st.integers(1, 4),
    n_heads=st.integers(1, 4),
    d_model=st.just(8),
    parallel_attn_mlp=st.booleans(),
    attn_only=st.booleans(),
).filter(lambda config: not (config.attn_only and config.parallel_attn_mlp))
NUMBERS = st.floats(-1e6, 1e6, width=32).filter(bool)


@settings(max_examples=40, deadline=None)
@given(config=CONFIGS, projection_edges=st.booleans(), data=st.data())
def test_other_loaders_and_ours_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: GraphConfig, projection_edges: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("pt") / "c.pt"
    graph = Graph(config, projection_edges)
    tested = data.draw(st.dictionaries(st.sampled_from(list(graph)), NUMBERS, max_size=30))
    edges = (
        {edge: tested[edge] for edge in data.draw(st.lists(st.sampled_from(list(tested)), unique=True))}
        if tested
        else {}
    )
    write_mib_pt(Circuit(graph, edges, tested), path)
    found = by_description(path)
    assert {name: score for name, (score, _) in found.items() if score} == {
        str(edge): score for edge, score in tested.items() if not edge.is_projection
    }
    assert {name for name, (_, kept) in found.items() if kept} == {str(e) for e in edges if not e.is_projection}
    back = read_mib_pt(path)
    assert back.graph.config == config
    assert back.edges == {edge: score for edge, score in edges.items() if not edge.is_projection}
    assert back.tested == {edge: score for edge, score in tested.items() if not edge.is_projection}


def test_a_split_embedding_is_refused_and_nothing_written(tmp_path: Path) -> None:
    circuit = Circuit(Graph(GraphConfig(1, 1, 8, split_embedding=True)), {})
    with pytest.raises(FormatError, match=r"input\.tok and input\.pos"):
        write_mib_pt(circuit, tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())


def changed(**parts: Any) -> dict[str, Any]:
    return BY_HAND | parts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "should be a dict of cfg"),
        ({"cfg": {}}, "lacks src_nodes"),
        (changed(cfg={"n_layers": 1}), "its cfg should hold"),
        (changed(cfg=[1]), "its cfg should hold"),
        (changed(cfg=BY_HAND["cfg"] | {"n_layers": -1}), "n_layers is -1"),  # type: ignore[operator]
        (changed(cfg=BY_HAND["cfg"] | {"n_heads": 2.0}), "n_heads is 2.0"),  # type: ignore[operator]
        (changed(cfg=BY_HAND["cfg"] | {"n_layers": 10**9}), "should be a tensor of shape"),  # type: ignore[operator]
        (
            changed(edges_scores=torch.zeros(3, 4)),
            r"edges_scores should be a tensor of shape \[3, 5\], but is \[3, 4\]",
        ),
        (changed(edges_in_graph=[True]), r"edges_in_graph should be a tensor of shape \[3, 5\], but is \[True\]"),
        (changed(edges_scores=torch.zeros(3, 5).to_sparse()), "edges_scores should be a tensor"),
        (changed(src_nodes=["input", "m0", "a0.h0"]), "src_nodes should be"),
        (changed(dst_nodes=None), "dst_nodes should be"),
        (changed(neurons_in_graph=torch.zeros(3, 8)), "single neurons"),
    ],
)
def test_malformed_files_are_one_line_errors(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said) as raised:
        read_mib_pt(saved(tmp_path / "c.pt", content))
    assert "c.pt" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_truncated_file_is_a_one_line_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(BY_HAND, buffer)
    whole = buffer.getvalue()
    for length in range(0, len(whole) - 22, 97):
        (tmp_path / "c.pt").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"c\.pt") as raised:
            read_mib_pt(tmp_path / "c.pt")
        assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere\.pt cannot be read"):
        read_mib_pt(tmp_path / "nowhere.pt")
