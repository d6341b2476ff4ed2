"""Causal scrubbing where it is known what is drawn: with two pairs, each prompt's only partner is the other."""

from __future__ import annotations

import pytest
import torch
from experiments import KINDS, experiment, naive_metric, oracle_logits, random_mask, random_pairs, rows_of, small

import acdc.engine.full
from acdc.circuit import Circuit
from acdc.errors import TaskError
from acdc.evaluation.measures import measure
from acdc.evaluation.scrubbing import scrub, scrubbable
from acdc.graph import Graph


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_of_two(kind: str) -> None:
    """Removed edges carry the sender's output on the other clean prompt: the oracle with that as the corrupted one."""
    model, pairs = small(kind), random_pairs(6, (5, 5), positions=2)
    one = experiment(model, pairs, "logit_diff", "zero" if kind == "llama" else "corrupted")
    graph = Graph(one.model.config, projection_edges=kind == "gpt2")
    edges, _ = random_mask(graph, 5, 0.6)
    for pair, other in zip(pairs, pairs[::-1], strict=True):
        pair.corrupted = other.clean
    rows = rows_of(pairs)
    full = oracle_logits(model.truth, rows, list(graph), projection=graph.projection_edges)
    for some in (edges, [], list(graph)):
        scrubbed = scrub(one, Circuit(graph, dict.fromkeys(some, 0.0)), draws=2)
        logits = oracle_logits(model.truth, rows, some, projection=graph.projection_edges)
        expected = naive_metric("logit_diff", rows, logits, full)
        assert scrubbed.metric.mean(-1).tolist() == pytest.approx([expected] * 2, abs=1e-4)
        kl = naive_metric("kl_div", rows, logits, full)
        assert scrubbed.kl.mean(-1).tolist() == pytest.approx([kl] * 2, abs=1e-4)


def test_the_whole_model_is_left_alone() -> None:
    one = experiment(small("gpt2"), random_pairs(0, (5, 4, 5, 4)), "logit_diff")
    whole = Circuit(one.graph, dict.fromkeys(one.graph, 0.0))
    (measured,) = measure(one, [whole])
    assert scrub(one, whole, 3).metric.sub(measured.clean).abs().max() < 1e-5


def test_draws_are_of_any_other_prompt_of_the_length() -> None:
    """One edge removed, and it is to the logits: each pair's metric is one of those with another prompt's value."""
    model, pairs = small("gpt2"), random_pairs(0, (5, 5, 5, 4))
    one = experiment(model, [*pairs, pairs[3]], "logit_diff")  # a prompt is no other than itself
    assert scrubbable(one) == [0, 1, 2]
    edges = [edge for edge in one.graph if str(edge) != "m1->logits"]
    scrubbed = scrub(one, Circuit(one.graph, dict.fromkeys(edges, 0.0)), draws=30)
    again = scrub(one, Circuit(one.graph, dict.fromkeys(edges, 0.0)), draws=30)
    assert torch.equal(scrubbed.metric, again.metric)
    possible: list[list[float]] = []
    for i in range(3):
        values = []
        for other in range(3):
            if other != i:
                pairs[i].corrupted = pairs[other].clean
                rows = rows_of([pairs[i]])
                logits, full = (oracle_logits(model.truth, rows, e) for e in (edges, list(one.graph)))
                values.append(naive_metric("logit_diff", rows, logits, full))
        possible.append(values)
    for i, values in enumerate(possible):
        seen = {min(range(2), key=lambda k: abs(values[k] - x)) for x in scrubbed.metric[:, i].tolist()}
        assert seen == {0, 1}
        assert all(min(abs(x - v) for v in values) < 1e-4 for x in scrubbed.metric[:, i].tolist())
    # The only prompts of their length are left out.
    assert scrubbed.metric.shape == (30, 3)
    alone = experiment(model, [pairs[0], pairs[3]], "logit_diff")
    assert scrubbable(alone) == []
    with pytest.raises(TaskError, match="no pair has another clean prompt of its length"):
        scrub(alone, Circuit(one.graph, {}))


def test_blocks_of_pairs_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one = experiment(small("llama"), random_pairs(0, (5, 5, 5, 5), partners=2), "logit_diff")
    edges, _ = random_mask(one.graph, 1, 0.5)
    circuit = Circuit(one.graph, dict.fromkeys(edges, 0.0))
    expected = scrub(one, circuit, 2).metric
    monkeypatch.setattr(acdc.engine.full, "budget_bytes", lambda device, gb=None: 40_000)
    assert acdc.engine.full.FullEngine(one).parts
    assert scrub(one, circuit, 2).metric.sub(expected).abs().max() < 1e-5
