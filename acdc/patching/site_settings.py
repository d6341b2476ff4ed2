"""Which sites of a model are patched, and which way: what every sweep over sites is told."""

from __future__ import annotations

from dataclasses import dataclass

from acdc.experiment import Experiment
from acdc.patching.base import DIRECTIONS, PatchOptions, check_ablation, check_scale
from acdc.patching.sites import WAYS, Choice, Grid
from acdc.settings import option


@dataclass(frozen=True)
class SiteSettings(PatchOptions):
    """Which sites are patched, and which way."""

    name: str = ""
    site: list[str] | str = option(
        "head_output",
        "resid_pre, resid_mid, resid_post, attn_out, mlp_out, head_output, q, k, v, pattern or neuron; [q,k]"
        " for several",
    )
    by: str = option(
        "auto",
        "how the sites of a layer are told apart: position, head, head_position, neuron, neuron_position;"
        " auto: head, neuron or else position",
        ("auto", *dict.fromkeys(way for ways in WAYS.values() for way in ways)),
    )
    direction: str = option(
        "both",
        "noise: corrupted value into the clean run; denoise: clean value into the corrupted run; both",
        (*DIRECTIONS, "both"),
    )
    layers: list[int] | int | None = option(None, "those to patch, such as [0,3]; null is all")
    heads: list[int] | int | None = option(None, "the same for heads")
    neurons: list[int] | int | None = option(None, "the same for neurons")
    positions: list[int | str] | int | str | None = option(
        None,
        'indices, labels of the task and spans, such as [S2,-1,"2:5"]; null is all. By head or neuron they are'
        " patched together",
    )
    memory_gb: float | None = option(
        None,
        "what temporary tensors may take; null is a share of what is free",
        above=0,
    )

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
