"""What the discovery algorithms share: a decision, those who watch, and what outlives a killed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from acdc.graph import Edge, Graph

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """One tested edge.

    Attributes
    ----------
    effect: loss after − loss before removing it; positive means that the edge helps.
    kept: whether it stays. metric: of the circuit as it stands after the decision, in the metric's own direction.
    rounding: of a near-tie, which was settled in float64: how far the effect in the run's own precision was from that.
    compared: the same of a decision that was no near-tie, and was compared only to see how far rounding reaches.
    """

    edge: Edge
    effect: float
    kept: bool
    metric: float
    rounding: float | None = None
    compared: float | None = None

    @property
    def near_tie(self) -> bool:
        return self.rounding is not None


class Observer(Protocol):
    """Someone who watches a discovery: a progress display, a tracker, a journal."""

    def started(self, graph: Graph, metric: float) -> None:
        """The whole graph, and the metric with every edge present."""

    def receiver(self, name: str, remaining: int) -> None:
        """A receiver is begun; `remaining` edges are still undecided, its own among them."""

    def decided(self, decision: Decision, remaining: int) -> None:
        """An edge was tested."""

    def replayed(self, decision: Decision, remaining: int) -> None:
        """A decision of the interrupted run was taken over."""

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """A method that makes no decisions is so far: steps, edges or passes; `values` are worth a curve."""


class NoObserver:
    """Watches nothing."""

    def started(self, graph: Graph, metric: float) -> None:
        return

    def receiver(self, name: str, remaining: int) -> None:
        return

    def decided(self, decision: Decision, remaining: int) -> None:
        return

    def replayed(self, decision: Decision, remaining: int) -> None:
        return

    def progressed(self, done: int, total: int, values: Mapping[str, float]) -> None:
        return


class OnlyProgress(NoObserver):
    """Tells an observer how far a loop beside the run's own is, and none of its decisions."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.total = 0

    def started(self, graph: Graph, metric: float) -> None:
        self.total = len(graph)

    def receiver(self, name: str, remaining: int) -> None:
        self.observer.progressed(self.total - remaining, self.total, {})


class Store(Protocol):
    """Where a method that makes no decisions keeps its state, so that a killed run can go on."""

    def load(self) -> dict[str, Tensor]:
        """What was saved last, on the CPU; empty if nothing was."""

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these tensors, whole or not at all, in the place of those before."""


class NoStore:
    """Keeps nothing."""

    def load(self) -> dict[str, Tensor]:
        return {}

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        return
