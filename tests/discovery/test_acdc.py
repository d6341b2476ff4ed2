"""ACDC, with either engine, against the brute-force oracle and the recorded runs of the original."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import (
    KINDS,
    Recorder,
    assert_same_decisions,
    decide,
    experiment,
    oracle_acdc,
    random_pairs,
    small,
)

from acdc.discovery import discover
from acdc.discovery.acdc import ACDC
from acdc.discovery.base import Decision
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import AcdcError, ConfigError, RunError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.tasks.base import Pair, Task

ENGINES = ("full", "incremental")
THRESHOLDS = (0.003, 0.03, 0.3)
PRODUCT = [
    (*combination, THRESHOLDS[i % 3])
    for i, combination in enumerate(
        itertools.product(KINDS, ("kl_div", "logit_diff"), ("corrupted", "zero", "mean"), (False, True))
    )
]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("kind", "metric", "ablation", "projection_edges", "threshold"), PRODUCT)
def test_decisions_are_the_oracles(
    kind: str, metric: str, ablation: str, projection_edges: bool, threshold: float
) -> None:
    it, pairs = small(kind), random_pairs(11)
    expected = oracle_acdc(it.truth, pairs, metric, threshold, ablation, projection_edges)
    one = experiment(it, pairs, metric, ablation)
    for engine in ENGINES:
        circuit, decisions = decide(one, threshold, engine=engine, projection_edges=projection_edges)
        assert_same_decisions(decisions, expected)
        assert list(circuit) == [edge for edge, _, kept in expected if kept]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("metric", ["kl_div", "logit_diff"])
@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_the_oracles_everywhere(
    kind: str, metric: str, ablation: str, projection_edges: bool, threshold: float, seed: int
) -> None:
    it, pairs = small(kind, seed, n_layers=1 + seed, n_heads=4 - seed), random_pairs(seed)
    expected = oracle_acdc(it.truth, pairs, metric, threshold, ablation, projection_edges)
    one = experiment(it, pairs, metric, ablation)
    for engine in ENGINES:
        _, decisions = decide(one, threshold, engine=engine, projection_edges=projection_edges)
        # Without norms the third layer's logits are in the hundreds.
        assert_same_decisions(decisions, expected, tolerance=1e-3 if kind == "bidirectional" else 1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("metric", ["prob_diff", "l2", "nll"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_other_metrics(kind: str, metric: str, engine: str) -> None:
    it, pairs = small(kind), random_pairs(12, n_answers=2)
    expected = oracle_acdc(it.truth, pairs, metric, 0.01)
    assert_same_decisions(decide(experiment(it, pairs, metric), 0.01, engine=engine)[1], expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "attention_only"])
def test_unequal_lengths_positions_and_partners(kind: str, projection_edges: bool, engine: str) -> None:
    it, pairs = small(kind), random_pairs(13, lengths=(4, 7, 5), positions=3, partners=2)
    expected = oracle_acdc(it.truth, pairs, "kl_div", 0.01, projection_edges=projection_edges)
    _, decisions = decide(experiment(it, pairs), 0.01, engine=engine, projection_edges=projection_edges)
    assert_same_decisions(decisions, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threshold", [-0.05, 0.0, 1e-6, 100.0])
def test_extreme_thresholds(threshold: float, engine: str) -> None:
    it, pairs = small("gpt2"), random_pairs(14)
    expected = oracle_acdc(it.truth, pairs, "logit_diff", threshold)
    _, decisions = decide(experiment(it, pairs, "logit_diff"), threshold, engine=engine)
    assert_same_decisions(decisions, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("seed", "metric", "threshold"), [(2, "kl_div", 0.26165656), (11, "logit_diff", 0.20968619)])
def test_a_port_left_with_nothing(seed: int, metric: str, threshold: float, engine: str) -> None:
    """Zero ablation of the last edge before an RMS norm, which blows up whatever rounding leaves there."""
    it, pairs = small("llama"), random_pairs(seed)
    expected = oracle_acdc(it.truth, pairs, metric, threshold, "zero")
    assert_same_decisions(decide(experiment(it, pairs, metric, "zero"), threshold, engine=engine)[1], expected)


RUNS = [
    f"sort_{digits}_{metric}_{threshold}"
    for digits in ("k0", "k2")
    for metric in ("kl_div", "logit_diff")
    for threshold in (0.3, 0.03)
]


def recorded(name: str, shared: Path) -> tuple[dict[str, Any], Experiment]:
    run = json.loads((shared / "data/golden/acdc_original_gpt_nano_sort.json").read_text())[name]
    columns = zip(run["clean"], run["corrupted"], run["answers"], run["wrong"], strict=True)
    pairs = [Pair(clean, corrupted, [answer], [wrong], run["position"]) for clean, corrupted, answer, wrong in columns]
    path = str(shared / "data/models" / run["model"])
    return run, Experiment.build(path, Task(name, pairs, run["metric"]), ablation=run["ablation"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", RUNS)
def test_recorded_runs_of_the_original(name: str, engine: str, shared: Path) -> None:
    run, one = recorded(name, shared)
    circuit, decisions = decide(one, run["threshold"], engine=engine, projection_edges=True)
    expected = {Edge(sender, receiver): effect for sender, receiver, _, effect in run["kept"]}
    assert len(circuit.graph) == run["total_edges"]
    assert len(circuit) == run["n_kept"]
    assert circuit.edges == pytest.approx(expected, abs=1e-4)
    final = one.metric.from_loss(run["final_metric"])  # it recorded what it minimised
    assert decisions[-1].metric == pytest.approx(final, abs=1e-4)


# What a run hands out.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("metric", ["kl_div", "logit_diff"])
def test_the_story_a_run_tells_is_true(metric: str, projection_edges: bool, engine: str) -> None:
    """Metrics after each decision, counts of what remains, the circuit: all from the edge set alone."""
    one = experiment(small("gpt2"), random_pairs(15), metric)
    threshold = 0.1

    class Witness(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.receivers: list[tuple[str, int]] = []

        def started(self, graph: Graph, metric: float) -> None:
            self.graph, self.first = graph, metric

        def receiver(self, name: str, remaining: int) -> None:
            self.receivers.append((name, remaining))

    seen = Witness()
    circuit = discover(one, threshold=threshold, engine=engine, projection_edges=projection_edges, observer=seen)
    full = FullEngine(one)
    graph = Graph(one.model.config, projection_edges)
    assert list(seen.graph) == list(graph)
    clean, *_ = full.losses([EdgeMask.all(graph)])
    assert seen.first == pytest.approx(one.metric.from_loss(clean), abs=1e-4)
    present, before = set(graph), clean
    place = {edge: i for i, edge in enumerate(graph)}
    for decision, remaining in zip(seen.decisions, seen.remaining, strict=True):
        dead = {edge for edge in present if place[edge] < place[decision.edge] and edge not in circuit}
        present -= dead  # removed untested, since nothing reads them
        without = full.losses([EdgeMask.of(graph, present - {decision.edge})])[0]
        assert decision.effect == pytest.approx(without - before, abs=2e-4)
        assert decision.kept == (decision.effect >= threshold)
        if not decision.kept:
            present, before = present - {decision.edge}, without
        assert decision.metric == pytest.approx(one.metric.from_loss(before), abs=2e-4)
        assert remaining == len(graph) - place[decision.edge] - 1
    assert [name for name, _ in seen.receivers] == list(dict.fromkeys(d.edge.receiver for d in seen.decisions))
    for name, remaining in seen.receivers:
        assert remaining == len(graph) - min(place[edge] for edge in graph if edge.receiver == name)
    assert circuit.tested == {d.edge: d.effect for d in seen.decisions}
    assert circuit.edges == {d.edge: d.effect for d in seen.decisions if d.kept}
    assert list(circuit.tested) == [d.edge for d in seen.decisions]
    assert circuit.metrics["decisions"] == len(seen.decisions)
    assert circuit.method["threshold"] == threshold
    assert circuit.method["engine"] == engine
    assert circuit.graph.projection_edges == projection_edges
    assert any(d.kept for d in seen.decisions)
    assert not all(d.kept for d in seen.decisions)


def test_a_run_changes_nothing_it_is_given() -> None:
    one = experiment(small("llama"), random_pairs(16))
    before = {name: getattr(one.clean, name).clone() for name in ("inputs", "heads", "mlps")}
    first = decide(one, 0.03)[1]
    for name, value in before.items():
        assert torch.equal(getattr(one.clean, name), value)
    assert decide(one, 0.03)[1] == first


# What must not matter.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "projection_edges"),
    [("gpt2", True), ("llama", False), ("gpt_neox", False), ("layer_norm", True), ("bidirectional", False)],
)
def test_batch_size_changes_no_decision(kind: str, projection_edges: bool, engine: str) -> None:
    one = experiment(small(kind, n_heads=4), random_pairs(17))
    runs = [
        decide(one, 0.02, engine=engine, batch_size=size, projection_edges=projection_edges)[1]
        for size in (1, 7, 64, "auto")
    ]
    for other in runs[1:]:
        assert_same_decisions(other, runs[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_number_of_threads_changes_no_decision(engine: str) -> None:
    one = experiment(small("gpt2", n_heads=2, d_head=16), random_pairs(18, lengths=(8,) * 4))
    alone = decide(one, 0.02, engine=engine)[1]
    torch.set_num_threads(2)
    assert_same_decisions(decide(one, 0.02, engine=engine)[1], alone)


# Near-ties.


@pytest.mark.parametrize("distance", [-1e-7, 0.0, 1e-7])
@pytest.mark.parametrize("metric", ["kl_div", "logit_diff"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "layer_norm"])
def test_near_ties_are_settled_exactly(kind: str, metric: str, distance: float) -> None:
    """A threshold at an effect of the oracle's, or closer to it than single precision can tell apart."""
    it, pairs = small(kind), random_pairs(19)
    one = experiment(it, pairs, metric)
    base = oracle_acdc(it.truth, pairs, metric, 0.05)
    # Effects that, taken as threshold, leave every decision before them as it was.
    effects = [
        effect
        for i, (_, effect, _) in enumerate(base)
        if effect > 1e-3 and all((e >= 0.05) == (e >= effect) for _, e, _ in base[:i])
    ]
    assert effects
    for effect in effects[:2]:
        threshold = effect + distance
        expected = oracle_acdc(it.truth, pairs, metric, threshold)
        tied = [edge for edge, e, _ in expected if abs(e - threshold) < 2e-7]
        assert tied
        for engine in ENGINES:
            circuit, decisions = decide(one, threshold, engine=engine)
            assert_same_decisions(decisions, expected)
            flagged = [d.edge for d in decisions if d.near_tie]
            assert set(tied) <= set(flagged)
            assert circuit.metrics["near_ties"] == len(flagged)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_edges_without_effect(batch_size: int | str, engine: str) -> None:
    """Clean and corrupted alike: every effect is 0, which reaches a threshold of 0 and no other."""
    pairs = [Pair(pair.clean, pair.clean, pair.answers, pair.wrong_answers) for pair in random_pairs(0)]
    one = experiment(small("gpt2"), pairs, "logit_diff")
    circuit, decisions = decide(one, 0.0, engine=engine, batch_size=batch_size)
    assert all(abs(d.effect) < 1e-9 for d in decisions)
    assert len(circuit) == len(decisions) == len(circuit.graph)
    circuit, decisions = decide(one, 1e-9, engine=engine, batch_size=batch_size)
    assert len(circuit) == 0
    assert [d.edge.receiver for d in decisions] == ["logits"] * len(decisions)


