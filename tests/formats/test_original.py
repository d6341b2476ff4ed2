"""The original's pickles: made with its class paths, of its recorded runs and its own list of tracr's edges."""

from __future__ import annotations

import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import edges_pkl, hook_of, original_classes

from acdc.circuit import Circuit
from acdc.errors import FormatError
from acdc.evaluation.ground_truth import published
from acdc.formats.reading import read_circuit
from acdc.graph import Edge, Graph, GraphConfig


def read(tmp_path: Path, data: bytes, name: str = "edges.pkl") -> Circuit:
    (tmp_path / name).write_bytes(data)
    return read_circuit(tmp_path / name)


@pytest.mark.parametrize("module", ["acdc.TLACDCEdge", "acdc.acdc_utils"])
def test_every_kind_of_edge_has_its_name(tmp_path: Path, module: str) -> None:
    with original_classes(module) as index:
        whole, second = index([None]), index([None, None, 1])
        records = [
            (("blocks.1.hook_resid_post", whole, "blocks.1.hook_mlp_out", whole), 0.5),
            (("blocks.1.hook_mlp_in", whole, "blocks.1.attn.hook_result", second), torch.tensor(0.25)),
            (("blocks.1.attn.hook_q", second, "blocks.1.hook_q_input", second), 2),
            (("blocks.1.hook_q_input", second, "blocks.0.attn.hook_result", second), -0.5),
            (("blocks.0.hook_v_input", second, "blocks.0.hook_resid_pre", whole), None),
            (("blocks.0.hook_resid_mid", whole, "blocks.0.hook_resid_pre", whole), 0.0),  # mlp_in's older name
        ]
        data = pickle.dumps(records)
    assert module not in sys.modules
    circuit = read(tmp_path, data)
    assert list(circuit.edges.items()) == [
        (Edge("m1", "logits"), 0.5),
        (Edge("a1.h1", "m1"), 0.25),
        (Edge("a1.h1<q>", "a1.h1[q]"), 2.0),
        (Edge("a0.h1", "a1.h1<q>"), -0.5),
        (Edge("input", "a0.h1<v>"), 0.0),
        (Edge("input", "m0"), 0.0),
    ]
    assert circuit.tested == {edge: effect for edge, effect in circuit.edges.items() if edge.receiver != "a0.h1<v>"}
    graph = Graph(GraphConfig(2, 7, 56, n_key_value_heads=7))
    assert circuit.of_model(graph).graph.config == graph.config
    assert circuit.of_model(graph).graph.projection_edges


@pytest.mark.parametrize("threshold", ["0.3", "0.03"])
@pytest.mark.parametrize("run", ["k0_kl_div", "k0_logit_diff", "k2_kl_div", "k2_logit_diff"])
def test_recorded_runs_come_back(tmp_path: Path, shared: Path, run: str, threshold: str) -> None:
    name = f"sort_{run}_{threshold}"
    golden = json.loads((shared / "data/golden/acdc_original_gpt_nano_sort.json").read_text())[name]
    effects = {Edge(sender, receiver): effect for sender, receiver, _, effect in golden["kept"]}
    circuit = read(tmp_path, edges_pkl(effects, n_layers=3))
    assert list(circuit.edges.items()) == list(effects.items())
    whole = circuit.of_model(Graph(GraphConfig(3, 3, 48)))
    assert len(whole.graph) == golden["total_edges"]


# The edges that the original's authors list for tracr's reverse with zero ablation, by layer.
REVERSE = """
3.hook_resid_post < 3.attn.hook_result | 3.attn.hook_result < 3.attn.hook_q 3.attn.hook_k 3.attn.hook_v
3.attn.hook_q < 3.hook_q_input | 3.attn.hook_k < 3.hook_k_input | 3.attn.hook_v < 3.hook_v_input
3.hook_q_input < 2.hook_mlp_out | 3.hook_k_input < hook_pos_embed | 3.hook_v_input < hook_embed
2.hook_mlp_out < 2.hook_mlp_in | 2.hook_mlp_in < 1.hook_mlp_out | 1.hook_mlp_out < 1.hook_mlp_in
1.hook_mlp_in < 0.hook_mlp_out hook_embed hook_pos_embed | 0.hook_mlp_out < 0.hook_mlp_in
0.hook_mlp_in < 0.attn.hook_result hook_embed | 0.attn.hook_result < 0.attn.hook_q 0.attn.hook_k 0.attn.hook_v
0.attn.hook_v < 0.hook_v_input | 0.hook_v_input < hook_embed
"""


