"""Ablation: sites of the clean run get zero, a mean or another pair's value, alone and together.

Alone: effect = loss after − loss before, positive where the site helps. Cumulatively in the order of a ranking: the
knock-out curve, beside random orders. What rises when a site goes: backup, see `acdc.patching.backup`. The joint
effect of a set against the sum of its single effects: additivity. How far what is put in lies from clean values: see
`acdc.patching.shift`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acdc.engine.memory import budget_bytes
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.ablation_result import Ablated, Ablation, Additivity, Curve, Scale, strongest
from acdc.patching.ablation_run import PROMPTS, VALUES, AblationRun, AblationValues
from acdc.patching.backup import find_backup, has_own_effect, most_direct
from acdc.patching.base import PatchOptions, Progress, by_pair, ends
from acdc.patching.ranking import NamedSites
from acdc.patching.shift import measure
from acdc.patching.sites import WAYS, Choice, Grid, Site
from acdc.settings import option

DOING = ("ablating", "runs")  # what the progress bar says, and what it counts
RANKINGS = ("effect", "given", "random")

Some = list[int | str] | int  # sites by name, or how many


@dataclass(frozen=True)
class Settings(PatchOptions):
    """Ablation: sites of the clean run get zero, a mean or another pair's value, alone and together; what is lost, what
    rises."""

    name: str = "ablation"
    value: str = option(
        "mean",
        "what stands in: zero, mean (over all tokens), mean_by_position or resample (another pair's value)",
        VALUES,
    )
    over: str = option(
        "corrupted", "the prompts that means and other pairs' values are of: corrupted or clean", PROMPTS
    )
    draws: int = option(5, "of the other pair, for resample; effects are means over them", least=1)
    seed: int = option(0, "of these draws and of random orders")
    site: list[str] | str = option(
        "head_output",
        "resid_pre, resid_mid, resid_post, attn_out, mlp_out, head_output, q, k, v, pattern or neuron;"
        " [head_output,mlp_out] for several",
    )
    by: str = option(
        "auto",
        "how the sites of a layer are told apart: position, head, head_position, neuron, neuron_position;"
        " auto: head, neuron or else position",
        ("auto", *dict.fromkeys(way for ways in WAYS.values() for way in ways)),
    )
    layers: list[int] | int | None = option(None, "those to ablate, such as [0,3]; null is all")
    heads: list[int] | int | None = option(None, "the same for heads")
    neurons: list[int] | int | None = option(None, "the same for neurons")
    positions: list[int | str] | int | str | None = option(
        None,
        'indices, labels of the task and spans, such as [S2,-1,"2:5"]; null is all. By head or neuron they are'
        " ablated together",
    )
    ranking: str | None = option(
        "effect",
        "order of the knock-out curve: effect (largest first), given (see order), random, a CSV file such as"
        " another run's patch.csv; null: no curve",
    )
    order: list[int | str] | None = option(None, "names of sites, for ranking=given, such as [a9.h9,a9.h6]")
    orders: int = option(5, "random orders beside the ranking", least=0)
    points: int = option(100, "the most points of a curve", least=2)
    backup: Some = option(
        3,
        "what rises when a site goes: sites by name, or how many of those with the largest direct effect; 0"
        " leaves it out",
        least=0,
    )
    additivity: Some = option(
        4,
        "joint against single effects: sites by name, or how many of those with the largest effect; 0 leaves it out",
        least=0,
    )
    shift_limit: float | None = option(
        None,
        "a site is marked as shifted beyond this many times the usual distance from its clean values; null is"
        " their 99 % quantile",
        above=0,
    )
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranking not in (None, *RANKINGS) and not str(self.ranking).endswith(".csv"):
            raise ConfigError(
                f"patch.ranking={self.ranking} is not known: choose {', '.join(RANKINGS)}, a file (.csv) or null"
            )
        if (self.ranking == "given") != (self.order is not None):
            raise ConfigError(
                "patch.ranking=given needs patch.order, the names of sites such as [a9.h9,a9.h6]"
                if self.order is None
                else f"patch.order has no effect with patch.ranking={self.ranking}: give patch.ranking=given"
            )
        if self.ranking == "random" and not self.orders:
            raise ConfigError("patch.orders=0 leaves nothing of patch.ranking=random: give 1 or more")
        for key in ("draws", "over"):
            given, usual = getattr(self, key), getattr(Settings, key)
            if given != usual and (self.value == "zero" or (key == "draws" and self.value != "resample")):
                raise ConfigError(f"patch.{key}={given} has no effect with patch.value={self.value}: leave it out")
        if self.additivity == 1 or (isinstance(self.additivity, list) and len(self.additivity) < 2):
            raise ConfigError(f"patch.additivity={self.additivity} is not allowed: give at least two sites, or 0")

    @property
    def choice(self) -> Choice:
        return Choice(self.site, self.by, self.layers, self.heads, self.neurons, self.positions)


@dataclass(frozen=True)
class Plan:
    """What will be done. `order`: of the curve, where it is known beforehand; `backup`, `additivity`: sites, or how
    many."""

    grids: list[Grid]
    names: NamedSites
    replacements: AblationValues
    order: list[Site] | None
    backup: list[Site] | int
    additivity: list[Site] | int

    @property
    def curve_sites(self) -> list[Site]:
        return self.names.sites if self.order is None else self.order


def check(experiment: Experiment, settings: Settings) -> Plan:
    """What will be done; what cannot be is refused.

    Raises
    ------
    ConfigError
        See `Choice.grids`, `AblationValues`, `NamedSites`; an ablation other than `corrupted`.
    """
    if (name := experiment.ablation.name) != "corrupted":
        raise ConfigError(
            f"ablation={name} is not what patch=ablation puts in, which is patch.value={settings.value}: choose"
            f" patch.value from {', '.join(VALUES)}, and give ablation=corrupted"
        )
    grids = settings.choice.grids(experiment)
    replacements = AblationValues(experiment, settings.value, settings.over, settings.draws, settings.seed)
    for grid in grids:
        replacements.check(grid.kind.name)
    names = NamedSites(grids)
    order = None
    if settings.order is not None:
        order = names.find("order", settings.order)
    elif settings.ranking is not None and settings.ranking not in RANKINGS:
        order = names.from_file(settings.ranking)
    if order == []:
        raise ConfigError("patch.order=[] is not allowed: give the names of sites")
    backup, additivity = (
        names.find(key, sites) if isinstance(sites := getattr(settings, key), list) else sites
        for key in ("backup", "additivity")
    )
    if isinstance(backup, list) and (wrong := [site for site in backup if not has_own_effect(site)]):
        raise ConfigError(
            f"patch.backup={names.name(wrong[0])}: patch.site={wrong[0].kind} is not of one head, MLP or neuron, so it"
            " has no direct effect of its own to lose; choose other sites"
        )
    return Plan(grids, names, replacements, order, backup, additivity)


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Ablation:
    """Ablate every chosen site alone, then sets of them.

    Parameters
    ----------
    progress : callable or None
        Called with the number of ablated runs that are done, and with the number of all.

    Raises
    ------
    ConfigError
        See `check`.
    """
    plan = check(experiment, settings)
    counts = _counts(len(plan.curve_sites), settings.points)
    tick = _Ticker(_total(plan, settings, len(counts) - 1), progress)
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    run = AblationRun(experiment, plan.replacements, memory, tick)
    clean, corrupted = (by_pair(experiment, end) for end in ends(experiment))
    scale = Scale(clean, corrupted, experiment.metric.larger_is_better)
    shifts = measure(
        experiment,
        plan.grids,
        lambda kind, layer: (plan.replacements(kind, layer, draw) for draw in range(plan.replacements.draws)),
        memory,
        settings.shift_limit,
    )
    maps = []
    for grid, shift in zip(plan.grids, shifts, strict=True):
        values = run.alone(grid)
        maps.append(Ablated(grid, values, scale.effects(values), shift))

    def effects(sets: Sequence[Sequence[Site]]) -> Tensor:
        return scale.effects(run.values(sets))

    result = Ablation(
        maps=tuple(maps),
        names=plan.names,
        scale=scale,
        metric=experiment.metric_name,
        value=settings.value,
        over=settings.over,
        subset=settings.choice.subset,
        curve=None,
        backups=(),
        additivity=None,
        graph=experiment.graph,
        backup_wanted=bool(settings.backup),
    )
    ranked = result.ranked()
    by_site = dict(ranked)
    curve = None if settings.ranking is None else _curve(effects, plan, settings, [site for site, _ in ranked], counts)
    sites = plan.backup
    if isinstance(sites, int):
        sites = most_direct(experiment, [site for site, _ in ranked], sites)
    backups = find_backup(run, sites) if sites else []
    chosen = strongest(ranked, plan.additivity) if isinstance(plan.additivity, int) else plan.additivity
    additivity = _additivity(effects, chosen, by_site) if len(chosen) > 1 else None
    tick.finish()
    return replace(result, curve=curve, backups=tuple(backups), additivity=additivity)


def _curve(
    effects: Callable[[Sequence[Sequence[Site]]], Tensor],
    plan: Plan,
    settings: Settings,
    by_effect: list[Site],
    counts: tuple[int, ...],
) -> Curve:
    """The knock-out curve of the ranking and of random orders of the same sites."""
    order = by_effect if settings.ranking == "effect" else plan.curve_sites
    shuffled = [plan.names.shuffled(plan.curve_sites, settings.seed + i) for i in range(settings.orders)]
    given = [] if settings.ranking == "random" else [order]
    points = len(counts) - 1
    found = effects([some[:count] for some in (*given, *shuffled) for count in counts[1:]])
    curves = found.unflatten(0, (-1, points)) if len(found) else found.new_zeros(0, points, found.shape[-1])
    curves = torch.cat((torch.zeros_like(curves[:, :1]), curves), 1)
    ranking = settings.ranking if settings.ranking in RANKINGS else os.path.basename(str(settings.ranking))
    ranked = curves[0] if given else None
    return Curve(str(ranking), tuple(order), counts, ranked, curves[len(given) :])


def _additivity(
    effects: Callable[[Sequence[Sequence[Site]]], Tensor], sites: list[Site], by_site: dict[Site, Tensor]
) -> Additivity:
    pairs = [(i, j) for i in range(len(sites)) for j in range(i + 1, len(sites))]
    found = effects([*([sites[i], sites[j]] for i, j in pairs), sites])
    single = torch.stack([by_site[site] for site in sites])
    joint = torch.diag_embed(single.T).permute(1, 2, 0).clone()
    for (i, j), effect in zip(pairs, found, strict=False):
        joint[i, j] = joint[j, i] = effect
    return Additivity(tuple(sites), single, joint, found[-1])


def _counts(n_sites: int, points: int) -> tuple[int, ...]:
    """How many sites are ablated at each point: all numbers, or as many as there may be, evenly spread."""
    if n_sites < points:
        return tuple(range(n_sites + 1))
    return tuple(sorted({round(i * n_sites / (points - 1)) for i in range(points)}))


def _total(plan: Plan, settings: Settings, points: int) -> int:
    """How many sets of sites will be ablated."""
    curves = 0 if settings.ranking is None else settings.orders + (settings.ranking != "random")
    n_backup, n_set = (
        min(sites, len(plan.names.sites)) if isinstance(sites, int) else len(sites)
        for sites in (plan.backup, plan.additivity)
    )
    return len(plan.names.sites) + curves * points + n_backup + (n_set * (n_set - 1) // 2 + 1 if n_set > 1 else 0)


class _Ticker:
    """Adds up what is done, for a progress bar."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0.0

    def __call__(self, done: float) -> None:
        self.done = min(self.done + done, self.total)
        if self.progress is not None:
            self.progress(round(self.done), self.total)

    def finish(self) -> None:
        self(self.total)
