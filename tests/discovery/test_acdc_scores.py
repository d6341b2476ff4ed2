"""ACDC over a grid: each threshold's circuit is that of the brute-force ACDC with this threshold alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from types import SimpleNamespace

import pytest
from experiments import experiment, oracle_acdc, random_pairs, small
from test_shortlist import brute_force
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery import discover
from acdc.discovery.base import NoObserver, NoStore
from acdc.errors import ConfigError
from acdc.graph import Edge

GRID = [0.002, 0.01, 0.011, 0.05, 0.3, 100.0]


@pytest.mark.parametrize(("kind", "metric"), [("gpt2", "kl_div"), ("llama", "logit_diff"), ("gpt_neox", "kl_div")])
def test_a_score_is_the_largest_threshold_survived(kind: str, metric: str) -> None:
    model, pairs = small(kind), random_pairs(31)
    circuit = discover(experiment(model, pairs, metric), "acdc_scores", thresholds=GRID[::-1])
    expected: dict[Edge, float] = dict.fromkeys(circuit.graph, 0.0)
    runs = {threshold: oracle_acdc(model.truth, pairs, metric, threshold) for threshold in GRID}
    for threshold, decisions in runs.items():
        expected |= {edge: threshold for edge, _, kept in decisions if kept}
    assert circuit.tested == expected
    order = sorted(expected, key=lambda edge: -expected[edge])
    best: list[Edge] = []
    for size in range(int(0.1 * len(expected)), len(expected) + 1):  # a tenth, or the least that has a path
        best = list(Circuit(circuit.graph, {edge: expected[edge] for edge in order[:size]}).on_path())
        if best:
            break
    assert circuit.edges == {edge: expected[edge] for edge in best}
    assert len(set(expected.values())) > 3
    sizes = {f"{threshold:.6g}": sum(kept for *_, kept in decisions) for threshold, decisions in runs.items()}
    assert circuit.metrics["sizes"] == sizes
    assert circuit.metrics["tested"] + circuit.metrics["shared"] == sum(map(len, runs.values()))
    assert circuit.metrics["shared"] > 0


def test_nested_runs_test_only_what_is_left() -> None:
    model, pairs = small("gpt2"), random_pairs(31)
    circuit = discover(experiment(model, pairs), "acdc_scores", thresholds=GRID, nested=True)
    kept, tested = set(circuit.graph), 0
    expected: dict[Edge, float] = dict.fromkeys(circuit.graph, 0.0)
    for threshold in GRID:
        decisions = brute_force(model, pairs, "kl_div", threshold, set(circuit.graph) - kept, True)
        kept = {edge for edge, _, stays in decisions if stays}
        expected |= dict.fromkeys(kept, threshold)
        tested += len(decisions)
    assert circuit.tested == expected
    assert (circuit.metrics["tested"], circuit.metrics["shared"]) == (tested, 0)


def test_thresholds_that_take_seconds_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on 0.2 s a look, every threshold takes less than the 5 s between two saves."""

    class Store(NoStore):
        kept: list[int] = []  # noqa: RUF012

        def save(self, tensors: Mapping[str, Tensor]) -> None:
            self.kept.append(len(tensors) - 1)  # thresholds

    ticks = count()
    monkeypatch.setattr("acdc.discovery.acdc_scores.time", SimpleNamespace(monotonic=lambda: 0.2 * next(ticks)))
    store = Store()
    discover(experiment(small("gpt2"), random_pairs(31)), "acdc_scores", thresholds=GRID, store=store)
    assert len(store.kept) >= 2
    assert store.kept[0] > 1


def test_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.discovery.acdc_scores._SECONDS_BETWEEN_SAVES", 0.0)

    class Store:
        def __init__(self) -> None:
            self.saved: dict = {}

        def load(self) -> dict:
            return self.saved

        def save(self, tensors: dict) -> None:
            self.saved = {name: tensor.clone() for name, tensor in tensors.items()}

    class Killed(Exception):
        pass

    class Killer(NoObserver):
        def __init__(self, at: int) -> None:
            self.left = at

        def progressed(self, done: int, total: int, values: object) -> None:
            assert 0 <= done <= total
            self.left -= 1
            if not self.left:
                raise Killed

    one = experiment(small("gpt2"), random_pairs(31))
    whole = discover(one, "acdc_scores", thresholds=GRID)
    for at in (3, 17, 40):
        store = Store()
        with pytest.raises(Killed):
            discover(one, "acdc_scores", thresholds=GRID, observer=Killer(at), store=store)
        resumed = discover(one, "acdc_scores", thresholds=GRID, store=store)
        assert resumed.tested == whole.tested
        assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("thresholds", [[], [0.1, 0.0], [float("nan")], [float("inf")]])
def test_wrong_thresholds(thresholds: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"method\.thresholds"):
        discover(experiment(small("gpt2"), random_pairs(31)), "acdc_scores", thresholds=thresholds)


def test_a_task_without_a_threshold_needs_a_grid() -> None:
    with pytest.raises(ConfigError, match=r"give method\.thresholds"):
        discover(experiment(small("gpt2"), random_pairs(31)), "acdc_scores")
