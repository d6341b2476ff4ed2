"""Random scores, uniform in [0, 1): what any method should do better than."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import ScoringMethod
from acdc.experiment import Experiment
from acdc.settings import option


@dataclass(frozen=True)
class Random(ScoringMethod):
    """Random scores: what any method should do better than."""

    meaning: ClassVar[str] = "a random number; it says nothing"

    name: str = "random"
    seed: int = option(0, "of the scores", least=0, below=2**63)

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        graph = experiment.graph
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(len(graph.ports), len(graph.senders), generator=generator, dtype=torch.float64)
        return scores
