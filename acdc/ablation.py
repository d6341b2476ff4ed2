"""What a removed edge carries: the corrupted run, zero, a mean or noise.

`Values` holds one run's sender outputs; heads are kept in their own `d_head` space (z), which is linear in what they
write and much smaller. Ablated values have the same form.

`mean` and `noise` compare pairs position by position. Which positions correspond is said by their index where all
prompts are equally long, and by the task's labels where they are not (`corresponding_positions`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acdc.doors import Door
from acdc.errors import ConfigError
from acdc.settings import Settings, option
from acdc.tasks.base import TokenizedPair


@dataclass(frozen=True)
class Values:
    """What every sender writes in one run.

    Attributes
    ----------
    inputs : `input row pos d_model`.
    heads : z, before W_O, `layer head row pos d_head`.
    mlps : `layer row pos d_model`, with no layers in an attention-only model.
    """

    inputs: Tensor
    heads: Tensor
    mlps: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Values:
        """The values with every tensor changed."""
        return Values(change(self.inputs), change(self.heads), change(self.mlps))

    def rows(self, start: int, stop: int) -> Values:
        """The values of some rows."""
        some = slice(start, stop)
        return Values(self.inputs[:, some], self.heads[:, :, some], self.mlps[:, some])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Values:
        return self.map(lambda value: value.to(device, dtype))


@dataclass(frozen=True)
class Ablation(Settings, ABC):
    """An ablation: its options are fields, and `values` says what every sender's removed edges carry.

    Attributes
    ----------
    reads_corrupted_run : whether `values` reads what the senders write on the corrupted prompts.
    """

    GROUP: ClassVar[str] = "ablation"
    reads_corrupted_run: ClassVar[bool] = True

    name: str = ""

    @property
    def n_draws(self) -> int:
        """How many draws the metric is averaged over; each is a row of its own."""
        return 1

    @abstractmethod
    def values(self, clean: Values, corrupted: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> Values:
        """What every sender's removed edges carry.

        Parameters
        ----------
        clean, corrupted : what the senders write on the clean and the corrupted prompts. Where `reads_corrupted_run` is
            false, both are those of the clean ones.
        lengths : tokens of each row, `row`.
        pairs : the pair of each row. Its labels say which positions of prompts of different lengths correspond, and
            each of its rows has an equal share of its weight.

        Raises
        ------
        ConfigError
            The ablation cannot be had on these pairs.
        """


@dataclass(frozen=True)
class Corrupted(Ablation):
    """A removed edge carries what the sender writes on the corrupted prompt (resample, interchange ablation)."""

    name: str = "corrupted"

    def values(self, clean: Values, corrupted: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> Values:
        return corrupted


@dataclass(frozen=True)
class Zero(Ablation):
    """A removed edge carries nothing. Attention output biases are no sender's and stay, as in the original ACDC."""

    reads_corrupted_run: ClassVar[bool] = False

    name: str = "zero"

    def values(self, clean: Values, corrupted: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> Values:
        return clean.map(torch.zeros_like)


@dataclass(frozen=True)
class Mean(Ablation):
    """A removed edge carries the mean of the corrupted runs over the pairs, position by position."""

    name: str = "mean"

    def values(self, clean: Values, corrupted: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> Values:
        return corrupted.map(_mean_over_pairs(self, clean, lengths, pairs))


@dataclass(frozen=True)
class Noise(Ablation):
    """A removed edge carries the clean value plus Gaussian noise."""

    reads_corrupted_run: ClassVar[bool] = False

    name: str = "noise"
    scale: float = option(
        1.0, "in standard deviations of the sender over the pairs, per position and dimension", least=0
    )
    draws: int = option(1, "draws that the metric is averaged over", least=1)
    seed: int = option(0, "of the noise")

    @property
    def n_draws(self) -> int:
        return self.draws

    def values(self, clean: Values, corrupted: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> Values:
        mean = _mean_over_pairs(self, clean, lengths, pairs)
        # Drawn on the CPU in float64, so that the same seed gives the same noise on every device.
        generator = torch.Generator().manual_seed(self.seed)

        def noisy(value: Tensor) -> Tensor:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device, value.dtype)
            return value + self.scale * noise * mean((value - mean(value)).square()).sqrt()

        return clean.map(noisy)


ABLATIONS: Door[Ablation] = Door(
    base=Ablation,  # type: ignore[type-abstract]
    built_in={
        "corrupted": "acdc.ablation:Corrupted",
        "zero": "acdc.ablation:Zero",
        "mean": "acdc.ablation:Mean",
        "noise": "acdc.ablation:Noise",
    },
    entry_points="acdc.ablations",
    what="an ablation",
)


def _mean_over_pairs(ablation: Ablation, clean: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> PairMean:
    """The mean over the pairs of the mean over a pair's rows, at each position. Without pairs all rows weigh the same.

    Raises
    ------
    ConfigError
        Pairs of different lengths whose positions do not correspond.
    """
    if bool((lengths == lengths[0]).all()):
        places = torch.arange(clean.inputs.shape[-2]).expand(len(lengths), -1)
    else:
        places = corresponding_positions(lengths, pairs, f"ablation={ablation.name}", "ablation=corrupted or zero")
    weights = torch.tensor([1 / len(pair.corrupted) for pair in pairs] or [1.0] * len(lengths), dtype=torch.float64)
    return PairMean.over(places.to(lengths.device), weights.to(lengths.device), clean.inputs.dtype)


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
