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

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery import acdc
from acdc.discovery.base import Decision, NoObserver, NoStore, Observer, Store
from acdc.discovery.near_ties import NearTies
from acdc.discovery.scores import to_circuit
from acdc.discovery.selection import SelectionSettings, check_selection
from acdc.errors import ConfigError
from acdc.experiment import Experiment

_SECONDS_BETWEEN_SAVES = 5.0


SCORE = "the largest threshold of the grid at which ACDC keeps the edge; 0 if it keeps it at none"


@dataclass(frozen=True)
class Settings(SelectionSettings):
    """Options, besides how edges are chosen by their scores; of edges that survive as long, those tested first.

    Attributes
    ----------
    thresholds: the grid. None: ten, evenly on a logarithmic scale from a thirtieth to thirty times the task's own.
    nested: an edge gone at a threshold stays gone at larger ones, untested: an approximation, with half the tests.
    engine, batch_size, memory_gb, verify_every, tie_tolerance: as of `acdc`.
    """

    name: str = "acdc_scores"
    thresholds: list[float] | None = None
    nested: bool = False
    engine: str = "incremental"
    batch_size: int | str = "auto"
    memory_gb: float | None = None
    verify_every: int | str = "auto"
    tie_tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.acdc
        if self.thresholds is not None and not (self.thresholds and all(0 < t < math.inf for t in self.thresholds)):
            raise ConfigError(
                f"method.thresholds={self.thresholds} is not allowed: give numbers above 0, such as [0.01,0.03,0.1], or"
                " null"
            )

    @property
    def acdc(self) -> acdc.Settings:
        """The same options as ACDC's own."""
        names = ("engine", "batch_size", "memory_gb", "verify_every", "tie_tolerance")
        return acdc.Settings(**{name: getattr(self, name) for name in names})


def check(experiment: Experiment, settings: Settings) -> list[float]:
    """The grid, from the smallest threshold up.

    Raises
    ------
    ConfigError: none is given, and the task has none of its own for this metric; more edges are asked for than there
    are.
    """
    check_selection(experiment.graph, settings)
    if settings.thresholds is not None:
        return sorted(set(settings.thresholds))
    own = experiment.default_threshold
    if own is None:
        raise ConfigError(
            f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name}:"
            " give method.thresholds=[…]"
        )
    return [own * 30 ** (i / 4.5 - 1) for i in range(10)]


def resolved(experiment: Experiment, settings: Settings) -> dict[str, list[float]]:
    """The grid that is used."""
    return {"thresholds": check(experiment, settings)}


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Run ACDC at every threshold; an edge's score is the largest one at which it is kept, 0 if there is none.

    `metrics` has `tested` and `shared`, the decisions of all runs that were evaluated and that were taken over from the
    run before, and `sizes`, the edges kept at each threshold.

    Raises
    ------
    ConfigError: see `check`.
    """
    thresholds = check(experiment, settings)
    return _Grid(experiment, settings, thresholds, observer or NoObserver(), store or NoStore()).run()


@dataclass
class _Grid:
    """One run over the grid. `shared`: of each threshold, the decisions taken over from the one before."""

    experiment: Experiment
    settings: Settings
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
