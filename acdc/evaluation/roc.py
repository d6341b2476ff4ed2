"""How well a circuit, a sweep of circuits or a list of scores agrees with a known circuit, over edges and over nodes.

A circuit gives one point: its share of the wrong edges (false-positive rate) against its share of the right ones
(true-positive rate). A sweep over thresholds gives one each; scores give one for every place where the ranking can be
cut. The area under them is computed by a named rule, always with the points (0, 0) and (1, 1) of the empty and the
whole graph:

`pessimistic`: Conmy et al. 2023 (`pessimistic_auc` in the original's code). Between two points the curve is no better
    than the worse of them: over the points sorted by (fpr, tpr), Σ (1 − fpr of the later)(tpr later − tpr earlier).
`trapezoid`: the usual one; neighbouring points are joined by straight lines.

As in the original, a point is left out if another has fewer false positives and more true positives.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import ConfigError, FormatError
from acdc.evaluation.ground_truth import Truth
from acdc.graph import Edge, node_of

RULES = ("pessimistic", "trapezoid")
MOST_MARKED = 60  # points of a curve that are drawn as dots


@dataclass(frozen=True)
class Point:
    """One set of edges (or nodes) against the truth.

    `cut`: the threshold of the run (None if it had none), or the least score kept. `precision` is 1 for an empty set.
    """

    cut: float | None
    kept: int
    right: int
    precision: float
    recall: float
    false_positive_rate: float


@dataclass(frozen=True)
class Curve:
    """Points in the order they were given. `total`: edges (or nodes) of the graph; `true`: of the truth."""

    points: tuple[Point, ...]
    total: int
    true: int

    def turns(self) -> tuple[Point, ...]:
        """The points of a ranking without those, of which it has many, in the middle of a straight run.

        The areas do not depend on them. Circuits of a sweep, which need not lie on a rising curve, are all kept.
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
        """(fpr, tpr) of the points that count, sorted, with both ends."""
        every = sorted({(0.0, 0.0), (1.0, 1.0)} | {(p.false_positive_rate, p.recall) for p in self.points})
        corners: list[tuple[float, float]] = []
        best = 0.0  # of the points with fewer false positives
        for _, column in groupby(every, key=lambda point: point[0]):
            corners += (some := [point for point in column if point[1] >= best])
            best = max([best, *(y for _, y in some)])
        return corners

    def auc(self, rule: str = "pessimistic") -> float:
        """The area under the curve by one of `RULES`."""
        if rule not in RULES:
            raise ConfigError(f"the rule {rule!r} for the area is not known: choose one of {', '.join(RULES)}")
        steps = pairwise(self.corners())
        if rule == "pessimistic":
            return math.fsum((1 - x1) * (y1 - y0) for (_, y0), (x1, y1) in steps)
        return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in steps)


