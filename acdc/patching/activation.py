"""Activation patching (Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024): a sweep over sites.

`noise`: the clean run with a site's value from the corrupted run: is the site necessary? `denoise`: the corrupted run
with its value from the clean run: is it enough? Either way recovery is 1 at the clean and 0 at the corrupted metric.

Sites are patched many at once, as variants of one run that goes on from the site's layer (`acdc.engine.resumed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.engine.memory import budget_bytes
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.base import DIRECTIONS, MOST_BYTES, Progress, blocks, by_pair, check_ablation, check_scale, ends
from acdc.patching.changes import Changes
from acdc.patching.result import Patched, SiteMap
from acdc.patching.sites import WAYS, Choice, Grid


@dataclass(frozen=True)
class Settings:
    """What is patched.

    Attributes
    ----------
    name: `activation`.
    site: one or several of `acdc.patching.sites.KINDS`.
    by: how the sites of a layer are told apart: `position`, `head`, `head_position`, `neuron`, `neuron_position`;
        `auto` is by head, neuron or, where there are none, position.
    direction: `noise`, `denoise` or `both`.
    layers, heads, neurons: those to patch; None is all.
    positions: indices, labels or spans `start:end`; None is all. By head or neuron they are patched together.
    sufficient_from, necessary_from: a site is sufficient if denoising it recovers at least this, necessary if noising
        it loses at least this, of the way between the corrupted and the clean metric.
    memory_gb: what temporary tensors may take; None is a share of what is free.
    """

    name: str = "activation"
    site: list[str] | str = "head_output"
    by: str = "auto"
    direction: str = "both"
    layers: list[int] | int | None = None
    heads: list[int] | int | None = None
    neurons: list[int] | int | None = None
    positions: list[int | str] | int | str | None = None
    sufficient_from: float = 0.1
    necessary_from: float = 0.1
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in (*DIRECTIONS, "both"):
            raise ConfigError(f"patch.direction={self.direction} is not known: choose {', '.join(DIRECTIONS)} or both")
        if self.by not in (allowed := ["auto", *dict.fromkeys(way for ways in WAYS.values() for way in ways)]):
            raise ConfigError(f"patch.by={self.by} is not known: choose one of {', '.join(allowed)}")
        budget_bytes(torch.device("cpu"), self.memory_gb, "patch")

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS if self.direction == "both" else (self.direction,)

    @property
    def choice(self) -> Choice:
        return Choice(self.site, self.by, self.layers, self.heads, self.neurons, self.positions)


def check(experiment: Experiment, settings: Settings) -> list[Grid]:
    """The sites that would be patched, a grid a kind; what cannot be done is refused.

    Raises
    ------
    ConfigError: see `Choice.grids`; an ablation other than `corrupted`. TaskError: the metric is the same on clean and
    corrupted prompts, so that there is nothing to recover.
    """
    check_ablation(experiment)
    grids = settings.choice.grids(experiment)
    check_scale(experiment)
    return grids


def patch(experiment: Experiment, settings: Settings, progress: Progress | None = None) -> Patched:
    """Patch every chosen site.

    Parameters
    ----------
    progress: is told how many sites are done, and of how many.

    Raises
    ------
    ConfigError, TaskError: see `check`.
    """
    grids = check(experiment, settings)
    total = len(settings.directions) * sum(map(len, grids))
    memory = budget_bytes(experiment.model.device, settings.memory_gb, "patch")
    row_blocks = blocks(experiment, memory)
    done, maps = 0.0, []
    scale = [by_pair(experiment, values) for values in ends(experiment)]
    values: dict[tuple[int, str], list[Tensor]] = {}
    for block in row_blocks:
        runs = {name: ResumedRun(block, v) for name, v in (("clean", block.clean), ("corrupted", block.ablated))}
        for i, grid in enumerate(grids):
            places = torch.stack([place.mask(block) for place in grid.places])
            for direction in settings.directions:
                base, source = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
                sweep = _Sweep(runs[base], runs[source], min(memory, MOST_BYTES))
                parts = []
                for layer in grid.layers:
                    parts.append(sweep.layer(grid, layer, places))
                    done += len(grid) / len(grid.layers) / len(row_blocks)
                    if progress is not None:
                        progress(round(done), total)
                values.setdefault((i, direction), []).append(torch.stack(parts))
    for (i, direction), parts in values.items():
        maps.append(SiteMap(grids[i], direction, by_pair(experiment, torch.cat(parts, -1)), *scale))
    limits = settings.sufficient_from, settings.necessary_from
    return Patched(tuple(maps), experiment.metric_name, settings.choice.subset, *limits)


class _Sweep:
    """One direction: `base` is the run that is patched, `source` gives the values."""

    def __init__(self, base: ResumedRun, source: ResumedRun, memory: int) -> None:
        self.base, self.source = base, source
        self.at_once = max(1, memory // base.bytes_per_variant())

    def layer(self, grid: Grid, layer: int, places: Tensor) -> Tensor:
        """The metric at every site of a layer, `unit place readout`; `places`: `place row pos`."""
        device = self.base.model.device
        changes = Changes(grid.kind, layer, self.base, self.source)
        n_places, together = len(grid.places), grid.units == (None,)
        units = torch.tensor([0 if unit is None else unit for unit in grid.units], device=device)
        # Sites of the same place beside each other, the places in the order of the text, so that sites that are
        # evaluated together share what lies before them.
        first = [min(map(min, place.tokens)) for place in grid.places]
        order = torch.tensor(sorted(range(n_places), key=first.__getitem__), device=device)
        place_of = order.repeat_interleave(len(units))
        unit_of = torch.arange(len(units), device=device).repeat(n_places)
        values = self.base.model.W_E.new_empty(len(units), n_places, len(self.base.experiment.readouts))
        for start in range(0, len(place_of), self.at_once):
            at, which = place_of[start : start + self.at_once], unit_of[start : start + self.at_once]
            change = changes(None if together else units[which], places[at])
            values[which, at] = self.base.metric_values(layer, grid.kind.point, change)
        return values
