"""AutoCircuit's score dictionaries, made by its own rule for where an edge stands in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import prune_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.errors import FormatError
from acdc.formats.reading import read_circuit, read_circuits
from acdc.graph import Edge, Graph, GraphConfig

BY_HAND = {  # one layer, two heads
    "blocks.0.hook_q_input": torch.tensor([[1.0], [2.0]]),
    "blocks.0.hook_k_input": torch.tensor([[3.0], [4.0]]),
    "blocks.0.hook_v_input": torch.tensor([[5.0], [6.0]]),
    "blocks.0.hook_mlp_in": torch.tensor([7.0, 8.0, 9.0]),
    "blocks.0.hook_resid_post": torch.tensor([10.0, 11.0, 12.0, -13.0]),
}
SCORES = {
    Edge.parse(name): score
    for name, score in {
        **{f"input->a0.h{h}<{letter}>": 2.0 * i + h + 1 for i, letter in enumerate("qkv") for h in (0, 1)},
        **{"input->m0": 7.0, "a0.h0->m0": 8.0, "a0.h1->m0": 9.0},
        **{"input->logits": 10.0, "a0.h0->logits": 11.0, "a0.h1->logits": 12.0, "m0->logits": -13.0},
    }.items()
}


def save(path: Path, content: Any, how: str = "torch") -> Path:
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    return path


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_scores_by_hand_have_their_edges(tmp_path: Path, how: str) -> None:
    parameters = {hook: torch.nn.Parameter(tensor) for hook, tensor in BY_HAND.items()}
    for content in (BY_HAND, parameters):
        circuit = read_circuit(save(tmp_path / "scores.pkl", content, how))
        assert (circuit.tested, circuit.edges) == (SCORES, {})
        assert circuit.of_model(Graph(GraphConfig(1, 2, 64))).graph.config == GraphConfig(1, 2, 64)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    kind=st.sampled_from(["gpt2", "parallel", "attn_only"]),
    data=st.data(),
)
def test_every_edge_of_any_model(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], kind: str, data: st.DataObject
) -> None:
    config = GraphConfig(*shape, 8, parallel_attn_mlp=kind == "parallel", attn_only=kind == "attn_only")
    graph = Graph(config)
    scores = data.draw(st.dictionaries(st.sampled_from(list(graph)), st.floats(-100, 100, width=32)))
    content = prune_scores(
        shape,
        {str(edge): score for edge, score in scores.items()},
        mlps=not config.attn_only,
        parallel=kind == "parallel",
    )
    path = save(tmp_path_factory.mktemp("scores") / "scores.pt", content)
    circuit = read_circuit(path).of_model(graph)
    assert circuit.tested == {edge: scores.get(edge, 0.0) for edge in graph}


def test_nested_dictionaries_give_each_its_name(tmp_path: Path) -> None:
    other = {hook: -tensor for hook, tensor in BY_HAND.items()}
    save(tmp_path / "cache.pkl", {"ioi": {"EAP": BY_HAND, "ACDC": other}})
    circuits = read_circuits(tmp_path / "cache.pkl")
    assert list(circuits) == ["cache.pkl:ioi/EAP", "cache.pkl:ioi/ACDC"]
    assert circuits["cache.pkl:ioi/ACDC"].tested == {edge: -score for edge, score in SCORES.items()}
    with pytest.raises(FormatError, match="holds 2 circuits, not one: ioi/EAP, ioi/ACDC"):
        read_circuit(tmp_path / "cache.pkl")
    save(tmp_path / "one.pkl", {"EAP": BY_HAND})
    assert read_circuit(tmp_path / "one.pkl").tested == SCORES


def test_what_no_threshold_removed_ranks_first(tmp_path: Path) -> None:
    scores = BY_HAND | {"blocks.0.hook_mlp_in": torch.tensor([torch.inf, 8.0, 9.0])}
    tested = read_circuit(save(tmp_path / "scores.pkl", scores)).tested
    assert max(tested, key=lambda edge: abs(tested[edge])) == Edge("input", "m0")
    assert tested[Edge("input", "m0")] == 26
    assert {e: s for e, s in tested.items() if e != Edge("input", "m0")} == {
        e: s for e, s in SCORES.items() if e != Edge("input", "m0")
    }


def test_one_input_for_a_head_stands_for_its_ports(tmp_path: Path) -> None:
    common = {hook: tensor for hook, tensor in BY_HAND.items() if not hook.endswith("_input")}
    common |= {"blocks.0.hook_attn_in": torch.tensor([[1.0], [2.0]])}
    tested = read_circuit(save(tmp_path / "scores.pkl", common)).tested
    assert [tested[Edge("input", f"a0.h1<{letter}>")] for letter in "qkv"] == [2, 2, 2]
    assert tested[Edge("a0.h1", "m0")] == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.0.hook_mlp_in": torch.zeros(2)}, r"hook_mlp_in should have shape \[3\], but have \[2\]"),
        ({"blocks.0.hook_k_input": torch.zeros(9, 2, 1)}, "scores by token position are not read"),
        ({"blocks.0.hook_q_input": torch.zeros(2)}, r"\[n_heads, n_senders\]"),
        ({"blocks.0.hook_k_input": None}, "there are no scores of blocks.0.hook_k_input"),
        ({"blocks.0.hook_resid_post": None}, "no scores of one whole transformer"),
        ({"blocks.3.hook_mlp_in": torch.zeros(3)}, "blocks.3.hook_mlp_in receives nothing"),
        ({"blocks.999999999.hook_resid_post": torch.zeros(4), "blocks.0.hook_resid_post": None}, "one whole transf"),
        ({"blocks.0.sae": torch.zeros(3)}, "'blocks.0.sae' is no receiver"),
        ({"blocks.0.hook_mlp_in": "high"}, "no tensor of numbers: 'high'"),
        ({"blocks.0.hook_mlp_in": torch.tensor([1j, 0, 0])}, "no tensor of numbers"),
        ({"blocks.0.hook_mlp_in": torch.tensor([torch.nan, 0, 0])}, "input->m0 is nan, but must be a finite"),
    ],
)
def test_malformed_files_are_one_line_errors(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    content = {hook: value for hook, value in (BY_HAND | change).items() if value is not None}
    for how in ("torch", "pickle"):
        with pytest.raises(FormatError, match=said) as raised:
            read_circuit(save(tmp_path / "scores.pkl", content, how))
        assert "scores.pkl" in str(raised.value)
        assert "\n" not in str(raised.value)
