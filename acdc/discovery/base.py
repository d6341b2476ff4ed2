"""What the discovery algorithms share: a decision, and those who watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from acdc.graph import Edge, Graph


@dataclass(frozen=True)
class Decision:
    """One tested edge.

    Attributes
    ----------
    effect: loss after − loss before removing it; positive means that the edge helps.
    kept: whether it stays. metric: of the circuit as it stands after the decision, in the metric's own direction.
    rounding: of a near-tie, which was settled in float64: how far the effect in the run's own precision was from that.
    """

    edge: Edge
    effect: float
    kept: bool
    metric: float
    rounding: float | None = None

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
