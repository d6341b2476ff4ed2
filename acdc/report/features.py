"""What patching an autoencoder's features found, for people: plots of effect and attribution, tables with tokens."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from acdc.metrics import ROUNDING
from acdc.patching.features import Example, PatchedFeatures
from acdc.report.html import Section, table
from acdc.report.numbers import number, thousandths
from acdc.report.patch.sites import KEPT_OR_LOST
from acdc.report.style import new_figure, save_figure

MOST_DRAWN = 20  # bars
MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 50
MOST_NAMED = 10  # points of the scatter plot with their numbers
EFFECT, ATTRIBUTION = "#2563ab", "#e0a04a"
MEANINGS = {
    "noise": "noising: the clean run with the feature's corrupted activation; 1 − recovery is how much of the metric is"
    " lost",
    "denoise": "denoising: the corrupted run with the feature's clean activation; recovery is how much of the metric"
    " comes back",
}


def features_table(patched: PatchedFeatures) -> Table:
    """The features with the largest effect, for the console."""
    shown = Table(title="The features that matter most", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(("direction", "feature", "effect", "attribution", "rank by it", "most active on")):
        shown.add_column(Text(name), justify="right" if 1 <= i <= 4 else "left", overflow="fold")
    for i, one in enumerate(patched.maps):
        for site in _order(patched, i)[:MOST_ON_CONSOLE]:
            examples = ", ".join(str(example) for example in _examples(patched, i, site)[:3])
            cells = (one.direction, site_name(patched, i, site), *_numbers(patched, i, site), examples)
            shown.add_row(*map(Text, cells))
    return shown


def reconstruction_rows(patched: PatchedFeatures) -> list[tuple[str, str, str]]:
    """What the check of the reconstruction says: name, value, meaning."""
    check = patched.reconstruction
    rows = [
        ("features active", f"{len(check.active):,} of {check.features:,}",
         f"on any of the {check.tokens:,} tokens of clean and corrupted prompts; all others have no effect, exactly"),
        ("active at a token", f"{check.l0:.1f}", "mean number of features (L0)"),
        ("variance explained", f"{check.explained:z.1%}", "of the activations, over all these tokens"),
    ]  # fmt: skip
    if check.explained_later is not None:
        text = "the same without the first token, whose activation is far larger than all others in many models"
        rows.append(("  behind the first token", f"{check.explained_later:z.1%}", text))
    reconstructed = f"{number(check.metric)} ({_share(check.recovered)})"
    text = (
        f"of the clean run with it in the activation's place, and its recovery; the model has {number(patched.clean)}"
    )
    rows.append((f"{patched.metric} with reconstruction", reconstructed, text))
    clean, spliced, zero = check.losses
    text = f"{check.loss} is {number(spliced)} with it, {number(clean)} in the model, {number(zero)} with zero there"
    rows.append(("loss recovered", _share(check.loss_recovered), text))
    return rows


def reconstruction_section(patched: PatchedFeatures) -> Section:
    """How well the autoencoder gives the activations back on this task."""
    rows = [[escape(name), escape(value), escape(meaning)] for name, value, meaning in reconstruction_rows(patched)]
    sae = patched.sae
    kind = f"{sae.kind} with k = {sae.k}" if sae.k is not None else sae.kind
    lead = f"<p>{escape(sae.name)}: {kind}, {sae.d_sae:,} features of {escape(sae.site)}.</p>"
    return Section("Does the autoencoder fit this task?", lead + table(["", "value", "meaning"], rows, numeric=[1]))


def features_section(patched: PatchedFeatures) -> Section:
    """The features with the largest effect, with the tokens on which they are active."""
    parts = [
        "<p>Effect and attribution are on one scale: 1 is all of the way between the corrupted and the clean metric."
        " Tokens stand with the feature's activation and the task's name of the position, the largest first, each with"
        " the tokens before it.</p>"
    ]
    header = ["feature", "effect", "attribution", "rank by it", "most active on"]
    for i, one in enumerate(patched.maps):
        order = _order(patched, i)[:MOST_ON_PAGE]
        rows = [
            [
                site_name(patched, i, site),
                *_numbers(patched, i, site),
                "<br>".join(map(_cell, _examples(patched, i, site))),
            ]
            for site in order
        ]
        shown = table(header, rows[:10], numeric=range(1, 4))
        if rows[10:]:
            more = table(header, rows[10:], numeric=range(1, 4))
            shown += f"<details><summary>{len(rows[10:])} more</summary>{more}</details>"
        parts.append(f"<p>{escape(MEANINGS[one.direction].capitalize())}. {_agreement(patched, i)}</p>{shown}")
    return Section("The features that matter most", "".join(parts))


def draw_top(patched: PatchedFeatures, i: int, folder: Path) -> list[Path]:
    """The features with the largest effect as bars, attribution beside it, as features_DIRECTION.svg and .png; nothing
    is drawn where none has any."""
    one, order = patched.maps[i], _order(patched, i)[:MOST_DRAWN]
    if not order:
        return []
    effects = [float(patched.effects(i).flatten()[site]) for site in order]
    attributions = [float(patched.attributions[i].flatten()[site]) for site in order]
    figure = new_figure((7.2, 1.4 + 0.32 * len(order)))
    axes = figure.add_subplot()
    heights = range(len(order))
    known = not any(map(math.isnan, attributions))
    axes.barh([y - 0.2 * known for y in heights], effects, 0.4, color=EFFECT, label="effect (patched)")
    if known:
        axes.barh([y + 0.2 for y in heights], attributions, 0.4, color=ATTRIBUTION, label="attribution (estimated)")
    labels = []
    for site in order:
        tokens = ", ".join(example.token for example in _examples(patched, i, site)[:3])
        labels.append(f"{site_name(patched, i, site)}  {tokens if len(tokens) <= 40 else f'{tokens[:39]}…'}")
    axes.set_yticks(list(heights), labels, fontsize=8, parse_math=False)
    axes.margins(y=0.5 / len(order))
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_xlabel(f"{KEPT_OR_LOST[one.direction]} (0: no effect)", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(f"{_title(patched, i)} ({patched.metric})", fontsize=9, loc="left")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return save_figure(figure, folder, f"features_{one.direction}")


def draw_agreement(patched: PatchedFeatures, i: int, folder: Path) -> list[Path]:
    """Effect against attribution, a point a feature, as attribution_DIRECTION.svg and .png; none where the attribution
    is nil by definition."""
    one = patched.maps[i]
    x, y = patched.attributions[i].flatten().tolist(), patched.effects(i).flatten().tolist()
    if any(map(math.isnan, x)):
        return []
    figure = new_figure((5.6, 5.2))
    axes = figure.add_subplot()
    low, high = min(*x, *y, 0.0), max(*x, *y, 0.0)
    margin = 0.06 * (high - low) or 0.05
    axes.plot([low, high], [low, high], color="0.6", linewidth=0.8, linestyle="--", label="effect = attribution")
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.scatter(x, y, s=16, color=EFFECT, alpha=0.7)
    axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    taken: list[tuple[float, float]] = []
    for site in sorted(range(len(x)), key=lambda site: -math.hypot(x[site], y[site])):
        right, up = axes.transData.transform((x[site], y[site]))
        free = all(abs(up - b) > 11 or abs(right - a) > 60 for a, b in taken)
        if len(taken) < MOST_NAMED and free and math.hypot(x[site], y[site]) > 0.02 * (high - low):
            taken.append((right, up))
            near_edge = axes.transAxes.inverted().transform((right, up))[0] > 0.8
            style: dict[str, Any] = {"xytext": (-5 if near_edge else 5, 3), "ha": "right" if near_edge else "left"}
            name = site_name(patched, i, site)
            axes.annotate(name, (x[site], y[site]), textcoords="offset points", fontsize=7, parse_math=False, **style)
    axes.set_xlabel("attribution: gradient × change", fontsize=9)
    axes.set_ylabel(f"effect: {KEPT_OR_LOST[one.direction]}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_title(f"{_title(patched, i)} ({patched.metric})", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    correlation = patched.correlation(i)
    if math.isfinite(correlation):
        axes.plot([], [], " ", label=f"rank correlation {correlation:.2f}".replace("-", "−"))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return save_figure(figure, folder, f"attribution_{one.direction}")


def _title(patched: PatchedFeatures, i: int) -> str:
    return f"{patched.sae.site}, {patched.maps[i].direction}: single features"


def _order(patched: PatchedFeatures, i: int) -> list[int]:
    """Sites of map i (feature × place) by the size of their effect, the largest first; those without any left out."""
    effects = patched.effects(i).flatten().tolist()
    by_size = sorted(range(len(effects)), key=lambda site: -abs(effects[site]))
    return [site for site in by_size if abs(effects[site]) > ROUNDING]


def site_name(patched: PatchedFeatures, i: int, site: int) -> str:
    """A site of map i (feature × place) as a reader sees it."""
    grid = patched.maps[i].grid
    feature, place = grid.units[site // len(grid.places)], grid.places[site % len(grid.places)]
    return f"{feature} @{place.label}" if grid.by == "feature_position" else str(feature)


def _examples(patched: PatchedFeatures, i: int, site: int) -> list[Example]:
    grid = patched.maps[i].grid
    feature = grid.units[site // len(grid.places)]
    assert feature is not None
    return patched.examples[feature]


def _numbers(patched: PatchedFeatures, i: int, site: int) -> list[str]:
    """Effect, attribution, rank by attribution."""
    attributions = patched.attributions[i].flatten()
    effect, attribution = float(patched.effects(i).flatten()[site]), float(attributions[site])
    if math.isnan(attribution):
        return [_short(effect), "—", "—"]
    rank = 1 + int((attributions.abs() > abs(attribution)).sum())
    return [_short(effect), _short(attribution), str(rank)]


def _agreement(patched: PatchedFeatures, i: int) -> str:
    correlation = patched.correlation(i)
    if not math.isfinite(correlation):
        return "Attribution has no order here."
    return f"Rank correlation of effect and attribution: {_short(correlation)}."


def _cell(example: Example) -> str:
    label = f" ({escape(example.label)})" if example.label else ""
    before = f"… {escape(example.before)} " if example.before else ""
    return f"{before}<b>{escape(example.token)}</b>{label} {example.activation:.3g}"


def _short(value: float) -> str:
    return thousandths(value).replace("-", "−")


def _share(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:z.1%}".replace("-", "−")
