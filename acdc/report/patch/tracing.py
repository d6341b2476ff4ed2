"""What causal tracing shows: a heatmap for each site, effects by layer, and the states that bring back most."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from acdc.patching.sites import KINDS
from acdc.patching.tracing_result import Traced, TraceMap
from acdc.report.maps import STEPS, draw_cells
from acdc.report.numbers import number, thousandths
from acdc.report.style import new_figure
from acdc.report.view import Block, Figure, Folded, Section, Subject, Table, View

MOST_ON_CONSOLE = 5  # of each site
MOST_ON_PAGE = 50
MOST_WITH_ERRORS = 16  # columns whose cells have room for a standard error
MOST_LABELLED = 32  # and for a number
MOST_TICKS = 48
MOST_LINES = 7
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")  # Okabe and Ito's
_TITLE = "The states that bring back most"


def view(traced: Traced, subject: Subject) -> View:
    """The page and the console of a trace."""
    best = [row for one in traced.maps for row in traced.ranked(one.site)[:MOST_ON_CONSOLE]]
    return View(
        f"Causal tracing · {subject.task} · {subject.model}",
        _lead(traced),
        [_traces_section(traced), _by_layer_section(traced), _states_section(traced)],
        [_table(_TITLE, best)],
    )


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    """States as a table, one a row."""
    cells = []
    for row in rows:
        label = row["label"] + "*" * row["noised"]
        numbers = (thousandths(row[key]) for key in ("recovery", "effect", "se"))
        cells.append([row["site"], str(row["layer"]), str(row["window"]), label, *numbers, str(row["n"])])
    header = ["site", "layer", "window", "position", "recovery", "effect", "se", "pairs"]
    return Table(title, header, cells, words=[3])


def _lead(traced: Traced) -> str:
    """What was done and what the noise does, in a few sentences."""
    total = traced.total_effects
    error = f" (standard error {number(float(total.std() / len(total) ** 0.5))})" if len(total) > 1 else ""
    text = (
        f"Gaussian noise of standard deviation {number(traced.noise_std)} on the embeddings of the subject's tokens,"
        f" {len(traced.noised)} draws, takes {traced.metric} from {number(float(traced.clean.mean()))} to"
        f" {number(float(traced.noised.mean()))}: a total effect of {number(float(total.mean()))}{error}. Then one"
        " state at a time is put back to its value in the clean run; recovery is 0 at the noised run and 1 at the"
        " clean one."
    )
    if float(total.mean()) <= 0:
        text += " Here noise helps on the whole, so recovery says little: look at the effects."
    return text


def _traces_section(traced: Traced) -> Section:
    """The heatmaps."""
    windows = [f"{one.site} in windows of {one.window} layers" for one in traced.maps if one.window > 1]
    centre = f" ({', '.join(windows)}: the column is the window's centre)" if windows else ""
    blocks: list[Block] = [
        f"A row is a token, a star behind it says that it is noised, a column a layer{centre}. ± is the standard error"
        " over the pairs, of the mean over the draws."
    ]
    if traced.by == "role":
        blocks.append(
            "A role is the mean over its tokens, in the pairs that have one. A token can have two roles: the only token"
            " of a subject is its first and its last."
        )
    for one in traced.maps:
        blocks.append(Figure(one.site, partial(_draw_trace, traced, one), f"causal trace {one.site}"))
    return Section("What restoring a state brings back", blocks)


def _by_layer_section(traced: Traced) -> Section:
    """The indirect effects by layer."""
    text = (
        "The same in units of the metric: the indirect effect of a state, positive where restoring it helps, with a"
        " band of one standard error; dashed the total effect of the noise."
    )
    return Section("Effects by layer", [text, Figure("by_layer", partial(_draw_by_layer, traced), "effects by layer")])


def _states_section(traced: Traced) -> Section:
    """The states that bring back most, more of them."""
    blocks = []
    for one in traced.maps:
        rows = traced.ranked(one.site)
        shown = rows[:MOST_ON_PAGE]
        blocks.append(Folded(f"{one.site}: {len(shown)} of {len(rows):,} states", [_table("", shown)]))
    return Section(_TITLE, blocks)


def _draw_trace(traced: Traced, one: TraceMap) -> Drawing:
    """Draw the recovery of each state: tokens down, layers to the right, the first token on top."""
    effects = traced.effects(one)
    values = effects.recovery.T.numpy()
    errors = (effects.se / effects.total.abs()).T.numpy()
    height, width = values.shape
    numbered, with_errors = width <= MOST_LABELLED, width <= MOST_WITH_ERRORS and len(traced.clean) > 1
    size = (
        min(18.0, max(6.4, 3.2 + (0.55 if with_errors else 0.42 if numbered else 0.2) * width)),
        min(22.0, 1.4 + (0.42 if with_errors else 0.3) * height),
    )
    figure = new_figure(size)
    axes = figure.add_subplot()
    draw_cells(axes, values, numbered, errors=errors if with_errors else None)
    axes.invert_yaxis()
    bar = figure.colorbar(axes.images[0], ax=axes, pad=0.02)
    bar.set_label("recovery (0 noised, 1 clean)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=6)
    labels = [f"{place.label}{'*' if traced.is_noised(place) else ''}" for place in traced.places]
    step = next(n for n in STEPS if width <= n * MOST_TICKS)
    axes.set_xticks(range(0, width, step), list(map(str, range(0, width, step))))
    axes.set_yticks(range(height), labels, parse_math=False)
    axes.set_xlabel(_restored(one))
    axes.set_title(
        f"{one.site}: {KINDS[one.site].meaning}, restored ({traced.metric})\n* noised; n = {len(traced.clean)} pairs,"
        f" {len(traced.noised)} draws" + "; ± standard error over the pairs" * with_errors
    )
    return figure


def _draw_by_layer(traced: Traced) -> Drawing:
    """Draw the indirect effect by layer with a band of one standard error, a panel a site.

    Of many places those with the largest effects are shown, and only places that have some effect.
    """
    all_effects = [traced.effects(one) for one in traced.maps]
    largest = np.max([np.abs(effects.indirect.numpy()).max(0) for effects in all_effects], 0)
    order = np.argsort(-largest, kind="stable")[:MOST_LINES]
    shown = sorted(order[largest[order] > 0.005 * largest.max()])
    figure = new_figure((1.2 + 3.1 * len(traced.maps), 4.3))
    panels = figure.subplots(1, len(traced.maps), sharey=True, squeeze=False)[0]
    total = float(traced.total_effects.mean())
    for axes, one, effects in zip(panels, traced.maps, all_effects, strict=True):
        layers = np.arange(len(effects.indirect))
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.axhline(total, color="0.4", linewidth=0.8, linestyle="--", label="total effect: clean − noised")
        for colour, i in zip(COLOURS, shown, strict=False):
            line, error = effects.indirect[:, i].numpy(), effects.se[:, i].numpy()
            label = traced.places[i].label + "*" * traced.is_noised(traced.places[i])
            axes.plot(layers, line, color=colour, linewidth=1.5, marker="o", markersize=3, label=label)
            axes.fill_between(layers, line - error, line + error, color=colour, alpha=0.2, linewidth=0)
        axes.set(title=one.site, xlabel=_restored(one))
        axes.xaxis.get_major_locator().set_params(integer=True)
    sign = "restored − noised" if traced.larger_is_better else "noised − restored"
    panels[0].set_ylabel(f"indirect effect: {sign} {traced.metric}")
    legend = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _restored(one: TraceMap) -> str:
    """What an axis of layers means."""
    return "restored layer" if one.window == 1 else f"centre of {one.window} restored layers"
