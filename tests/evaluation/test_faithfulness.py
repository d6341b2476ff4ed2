"""Measures on every pair against their definitions, and the bootstrap against every resample there is."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from experiments import experiment, naive_value, oracle_logits, random_mask, random_pairs, rows_of, small

from acdc.circuit import Circuit
from acdc.evaluation.faithfulness import faithfulness, intervals
from acdc.evaluation.measures import Measured, measure


@pytest.mark.parametrize("metric", ["logit_diff", "nll"])
def test_every_pair(metric: str) -> None:
    """Pairs of two positions and three partners: the mean over a pair's rows of each measure."""
    model, pairs = small("llama"), random_pairs(3, (5, 4, 5), positions=2, partners=3, n_answers=2)
    one = experiment(model, pairs, metric)
    edges, _ = random_mask(one.graph, 0, 0.7)
    (measured,) = measure(one, [Circuit(one.graph, dict.fromkeys(edges, 0.0))])
    rows = rows_of(pairs)
    own, full = (oracle_logits(model.truth, rows, e) for e in (edges, list(one.graph)))
    for i in range(3):
        some = range(6 * i, 6 * i + 6)

        def mean(what: str) -> float:
            values = [
                naive_value(what, own[r].tolist(), full[r].tolist(), rows.answers[r], rows.wrong[r])
                for r in some  # noqa: B023
            ]
            return sum(values) / 6

        assert float(measured.circuit["metric"][i]) == pytest.approx(mean(metric), abs=1e-4)
        assert float(measured.circuit["kl"][i]) == pytest.approx(mean("kl_div"), abs=1e-4)
        alike = sum(int(own[r].argmax()) == int(full[r].argmax()) for r in some) / 6
        right = sum(int(own[r].argmax()) in rows.answers[r] for r in some) / 6
        assert float(measured.circuit["agreement"][i]) == pytest.approx(alike)
        assert float(measured.circuit["accuracy"][i]) == pytest.approx(right)
    numbers = faithfulness(one, Circuit(one.graph, dict.fromkeys(edges, 0.0)))
    assert numbers["agreement"] == pytest.approx(float(measured.circuit["agreement"].mean()))


def test_the_whole_model_agrees_with_itself() -> None:
    one = experiment(small("gpt2"), random_pairs(), "logit_diff")
    assert faithfulness(one, Circuit(one.graph, dict.fromkeys(one.graph, 0.0)))["agreement"] == 1


def test_intervals_are_those_of_all_resamples() -> None:
    """27 resamples of three pairs, each as likely: recovery is a ratio of means over the same pairs."""
    own, clean, corrupted = ([3.0, 1.0, 2.5], [4.0, 2.0, 3.0], [0.0, 1.5, 1.0])
    measured = Measured(
        {"metric": torch.tensor(own), "kl": torch.tensor([0.1, 0.7, 0.2])},
        torch.tensor(clean),
        torch.tensor(corrupted),
        {},
    )
    found = intervals(measured, draws=20_000, confidence=0.8, seed=1)
    every = [
        [sum(values[i] for i in some) for values in (own, clean, corrupted)] for some in product(range(3), repeat=3)
    ]
    ratios = torch.tensor([(a - c) / (b - c) for a, b, c in every])
    kls = torch.tensor([sum((0.1, 0.7, 0.2)[i] for i in some) / 3 for some in product(range(3), repeat=3)])
    for name, exact in (("recovery", ratios), ("kl", kls)):
        low, high = found[name]
        # A sample quantile is within the exact ones of slightly larger and smaller tails.
        for value, tail in ((low, 0.1), (high, 0.9)):
            around = torch.quantile(exact, torch.tensor([tail - 0.02, tail + 0.02]), interpolation="nearest")
            assert around[0] - 1e-6 <= value <= around[1] + 1e-6
    assert found == intervals(measured, draws=20_000, confidence=0.8, seed=1)


def test_no_recovery_no_interval() -> None:
    same = torch.ones(4)
    assert "recovery" not in intervals(Measured({"metric": same, "kl": same}, same, same, {}), draws=10)


def test_an_interval_of_the_divergence_is_not_negative() -> None:
    """It can be no less than 0; rounding can make it so."""
    values = torch.ones(4)
    measured = Measured({"metric": values, "kl": torch.full((4,), -4e-8)}, values, 0 * values, {})
    assert intervals(measured, draws=10)["kl"] == (0.0, 0.0)
