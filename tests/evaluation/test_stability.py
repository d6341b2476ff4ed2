"""Circuits found again; models with their heads in other places."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from experiments import experiment, random_pairs, small

from acdc.circuit import Circuit
from acdc.discovery import METHODS, discover
from acdc.errors import ConfigError
from acdc.evaluation.faithfulness import faithfulness
from acdc.evaluation.minimality import minimality
from acdc.evaluation.stability import (
    Stability,
    discover_in_order,
    random_order,
    reordered,
    settings_of,
    stability,
)
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.tasks import TASKS


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bidirectional"])
def test_other_places_same_model(kind: str) -> None:
    """The logits stay, and an edge's worth goes with its head to the new place."""
    parts = small(kind, n_heads=4).parts
    pairs = random_pairs(0, (5, 4) if kind != "bidirectional" else (5, 5))
    one = experiment(parts, pairs, "logit_diff").to("cpu", torch.float64)
    order = random_order(parts, random.Random(1))
    assert all(sorted(heads) == [0, 1, 2, 3] for heads in order)
    assert order != [[0, 1, 2, 3]] * 2
    other = replace(one, model=reordered(one.model, order))
    assert other.clean_logits.sub(one.clean_logits).abs().max() < 1e-9
    whole = Circuit(one.graph, dict.fromkeys(one.graph, 0.0))
    some = [edge for edge in one.graph if edge.sender.startswith("a0") and edge.receiver.startswith("a1")]
    here, there = (minimality(which, whole, some).worth for which in (one, other))
    for place, head in enumerate(order[1]):
        for port in ("<q>", "<k>", "<v>"):
            for place0, head0 in enumerate(order[0]):
                expected = here[Edge(f"a0.h{head0}", f"a1.h{head}{port}")]
                found = there[Edge(f"a0.h{place0}", f"a1.h{place}{port}")]
                assert found == pytest.approx(expected, abs=1e-9)


def test_names_are_translated_back() -> None:
    one = experiment(small("llama", n_heads=4), random_pairs(0, (5,) * 3), "logit_diff")
    method = METHODS.load("acdc")(threshold=0.02, projection_edges=True)
    order = random_order(one.model, random.Random(3))
    found = discover_in_order(one, method, order)
    other = replace(one, model=reordered(one.model, order))
    there = discover(other, method)
    assert faithfulness(one, found)["circuit"] == pytest.approx(faithfulness(other, there)["circuit"], abs=1e-4)
    assert len(found) == len(there) > 0
    assert set(found) != set(there)
    same = discover_in_order(one, method, [[0, 1, 2, 3]] * 2)
    assert same.edges == discover(one, method).edges


def test_jaccard_and_recurrence_by_hand() -> None:
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    a, b, c, d = list(one.graph)[:4]

    def circuit(*edges: Edge) -> Circuit:
        return Circuit(one.graph, dict.fromkeys(edges, 1.0))

    again = Stability(circuit(a, b), {"pairs": [circuit(a, b), circuit(b, c)], "orders": [circuit(b, d)]})
    assert again.summary("pairs") == pytest.approx(
        {"mean": 2 / 3, "min": 1 / 3, "max": 1, "between": 1 / 3, "edges": 2}
    )
    assert again.summary("orders") == pytest.approx({"mean": 1 / 3, "min": 1 / 3, "max": 1 / 3, "edges": 2})
    assert again.recurrence() == pytest.approx({b: 1, a: 1 / 3, c: 1 / 3, d: 1 / 3})
    assert next(iter(again.recurrence())) == b


def test_found_again() -> None:
    """With a threshold that nothing reaches every search finds the same, nothing; the file's method says so."""
    settings = TASKS.load("gate_or")()
    one = Experiment.build(task=settings, ablation="zero")
    nothing = discover(one, threshold=100.0)
    seen = []
    again = stability(one, nothing, settings, runs=2, progress=lambda done, total: seen.append((done, total)))
    assert {kind: len(found) for kind, found in again.found.items()} == {"pairs": 2, "seeds": 2, "orders": 2}
    assert all(again.summary(kind)["mean"] == 1 for kind in again.found)
    assert seen == [(i, 6) for i in range(1, 7)]


def test_the_method_of_a_file() -> None:
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    found = discover(one, threshold=0.07, engine="full")
    assert (settings_of(found).threshold, settings_of(found).engine) == (0.07, "full")
    with pytest.raises(ConfigError, match="names no method"):
        settings_of(Circuit(one.graph, {}))
    with pytest.raises(ConfigError, match="method=magic does not exist"):
        settings_of(Circuit(one.graph, {}, method={"name": "magic"}))
