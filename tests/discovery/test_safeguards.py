"""What guards a run: the memory budget, running out of memory all the same, and the look at the full engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from experiments import assert_same_decisions, decide, experiment, random_pairs, small
from torch import Tensor

from acdc.ablation import ABLATIONS, Noise
from acdc.engine.incremental import IncrementalPruning
from acdc.engine.mask import EdgeMask
from acdc.engine.pruning import BlockedPruning, make_pruning_engine
from acdc.engine.receiver import Receiver
from acdc.errors import ConfigError, RunError
from acdc.graph import Edge
from acdc.metrics import METRICS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize("metric", METRICS.built_in)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_pairs_in_blocks_are_decided_alike(kind: str, metric: str, engine: str) -> None:
    """A budget for one row, for a few, and for all; rows of a pair may fall into different blocks."""
    pairs = random_pairs(21, lengths=(4, 6, 5, 4), positions=2, partners=2)
    one = experiment(small(kind), pairs, metric)
    whole = decide(one, 0.02, engine=engine, memory_gb=1.0)[1]
    for gigabytes in (1e-9, 1.2e-5, 4e-5):
        assert_same_decisions(decide(one, 0.02, engine=engine, memory_gb=gigabytes)[1], whole)


@pytest.mark.parametrize("ablation", ["mean", "zero", "noise"])
def test_blocks_see_the_ablation_of_all_pairs(ablation: str) -> None:
    settings = Noise(draws=2) if ablation == "noise" else ABLATIONS.chosen(ablation)
    one = experiment(small("gpt_neox"), random_pairs(22), "kl_div", settings)
    whole = decide(one, 0.02, memory_gb=1.0)[1]
    assert isinstance(make_pruning_engine("incremental", one, EdgeMask.all(one.graph), 1e-9), BlockedPruning)
    assert_same_decisions(decide(one, 0.02, memory_gb=1e-9)[1], whole)


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = experiment(small("gpt2", n_layers=3, n_heads=4), random_pairs(23))
    evaluate, refused = IncrementalPruning._evaluate, []

    def scarce(self: IncrementalPruning, receiver: Receiver, variants: Tensor) -> Tensor:
        if variants.shape[1] > 2:
            refused.append(variants.shape[1])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(self, receiver, variants)

    monkeypatch.setattr(IncrementalPruning, "_evaluate", scarce)
    for threshold in (0.3, 0.03):  # few edges kept, and many
        refused.clear()
        assert_same_decisions(decide(one, threshold)[1], decide(one, threshold, engine="full")[1])
        assert refused


def test_no_memory_at_all_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: IncrementalPruning, receiver: Receiver, variants: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(IncrementalPruning, "_evaluate", none)
    with pytest.raises(RunError, match="out of memory") as caught:
        decide(experiment(small("gpt2"), random_pairs(23)), 0.3)
    assert "\n" not in str(caught.value)


def test_as_many_decisions_are_looked_at_as_asked_for() -> None:
    one = experiment(small("llama"), random_pairs(24))
    for every, expected in ((0, 0), (1, 1.0), (5, 0.2)):
        circuit, decisions = decide(one, 0.05, verify_every=every)
        assert circuit.metrics["verified"] == int(expected * len(decisions))
    circuit, decisions = decide(one, 0.05)
    assert 1 <= circuit.metrics["verified"] <= len(decisions)
    assert decide(one, 0.05, engine="full")[0].metrics["verified"] == 0


@pytest.mark.parametrize("every", [1, "auto"])
def test_a_wrong_engine_is_found_out(every: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = IncrementalPruning.losses

    def wrong(self: IncrementalPruning, edges: list[Edge], *rest: list[bool]) -> list[float]:
        shift = 0.01 if edges[0].receiver != "logits" else 0.0
        return [loss + shift for loss in right(self, edges, *rest)]

    monkeypatch.setattr(IncrementalPruning, "losses", wrong)
    one = experiment(small("gpt2"), random_pairs(25))
    with pytest.raises(RunError, match=r"the incremental engine .* without \S+->m1, the full one") as caught:
        decide(one, 0.05, verify_every=every)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_gb": 0}, "memory_gb=0"),
        ({"memory_gb": -1.0}, "memory_gb=-1"),
        ({"verify_every": -1}, "verify_every=-1"),
        ({"verify_every": "often"}, "verify_every=often"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        decide(experiment(small("gpt2"), random_pairs(0)), 0.1, **options)
    assert "\n" not in str(caught.value)
