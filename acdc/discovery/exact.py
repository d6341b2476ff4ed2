"""Every edge's effect by itself: the loss with only this edge removed, minus the loss of the full model.

With all other edges present there is one residual stream. Removing an edge changes what its receiver's node writes
there, and nothing else before it; from the node's layer on the run is an ordinary one, taken up with the changed stream
for many edges at once (`acdc.engine.resumed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from acdc.discovery.base import Observer, Store
from acdc.discovery.scores import BlockMethod, Piece, Work, add_up
from acdc.engine.gradients import sender_changes
from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.experiment import Experiment

_MOST_BYTES = 2**28  # of one batch: larger ones are no faster


@dataclass(frozen=True)
class Exact(BlockMethod):
    """Every edge's own effect: the loss with only this edge removed, minus the full model's."""

    meaning: ClassVar[str] = (
        "the loss with only this edge removed − the loss of the full model: positive means that the edge helps"
    )

    name: str = "exact"

    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        receivers = [receiver for receiver, _ in experiment.graph.test_order]

        def pieces(block: Experiment) -> Iterator[Piece]:
            made: list[Effects] = []  # with the first piece that is computed

            def piece(receiver: str) -> Tensor:
                made[:] = made or [Effects(block, self.memory_gb)]
                return made[0].into(receiver)

            for receiver in receivers:
                yield partial(piece, receiver)

        work = Work(pieces, len(receivers), self.memory_gb, lambda row: Effects(row, self.memory_gb))
        return add_up(experiment, work, observer, store)


class Effects:
    """The effects of single edges on the loss of an experiment's rows.

    Parameters
    ----------
    memory_gb: bounds how many edges are removed at once, each in a run of its own.
    """

    @torch.no_grad()
    def __init__(self, experiment: Experiment, memory_gb: float | None = None) -> None:
        self.experiment, self.graph, self.model = experiment, experiment.graph, experiment.model
        self.changes = sender_changes(experiment)
        self.run = ResumedRun(experiment, experiment.clean)
        memory = min(budget_bytes(experiment.model.device, memory_gb), _MOST_BYTES)
        self.at_once = max(1, memory // self.run.bytes_per_variant())

    @torch.no_grad()
    def into(self, receiver: str) -> Tensor:
        """The loss without each edge into a receiver, minus that with it: `port sender`, 0 at other ports."""
        metric, n_senders = self.experiment.metric, self.graph.n_senders_of(receiver)
        weight = self.experiment.readouts.weight
        effects = torch.zeros(len(self.graph.ports), len(self.graph.senders), dtype=torch.float64)
        layer, point = self.run.point_of(receiver)
        for start in range(0, n_senders, self.at_once):
            senders = slice(start, min(start + self.at_once, n_senders))
            values = self.run.metric_values(layer, point, self.run.written([receiver], self.changes[senders]))
            difference = ((values.double() - self.run.unchanged.double()) * weight).sum(-1)
            effects[self.graph.port_index[receiver], senders] = metric.as_loss(difference).cpu()
        return effects
