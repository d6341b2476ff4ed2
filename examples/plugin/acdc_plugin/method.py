"""A method: an edge's score is the size of what its sender writes otherwise when it is ablated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from acdc import Experiment
from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import ScoringMethod
from acdc.engine.gradients import sender_changes
from acdc.settings import option


@dataclass(frozen=True)
class BySize(ScoringMethod):
    """The size of the sender's change: what it writes less what it writes when ablated."""

    meaning: ClassVar[str] = "the mean over pairs and positions of |clean − ablated| output of the sender"

    name: str = "by_size"
    select: str = "greedy"
    power: float = option(2.0, "of the norm: 1 sums absolute values, 2 is the Euclidean length", least=1)

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        changes = sender_changes(experiment)  # sender row pos d_model
        sizes = changes.norm(self.power, dim=-1).mean((1, 2)).double().cpu()
        observer.progressed(1, 1, {})
        return sizes.expand(len(experiment.graph.ports), -1)
