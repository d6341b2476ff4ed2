"""What the best edges do alone, against brute force: every size evaluated by the oracle in float64."""

from __future__ import annotations

import random

import pytest
import torch
from experiments import KINDS, Small, experiment, naive_metric, oracle_logits, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError
from acdc.evaluation.areas import FRACTIONS
from acdc.evaluation.ground_truth import Truth
from acdc.evaluation.method_table import Judge, usual_equal_size, usual_sizes
from acdc.evaluation.ranking import Ranking, grid, strengths
from acdc.graph import Edge, Graph, GraphConfig
from acdc.tasks.base import Pair


def scores_of(graph: object, seed: int) -> dict[Edge, float]:
    rng = random.Random(seed)
    return {edge: rng.uniform(-1, 1) for edge in graph}  # type: ignore[attr-defined]


class Brute:
    """Recovery of the logit difference and KL of sets of edges, by the oracle; none is evaluated twice."""

    def __init__(self, model: Small, pairs: list[Pair], ablation: str = "corrupted") -> None:
        self.model, self.rows, self.ablation = model, rows_of(pairs), ablation
        self.full = self.logits([Edge(*edge) for edge in experiment(model, pairs).graph])
        self.clean, self.empty = (self.metric("logit_diff", logits) for logits in (self.full, self.logits([])))
        self.known: dict[frozenset[Edge], tuple[float, float]] = {}

    def logits(self, edges: list[Edge]) -> torch.Tensor:
        return oracle_logits(self.model.truth, self.rows, edges, self.ablation)

    def metric(self, name: str, logits: torch.Tensor) -> float:
        return naive_metric(name, self.rows, logits, self.full)

    def __call__(self, edges: list[Edge]) -> tuple[float, float]:
        key = frozenset(edges)
        if key not in self.known:
            own = self.logits(edges)
            share = (self.metric("logit_diff", own) - self.empty) / (self.clean - self.empty)
            self.known[key] = share, self.metric("kl_div", own)
        return self.known[key]


def on_path(edges: list[Edge]) -> list[Edge]:
    """Edges on a way from the input to the logits, by walking all ways."""
    kept: set[Edge] = set()

    def walk(node: str, way: list[Edge]) -> None:
        if node == "logits":
            kept.update(way)
        for edge in edges:
            if edge.sender == node:
                walk(edge.receiver.split("<")[0], [*way, edge])

    walk("input", [])
    return [edge for edge in edges if edge in kept]


@pytest.mark.parametrize(("kind", "ablation"), [("gpt2", "corrupted"), ("gpt_neox", "zero")])
@pytest.mark.parametrize("absolute", [False, True])
def test_against_brute_force(kind: str, ablation: str, absolute: bool) -> None:
    model, pairs = small(kind, n_layers=1), random_pairs(lengths=(4, 4, 4))
    here = experiment(model, pairs, "logit_diff", ablation)
    scores = scores_of(here.graph, 3)
    order = sorted(here.graph, key=lambda edge: -(abs(scores[edge]) if absolute else scores[edge]))
    brute = Brute(model, pairs, ablation)
    truth = {n: brute(on_path(order[:n])) for n in range(len(order) + 1)}
    ranking = Ranking(here, scores, absolute)
    for size in ranking.at(range(1, len(order) + 1)):
        n = int(size.edges)
        assert size.on_path == len(on_path(order[:n]))
        assert (size.recovery, size.kl) == pytest.approx(truth[n], abs=2e-4, rel=1e-3)
    for share in (0.3, 0.9):
        found = ranking.first(share)
        assert found is not None
        assert found.edges >= min(n for n, (recovery, _) in truth.items() if recovery >= share)
        assert truth[int(found.edges)][0] >= share > truth[int(found.edges) - 1][0]


def test_the_least_size_is_exact_in_a_small_graph() -> None:
    """13 edges: every size is on the grid up to 12, and 13 is all."""
    model, pairs = small("gpt2", n_layers=1, n_heads=1), random_pairs(lengths=(4, 4, 4))
    here = experiment(model, pairs, "logit_diff")
    brute = Brute(model, pairs)
    assert grid(len(here.graph)) == list(range(1, len(here.graph) + 1))
    for seed in range(4):
        scores = scores_of(here.graph, seed)
        order = sorted(here.graph, key=lambda edge: -scores[edge])
        reached = [n for n in range(len(order) + 1) if brute(on_path(order[:n]))[0] >= 0.9]
        found = Ranking(here, scores, absolute=False).first(0.9)
        assert found is not None
        assert found.edges == min(reached)


@pytest.mark.parametrize("kind", KINDS)
def test_from_nothing_to_everything(kind: str) -> None:
    """In every family, with prompts of different lengths and several corrupted partners."""
    here = experiment(small(kind), random_pairs(lengths=(4, 6), partners=2), "kl_div")
    ranking = Ranking(here, scores_of(here.graph, 0))
    nothing, everything = ranking.at([0, len(here.graph)])
    assert (nothing.on_path, nothing.recovery) == (0, 0)
    assert (everything.recovery, everything.kl) == pytest.approx((1, 0), abs=1e-5)
    first = ranking.first()
    assert first is not None
    before, at = ranking.at([int(first.edges) - 1, int(first.edges)])
    assert before.recovery < 0.9 <= at.recovery
    assert nothing.kl == pytest.approx(here.metric.from_loss(ranking.engine.losses([EdgeMask.of(here.graph, [])])[0]))


