"""What the methods that score every edge share: scores that come piece by piece, and the circuit made of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.discovery.base import Decision, NoObserver, NoStore, Observer, Store
from acdc.discovery.selection import SelectingMethod, check_selection, select
from acdc.engine.gradients import GradientRun, Replaced, sender_changes
from acdc.engine.memory import budget_bytes, row_blocks, units_that_fit, widest_row
from acdc.errors import ConfigError, RunError
from acdc.experiment import Experiment
from acdc.settings import option

Piece = Callable[[], Tensor]  # scores, `port sender`, of which a method's are the sum


@dataclass(frozen=True)
class ScoringMethod(SelectingMethod):
    """A method that computes its scores as one tensor.

    Attributes
    ----------
    meaning : in a sentence, what a score is.
    """

    meaning: ClassVar[str]

    @abstractmethod
    def scores(self, experiment: Experiment, observer: Observer, store: Store) -> Tensor:
        """Every edge's score, `port sender`; what lies between a port and a sender that are not joined is not read."""

    def discover(
        self,
        experiment: Experiment,
        observer: Observer | None = None,
        replay: Sequence[Decision] = (),
        store: Store | None = None,
    ) -> Circuit:
        """Score every edge, and keep those that `select` says."""
        self.check(experiment)
        observer, metric = observer or NoObserver(), experiment.metric
        observer.started(experiment.graph, metric.from_loss(metric.loss_of_model(experiment.clean_logits)))
        scores = self.scores(experiment, observer, store or NoStore())
        return to_circuit(experiment, self, scores, self.meaning)


@dataclass(frozen=True)
class BlockMethod(ScoringMethod):
    """A method that scores pairs in blocks that fit in memory."""

    memory_gb: float | None = option(None, "what temporary tensors may take; null is a share of what is free", above=0)


@dataclass(frozen=True)
class Work:
    """How scores are computed: as the sum of pieces, so that memory is bounded and a killed run goes on.

    Attributes
    ----------
    pieces : Callable[[Experiment], Iterator[Piece]]
        Those of a block of an experiment's rows, in order. What they share may be made when the first is called.
    n_pieces : int
        How many those are.
    memory_gb : float or None
        As in the settings.
    unit : Callable[[Experiment], object] or None
        Takes as much memory, on a block of one row, as this row takes in the work. None is the first piece.
    """

    pieces: Callable[[Experiment], Iterator[Piece]]
    n_pieces: int
    memory_gb: float | None
    unit: Callable[[Experiment], object] | None = None

    def rows_at_once(self, experiment: Experiment) -> int:
        """How many rows fit in memory together."""
        row = widest_row(experiment)
        unit = self.unit or (lambda block: next(self.pieces(block))())
        return units_that_fit(lambda: unit(row), budget_bytes(experiment.model.device, self.memory_gb))


