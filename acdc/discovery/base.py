"""What the discovery algorithms share: what a method is, a decision, those who watch, what outlives a killed run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from acdc.circuit import Circuit
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.settings import Settings


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


@dataclass(frozen=True)
class Method(Settings, ABC):
    """A discovery method: its options are fields, and `discover` finds a circuit.

    Attributes
    ----------
    scores_every_edge : whether the circuit's `tested` has a score for every edge of the model, so that circuits of any
        size can be made of it.
    in_comparison : options that `job=compare` gives the method, where it has a row of its own for what they leave out.
    to_keep_more : what to give for a larger circuit, said where no edge is left on a path; empty says nothing.
    """

    GROUP: ClassVar[str] = "method"
    scores_every_edge: ClassVar[bool] = True
    in_comparison: ClassVar[Mapping[str, object]] = {}
    to_keep_more: ClassVar[str] = ""

    name: str = ""

    def check(self, experiment: Experiment) -> None:
        """Refuse what the method cannot do on this experiment, before anything is written.

        Raises
        ------
        ConfigError, TaskError
            In one line what does not fit, and what to give instead.
        """

    def resolved(self, experiment: Experiment) -> dict[str, Any]:
        """The values that stand for null and `auto` among the options, as far as they are known beforehand."""
        return {}

    @abstractmethod
    def discover(
        self,
        experiment: Experiment,
        observer: Observer | None = None,
        replay: Sequence[Decision] = (),
        store: Store | None = None,
    ) -> Circuit:
        """Find a circuit.

        Parameters
        ----------
        observer : is told how far the method is.
        replay : decisions of an interrupted run, in order; they are taken over, not tested again.
        store : keeps what lets an interrupted run go on, for a method that makes no decisions.

        Raises
        ------
        ConfigError, TaskError
            As `check`.
        RunError
            The run cannot go on from what was kept, or what it finds is no number.
        """
