"""A look at the full engine now and then, while the incremental one decides."""

from __future__ import annotations

import time

from acdc.discovery.near_ties import NearTies, rounding_unit
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import RunError
from acdc.experiment import Experiment
from acdc.graph import Edge


class Verifier:
    """Compares tests with the full engine as the loop goes on.

    With `auto`, the first comparison comes with the second receiver and the next ones whenever all of them together
    have taken less than 2% of the time.
    """

    SHARE = 0.02
    TOLERANCE = 1e-4  # ten rounding units where the precision is lower

    def __init__(
        self, experiment: Experiment, engine: str, every: int | str, memory_gb: float | None, ties: NearTies
    ) -> None:
        self.experiment, self.memory_gb, self.ties = experiment, memory_gb, ties
        self.tolerance = max(self.TOLERANCE, 10 * rounding_unit(experiment.model))
        self.every = 0 if engine == "full" else every
        self.engine: FullEngine | None = None
        self.seen = self.done = 0
        self.start, self.spent = time.monotonic(), 0.0

    def look(self, mask: EdgeMask, edge: Edge, loss: float) -> None:
        """RunError if the loss without an edge is not what the full engine finds, beyond rounding."""
        self.seen += 1
        if self.every == "auto":
            first = not self.done and edge.receiver != "logits"
            due = first or (self.done and self.spent < self.SHARE * (time.monotonic() - self.start))
        else:
            due = isinstance(self.every, int) and self.every > 0 and self.seen % self.every == 0
        if not due:
            return
        begun = time.monotonic()
        self.engine = self.engine or FullEngine(self.experiment, self.memory_gb)
        expected = self.engine.loss(mask.without(edge))
        if not abs(loss - expected) <= self.tolerance * (1 + abs(expected)) + self.ties.unit(expected):
            raise RunError(
                f"the incremental engine found the loss {loss:.6g} without {edge}, the full one {expected:.6g}: use"
                " method.engine=full, and please report this"
            )
        self.done += 1
        self.spent += time.monotonic() - begun