def add_up(experiment: Experiment, work: Work, observer: Observer, store: Store) -> Tensor:
    """The sum of all pieces over all rows, `port sender` in float64 on the CPU, kept in the store after each.

    Raises
    ------
    RunError: what is in the store is not of such a run.
    """
    graph = experiment.graph
    scores = torch.zeros(len(graph.ports), len(graph.senders), dtype=torch.float64)
    if state := store.load():
        if set(state) != {"scores", "done", "rows"} or state["scores"].shape != scores.shape:
            raise RunError("the stored state is of another run: start anew in another folder")
        scores, done, rows = state["scores"], int(state["done"]), int(state["rows"])
    else:
        done, rows = 0, min(work.rows_at_once(experiment), len(experiment.batch.clean))
    total = work.n_pieces * -(-len(experiment.batch.clean) // rows)
    observer.progressed(done, total, {})
    number = 0
    for block in row_blocks(experiment, rows):
        for piece in work.pieces(block):
            number += 1
            if number <= done:
                continue
            scores += piece().cpu().double()
            store.save({"scores": scores, "done": torch.tensor(number), "rows": torch.tensor(rows)})
            observer.progressed(number, total, {})
    return scores


def to_circuit(experiment: Experiment, settings: SelectingMethod, scores: Tensor, meaning: str) -> Circuit:
    """The circuit that scores `port sender` make; `meaning` says in a sentence what a score is.

    Raises
    ------
    RunError: a score is no number.
    """
    graph = experiment.graph
    by_port = dict(zip(graph.ports, scores.tolist(), strict=True))
    of_edges = {edge: by_port[edge.receiver][graph.sender_index[edge.sender]] for edge in graph}
    if bad := [edge for edge, score in of_edges.items() if not abs(score) < float("inf")]:
        raise RunError(f"the score of {bad[0]} is {of_edges[bad[0]]}: try model.dtype=float32 or another metric")
    selection = select(graph, of_edges, settings)
    return Circuit(
        graph,
        selection.edges,
        of_edges,
        model=experiment.model.name,
        task=experiment.task.name,
        method={**asdict(settings), "score": meaning},
        metrics={"decisions": 0, "near_ties": 0, "scored": len(of_edges), **selection.numbers()},
    )


# Of the methods that take a gradient.


def gradient_work(
    experiment: Experiment, runs: Sequence[Callable[[Experiment], Replaced | None]], memory_gb: float | None
) -> Work:
    """Scores (ablated − clean) · gradient, the gradient's mean over some runs.

    Parameters
    ----------
    runs: each says what is replaced in the clean run of a block of rows.
    """

    def pieces(block: Experiment) -> Iterator[Piece]:
        changes: list[Tensor] = []  # made with the first piece that is computed

        def piece(replaced: Callable[[Experiment], Replaced | None]) -> Tensor:
            changes[:] = changes or [sender_changes(block)]
            return products(block, changes[0], replaced(block)) / len(runs)

        for run in runs:
            yield partial(piece, run)

    return Work(pieces, len(runs), memory_gb)


def products(block: Experiment, changes: Tensor, replaced: Replaced | None = None) -> Tensor:
    """Σ over rows, positions and dimensions of a sender's change times the gradient at a port: `port sender`.

    Parameters
    ----------
    changes: of every sender, `sender row pos d_model`. replaced: in the run whose gradient is taken.
    """
    graph = block.graph
    scores = changes.new_zeros(len(graph.ports), len(graph.senders), dtype=torch.float64)
    flat = changes.flatten(1)
    for at in GradientRun.computed(block, replaced).at_ports():
        n_senders = graph.n_senders_of(graph.ports[at.rows.start])
        scores[at.rows, :n_senders] = (at.gradient.flatten(1) @ flat[:n_senders].T).double()
    return scores


def check_gradients(experiment: Experiment, settings: SelectingMethod) -> None:
    """What all methods that take a gradient refuse.

    Raises
    ------
    ConfigError: the precision has no room for small gradients, or more edges are asked for than there are.
    """
    check_selection(experiment.graph, settings)
    if experiment.model.dtype == torch.float16:
        raise ConfigError(
            f"model.dtype=float16 has no room for small gradients, which method={settings.name} needs: give float32 or"
            " bfloat16"
        )


def check_slope(experiment: Experiment, settings: SelectingMethod) -> None:
    """ConfigError for a metric that has no slope where the gradient is taken, at the full model."""
    if experiment.measured.compares_with_model:
        raise ConfigError(
            f"metric={experiment.metric_name} has no slope at the full model, so method={settings.name} would score"
            " every edge 0: choose method=eap_ig or clean_corrupted, or another metric"
        )


def check_two_runs(experiment: Experiment, settings: SelectingMethod, instead: str) -> None:
    """ConfigError for an ablation that is no run of its own, so that there is no way from one run to the other."""
    if experiment.ablation.name != "corrupted":
        raise ConfigError(
            f"ablation={experiment.ablation.name} does not fit method={settings.name}, which goes from the corrupted"
            f" run to the clean one: give ablation=corrupted, or {instead}"
        )
