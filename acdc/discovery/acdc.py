"""ACDC: greedy pruning of edges from the output backward (Conmy et al. 2023, arXiv:2304.14997).

The rules are those of the original's code. State: the present edges (all, at the start) and the current loss. For
each receiver that is still used, each sender's edge is removed and the loss taken again: if it rose by less than the
threshold the edge stays out, otherwise it comes back. A receiver that is not used loses its edges untested.

Several candidates are evaluated at once, each assuming how the decisions before it fall; it counts only if they did, so
the decisions are those of testing one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, Method, NoObserver, NoStore, Observer, OnlyProgress, Store
from acdc.discovery.near_ties import NearTies
from acdc.discovery.shortlist import SHORTLISTS, check_shortlist, make_shortlist
from acdc.discovery.verifier import Verifier
from acdc.engine.lookahead import Lookahead
from acdc.engine.mask import EdgeMask
from acdc.engine.pruning import PruningEngine, make_pruning_engine
from acdc.errors import ConfigError, RunError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.settings import option, shown

log = logging.getLogger(__name__)
ENGINES = ("incremental", "full")
MOST_PENDING = 1000  # decisions that await a check, and that a killed run makes again


@dataclass(frozen=True)
class ACDC(Method):
    """ACDC (Conmy et al. 2023): greedy pruning from the output backward, with the original's order and rules."""

    scores_every_edge: ClassVar[bool] = False
    to_keep_more: ClassVar[str] = "give a lower method.threshold"

    name: str = "acdc"
    threshold: float | None = option(
        None,
        "τ: an edge stays if removing it raises the loss by τ or more; null takes the task's own for the metric",
    )
    projection_edges: bool = option(False, "also test one edge per q, k, v of every head, as the original does")
    engine: str = option("incremental", "incremental or full: how the loss is computed; they decide alike", ENGINES)
    batch_size: int | Literal["auto"] = option(
        "auto", "candidates tested at once, auto or a number; changes no decision", least=1
    )
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )
    verify_every: int | Literal["auto"] = option(
        "auto",
        "tests between two that the full engine checks; auto: about 2% of the time goes into this; 0: never",
        least=0,
    )
    shortlist: str | None = option(
        None,
        "eap, eap_ig, clean_corrupted, exact, hisp, information_flow or random: what its scores do not rule"
        " out is tested first, or only; null tests all in the original's order",
        SHORTLISTS,
    )
    shortlist_share: float = option(
        0.5,
        "the share of edges that it does not rule out, those of the largest scores by size",
        above=0,
        below=1,
    )
    shortlist_only: bool = option(
        True,
        "edges ruled out go untested; false tests them behind the others of their receiver",
    )
    shortlist_compare: bool = option(True, "also run plain ACDC and say how many edges only one of them keeps")
    tie_tolerance: float = option(
        1e-06,
        "ε: the unit that rounding is measured in, and where an effect is settled in float64 before it is; 0: never",
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("shortlist_share", "shortlist_only", "shortlist_compare"):
            value = getattr(self, key)
            if self.shortlist is None and value != getattr(ACDC, key):
                raise ConfigError(f"method.{key}={shown(value)} has no effect without method.shortlist: give both")

    def check(self, experiment: Experiment) -> None:
        self.threshold_on(experiment)

    def threshold_on(self, experiment: Experiment) -> float:
        """The threshold that is used.

        Raises
        ------
        ConfigError: none is given and none is known for this task and metric, or the shortlist cannot be made.
        """
        if self.shortlist is not None:
            check_shortlist(experiment, self.shortlist)
        threshold = self.threshold if self.threshold is not None else experiment.default_threshold
        if threshold is None:
            raise ConfigError(
                f"task={experiment.task.name} has no threshold of its own for metric={experiment.metric_name}:"
                " give method.threshold=NUMBER"
            )
        return threshold

    def resolved(self, experiment: Experiment) -> dict[str, Any]:
        return {"threshold": self.threshold_on(experiment)}

    def discover(
        self,
        experiment: Experiment,
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
        threshold = self.threshold_on(experiment)
        observer = observer or NoObserver()
        if self.shortlist is None:
            return prune(experiment, self, threshold, observer, replay)
        shortlist = make_shortlist(experiment, self.shortlist, self.shortlist_share, store or NoStore())
        circuit = prune(experiment, self, threshold, observer, replay, shortlist, self.shortlist_only)
        circuit.metrics["ruled_out"] = len(shortlist)
        if self.shortlist_compare:
            plain = prune(experiment, self, threshold, OnlyProgress(observer))
            circuit.metrics["plain_edges"] = len(plain)
            circuit.metrics["plain_differs"] = len(set(plain) ^ set(circuit))
        return circuit


def prune(
    experiment: Experiment,
    settings: ACDC,
    threshold: float,
    observer: Observer,
    replay: Sequence[Decision] = (),
    ruled_out: Collection[Edge] = frozenset(),
    only: bool = True,
    ties: NearTies | None = None,
) -> Circuit:
    """The loop itself.

    Parameters
    ----------
    ties: how far rounding reached in other runs on this experiment.
    ruled_out: edges that go untested when their receiver's turn comes, or with `only=False` are tested behind its
        others.

    Raises
    ------
    RunError: the decisions to replay are not those of such a run.
    """
    ties = ties or NearTies(experiment, settings.tie_tolerance, settings.engine, settings.memory_gb)
    return _Pruning(experiment, settings, threshold, observer, list(replay), ruled_out, only, ties).run()


@dataclass
class _Test:
    """A decision that is not given out yet; `loss`: before it; `remaining`: edges undecided behind it; `gone`: edges of
    its receiver that had been removed before it.
    """

    decision: Decision
    loss: float
    remaining: int
    gone: int


@dataclass
class _Start:
    """Where the loop stood when it had given out everything: a receiver's edges that are left, and the state."""

    receiver: int
    edges: list[Edge]
    mask: EdgeMask
    loss: float
    remaining: int


@dataclass
class _Pruning:
    """One run of the loop.

    Decisions are given out when a check has passed: some of those since the last check are compared with float64, and
    if rounding turns out to reach so far that one of them might have been a near-tie, all of them are made again.
    Which are compared follows from the decisions alone, so neither time nor batches change what is found.
    """

    experiment: Experiment
    settings: ACDC
    threshold: float
    observer: Observer
    replay: list[Decision]
    ruled_out: Collection[Edge]
    only: bool
    ties: NearTies
    kept: dict[Edge, float] = field(default_factory=dict)
    tested: dict[Edge, float] = field(default_factory=dict)
    pending: list[_Test] = field(default_factory=list)
    near_ties: int = 0
    compared: int = 0
    made_again: int = 0

    def run(self) -> Circuit:
        settings, metric = self.settings, self.experiment.metric
        graph = Graph(self.experiment.model.config, settings.projection_edges)
        self.mask = EdgeMask.all(graph)
        self.engine: PruningEngine | None = None
        self.verifier = Verifier(self.experiment, settings.engine, settings.verify_every, settings.memory_gb, self.ties)
        self.current = metric.loss_of_model(self.experiment.clean_logits)
        self.remaining = len(graph)
        self.observer.started(graph, metric.from_loss(self.current))
        order = graph.test_order
        replayed = at = 0
        left: list[Edge] | None = None  # of a receiver that was begun, the edges to test
        while at < len(order):
            receiver, senders = order[at]
            edges = [Edge(sender, receiver) for sender in senders]
            if not self.mask.is_used(receiver):
                self._remove(edges)
            else:
                self.observer.receiver(receiver, self.remaining)
                if not self.only:
                    edges.sort(key=self.ruled_out.__contains__)
                in_order = [edge.sender for edge in edges]
                edges = edges if left is None else left
                while replayed < len(self.replay) and edges:
                    edge = edges.pop(0)
                    if self._goes_untested(edge):
                        self._remove([edge])
                    else:
                        self._take_over(self.replay[replayed], edge)
                        replayed += 1
                left = self._decide(at, in_order, edges) if edges else []
            at, left = (at, left) if left else (at + 1, None)
            if self.pending and self._is_due(last=at == len(order)) and not self._passes():
                at, left = self._go_back()
        self._give_out()
        if replayed < len(self.replay):
            raise RunError("the journal holds more decisions than this run makes: it is of another run")
        counted = {"decisions": len(self.tested), "near_ties": self.near_ties, "verified": self.verifier.done}
        rounding = {
            "compared": self.compared / max(1, len(self.tested)),
            "largest_rounding": self.ties.largest,
            "made_again": self.made_again,
        }
        return Circuit(
            graph,
            self.kept,
            self.tested,
            model=self.experiment.model.name,
            task=self.experiment.task.name,
            method={**asdict(settings), "threshold": self.threshold},
            metrics={**counted, **rounding},
        )

    def _take_over(self, decision: Decision, edge: Edge) -> None:
        if decision.edge != edge:
            raise RunError(f"the journal tested {decision.edge} where this run tests {edge}: it is of another run")
        if not decision.kept:
            self.mask.set([edge], False)
        for error in (decision.rounding, decision.compared):
            if error is not None:
                self.ties.learn(edge.receiver, error, decision.effect, self.current)
        self.current = self.experiment.metric.from_loss(decision.metric)
        self.remaining -= 1
        self._record(decision)
        self.observer.replayed(decision, self.remaining)

    def _goes_untested(self, edge: Edge) -> bool:
        return self.only and edge in self.ruled_out

    def _remove(self, edges: list[Edge]) -> None:
        self.mask.set(edges, False)
        self.remaining -= len(edges)

    def _decide(self, at: int, senders: list[str], edges: list[Edge]) -> list[Edge]:
        """Test edges of a receiver, as many as may be pending.

        Parameters
        ----------
        at : int
            Which receiver, in the order of the tests.
        senders : list[str]
            The senders of all its edges.
        edges : list[Edge]
            Its edges that are left, in order.

        Returns
        -------
        list[Edge]
            The edges that are left now.
        """
        if not self.pending:
            self.start = _Start(at, list(edges), self.mask.copy(), self.current, self.remaining)
        self.first = len(self.pending)
        self.before = self.mask.copy()
        self.gone: list[Edge] = []
        if self.engine is None:  # made here, so that it starts from what a resumed run has decided already
            settings, batch_size = self.settings, self.settings.batch_size
            self.engine = make_pruning_engine(settings.engine, self.experiment, self.mask, settings.memory_gb)
            fixed = batch_size if isinstance(batch_size, int) else None
            self.lookahead = Lookahead(self.engine, self.mask.graph, self.threshold, fixed)
        self.engine.enter(edges[0].receiver, senders)
        ruled_out = self.ruled_out if self.only else ()
        room = MOST_PENDING - len(self.pending)
        self.engine.leave(self.lookahead.test(edges[:room], self.current, self._test, ruled_out))
        return edges[room:]

    def _test(self, edge: Edge, loss: float | None) -> bool:
        """Decide one edge; True if it is kept."""
        gone = len(self.gone)
        if self._goes_untested(edge):
            self._remove([edge])
            self.gone.append(edge)
            self.current = self.current if loss is None else loss
            return False
        assert loss is not None
        self.verifier.look(self.mask, edge, loss)
        effect, loss_before = loss - self.current, self.current
        rounding = None
        if self.ties.holds(edge.receiver, effect, self.threshold, self.current):
            before, loss = self.ties.settle(self.mask, edge)
            rounding, effect = abs(loss - before - effect), loss - before
            self.ties.learn(edge.receiver, rounding, effect, loss_before)
        # In float64 the last digits are noise too: an exact tie counts as reaching the threshold.
        kept = effect >= self.threshold - (0.0 if rounding is None else 1e-12 * max(1.0, abs(loss)))
        if not kept:
            self.mask.set([edge], False)
            self.gone.append(edge)
            self.current = loss
        self.remaining -= 1
        decision = Decision(edge, effect, kept, self.experiment.metric.from_loss(self.current), rounding)
        self.pending.append(_Test(decision, loss_before, self.remaining, gone))
        return kept

    def _is_due(self, last: bool) -> bool:
        """Whether to check what is pending: at the first receiver, then ever more rarely, and at the end."""
        if not self.settings.tie_tolerance:
            return True
        pending, senders = len(self.pending), len(self.mask.graph.senders)
        if last or not self.ties.errors or pending >= MOST_PENDING:
            return True
        return pending**2 >= 4 * senders * (len(self.tested) + pending)

    def _passes(self) -> bool:
        """Compare decisions of the latest receiver with float64, and give out all that is pending; or not, if rounding
        reaches so far that one of them might have been a near-tie.
        """
        here = [test for test in self.pending[self.first :] if test.decision.rounding is None]
        if here and self.settings.tie_tolerance:
            self._compare(here)
        for test in self.pending:
            edge, effect = test.decision.edge, test.decision.effect
            if not test.decision.near_tie and self.ties.holds(edge.receiver, effect, self.threshold, test.loss):
                return False
        self._give_out()
        return True

    def _compare(self, tests: list[_Test]) -> None:
        """Compare two tests with float64: the one nearest to the threshold, and the first before it that removed its
        edge, which then costs little.
        """
        nearest = min(tests, key=lambda test: abs(test.decision.effect - self.threshold))
        before_it = tests[: tests.index(nearest)]
        chosen = [*[test for test in before_it if not test.decision.kept][:1], nearest]
        masks = []
        for test in chosen:
            before = self.before.copy()
            before.set(self.gone[: test.gone], False)
            masks += [before, before.without(test.decision.edge)]
        losses = self.ties.exact(masks)
        for test, before_loss, loss in zip(chosen, losses[::2], losses[1::2], strict=True):
            decision = test.decision
            error = abs(loss - before_loss - decision.effect)
            self.ties.learn(decision.edge.receiver, error, decision.effect, test.loss)
            test.decision = replace(decision, compared=error)

    def _go_back(self) -> tuple[int, list[Edge]]:
        """To what had been given out, since what came behind it is to be made again."""
        start = self.start
        self.made_again += len(self.pending)
        self.pending.clear()
        self.mask = start.mask.copy()
        self.engine = None
        self.current, self.remaining = start.loss, start.remaining
        return start.receiver, list(start.edges)

    def _give_out(self) -> None:
        for test in self.pending:
            self._record(test.decision)
            self.observer.decided(test.decision, test.remaining)
        self.pending.clear()

    def _record(self, decision: Decision) -> None:
        self.tested[decision.edge] = decision.effect
        if decision.kept:
            self.kept[decision.edge] = decision.effect
        self.near_ties += decision.near_tie
        self.compared += decision.near_tie or decision.compared is not None
