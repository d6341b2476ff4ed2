"""Pictures of causal tracing: a heatmap for each site, and how effects run through the layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acdc.patching.sites import KINDS
from acdc.patching.traced import Traced, TraceMap
from acdc.report.maps import STEPS
from acdc.report.style import new_figure, save_figure

MOST_WITH_ERRORS = 16  # columns whose cells have room for a standard error
MOST_LABELLED = 32  # and for a number
MOST_TICKS = 48
MOST_LINES = 7
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")  # Okabe and Ito's


def draw_trace(traced: Traced, one: TraceMap, folder: Path) -> list[Path]:
    """Recovery of each state as SITE.svg and .png: tokens down, layers to the right, a star behind noised tokens.

    Blue-white-red with white at 0, the noised run; ± is the standard error over the pairs, where there is room.
    """
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
    limit = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    picture = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    bar = figure.colorbar(picture, ax=axes, pad=0.02)
    bar.set_label("recovery (0 noised, 1 clean)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=6)
    labels = [f"{place.label}{'*' if traced.is_noised(place) else ''}" for place in traced.places]
    step = next(n for n in STEPS if width <= n * MOST_TICKS)
    axes.set_xticks(range(0, width, step), list(map(str, range(0, width, step))), fontsize=8)
    axes.set_yticks(range(height), labels, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(_restored(one), fontsize=9)
    axes.set_title(
        f"{one.site}: {KINDS[one.site].meaning}, restored ({traced.metric})\n* noised; n = {len(traced.clean)} pairs,"
        f" {len(traced.noised)} draws" + "; ± standard error over the pairs" * with_errors,
        fontsize=9,
        loc="left",
    )
    for (y, x), value in np.ndenumerate(values) if numbered else ():
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * limit else "0.15" if abs(value) >= 0.005 else "0.6"
            error = f"\n±{errors[y, x]:.2f}" if with_errors and errors[y, x] >= 0.005 else ""
            text = f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
            axes.text(x, y, text + error, ha="center", va="center", fontsize=7, color=colour, linespacing=1.1)
    return save_figure(figure, folder, one.site)


def draw_by_layer(traced: Traced, folder: Path) -> list[Path]:
    """The indirect effect by layer with a band of one standard error, a panel a site, as by_layer.svg and .png.

    Of many places those with the largest effects, of any those that have some.
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
            star = "*" if traced.is_noised(traced.places[i]) else ""
            axes.plot(
                layers, line, color=colour, linewidth=1.5, marker="o", markersize=3, label=traced.places[i].label + star
            )
            axes.fill_between(layers, line - error, line + error, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(one.site, fontsize=10, loc="left")
        axes.set_xlabel(_restored(one), fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    sign = "restored − noised" if traced.larger_is_better else "noised − restored"
    panels[0].set_ylabel(f"indirect effect: {sign} {traced.metric}", fontsize=8)
    legend = figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return save_figure(figure, folder, "by_layer")


def _restored(one: TraceMap) -> str:
    """What an axis of layers means."""
    return "restored layer" if one.window == 1 else f"centre of {one.window} restored layers"
