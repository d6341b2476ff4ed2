"""Distribution shift, against numpy by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments import experiment, random_pairs, small

from acdc.patching import patch
from acdc.patching.shift import CleanRange

FLOOR = 1e-6


def ledoit_wolf(x: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The share of Ledoit and Wolf (2004), the mean variance, and the covariance, each from its definition."""
    n, d = x.shape
    x = x - x.mean(0)
    S = sum(np.outer(row, row) for row in x) / n
    m = np.trace(S) / d
    distance = np.sum((S - m * np.eye(d)) ** 2) / d
    error = sum(np.sum((np.outer(row, row) - S) ** 2) / d for row in x) / n**2
    return (min(error, distance) / distance if d > 1 else 0.0), m, S


def by_hand(clean: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mahalanobis distances of values, and of each clean value from the others with the same shrinkage."""
    n, d = clean.shape
    share, m, S = ledoit_wolf(clean)
    ridge = (share * m + FLOOR * np.mean(clean**2)) * np.eye(d)

    def distance(value: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
        return math.sqrt((value - mean) @ np.linalg.inv((1 - share) * covariance + ridge) @ (value - mean))

    usual = []
    for i in range(n):
        rest = np.delete(clean, i, 0)
        usual.append(distance(clean[i], rest.mean(0), np.cov(rest.T, bias=True).reshape(d, d)))
    return np.array([distance(value, clean.mean(0), S) for value in values]), np.array(usual)


@pytest.mark.parametrize(("n", "d"), [(40, 3), (6, 10), (3, 4), (12, 1), (2, 2)])
def test_distances_are_mahalanobis_with_a_shrunk_covariance(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    clean = rng.normal(size=(2, n, d)) @ rng.normal(size=(d, d)) + 3
    values = rng.normal(size=(2, 5, d)) * 4
    found = CleanRange(torch.tensor(clean))
    distances = found.distances(torch.tensor(values))
    for unit in range(2):
        expected, usual = by_hand(clean[unit], values[unit])
        np.testing.assert_allclose(distances[unit], expected, rtol=1e-6)
        np.testing.assert_allclose(found.leave_one_out[unit], usual, rtol=1e-5)


def test_what_no_clean_value_has_is_far_away() -> None:
    """Where all clean values are alike, they themselves are at no distance and everything else is out of range."""
    found = CleanRange(torch.ones(1, 8, 4, dtype=torch.float64))
    assert float(found.leave_one_out.max()) < 1e-3
    assert float(found.distances(torch.ones(1, 1, 4, dtype=torch.float64) + 1e-7)) < 1e-2
    assert float(found.distances(torch.zeros(1, 1, 4, dtype=torch.float64))) > 100
    assert CleanRange(torch.ones(1, 1, 4, dtype=torch.float64)).leave_one_out.isnan().all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_table_says_how_far_the_values_of_a_hook_lie(kind: str) -> None:
    lengths, labels = (5, 6, 5, 6, 6), {5: {"two": [1, 3]}, 6: {"two": [2, 4]}}
    pairs = [replace(pair, labels=labels[len(pair.clean)]) for pair in random_pairs(7, lengths, partners=2)]
    model = small(kind, 3)
    one = experiment(model, pairs)
    clean, corrupted = (model.bridge.run_with_cache(t)[1] for t in (one.batch.clean, one.batch.corrupted))
    tokens = [(row, t) for row, pair in enumerate(one.batch.source) for t in range(*labels[lengths[pair]]["two"])]
    once = [(row, t) for row, t in tokens if row % 2 == 0]  # the partners of a pair have the same clean prompt
    patched, ablated = (
        patch(one, name, site=["head_output", "mlp_out"], positions="two", **options)
        for name, options in (
            ("activation", {"direction": "noise"}),
            ("ablation", {"value": "zero", "ranking": None, "backup": 0, "additivity": 0}),
        )
    )
    hooks = {"head_output": "attn.hook_z", "mlp_out": "hook_mlp_out"}
    for found, zero in ((patched, 0), (ablated, 1)):
        for row in found.rows():
            at = f"blocks.{row['layer']}.{hooks[row['site']]}"
            unit = () if row["head"] is None else (row["head"],)
            values = np.array([corrupted[at][(r, t, *unit)].numpy() for r, t in tokens]) * (1 - zero)
            usual = np.array([clean[at][(r, t, *unit)].numpy() for r, t in once])
            distances, of_clean = by_hand(usual.astype(np.float64), values.astype(np.float64))
            assert row["shift"] == pytest.approx(distances.mean() / of_clean.mean(), rel=1e-3)
            norms = np.linalg.norm(usual, axis=1)
            norm = np.linalg.norm(values, axis=1).mean()
            beyond = distances.mean() > of_clean.max() or not norms.min() <= norm <= norms.max()
            assert row["shifted"] == beyond
            if zero:
                assert (row["norm_ratio"], row["shifted"]) == (0, True)
                assert row["norm_z"] == pytest.approx(-norms.mean() / norms.std(ddof=1), rel=1e-4)


def test_the_limit_can_be_given() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, (5,) * 6))
    options = {"value": "resample", "ranking": None, "backup": 0, "additivity": 0}
    rows = patch(one, "ablation", **options).rows()
    limit = sorted(row["shift"] for row in rows)[1] + 1e-6
    limited = patch(one, "ablation", shift_limit=limit, **options).rows()
    assert [row["shifted"] for row in limited] == [row["shift"] > limit for row in rows]
    assert sum(row["shifted"] for row in limited) == 2


def test_clean_values_are_in_range_and_shift_can_be_left_out() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7))
    for row in patch(one, site=["resid_pre", "neuron", "pattern"], direction="denoise").rows():
        assert row["shift"] <= 1.001
        assert not row["shifted"]
    assert "shift" not in patch(one, shift=False).rows()[0]
    single = patch(experiment(small("gpt2", 3), random_pairs(7, (5,))), site="resid_pre").rows()
    assert [(row["shift"], row["shifted"]) for row in single] == [(None, False)] * len(single)
