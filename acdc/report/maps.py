"""Pictures of a patching sweep: importance maps, and the four quadrants of noising and denoising."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from acdc.files import write_atomically
from acdc.patching.result import CLASSES, Patched, SiteMap
from acdc.patching.sites import Grid, Site

MOST_ROWS = 60  # of a map; of more sites the most important are shown
MOST_LABELLED = 24  # columns whose cells have room for a number
MOST_TICKS = 60
STEPS = [step * 10**power for power in range(9) for step in (1, 2, 5)]  # between ticks
MOST_NAMED = 12  # points of a scatter plot with their names

KEPT_OR_LOST = {"denoise": "recovery", "noise": "1 − recovery"}
COLOURS = {
    "necessary_and_sufficient": "#2563ab",
    "sufficient_redundant": "#3f9c79",
    "necessary_only": "#c07a1e",
    "irrelevant": "#8a929c",
}


def draw_map(one: SiteMap, metric: str, folder: Path, estimated: bool = False) -> list[Path]:
    """An importance map as SITE_DIRECTION.svg and .png; white is no effect, grey was left out. `estimated`: say that
    the values are estimates."""
    return draw_grid(
        one.grid,
        one.importance,
        folder,
        f"{one.grid.kind.name}_{one.direction}",
        f"{'estimated ' * estimated}{KEPT_OR_LOST[one.direction]} (0: no effect)",
        f"{one.grid.kind.name}, {one.direction}: {one.grid.kind.meaning} ({metric})",
    )


def draw_grid(grid: Grid, importance: Tensor, folder: Path, name: str, unit: str, title: str) -> list[Path]:
    """A map of the sites of a grid, `layer unit place`, as NAME.svg and .png.

    Sites by head or neuron have layers upward and heads to the right, by position tokens to the right; both together
    a row for each head.
    """
    values, rows, columns, names = _cells(grid, importance.numpy())
    return draw_heatmap(Heatmap(values, rows, columns, names, unit, title), folder, name)


@dataclass(frozen=True)
class Heatmap:
    """Cells `row column`, NaN where there is none; labels of rows and columns, and what these are (rows first); what
    the colours are."""

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    names: tuple[str, str]
    unit: str
    title: str


def draw_heatmap(one: Heatmap, folder: Path, name: str) -> list[Path]:
    """A heatmap as NAME.svg and .png: blue-white-red with white at 0, the first row at the bottom."""
    values = one.values
    height, width = values.shape
    numbered = width <= MOST_LABELLED and height <= MOST_ROWS
    longest, widest = (max((len(label) for label in labels), default=0) for labels in (one.columns, one.rows))
    beside = 1.9 + 0.06 * max(0, widest - 6)
    across = max(2.3, (0.48 if numbered else 0.16) * width)
    upright = longest * width > 14 * across
    size = (
        min(15.0, beside + across),
        min(22.0, max(2.4, 1.5 + 0.29 * height + (0.055 * longest if upright else 0))),
    )
    figure = new_figure(size)
    axes = figure.add_subplot()
    limit = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    limit = limit or 1.0
    picture = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    axes.set_facecolor("0.82")
    bar = figure.colorbar(picture, ax=axes, pad=0.02)
    bar.set_label(one.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=7)
    for axis, labels in ((axes.xaxis, one.columns), (axes.yaxis, one.rows)):
        step = next(n for n in STEPS if len(labels) <= n * MOST_TICKS)
        axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=8, parse_math=False)
    if upright:
        axes.tick_params(axis="x", labelrotation=90)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(one.names[1], fontsize=9)
    axes.set_ylabel(one.names[0], fontsize=9)
    axes.set_title(one.title, fontsize=9, loc="left", wrap=True)
    for (y, x), value in np.ndenumerate(values) if numbered else ():
        if np.isnan(value):
            continue
        colour = "white" if abs(value) > 0.6 * limit else "0.15" if abs(value) >= 0.005 else "0.6"
        text = f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    return save_figure(figure, folder, name)


def draw_classes(noise: SiteMap, denoise: SiteMap, patched: Patched, folder: Path) -> list[Path]:
    """Necessary against sufficient, a point a site, as SITE_classes.svg and .png; the limits make four quadrants."""
    kind = denoise.grid.kind.name
    classes = patched.classes()
    x, y = denoise.importance.flatten().tolist(), noise.importance.flatten().tolist()
    points = [point for point in zip(denoise.grid, x, y, strict=True) if point[0] in classes]
    figure = new_figure((6.4, 5.6))
    axes = figure.add_subplot()
    for name, colour in COLOURS.items():
        mine = [(a, b) for site, a, b in points if classes[site] == name]
        axes.scatter(
            [a for a, _ in mine], [b for _, b in mine], s=18, color=colour, alpha=0.8, label=f"{name} ({len(mine)})"
        )
    axes.margins(0.12)
    limits = patched.sufficient_from, patched.necessary_from
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left, right = min(left, limits[0] - 0.05), max(right, limits[0] + 0.05)
    bottom, top = min(bottom, limits[1] - 0.05), max(top, limits[1] + 0.05)
    for (necessary, sufficient), name in CLASSES.items():
        across = (limits[0], right) if sufficient else (left, limits[0])
        up = (limits[1], top) if necessary else (bottom, limits[1])
        axes.fill_between(across, *up, color=COLOURS[name], alpha=0.07, linewidth=0)
    axes.axvline(limits[0], color="0.4", linewidth=0.8, linestyle="--")
    axes.axhline(limits[1], color="0.4", linewidth=0.8, linestyle="--")
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_xlabel(f"sufficient: recovery when denoising (limit {limits[0]:g})", fontsize=9)
    axes.set_ylabel(f"necessary: 1 − recovery when noising (limit {limits[1]:g})", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_title(f"{kind}: is it necessary, is it enough? ({patched.metric})", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    name_points(axes, [point for point in points if classes[point[0]] != "irrelevant"])
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return save_figure(figure, folder, f"{kind}_classes")


def name_points(axes: Any, points: Sequence[tuple[Site, float, float]]) -> None:
    """Names beside the points furthest out, none upon another."""
    taken: list[tuple[float, float]] = []
    ordered = sorted(points, key=lambda point: -(point[1] ** 2 + point[2] ** 2))
    for site, x, y in ordered[: 2 * MOST_NAMED]:
        right, up = axes.transData.transform((x, y))
        if len(taken) < MOST_NAMED and all(abs(up - b) > 11 or abs(right - a) > 90 for a, b in taken):
            taken.append((right, up))
            near_edge = axes.transAxes.inverted().transform((right, up))[0] > 0.75
            style = {"xytext": (-5 if near_edge else 5, 3), "ha": "right" if near_edge else "left"}
            axes.annotate(str(site), (x, y), textcoords="offset points", fontsize=7, parse_math=False, **style)


def _cells(grid: Grid, importance: np.ndarray) -> tuple[np.ndarray, list[str], list[str], tuple[str, str]]:
    """Values `row column`, the labels of rows and columns, and what these are."""
    layers, places = [str(layer) for layer in grid.layers], [place.label for place in grid.places]
    if not grid.by.endswith("position"):
        return importance[:, :, 0], layers, [str(unit) for unit in grid.units], ("layer", grid.kind.units)
    if grid.by == "position":
        return importance[:, 0], layers, places, ("layer", "position")
    values = importance.reshape(-1, len(places))
    names = [f"{layer}.{grid.kind.units[0]}{unit}" for layer in grid.layers for unit in grid.units]
    what = f"{grid.kind.units} (layer.{grid.kind.units})"
    if len(values) > MOST_ROWS:
        most = np.sort(np.argsort(-np.nan_to_num(np.abs(values)).max(1), kind="stable")[:MOST_ROWS])
        what = f"the {MOST_ROWS} most important of {len(values):,} {grid.kind.units}s"
        values, names = values[most], [names[i] for i in most]
    return values, names, places, (what, "position")


def new_figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """The figure as SVG and PNG, the same bytes for the same figure."""
    import matplotlib

    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "acdc"}):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=metadata)
            paths.append(folder / f"{name}.{kind}")
            write_atomically(paths[-1], content.getvalue())
    return paths
