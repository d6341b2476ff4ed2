"""Discovery methods in one table: the same experiment, a ranking of the edges by each, the same questions.

Every method gives scores. The size of a score says how much an edge matters (`acdc.evaluation.ranking.strengths`). The
order of the edges is the method's own: the best edges of all or, for a method that selects greedily, a circuit that
grows from the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import pandas as pd

from acdc.circuit import Circuit
from acdc.engine.full import FullEngine
from acdc.evaluation.areas import Areas
from acdc.evaluation.comparison import CircuitComparison, compare_circuits
from acdc.evaluation.grading import RULES, Grade, grade
from acdc.evaluation.ground_truth import Truth
from acdc.evaluation.ranking import Ranking, Size, ends, strengths
from acdc.experiment import Experiment
from acdc.process import undisturbed
from acdc.result import Result, as_table

SHARE = 0.9  # of the recovery, that `edges_at_90` asks for
COSTS = ("seconds", "processor_seconds", "peak_mb")
TENTH, MOST = 0.1, 50  # the default equal size: a share of the edges, at most as many as can be read
USUAL = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # sizes at which KL is measured by default


@dataclass(frozen=True)
class Judge:
    """What every method is asked.

    Attributes
    ----------
    experiment : Experiment
    sizes : tuple of int
        Numbers of edges at which KL is measured.
    equal_size : int
        How many edges the circuits have that are compared.
    absolute : bool
        Rank by the size of scores, whatever their sign. CPR goes by score and CMD by size, as in MIB.
    truths : mapping of str to Truth
        Known circuits by label.
    """

    experiment: Experiment
    sizes: tuple[int, ...]
    equal_size: int
    absolute: bool = True
    truths: Mapping[str, Truth] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The numbers of a row, in order. Areas under the ROC curve against the first truth have no label."""
        aucs = [auc_column(label, rule, self.truths) for label in self.truths for rule in RULES] or ["auc"]
        return ["edges_at_90", "on_path_at_90", *(f"kl_at_{n}" for n in self.sizes), "cpr", "cmd", *aucs, *COSTS]

    @undisturbed
    def judge(self, circuits: Sequence[Circuit], engine: FullEngine | None = None) -> Judged:
        """Return the row of a method.

        Parameters
        ----------
        circuits : sequence of Circuit
            The method's circuit with its scores (`tested`) and costs (`metrics`). Of several draws the mean is taken.
        engine : FullEngine, optional
        """
        engine = engine or FullEngine(self.experiment)
        judged = [self._one(circuit, engine) for circuit in circuits]
        return judged[0] if len(judged) == 1 else _mean(judged)

    def _one(self, circuit: Circuit, engine: FullEngine) -> Judged:
        scores, greedy = strengths(circuit), circuit.method.get("select") == "greedy"
        rankings = [Ranking(self.experiment, scores, absolute, greedy, engine) for absolute in (False, True)]
        ranking, areas = rankings[self.absolute], Areas.of(*rankings)
        first, at = ranking.first(SHARE), ranking.at(self.sizes)
        grades = {label: grade(ranking.scores, truth, self.absolute) for label, truth in self.truths.items()}
        numbers: dict[str, float | None] = dict.fromkeys(self.columns)
        numbers |= {"edges_at_90": first.edges, "on_path_at_90": first.on_path} if first else {}
        numbers |= {f"kl_at_{n}": size.kl for n, size in zip(self.sizes, at, strict=True)}
        numbers |= areas.numbers()
        for label, graded in grades.items():
            numbers |= {auc_column(label, rule, self.truths): graded.edges.auc(rule) for rule in RULES}
        numbers |= {cost: circuit.metrics.get(cost) for cost in COSTS}
        best = ranking.best(self.equal_size)
        best.model, best.task, best.method = circuit.model, circuit.task, dict(circuit.method)
        best.metrics = {"recovery": ranking.at([self.equal_size])[0].recovery}
        return Judged(str(circuit.method.get("name", "")), numbers, tuple(ranking.curve()), areas, grades, best)


