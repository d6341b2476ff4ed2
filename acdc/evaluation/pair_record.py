"""What is recorded of a pair: what differs between its prompts, and what the model makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from acdc.evaluation.preference import Preference


@dataclass(frozen=True)
class Limits:
    """From where on pairs are called unsuitable.

    Attributes
    ----------
    accuracy : float
        The least share of pairs in which the model prefers the answer.
    left : float
        The largest share of the clean preference that a corrupted run may leave and still count as `weaker`.
    unchanged : float
        The largest share of corrupted prompts that may leave more than that.
    equal : float
        The least share of equal tokens at the same place in prompts given as text.
    rank_factor : float
        How many times rarer the tokens of one side may be, in the geometric mean.
    margin, differing
        What the filters `confident` and `minimal` ask for unless told otherwise.
    """

    accuracy: float = 0.8
    left: float = 0.5
    unchanged: float = 0.5
    equal: float = 0.5
    rank_factor: float = 10.0
    margin: float = 0.1
    differing: int = 1


@dataclass(frozen=True)
class Swap:
    """One token that differs.

    Attributes
    ----------
    position : int
    label : str
        The label of the position, or "".
    clean, corrupted : int
        The tokens.
    clean_rank, corrupted_rank : int or None
        1 is the most frequent token; None is unknown.
    """

    position: int
    label: str
    clean: int
    corrupted: int
    clean_rank: int | None
    corrupted_rank: int | None

    @property
    def rank_ratio(self) -> float | None:
        """The corrupted token's rank over the clean one's: above 1, the corrupted token is rarer."""
        return self.corrupted_rank / self.clean_rank if self.clean_rank and self.corrupted_rank else None


@dataclass(frozen=True)
class PairRecord:
    """A pair with one of its corrupted partners.

    Attributes
    ----------
    pair, partner : int
        Their indices.
    where : str
        The pair's name in messages.
    n_tokens : int
    swaps : tuple of Swap
        The tokens that differ, in order.
    shift : int
        By how many tokens a stretch of the corrupted prompt is moved against the clean one; 0 if it is not.
    reads_before : bool
        The metric reads only before the first difference, where a causal model cannot differ.
    repeats : int or None
        An earlier pair with the same prompts.
    same_clean : int or None
        An earlier pair with the same clean prompt.
    has_answers : bool
        Whether the pair has answers; otherwise the model's own top token on the clean prompt stands for them.
    clean, corrupted : Preference
    outcome : str
        The corrupted run's preference against the clean one's: `opposite` (the other is preferred), `weaker` (at most
        the share `Limits.left` is left), `same`, or `none` for a model with one output.
    kl : float
        KL(clean ‖ corrupted) in nats.
    l2 : float
        The mean squared difference of the logits.
    """

    pair: int
    partner: int
    where: str
    n_tokens: int
    swaps: tuple[Swap, ...]
    shift: int
    reads_before: bool
    repeats: int | None
    same_clean: int | None
    has_answers: bool
    clean: Preference
    corrupted: Preference
    outcome: str
    kl: float
    l2: float

    @property
    def equal_share(self) -> float:
        """The share of positions at which both prompts have the same token."""
        return 1 - len(self.swaps) / self.n_tokens

    @property
    def first_difference(self) -> int | None:
        return self.swaps[0].position if self.swaps else None

    @property
    def prefers_answer(self) -> bool:
        return self.clean.value > 0

    @property
    def left(self) -> float:
        """The share of the clean preference that is left in the corrupted run; negative where it is reversed."""
        return self.corrupted.value / self.clean.value if self.clean.value else math.nan
