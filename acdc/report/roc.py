"""ROC curves against a known circuit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from acdc.evaluation.grading import RULES, Curve
from acdc.report.style import new_figure

MOST_MARKED = 60  # points of a curve that are drawn as dots


def draw_roc(
    curves: Mapping[str, Curve],
    title: str = "",
    rule: str = "pessimistic",
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """Draw ROC curves with their areas by both rules.

    A `pessimistic` curve is a stair, a `trapezoid` one consists of straight lines. Where curves lie on each other, the
    lower one is wider.

    Parameters
    ----------
    curves : mapping of str to Curve
        By label.
    title : str
    rule : str
    styles : mapping of str to mapping, optional
        By label, how a curve is drawn, as `Axes.plot` takes it.
    """
    figure = new_figure((5.2, 5.2 + 0.12 * len(curves)))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, linestyle=":")
    for i, (name, curve) in enumerate(curves.items()):
        curve = replace(curve, points=curve.turns())
        xs, ys = zip(*curve.corners(), strict=True)
        style = {**(styles or {}).get(name, {}), "linewidth": 1.2 + 0.5 * (len(curves) - i)}
        label = f"{name}: {', '.join(f'{curve.auc(r):.3f}' for r in RULES)}"
        stairs = "steps-post" if rule == "pessimistic" else "default"
        (line,) = axes.plot(xs, ys, drawstyle=stairs, label=label, **style)
        if curve.points and len(curve.points) <= MOST_MARKED and not styles:
            axes.plot(
                [p.false_positive_rate for p in curve.points],
                [p.recall for p in curve.points],
                ".",
                color=line.get_color(),
            )
    axes.set(
        xlabel="false-positive rate", ylabel="true-positive rate", title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    figure.legend(loc="outside lower center", ncols=1 if len(curves) < 5 else 2, title=f"area: {', '.join(RULES)}")
    return figure