@dataclass(frozen=True)
class Judged:
    """A method's row and what is behind it.

    Attributes
    ----------
    method : str
    numbers : mapping of str to float or None
        By column.
    curve : tuple of Size
        At all sizes of the grid.
    areas : Areas
    grades : mapping of str to Grade
        By the label of the known circuit.
    best : Circuit
        The circuit of equal size; its edges on no path are among them.
    sd : mapping of str to float
        The standard deviation of each number over several draws. `best`, `grades` and `areas` are the first draw's.
    """

    method: str
    numbers: Mapping[str, float | None]
    curve: tuple[Size, ...]
    areas: Areas
    grades: Mapping[str, Grade]
    best: Circuit
    sd: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        size, on_path = len(self.best), len(self.best.on_path())
        equal = {"edges": size, "on_path": on_path, **self.best.metrics, "names": [str(edge) for edge in self.best]}
        return {**self.numbers, **({"sd": dict(self.sd)} if self.sd else {}), "equal_size": equal}


def auc_column(label: str, rule: str, truths: Mapping[str, Truth]) -> str:
    """Return `auc` for the first truth by the original's rule, `auc_published_trapezoid` for another by the other."""
    name = "auc" if label == next(iter(truths)) else f"auc_{label}"
    return name if rule == "pessimistic" else f"{name}_{rule}"


def usual_sizes(n_edges: int) -> tuple[int, ...]:
    """Return the sizes at which KL is measured by default: those below the number of edges, at most six."""
    below = [n for n in USUAL if n < n_edges]
    return tuple(below[-6:])


def usual_equal_size(n_edges: int, truths: Mapping[str, Truth]) -> int:
    """Return how many edges the compared circuits have by default: as many as the first known circuit, else a tenth of
    all; at most 50.
    """
    known = [len(truth.edges) for truth in truths.values()]
    return max(1, min(MOST, known[0] if known else round(TENTH * n_edges)))


def check_recovery(experiment: Experiment) -> None:
    """Raise a ConfigError where there is nothing to recover."""
    ends(experiment)


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


@dataclass(frozen=True)
class MethodTable(Result):
    """The methods in one table.

    Attributes
    ----------
    judge : Judge
    judged : sequence of Judged
        A row a method.
    refused : mapping of str to str
        Why other methods have no numbers.
    absent : sequence of str
        Why other known circuits are missing.
    """

    judge: Judge
    judged: Sequence[Judged]
    refused: Mapping[str, str]
    absent: Sequence[str]

    @property
    def rivals(self) -> Sequence[Judged]:
        """The methods without the random baseline, unless it is alone."""
        return [one for one in self.judged if one.method != "random"] or self.judged

    @property
    def shared(self) -> CircuitComparison | None:
        """The circuits of equal size beside each other."""
        return compare_circuits([(one.method, one.best) for one in self.judged]) if len(self.judged) > 1 else None

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return `compare`, a row a method, and `curve`, a row a method and size."""
        columns = self.judge.columns
        rows: list[dict[str, object]] = [
            {"method": one.method, **one.numbers, "note": "", **{f"{name}_sd": one.sd.get(name) for name in columns}}
            for one in self.judged
        ]
        empty = dict.fromkeys(columns)
        rows += [{"method": name, **empty, "note": why} for name, why in self.refused.items()]
        curve = [
            {"method": one.method, "edges": s.edges, "on_path": s.on_path, "recovery": s.recovery, "kl": s.kl}
            for one in self.judged
            for s in one.curve
        ]
        return {"compare": as_table(rows), "curve": as_table(curve)}

    def documents(self) -> dict[str, object]:
        judge, experiment = self.judge, self.judge.experiment
        about = {"task": experiment.task.name, "model": experiment.model.name, "metric": experiment.metric_name}
        known = {label: {"edges": len(t.edges), "sources": list(t.sources)} for label, t in judge.truths.items()}
        return {
            "compare": {
                **about,
                "ablation": experiment.ablation.name,
                "edges_total": len(experiment.graph),
                "absolute": judge.absolute,
                "equal_size": judge.equal_size,
                "truths": known,
                "methods": {one.method: one.as_dict() for one in self.judged},
                "refused": dict(self.refused),
                "shared": None if self.shared is None else self.shared.as_dict(),
            }
        }

    def summary(self) -> dict[str, object]:
        experiment = self.judge.experiment
        numbers = {"methods": len(self.judged), "edges_total": len(experiment.graph), "metric": experiment.metric_name}
        return numbers | {f"{one.method}_{name}": value for one in self.judged for name, value in one.numbers.items()}
