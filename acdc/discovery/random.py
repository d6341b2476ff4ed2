"""Random scores, uniform in [0, 1): what any method should do better than."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, NoObserver, Observer, Store
from acdc.discovery.scores import to_circuit
from acdc.discovery.selection import SelectionSettings, check_selection
from acdc.errors import ConfigError
from acdc.experiment import Experiment

SCORE = "a random number; it says nothing"


@dataclass(frozen=True)
class Settings(SelectionSettings):
    """The method's options. `seed`: of the scores; the same on every device."""

    name: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"method.seed={self.seed} is not allowed: give a whole number from 0 up")


def check(experiment: Experiment, settings: Settings) -> None:
    """ConfigError where more edges are asked for than there are."""
    check_selection(experiment.graph, settings)


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Draw a score for every edge, and keep those that `settings.select` says; ConfigError as in `check`."""
    check(experiment, settings)
    graph, metric = experiment.graph, experiment.metric
    (observer or NoObserver()).started(graph, metric.from_loss(metric.loss_of_model(experiment.clean_logits)))
    generator = torch.Generator().manual_seed(settings.seed)
    scores = torch.rand(len(graph.ports), len(graph.senders), generator=generator, dtype=torch.float64)
    return to_circuit(experiment, settings, scores, SCORE)
