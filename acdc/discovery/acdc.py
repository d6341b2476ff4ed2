"""ACDC: greedy pruning of edges from the output backward (Conmy et al. 2023, arXiv:2304.14997).

The rules are those of the original's code. State: the present edges (all, at the start) and the current loss. For
each receiver that is still used, each sender's edge is removed and the loss taken again: if it rose by less than the
threshold the edge stays out, otherwise it comes back. A receiver that is not used loses its edges untested.

Several candidates are evaluated at once, each assuming how the decisions before it fall; it counts only if they did, so
the decisions are those of testing one at a time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, NoObserver, NoStore, Observer, OnlyProgress, Store
from acdc.discovery.near_ties import NearTies, rounding_unit
from acdc.discovery.shortlist import SHORTLISTS, check_shortlist, make_shortlist
from acdc.engine.full import FullEngine
from acdc.engine.lookahead import Lookahead
from acdc.engine.mask import EdgeMask
from acdc.engine.memory import check_memory
from acdc.engine.pruning import PruningEngine, make_pruning_engine
from acdc.errors import ConfigError, RunError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph

log = logging.getLogger(__name__)
ENGINES = ("incremental", "full")

TO_KEEP_MORE = "give a lower method.threshold"


@dataclass(frozen=True)
class Settings:
    """ACDC's options.

    Attributes
    ----------
    threshold: τ; an edge is kept if and only if its effect is at least τ. None takes the task's own.
    projection_edges: also test one edge per q, k and v of every head, as the original does.
    engine: `incremental` or `full`; they decide alike.
    batch_size: candidates tested at once, or `auto`; it changes no decision.
    memory_gb: what temporary tensors may take; None is a share of what is free.
    verify_every: compare every so-many-th test with the full engine; `auto` spends about 2% of the time on it, 0 never.
    shortlist: a method that scores edges (`eap`, `eap_ig`, …): what it does not rule out is tested first, or only.
        None tests every edge in the original's order.
    shortlist_share: the share of edges that it does not rule out, those of the largest scores by size.
    shortlist_only: edges that are ruled out go untested, when their receiver's turn comes; else they are tested behind
        its others.
    shortlist_compare: also run plain ACDC, and say how many edges are kept by one of them only.
    tie_tolerance: ε. An effect within ε·(1 + |loss| + RMS of the model's logits) of the threshold, or less where the
        run shows that rounding reaches less far, is settled by a full evaluation in float64 on the CPU (`near_ties`).
        It is for float32; lower precision widens it in proportion.
    """

    name: str = "acdc"
    threshold: float | None = None
    projection_edges: bool = False
    engine: str = "incremental"
    batch_size: int | str = "auto"
    memory_gb: float | None = None
    verify_every: int | str = "auto"
    shortlist: str | None = None
    shortlist_share: float = 0.5
    shortlist_only: bool = True
    shortlist_compare: bool = True
    tie_tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"method.threshold={self.threshold} is not allowed: give a finite number, or null")
        if self.engine not in ENGINES:
            raise ConfigError(f"method.engine={self.engine} is not known: choose one of {', '.join(ENGINES)}")
        if self.batch_size != "auto" and (type(self.batch_size) is not int or self.batch_size < 1):
            raise ConfigError(f"method.batch_size={self.batch_size} is not allowed: give auto or a number from 1 up")
        if self.verify_every != "auto" and (not isinstance(self.verify_every, int) or self.verify_every < 0):
            raise ConfigError(
                f"method.verify_every={self.verify_every} is not allowed: give auto or a number from 0 up"
            )
        check_memory(self.memory_gb)
        if self.shortlist is not None and self.shortlist not in SHORTLISTS:
            raise ConfigError(
                f"method.shortlist={self.shortlist} is not known: choose one of {', '.join(SHORTLISTS)}, or null"
            )
        if not 0 < self.shortlist_share < 1:
            raise ConfigError(
                f"method.shortlist_share={self.shortlist_share} is not allowed: give a number between 0 and 1"
            )
        for option in ("shortlist_share", "shortlist_only", "shortlist_compare"):
            value = getattr(self, option)
            if self.shortlist is None and value != getattr(Settings, option):
                shown = str(value).lower()
                raise ConfigError(f"method.{option}={shown} has no effect without method.shortlist: give both")
        if self.tie_tolerance < 0:
            raise ConfigError(f"method.tie_tolerance={self.tie_tolerance} is not allowed: give 0 or more")


def check(experiment: Experiment, settings: Settings) -> float:
    """The threshold.

    Raises
    ------
    ConfigError: none is given and none is known for this task and metric, or the shortlist cannot be made.
    """
    if settings.shortlist is not None:
        check_shortlist(experiment, settings.shortlist)
    threshold = settings.threshold if settings.threshold is not None else experiment.default_threshold
    if threshold is None:
        raise ConfigError(
            f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name}:"
            " give method.threshold=NUMBER"
        )
    return threshold


def resolved(experiment: Experiment, settings: Settings) -> dict[str, float]:
    """The threshold that is used."""
    return {"threshold": check(experiment, settings)}


def discover(
    experiment: Experiment,
    settings: Settings,
    observer: Observer | None = None,
    replay: Sequence[Decision] = (),
    store: Store | None = None,
) -> Circuit:
    """Prune the experiment's model to a circuit.

    Parameters
    ----------
    replay: decisions of an interrupted run, in order; they are taken over, not tested again. store: keeps
        the shortlist, where there is one.

    Raises
    ------
    ConfigError: as in `check`.
    RunError: the decisions to replay are not those of such a run.
    """
    threshold = check(experiment, settings)
    observer = observer or NoObserver()
    if settings.shortlist is None:
        return prune(experiment, settings, threshold, observer, replay)
    shortlist = make_shortlist(experiment, settings.shortlist, settings.shortlist_share, store or NoStore())
    circuit = prune(experiment, settings, threshold, observer, replay, shortlist, settings.shortlist_only)
    circuit.metrics["ruled_out"] = len(shortlist)
    if settings.shortlist_compare:
        plain = prune(experiment, settings, threshold, OnlyProgress(observer))
        circuit.metrics["plain_edges"] = len(plain)
        circuit.metrics["plain_differs"] = len(set(plain) ^ set(circuit))
    return circuit


def prune(
    experiment: Experiment,
    settings: Settings,
    threshold: float,
    observer: Observer,
    replay: Sequence[Decision] = (),
    ruled_out: Collection[Edge] = frozenset(),
    only: bool = True,
) -> Circuit:
    """The loop itself.

    Parameters
    ----------
    ruled_out: edges that go untested when their receiver's turn comes, or with `only=False` are tested behind its
        others.

    Raises
    ------
    RunError: the decisions to replay are not those of such a run.
    """
    return _Pruning(experiment, settings, threshold, observer, list(replay), ruled_out, only).run()


@dataclass
class _Pruning:
    """One run of the loop."""

    experiment: Experiment
    settings: Settings
    threshold: float
    observer: Observer
    replay: list[Decision]
    ruled_out: Collection[Edge]
    only: bool
    kept: dict[Edge, float] = field(default_factory=dict)
    tested: dict[Edge, float] = field(default_factory=dict)

    def run(self) -> Circuit:
        settings, metric = self.settings, self.experiment.metric
        graph = Graph(self.experiment.model.config, settings.projection_edges)
        self.mask = EdgeMask.all(graph)
        self.engine: PruningEngine | None = None
        self.ties = NearTies(self.experiment, settings.tie_tolerance, settings.engine, settings.memory_gb)
        self.verifier = _Verifier(self.experiment, settings, self.ties)
        self.current = metric.loss_of_model(self.experiment.clean_logits)
        self.remaining = len(graph)
        self.observer.started(graph, metric.from_loss(self.current))
        replayed = 0
        for receiver, senders in graph.test_order:
            edges = [Edge(sender, receiver) for sender in senders]
            if not self.mask.is_used(receiver):
                self.mask.set(edges, False)
                self.remaining -= len(edges)
                continue
            self.observer.receiver(receiver, self.remaining)
            if not self.only:
                edges.sort(key=self.ruled_out.__contains__)
            in_order = [edge.sender for edge in edges]
            while replayed < len(self.replay) and edges:
                edge = edges.pop(0)
                if self._goes_untested(edge):
                    self._remove(edge)
                else:
                    self._take_over(self.replay[replayed], edge)
                    replayed += 1
            if edges:
                self._decide(receiver, in_order, edges)
        if replayed < len(self.replay):
            raise RunError("the journal holds more decisions than this run makes: it is of another run")
        return Circuit(
            graph,
            self.kept,
            self.tested,
            model=self.experiment.model.name,
            task=self.experiment.task.name,
            method={**asdict(settings), "threshold": self.threshold},
            metrics={"decisions": len(self.tested), "near_ties": self.ties.seen, "verified": self.verifier.done},
        )

    def _take_over(self, decision: Decision, edge: Edge) -> None:
        if decision.edge != edge:
            raise RunError(f"the journal tested {decision.edge} where this run tests {edge}: it is of another run")
        if not decision.kept:
            self.mask.set([edge], False)
        loss_before, self.current = self.current, self.experiment.metric.from_loss(decision.metric)
        self._record(decision, loss_before)
        self.observer.replayed(decision, self.remaining)

    def _goes_untested(self, edge: Edge) -> bool:
        return self.only and edge in self.ruled_out

    def _remove(self, edge: Edge) -> None:
        self.mask.set([edge], False)
        self.remaining -= 1

    def _decide(self, receiver: str, senders: list[str], edges: list[Edge]) -> None:
        """Test those of a receiver's edges that are left, in order; `senders`: of all of them."""
        if self.engine is None:  # made here, so that it starts from what a resumed run has decided already
            settings, batch_size = self.settings, self.settings.batch_size
            self.engine = make_pruning_engine(settings.engine, self.experiment, self.mask, settings.memory_gb)
            fixed = batch_size if isinstance(batch_size, int) else None
            self.lookahead = Lookahead(self.engine, self.mask.graph, self.threshold, fixed)
        self.engine.enter(receiver, senders)
        ruled_out = self.ruled_out if self.only else ()
        self.engine.leave(self.lookahead.test(edges, self.current, self._test, ruled_out))

    def _test(self, edge: Edge, loss: float | None) -> bool:
        """Decide one edge; True if it is kept."""
        if self._goes_untested(edge):
            self._remove(edge)
            self.current = self.current if loss is None else loss
            return False
        assert loss is not None
        self.verifier.look(self.mask, edge, loss)
        effect = loss - self.current
        rounding = None
        if self.ties.holds(edge.receiver, effect, self.threshold, self.current):
            before, loss = self.ties.settle(self.mask, edge)
            rounding, effect = abs(loss - before - effect), loss - before
        # In float64 the last digits are noise too: an exact tie counts as reaching the threshold.
        kept = effect >= self.threshold - (0.0 if rounding is None else 1e-12)
        loss_before = self.current
        if not kept:
            self.mask.set([edge], False)
            self.current = loss
        decision = Decision(edge, effect, kept, self.experiment.metric.from_loss(self.current), rounding)
        self._record(decision, loss_before)
        self.observer.decided(decision, self.remaining)
        return kept

    def _record(self, decision: Decision, loss_before: float) -> None:
        self.tested[decision.edge] = decision.effect
        if decision.kept:
            self.kept[decision.edge] = decision.effect
        if decision.rounding is not None:
            self.ties.learn(decision.edge.receiver, decision.rounding, loss_before)
        self.remaining -= 1


class _Verifier:
    """Compares tests with the full engine as the loop goes on.

    With `auto`, the first comparison comes with the second receiver and the next ones whenever all of them together
    have taken less than 2% of the time.
    """

    SHARE = 0.02
    TOLERANCE = 1e-4  # ten rounding units where the precision is lower

    def __init__(self, experiment: Experiment, settings: Settings, ties: NearTies) -> None:
        self.experiment, self.ties = experiment, ties
        self.memory_gb = settings.memory_gb
        self.tolerance = max(self.TOLERANCE, 10 * rounding_unit(experiment.model))
        self.every = 0 if settings.engine == "full" else settings.verify_every
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
        if not abs(loss - expected) <= self.tolerance * (1 + abs(expected)) + self.ties.reach(expected):
            raise RunError(
                f"the incremental engine found the loss {loss:.6g} without {edge}, the full one {expected:.6g}: use"
                " method.engine=full, and please report this"
            )
        self.done += 1
        self.spent += time.monotonic() - begun
