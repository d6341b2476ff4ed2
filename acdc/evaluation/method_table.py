"""Discovery methods judged in one table: the same experiment, a ranking of the edges from each, the same questions.

Every method gives scores. Those of trained masks, log α of a gate, enter as α, which is positive and in the same order:
their size then says how open a gate is, as the size of other methods' scores says how much an edge matters. The order
is the method's own: the best edges of all, or, for one that selects greedily, grown from the logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.evaluation.areas import FRACTIONS, Areas, Point
from acdc.evaluation.ground_truth import Truth
from acdc.evaluation.ranking import Ranking, Size, ends
from acdc.evaluation.roc import RULES, Grade, grade
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

GATES = ("subnetwork_probing", "edge_pruning")  # methods whose scores are log α
SHARE = 0.9  # of the recovery, that `edges_at_90` asks for
COSTS = ("seconds", "processor_seconds", "peak_mb")
TENTH, MOST = 0.1, 50  # the equal size unless told otherwise: a share of the edges, as many as can be read
USUAL = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # sizes at which KL is told unless told otherwise


@dataclass(frozen=True)
class Judge:
    """What every method is asked.

    Attributes
    ----------
    sizes: numbers of edges at which KL is told. equal_size: how many edges the circuits have that are compared.
    absolute: rank by the size of scores, whatever their sign; CPR goes by score and CMD by size, as in MIB.
    truths: known circuits, by label.
    """

    experiment: Experiment
    sizes: tuple[int, ...]
    equal_size: int
    absolute: bool = True
    truths: Mapping[str, Truth] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The numbers of a row, in order: areas under the ROC curve for every truth, the first one's without a name."""
        aucs = [auc_column(label, rule, self.truths) for label in self.truths for rule in RULES] or ["auc"]
        return ["edges_at_90", "on_path_at_90", *(f"kl_at_{n}" for n in self.sizes), "cpr", "cmd", *aucs, *COSTS]

    @undisturbed
    def judge(self, circuits: Sequence[Circuit], engine: FullEngine | None = None) -> Judged:
        """A method's row: of its circuit's scores (`tested`) and its costs (`metrics`); of several draws their mean."""
        engine = engine or FullEngine(self.experiment)
        judged = [self._one(circuit, engine) for circuit in circuits]
        return judged[0] if len(judged) == 1 else _mean(judged)

    def _one(self, circuit: Circuit, engine: FullEngine) -> Judged:
        method = str(circuit.method.get("name", ""))
        scores, greedy = strengths(method, circuit.tested), circuit.method.get("select") == "greedy"
        rankings = [Ranking(self.experiment, scores, absolute, greedy, engine) for absolute in (False, True)]
        ranking, found = rankings[self.absolute], Areas(*map(_points, rankings))
        first, at = ranking.first(SHARE), ranking.at(self.sizes)
        grades = {label: grade(ranking.scores, truth, self.absolute) for label, truth in self.truths.items()}
        numbers: dict[str, float | None] = dict.fromkeys(self.columns)
        numbers |= {"edges_at_90": first.edges, "on_path_at_90": first.on_path} if first else {}
        numbers |= {f"kl_at_{n}": size.kl for n, size in zip(self.sizes, at, strict=True)}
        numbers |= {"cpr": found.cpr, "cmd": found.cmd}
        for label, graded in grades.items():
            numbers |= {auc_column(label, rule, self.truths): graded.edges.auc(rule) for rule in RULES}
        numbers |= {cost: circuit.metrics.get(cost) for cost in COSTS}
        best = ranking.best(self.equal_size)
        best.model, best.task, best.method = circuit.model, circuit.task, dict(circuit.method)
        best.metrics = {"recovery": ranking.at([self.equal_size])[0].recovery}
        return Judged(method, numbers, tuple(ranking.curve()), found, grades, best)


@dataclass(frozen=True)
class Judged:
    """A method's row and what is behind it.

    Attributes
    ----------
    numbers: by column, None where there is none. curve: at all sizes of the grid. best: the circuit of equal size,
        edges on no path among them. sd: standard deviation of each number, of several draws; of those `best`, `grades`
        and `areas` are the first one's.
    """

    method: str
    numbers: Mapping[str, float | None]
    curve: tuple[Size, ...]
    areas: Areas
    grades: Mapping[str, Grade]
    best: Circuit
    sd: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        size, on_path = len(self.best), len(self.best.on_path())
        equal = {"edges": size, "on_path": on_path, **self.best.metrics, "names": [str(edge) for edge in self.best]}
        return {**self.numbers, **({"sd": dict(self.sd)} if self.sd else {}), "equal_size": equal}


def auc_column(label: str, rule: str, truths: Mapping[str, Truth]) -> str:
    """`auc` for the first truth by the original's rule, `auc_published_trapezoid` for another by the other."""
    name = "auc" if label == next(iter(truths)) else f"auc_{label}"
    return name if rule == "pessimistic" else f"{name}_{rule}"


def strengths(method: str, scores: Mapping[Edge, float]) -> dict[Edge, float]:
    """Scores whose size says how much an edge matters."""
    if method in GATES:
        return {edge: math.exp(min(score, 700.0)) for edge, score in scores.items()}
    return dict(scores)


def usual_sizes(n_edges: int) -> tuple[int, ...]:
    """Sizes at which KL is told unless told otherwise: those below the number of edges, at most six."""
    below = [n for n in USUAL if n < n_edges]
    return tuple(below[-6:])


def usual_equal_size(n_edges: int, truths: Mapping[str, Truth]) -> int:
    """How many edges the circuits have that are drawn and compared, unless told otherwise: as many as the first known
    circuit, else a tenth of all, at most 50."""
    known = [len(truth.edges) for truth in truths.values()]
    return max(1, min(MOST, known[0] if known else round(TENTH * n_edges)))


def check_recovery(experiment: Experiment) -> None:
    """ConfigError where there is nothing to recover."""
    ends(experiment)


def _points(ranking: Ranking) -> list[Point]:
    """Recovery at MIB's fractions."""
    sizes = ranking.at(int(fraction * len(ranking.ranked)) for fraction in FRACTIONS)
    return [Point(fraction, int(size.on_path), size.recovery) for fraction, size in zip(FRACTIONS, sizes, strict=True)]


def _mean(judged: Sequence[Judged]) -> Judged:
    first = judged[0]
    columns = {name: [value for one in judged if (value := one.numbers[name]) is not None] for name in first.numbers}
    curve = [
        Size(
            sizes[0].edges,
            fmean(size.on_path for size in sizes),
            fmean(size.recovery for size in sizes),
            None if sizes[0].kl is None else fmean(size.kl or 0.0 for size in sizes),
        )
        for sizes in zip(*(one.curve for one in judged), strict=True)
    ]
    return Judged(
        first.method,
        {name: fmean(values) if values else None for name, values in columns.items()},
        tuple(curve),
        first.areas,
        first.grades,
        first.best,
        {name: pstdev(values) for name, values in columns.items() if values},
    )
