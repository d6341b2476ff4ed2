"""The tracr program that reverses a sequence (Lindner et al. 2023; a task of Conmy et al. 2023).

    clean      BOS 1 2 2    → 2 2 1 behind BOS
    corrupted  BOS 3 1 2    (resample)
    corrupted  BOS 2 1 2    (permuted)

The model is compiled, not trained (`scripts/compile_tracr.py`), so its circuit is known. The prompts are token ids
(1, 2, 3 are 0, 1, 2; BOS is 3); every position behind BOS is read. Corruptions: `resample` is another random sequence;
`permuted` has the same words in another order, as in the original, whose prompts are the six orders of 1 2 3. The
model can read four words; with four, the most it knows, it need not find out how long the sequence is, and two edges of
its circuit have no part.

The metric is L2, as in the original; the threshold is the middle of its sweep, 1e-5 … 1e-1.
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
WORDS = (0, 1, 2)
BOS = 3
N_TOKENS = 5
MAX_LENGTH = 4


@dataclass(frozen=True)
class TracrReverse(TaskSettings):
    """The tracr program that reverses a sequence: BOS 1 2 2 → 2 2 1"""

    own_model: ClassVar[str | None] = "tracr_reverse"

    name: str = "tracr_reverse"
    size: int = option(32, "number of pairs, at most; there are 27 sequences of three words")
    corruption: str = option(
        "resample",
        "resample: another random sequence; permuted: the same words in another order",
        CORRUPTIONS,
    )
    prepend_bos: bool | None = option(None, "stays null: the prompts are token ids, and the model has no tokenizer")
    length: int = option(3, "words behind BOS: 2 to 4", range(2, MAX_LENGTH + 1))

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        check_model(self.name, N_TOKENS, tokenizer, notes)
        sequences = list(product(WORDS, repeat=self.length))
        if self.corruption == "permuted":
            sequences = [words for words in sequences if len(set(words)) > 1]
        rng = random.Random(self.seed)
        pairs = []
        for words in at_most(sequences, self.size, self.seed):
            others = sorted(set(permutations(words))) if self.corruption == "permuted" else sequences
            prompts = [[BOS, *other] for other in others if other != words]
            pairs.append(
                Pair(
                    [BOS, *words],
                    partners(self, rng.choice(prompts), partial(rng.choice, prompts)),
                    answers=[[word] for word in reversed(words)],
                    wrong_answers=[[other for other in WORDS if other != word] for word in reversed(words)],
                    position=list(range(1, self.length + 1)),
                    labels={"BOS": 0, "words": [1, self.length + 1]},
                )
            )
        return Task(self.name, pairs, "l2", {"l2": L2_THRESHOLD}, notes, model=self.own_model)
