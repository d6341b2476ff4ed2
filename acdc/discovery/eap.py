"""EAP: edge attribution patching (Syed, Rager and Conmy 2023, arXiv:2310.10348).

An edge's effect to first order: (ablated − clean) output of the sender, times the gradient of the loss at the
receiver's input in the clean run. One forward and one backward pass score every edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import BlockMethod, add_up, check_gradients, check_slope, gradient_work
from acdc.experiment import Experiment


@dataclass(frozen=True)
class EAP(BlockMethod):
    """EAP (Syed et al. 2023): (ablated − clean) times the gradient at the receiver, one pass for all edges."""

    meaning: ClassVar[str] = (
        "(ablated − clean) output of the sender times the loss's gradient at the receiver, in the clean run: the"
        " effect of removing the edge to first order; positive means that the edge helps"
    )

    name: str = "eap"

    def check(self, experiment: Experiment) -> None:
        """ConfigError where the method has nothing to say: see `check_gradients` and `check_slope`."""
        check_gradients(experiment, self)
        check_slope(experiment, self)

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        work = gradient_work(experiment, [lambda block: None], self.memory_gb)
        return add_up(experiment, work, observer, store)
