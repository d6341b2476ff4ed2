"""Pictures of path patching: effects by layer and head, and the graph of who feeds whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import Edge, Graph, parse_node
from acdc.patching.path_result import PatchedPaths, PathMap
from acdc.report.patch.sites import KEPT_OR_LOST
from acdc.report.picture import render_all
from acdc.report.style import new_figure, save_figure

MOST_PANELS = 12  # of a picture; of more receivers the most important are shown
MOST_NUMBERED = 17  # columns whose cells have room for a number
BESIDE = 4  # panels in a row

Cells = Mapping[str, float]  # node or port → effect


def draw_paths(one: PathMap, metric: str, folder: Path) -> list[Path]:
    """Effects as paths_DIRECTION.svg and .png, a panel a receiver: layers upward, heads and the MLP to the right.

    Blue-white-red with white at 0, grey where there is no path. Where all senders went together, one panel of
    receivers. Nothing is drawn of a single path.
    """
    panels, note = _panels(one)
    if not panels:
        return []
    grids = {title: _grid(cells, panels.values()) for title, cells in panels.items()}
    rows, columns, _ = next(iter(grids.values()))
    beside = min(BESIDE if len(columns) <= MOST_NUMBERED else 1, len(grids))
    down = -(-len(grids) // beside)
    numbered = len(columns) <= MOST_NUMBERED
    each = 1.0 + (0.36 if numbered else 0.15) * len(columns), 0.75 + 0.25 * len(rows)
    figure = new_figure((max(4.4, beside * each[0] + 1.0), 0.5 + max(1.6, down * each[1])))
    all_axes = figure.subplots(down, beside, squeeze=False)
    limit = max(float(np.nanmax(np.abs(values))) for *_, values in grids.values()) or 1.0
    digits = 2 if limit >= 0.1 else 3
    for axes, (title, (_, _, values)) in zip(all_axes.flat, grids.items(), strict=False):
        picture = axes.imshow(np.ma.masked_invalid(values), **_COLOURS, vmin=-limit, vmax=limit)
        axes.set_facecolor("0.86")
        axes.set_title(title, fontsize=8, loc="left", parse_math=False)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=0 if numbered else 90)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (y, x), value in np.ndenumerate(values) if numbered else ():
            if not np.isnan(value):
                shown = abs(value) >= 0.5 * 10**-digits
                colour = "white" if abs(value) > 0.6 * limit else "0.15" if shown else "0.6"
                text = f"{value:.{digits}f}".replace("-", "−") if shown else "0"
                axes.text(x, y, text, ha="center", va="center", fontsize=6, color=colour)
    for axes in all_axes.flat[len(grids) :]:
        axes.set_axis_off()
    bar = figure.colorbar(picture, ax=all_axes, pad=0.02)
    bar.set_label(f"{KEPT_OR_LOST[one.direction]} (0: no effect)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=7)
    level = f", level {one.level}" * bool(one.level)
    figure.suptitle(f"{one.direction}{level}: {note} ({metric})", fontsize=9, x=0.01, ha="left", parse_math=False)
    return save_figure(figure, folder, f"paths_{one.name}")


_COLOURS: dict[str, Any] = {"cmap": "RdBu_r", "aspect": "auto", "origin": "lower"}


def _panels(one: PathMap) -> tuple[dict[str, dict[str, float]], str]:
    """Titles with the effects that they stand over, and what the picture shows."""
    effects = one.effects()
    senders, receivers = (list(dict.fromkeys(getattr(p, k).name for p in effects)) for k in ("senders", "receivers"))
    if len(senders) > 1:
        panels = {f"→ {name}": {p.senders.name: e for p, e in effects.items() if p.receivers.name == name}
                  for name in receivers}  # fmt: skip
        note = "effect by sender"
        if len(panels) > MOST_PANELS:
            by_size = sorted(panels, key=lambda title: -max(map(abs, panels[title].values())))[:MOST_PANELS]
            note += f", of the {MOST_PANELS} of {len(panels)} receivers with the strongest"
            panels = {title: cells for title, cells in panels.items() if title in by_size}
        return panels, note
    if len(receivers) > 1:
        title = senders[0] if len(senders[0]) <= 40 else f"{senders[0][:37]}…"
        return {f"{title} →": {p.receivers.name: e for p, e in effects.items()}}, "effect by receiver"
    return {}, ""


def _grid(cells: Cells, panels: Iterable[Cells]) -> tuple[list[str], list[str], np.ndarray]:
    """Labels of rows and columns, the same in all panels, and the values, NaN where there is no path."""
    names = list(dict.fromkeys(name for panel in panels for name in panel))
    nodes = {name: parse_node(name) for name in names}
    layers = [node.layer for node in nodes.values() if node.kind in ("head", "mlp")]
    rows = [name for name in names if nodes[name].kind == "input"]
    n_inputs = len(rows)
    rows += [str(layer) for layer in range(max(layers, default=-1) + 1)]
    rows += ["logits"] * ("logits" in nodes)
    ports = [port for port in ("", "q", "k", "v") if any(n.kind == "head" and n.letter == port for n in nodes.values())]
    heads = range(max((n.unit for n in nodes.values() if n.kind == "head"), default=-1) + 1)
    columns = [f"{port}{head}" if port else f"h{head}" for port in ports for head in heads]
    columns += ["mlp"] * (not columns or any(n.kind == "mlp" for n in nodes.values()))
    values = np.full((len(rows), len(columns)), np.nan)
    for name, effect in cells.items():
        node = nodes[name]
        if node.kind in ("input", "logits"):
            values[rows.index(name), 0] = effect
        else:
            column = "mlp" if node.kind == "mlp" else f"{node.letter}{node.unit}" if node.letter else f"h{node.unit}"
            values[n_inputs + node.layer, columns.index(column)] = effect
    return rows, columns, values


def draw_levels(patched: PatchedPaths, graph: Graph, folder: Path) -> tuple[list[Path], str]:
    """Who feeds whom, a picture a direction, levels_DIRECTION.svg and .png: every path whose |effect| reaches the
    limit. Also one line on what could not be drawn."""
    written: list[Path] = []
    warnings = ""
    for direction, maps in patched.directions():
        edges = {
            Edge(sender, path.receivers.name): effect
            for one in maps
            for path, effect in one.effects().items()
            if abs(effect) >= patched.limit
            for sender in path.senders.members
        }
        title = f"Who feeds {patched.root}, {len(maps)} levels backward · {direction} · |effect| ≥ {patched.limit:g}"
        targets = [folder / f"levels_{direction}{suffix}" for suffix in (".svg", ".png")]
        drawn, warning = render_all(Circuit(graph, edges), targets, title=title, on_path=False)
        written, warnings = [*written, *drawn], warnings or warning
    return written, warnings
