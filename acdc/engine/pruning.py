"""What the pruning loop asks of an engine: losses when edges of one receiver are removed in order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from acdc.engine.chunks import ChunkSize
from acdc.engine.full import FullEngine
from acdc.engine.incremental import IncrementalPruning
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.graph import Edge


class PruningEngine(Protocol):
    """Evaluates removals at one receiver. The mask it was made with is the loop's, and changes under it."""

    def loss(self) -> float:
        """The loss of the mask as it is."""

    def enter(self, receiver: str) -> None:
        """Get ready to test a receiver's edges; everything before it has all its edges."""

    def losses_without(self, edges: list[Edge]) -> Generator[float, None, None]:
        """The losses without the first of these edges, without the first two, and so on.

        Lazy: little is computed behind the last loss that is asked for.
        """

    def remove(self, edges: list[Edge]) -> None:
        """These edges of the receiver are gone for good (and gone from the mask)."""


class FullPruning:
    """Every loss by a complete forward pass."""

    def __init__(self, experiment: Experiment, mask: EdgeMask, chunk: int | None = None) -> None:
        self.engine = FullEngine(experiment)
        self.mask = mask
        self.chunk = ChunkSize(chunk, self.engine.max_variants)

    def loss(self) -> float:
        return self.engine.losses([self.mask])[0]

    def enter(self, receiver: str) -> None:
        return

    def losses_without(self, edges: list[Edge]) -> Generator[float, None, None]:
        masks = self.mask.copy().without_prefixes(edges)
        for some in self.chunk.cut(masks):
            yield from self.engine.losses(some)

    def remove(self, edges: list[Edge]) -> None:
        return


def make_pruning_engine(name: str, experiment: Experiment, mask: EdgeMask, chunk: int | None = None) -> PruningEngine:
    """The engine of that name (`incremental` or `full`) for a loop over this mask."""
    return {"incremental": IncrementalPruning, "full": FullPruning}[name](experiment, mask, chunk)
