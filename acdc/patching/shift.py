"""Distribution shift: how far a value that is put in lies from what its site has on clean prompts.

A model has never seen a value that lies far out, so what it does then may say little about the site. The distance is
Mahalanobis', from the clean values at the site's tokens. These are few and their dimensions many, so their covariance
is shrunk towards a multiple of the identity, by the share that Ledoit and Wolf (2004) give. What is usual is said by
the clean values themselves, each against all others (leave-one-out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from acdc.experiment import Experiment
from acdc.patching.sites import Grid
from acdc.patching.values import RunValues

QUANTILE = (
    0.99  # of the clean values are within the range: by distance, and with as many left out at either end by norm
)
_FLOOR = 1e-6  # of the mean square: a variance that rounding could make
_LEAST = 1e-3  # a distance for each dimension's standard deviation that rounding could make


@dataclass(frozen=True)
class Shift:
    """Of every site of a grid, `layer unit place`, means over tokens, rows and draws; NaN where one clean value is all.

    Attributes
    ----------
    distance : torch.Tensor
        Mahalanobis distance of the values put in, in units of the mean leave-one-out distance of the clean ones: 1 is
        what a clean value has.
    norm_ratio : torch.Tensor
        The norm of the values put in, over that of the clean ones.
    norm_z : torch.Tensor
        The difference of these norms, over the standard deviation of the clean ones.
    shifted : torch.Tensor
        Whether the distance is beyond the limit or the norm outside the range of the clean norms.
    """

    distance: Tensor
    norm_ratio: Tensor
    norm_z: Tensor
    shifted: Tensor

    def columns(self) -> list[dict[str, Any]]:
        """`shift` (the distance, None where it is not known) and `shifted` of every site, in the order of the grid."""
        each = zip(self.distance.flatten().tolist(), self.shifted.flatten().tolist(), strict=True)
        return [{"shift": None if math.isnan(distance) else distance, "shifted": shifted} for distance, shifted in each]


class CleanRange:
    """Clean values of sites, and distances from them.

    Parameters
    ----------
    samples : torch.Tensor
        The clean values, `unit sample d`, in float64.

    Attributes
    ----------
    leave_one_out : torch.Tensor
        The distance of each sample from the others, `unit sample`; the shrinkage is that of all samples.
    """

    def __init__(self, samples: Tensor) -> None:
        n, d = samples.shape[1:]
        self.mean = samples.mean(1, keepdim=True)
        x = samples - self.mean
        if d <= n:
            self.variances, self.axes = torch.linalg.eigh(x.transpose(1, 2) @ x / n)
        else:
            self.variances, left = torch.linalg.eigh(x @ x.transpose(1, 2) / n)
            scale = (n * self.variances).clamp_min(0).sqrt()
            real = scale > 1e-7 * scale.amax(1, keepdim=True)
            self.axes = x.transpose(1, 2) @ left * torch.where(real, 1 / scale, 0)[:, None]
        self.complete = d <= n
        self.variances = self.variances.clamp_min(0)
        mean_variance, square = self.variances.sum(1) / d, self.variances.square().sum(1)
        spread = square / d - mean_variance.square()
        error = (x.square().sum(-1).square().sum(1) / n - square) / (n * d)
        share = torch.where(spread > 1e-12 * mean_variance.square(), error / spread, 0).clamp(0, 1)
        self.kept = 1 - share
        self.ridge = share * mean_variance + _FLOOR * samples.square().mean((1, 2)) + 1e-30
        # Without a sample the mean moves by its deviation / (n − 1), and the covariance loses a term of rank one.
        q = self._quadratic(x, self.kept * n / max(n - 1, 1))
        without = 1 - self.kept[:, None] * n / max(n - 1, 1) ** 2 * q
        self.leave_one_out = n / max(n - 1, 1) * (q / without).sqrt()
        if n < 2:
            self.leave_one_out = torch.full_like(q, float("nan"))

    def distances(self, values: Tensor) -> Tensor:
        """Mahalanobis distances, `unit value d` → `unit value`."""
        return self._quadratic(values - self.mean, self.kept).sqrt()

    def _quadratic(self, x: Tensor, kept: Tensor) -> Tensor:
        along = (x @ self.axes).square()
        ridge = self.ridge[:, None]
        found: Tensor = (along / (kept[:, None] * self.variances + ridge)[:, None]).sum(-1)
        if not self.complete:
            found = found + (x.square().sum(-1) - along.sum(-1)).clamp_min(0) / ridge
        return found


@torch.no_grad()
def measure(
    experiment: Experiment,
    grids: Sequence[Grid],
    put: Callable[[str, int], Iterable[Tensor]],
    memory: int,
    limit: float | None = None,
) -> list[Shift]:
    """The shift of every site of each grid.

    Parameters
    ----------
    put : callable
        Gives, for a kind and layer, the values that are put in, each as `acdc.patching.values.site_value` has it.
    memory : int
        Bytes of temporary tensors.
    limit : float or None
        The distance beyond which a site is shifted; None is the 99 % quantile of the clean values' own.
    """
    clean_value, source = RunValues(experiment, "clean", memory), experiment.batch.source
    first = torch.tensor([row == 0 or source[row - 1] != pair for row, pair in enumerate(source)])  # of each pair
    shifts = []
    for grid in grids:
        masks = [place.mask(experiment).cpu() for place in grid.places]
        layers = []
        for layer in grid.layers:
            clean = _by_unit(clean_value(grid.kind.name, layer), grid)
            values = [_by_unit(value, grid) for value in put(grid.kind.name, layer)]
            layers.append([_measured(clean[:, first[:, None] & m], [v[:, m] for v in values], limit) for m in masks])
        names = [field.name for field in fields(Shift)]
        found = (torch.stack([torch.stack([one[i] for one in row], -1) for row in layers]) for i in range(len(names)))
        shifts.append(Shift(**dict(zip(names, found, strict=True))))
    return shifts


def _measured(clean: Tensor, values: Sequence[Tensor], limit: float | None) -> tuple[Tensor, ...]:
    """The numbers of `Shift` for the units of a layer at one place, each `unit`."""
    usual, count = CleanRange(clean), clean.shape[1]
    least = _LEAST * clean.shape[-1] ** 0.5
    one = usual.leave_one_out.mean(1).clamp_min(least)
    distance = torch.stack([usual.distances(v).mean(1) for v in values]).mean(0) / one
    distance = torch.where(one.isnan(), float("nan"), distance)
    furthest = usual.leave_one_out.kthvalue(math.ceil(QUANTILE * count), 1).values.clamp_min(least) / one
    norms, norm = clean.norm(dim=-1), torch.stack([v.norm(dim=-1).mean(1) for v in values]).mean(0)
    mean, slack = norms.mean(1), _FLOOR * norms.mean(1)
    spread = norms.std(1) if count > 1 else torch.full_like(norm, float("nan"))
    ends = (1 + int((1 - QUANTILE) / 2 * count), math.ceil((1 + QUANTILE) / 2 * count))
    low, high = (norms.kthvalue(k, 1).values for k in ends)
    shifted = distance > (furthest if limit is None else limit)
    if count > 1:
        shifted |= (norm < low - slack) | (norm > high + slack)
    ratio = torch.where(mean > 0, norm / mean, float("nan"))
    z = torch.where(spread > slack, (norm - mean) / spread, float("nan"))
    return distance, ratio, z, shifted


def _by_unit(value: Tensor, grid: Grid) -> Tensor:
    """A layer's value as `unit row pos d` in float64; units that go together are one."""
    value = value.cpu().double()
    if grid.kind.units == "":
        return value[None]
    if grid.units == (None,):
        return value.movedim(0, -2).flatten(-2)[None]
    units = torch.tensor([unit for unit in grid.units if unit is not None])
    return value.movedim(-1, 0)[units][..., None] if grid.kind.units == "neuron" else value[units]
