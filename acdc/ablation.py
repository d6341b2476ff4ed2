"""What a removed edge carries: the corrupted run, zero, a mean or noise.

`Values` holds one run's sender outputs; heads are kept in their own `d_head` space (z), which is linear in what they
write and much smaller. Ablated values have the same form.

`mean` and `noise` compare pairs position by position. Which positions correspond is said by their index where all
prompts are equally long, and by the task's labels where they are not (`corresponding_positions`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from acdc.errors import ConfigError
from acdc.tasks.base import TokenizedPair

ABLATIONS = ("corrupted", "zero", "mean", "noise")


@dataclass(frozen=True)
class AblationSettings:
    """What a removed edge carries instead.

    Attributes
    ----------
    name: `corrupted`, the sender's output on the corrupted prompt; `zero`, nothing (attention output biases stay, as
        in the original ACDC); `mean`, the mean of the corrupted runs over the pairs, per position; `noise`, Gaussian
        around the clean value.
    scale: for noise, in standard deviations of that sender's clean output over the pairs, per position and dimension.
    draws: for noise, how many draws the metric is averaged over.
    seed: for noise.

    Raises
    ------
    ConfigError: another name, a scale that is negative or not finite, no draw; an option of noise for something else.
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
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"ablation.scale={self.scale} is not allowed: give a finite number, 0 or more")
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if self.name != "noise" and value != option.default:
                raise ConfigError(
                    f"ablation.{option.name}={value} has no effect with ablation={self.name}: it is for noise"
                )


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


def ablated_values(
    settings: AblationSettings,
    clean: Values,
    corrupted: Values,
    lengths: Tensor,
    pairs: Sequence[TokenizedPair] = (),
) -> Values:
    """What every sender's removed edges carry, with the shapes of `Values`.

    `mean` is the mean over the pairs of the mean over a pair's corrupted runs; `noise` the clean value plus Gaussian
    noise of `scale` standard deviations of the clean runs over the pairs (n in the denominator); both at each position
    and dimension.

    Parameters
    ----------
    lengths: tokens of each row, `row`.
    pairs: the pair of each row; its labels say which positions of prompts of different lengths correspond, and each of
        its rows has an equal share of its weight. Without them all rows weigh the same.

    Raises
    ------
    ConfigError: `mean` or `noise` with pairs of different lengths whose positions do not correspond.
    """
    if settings.name == "corrupted":
        return corrupted
    if settings.name == "zero":
        return Values(*(torch.zeros_like(t) for t in (clean.inputs, clean.heads, clean.mlps)))
    if bool((lengths == lengths[0]).all()):
        places = torch.arange(clean.inputs.shape[-2]).expand(len(lengths), -1)
    else:
        option, others = f"ablation={settings.name}", "ablation=corrupted or zero"
        places = corresponding_positions(lengths, pairs, option, others)
    weights = torch.tensor([1 / len(pair.corrupted) for pair in pairs] or [1.0] * len(lengths), dtype=torch.float64)
    mean = PairMean.over(places.to(lengths.device), weights.to(lengths.device), clean.inputs.dtype)
    if settings.name == "mean":
        return Values(*(mean(t) for t in (corrupted.inputs, corrupted.heads, corrupted.mlps)))
    # Drawn on the CPU in float64, so that the same seed gives the same noise on every device.
    generator = torch.Generator().manual_seed(settings.seed)

    def noisy(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device, value.dtype)
        return value + settings.scale * noise * mean((value - mean(value)).square()).sqrt()

    return Values(*(noisy(t) for t in (clean.inputs, clean.heads, clean.mlps)))


def corresponding_positions(lengths: Tensor, pairs: Sequence[TokenizedPair], option: str, others: str) -> Tensor:
    """Which positions of prompts of different lengths correspond, by the labels of the pairs: `row pos`.

    Positions with the same number correspond; −1 is behind the end of a prompt. A labelled token is known by its label
    and its place in the label's span. A token between labels is known by its distance from the label before it, one
    before the first label by its distance from the start. Where labels overlap, the one named first counts.

    Parameters
    ----------
    lengths: tokens of each row, `row`. pairs: the pair of each row. option, others: what needs this and what does not,
        for messages.

    Raises
    ------
    ConfigError: no labels, or a position that no other pair has.
    """
    problem = (
        f"{option} averages over pairs position by position, but the prompts have {int(lengths.min())} to"
        f" {int(lengths.max())} tokens and "
    )
    advice = f"choose {others}, or pairs of one length"
    unlabelled = [pair.where for pair in pairs if not pair.labels]
    if unlabelled or not pairs:
        where = f" ({unlabelled[0]} has none)" if unlabelled else ""
        raise ConfigError(f"{problem}no labels say which of them correspond{where}: give labels, or {advice}")
    by_row = [names_of_positions(pair) for pair in pairs]
    owners: dict[tuple[str, int], set[int]] = {}
    for pair, names in zip(pairs, by_row, strict=True):
        for place in names:
            owners.setdefault(place, set()).add(id(pair))
    for pair, names in zip(pairs, by_row, strict=True):
        for position, (label, distance) in enumerate(names):
            if len(owners[label, distance]) < 2:
                which = f"{distance} behind the start of {label!r}" if label else "before the first label"
                raise ConfigError(
                    f"{problem}position {position} of {pair.where} ({which}) has no counterpart in another pair: give"
                    f" more pairs or labels, or {advice}"
                )
    index = {place: i for i, place in enumerate(owners)}
    width = int(lengths.max())
    return torch.tensor([[*(index[p] for p in names), *[-1] * (width - len(names))] for names in by_row])


def names_of_positions(pair: TokenizedPair) -> list[tuple[str, int]]:
    """For each position the label that holds it or came last, and the distance from that label's start."""
    names: list[tuple[str, int]] = []
    label, start = "", 0
    for position in range(len(pair.clean)):
        for name, (first, stop) in pair.labels.items():
            if first <= position < stop:
                label, start = name, first
                break
        names.append((label, position - start))
    return names


@dataclass(frozen=True)
class PairMean:
    """The mean over rows at corresponding positions, given back to each of them.

    `average`: `place (row pos)`, each place's weights summing to 1. `places`: `(row pos)`, 0 behind a prompt's end.
    A product of matrices, so that the same device always gives the same sums.
    """

    average: Tensor
    places: Tensor

    @classmethod
    def over(cls, places: Tensor, weights: Tensor, dtype: torch.dtype) -> PairMean:
        flat = places.flatten()
        chosen = flat == torch.arange(int(flat.max()) + 1, device=flat.device)[:, None]
        average = chosen * weights.repeat_interleave(places.shape[1])
        return cls((average / average.sum(1, keepdim=True)).to(dtype), flat.clamp_min(0))

    def __call__(self, value: Tensor) -> Tensor:
        means = self.average @ value.flatten(-3, -2)
        spread: Tensor = means[..., self.places, :].unflatten(-2, value.shape[-3:-1])
        return spread
