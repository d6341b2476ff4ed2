"""MIB's areas (Mueller et al. 2025, arXiv:2504.13151): how well the best edges do alone, over circuits of all sizes.

Of the scores, the top int(fraction · edges) edges are taken and what is on no path from input to logits is dropped. f
is the recovery of what is left, (m(C) − m(∅)) / (m(N) − m(∅)), here of whatever metric the experiment has (MIB's is
the logit difference). By trapezoids over the fractions, from the first to the last:

CPR, the integrated circuit performance ratio, is the area under f, of scores as they are: more is better.
CMD, the integrated circuit-model distance, is the area between f and 1, of scores by size: less is better.

In a small graph a fraction may stand for no edge; f is 0 there.

Edges of equal score, such as those without one, are ranked in the order of ACDC's tests. That is a convention: MIB's
code leaves it to torch.argsort. Where many tie, as in the circuit file of an ACDC run, whose untested edges all have 0,
the areas depend on it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.metrics import alike, recovery
from acdc.process import undisturbed

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Point:
    """One size of circuit: `edges` are those left on a path, of int(`fraction` · all) taken; `f` its recovery."""

    fraction: float
    edges: int
    f: float


@undisturbed
def curve(
    experiment: Experiment,
    scores: Mapping[Edge, float],
    fractions: Sequence[float] = FRACTIONS,
    absolute: bool = False,
    engine: FullEngine | None = None,
    last_first: bool = False,
) -> list[Point]:
    """f at each fraction of the edges, by complete evaluations.

    Parameters
    ----------
    scores: edges without one have 0; of equal scores the edge that ACDC tests first is the better. Scores of projection
        edges, which MIB does not know, are left out. absolute: rank by size, whatever the sign. last_first: of equal
        scores the edge that ACDC tests last is the better, to see what ties make of the result.

    Raises
    ------
    ConfigError: a fraction outside [0, 1]; the model with and without its edges gives the same, so there is no f.
    """
    if wrong := [fraction for fraction in fractions if not 0 <= fraction <= 1]:
        raise ConfigError(f"the fraction {wrong[0]} of the edges is not between 0 and 1")
    graph, engine = experiment.graph, engine or FullEngine(experiment)

    def score(edge: Edge) -> float:
        return abs(scores.get(edge, 0.0)) if absolute else scores.get(edge, 0.0)

    ranked = sorted(reversed(list(graph)) if last_first else graph, key=score, reverse=True)  # stable
    taken = [Circuit(graph, dict.fromkeys(ranked[: int(f * len(graph))], 0.0)).on_path() for f in fractions]
    masks = [EdgeMask.all(graph), EdgeMask.of(graph, []), *(EdgeMask.of(graph, circuit) for circuit in taken)]
    clean, corrupted, *values = map(experiment.metric.from_loss, engine.losses(masks))
    if alike(clean, corrupted):
        raise ConfigError(
            "the metric is the same with every edge and without any, so no circuit recovers a share of it"
        )
    return [
        Point(fraction, len(circuit), recovery(value, clean, corrupted))
        for fraction, circuit, value in zip(fractions, taken, values, strict=True)
    ]


def area(points: Sequence[Point], of: Callable[[float], float] = lambda f: f) -> float:
    """The area under `of`(f) over the fractions, by trapezoids."""
    return sum((b.fraction - a.fraction) * (of(a.f) + of(b.f)) / 2 for a, b in pairwise(points))


def cpr(points: Sequence[Point]) -> float:
    """The area under f."""
    return area(points)


def cmd(points: Sequence[Point]) -> float:
    """The area between f and 1."""
    return area(points, lambda f: abs(1 - f))


@dataclass(frozen=True)
class Areas:
    """Both areas of some scores: CPR of `signed`, CMD of `absolute`."""

    signed: list[Point]
    absolute: list[Point]

    @property
    def cpr(self) -> float:
        return cpr(self.signed)

    @property
    def cmd(self) -> float:
        return cmd(self.absolute)


@undisturbed
def areas(
    experiment: Experiment, scores: Mapping[Edge, float], engine: FullEngine | None = None, last_first: bool = False
) -> Areas:
    """CPR and CMD at MIB's fractions; the rest as of `curve`."""
    engine = engine or FullEngine(experiment)
    return Areas(*(curve(experiment, scores, FRACTIONS, absolute, engine, last_first) for absolute in (False, True)))


def tied(graph: Graph, scores: Mapping[Edge, float]) -> int:
    """How many edges have a score of the same size as another edge; one without a score has 0."""
    sizes = Counter(abs(scores.get(edge, 0.0)) for edge in graph)
    return sum(count for count in sizes.values() if count > 1)


@undisturbed
def random_scores(experiment: Experiment, draws: int, seed: int = 0) -> list[dict[Edge, float]]:
    """Uniform scores in [−1, 1) for every edge: the baseline."""
    rng = random.Random(seed)
    return [{edge: rng.uniform(-1, 1) for edge in experiment.graph} for _ in range(draws)]
