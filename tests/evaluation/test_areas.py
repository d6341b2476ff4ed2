"""CPR and CMD by hand, and f against the oracle."""

from __future__ import annotations

import random

import pytest
from experiments import experiment, naive_metric, oracle_logits, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.areas import FRACTIONS, Point, areas, cmd, cpr, curve, tied
from acdc.graph import Edge


def test_trapezoids_by_hand() -> None:
    points = [Point(0.1, 1, 0.5), Point(0.5, 5, 1.5), Point(1.0, 10, 1.0)]
    assert cpr(points) == pytest.approx(0.4 * 1.0 + 0.5 * 1.25)
    assert cmd(points) == pytest.approx(0.4 * 0.5 + 0.5 * 0.25)
    # What MIB reports for random scores: nothing works until everything is there.
    step = [Point(fraction, 0, float(fraction == 1)) for fraction in FRACTIONS]
    assert cpr(step) == pytest.approx(0.25)
    assert cmd(step) == pytest.approx(0.75, abs=0.002)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("absolute", [False, True])
def test_f_by_brute_force(family: str, absolute: bool) -> None:
    model, pairs = small(family), random_pairs(4, (5, 5, 5))
    one, rows, rng = experiment(model, pairs, "logit_diff"), rows_of(pairs), random.Random(7)
    scores = {edge: rng.uniform(-1, 1) for edge in one.graph}
    full = oracle_logits(model.truth, rows, list(one.graph))

    def value(present: list) -> float:
        return naive_metric("logit_diff", rows, oracle_logits(model.truth, rows, present), full)

    clean, corrupted = value(list(one.graph)), value([])
    best = sorted(scores, key=lambda edge: -(abs(scores[edge]) if absolute else scores[edge]))
    points = curve(one, scores, (0.001, 0.2, 0.5, 1.0), absolute)
    for point in points:
        taken = best[: int(point.fraction * len(one.graph))]
        left = Circuit(one.graph, dict.fromkeys(taken, 0.0)).on_path()
        assert point.edges == len(left)
        assert point.f == pytest.approx((value(list(left)) - corrupted) / (clean - corrupted), abs=1e-3)
    assert (points[0].edges, points[0].f) == (0, 0)
    assert (points[-1].edges, points[-1].f) == (len(one.graph), pytest.approx(1))


def test_edges_without_a_score_come_between() -> None:
    """0 for them: behind the helpful, before the harmful; by size the last."""
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    direct, fraction = Edge("input", "logits"), 1.5 / len(one.graph)  # one edge
    assert [p.edges for p in curve(one, {direct: -1.0}, (fraction,), absolute=True)] == [1]
    assert [p.edges for p in curve(one, {direct: -1.0}, (fraction,))] == [0]  # m1->logits is the first of those with 0
    assert [p.edges for p in curve(one, {direct: 1.0}, (fraction,))] == [1]
    both = areas(one, {direct: -1.0})
    assert [point.fraction for point in both.signed] == list(FRACTIONS)


@pytest.mark.parametrize("absolute", [False, True])
def test_ties_go_in_the_order_of_the_tests_or_the_other_way_round(absolute: bool) -> None:
    """The same as for scores without ties, that are a little smaller from one edge to the next."""
    one = experiment(small("gpt2"), random_pairs(4, (5, 5, 5)), "logit_diff")
    rng = random.Random(3)
    every = list(one.graph)
    scores = {edge: rng.choice([-1.0, 0.5, 1.0]) for edge in rng.sample(every, len(every) // 3)}
    for last_first in (False, True):
        steps = range(len(every)) if last_first else range(len(every), 0, -1)
        apart = {}
        for edge, step in zip(every, steps, strict=True):
            score = scores.get(edge, 0.0)
            apart[edge] = (abs(score) if absolute else score) + 1e-6 * step
        assert curve(one, scores, FRACTIONS, absolute, last_first=last_first) == curve(one, apart)
    assert tied(one.graph, scores) == len(every)
    assert tied(one.graph, apart) == 0
    assert tied(one.graph, {**apart, every[3]: -apart[every[7]]}) == 2  # of the same size
    ends = [areas(one, scores, last_first=last_first) for last_first in (False, True)]
    assert ends[0].cpr != ends[1].cpr


def test_refused() -> None:
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        curve(one, {}, (0.5, 2.0))
    same = random_pairs()
    for pair in same:
        pair.corrupted = pair.clean
    with pytest.raises(ConfigError, match="the same with every edge and without any"):
        curve(experiment(small("gpt2"), same, "kl_div"), {})
