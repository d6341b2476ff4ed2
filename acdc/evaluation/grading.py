"""Circuits and scores against every known circuit of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import ConfigError
from acdc.evaluation.derive import derive_truth
from acdc.evaluation.ground_truth import Truth, load_truth, names, published
from acdc.evaluation.roc import RULES, Grade, grade
from acdc.experiment import Experiment
from acdc.graph import Graph, node_of


@dataclass(frozen=True)
class Graded:
    """What was found, against one known circuit.

    Attributes
    ----------
    label: `derived`, `published`, `published_resample` or `file`.
    points: by the circuit's name, its edges and nodes against the truth's. random: the same as mean rates of random
        circuits of its size, where there are any.
    curve: over all circuits, where there are several; else over the scores of the one. cut_by: which of them,
        `circuits` or `scores`; `circuits` too for a single circuit without scores.
    """

    label: str
    truth: Truth
    circuits: Mapping[str, Circuit]
    points: Mapping[str, Grade]
    curve: Grade
    cut_by: str
    random: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def missed(self, name: str) -> list[str]:
        """Edges of the truth that a circuit lacks."""
        return [str(edge) for edge in self.truth.graph if edge in self.truth.edges and edge not in self.circuits[name]]

    def extra(self, name: str) -> list[str]:
        """Edges of a circuit that the truth lacks."""
        return [str(edge) for edge in self.circuits[name] if edge not in self.truth.edges]

    def missed_nodes(self, name: str) -> list[str]:
        return sorted(self.truth.nodes - {node_of(end) for edge in self.circuits[name] for end in edge})

    def areas(self) -> dict[str, float]:
        """The areas under the curve: `edges_auc_pessimistic` and so on."""
        curves = {"edges": self.curve.edges, "nodes": self.curve.nodes}
        return {f"{of}_auc_{rule}": curve.auc(rule) for of, curve in curves.items() for rule in RULES}

    def rates(self, name: str) -> dict[str, float]:
        """Precision, recall and false-positive rate of a circuit, over edges and over nodes."""
        return rates_of(self.points[name])

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        each: dict[str, dict[str, Any]] = {
            name: {**self.rates(name), "missed_edges": self.missed(name), "extra_edges": self.extra(name)}
            for name in self.points
        }
        for name, rates in self.random.items():
            each[name]["random"] = dict(rates)
        turns = (replace(curve, points=curve.turns()) for curve in (self.curve.edges, self.curve.nodes))
        curve = Grade(self.truth, *turns).as_dict()
        return {"label": self.label, "cut_by": self.cut_by, "circuits": each, "curve": curve}


def rates_of(graded: Grade) -> dict[str, float]:
    """Precision, recall and false-positive rate of one circuit, over edges and over nodes."""
    rates: dict[str, float] = {}
    for of, curve in (("edges", graded.edges), ("nodes", graded.nodes)):
        (point,) = curve.points
        rates |= {f"{of}_precision": point.precision, f"{of}_recall": point.recall}
        rates[f"{of}_false_positive_rate"] = point.false_positive_rate
    return rates


def known_circuits(
    experiment: Experiment, projection_edges: bool = False, own: str | Path | None = None
) -> tuple[dict[str, Truth], list[str]]:
    """Every known circuit of the experiment's task and model by its label, and why others are not there.

    Parameters
    ----------
    own: a circuit file of the user's to be taken for true, besides.
    """
    task, graph = experiment.task.name, Graph(experiment.model.config, projection_edges)
    truths: dict[str, Truth] = {}
    absent: list[str] = []
    if own is not None:
        truths["file"] = load_truth(own, graph)
    try:
        truths["derived"] = derive_truth(experiment, projection_edges)
    except ConfigError as error:
        absent.append(str(error))
    # The resample set is one of corrupted ablation and no other; that of zero ablation stands beside it.
    resample = f"{task}_resample" if experiment.ablation.name == "corrupted" else ""
    wanted = {"published": task, "published_resample": resample}
    wanted = {label: name for label, name in wanted.items() if name in names()}
    for label, name in wanted.items():
        try:
            truths[label] = published(name, graph)
        except ConfigError as error:
            absent.append(str(error))
    if not wanted:
        absent.append(f"no circuit is published for the task {task}")
    absent += [f"the known circuit {label} has no edges here" for label, truth in truths.items() if not truth.edges]
    return {label: truth for label, truth in truths.items() if truth.edges}, absent


def grade_all(
    circuits: Mapping[str, Circuit],
    truths: Mapping[str, Truth],
    absolute: bool = False,
    randoms: Mapping[str, Sequence[Circuit]] | None = None,
) -> list[Graded]:
    """Grade circuits of one graph against known circuits of it.

    One circuit with scores (`tested`) gives a curve over them: edges without a score have 0, as in MIB's files. Several
    circuits, of a sweep, give a curve over the circuits.

    Parameters
    ----------
    absolute: rank scores by their size. randoms: random circuits to compare each circuit with.

    Raises
    ------
    FormatError: circuits of another graph than the truth's. ConfigError: a truth without edges.
    """
    results = []
    for label, truth in truths.items():
        points = {name: grade(circuit, truth) for name, circuit in circuits.items()}
        found: Any = list(circuits.values())
        cut_by = "circuits"
        if len(found) == 1 and found[0].tested:
            found = {edge: found[0].tested.get(edge, 0.0) for edge in truth.graph}
            cut_by = "scores"
        rivals = {name: _means([rates_of(grade(c, truth)) for c in some]) for name, some in (randoms or {}).items()}
        curve = grade(found, truth, absolute)
        results.append(Graded(label, truth, circuits, points, curve, cut_by, {k: v for k, v in rivals.items() if v}))
    return results


def _means(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: fmean(one[key] for one in rates) for key in rates[0]} if rates else {}