# Going on with an interrupted run.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("projection_edges", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "bidirectional"])
def test_a_run_cut_anywhere_goes_on_as_it_would_have(kind: str, projection_edges: bool, engine: str) -> None:
    one = experiment(small(kind), random_pairs(20))
    options: dict[str, Any] = {"threshold": 0.03, "engine": engine, "projection_edges": projection_edges}
    whole, decisions = decide(one, **options)
    for cut in sorted({0, 1, len(decisions) - 1, len(decisions), *range(KINDS.index(kind) % 4, len(decisions), 4)}):
        again = Recorder()
        circuit = discover(one, observer=again, replay=decisions[:cut], **options)
        assert again.replays == decisions[:cut]
        assert_same_decisions(again.decisions, decisions[cut:], tolerance=1e-5)
        assert list(circuit) == list(whole)
        assert list(circuit.tested) == list(whole.tested)
        assert circuit.edges == pytest.approx(whole.edges, abs=1e-5)
        if again.decisions:
            assert again.decisions[-1].metric == pytest.approx(decisions[-1].metric, abs=1e-5)
        assert circuit.metrics["decisions"] == len(decisions)
        assert circuit.metrics["near_ties"] == whole.metrics["near_ties"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_journal_of_another_run_is_refused(engine: str) -> None:
    one = experiment(small("gpt2"), random_pairs(20))
    _, decisions = decide(one, 0.03)
    other_kept = [Decision(d.edge, d.effect, False, d.metric) for d in decisions]
    longer = [*decisions, decisions[-1]]
    for replay in (decisions[1:], decisions[::-1], other_kept, longer, [*decisions[:3], *decisions[4:]]):
        with pytest.raises(RunError, match="of another run") as caught:
            discover(one, threshold=0.03, engine=engine, replay=replay)
        assert "\n" not in str(caught.value)


# Settings.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "adcd"}, "method=adcd does not exist; choose one of acdc"),
        ({"treshold": 0.1}, "has no option treshold: choose from "),
        ({"engine": "fast"}, "choose incremental or full"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"tie_tolerance": -1.0}, "tie_tolerance=-1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"method": ACDC(threshold=0.1), "threshold": 0.2}, "threshold"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    one = experiment(small("gpt2"), random_pairs(0))
    with pytest.raises(ConfigError, match=said) as caught:
        discover(one, **({"threshold": 0.1} | options if "method" not in options else options))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AcdcError)


