"""EAP with the mean of the gradients in the clean and the corrupted run (MIB, Mueller et al. 2025, arXiv:2504.13151).

Two passes instead of EAP-IG's many, and enough where a metric has no slope at the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.scores import ScoringSettings, add_up, check_gradients, check_two_runs, gradient_work, to_circuit
from acdc.engine.gradients import Replaced
from acdc.experiment import Experiment

SCORE = (
    "(corrupted − clean) output of the sender times the mean of the loss's gradients at the receiver in the clean and"
    " in the corrupted run; positive means that the edge helps"
)


@dataclass(frozen=True)
class Settings(ScoringSettings):
    """The method's options; see `ScoringSettings`."""

    name: str = "clean_corrupted"


def check(experiment: Experiment, settings: Settings) -> None:
    """ConfigError for an ablation other than `corrupted`; see also `check_gradients`."""
    check_gradients(experiment, settings)
    check_two_runs(experiment, settings, "method=eap")


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Score every edge, and keep those that `settings.select` says; ConfigError as in `check`."""
    check(experiment, settings)
    runs = [lambda block: None, lambda block: Replaced("inputs", 0, block.ablated.inputs)]
    work = gradient_work(experiment, runs, settings.memory_gb)
    return to_circuit(experiment, settings, add_up(experiment, work, observer, store), SCORE)
