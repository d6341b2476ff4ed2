"""What stands in for an ablated activation: zero, a mean, or another pair's value."""

from __future__ import annotations

from functools import cache, cached_property

import torch
from torch import Tensor

from acdc.ablation import PairMean, corresponding_positions, names_of_positions
from acdc.engine.resumed import ResumedRun
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.sites import KINDS
from acdc.patching.values import site_value

VALUES = ("zero", "mean", "mean_by_position", "resample")
PROMPTS = ("clean", "corrupted")


class StandIns:
    """The values that are put in, of every row of an experiment.

    `mean`: over all tokens of all prompts; `mean_by_position`: at each position, those of prompts of different lengths
    found by their labels; a pair's partners share its weight. `resample`: the value at the same position of another
    pair, whose prompt has the same length and, where lengths differ, the same labels in the same places.

    Parameters
    ----------
    value: one of `VALUES`. over: `clean` or `corrupted`, the prompts that means and other pairs' values are of.
    draws: of the other pair, for `resample`; for the rest there is one. seed: of the draws.

    Raises
    ------
    ConfigError: positions that do not correspond; a pair with no other like it.
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
