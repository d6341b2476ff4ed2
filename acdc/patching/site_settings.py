"""Which sites of a model are patched, and which way: what every sweep over sites is told."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acdc.engine.memory import budget_bytes
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.patching.base import DIRECTIONS, check_ablation, check_scale
from acdc.patching.sites import WAYS, Choice, Grid


@dataclass(frozen=True)
class SiteSettings:
    """Which sites, and which way.

    Attributes
    ----------
    name: of the kind of patching.
    site: one or several of `acdc.patching.sites.KINDS`.
    by: how the sites of a layer are told apart: `position`, `head`, `head_position`, `neuron`, `neuron_position`;
        `auto` is by head, neuron or, where there are none, position.
    direction: `noise`, `denoise` or `both`.
    layers, heads, neurons: those to patch; None is all.
    positions: indices, labels or spans `start:end`; None is all. By head or neuron they are patched together.
    memory_gb: what temporary tensors may take; None is a share of what is free.
    """

    name: str
    site: list[str] | str = "head_output"
    by: str = "auto"
    direction: str = "both"
    layers: list[int] | int | None = None
    heads: list[int] | int | None = None
    neurons: list[int] | int | None = None
    positions: list[int | str] | int | str | None = None
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


def check(experiment: Experiment, settings: SiteSettings) -> list[Grid]:
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
