"""Metrics against their definitions, row by row in plain Python; their direction; what they refuse."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from experiments import Rows, experiment, naive_loss, naive_metric, random_pairs, small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acdc.errors import ConfigError, TaskError
from acdc.metrics import METRICS, BoundMetric, Readouts, bind, recovery

VOCABULARY = 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n_pairs", [3, 7, 50])
def test_weights_are_never_rounded(n_pairs: int, dtype: torch.dtype) -> None:
    one = experiment(small("gpt2"), random_pairs(0, lengths=(4,) * n_pairs))
    for here in (one, one.to("cpu", dtype), one.to("cpu", dtype).to("cpu", torch.float64), one.with_pairs(range(3))):
        assert set(here.readouts.weight.tolist()) == {1 / len(here.pairs)}
        assert here.metric.readouts is here.readouts


def make_rows(rng: random.Random, n_rows: int) -> Rows:
    """Rows with one to three answers and wrong answers each, and weights that differ."""
    weights = [rng.random() + 0.1 for _ in range(n_rows)]
    drawn = [rng.sample(range(VOCABULARY), 6) for _ in range(n_rows)]
    return Rows(
        clean=torch.zeros(n_rows, 1, dtype=torch.long),
        corrupted=torch.zeros(n_rows, 1, dtype=torch.long),
        lengths=[1] * n_rows,
        positions=[0] * n_rows,
        answers=[ids[: rng.randint(1, 3)] for ids in drawn],
        wrong=[ids[3 : 3 + rng.randint(1, 3)] for ids in drawn],
        weights=[weight / sum(weights) for weight in weights],
    )


def readouts_of(rows: Rows) -> Readouts:
    def padded(ids: list[list[int]]) -> Tensor:
        return torch.tensor([[*x, *[-1] * (3 - len(x))] for x in ids])

    n = len(rows.weights)
    return Readouts(
        row=torch.arange(n),
        position=torch.zeros(n, dtype=torch.long),
        weight=torch.tensor(rows.weights, dtype=torch.float64),
        answers=padded(rows.answers),
        wrong_answers=padded(rows.wrong),
    )


def draw(seed: int, *leading: int, scale: float = 3.0) -> tuple[Rows, Readouts, Tensor, Tensor]:
    """Rows, their readouts, the full model's logits and some circuits' (`leading row vocabulary`)."""
    rng = random.Random(seed)
    rows = make_rows(rng, rng.randint(1, 5))
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows.weights), VOCABULARY)
    full = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits = scale * torch.randn((*leading, *shape), generator=generator, dtype=torch.float64)
    return rows, readouts_of(rows), full, logits


def taken(metric: BoundMetric, logits: Tensor) -> Tensor:
    """The columns a metric asks for."""
    return logits if metric.columns is None else logits[..., metric.columns]


@pytest.mark.parametrize("name", METRICS.built_in)
@given(seed=st.integers(0, 10**6))
def test_value_is_the_definition(name: str, seed: int) -> None:
    rows, readouts, full, logits = draw(seed, 2, 3)
    metric = bind(METRICS.chosen(name), readouts, full)
    values, losses = metric.value(taken(metric, logits)), metric.loss(taken(metric, logits))
    assert values.shape == losses.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert float(values[i, j]) == pytest.approx(naive_metric(name, rows, logits[i, j], full), abs=1e-10)
            assert float(losses[i, j]) == pytest.approx(naive_loss(name, rows, logits[i, j], full), abs=1e-10)


@pytest.mark.parametrize("name", METRICS.built_in)
def test_values_are_per_readout(name: str) -> None:
    rows, readouts, full, logits = draw(5)
    metric = bind(METRICS.chosen(name), readouts, full)
    values = metric.values(taken(metric, logits))
    for i, value in enumerate(values.tolist()):
        alone = Rows(rows.clean, rows.corrupted, [1], [0], [rows.answers[i]], [rows.wrong[i]], [1.0])
        assert value == pytest.approx(naive_metric(name, alone, logits[i : i + 1], full[i : i + 1]), abs=1e-10)


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff", "nll"])
def test_a_larger_answer_lowers_the_loss(name: str) -> None:
    rows, readouts, full, logits = draw(1)
    metric = bind(METRICS.chosen(name), readouts, full)
    better, worse = logits.clone(), logits.clone()
    for row, (right, wrong) in enumerate(zip(rows.answers, rows.wrong, strict=True)):
        better[row, right] += 1
        worse[row, wrong] += 1
    before, up, down = (float(metric.loss(taken(metric, x))) for x in (logits, better, worse))
    assert up < before < down


@pytest.mark.parametrize("name", ["kl_div", "l2"])
def test_the_full_model_has_the_least_loss(name: str) -> None:
    _, readouts, full, logits = draw(2)
    metric = bind(METRICS.chosen(name), readouts, full)
    assert float(metric.loss(full)) == pytest.approx(0.0, abs=1e-12)
    assert float(metric.loss(logits)) > 0.1


@pytest.mark.parametrize("name", METRICS.built_in)
def test_loss_and_metric_differ_by_sign_only(name: str) -> None:
    _, readouts, full, logits = draw(3)
    metric = bind(METRICS.chosen(name), readouts, full)
    value, loss = metric.value(taken(metric, logits)), float(metric.loss(taken(metric, logits)))
    assert metric.larger_is_better == (name in ("logit_diff", "prob_diff"))
    assert metric.from_loss(loss) == pytest.approx(float(value))
    assert metric.from_loss(metric.from_loss(loss)) == loss
    assert float(metric.as_loss(value)) == pytest.approx(loss)


def test_only_a_logit_difference_does_with_few_columns() -> None:
    rows, readouts, full, logits = draw(4)
    metric = bind(METRICS.chosen("logit_diff"), readouts, full)
    assert metric.columns is not None
    assert metric.columns.tolist() == sorted({i for ids in (*rows.answers, *rows.wrong) for i in ids})
    unread = [i for i in range(VOCABULARY) if i not in metric.columns.tolist()]
    changed = logits.clone()
    changed[:, unread] += 5
    assert torch.equal(metric.value(taken(metric, logits)), metric.value(taken(metric, changed)))
    for name in ("kl_div", "prob_diff", "l2", "nll"):
        assert bind(METRICS.chosen(name), readouts, full).columns is None


@pytest.mark.parametrize("name", METRICS.built_in)
def test_large_logits_stay_finite(name: str) -> None:
    _, readouts, full, logits = draw(6, scale=200.0)
    metric = bind(METRICS.chosen(name), readouts, full.float())
    x = taken(metric, logits).float().requires_grad_()
    loss = metric.loss(x)
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("name", METRICS.built_in)
def test_gradient_is_the_slope(name: str) -> None:
    _, readouts, full, logits = draw(7, scale=1.0)
    metric = bind(METRICS.chosen(name), readouts, full)
    assert torch.autograd.gradcheck(metric.loss, taken(metric, logits).requires_grad_())


@pytest.mark.parametrize("name", METRICS.built_in)
def test_in_another_precision(name: str) -> None:
    _, readouts, full, logits = draw(8)
    metric = bind(METRICS.chosen(name), readouts, full)
    single = metric.to("cpu", torch.float32)
    loss = single.loss(taken(metric, logits).float())
    assert loss.dtype == torch.float64  # the weights'
    assert float(loss) == pytest.approx(float(metric.loss(taken(metric, logits))), rel=1e-5, abs=1e-5)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of logit_diff, kl_div, prob_diff, l2, nll"):
        METRICS.chosen("accuracy")


@pytest.mark.parametrize(
    ("name", "lacking", "refused"),
    [
        ("logit_diff", "answers", True),
        ("logit_diff", "wrong_answers", True),
        ("prob_diff", "answers", True),
        ("prob_diff", "wrong_answers", True),
        ("nll", "answers", True),
        ("nll", "wrong_answers", False),
        ("kl_div", "answers", False),
        ("l2", "wrong_answers", False),
    ],
)
def test_missing_answers(name: str, lacking: str, refused: bool) -> None:
    """One row without answers is enough to refuse, where the metric needs them."""
    rows, readouts, full, logits = draw(9)
    changed: dict[str, Any] = {"answers": readouts.answers.clone(), "wrong_answers": readouts.wrong_answers.clone()}
    changed[lacking][0] = -1
    without = Readouts(readouts.row, readouts.position, readouts.weight, **changed)
    if refused:
        with pytest.raises(TaskError, match=f"metric={name} needs {lacking}") as caught:
            bind(METRICS.chosen(name), without, full)
        assert "\n" not in str(caught.value)
    else:
        value = float(bind(METRICS.chosen(name), without, full).value(logits))
        assert value == pytest.approx(naive_metric(name, rows, logits, full), abs=1e-10)


@pytest.mark.parametrize(
    ("value", "clean", "corrupted", "expected"),
    [(3.0, 3.0, 1.0, 1.0), (1.0, 3.0, 1.0, 0.0), (2.0, 3.0, 1.0, 0.5), (5.0, 3.0, 1.0, 2.0), (1.5, 0.0, 2.0, 0.25)],
)
def test_recovery(value: float, clean: float, corrupted: float, expected: float) -> None:
    assert recovery(value, clean, corrupted) == pytest.approx(expected)


def test_recovery_is_undefined_where_the_runs_are_alike() -> None:
    assert math.isnan(recovery(1.0, 2.0, 2.0))
