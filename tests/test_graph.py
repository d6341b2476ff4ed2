"""The computational graph: counts, names, indices and order, against MIB's formulas and the oracle."""

from __future__ import annotations

import subprocess
import sys

import oracle
import pytest
from checkpoints import FAMILIES, NATIVE_KINDS, make_model, make_native
from hypothesis import given
from hypothesis import strategies as st

from acdc.errors import FormatError
from acdc.graph import Edge, Graph, GraphConfig, node_of, parse_node

configs = st.builds(
    GraphConfig,
    n_layers=st.integers(1, 4),
    n_heads=st.integers(1, 5),
    d_model=st.just(8),
    parallel_attn_mlp=st.booleans(),
    attn_only=st.booleans(),
    split_embedding=st.booleans(),
)
graphs = st.builds(Graph, configs, st.booleans())


def depth_written(sender: str) -> int:
    """When a sender's output is there: attention of layer l at 2l, its MLP at 2l + 1."""
    if sender.startswith("input"):
        return -1
    layer = int(sender[1:].split(".")[0])
    return 2 * layer + (sender[0] == "m")


def depth_read(port: str, parallel: bool) -> int:
    if port == "logits":
        return 10**6
    layer = int(port[1:].split(".")[0])
    return 2 * layer + (port[0] == "m" and not parallel)


@pytest.mark.parametrize(
    ("config", "projection_edges", "edges"),
    [
        (GraphConfig(12, 12, 768), False, 32_491),
        (GraphConfig(12, 12, 768), True, 32_923),
        (GraphConfig(5, 8, 64, n_key_value_heads=4), False, 2_461),
        (GraphConfig(12, 12, 768, parallel_attn_mlp=True), False, 32_491 - 144),
        (GraphConfig(3, 3, 48), True, 199),
        # Two layers, two heads, no MLPs: 6 ports of 1 sender, 6 of 3, logits of 5.
        (GraphConfig(2, 2, 8, attn_only=True), False, 29),
        (GraphConfig(2, 2, 8, attn_only=True, split_embedding=True), False, 29 + 13),
    ],
)
def test_number_of_edges(config: GraphConfig, projection_edges: bool, edges: int) -> None:
    graph = Graph(config, projection_edges)
    assert len(graph) == edges
    assert len(set(graph)) == edges


def test_parallel_models_lack_only_the_edges_from_a_layers_heads_to_its_mlp() -> None:
    sequential = set(Graph(GraphConfig(3, 4, 8)))
    parallel = set(Graph(GraphConfig(3, 4, 8, parallel_attn_mlp=True)))
    assert sequential - parallel == {Edge(f"a{i}.h{h}", f"m{i}") for i in range(3) for h in range(4)}
    assert parallel < sequential


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 3), (12, 12)])
def test_indices_are_those_of_mib(n_layers: int, n_heads: int, parallel: bool) -> None:
    graph = Graph(GraphConfig(n_layers, n_heads, 8, parallel_attn_mlp=parallel))
    forward, backward = {"input": 0}, {}
    for layer in range(n_layers):
        for head in range(n_heads):
            forward[f"a{layer}.h{head}"] = 1 + layer * (n_heads + 1) + head
            for i, letter in enumerate("qkv"):
                backward[f"a{layer}.h{head}<{letter}>"] = layer * (3 * n_heads + 1) + i * n_heads + head
        forward[f"m{layer}"] = 1 + layer * (n_heads + 1) + n_heads
        backward[f"m{layer}"] = layer * (3 * n_heads + 1) + 3 * n_heads
    backward["logits"] = n_layers * (3 * n_heads + 1)
    assert graph.sender_index == forward
    assert graph.port_index == backward


@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("kind", FAMILIES + NATIVE_KINDS)
def test_order_is_the_oracles(kind: str, projection_edges: bool) -> None:
    model = make_native(kind, n_layers=3) if kind in NATIVE_KINDS else make_model(kind, n_layers=3)
    config = GraphConfig(3, 2, 8, parallel_attn_mlp=kind == "gpt_neox", attn_only=kind == "attention_only")
    graph = Graph(config, projection_edges)
    assert graph.test_order == oracle.order(model, projection_edges)


