"""What the pruning loop asks of an engine: losses when edges of one receiver are removed in order."""

from __future__ import annotations

from itertools import compress
from typing import Protocol, runtime_checkable

from acdc.engine.full import FullEngine
from acdc.engine.incremental import IncrementalPruning
from acdc.engine.lookahead import Removals
from acdc.engine.mask import EdgeMask
from acdc.engine.memory import budget_bytes
from acdc.experiment import Experiment
from acdc.graph import Edge


@runtime_checkable
class PruningEngine(Removals, Protocol):
    """Evaluates removals at one receiver. The mask it was made with is the loop's, and changes under it."""

    def enter(self, receiver: str, senders: list[str]) -> None:
        """Get ready to test a receiver's edges; everything before it has all its edges.

        Parameters
        ----------
        senders: all of the receiver's, in the order in which they are tested.
        """

    def leave(self, removed: list[Edge]) -> None:
        """The receiver is done; these edges are gone for good (and gone from the mask)."""


class FullPruning:
    """Every loss by a complete forward pass."""

    def __init__(self, experiment: Experiment, mask: EdgeMask, memory_gb: float | None = None) -> None:
        self.engine = FullEngine(experiment, memory_gb)
        self.mask = mask
        self.most_variants = self.engine.max_variants

    def enter(self, receiver: str, senders: list[str]) -> None:
        return

    def losses(self, edges: list[Edge], gone: list[bool], wanted: list[bool] | None = None) -> list[float]:
        masks = []
        before = self.mask.copy()
        for edge, goes in zip(edges, gone, strict=True):
            masks.append(before.without(edge))
            before = masks[-1] if goes else before
        return self.engine.losses(masks if wanted is None else list(compress(masks, wanted)))

    def leave(self, removed: list[Edge]) -> None:
        return


class BlockedPruning:
    """An incremental engine for each block of pairs; losses add up."""

    def __init__(self, engines: list[IncrementalPruning]) -> None:
        self.engines = engines

    @property
    def most_variants(self) -> int:
        return min(engine.most_variants for engine in self.engines)

    def enter(self, receiver: str, senders: list[str]) -> None:
        for engine in self.engines:
            engine.enter(receiver, senders)

    def losses(self, edges: list[Edge], gone: list[bool], wanted: list[bool] | None = None) -> list[float]:
        of_blocks = [engine.losses(edges, gone, wanted) for engine in self.engines]
        return [sum(losses) for losses in zip(*of_blocks, strict=True)]

    def leave(self, removed: list[Edge]) -> None:
        for engine in self.engines:
            engine.leave(removed)


def make_pruning_engine(
    name: str, experiment: Experiment, mask: EdgeMask, memory_gb: float | None = None
) -> PruningEngine:
    """The engine of that name (`incremental` or `full`) for a loop over this mask.

    Parameters
    ----------
    memory_gb: what temporary tensors may take, or None for a share of what is free; pairs that do not fit at once are
        evaluated in blocks.
    """
    if name == "full":
        return FullPruning(experiment, mask, memory_gb)
    memory = budget_bytes(experiment.model.device, memory_gb)
    n_rows, n_positions = experiment.batch.clean.shape
    # One variant of the widest tensor (an MLP's hidden layer) and a dozen of the residual stream's width.
    per_row = 16 * n_positions * experiment.model.config.d_model * experiment.model.W_E.element_size()
    rows = max(1, memory // per_row)
    blocks = [(start, min(start + rows, n_rows)) for start in range(0, n_rows, min(rows, n_rows))]
    engines: list[IncrementalPruning] = []
    for start, stop in blocks:  # one after another they may use all of it, but what they keep they share
        like = engines[0] if engines else None
        engines.append(IncrementalPruning(experiment.rows(start, stop), mask, memory, memory // len(blocks), like))
    return engines[0] if len(engines) == 1 else BlockedPruning(engines)
