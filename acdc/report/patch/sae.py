"""What patching an autoencoder's features shows: effect and attribution, and the tokens that features are active on."""

from __future__ import annotations

import math
from functools import partial

from matplotlib.figure import Figure as Drawing

from acdc.metrics import ROUNDING
from acdc.patching.sae_result import Example, PatchedFeatures
from acdc.report.maps import name_points
from acdc.report.numbers import number, thousandths
from acdc.report.patch.sites import KEPT_OR_LOST
from acdc.report.style import BLUE, new_figure
from acdc.report.view import Block, Cell, Figure, Folded, Marked, Section, Subject, Table, View

MOST_DRAWN = 20  # bars
MOST_ON_CONSOLE = 10
MOST_ON_PAGE = 50
EFFECT, ATTRIBUTION = BLUE, "#e0a04a"
MEANINGS = {
    "noise": "Noising: the clean run with the feature's corrupted activation; 1 − recovery is how much of the metric is"
    " lost",
    "denoise": "Denoising: the corrupted run with the feature's clean activation; recovery is how much of the metric"
    " comes back",
}


def view(patched: PatchedFeatures, subject: Subject) -> View:
    """The page and the console of patched features."""
    sae, checks = patched.sae, _checks(patched)
    kind = f"{sae.kind} with k = {sae.k}" if sae.k is not None else sae.kind
    return View(
        f"Autoencoder features · {subject.task} · {subject.model}",
        f"{len(patched.maps[0].grid.units):,} features of the autoencoder {sae.name} ({sae.site} of {subject.model}),"
        f" patched one at a time on {subject.pairs} pairs of the task {subject.task}. Recovery is 1 at the clean run's"
        f" {patched.metric} of {number(patched.clean)} and 0 at the corrupted run's of {number(patched.corrupted)}.",
        [
            Section(
                "Does the autoencoder fit this task?",
                [
                    f"{sae.name}: {kind}, {sae.d_sae:,} features of {sae.site}.",
                    Table("", ["", "value", "meaning"], checks, words=[2]),
                ],
            ),
            Section("Effect and attribution", _figures(patched)),
            _features_section(patched),
        ],
        [*(f"{name:<34} {value}" for name, value, _ in checks), _features_table(patched)],
    )


def _features_table(patched: PatchedFeatures) -> Table:
    """The features with the largest effect, for the console."""
    rows = []
    for i, one in enumerate(patched.maps):
        for site in _order(patched, i)[:MOST_ON_CONSOLE]:
            examples = ", ".join(str(example) for example in _examples(patched, i, site)[:3])
            rows.append([one.direction, patched.site_name(i, site), *_numbers(patched, i, site), examples])
    header = ["direction", "feature", "effect", "attribution", "rank by it", "most active on"]
    return Table("The features that matter most", header, rows, words=[5])


def _checks(patched: PatchedFeatures) -> list[tuple[str, str, str]]:
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


def _figures(patched: PatchedFeatures) -> list[Block]:
    """Bars of the largest effects, and effect against attribution, as far as there are any."""
    figures: list[Block] = []
    for i, one in enumerate(patched.maps):
        if _order(patched, i):
            name = f"features_{one.direction}"
            figures.append(Figure(name, partial(_draw_top, patched, i), f"plot {name}"))
    for i, one in enumerate(patched.maps):
        if bool(patched.attributions[i].isfinite().all()):
            name = f"attribution_{one.direction}"
            figures.append(Figure(name, partial(_draw_agreement, patched, i), f"plot {name}"))
    return figures


def _features_section(patched: PatchedFeatures) -> Section:
    """The features with the largest effect, with the tokens on which they are active."""
    blocks: list[Block] = [
        "Effect and attribution are on one scale: 1 is all of the way between the corrupted and the clean metric."
        " Tokens stand with the feature's activation and the task's name of the position, the largest first, each with"
        " the tokens before it."
    ]
    for i, one in enumerate(patched.maps):
        rows: list[list[Cell]] = [
            [
                patched.site_name(i, site),
                *_numbers(patched, i, site),
                Marked([_pieces(example) for example in _examples(patched, i, site)]),
            ]
            for site in _order(patched, i)[:MOST_ON_PAGE]
        ]
        header = ["feature", "effect", "attribution", "rank by it", "most active on"]
        blocks += [f"{MEANINGS[one.direction]}. {_agreement(patched, i)}", Table("", header, rows[:10], words=[4])]
        if rows[10:]:
            blocks.append(Folded(f"{len(rows[10:])} more", [Table("", header, rows[10:], words=[4])]))
    return Section("The features that matter most", blocks)


def _draw_top(patched: PatchedFeatures, i: int) -> Drawing:
    """Draw the features with the largest effect as bars, with their attribution beside it."""
    one, order = patched.maps[i], _order(patched, i)[:MOST_DRAWN]
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
        labels.append(f"{patched.site_name(i, site)}  {tokens if len(tokens) <= 40 else f'{tokens[:39]}…'}")
    axes.set_yticks(list(heights), labels, parse_math=False)
    axes.margins(y=0.5 / len(order))
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel=f"{KEPT_OR_LOST[one.direction]} (0: no effect)", title=_title(patched, i))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_agreement(patched: PatchedFeatures, i: int) -> Drawing:
    """Draw effect against attribution, a point a feature."""
    one = patched.maps[i]
    x, y = patched.attributions[i].flatten().tolist(), patched.effects(i).flatten().tolist()
    figure = new_figure((5.6, 5.2))
    axes = figure.add_subplot()
    low, high = min(*x, *y, 0.0), max(*x, *y, 0.0)
    margin = 0.06 * (high - low) or 0.05
    axes.plot([low, high], [low, high], color="0.6", linewidth=0.8, linestyle="--", label="effect = attribution")
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.scatter(x, y, s=16, color=EFFECT, alpha=0.7)
    axes.set(
        xlim=(low - margin, high + margin),
        ylim=(low - margin, high + margin),
        xlabel="attribution: gradient × change",
        ylabel=f"effect: {KEPT_OR_LOST[one.direction]}",
        title=_title(patched, i),
    )
    points = [(patched.site_name(i, site), *point) for site, point in enumerate(zip(x, y, strict=True))]
    name_points(axes, [point for point in points if math.hypot(*point[1:]) > 0.02 * (high - low)])
    correlation = patched.correlation(i)
    if math.isfinite(correlation):
        axes.plot([], [], " ", label=f"rank correlation {correlation:.2f}".replace("-", "−"))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _title(patched: PatchedFeatures, i: int) -> str:
    return f"{patched.sae.site}, {patched.maps[i].direction}: single features ({patched.metric})"


def _order(patched: PatchedFeatures, i: int) -> list[int]:
    """Sites of map i (feature × place) by the size of their effect, the largest first; those without any left out."""
    effects = patched.effects(i).flatten().tolist()
    by_size = sorted(range(len(effects)), key=lambda site: -abs(effects[site]))
    return [site for site in by_size if abs(effects[site]) > ROUNDING]


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


def _pieces(example: Example) -> list[tuple[str, bool]]:
    before = f"… {example.before} " if example.before else ""
    label = f" ({example.label})" if example.label else ""
    return [(before, False), (example.token, True), (f"{label} {example.activation:.3g}", False)]


def _short(value: float) -> str:
    return thousandths(value).replace("-", "−")


def _share(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:z.1%}".replace("-", "−")
