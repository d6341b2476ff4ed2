"""Pictures of an ablation: maps of effects, the knock-out curve, what rises, and how sites interact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acdc.patching.ablated import Ablation, Additivity, Backup
from acdc.report.maps import Heatmap, draw_grid, draw_heatmap
from acdc.report.style import draw_files, new_figure, save_figure

MOST_NAMED = 30  # sites on the axis of a curve


def draw_effects(result: Ablation, folder: Path) -> list[Path]:
    """For every kind of site a map of its effects as SITE_effect.svg and .png."""
    paths = []
    for one in result.maps:
        name = one.grid.kind.name
        title = f"{name} ablated by {result.value}: loss after − before ({result.metric})"
        draw = partial(draw_grid, one.grid, one.effect, "effect (positive: it helps)", title)
        paths += draw_files(draw, folder, f"{name}_effect")
    return paths


def draw_curve(result: Ablation, folder: Path) -> list[Path]:
    """The metric while sites go one after the other, as knockout.svg and .png; the band is all random orders."""
    curve = result.curve
    assert curve is not None
    sign = -1 if result.scale.larger_is_better else 1
    clean, corrupted = float(result.scale.clean.mean()), float(result.scale.corrupted.mean())
    named = curve.ranked is not None and curve.counts[-1] < MOST_NAMED
    figure = new_figure((7.2, 4.4 if named else 3.8))
    axes = figure.add_subplot()
    for value, label in ((clean, "clean run"), (corrupted, "corrupted run")):
        axes.axhline(value, color="0.55", linewidth=0.8, linestyle="--")
        style: dict[str, Any] = {"fontsize": 7, "color": "0.4", "ha": "right", "va": "bottom"}
        axes.annotate(label, (1, value), (-2, 2), ("axes fraction", "data"), textcoords="offset points", **style)
    if len(curve.shuffled):
        found = clean + sign * curve.shuffled.mean(-1).numpy()
        axes.fill_between(curve.counts, found.min(0), found.max(0), color="#8a929c", alpha=0.2, linewidth=0)
        label = f"random, mean of {len(found)} (area {curve.areas['random']:.3g})"
        axes.plot(curve.counts, found.mean(0), color="#6b737d", linewidth=1.2, label=label)
    if curve.ranked is not None:
        found = clean + sign * curve.ranked.mean(-1).numpy()
        label = f"by {curve.ranking} (area {curve.areas[curve.ranking]:.3g})"
        dots: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve.counts) <= MOST_NAMED else {}
        axes.plot(curve.counts, found, color="#2563ab", linewidth=1.5, label=label, **dots)
    if named:
        names = ["none", *(f"+ {result.names.name(site)}" for site in curve.sites)]
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
    axes.set_xlabel("sites ablated" if not named else "sites ablated, one more at each step", fontsize=9)
    axes.set_ylabel(result.metric, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Knock-out curve, by {result.value} (area: under loss after − before)", fontsize=9, loc="left")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return save_figure(figure, folder, "knockout")


def draw_backup(result: Ablation, one: Backup, folder: Path, name: str) -> list[Path]:
    """How the direct effect of every head and MLP changes once a site is ablated, as NAME.svg and .png."""
    later = set(one.later)
    layers = 1 + max(_layer(component) for component in one.components)
    heads = sum(component.startswith("a0.") for component in one.components)
    with_mlps = any(component.startswith("m") for component in one.components)
    values = np.full((layers, heads + with_mlps), np.nan)
    for i, (component, change) in enumerate(zip(one.components, one.change.mean(-1).tolist(), strict=True)):
        column = heads if component.startswith("m") else int(component.partition(".h")[2])
        if i in later:
            values[_layer(component), column] = change
    columns = [*map(str, range(heads)), *["MLP"] * with_mlps]
    title = f"{result.names.name(one.site)} ablated: direct effects on the logits, after − before"
    unit = f"change (it loses {one.lost:.3g})"
    rows = list(map(str, range(layers)))
    return draw_files(
        lambda: draw_heatmap(Heatmap(values, rows, columns, ("layer", "head"), unit, title)), folder, name
    )


def draw_interactions(result: Ablation, one: Additivity, folder: Path) -> list[Path]:
    """Joint effect − sum of each two sites, as interactions.svg and .png."""
    names = [result.names.name(site) for site in one.sites]
    values = one.interactions.mean(-1).numpy().copy()
    np.fill_diagonal(values, np.nan)
    title = f"Joint effect of two sites − the sum of their effects ({result.metric})"
    unit = "interaction (joint − sum)"
    return draw_files(
        lambda: draw_heatmap(Heatmap(values, names, names, ("site", "site"), unit, title)), folder, "interactions"
    )


def _layer(component: str) -> int:
    return int(component[1:].partition(".")[0])
