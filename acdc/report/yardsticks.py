"""Plots of an evaluation: knock-outs, what edges are worth, recovery over sizes of circuits. Each as .svg and .png."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.evaluation.areas import Areas, Point
from acdc.evaluation.completeness import Completeness
from acdc.evaluation.minimality import Minimality
from acdc.files import write_atomically

BLUE, ORANGE, GREY = "#2563ab", "#b4532a", "#8a929c"


def draw_completeness(
    circuit: Completeness, randoms: Sequence[Completeness], metric: str, stem: Path
) -> dict[str, Path]:
    """The metric of the circuit against that of the model, a dot for each knock-out; on the diagonal they are alike."""
    figure, axes = _figure(5.2, 5.0)
    groups = [("random circuits", GREY, [k for one in randoms for k in one.knockouts])] if randoms else []
    groups.append(("the circuit", BLUE, list(circuit.knockouts)))
    values = [value for _, _, knockouts in groups for k in knockouts for value in (k.model, k.circuit)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * ((high - low) or 1.0)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.75", linewidth=1, linestyle=":")
    for label, colour, knockouts in groups:
        x, y = [k.model for k in knockouts], [k.circuit for k in knockouts]
        axes.scatter(x, y, s=16, color=colour, alpha=0.7, linewidths=0, label=label)
    axes.set(xlabel=f"{metric}, model without K", ylabel=f"{metric}, circuit without K", xlim=limits, ylim=limits)
    axes.legend(fontsize="small", frameon=False)
    return _save(figure, stem)


def draw_minimality(circuit: Circuit, worth: Minimality, threshold: float | None, stem: Path) -> dict[str, Path]:
    """What each edge is worth inside the circuit against what it was when it was kept; dotted: the threshold."""
    figure, axes = _figure(5.2, 5.0)
    x, y = [circuit.edges[edge] for edge in worth.worth], list(worth.worth.values())
    below = [threshold is not None and value < threshold for value in y]
    axes.scatter(x, y, s=16, c=[ORANGE if low else BLUE for low in below], alpha=0.75, linewidths=0)
    linear = abs(threshold) if threshold else max((abs(v) for v in [*x, *y]), default=1.0) / 100 or 1.0
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=linear)
    ends = [min([*x, *y, 0.0]), max([*x, *y, linear])]
    axes.plot(ends, ends, color="0.75", linewidth=1, linestyle=":")
    if threshold is not None:
        axes.axhline(threshold, color=ORANGE, linewidth=1, linestyle=":", label=f"τ = {threshold:g}")
        axes.legend(fontsize="small", frameon=False)
    axes.set(xlabel="effect or score in the circuit file", ylabel="worth inside the finished circuit")
    return _save(figure, stem)


def draw_areas(areas: Areas, randoms: Sequence[Areas], stem: Path) -> dict[str, Path]:
    """Recovery f over the share of the edges, by both rankings, with the range of random scores."""
    figure, axes = _figure(6.4, 4.4)
    axes.axhline(1, color="0.75", linewidth=1, linestyle=":")
    if randoms:
        columns = list(zip(*(one.signed for one in randoms), strict=True))
        x = [column[0].fraction for column in columns]
        low, high = ([end(point.f for point in column) for column in columns] for end in (min, max))
        axes.fill_between(x, low, high, color=GREY, alpha=0.35, linewidth=0, label="random scores, their range")
    lines: Mapping[str, tuple[list[Point], str, float]] = {
        f"by score: CPR {areas.cpr:.3f}": (areas.signed, BLUE, 3.2),
        f"by size: CMD {areas.cmd:.3f}": (areas.absolute, ORANGE, 1.6),
    }
    for label, (points, colour, width) in lines.items():
        xs, ys = [p.fraction for p in points], [p.f for p in points]
        axes.plot(xs, ys, marker="o", markersize=4, color=colour, linewidth=width, label=label)
    axes.set_xscale("log")
    axes.set(xlabel="share of the edges", ylabel="recovery f")
    axes.legend(fontsize="small", frameon=False)
    return _save(figure, stem)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, stem: Path) -> dict[str, Path]:
    """The figure beside `stem` as .svg and .png, by file name."""
    files = {}
    for kind in ("svg", "png"):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=150)
        path = stem.with_name(f"{stem.name}.{kind}")
        write_atomically(path, data.getvalue())
        files[path.name] = path
    return files
