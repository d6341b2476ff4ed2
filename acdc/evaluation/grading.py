"""How well circuits, or a list of scores, agree with known circuits, over edges and over nodes.

A circuit gives one point: its share of the wrong edges (false-positive rate) against its share of the right ones
(true-positive rate). The circuits of a sweep give one point each. Scores give one for every place where the ranking can
be cut. The area under the points is computed by a named rule, always with the points (0, 0) and (1, 1) of the empty and
the whole graph:

`pessimistic`: Conmy et al. 2023 (`pessimistic_auc` in the original's code). Between two points the curve is no better
    than the worse of them: over the points sorted by (fpr, tpr), Σ (1 − fpr of the later)(tpr later − tpr earlier).
`trapezoid`: the usual one. Neighbouring points are joined by straight lines.

As in the original, a point is left out if another has fewer false positives and more true positives.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import ConfigError, FormatError
from acdc.evaluation.ground_truth import Truth
from acdc.evaluation.known import known_circuits
from acdc.evaluation.part import Part, Row
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph

RULES = ("pessimistic", "trapezoid")


@dataclass(frozen=True)
class Point:
    """One set of edges (or nodes) against the truth.

    Attributes
    ----------
    cut : float or None
        The threshold of the run, None if it had none; of scores the least one kept.
    kept, right : int
        How many edges there are, and how many of these are right.
    precision, recall, false_positive_rate : float
        The precision of an empty set is 1.
    """

    cut: float | None
    kept: int
    right: int
    precision: float
    recall: float
    false_positive_rate: float


@dataclass(frozen=True)
class Curve:
    """Points in the order they were given.

    Attributes
    ----------
    points : tuple of Point
    total : int
        How many edges (or nodes) the graph has.
    true : int
        How many the truth has.
    """

    points: tuple[Point, ...]
    total: int
    true: int

    @classmethod
    def of_counts(cls, counts: Sequence[tuple[float | None, int, int]], total: int, true: int) -> Curve:
        """Make a curve of cuts, each with how many edges (or nodes) are kept and how many of them are right."""
        wrong = total - true
        points = [
            Point(
                cut, kept, right, right / kept if kept else 1.0, right / true, (kept - right) / wrong if wrong else 0.0
            )
            for cut, kept, right in counts
        ]
        return cls(tuple(points), total, true)

    def turns(self) -> tuple[Point, ...]:
        """Return the points of a ranking without those in the middle of a straight run, of which it has many.

        The areas do not depend on them. The circuits of a sweep, which need not lie on a rising curve, are all kept.
        """
        at = [(p.false_positive_rate, p.recall) for p in self.points]
        if at != sorted(at, key=sum):
            return self.points
        first = [i for i, place in enumerate(at) if i == 0 or place != at[i - 1]]
        inner = [
            b
            for a, b, c in zip(first, first[1:], first[2:], strict=False)
            if any(at[a][k] == at[b][k] == at[c][k] for k in (0, 1))
        ]
        return tuple(self.points[i] for i in sorted(set(first) - set(inner)))

    def corners(self) -> list[tuple[float, float]]:
        """Return (fpr, tpr) of the points that count, sorted, with both ends."""
        every = sorted({(0.0, 0.0), (1.0, 1.0)} | {(p.false_positive_rate, p.recall) for p in self.points})
        corners: list[tuple[float, float]] = []
        best = 0.0  # of the points with fewer false positives
        for _, column in groupby(every, key=lambda point: point[0]):
            corners += (some := [point for point in column if point[1] >= best])
            best = max([best, *(y for _, y in some)])
        return corners

    def auc(self, rule: str = "pessimistic") -> float:
        """Return the area under the curve by one of `RULES`."""
        if rule not in RULES:
            raise ConfigError(f"the rule {rule!r} for the area is not known: choose one of {', '.join(RULES)}")
        steps = pairwise(self.corners())
        if rule == "pessimistic":
            return math.fsum((1 - x1) * (y1 - y0) for (_, y0), (x1, y1) in steps)
        return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in steps)

    def as_dict(self) -> dict[str, Any]:
        points = [asdict(point) for point in self.points]
        return {"total": self.total, "true": self.true, "auc": {r: self.auc(r) for r in RULES}, "points": points}


@dataclass(frozen=True)
class Grade:
    """Agreement with a known circuit over edges and over nodes. A kept edge keeps the nodes at its ends."""

    truth: Truth
    edges: Curve
    nodes: Curve

    @property
    def curves(self) -> dict[str, Curve]:
        return {"edges": self.edges, "nodes": self.nodes}

    def rates(self) -> dict[str, float]:
        """Return precision, recall and false-positive rate of one circuit, over edges and over nodes."""
        keys = ("precision", "recall", "false_positive_rate")
        return {f"{of}_{key}": getattr(curve.points[0], key) for of, curve in self.curves.items() for key in keys}

    def areas(self) -> dict[str, float]:
        """Return the areas under the curves: `edges_auc_pessimistic` and so on."""
        return {f"{of}_auc_{rule}": curve.auc(rule) for of, curve in self.curves.items() for rule in RULES}

    def as_dict(self) -> dict[str, Any]:
        """Return the truth's sources, every point, and the areas by both rules, for a JSON file."""
        truth = {"name": self.truth.name, "kind": self.truth.kind, "sources": list(self.truth.sources)}
        return {"truth": truth, **{of: curve.as_dict() for of, curve in self.curves.items()}}


