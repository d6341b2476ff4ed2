"""Head importance, information flow and random scores, each from its definition."""

from __future__ import annotations

from pathlib import Path

import oracle
import pytest
import torch
from checkpoints import make_checkpoint
from experiments import KINDS, experiment, random_pairs, rows_of, small

from acdc import Experiment
from acdc.discovery import discover
from acdc.discovery.hisp import edge_scores
from acdc.errors import ConfigError
from acdc.graph import LETTERS, Edge, Graph, GraphConfig, node_of
from acdc.model import ModelSettings, load_model

# HISP.


def importance_by_hooks(one: Experiment, bridge: object, pairs: list) -> dict[str, float]:
    """|activation · gradient| of every head's q, k, v and every MLP, by hooks, a prompt at a time."""
    rows = rows_of(pairs)
    found: dict[str, float] = {}
    for row, length in enumerate(rows.lengths):
        kept: dict[str, torch.Tensor] = {}

        def keep(value: torch.Tensor, hook: object, name: str, kept: dict[str, torch.Tensor] = kept) -> torch.Tensor:
            kept[name] = (value + 0).detach().requires_grad_() if not value.requires_grad else value
            return kept[name]

        names = [
            f"blocks.{i}.{x}" for i in (0, 1) for x in ("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_mlp_out")
        ]
        hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
        logits = bridge.run_with_hooks(rows.clean[[row], :length], fwd_hooks=hooks)[0, -1]
        loss = rows.weights[row] * (logits[rows.wrong[row]].mean() - logits[rows.answers[row]].mean())
        gradients = torch.autograd.grad(loss, [kept[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            layer, product = name.split(".")[1], kept[name] * gradient
            if name.endswith("mlp_out"):
                found[f"m{layer}"] = found.get(f"m{layer}", 0) + abs(product.sum().item())
                continue
            by_head = product.unflatten(-1, (2, -1)) if product.ndim == 3 else product
            for head in range(2):
                port = f"a{layer}.h{head}<{name[-1]}>"
                found[port] = found.get(port, 0) + abs(by_head[:, :, head].sum().item())
    return found


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_head_importance_is_that_of_hooks(kind: str, tmp_path: Path) -> None:
    model, bridge = load_model(ModelSettings("local", str(make_checkpoint(kind, tmp_path, seed=3)), device="cpu"))
    pairs = random_pairs(2, (5, 4, 6))
    one = experiment(model, pairs, "logit_diff")
    raw = importance_by_hooks(one, bridge, pairs)
    share = {}
    for layer in (0, 1):
        ports = [f"m{layer}", *(f"a{layer}.h{h}<{x}>" for h in (0, 1) for x in LETTERS)]
        norm = sum(raw[port] ** 2 for port in ports) ** 0.5
        share |= {port: raw[port] / norm for port in ports}
    as_sender = {"input": 1.0, **{m: share[m] for m in ("m0", "m1")}}
    for layer in (0, 1):
        for head in (0, 1):
            as_sender[f"a{layer}.h{head}"] = max(share[f"a{layer}.h{head}<{x}>"] for x in LETTERS)
    found = discover(one, method="hisp").tested
    expected = {e: min(as_sender[e.sender], share.get(e.receiver, 1.0)) for e in found}
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_threshold_on_edges_is_one_on_nodes() -> None:
    """Edges above τ are those between nodes above τ, a head being in as long as one of its ports is."""
    graph = Graph(GraphConfig(3, 2, 8))
    raw = torch.rand(len(graph.ports), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = edge_scores(graph, raw)
    normed = {}
    for layer in range(3):
        ports = [p for p in graph.ports if p.startswith((f"a{layer}.", f"m{layer}"))]
        norm = sum(raw[graph.port_index[p]] ** 2 for p in ports) ** 0.5
        normed |= {p: float(raw[graph.port_index[p]] / norm) for p in ports}
    for threshold in (0.2, 0.35, 0.5):
        ports = {p for p, value in normed.items() if value >= threshold} | {"logits"}
        nodes = {node_of(p) for p in ports} | {"input"}
        expected = {e for e in graph if e.receiver in ports and e.sender in nodes}
        found = {e for e in graph if scores[graph.port_index[e.receiver], graph.sender_index[e.sender]] >= threshold}
        assert found == expected
        assert 0 < len(found) < len(graph)


# Information flow.


def norm(x: torch.Tensor) -> float:
    return sum(abs(value) for value in x.tolist())


@pytest.mark.parametrize("position_embedding", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_information_flow_is_the_share_of_proximity(kind: str, position_embedding: bool) -> None:
    """From the outputs and biases that the oracle finds, by number; the input's with positions or without (MIB)."""
    model, pairs = small(kind, 4), random_pairs(3, (4, 3), partners=2)
    one = experiment(model, pairs, "logit_diff")
    found = discover(one, method="information_flow", position_embedding=position_embedding).tested
    expected = dict.fromkeys(found, 0.0)
    for pair in pairs:
        _, outputs = oracle.evaluate(model.truth, torch.tensor([pair.clean]))
        for port, (senders, bias) in model.truth.ports.items():
            x = (bias + sum(outputs[s] for s in senders))[0]
            wrote = outputs if position_embedding else outputs | {"input": model.truth.tok(torch.tensor([pair.clean]))}
            for position in range(len(pair.clean)):
                rest = {s: x[position] - wrote[s][0, position] for s in senders}
                near = {s: max(0.0, norm(x[position]) - norm(rest[s])) for s in senders}
                for s in senders:
                    expected[Edge(s, port)] += near[s] / (sum(near.values()) or 1.0) / len(pair.clean) / len(pairs)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert discover(one, method="information_flow").method["select"] == "greedy"


def test_positions_that_are_a_sender_are_not_left_out() -> None:
    one = Experiment.build("tracr_reverse", "tracr_reverse", ablation="zero")
    with pytest.raises(ConfigError, match=r"input\.pos"):
        discover(one, method="information_flow", position_embedding=False)


# Random.


def test_random_scores_depend_on_the_seed_alone() -> None:
    one = experiment(small("gpt2"), random_pairs(0))
    first, again, other = (discover(one, method="random", seed=seed, fraction=1.0, prune=False) for seed in (1, 1, 2))
    assert first.tested == again.tested
    assert first.tested != other.tested
    assert set(first.edges) == set(one.graph)
    assert all(0 <= score < 1 for score in first.tested.values())
    assert len(set(first.tested.values())) == len(one.graph)