@dataclass(frozen=True)
class Grade:
    """Agreement over edges and over nodes. A node counts as kept if a kept edge begins or ends at it."""

    truth: Truth
    edges: Curve
    nodes: Curve

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file: where the truth is from, every point, and the areas by both rules."""
        return {
            "truth": {"name": self.truth.name, "kind": self.truth.kind, "sources": list(self.truth.sources)},
            **{
                what: {
                    "total": curve.total,
                    "true": curve.true,
                    "auc": {rule: curve.auc(rule) for rule in RULES},
                    "points": [asdict(point) for point in curve.points],
                }
                for what, curve in (("edges", self.edges), ("nodes", self.nodes))
            },
        }


def grade(found: Circuit | Sequence[Circuit] | Mapping[Edge, float], truth: Truth, absolute: bool = False) -> Grade:
    """Hold what was found against a known circuit.

    Parameters
    ----------
    found: a circuit, several circuits (a sweep over thresholds), or a score for edges; edges without a score come last.
    absolute: rank scores by their size, whatever their sign.

    Raises
    ------
    ConfigError: a truth without edges. FormatError: an edge or a circuit of another graph than the truth's.
    """
    if not truth.edges:
        raise ConfigError(f"the known circuit {truth.name} has no edges here, so nothing can be held against it")
    if isinstance(found, Mapping):
        cuts = _ranked(found, truth, absolute)
    else:
        cuts = []
        for circuit in [found] if isinstance(found, Circuit) else found:
            mine, theirs = circuit.graph, truth.graph
            if (mine.config, mine.projection_edges) != (theirs.config, theirs.projection_edges):
                raise FormatError(
                    f"the circuit and the known one are of different graphs: {mine.config} with projection_edges="
                    f"{mine.projection_edges}, {theirs.config} with projection_edges={theirs.projection_edges}"
                )
            cuts.append(_Cut(circuit.method.get("threshold"), list(circuit), add=False))
    nodes = [_Cut(cut.at, _nodes(cut.members), cut.add) for cut in cuts]
    return Grade(
        truth,
        _curve(cuts, truth.edges, len(truth.graph)),
        _curve(nodes, truth.nodes, len(truth.graph.senders) + 1),
    )


@dataclass(frozen=True)
class _Cut:
    """A set of edges or nodes: `members`, with those of the cut before if `add`."""

    at: float | None
    members: Sequence[Hashable]
    add: bool


def _curve(cuts: Sequence[_Cut], true: frozenset[Any], total: int) -> Curve:
    points = []
    kept: set[Hashable] = set()
    right = 0
    for cut in cuts:
        if not cut.add:
            kept, right = set(), 0
        new = set(cut.members) - kept
        kept |= new
        right += len(new & true)
        wrong, all_wrong = len(kept) - right, total - len(true)
        points.append(
            Point(
                cut=cut.at,
                kept=len(kept),
                right=right,
                precision=right / len(kept) if kept else 1.0,
                recall=right / len(true),
                false_positive_rate=wrong / all_wrong if all_wrong else 0.0,
            )
        )
    return Curve(tuple(points), total, len(true))


def _nodes(edges: Sequence[Any]) -> list[str]:
    return [node_of(name) for edge in edges for name in edge]


def _ranked(scores: Mapping[Edge, float], truth: Truth, absolute: bool) -> list[_Cut]:
    """The best edges first, a cut for each different score; equal scores go together."""
    for edge, score in scores.items():
        if edge not in truth.graph:
            raise FormatError(f"the scored edge {edge} does not exist in the known circuit's graph")
        if math.isnan(score):
            raise FormatError(f"the score of {edge} is not a number")
    ranked = sorted(((abs(s) if absolute else s, edge) for edge, s in scores.items()), key=lambda item: -item[0])
    return [
        _Cut(score, [edge for _, edge in some], add=True) for score, some in groupby(ranked, key=lambda item: item[0])
    ]


def plot_roc(curves: Mapping[str, Curve], path: str | Path, rule: str = "pessimistic", title: str = "") -> Path:
    """Draw ROC curves with their areas; the suffix of the path says how: .svg, .png or .pdf.

    `pessimistic` curves are stairs, `trapezoid` ones straight lines. A curve that lies under another is the wider one.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, linestyle=":")
    for i, (name, curve) in enumerate(curves.items()):
        curve = replace(curve, points=curve.turns())
        xs, ys = zip(*curve.corners(), strict=True)
        (line,) = axes.plot(
            xs,
            ys,
            linewidth=1.6 + 2 * (len(curves) - 1 - i),
            drawstyle="steps-post" if rule == "pessimistic" else "default",
            label=f"{name}: {', '.join(f'{curve.auc(r):.3f}' for r in RULES)}",
        )
        if len(curve.points) <= MOST_MARKED:
            real = [(p.false_positive_rate, p.recall) for p in curve.points]
            axes.plot(*zip(*real, strict=True), ".", color=line.get_color())
    axes.set(
        xlabel="false-positive rate", ylabel="true-positive rate", title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    figure.legend(loc="outside lower center", title=f"area: {', '.join(RULES)}", fontsize="small")
    figure.savefig(path)
    return Path(path)
