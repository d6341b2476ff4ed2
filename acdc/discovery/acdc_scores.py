"""ACDC as scores: the largest threshold of a grid that an edge survives.

So ACDC enters curves over circuit sizes and tables of scores. Each threshold's circuit is exactly that of ACDC with
this threshold alone. The runs share the model's runs, and from one threshold to the next the decisions up to the first
that falls otherwise. With `nested` (an approximation) an edge that is gone at a threshold stays gone at every larger
one, so that a run tests only what the one before has kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery import acdc
from acdc.discovery.base import Decision, NoObserver, NoStore, Observer, Store
from acdc.discovery.near_ties import NearTies
from acdc.discovery.scores import to_circuit
from acdc.discovery.selection import SelectingMethod
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.settings import option

_SECONDS_BETWEEN_SAVES = 5.0


SCORE = "the largest threshold of the grid at which ACDC keeps the edge; 0 if it keeps it at none"


@dataclass(frozen=True)
class ACDCScores(SelectingMethod):
    """ACDC as scores: the largest threshold of a grid that each edge survives; one run over the whole grid."""

    name: str = "acdc_scores"
    thresholds: list[float] | None = option(
        None,
        "the grid, such as [0.003,0.01,0.03]; null: ten around the task's own, from a thirtieth to thirty times",
        above=0,
    )
    nested: bool = option(
        False,
        "an edge gone at a threshold stays gone at larger ones, untested: an approximation, with half the tests",
    )
    engine: str = option("incremental", "as of method=acdc, and so are the next ones", acdc.ENGINES)
    batch_size: int | Literal["auto"] = option(
        "auto", "candidates tested at once, auto or a number; changes no decision", least=1
    )
    memory_gb: float | None = option(None, "what temporary tensors may take; null is a share of what is free", above=0)
    verify_every: int | Literal["auto"] = option(
        "auto",
        "tests between two that the full engine checks; auto: about 2% of the time goes into this; 0: never",
        least=0,
    )
    tie_tolerance: float = option(
        1e-06,
        "ε: the unit that rounding is measured in, and where an effect is settled in float64 before it is; 0: never",
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thresholds == []:
            raise ConfigError("method.thresholds=[] is not allowed: give numbers above 0, such as [0.01,0.03], or null")

    @property
    def acdc(self) -> acdc.ACDC:
        """The same options as ACDC's own."""
        names = ("engine", "batch_size", "memory_gb", "verify_every", "tie_tolerance")
        return acdc.ACDC(**{name: getattr(self, name) for name in names})

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        self.grid(experiment)

    def grid(self, experiment: Experiment) -> list[float]:
        """The thresholds, from the smallest up.

        Raises
        ------
        ConfigError: none is given, and the task has none of its own for this metric; more edges are asked for than
        there are.
        """
        if self.thresholds is not None:
            return sorted(set(self.thresholds))
        own = experiment.default_threshold
        if own is None:
            raise ConfigError(
                f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name}:"
                " give method.thresholds=[…]"
            )
        return [own * 30 ** (i / 4.5 - 1) for i in range(10)]

    def resolved(self, experiment: Experiment) -> dict[str, Any]:
        """The grid that is used."""
        return super().resolved(experiment) | {"thresholds": self.grid(experiment)}

    def discover(
        self,
        experiment: Experiment,
        observer: Observer | None = None,
        replay: Sequence[Decision] = (),
        store: Store | None = None,
    ) -> Circuit:
        """Run ACDC at every threshold; an edge's score is the largest one at which it is kept, 0 if there is none.

        `metrics` has `tested` and `shared`, the decisions of all runs that were evaluated and that were taken over
        from the run before, and `sizes`, the edges kept at each threshold.

        Raises
        ------
        ConfigError: see `check`.
        """
        self.check(experiment)
        thresholds = self.grid(experiment)
        return _Grid(experiment, self, thresholds, observer or NoObserver(), store or NoStore()).run()


