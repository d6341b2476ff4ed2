"""Edges that go untested, or are tested last, against a brute-force loop on the oracle."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest
from experiments import (
    Recorder,
    Small,
    assert_same_decisions,
    experiment,
    naive_loss,
    oracle_logits,
    random_pairs,
    rows_of,
    small,
)

from acdc.discovery import discover
from acdc.discovery.acdc import ACDC, prune
from acdc.discovery.base import Decision, NoObserver
from acdc.discovery.shortlist import make_shortlist, ruled_out
from acdc.errors import ConfigError
from acdc.graph import Edge, node_of
from acdc.tasks.base import Pair


def brute_force(
    model: Small, pairs: list[Pair], metric: str, threshold: float, out: Collection[Edge], only: bool
) -> list[tuple[Edge, float, bool]]:
    """One edge at a time, from the rules."""
    rows = rows_of(pairs)
    graph = experiment(model, pairs, metric).graph
    present = set(graph)
    full = oracle_logits(model.truth, rows, present)

    def loss() -> float:
        return naive_loss(metric, rows, oracle_logits(model.truth, rows, present), full)

    tested = []
    for receiver, senders in graph.test_order:
        edges = [Edge(sender, receiver) for sender in senders]
        if receiver != "logits" and not any(edge.sender == node_of(receiver) for edge in present):
            present -= set(edges)
            continue
        for edge in edges if only else [e for e in edges if e not in out] + [e for e in edges if e in out]:
            before = loss()
            present.remove(edge)
            if only and edge in out:
                continue
            effect = loss() - before
            if effect >= threshold:
                present.add(edge)
            tested.append((edge, effect, effect >= threshold))
    return tested


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize(("kind", "metric"), [("gpt2", "kl_div"), ("llama", "logit_diff"), ("gpt_neox", "kl_div")])
def test_decisions_are_those_of_a_brute_force_loop(kind: str, metric: str, engine: str, only: bool) -> None:
    model, pairs = small(kind), random_pairs(21)
    one = experiment(model, pairs, metric)
    out = frozenset(edge for edge in one.graph if random.Random(f"{kind} {edge}").random() < 0.6)
    seen = Recorder()
    circuit = prune(one, ACDC(engine=engine), 0.02, seen, (), out, only)
    expected = brute_force(model, pairs, metric, 0.02, out, only)
    assert_same_decisions(seen.decisions, expected)
    assert set(circuit) == {edge for edge, _, kept in expected if kept}
    assert any(kept for *_, kept in expected)

    # Interrupted after any number of decisions, it goes on to the same ones.
    for cut in (1, len(seen.decisions) // 2, len(seen.decisions) - 1):
        again = Recorder()
        resumed = prune(one, ACDC(engine=engine), 0.02, again, seen.decisions[:cut], out, only)
        assert set(resumed) == set(circuit)
        assert_same_decisions([*again.replays, *again.decisions], expected)


def test_the_largest_scores_are_not_ruled_out() -> None:
    edges = [Edge(f"m{i}", "logits") for i in range(5)]
    scores = dict(zip(edges, [0.1, -3.0, 0.2, 0.0], strict=False))
    assert ruled_out(scores, edges, 0.4) == {edges[0], edges[3], edges[4]}
    assert len(ruled_out(scores, edges, 0.01)) == 4  # one is left


def test_a_run_that_goes_on_has_the_same_shortlist() -> None:
    class Kept:
        saved: dict = {}  # noqa: RUF012

        def load(self) -> dict:
            return self.saved

        def save(self, tensors: dict) -> None:
            self.saved = dict(tensors)

    one, store = experiment(small("gpt2"), random_pairs(22)), Kept()
    first = make_shortlist(one, "random", 0.3, store)
    other = experiment(small("gpt2"), random_pairs(23))
    assert make_shortlist(other, "random", 0.3, store) == first
    assert len(first) == len(one.graph) - round(0.3 * len(one.graph))


def test_what_is_left_out_is_said() -> None:
    class Progress(NoObserver):
        steps: list = []  # noqa: RUF012
        decided_: list = []  # noqa: RUF012

        def decided(self, decision: Decision, remaining: int) -> None:
            self.decided_.append(decision)

        def progressed(self, done: int, total: int, values: object) -> None:
            self.steps.append((done, total))

    one, seen = experiment(small("gpt2"), random_pairs(22)), Progress()
    circuit = discover(one, threshold=0.02, shortlist="random", shortlist_share=0.5, observer=seen)
    plain = discover(one, threshold=0.02)
    assert circuit.metrics["ruled_out"] == len(one.graph) - round(0.5 * len(one.graph))
    assert circuit.metrics["plain_edges"] == len(plain)
    assert circuit.metrics["plain_differs"] == len(set(plain) ^ set(circuit)) > 0
    assert len(seen.decided_) == len(circuit.tested)  # none of the plain run's
    assert seen.steps
    assert "plain_edges" not in discover(one, threshold=0.02, shortlist="random", shortlist_compare=False).metrics


@pytest.mark.parametrize(
    ("options", "message"), [({"shortlist": "acdc"}, "eap"), ({"shortlist_share": 0.0}, "between 0 and 1")]
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ACDC(**options)
