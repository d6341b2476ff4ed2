"""CPR and CMD by hand, and f against the oracle."""

from __future__ import annotations

import random

import pytest
from experiments import experiment, naive_metric, oracle_logits, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.areas import FRACTIONS, Areas, areas
from acdc.evaluation.ranking import Ranking, Size, tied
from acdc.graph import Edge


def sizes(*recoveries: float) -> tuple[Size, ...]:
    return tuple(Size(0, 0, recovery, None) for recovery in recoveries)


def test_trapezoids_by_hand() -> None:
    """0.5 up to a tenth of the edges, then 1.5 up to a half, then 1."""
    f = sizes(*[0.5] * 7, 1.5, 1.5, 1.0)
    found = Areas(f, f)
    assert found.cpr == pytest.approx(0.5 * 0.099 + 0.1 * 1.0 + 0.3 * 1.5 + 0.5 * 1.25)
    assert found.cmd == pytest.approx(0.5 * 0.099 + 0.1 * 0.5 + 0.3 * 0.5 + 0.5 * 0.25)
    # What MIB reports for random scores: nothing works until everything is there.
    step = sizes(*(float(fraction == 1) for fraction in FRACTIONS))
    assert Areas(step, step).cpr == pytest.approx(0.25)
    assert Areas(step, step).cmd == pytest.approx(0.75, abs=0.002)


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
    found = areas(one, scores)
    points = found.absolute if absolute else found.signed
    for fraction, point in zip(FRACTIONS, points, strict=True):
        taken = best[: int(fraction * len(one.graph))]
        left = Circuit(one.graph, dict.fromkeys(taken, 0.0)).on_path()
        assert point.on_path == len(left)
        assert point.recovery == pytest.approx((value(list(left)) - corrupted) / (clean - corrupted), abs=1e-3)
    assert (points[0].on_path, points[0].recovery) == (0, 0)
    assert (points[-1].on_path, points[-1].recovery) == (len(one.graph), pytest.approx(1))


def test_edges_without_a_score_come_between() -> None:
    """0 for them: behind the helpful, before the harmful; by size the last."""
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    direct = Edge("input", "logits")

    def on_path(score: float, absolute: bool) -> float:
        return Ranking(one, {direct: score}, absolute).at([1])[0].on_path

    assert on_path(-1.0, absolute=True) == 1
    assert on_path(-1.0, absolute=False) == 0  # m1->logits is the first of those with 0
    assert on_path(1.0, absolute=False) == 1


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
        some = range(0, len(every), 5)
        tie, no_tie = Ranking(one, scores, absolute, last_first=last_first), Ranking(one, apart, absolute=False)
        assert tie.ranked == no_tie.ranked
        assert tie.at(some) == no_tie.at(some)
    assert tied(one.graph, scores) == len(every)
    assert tied(one.graph, apart) == 0
    assert tied(one.graph, {**apart, every[3]: -apart[every[7]]}) == 2  # of the same size
    ends = [areas(one, scores, last_first=last_first) for last_first in (False, True)]
    assert ends[0].cpr != ends[1].cpr


def test_refused() -> None:
    same = random_pairs()
    for pair in same:
        pair.corrupted = pair.clean
    with pytest.raises(ConfigError, match="the same with every edge and without any"):
        areas(experiment(small("gpt2"), same, "kl_div"), {})
