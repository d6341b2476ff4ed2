"""EAP with the mean of the gradients in the clean and the corrupted run (MIB, Mueller et al. 2025, arXiv:2504.13151).

Two passes instead of EAP-IG's many, and enough where a metric has no slope at the clean run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import BlockMethod, add_up, check_gradients, check_two_runs, gradient_work
from acdc.engine.gradients import Replaced
from acdc.experiment import Experiment


@dataclass(frozen=True)
class CleanCorrupted(BlockMethod):
    """EAP with the mean of the gradients in the clean and in the corrupted run (MIB): two passes."""

    meaning: ClassVar[str] = (
        "(corrupted − clean) output of the sender times the mean of the loss's gradients at the receiver in the"
        " clean and in the corrupted run; positive means that the edge helps"
    )

    name: str = "clean_corrupted"

    def check(self, experiment: Experiment) -> None:
        """ConfigError for an ablation other than `corrupted`; see also `check_gradients`."""
        check_gradients(experiment, self)
        check_two_runs(experiment, self, "method=eap")

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        runs = [lambda block: None, lambda block: Replaced("inputs", 0, block.ablated.inputs)]
        work = gradient_work(experiment, runs, self.memory_gb)
        return add_up(experiment, work, observer, store)
