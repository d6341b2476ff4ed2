"""The tracr program that counts the share of "x" so far (Lindner et al. 2023; a task of Conmy et al. 2023).

    clean      BOS w x y x    → 0 1/2 1/3 1/2 behind BOS
    corrupted  BOS x y z w    (resample)
    corrupted  BOS x w x y    (permuted)

The model is compiled, not trained (`scripts/compile_tracr.py`), so its circuit is known. The prompts are token ids
(BOS is 0; w, x, y, z are 2 to 5); every position but the first is read, and the one logit is the number. Corruptions:
`resample` is another random sequence; `permuted` has the same words in another order. A sequence that gives the same
numbers (y for z, say) is not used as a corrupted one.

`prompts=original` gives the prompts of the original ACDC's code: four random ids from 0 to 3 and no BOS. For tracr
these are BOS, PAD, w and x, so BOS stands anywhere, and edges matter that the program does not need.

The metric is L2, as in the original (there is no answer among tokens to compare); the threshold is the middle of its
sweep, 1e-5 … 1e-1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from typing import ClassVar

from acdc.settings import option
from acdc.tasks._common import partners
from acdc.tasks._compiled import L2_THRESHOLD, at_most, check_model
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("resample", "permuted")
PROMPTS = ("words", "original")
BOS, PAD, W, X, Y, Z = range(6)
MAX_LENGTH = 4


@dataclass(frozen=True)
class TracrProportion(TaskSettings):
    """The tracr program that counts the share of x so far: BOS w x y x → 0 1/2 1/3 1/2"""

    own_model: ClassVar[str | None] = "tracr_proportion"

    name: str = "tracr_proportion"
    size: int = option(32, "number of pairs, at most; there are 256 sequences of four words")
    corruption: str = option(
        "resample",
        "resample: another random sequence; permuted: the same words in another order",
        CORRUPTIONS,
    )
    prepend_bos: bool | None = option(None, "stays null: the prompts are token ids, and the model has no tokenizer")
    length: int = option(MAX_LENGTH, "words behind BOS: 2 to 4", range(2, MAX_LENGTH + 1))
    prompts: str = option(
        "words",
        "words: BOS and words; original: ids 0 to 3 without BOS, as the original ACDC's code has them",
        PROMPTS,
    )

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        check_model(self.name, 6, tokenizer, notes)
        start, words = ([BOS], (W, X, Y, Z)) if self.prompts == "words" else ([], (BOS, PAD, W, X))
        sequences = list(product(words, repeat=self.length))
        if self.corruption == "permuted":
            sequences = [sequence for sequence in sequences if len(set(_is_x(sequence))) > 1]
        rng = random.Random(self.seed)
        pairs = []
        for sequence in at_most(sequences, self.size, self.seed):
            others = sorted(set(permutations(sequence))) if self.corruption == "permuted" else sequences
            prompts = [[*start, *other] for other in others if _is_x(other) != _is_x(sequence)]
            corrupted = partners(self, rng.choice(prompts), partial(rng.choice, prompts))
            positions = list(range(1, len(start) + self.length))
            pairs.append(Pair([*start, *sequence], corrupted, position=positions))
        return Task(self.name, pairs, "l2", {"l2": L2_THRESHOLD}, notes, model=self.own_model)


def _is_x(words: tuple[int, ...]) -> list[bool]:
    return [word == X for word in words]
