"""Knock-outs against the oracle; the whole model is complete."""

from __future__ import annotations

import pytest
from experiments import experiment, naive_metric, oracle_logits, random_mask, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.completeness import KINDS, completeness
from acdc.graph import Edge


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_by_brute_force(family: str, kind: str) -> None:
    model, pairs = small(family), random_pairs(2, (5, 4), partners=2)
    one, rows = experiment(model, pairs, "logit_diff"), rows_of(pairs)
    edges, _ = random_mask(one.graph, 1, 0.6)
    found = completeness(one, Circuit(one.graph, dict.fromkeys(edges, 0.0)), draws=4, kind=kind)
    full = oracle_logits(model.truth, rows, list(one.graph))

    def value(present: list[Edge]) -> float:
        return naive_metric("logit_diff", rows, oracle_logits(model.truth, rows, present), full)

    assert found.span == pytest.approx(abs(value(list(one.graph)) - value([])), abs=1e-4)
    for knockout in found.knockouts:
        out = [e for e in one.graph if (e.sender if kind == "nodes" else str(e)) in knockout.names]
        assert out
        assert knockout.circuit == pytest.approx(value([e for e in edges if e not in out]), abs=1e-4)
        assert knockout.model == pytest.approx(value([e for e in one.graph if e not in out]), abs=1e-4)
    worst = max(abs(k.circuit - k.model) for k in found.knockouts)
    assert found.summary()["max"] == pytest.approx(worst)


def test_the_whole_model_is_complete() -> None:
    one = experiment(small("llama"), random_pairs(), "kl_div")
    found = completeness(one, Circuit(one.graph, dict.fromkeys(one.graph, 0.0)), draws=10, size=2)
    assert {len(k.names) for k in found.knockouts} == {2}
    assert found.summary()["max"] == pytest.approx(0, abs=1e-6)


def test_nothing_to_knock_out() -> None:
    one = experiment(small("gpt2"), random_pairs(), "kl_div")
    assert completeness(one, Circuit(one.graph, {})).summary() == {}
    with pytest.raises(ConfigError, match="the circuit has 1"):
        completeness(one, Circuit(one.graph, {Edge("m0", "logits"): 1.0}), size=2)
