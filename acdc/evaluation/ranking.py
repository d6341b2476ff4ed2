"""A ranking of the edges: what its n best edges do alone, for any n.

Of the n best edges, those on no path from the input to the logits are dropped before the rest is evaluated, as in MIB.
Under other ablations than the corrupted one, a part that nothing reaches may still write something.

Edges of equal score, such as those without a score, are ranked in the order in which ACDC tests them. This is a
convention; MIB's code leaves the order to torch.argsort.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from acdc.circuit import Circuit
from acdc.discovery.selection import SelectionOptions, ranked
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError
from acdc.evaluation.measures import per_pair
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.metrics import alike, recovery
from acdc.process import undisturbed

GATES = ("subnetwork_probing", "edge_pruning")  # methods whose scores are log α
_STEP = 1.12  # from one size of the grid to the next, where that is more than one edge


@dataclass(frozen=True)
class Size:
    """What the circuit of the n best edges does alone.

    Attributes
    ----------
    edges : float
        n; the mean over several draws may be no whole number.
    on_path : float
        How many of them lie on a path from the input to the logits.
    recovery : float
        (circuit − corrupted) / (clean − corrupted), of the metric.
    kl : float or None
        KL(model ‖ circuit) in nats; None for a model with one output, whose distribution says nothing.
    """

    edges: float
    on_path: float
    recovery: float
    kl: float | None


def grid(n_edges: int) -> list[int]:
    """Return sizes from one edge to all: every size up to 12, then steps of an eighth."""
    sizes = [0]
    while sizes[-1] < n_edges:
        sizes.append(min(n_edges, max(sizes[-1] + 1, round(sizes[-1] * _STEP))))
    return sizes[1:]


class Ranking:
    """Edges from the best to the worst, and what the best ones do alone, by complete evaluations.

    Parameters
    ----------
    experiment : Experiment
    scores : mapping of Edge to float
        An edge without a score has 0.
    absolute : bool
        Rank by the size of the scores, whatever their sign.
    greedy : bool
        Grow the circuit from the logits: add the best edge into what is there already.
    engine : FullEngine, optional
    last_first : bool
        Of edges of equal score, rank the one first that ACDC tests last. Shows how much depends on ties.

    Raises
    ------
    ConfigError
        The metric is the same with and without the edges, so there is no recovery.
    """

    def __init__(
        self,
        experiment: Experiment,
        scores: Mapping[Edge, float],
        absolute: bool = True,
        greedy: bool = False,
        engine: FullEngine | None = None,
        last_first: bool = False,
    ) -> None:
        self.experiment, self.graph = experiment, experiment.graph
        self.engine = engine or FullEngine(experiment)
        self.scores = {edge: scores.get(edge, 0.0) for edge in self.graph}
        order = SelectionOptions(select="greedy" if greedy else "top_n", absolute=absolute)
        self.ranked = ranked(self.graph, self.scores, order)
        if last_first:
            size = abs if absolute else float
            self.ranked = sorted(reversed(self.scores), key=lambda edge: size(self.scores[edge]), reverse=True)
        nothing, everything = ends(experiment, self.engine)
        self.corrupted, self.clean = nothing[0], everything[0]
        self._sizes: dict[int, Size] = {}
        # Metric and KL by the number of edges on a path, which tells the nested circuits of one ranking apart.
        self._values = {0: nothing, len(self.graph): everything}

    def best(self, n: int) -> Circuit:
        """Return the n best edges with their scores, whether on a path or not."""
        return Circuit(self.graph, {edge: self.scores[edge] for edge in self.ranked[:n]})

    def at(self, sizes: Iterable[int]) -> list[Size]:
        """Return what the circuits of these sizes do; none is evaluated twice."""
        sizes = list(sizes)
        taken = {n: self.best(n).on_path() for n in sizes if n not in self._sizes}
        new = {len(circuit): circuit for circuit in taken.values() if len(circuit) not in self._values}
        masks = [EdgeMask.of(self.graph, circuit) for circuit in new.values()]
        self._values |= zip(new, _metric_and_kl(self.experiment, masks, self.engine), strict=True)
        one_output = self.experiment.model.W_U.shape[1] == 1
        for n, circuit in taken.items():
            metric, kl = self._values[len(circuit)]
            share = recovery(metric, self.clean, self.corrupted)
            self._sizes[n] = Size(n, len(circuit), share, None if one_output else kl)
        return [self._sizes[n] for n in sizes]

    def curve(self) -> list[Size]:
        """Return what the circuits do at every size of the `grid`."""
        return self.at(grid(len(self.ranked)))

    def first(self, share: float = 0.9) -> Size | None:
        """Return the smallest size that recovers this share; None if no size does.

        Takes the first size of the grid that does, then bisects down to a size that does where one edge fewer does not.
        Up to 12 edges this is the very smallest. Beyond, a curve that rises above the share and falls below it again
        between two neighbours of the grid (an eighth apart) is not noticed.
        """
        for before, size in pairwise([Size(0, 0, 0.0, None), *self.curve()]):
            if size.recovery >= share:
                low, high = int(before.edges), int(size.edges)
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (low, middle) if self.at([middle])[0].recovery >= share else (middle, high)
                return self.at([high])[0]
        return None


@undisturbed
def ends(experiment: Experiment, engine: FullEngine | None = None) -> list[tuple[float, float]]:
    """Return the metric and the KL without any edge and with every edge.

    Raises
    ------
    ConfigError
        The metric is the same in both.
    """
    graph = experiment.graph
    nothing, everything = _metric_and_kl(experiment, [EdgeMask.of(graph, []), EdgeMask.all(graph)], engine)
    if alike(everything[0], nothing[0]):
        raise ConfigError(
            "the metric is the same with every edge and without any, so no circuit recovers a share of it"
        )
    return [nothing, everything]


def _metric_and_kl(
    experiment: Experiment, masks: Sequence[EdgeMask], engine: FullEngine | None
) -> list[tuple[float, float]]:
    """Return the mean over the pairs of the metric and of the KL, for each set of edges."""
    if not masks:
        return []
    measured = per_pair(experiment, masks, engine)
    kl = measured.kl.mean(-1).clamp_min(0)  # rounding can make it −1e-8
    return list(zip(measured.metric.mean(-1).tolist(), kl.tolist(), strict=True))


def strengths(circuit: Circuit) -> dict[Edge, float]:
    """Return a circuit's scores on a scale on which their size says how much an edge matters.

    Scores of trained masks are log α of a gate. They become α, which is positive and in the same order.
    """
    if circuit.method.get("name") in GATES:
        return {edge: math.exp(min(score, 700.0)) for edge, score in circuit.tested.items()}
    return dict(circuit.tested)


def tied(graph: Graph, scores: Mapping[Edge, float]) -> int:
    """Return how many edges have a score of the same size as another edge; an edge without a score has 0."""
    sizes = Counter(abs(scores.get(edge, 0.0)) for edge in graph)
    return sum(count for count in sizes.values() if count > 1)


@undisturbed
def random_scores(graph: Graph, draws: int, seed: int = 0) -> list[dict[Edge, float]]:
    """Return uniform scores in [−1, 1) of every edge, as a baseline; one mapping a draw."""
    rng = random.Random(seed)
    return [{edge: rng.uniform(-1, 1) for edge in graph} for _ in range(draws)]
