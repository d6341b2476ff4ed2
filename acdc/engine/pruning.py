"""What the pruning loop asks of an engine: losses when edges of one receiver are removed in order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from acdc.engine.chunks import ChunkSize
from acdc.engine.full import FullEngine
from acdc.engine.incremental import IncrementalPruning
from acdc.engine.mask import EdgeMask
from acdc.engine.memory import budget_bytes
from acdc.experiment import Experiment
from acdc.graph import Edge


class PruningEngine(Protocol):
    """Evaluates removals at one receiver. The mask it was made with is the loop's, and changes under it."""

    def loss(self) -> float:
        """The loss of the mask as it was when the latest receiver was entered."""

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

    def __init__(
        self, experiment: Experiment, mask: EdgeMask, chunk: int | None = None, memory_gb: float | None = None
    ) -> None:
        self.engine = FullEngine(experiment, memory_gb)
        self.mask = mask
        self.chunk = ChunkSize(chunk, self.engine.max_variants)

    def loss(self) -> float:
        return self.engine.loss(self.mask)

    def enter(self, receiver: str) -> None:
        return

    def losses_without(self, edges: list[Edge]) -> Generator[float, None, None]:
        masks = self.mask.copy().without_prefixes(edges)
        for some in self.chunk.cut(masks):
            yield from self.engine.losses(some)

    def remove(self, edges: list[Edge]) -> None:
        return


class BlockedPruning:
    """An incremental engine for each block of pairs; losses add up."""

    def __init__(self, engines: list[IncrementalPruning]) -> None:
        self.engines = engines

    def loss(self) -> float:
        return sum(engine.loss() for engine in self.engines)

    def enter(self, receiver: str) -> None:
        for engine in self.engines:
            engine.enter(receiver)

    def losses_without(self, edges: list[Edge]) -> Generator[float, None, None]:
        for losses in zip(*(engine.losses_without(edges) for engine in self.engines), strict=True):
            yield sum(losses)

    def remove(self, edges: list[Edge]) -> None:
        for engine in self.engines:
            engine.remove(edges)


def make_pruning_engine(
    name: str, experiment: Experiment, mask: EdgeMask, chunk: int | None = None, memory_gb: float | None = None
) -> PruningEngine:
    """The engine of that name (`incremental` or `full`) for a loop over this mask.

    Parameters
    ----------
    chunk: variants evaluated at once, or None. memory_gb: what temporary tensors may take, or None for a share of
        what is free; pairs that do not fit at once are evaluated in blocks.
    """
    if name == "full":
        return FullPruning(experiment, mask, chunk, memory_gb)
    memory = budget_bytes(experiment.model.device, memory_gb)
    n_rows, n_positions = experiment.batch.clean.shape
    # One variant of the widest tensor (an MLP's hidden layer) and a dozen of the residual stream's width.
    per_row = 16 * n_positions * experiment.model.config.d_model * experiment.model.W_E.element_size()
    rows = max(1, memory // per_row)
    cuts = range(0, n_rows, min(rows, n_rows))
    engines = [
        IncrementalPruning(experiment.rows(start, min(start + rows, n_rows)), mask, chunk, memory) for start in cuts
    ]
    return engines[0] if len(engines) == 1 else BlockedPruning(engines)
