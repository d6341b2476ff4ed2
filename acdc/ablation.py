"""What a removed edge carries: the corrupted run, zero, a mean or noise.

`Values` holds one run's sender outputs; heads are kept in their own `d_head` space (z), which is linear in what they
write and much smaller. Ablated values have the same form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.errors import ConfigError

ABLATIONS = ("corrupted", "zero", "mean", "noise")


@dataclass(frozen=True)
class AblationSettings:
    """What a removed edge carries instead.

    Attributes
    ----------
    name: `corrupted`, the sender's output on the corrupted prompt; `zero`, nothing (attention output biases stay, as
        in the original ACDC); `mean`, the mean of the corrupted runs over the pairs, per position; `noise`, Gaussian
        around the clean value.
    scale: for noise, in standard deviations of that sender over the pairs, per position and dimension.
    draws: for noise, how many draws the metric is averaged over.
    seed: for noise.
    """

    name: str = "corrupted"
    scale: float = 1.0
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in ABLATIONS:
            raise ConfigError(f"ablation={self.name} is not known: choose one of {', '.join(ABLATIONS)}")
        if self.draws < 1:
            raise ConfigError(f"ablation.draws={self.draws} is not allowed: give 1 or more")
        if self.draws > 1 and self.name != "noise":
            raise ConfigError(f"ablation.draws={self.draws} has no effect with ablation={self.name}: it is for noise")


@dataclass(frozen=True)
class Values:
    """Sender outputs of one run over `pair pos`.

    `inputs`: `input pair pos d_model`. `heads`: `layer head pair pos d_head` (z, before W_O). `mlps`:
    `layer pair pos d_model`, with no layers in an attention-only model.
    """

    inputs: Tensor
    heads: Tensor
    mlps: Tensor

    def rows(self, start: int, stop: int) -> Values:
        """The values of some pairs."""
        some = slice(start, stop)
        return Values(self.inputs[:, some], self.heads[:, :, some], self.mlps[:, some])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Values:
        return Values(self.inputs.to(device, dtype), self.heads.to(device, dtype), self.mlps.to(device, dtype))


def ablated_values(settings: AblationSettings, clean: Values, corrupted: Values, lengths: Tensor) -> Values:
    """What every sender's removed edges carry, with the shapes of `Values`.

    Parameters
    ----------
    lengths: tokens of each pair, `pair`.

    Raises
    ------
    ConfigError: `mean` or `noise` with pairs of different lengths, whose positions do not correspond.
    """
    if settings.name == "corrupted":
        return corrupted
    if settings.name == "zero":
        return Values(*(torch.zeros_like(t) for t in (clean.inputs, clean.heads, clean.mlps)))
    if bool((lengths != lengths[0]).any()):
        raise ConfigError(
            f"ablation={settings.name} averages over pairs position by position, but the prompts have"
            f" {int(lengths.min())} to {int(lengths.max())} tokens: choose ablation=corrupted or zero"
        )
    if settings.name == "mean":
        return Values(*(_mean(t) for t in (corrupted.inputs, corrupted.heads, corrupted.mlps)))
    # Drawn on the CPU in float64, so that the same seed gives the same noise on every device.
    generator = torch.Generator().manual_seed(settings.seed)

    def noisy(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device, value.dtype)
        return value + settings.scale * noise * value.std(_PAIR, correction=0, keepdim=True)

    return Values(*(noisy(t) for t in (clean.inputs, clean.heads, clean.mlps)))


_PAIR = -3


def _mean(value: Tensor) -> Tensor:
    return value.mean(_PAIR, keepdim=True).expand_as(value).contiguous()