@dataclass
class _Grid:
    """One run over the grid. `shared`: of each threshold, the decisions taken over from the one before."""

    experiment: Experiment
    settings: ACDCScores
    thresholds: list[float]
    observer: Observer
    store: Store
    runs: list[list[Decision]] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)

    def run(self) -> Circuit:
        experiment, settings, graph = self.experiment, self.settings, self.experiment.graph
        self.edges = list(graph)
        self.saved = time.monotonic()  # when; thresholds may be shorter than the time between
        self.ties = NearTies(experiment, settings.tie_tolerance, settings.engine, settings.memory_gb)
        self.loss = experiment.metric.loss_of_model(experiment.clean_logits)
        self.observer.started(graph, experiment.metric.from_loss(self.loss))
        saved = self.store.load()
        scores, kept, sizes = dict.fromkeys(self.edges, 0.0), frozenset(self.edges), {}
        for i, threshold in enumerate(self.thresholds):
            past = self._unpacked(saved[str(i)]) if str(i) in saved else None
            if past is not None:
                self.shared.append(int(saved["shared"][i]))
            else:
                past = self._prefix(threshold)
                self.shared.append(len(past))
            self.runs.append([])
            ruled_out = frozenset(self.edges) - kept if settings.nested else frozenset()
            circuit = acdc.prune(experiment, settings.acdc, threshold, _Recorder(self), past, ruled_out, ties=self.ties)
            kept = frozenset(circuit)
            scores.update(dict.fromkeys(kept, threshold))
            sizes[f"{threshold:.6g}"] = len(kept)
        matrix = torch.zeros(len(graph.ports), len(graph.senders), dtype=torch.float64)
        for edge, score in scores.items():
            matrix[graph.port_index[edge.receiver], graph.sender_index[edge.sender]] = score
        found = to_circuit(experiment, settings, matrix, SCORE)
        found.method["thresholds"] = self.thresholds
        shared = sum(self.shared)
        found.metrics |= {"tested": sum(map(len, self.runs)) - shared, "shared": shared, "sizes": sizes}
        return found

    def _prefix(self, threshold: float) -> list[Decision]:
        """The decisions of the run before, up to the first that might fall otherwise at this threshold."""
        taken: list[Decision] = []
        if not self.runs or self.settings.nested:
            return taken
        loss = self.loss
        for decision in self.runs[-1]:
            near = self.ties.holds(decision.edge.receiver, decision.effect, threshold, loss)
            if near or decision.kept != (decision.effect >= threshold):
                break
            taken.append(decision)
            loss = self.experiment.metric.from_loss(decision.metric)
        return taken

    def save(self) -> None:
        """Keep all decisions so far, a tensor a threshold."""

        def errors(d: Decision) -> tuple[float | None, float | None]:
            return d.rounding, d.compared

        index = {edge: i for i, edge in enumerate(self.edges)}
        packed = {
            str(i): torch.tensor(
                [
                    [index[d.edge], d.effect, d.kept, d.metric, *(math.nan if e is None else e for e in errors(d))]
                    for d in decisions
                ],
                dtype=torch.float64,
            ).reshape(-1, 6)
            for i, decisions in enumerate(self.runs)
        }
        self.store.save({**packed, "shared": torch.tensor(self.shared)})

    def _unpacked(self, packed: Tensor) -> list[Decision]:
        return [
            Decision(self.edges[int(edge)], effect, bool(kept), metric, *(None if math.isnan(e) else e for e in errors))
            for edge, effect, kept, metric, *errors in packed.tolist()
        ]


class _Recorder(NoObserver):
    """Notes the decisions of one threshold, says how far the whole grid is, and keeps it now and then."""

    def __init__(self, grid: _Grid) -> None:
        self.grid = grid

    def decided(self, decision: Decision, remaining: int) -> None:
        self.grid.runs[-1].append(decision)

    replayed = decided

    def receiver(self, name: str, remaining: int) -> None:
        grid = self.grid
        total = len(grid.edges) * len(grid.thresholds)
        done = len(grid.edges) * len(grid.runs) - remaining
        grid.observer.progressed(done, total, {"threshold": grid.thresholds[len(grid.runs) - 1]})
        if time.monotonic() - grid.saved > _SECONDS_BETWEEN_SAVES:
            grid.saved = time.monotonic()
            grid.save()
