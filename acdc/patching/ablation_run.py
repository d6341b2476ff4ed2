"""Sites ablated in the clean run, alone or in sets: the metric, and what the run computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from acdc.ablation import PairMean, corresponding_positions, names_of_positions
from acdc.engine.joint import JointRun, Replaced
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.base import batch_bytes, blocks, by_pair
from acdc.patching.sites import KINDS, Grid, Site
from acdc.patching.values import SiteChanges, site_value

Sites = Sequence[Site]


@dataclass(frozen=True)
class Batch:
    """Some of the ablated runs.

    Attributes
    ----------
    run : JointRun
        The run that is changed, on a block of rows.
    replaced : mapping
        What is put in, by kind of site and layer.
    sets : slice
        The sets of sites that are ablated.
    here : torch.Tensor
        The readouts of the block, as indices in those of the whole experiment.
    """

    run: JointRun
    replaced: Mapping[tuple[str, int], Replaced]
    sets: slice
    here: Tensor


class Replacements(Protocol):
    """The values that are put in.

    Attributes
    ----------
    draws : int
        How many there are of each.
    """

    @property
    def draws(self) -> int: ...

    def __call__(self, kind: str, layer: int, draw: int = 0) -> Tensor:
        """The value of all units of a layer on every row, as `acdc.patching.values.site_value` has it."""


class AblationRun:
    """Replaces the values of sites, many or many sets of them at once, in blocks of rows that fit in memory.

    Parameters
    ----------
    experiment : Experiment
    replacements : Replacements
        The values that are put in.
    memory : int
        Bytes of temporary tensors.
    tick : callable, optional
        Is told how many more sets are done, also in parts.
    base : str
        The run that is changed, `clean` or `corrupted`.
    """

    def __init__(
        self,
        experiment: Experiment,
        replacements: Replacements,
        memory: int,
        tick: Callable[[float], None] = lambda _: None,
        base: str = "clean",
    ) -> None:
        self.experiment, self.replacements, self.tick, self.base = experiment, replacements, tick, base
        self.memory = batch_bytes(memory)
        self.blocks = blocks(experiment, memory)

    def alone(self, grid: Grid) -> Tensor:
        """The metric of each pair once one site is ablated, the mean over draws: `layer unit place pair`.

        As `values` of a set a site, but faster: what lies before a single site need not be computed again.
        """
        together = grid.units == (None,)
        total = self._zeros(*grid.shape)
        units = torch.tensor([0 if unit is None else unit for unit in grid.units], device=total.device)
        axes = (torch.arange(n, device=total.device) for n in grid.shape[1:])
        unit_of, place_of = (t.flatten() for t in torch.meshgrid(*axes, indexing="xy"))  # sites of a place side by side
        for block, rows, here in self._rows():
            base = self._base(block)
            places = torch.stack([place.mask(block) for place in grid.places])
            at_once = max(1, self.memory // base.bytes_per_variant())
            for draw, (i, layer) in product(range(self.replacements.draws), enumerate(grid.layers)):
                changes = SiteChanges(grid.kind, layer, base, self._value(grid.kind.name, layer, draw, rows))
                for unit, place in zip(unit_of.split(at_once), place_of.split(at_once), strict=True):
                    change = changes(None if together else units[unit], places[place])
                    values = base.metric_values(layer, grid.kind.point, change)
                    total[i, unit[:, None], place[:, None], here] += values
                    self._tell(len(unit), block)
        return by_pair(self.experiment, total / self.replacements.draws)

    def values(self, sets: Sequence[Sites]) -> Tensor:
        """The metric of each pair once the sites of a set are ablated, the mean over draws: `set pair`."""
        total = self._zeros(len(sets))
        for batch in self.batches(sets):
            total[batch.sets, batch.here] += batch.run.metric_values(batch.replaced)
        return by_pair(self.experiment, total / self.replacements.draws)

    def batches(self, sets: Sequence[Sites]) -> Iterator[Batch]:
        """Every set on every row, in every draw."""
        for block, rows, here in self._rows():
            run = JointRun(self._base(block))
            at_once = max(1, self.memory // run.bytes_per_variant())
            for draw in range(self.replacements.draws):
                for start in range(0, len(sets), at_once):
                    some = slice(start, min(start + at_once, len(sets)))
                    yield Batch(run, self._replaced(sets[some], block, rows, draw), some, here)
                    self._tell(some.stop - start, block)

    def _base(self, block: Experiment) -> ResumedRun:
        return ResumedRun(block, block.clean if self.base == "clean" else block.ablated)

    def _zeros(self, *shape: int) -> Tensor:
        """For sums at each readout."""
        readouts = self.experiment.readouts
        return torch.zeros(*shape, len(readouts), dtype=torch.float64, device=readouts.row.device)

    def _rows(self) -> Iterator[tuple[Experiment, slice, Tensor]]:
        """Each block, its rows, and which readouts are of them (as indices)."""
        first = 0
        for block in self.blocks:
            rows = slice(first, first + len(block.batch.clean))
            pair = self.experiment.readouts.row
            yield block, rows, ((pair >= rows.start) & (pair < rows.stop)).nonzero()[:, 0]
            first = rows.stop

    def _tell(self, count: int, block: Experiment) -> None:
        """So many sets are done in one draw, on the rows of a block."""
        self.tick(count * len(block.batch.clean) / len(self.experiment.batch.clean) / self.replacements.draws)

    def _value(self, kind: str, layer: int, draw: int, rows: slice) -> Tensor:
        """What stands in, on some rows."""
        value = self.replacements(kind, layer, draw)
        value = value[:, rows] if KINDS[kind].units == "head" else value[rows]
        return value.to(self.experiment.model.device)

    def _replaced(
        self, sets: Sequence[Sites], block: Experiment, rows: slice, draw: int
    ) -> dict[tuple[str, int], Replaced]:
        """What each variant, one a set, has replaced on the rows of a block."""
        model, n_rows, n_positions = block.model, *block.batch.clean.shape
        masks: dict[str, Tensor] = {}
        where: dict[tuple[str, int], Tensor] = {}
        for i, sites in enumerate(sets):
            for site in sites:
                units = KINDS[site.kind].units
                mask = masks.get(site.place.name)
                if mask is None:
                    mask = masks.setdefault(site.place.name, site.place.mask(block))
                key = site.kind, site.layer
                if key not in where:
                    mlp = model.layers[site.layer].mlp
                    shape: tuple[int, ...] = (n_rows, n_positions, 1)
                    if units == "head":
                        shape = (model.config.n_heads, *shape)
                    elif units == "neuron" and mlp is not None:
                        shape = (n_rows, n_positions, mlp.W_out.shape[0])
                    where[key] = torch.zeros(len(sets), *shape, dtype=torch.bool, device=model.device)
                if units == "head":
                    where[key][i, slice(None) if site.head is None else site.head] |= mask[..., None]
                elif units == "neuron":
                    where[key][i, ..., site.neuron] |= mask
                else:
                    where[key][i] |= mask[..., None]
        return {key: Replaced(chosen, self._value(*key, draw, rows)) for key, chosen in where.items()}


VALUES = ("zero", "mean", "mean_by_position", "resample")
PROMPTS = ("clean", "corrupted")


class AblationValues:
    """The values that are put in, of every row of an experiment.

    `mean`: over all tokens of all prompts; `mean_by_position`: at each position, those of prompts of different lengths
    found by their labels; a pair's partners share its weight. `resample`: the value at the same position of another
    pair, whose prompt has the same length and, where lengths differ, the same labels in the same places.

    Parameters
    ----------
    value : str
        One of `VALUES`.
    over : str
        `clean` or `corrupted`, the prompts that means and other pairs' values are of.
    draws : int
        How often another pair is drawn, for `resample`; the other values have one draw.
    seed : int
        The seed of the draws.

    Raises
    ------
    ConfigError
        Positions that do not correspond; a pair with no other like it.
    """

    def __init__(self, experiment: Experiment, value: str, over: str, draws: int = 1, seed: int = 0) -> None:
        self.value, self.draws = value, draws if value == "resample" else 1
        self.experiment = experiment
        batch = experiment.batch
        self.pairs = [experiment.pairs[i] for i in batch.source]
        self.same_length = bool((batch.lengths == batch.lengths[0]).all())
        if value.startswith("mean"):
            self.mean = self._mean()
        elif value == "resample":
            self.donors = self._donors(seed)
        self._values = experiment.clean if over == "clean" else experiment.ablated
        self._averaged = cache(self._average)

    def __call__(self, kind: str, layer: int, draw: int = 0) -> Tensor:
        """The value of all units of a layer, as `acdc.patching.values.site_value` has it."""
        if self.value != "resample":
            return self._averaged(kind, layer)
        value, donors = site_value(self._run, kind, layer), self.donors[draw]
        return value[:, donors] if KINDS[kind].units == "head" else value[donors]

    def check(self, kind: str) -> None:
        """ConfigError for attention patterns that have no mean, or lie on keys that do not correspond."""
        if kind == "pattern" and (self.value == "mean" or (self.value == "mean_by_position" and not self.same_length)):
            raise ConfigError(
                f"patch.value={self.value} does not fit patch.site=pattern, whose keys are positions: choose"
                f" {'mean_by_position, ' * self.same_length}resample or zero"
            )

    @cached_property
    def _run(self) -> ResumedRun:
        return ResumedRun(self.experiment, self._values)

    def _average(self, kind: str, layer: int) -> Tensor:
        """Zero or the mean. Queries and keys are averaged before they are rotated, as what the model learnt."""
        if self.value == "zero":
            return torch.zeros_like(site_value(self._run, kind, layer))
        rotary = self.experiment.model.layers[layer].rotary
        mean = self.mean(site_value(self._run, kind, layer, rotated=False))
        return rotary(mean) if rotary is not None and kind in ("q", "k") else mean

    def _mean(self) -> PairMean:
        batch = self.experiment.batch
        positions = torch.arange(batch.clean.shape[1], device=batch.lengths.device)
        if self.value == "mean":
            places = torch.where(positions < batch.lengths[:, None], 0, -1)
        elif self.same_length:
            places = positions.expand(len(self.pairs), -1)
        else:
            option, others = "patch.value=mean_by_position", "patch.value=mean, resample or zero"
            places = corresponding_positions(batch.lengths, self.pairs, option, others).to(positions.device)
        weights = torch.tensor([1 / len(pair.corrupted) for pair in self.pairs], dtype=torch.float64)
        return PairMean.over(places, weights.to(positions.device), self.experiment.model.dtype)

    def _donors(self, seed: int) -> Tensor:
        """For each draw and row the row whose value it gets, `draw row`."""
        source = self.experiment.batch.source
        alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
        kinds = [() if self.same_length else tuple(names_of_positions(pair)) for pair in self.pairs]
        for row, kind in enumerate(kinds):
            alike.setdefault(kind, []).append(row)
        generator = torch.Generator().manual_seed(seed)
        columns = []
        for row, kind in enumerate(kinds):
            others = torch.tensor([other for other in alike[kind] if source[other] != source[row]])
            if not len(others):
                what = "" if self.same_length else " of its length with its labels in the same places"
                raise ConfigError(
                    f"patch.value=resample takes values of another pair, and for {self.pairs[row].where} there is no"
                    f" other{what}: give more pairs{'' if self.same_length else ', or pairs of one length'}, or choose"
                    " patch.value=mean or zero"
                )
            columns.append(others[torch.randint(len(others), (self.draws,), generator=generator)])
        return torch.stack(columns, 1).to(self.experiment.model.device)