def test_a_subgraph_of_the_original_is_the_published_circuit(tmp_path: Path) -> None:
    def node(hook: str) -> tuple[str, tuple[int | None, ...]]:
        name = hook if hook.endswith("embed") else f"blocks.{hook}"
        return name, (None, None, 0) if "attn" in hook or "_input" in hook else (None,)

    subgraph: dict[Any, bool] = OrderedDict()
    for part in REVERSE.replace("\n", "|").split("|"):
        if part.strip():
            receiver, _, senders = part.partition("<")
            subgraph |= {(*node(receiver.strip()), *node(sender)): True for sender in senders.split()}
    subgraph[(*node("2.hook_mlp_in"), *node("hook_embed"))] = False
    torch.save(subgraph, tmp_path / "subgraph.pth")
    circuit = read_circuit(tmp_path / "subgraph.pth")
    truth = published("tracr_reverse", Graph(GraphConfig(4, 1, 35, split_embedding=True), projection_edges=True))
    assert set(circuit.edges) == set(truth.edges)
    assert circuit.tested == {}
    assert circuit.of_model(truth.graph).graph.config == truth.graph.config
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(subgraph))
    assert read_circuit(tmp_path / "plain.pkl").edges == circuit.edges


def test_the_model_must_have_the_edges(tmp_path: Path) -> None:
    effects = {Edge("m1", "logits"): 1.0, Edge("input", "a1.h3<q>"): 1.0}
    circuit = read(tmp_path, edges_pkl(effects, n_layers=2))
    for config, said in (
        (GraphConfig(2, 2, 8), r"has no edge input->a1\.h3<q>"),
        (GraphConfig(3, 4, 8), "n_layers 2, this model has n_layers 3"),
        (GraphConfig(2, 4, 8, attn_only=True), "has no edge m1->logits"),
        (GraphConfig(2, 4, 8, split_embedding=True), "split_embedding"),
    ):
        with pytest.raises(FormatError, match=said):
            circuit.of_model(Graph(config), "edges.pkl")


WHOLE, FIRST = (None,), (None, None, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], r"it holds \[\]"),
        ({("blocks.0.hook_resid_post", WHOLE, "hook_embed", WHOLE): 1}, "should be True or False"),
        ([(("blocks.0.hook_resid_post", WHOLE, "hook_embed", WHOLE), "much")], "is no number"),
        ([(("blocks.0.hook_resid_post", WHOLE, "hook_embed", WHOLE), float("nan"))], "must be a finite number"),
        ([(("blocks.0.hook_resid_post", WHOLE, "hook_embed", WHOLE), 1.0), 3], r"should be \(edge, effect\)"),
        ([(("blocks.0.hook_resid_post", WHOLE, "hook_embed", WHOLE), 1.0), (3, 1.0)], r"should be \(receiver"),
        ([(("blocks.0.hook_q_input", (None, 5, 0), "hook_embed", WHOLE), 1.0)], "no node of the original's graph"),
        ([(("blocks.0.hook_q_input", (None, None, -1), "hook_embed", WHOLE), 1.0)], "no number of a head"),
        ([(("blocks.0.hook_q_input", WHOLE, "hook_embed", WHOLE), 1.0)], "no node of the original's graph"),
        ([(("ln_final\n", WHOLE, "hook_embed", WHOLE), 1.0)], "no node of the original's graph"),
        ([((torch.zeros(99, 99), WHOLE, "hook_embed", WHOLE), 1.0)], "no node of the original's graph"),
        ([(("blocks.0.hook_mlp_in", WHOLE, "blocks.1.hook_mlp_out", WHOLE), 1.0)], "m1->m0 does not exist"),
        ([(("blocks.0.hook_q_input", FIRST, "blocks.0.attn.hook_q", FIRST), 1.0)], "does not exist in any model"),
        (
            [
                (("blocks.0.hook_resid_post", WHOLE, "hook_embed", WHOLE), 1.0),
                (("blocks.1.hook_resid_post", WHOLE, "hook_embed", WHOLE), 1.0),
            ],
            r"after several layers: \[0, 1\]",
        ),
    ],
)
def test_malformed_files_are_one_line_errors(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said) as raised:
        read(tmp_path, pickle.dumps(content))
    assert "edges.pkl" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_names_are_those_of_transformer_lens() -> None:
    """The helper that makes the files, by hand."""
    assert hook_of("a5.h1<q>", 12, True) == ("blocks.5.hook_q_input", [None, None, 1])
    assert hook_of("a5.h1", 12, False) == ("blocks.5.attn.hook_result", [None, None, 1])
    assert hook_of("logits", 12, True) == ("blocks.11.hook_resid_post", [None])
    assert hook_of("m5", 12, True) == ("blocks.5.hook_mlp_in", [None])
    assert hook_of("m5", 12, False) == ("blocks.5.hook_mlp_out", [None])
