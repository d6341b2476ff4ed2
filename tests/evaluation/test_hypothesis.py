"""The three tests: their statistics by naive formulas, their p-values by counting, and how they fall out where it is
known beforehand."""

from __future__ import annotations

import math
import random
from itertools import permutations
from math import comb

import pytest
import torch
from experiments import experiment, naive_value, oracle_logits, random_mask, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.hypothesis import Scores, equivalence, hsic_test, independence, minimality_test
from acdc.experiment import Experiment
from acdc.graph import Edge


class Given:
    """Scores made up: of the first mask, and of all others."""

    def __init__(self, *scores: list[float]) -> None:
        self.scores = torch.tensor(scores, dtype=torch.float64)

    def __call__(self, masks: object) -> torch.Tensor:
        return self.scores


def some(metric: str = "logit_diff", n: int = 4, family: str = "gpt2") -> Experiment:
    return experiment(small(family), random_pairs(0, (5,) * n), metric)


def whole(one: Experiment) -> Circuit:
    return Circuit(one.graph, dict.fromkeys(one.graph, 0.0))


def test_scores_are_the_metric_where_larger_is_better() -> None:
    pairs = random_pairs(1, (5, 4), positions=2, partners=2)
    model, rows = small("llama"), rows_of(pairs)
    for metric, what, sign in (("nll", "nll", -1), ("kl_div", "logit_diff", 1), ("logit_diff", "logit_diff", 1)):
        one = experiment(model, pairs, metric)
        edges, mask = random_mask(one.graph, 3)
        logits, full = (oracle_logits(model.truth, rows, e) for e in (edges, list(one.graph)))
        (found,) = Scores(one)([mask])
        each = [
            naive_value(what, *row)
            for row in zip(logits.tolist(), full.tolist(), rows.answers, rows.wrong, strict=True)
        ]
        assert found.tolist() == pytest.approx([sign * sum(each[i : i + 4]) / 4 for i in (0, 4)], abs=1e-4)
    for pair in pairs:
        pair.wrong_answers = []
    with pytest.raises(ConfigError, match="need pairs with answers and wrong_answers"):
        Scores(experiment(model, pairs, "kl_div"))


def test_equivalence_by_counting() -> None:
    """6 better, 2 worse: |k/8 − 1/2| ≥ 1/4 holds for k ≤ 2 and k ≥ 6."""
    circuit = whole(some())
    test = equivalence(Given([2.0] * 6 + [0.0] * 2, [1.0] * 8), circuit, 0.1)  # type: ignore[arg-type]
    assert test.statistic == 0.75
    p = sum(comb(8, k) * 0.6**k * 0.4 ** (8 - k) for k in (0, 1, 2, 6, 7, 8))
    assert test.p_value == pytest.approx(p)
    assert not test.rejected
    worse = equivalence(Given([0.0] * 40, [1.0] * 40), circuit, 0.1)  # type: ignore[arg-type]
    assert worse.p_value == pytest.approx(0.6**40 + 0.4**40)
    assert worse.rejected


def test_the_whole_model() -> None:
    """Equivalent to itself; what is left without it is the same on all pairs, or nearly; nothing can be added to it."""
    one = some()
    assert equivalence(Scores(one), whole(one)).p_value == pytest.approx(1)
    minimal = minimality_test(Scores(one), whole(one))
    assert (minimal.p_value, minimal.rejected) == (None, None)
    assert "no edge can be added" in minimal.note
    empty = Circuit(one.graph, {})
    assert independence(Scores(one), empty, permutations=200).p_value < 0.1  # the model depends on itself
    assert equivalence(Scores(one), whole(one)).as_dict()["rejected"] is False


def naive_hsic(x: list[float], y: list[float]) -> float:
    """tr(K H L H) / (n − 1)², entry by entry."""
    n = len(x)
    width = sorted(abs(a - b) for a in x for b in y)[(n * n - 1) // 2]  # torch's median is the lower one
    K, L = ([[math.exp(-((a - b) ** 2) / (2 * width**2)) for b in v] for a in v] for v in (x, y))
    H = [[float(i == j) - 1 / n for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                for m in range(n):
                    total += K[i][j] * H[j][k] * L[k][m] * H[m][i]
    return total / (n - 1) ** 2


def test_hsic_by_its_formula_and_every_permutation() -> None:
    rng = random.Random(0)
    x = [rng.gauss(0, 1) for _ in range(5)]
    y = [a + rng.gauss(0, 0.5) for a in x]
    value, p = hsic_test(torch.tensor(x), torch.tensor(y), permutations=4000)
    assert value == pytest.approx(naive_hsic(x, y), rel=1e-5)
    every = [naive_hsic(x, [y[i] for i in order]) for order in permutations(range(5))]
    exact = sum(other >= value - 1e-9 for other in every) / len(every)
    assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5 + 1e-3)


def test_p_values_of_independent_samples_are_uniform() -> None:
    rng = torch.Generator().manual_seed(0)
    p_values = sorted(
        hsic_test(torch.randn(12, generator=rng), torch.rand(12, generator=rng), 99, seed)[1] for seed in range(300)
    )
    distance = max(max(abs((i + 1) / 300 - p), abs(i / 300 - p)) for i, p in enumerate(p_values))
    assert distance < 1.63 / 300**0.5 + 0.01  # Kolmogorov's bound at 1%, and the steps of 1/100
    x = torch.randn(40, generator=rng)
    assert hsic_test(x, x.square(), 200)[1] < 0.02  # dependent, not correlated


def test_constant_samples() -> None:
    assert hsic_test(torch.ones(6), torch.arange(6.0)) == (0, 1)
    assert hsic_test(torch.zeros(6), torch.zeros(6)) == (0, 1)


def test_an_edge_that_does_nothing_fails_minimality() -> None:
    """m0->m1 feeds nothing where m1 feeds nothing; input->logits carries everything that is there."""
    one = some(family="gpt2", n=6)
    idle = Edge("m0", "m1")
    circuit = Circuit(one.graph, {Edge("input", "logits"): 1.0, idle: 0.0})
    test = minimality_test(Scores(one), circuit, draws=50)
    assert test.of_edges is not None
    assert test.of_edges[idle] == pytest.approx(0.1**50)  # it beats none of 50
    assert test.p_value == pytest.approx(2 * 0.1**50)
    assert test.statistic == 0
    assert test.rejected
    assert len(test.as_dict()["of_edges"]) == 2
    assert minimality_test(Scores(one), Circuit(one.graph, {})).note == "the circuit has no edges"