def test_settings_and_keywords_are_the_same() -> None:
    one = experiment(small("gpt2"), random_pairs(0))
    a = discover(one, ACDC(threshold=0.05, projection_edges=True, engine="full"))
    b = discover(one, "acdc", threshold=0.05, projection_edges=True, engine="full")
    assert (a.edges, a.tested, a.method) == (b.edges, b.tested, b.method)


class Waiting(Recorder):
    """How many decisions are given out when a receiver is entered, and how many come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[tuple[str, int]] = []

    def receiver(self, name: str, remaining: int) -> None:
        self.at.append((name, len(self.decisions)))


@pytest.mark.parametrize("engine", ENGINES)
def test_few_decisions_await_a_check(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver with more edges than may wait is tested in parts; the decisions are the same."""
    one = experiment(small("gpt2", n_layers=3), random_pairs(12), "logit_diff")
    _, expected = decide(one, 0.03, engine=engine)
    monkeypatch.setattr("acdc.discovery.acdc.MOST_PENDING", 3)
    seen = Waiting()
    discover(one, method="acdc", threshold=0.03, engine=engine, observer=seen)
    assert_same_decisions(seen.decisions, expected)
    given = [n for _, n in seen.at]
    assert max(b - a for a, b in itertools.pairwise([*given, len(expected)])) <= 3
    assert [name for name, _ in seen.at].count("logits") == -(-len(one.graph.test_order[0][1]) // 3)
