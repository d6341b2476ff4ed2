"""A method's order of the edges: how much its n best edges do alone, at any n.

Of the n best edges those on no path from input to logits are dropped before they are evaluated, as in MIB: under other
ablations than the corrupted one a part that nothing reaches may still write something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from acdc.circuit import Circuit
from acdc.discovery.selection import SelectionSettings, ranked
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError
from acdc.evaluation.faithfulness import per_pair
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.metrics import alike, recovery
from acdc.process import undisturbed

_STEP = 1.12  # from one size of the grid to the next, where that is more than an edge


@dataclass(frozen=True)
class Size:
    """The circuit of so many best edges.

    `edges` were taken, of which `on_path` are left; `recovery` as everywhere; `kl` in nats, None for a model with one
    output, whose distribution says nothing.
    """

    edges: float
    on_path: float
    recovery: float
    kl: float | None


def grid(n_edges: int) -> list[int]:
    """Sizes from one edge to all: every size up to 12, then steps of an eighth."""
    sizes = [0]
    while sizes[-1] < n_edges:
        sizes.append(min(n_edges, max(sizes[-1] + 1, round(sizes[-1] * _STEP))))
    return sizes[1:]


class Ranking:
    """Edges from the best to the last, and what the best do alone, by complete evaluations.

    Parameters
    ----------
    scores: edges without one have 0; of equal scores the edge that ACDC tests first is the better. absolute: rank by
        size, whatever the sign. greedy: grow from the logits, always by the best edge into what is there already.

    Raises
    ------
    ConfigError: the metric is the same with and without the edges, so that there is no recovery.
    """

    def __init__(
        self,
        experiment: Experiment,
        scores: Mapping[Edge, float],
        absolute: bool = True,
        greedy: bool = False,
        engine: FullEngine | None = None,
    ) -> None:
        self.experiment, graph = experiment, experiment.graph
        self.engine = engine or FullEngine(experiment)
        self.scores = {edge: scores.get(edge, 0.0) for edge in graph}
        order = SelectionSettings(select="greedy" if greedy else "top_n", absolute=absolute)
        self.ranked = ranked(graph, self.scores, order)
        self.clean, self.corrupted = ends(experiment, self.engine)
        self._sizes: dict[int, Size] = {}
        self._values: dict[frozenset[Edge], tuple[float, float]] = {}  # recovery and KL

    def best(self, n: int) -> Circuit:
        """The n best edges with their scores, whether on a path or not."""
        return Circuit(self.experiment.graph, {edge: self.scores[edge] for edge in self.ranked[:n]})

    def at(self, sizes: Iterable[int]) -> list[Size]:
        """What the circuits of these sizes do; none is evaluated twice."""
        sizes = list(sizes)
        graph = self.experiment.graph
        circuits = {n: frozenset(self.best(n).on_path()) for n in sizes if n not in self._sizes}
        new = list(dict.fromkeys(edges for edges in circuits.values() if edges not in self._values))
        if new:
            measured = per_pair(self.experiment, [EdgeMask.of(graph, edges) for edges in new], self.engine)
            metric, kl = measured.metric.mean(-1).tolist(), measured.kl.mean(-1).tolist()
            for edges, value, divergence in zip(new, metric, kl, strict=True):
                share = recovery(value, self.clean, self.corrupted)
                self._values[edges] = share, max(divergence, 0.0)  # rounding can make it −1e-8
        one_output = self.experiment.model.W_U.shape[1] == 1
        for n, edges in circuits.items():
            share, divergence = self._values[edges]
            self._sizes[n] = Size(n, len(edges), share, None if one_output else divergence)
        return [self._sizes[n] for n in sizes]

    def curve(self) -> list[Size]:
        """At every size of the `grid`."""
        return self.at(grid(len(self.ranked)))

    def first(self, share: float = 0.9) -> Size | None:
        """The least size that recovers this share, None if there is none.

        The first size of the grid that does, and from there by bisection down to one that does where an edge fewer does
        not. Up to 12 edges, so, the very least; beyond, a curve that rises above the share and falls below it again
        between two neighbours of the grid (an eighth apart) is not noticed.
        """
        curve = [Size(0, 0, 0.0, None), *self.curve()]
        for before, size in pairwise(curve):
            if size.recovery >= share:
                low, high = int(before.edges), int(size.edges)
                while high - low > 1:
                    middle = (low + high) // 2
                    if self.at([middle])[0].recovery >= share:
                        high = middle
                    else:
                        low = middle
                return self.at([high])[0]
        return None


@undisturbed
def ends(experiment: Experiment, engine: FullEngine | None = None) -> tuple[float, float]:
    """The metric with every edge and without any; ConfigError where they are the same."""
    graph = experiment.graph
    measured = per_pair(experiment, [EdgeMask.all(graph), EdgeMask.of(graph, [])], engine)
    clean, corrupted = measured.metric.mean(-1).tolist()
    if alike(clean, corrupted):
        raise ConfigError(
            "the metric is the same with every edge and without any, so no circuit recovers a share of it"
        )
    return clean, corrupted
