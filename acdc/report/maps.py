"""Heatmaps, and maps of the sites of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from acdc.patching.sites import Grid
from acdc.report.style import new_figure

MOST_ROWS = 60  # of a map; of more sites the most important are shown
MOST_LABELLED = 24  # columns whose cells have room for a number
MOST_TICKS = 60
STEPS = [step * 10**power for power in range(9) for step in (1, 2, 5)]  # between ticks
MOST_NAMED = 12  # points of a scatter plot with their names


def draw_grid(grid: Grid, importance: Tensor, unit: str, title: str) -> Figure:
    """Draw a map of the sites of a grid.

    Sites by head or neuron have layers upward and heads to the right; sites by position have tokens to the right;
    sites by both have a row for each head.

    Parameters
    ----------
    grid : Grid
    importance : torch.Tensor
        `layer unit place`.
    unit : str
        What the colours are.
    title : str
    """
    return draw_heatmap(Heatmap(*_cells(grid, importance.numpy()), unit, title))


@dataclass(frozen=True)
class Heatmap:
    """The cells of a heatmap and its labels.

    Attributes
    ----------
    values : numpy.ndarray
        `row column`; NaN where there is no cell.
    rows, columns : sequence of str
        Labels.
    names : tuple of str
        What the rows and what the columns are.
    unit : str
        What the colours are.
    title : str
    """

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    names: tuple[str, str]
    unit: str
    title: str


def draw_heatmap(one: Heatmap) -> Figure:
    """Draw a heatmap: blue, white at 0, red; the first row at the bottom."""
    height, width = one.values.shape
    numbered = width <= MOST_LABELLED and height <= MOST_ROWS
    longest, widest = (max((len(label) for label in labels), default=0) for labels in (one.columns, one.rows))
    across = max(2.3, (0.48 if numbered else 0.16) * width)
    upright = longest * width > 14 * across
    wide = 1.9 + 0.06 * max(0, widest - 6) + across
    high = max(2.4, 1.5 + 0.29 * height + (0.055 * longest if upright else 0))
    figure = new_figure((min(15.0, wide), min(22.0, high)))
    axes = figure.add_subplot()
    draw_cells(axes, one.values, numbered)
    bar = figure.colorbar(axes.images[0], ax=axes, pad=0.02)
    bar.set_label(one.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=7)
    for axis, labels in ((axes.xaxis, one.columns), (axes.yaxis, one.rows)):
        step = next(n for n in STEPS if len(labels) <= n * MOST_TICKS)
        axis.set_ticks(range(0, len(labels), step), labels[::step], parse_math=False)
    if upright:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set(xlabel=one.names[1], ylabel=one.names[0])
    axes.set_title(one.title, wrap=True)
    return figure


def draw_cells(
    axes: Axes,
    values: np.ndarray,
    numbered: bool,
    *,
    limit: float | None = None,
    digits: int = 2,
    errors: np.ndarray | None = None,
) -> None:
    """Draw cells in blue, white at 0 and red, the first row at the bottom; a cell without a value is grey.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    values : numpy.ndarray
        `row column`; NaN where there is no value.
    numbered : bool
        Whether the numbers stand in the cells.
    limit : float, optional
        The size of value that has the fullest colour; by default the largest.
    digits : int
        Decimals of the numbers.
    errors : numpy.ndarray, optional
        What stands behind ± under each number, `row column`.
    """
    limit = limit or float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    shown = np.ma.masked_invalid(values)
    axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    axes.set_facecolor("0.82")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    least = 0.5 * 10**-digits  # what would be shown as 0
    for (y, x), value in np.ndenumerate(values) if numbered else ():
        if not np.isfinite(value):
            continue
        colour = "white" if abs(value) > 0.6 * limit else "0.15" if abs(value) >= least else "0.6"
        text = f"{value:.{digits}f}".replace("-", "−") if abs(value) >= least else "0"
        if errors is not None and errors[y, x] >= least:
            text += f"\n±{errors[y, x]:.{digits}f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour, linespacing=1.1)


def name_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names `(name, x, y)` beside the points furthest out, none upon another."""
    taken: list[tuple[float, float]] = []
    ordered = sorted(points, key=lambda point: -(point[1] ** 2 + point[2] ** 2))
    for name, x, y in ordered[: 2 * MOST_NAMED]:
        right, up = axes.transData.transform((x, y))
        if len(taken) < MOST_NAMED and all(abs(up - b) > 11 or abs(right - a) > 90 for a, b in taken):
            taken.append((right, up))
            near_edge = axes.transAxes.inverted().transform((right, up))[0] > 0.75
            style: dict[str, Any] = {"xytext": (-5 if near_edge else 5, 3), "ha": "right" if near_edge else "left"}
            axes.annotate(name, (x, y), textcoords="offset points", fontsize=7, parse_math=False, **style)


def _cells(grid: Grid, importance: np.ndarray) -> tuple[np.ndarray, list[str], list[str], tuple[str, str]]:
    """Values `row column`, the labels of rows and columns, and what these are."""
    layers, places = [str(layer) for layer in grid.layers], [place.label for place in grid.places]
    if not grid.by.endswith("position"):
        return importance[:, :, 0], layers, [str(unit) for unit in grid.units], ("layer", grid.kind.units)
    if grid.by == "position":
        return importance[:, 0], layers, places, ("layer", "position")
    values = importance.reshape(-1, len(places))
    of_layer = {"head": "a", "neuron": "m"}[grid.kind.units]
    names = [f"{of_layer}{layer}.{grid.kind.units[0]}{unit}" for layer in grid.layers for unit in grid.units]
    what = grid.kind.units
    if len(values) > MOST_ROWS:
        most = np.sort(np.argsort(-np.nan_to_num(np.abs(values)).max(1), kind="stable")[:MOST_ROWS])
        what = f"the {MOST_ROWS} most important of {len(values):,} {grid.kind.units}s"
        values, names = values[most], [names[i] for i in most]
    return values, names, places, (what, "position")
