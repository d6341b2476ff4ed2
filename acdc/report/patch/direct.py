"""What direct logit attribution shows: the largest shares, and a picture for each way to take the metric apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from acdc.patching.direct import Direct, Shares
from acdc.report.maps import draw_cells
from acdc.report.numbers import number, thousandths
from acdc.report.style import RUNS, new_figure
from acdc.report.view import Figure, Folded, Section, Subject, Table, View

MOST_BARS = 40  # of a picture; of more parts the largest are shown
MOST_NUMBERED = 16  # heads of a layer whose cells have room for a number
MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 100
MEANINGS = {
    "layer": "whole layers: attention, MLP and their biases",
    "sublayer": "attention and MLP of each layer",
    "head": "heads and MLPs",
    "neuron": "heads and neurons",
}


def view(found: Direct, subject: Subject) -> View:
    """The page and the console of the shares."""
    sums = f"{number(float(found.clean.mean()))} on clean and {number(float(found.corrupted.mean()))} on corrupted"
    rows = [row for one in found.shares for row in _rows(one, MOST_ON_CONSOLE)]
    return View(
        f"Direct logit attribution · {subject.task} · {subject.model}",
        f"What each part of {subject.model} writes into the logit difference itself, on {subject.pairs} pairs of the"
        f" task {subject.task}: {sums} prompts, each with its own final norm's scale.",
        [_section(one, sums, found.metric) for one in found.shares],
        [Table("The largest direct shares of the metric", _HEADER, rows, left=2)],
    )


def _section(one: Shares, sums: str, metric: str) -> Section:
    """One way: its picture and its largest parts."""
    rows = _rows(one, MOST_ON_PAGE)
    name = f"direct_{one.by}"
    return Section(
        f"By {one.by}",
        [
            f"By {MEANINGS[one.by]}. All {len(one.parts):,} parts sum to {sums} prompts.",
            Figure(name, partial(_draw_shares, one, metric), f"direct shares by {one.by}"),
            Folded(f"{len(rows)} of {len(one.parts):,} parts", [Table("", _HEADER, rows, left=2)]),
        ],
    )


def _draw_shares(one: Shares, metric: str) -> Drawing:
    """Draw bars for the parts, clean and corrupted; by layer also the running sum, by head a map of the heads."""
    if one.by == "head":
        return _draw_heads(one, metric)
    chosen, title = _largest(one, list(range(len(one.parts))), "parts")
    figure = new_figure((7.0, 1.4 + 0.24 * len(chosen)))
    axes = figure.add_subplot()
    _bars(axes, one, chosen)
    if one.by == "layer":
        sums = one.clean.mean(-1).cumsum(0).tolist()
        label = "sum so far, clean"
        axes.plot(sums, range(len(sums)), color="0.35", marker="o", markersize=3, linewidth=1, label=label)
        axes.legend()
    axes.set_title(f"direct shares by {one.by}{title} ({metric})")
    return figure


def _draw_heads(one: Shares, metric: str) -> Drawing:
    """Draw a map of the heads for clean and for clean − corrupted, above bars for all other parts."""
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
        draw_cells(axes, values, numbered=n_heads <= MOST_NUMBERED)
        axes.set_xticks(range(0, n_heads, 1 if n_heads <= MOST_NUMBERED else 4))
        axes.set_yticks(range(n_layers))
        axes.set(xlabel="head", ylabel="layer" if i == 0 else "", title=f"heads, {what}")
    axes = figure.add_subplot(grid[1, :])
    _bars(axes, one, others)
    axes.set_title(f"all other parts{title} ({metric})")
    return figure


def _bars(axes: Axes, one: Shares, chosen: Sequence[int]) -> None:
    places = np.arange(len(chosen))
    for shift, run, values in ((0.2, "clean", one.clean), (-0.2, "corrupted", one.corrupted)):
        means = values.mean(-1)[list(chosen)].numpy()
        axes.barh(places + shift, means, height=0.38, color=RUNS[run], label=run)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(places, [str(one.parts[i]) for i in chosen])
    axes.set_ylim(-0.6, len(chosen) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the logit difference")
    axes.legend()


def _largest(one: Shares, of: list[int], what: str) -> tuple[list[int], str]:
    """The parts to draw, in their order, and what to say if they are not all."""
    if len(of) <= MOST_BARS:
        return of, ""
    size = one.clean.mean(-1).abs()
    largest = sorted(of, key=lambda i: -float(size[i]))[:MOST_BARS]
    return sorted(largest), f": the {MOST_BARS} largest of {len(of):,} {what}"


_HEADER = ["by", "part", "clean", "corrupted", "clean − corrupted"]


def _rows(one: Shares, most: int) -> list[list[str]]:
    means = [values.mean(-1).tolist() for values in (one.clean, one.corrupted, one.difference)]
    rows = list(zip(map(str, one.parts), *means, strict=True))
    rows.sort(key=lambda row: -max(map(abs, row[1:])))
    return [[one.by, name, *map(thousandths, values)] for name, *values in rows[:most]]