def grade(found: Circuit | Sequence[Circuit] | Mapping[Edge, float], truth: Truth, absolute: bool = False) -> Grade:
    """Compare what was found with a known circuit.

    Parameters
    ----------
    found : Circuit, sequence of Circuit, or mapping of Edge to float
        A circuit, several circuits (a sweep over thresholds), or scores of edges; edges without a score come last.
    truth : Truth
    absolute : bool
        Rank scores by their size, whatever their sign.

    Raises
    ------
    ConfigError
        A truth without edges.
    FormatError
        An edge or a circuit of another graph than the truth's.
    """
    if not truth.edges:
        raise ConfigError(f"the known circuit {truth.name} has no edges here, so nothing can be held against it")
    n_edges, n_nodes = len(truth.graph), len(truth.graph.senders) + 1
    if isinstance(found, Mapping):
        scores, of_nodes = _scores(found, truth.graph, absolute)
        return Grade(truth, _ranked(scores, truth.edges, n_edges), _ranked(of_nodes, truth.nodes, n_nodes))
    edges, nodes = [], []
    for circuit in [found] if isinstance(found, Circuit) else found:
        mine, theirs = circuit.graph, truth.graph
        if (mine.config, mine.projection_edges) != (theirs.config, theirs.projection_edges):
            raise FormatError(
                f"the circuit and the known one are of different graphs: {mine.config} with projection_edges="
                f"{mine.projection_edges}, {theirs.config} with projection_edges={theirs.projection_edges}"
            )
        cut, kept = circuit.method.get("threshold"), _nodes(circuit)
        edges.append((cut, len(circuit), sum(edge in truth.edges for edge in circuit)))
        nodes.append((cut, len(kept), len(kept & truth.nodes)))
    n_true = len(truth.edges), len(truth.nodes)
    return Grade(truth, Curve.of_counts(edges, n_edges, n_true[0]), Curve.of_counts(nodes, n_nodes, n_true[1]))


def _nodes(circuit: Circuit) -> set[str]:
    return {circuit.graph.node_of(name) for edge in circuit for name in edge}


def _scores(
    found: Mapping[Edge, float], graph: Graph, absolute: bool
) -> tuple[dict[Hashable, float], dict[Hashable, float]]:
    """Return the scores of the edges and, as the best of its edges, of each node."""
    edges: dict[Hashable, float] = {}
    nodes: dict[Hashable, float] = {}
    for edge, score in found.items():
        if edge not in graph:
            raise FormatError(f"the scored edge {edge} does not exist in the known circuit's graph")
        if math.isnan(score):
            raise FormatError(f"the score of {edge} is not a number")
        edges[edge] = abs(score) if absolute else score
        for node in map(graph.node_of, edge):
            nodes[node] = max(nodes.get(node, -math.inf), edges[edge])
    return edges, nodes


def _ranked(scores: Mapping[Hashable, float], true: frozenset[Any], total: int) -> Curve:
    """Make the curve of a ranking, the best first, with a cut for each different score."""
    counts, kept, right = [], 0, 0
    for score, some in groupby(sorted(scores, key=lambda name: -scores[name]), key=scores.__getitem__):
        members = list(some)
        kept, right = kept + len(members), right + sum(name in true for name in members)
        counts.append((score, kept, right))
    return Curve.of_counts(counts, total, len(true))


