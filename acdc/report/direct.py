"""Direct logit attribution for people: tables, and a picture for each way the logit difference is taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from acdc.patching.direct import Direct, Shares
from acdc.report.grades import image
from acdc.report.html import Section, table
from acdc.report.numbers import number
from acdc.report.style import new_figure, save_figure

MOST_BARS = 40  # of a picture; of more parts the largest are shown
MOST_NUMBERED = 16  # heads of a layer whose cells have room for a number
MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 100
COLOURS = {"clean": "#2563ab", "corrupted": "#c07a1e"}
MEANINGS = {
    "layer": "whole layers: attention, MLP and their biases",
    "sublayer": "attention and MLP of each layer",
    "head": "heads and MLPs",
    "neuron": "heads and neurons",
}


def shares_table(found: Direct) -> Table:
    """The largest shares of each way, on clean and corrupted prompts."""
    shown = Table(title="The largest direct shares of the metric", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(_HEADER):
        shown.add_column(Text(name), justify="right" if i > 1 else "left")
    for one in found.shares:
        for row in _rows(one, MOST_ON_CONSOLE):
            shown.add_row(*map(Text, row))
    return shown


def shares_section(found: Direct, one: Shares, pictures: Sequence[Path]) -> Section:
    """One way: its picture and its largest parts."""
    sums = f"{number(float(found.clean.mean()))} on clean and {number(float(found.corrupted.mean()))} on corrupted"
    rows = [[escape(cell) for cell in row] for row in _rows(one, MOST_ON_PAGE)]
    html = (
        f"<p>By {escape(MEANINGS[one.by])}. All {len(one.parts):,} parts sum to {sums} prompts.</p>"
        + "".join(image(path, f"direct shares by {one.by}") for path in pictures)
        + f"<details><summary>{len(rows)} of {len(one.parts):,} parts</summary>"
        + table(_HEADER, rows, numeric=range(2, 5))
        + "</details>"
    )
    return Section(f"By {one.by}", html)


def draw_shares(one: Shares, metric: str, folder: Path) -> list[Path]:
    """The shares as direct_BY.svg and .png: bars for the parts, clean and corrupted; by layer also the running sum,
    by head a map of the heads beside."""
    if one.by == "head":
        return _draw_heads(one, metric, folder)
    chosen, title = _largest(one, list(range(len(one.parts))), "parts")
    figure = new_figure((7.0, 1.4 + 0.24 * len(chosen)))
    axes = figure.add_subplot()
    _bars(axes, one, chosen)
    if one.by == "layer":
        sums = one.clean.mean(-1).cumsum(0).tolist()
        axes.plot(
            sums, range(len(sums)), color="0.35", marker="o", markersize=3, linewidth=1, label="sum so far, clean"
        )
        axes.legend(fontsize=8, frameon=False)
    axes.set_title(f"direct shares by {one.by}{title} ({metric})", fontsize=9, loc="left")
    return save_figure(figure, folder, f"direct_{one.by}")


def _draw_heads(one: Shares, metric: str, folder: Path) -> list[Path]:
    """A map of the heads for clean and for clean − corrupted, above bars for all other parts."""
    heads = [i for i, part in enumerate(one.parts) if part.kind == "head"]
    n_layers = 1 + max(one.parts[i].layer or 0 for i in heads)
    others, title = _largest(one, [i for i in range(len(one.parts)) if i not in set(heads)], "other parts")
    maps = [
        (what, values.mean(-1)[heads].reshape(n_layers, -1).numpy())
        for what, values in (("clean", one.clean), ("clean − corrupted", one.difference))
    ]
    n_heads = maps[0][1].shape[1]
    width = min(15.0, max(6.4, 1.6 + 0.9 * n_heads))
    tall = 1.2 + 0.3 * n_layers
    figure = new_figure((width, tall + 1.2 + 0.24 * len(others)))
    grid = figure.add_gridspec(2, 2, height_ratios=(tall, 1.0 + 0.24 * len(others)))
    for i, (what, values) in enumerate(maps):
        axes = figure.add_subplot(grid[0, i])
        limit = float(np.abs(values).max()) or 1.0
        axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(values) if n_heads <= MOST_NUMBERED else ():
            colour = "white" if abs(value) > 0.6 * limit else "0.15" if abs(value) >= 0.005 else "0.6"
            text = f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(0, n_heads, 1 if n_heads <= MOST_NUMBERED else 4))
        axes.set_yticks(range(n_layers))
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="head", ylabel="layer" if i == 0 else "")
        axes.set_title(f"heads, {what}", fontsize=9, loc="left")
    axes = figure.add_subplot(grid[1, :])
    _bars(axes, one, others)
    axes.set_title(f"all other parts{title} ({metric})", fontsize=9, loc="left")
    return save_figure(figure, folder, "direct_head")


def _bars(axes: Any, one: Shares, chosen: Sequence[int]) -> None:
    places = np.arange(len(chosen))
    for shift, (run, colour) in zip((0.2, -0.2), COLOURS.items(), strict=True):
        values = getattr(one, run).mean(-1)[list(chosen)].numpy()
        axes.barh(places + shift, values, height=0.38, color=colour, label=run)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(places, [str(one.parts[i]) for i in chosen], fontsize=8)
    axes.set_ylim(-0.6, len(chosen) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("share of the logit difference", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _largest(one: Shares, of: list[int], what: str) -> tuple[list[int], str]:
    """The parts to draw, in their order, and what to say if they are not all."""
    if len(of) <= MOST_BARS:
        return of, ""
    size = one.clean.mean(-1).abs()
    return sorted(
        sorted(of, key=lambda i: -float(size[i]))[:MOST_BARS]
    ), f": the {MOST_BARS} largest of {len(of):,} {what}"


_HEADER = ["by", "part", "clean", "corrupted", "clean − corrupted"]


def _rows(one: Shares, most: int) -> list[list[str]]:
    means = [values.mean(-1).tolist() for values in (one.clean, one.corrupted, one.difference)]
    rows = list(zip(map(str, one.parts), *means, strict=True))
    rows.sort(key=lambda row: -max(map(abs, row[1:])))
    return [[one.by, name, *(f"{value + 0.0:.3f}" for value in values)] for name, *values in rows[:most]]