def test_greedy_grows_from_the_logits() -> None:
    here = experiment(small("gpt2"), random_pairs(lengths=(4, 4)), "logit_diff")
    ranking = Ranking(here, scores_of(here.graph, 1), greedy=True)
    inside = {"logits"}
    for edge in ranking.ranked:
        assert edge.receiver.split("<")[0] in inside
        inside.add(edge.sender)
    assert set(ranking.ranked) == set(here.graph)


def test_the_row_of_a_method() -> None:
    """Areas by trapezoids over the oracle's recoveries; the area under a ROC curve by hand."""
    model, pairs = small("gpt2"), random_pairs(lengths=(4, 4, 4))
    here = experiment(model, pairs, "logit_diff")
    graph, scores = here.graph, scores_of(here.graph, 5)
    by_size = sorted(graph, key=lambda edge: -abs(scores[edge]))
    true = frozenset([by_size[0], by_size[2]])  # right, wrong, right: one wrong edge before the last right one
    truth = Truth("mine", "file", graph, true)
    judge = Judge(here, (3, 8), 5, truths={"file": truth})
    circuit = Circuit(graph, {}, scores, method={"name": "exact"}, metrics={"seconds": 2.0})
    row, brute = judge.judge([circuit]), Brute(model, pairs)
    assert list(row.numbers) == judge.columns
    for n in (3, 8):
        assert row.numbers[f"kl_at_{n}"] == pytest.approx(brute(on_path(by_size[:n]))[1], abs=2e-4)
    wrong = len(graph) - 2
    assert row.numbers["auc"] == pytest.approx(0.5 + 0.5 * (wrong - 1) / wrong)
    assert (row.numbers["seconds"], row.numbers["peak_mb"]) == (2.0, None)
    assert list(row.best) == by_size[:5]
    expected = {}
    for name, order in (("cpr", sorted(graph, key=lambda edge: -scores[edge])), ("cmd", by_size)):
        chosen = [on_path(order[: int(share * len(graph))]) for share in FRACTIONS]
        f = [brute(edges)[0] for edges in chosen]
        height = f if name == "cpr" else [abs(1 - value) for value in f]
        pieces = zip(FRACTIONS, FRACTIONS[1:], height, height[1:], strict=False)
        expected[name] = sum((b - a) * (low + high) / 2 for a, b, low, high in pieces)
    assert (row.numbers["cpr"], row.numbers["cmd"]) == pytest.approx((expected["cpr"], expected["cmd"]), abs=1e-3)


def test_several_draws_are_averaged() -> None:
    here = experiment(small("gpt2"), random_pairs(lengths=(4, 4)), "logit_diff")
    judge = Judge(here, (4,), 3)
    circuits = [Circuit(here.graph, {}, scores_of(here.graph, seed), method={"name": "random"}) for seed in (0, 1)]
    one, two = (judge.judge([circuit]).numbers["cmd"] for circuit in circuits)
    both = judge.judge(circuits)
    assert one is not None
    assert two is not None
    assert both.numbers["cmd"] == pytest.approx((one + two) / 2)
    assert both.sd["cmd"] == pytest.approx(abs(one - two) / 2)


def test_log_alpha_becomes_a_size_in_the_same_order() -> None:
    edges = [Edge("input", "m0"), Edge("input", "logits"), Edge("m0", "logits")]
    graph = Graph(GraphConfig(1, 1, 4))

    def found(method: str, *scores: float) -> dict[Edge, float]:
        tested = dict(zip(edges, scores, strict=False))
        return strengths(Circuit(graph, {}, tested, method={"name": method}))

    gates = found("edge_pruning", -3.0, 0.5, 900.0)
    assert sorted(edges, key=lambda edge: abs(gates[edge])) == edges
    assert found("eap", -3.0) == {edges[0]: -3.0}


def test_usual_sizes() -> None:
    assert usual_sizes(479) == (5, 10, 20, 50, 100, 200)
    assert usual_sizes(13) == (5, 10)
    assert [usual_equal_size(n, {}) for n in (479, 13, 32_491)] == [48, 1, 50]
    truth = Truth("mine", "file", Graph(GraphConfig(1, 1, 4)), frozenset([Edge("input", "m0"), Edge("m0", "logits")]))
    assert usual_equal_size(479, {"file": truth}) == 2
    for n in (1, 13, 479, 32_491):
        assert grid(n)[0] == 1
        assert grid(n)[-1] == n
        assert grid(n) == sorted(set(grid(n)))
    assert len(grid(32_491)) < 90


def test_nothing_to_recover() -> None:
    same = random_pairs(lengths=(4, 4))
    pairs = [Pair(pair.clean, pair.clean, pair.answers, pair.wrong_answers) for pair in same]
    here = experiment(small("gpt2"), pairs, "logit_diff")
    with pytest.raises(ConfigError, match="the same with every edge"):
        Ranking(here, {})
