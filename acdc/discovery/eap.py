"""EAP: edge attribution patching (Syed, Rager and Conmy 2023, arXiv:2310.10348).

An edge's effect to first order: (ablated − clean) output of the sender, times the gradient of the loss at the
receiver's input in the clean run. One forward and one backward pass score every edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Observer, Store
from acdc.discovery.scores import ScoringSettings, add_up, check_gradients, check_slope, gradient_work, to_circuit
from acdc.experiment import Experiment

SCORE = (
    "(ablated − clean) output of the sender times the loss's gradient at the receiver, in the clean run: the effect of"
    " removing the edge to first order; positive means that the edge helps"
)


@dataclass(frozen=True)
class Settings(ScoringSettings):
    """The method's options; see `ScoringSettings`."""

    name: str = "eap"


def check(experiment: Experiment, settings: Settings) -> None:
    """ConfigError where the method has nothing to say: see `check_gradients` and `check_slope`."""
    check_gradients(experiment, settings)
    check_slope(experiment, settings)


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Score every edge, and keep those that `settings.select` says; ConfigError as in `check`."""
    check(experiment, settings)
    work = gradient_work(experiment, [lambda block: None], settings.memory_gb)
    return to_circuit(experiment, settings, add_up(experiment, work, observer, store), SCORE)