def test_split_embedding_has_two_inputs_tested_last() -> None:
    graph = Graph(GraphConfig(1, 1, 8, split_embedding=True))
    assert graph.senders == ("input.tok", "input.pos", "a0.h0", "m0")
    assert dict(graph.test_order)["m0"] == ["a0.h0", "input.pos", "input.tok"]


@given(graphs)
def test_edges_are_those_from_every_earlier_sender(graph: Graph) -> None:
    parallel = graph.config.parallel_attn_mlp
    expected = {
        Edge(sender, port)
        for port in graph.ports
        for sender in graph.senders
        if depth_written(sender) < depth_read(port, parallel)
    }
    projection = {edge for edge in graph if edge.is_projection}
    listed = list(graph)
    assert len(listed) == len(set(listed)) == len(graph)
    assert set(listed) - projection == expected
    n_heads = graph.config.n_layers * graph.config.n_heads
    assert len(projection) == (3 * n_heads if graph.projection_edges else 0)
    assert all(edge.receiver == edge.sender.replace("<", "[").replace(">", "]") for edge in projection)


@given(graphs)
def test_membership_is_that_of_the_list(graph: Graph) -> None:
    listed = set(graph)
    names = [*graph.senders, *graph.ports, *(p.replace("<", "[").replace(">", "]") for p in graph.ports if "<" in p)]
    assert {Edge(a, b) for a in names for b in names if Edge(a, b) in graph} == listed
    assert {Edge(a, b) for a in graph.senders for b in names if f"{a}->{b}" in graph} == {
        e for e in listed if "<" not in e.sender
    }
    assert ("m0", "logits") not in graph  # a pair is not an edge


@given(graphs)
def test_a_receiver_is_tested_after_everything_it_feeds(graph: Graph) -> None:
    place = {receiver: i for i, (receiver, _) in enumerate(graph.test_order)}
    for receiver, senders in graph.test_order:
        for sender in senders:
            for port in graph.ports:
                if node_of(port) == node_of(sender) and port != sender:
                    assert place[receiver] < place[port]
    for edge in graph:
        if edge.is_projection:
            assert place[edge.receiver] < place[edge.sender]


@given(graphs)
def test_senders_of_a_port_are_a_prefix(graph: Graph) -> None:
    by_port = dict(graph.test_order)
    for port in graph.ports:
        assert graph.senders_of(port) == graph.senders[: graph.n_senders_of(port)]
        assert set(graph.senders_of(port)) == set(by_port[port])


@given(graphs)
def test_names_are_read_back(graph: Graph) -> None:
    for edge in graph:
        assert Edge.parse(str(edge)) == edge
    for name in graph.ports:
        node = parse_node(name)
        if node.kind == "head":
            assert name == f"a{node.layer}.h{node.unit}<{node.letter}>"
            assert node_of(name) == f"a{node.layer}.h{node.unit}"
        else:
            assert node_of(name) == name
        assert graph[name] == node
        assert graph.node_of(name) == node_of(name)
        assert name in graph.ports_of(graph.node_of(name))
    for i, name in enumerate(graph.inputs):
        assert graph.sender_index[name] == i
        assert graph.ports_of(name) == ()
        assert str(graph[name]) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a1",
        "a1.h",
        "a1.h2<x>",
        "a1.h2<q",
        "a1.h2[q>",
        "m",
        "m-1",
        "embed",
        "a1.h2<q>[q]",
        "logits ",
        "input.x",
        "M0",
    ],
)
def test_what_is_no_node_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_node(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m0", "m0>logits", "m0->", "->m0", "m0->m1->m2", "m0 -> m1"])
def test_what_is_no_edge_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        Edge.parse(name)
    assert "\n" not in str(caught.value)


def test_graph_and_circuit_need_no_torch() -> None:
    heavy = {"torch", "transformer_lens", "wandb"}
    code = f"import sys, acdc.graph, acdc.circuit; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