@dataclass(frozen=True)
class Graded:
    """What was found, against one known circuit.

    Attributes
    ----------
    label : str
        `derived`, `published`, `published_resample` or `file`.
    truth : Truth
    circuits : mapping of str to Circuit
    points : mapping of str to Grade
        Each circuit by its name.
    curve : Grade
        Over all circuits, if there are several; otherwise over the scores of the one circuit.
    cut_by : str
        Which of them: `circuits` or `scores`. `circuits` too for a single circuit without scores.
    random : mapping of str to mapping
        By the circuit's name, the mean rates of random circuits of its size, if there are any.
    """

    label: str
    truth: Truth
    circuits: Mapping[str, Circuit]
    points: Mapping[str, Grade]
    curve: Grade
    cut_by: str
    random: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def missed(self, name: str) -> list[str]:
        """Return the edges of the truth that a circuit lacks."""
        return [str(edge) for edge in self.truth.graph if edge in self.truth.edges and edge not in self.circuits[name]]

    def extra(self, name: str) -> list[str]:
        """Return the edges of a circuit that the truth lacks."""
        return [str(edge) for edge in self.circuits[name] if edge not in self.truth.edges]

    def as_dict(self) -> dict[str, Any]:
        each: dict[str, dict[str, Any]] = {
            name: {**one.rates(), "missed_edges": self.missed(name), "extra_edges": self.extra(name)}
            for name, one in self.points.items()
        }
        for name, rates in self.random.items():
            each[name]["random"] = dict(rates)
        turns = (replace(curve, points=curve.turns()) for curve in self.curve.curves.values())
        curve = Grade(self.truth, *turns).as_dict()
        return {"label": self.label, "cut_by": self.cut_by, "circuits": each, "curve": curve}


def grade_all(
    circuits: Mapping[str, Circuit],
    truths: Mapping[str, Truth],
    absolute: bool = False,
    randoms: Mapping[str, Sequence[Circuit]] | None = None,
) -> list[Graded]:
    """Grade circuits of one graph against known circuits of it.

    One circuit with scores (`tested`) gives a curve over them; edges without a score have 0, as in MIB's files. Several
    circuits, of a sweep, give a curve over the circuits.

    Parameters
    ----------
    circuits : mapping of str to Circuit
    truths : mapping of str to Truth
    absolute : bool
        Rank scores by their size.
    randoms : mapping of str to sequence of Circuit, optional
        By the circuit's name, random circuits to compare it with.

    Raises
    ------
    FormatError
        Circuits of another graph than the truth's.
    ConfigError
        A truth without edges.
    """
    results = []
    for label, truth in truths.items():
        points = {name: grade(circuit, truth) for name, circuit in circuits.items()}
        found: Any = list(circuits.values())
        cut_by = "circuits"
        if len(found) == 1 and found[0].tested:
            found = {edge: found[0].tested.get(edge, 0.0) for edge in truth.graph}
            cut_by = "scores"
        random: dict[str, dict[str, float]] = {}
        for name, rivals in (randoms or {}).items():
            rates = [grade(one, truth).rates() for one in rivals]
            random |= {name: {key: fmean(one[key] for one in rates) for key in rates[0]}} if rates else {}
        results.append(Graded(label, truth, circuits, points, grade(found, truth, absolute), cut_by, random))
    return results


@dataclass(frozen=True)
class GradesPart(Part):
    """The circuits against every known circuit of the task.

    Attributes
    ----------
    task : str
    graded : list of Graded
    absent : list of str
        Why other known circuits are missing.
    """

    name = "grades"
    task: str
    graded: list[Graded]
    absent: list[str]

    def document(self) -> object:
        return {"against": [result.as_dict() for result in self.graded], "absent": self.absent}

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        for result in self.graded:
            for name, one in result.points.items():
                rows += [(name, result.label, key, value) for key, value in one.rates().items()]
                rows += [(name, result.label, f"{key}, random", v) for key, v in result.random.get(name, {}).items()]
            what = next(iter(result.circuits)) if len(result.circuits) == 1 else "all"
            rows += [(what, result.label, key, value) for key, value in result.curve.areas().items()]
        return rows

    def summary(self) -> dict[str, object]:
        numbers: dict[str, float] = {}
        for result in self.graded:
            for one in result.points.values() if len(result.circuits) == 1 else ():
                numbers |= {f"{result.label}_{key}": value for key, value in one.rates().items()}
            numbers |= {f"{result.label}_{key}": value for key, value in result.curve.areas().items()}
        return {**numbers}


def grades_of_circuits(
    experiment: Experiment,
    circuits: Mapping[str, Circuit],
    randoms: Mapping[str, Sequence[Circuit]],
    absolute: bool = False,
    own: str | Path | None = None,
) -> GradesPart:
    """Grade the circuits, or the scores of a single one, against every known circuit.

    Parameters
    ----------
    experiment : Experiment
    circuits : mapping of str to Circuit
    randoms : mapping of str to sequence of Circuit
        By the circuit's name, random circuits of its size.
    absolute : bool
        Rank scores by their size.
    own : str or Path, optional
        A circuit file of the user's, taken for true too.
    """
    projections = any(circuit.graph.projection_edges for circuit in circuits.values())
    truths, absent = known_circuits(experiment, projections, own)
    graded = grade_all(circuits, truths, absolute, randoms)
    return GradesPart(experiment.task.name, graded, absent)
