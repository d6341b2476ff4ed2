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

from acdc.tasks._common import check_choice, check_settings, partners
from acdc.tasks._compiled import L2_THRESHOLD, at_most, check_model
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("resample", "permuted")
WORDS = (0, 1, 2)
BOS = 3
N_TOKENS = 5
MAX_LENGTH = 4

MODEL = "tracr_reverse"


@dataclass(frozen=True)
class Settings(TaskSettings):
    """`length`: words behind BOS, 2 to 4. `size`: at most so many pairs; there are 27 sequences of three words."""

    name: str = "tracr_reverse"
    corruption: str = "resample"
    length: int = 3


def build(settings: Settings, tokenizer: Tokenizer) -> Task:
    check_settings(settings, CORRUPTIONS)
    check_choice("length", settings.length, range(2, MAX_LENGTH + 1))
    notes: list[str] = []
    check_model(settings.name, N_TOKENS, tokenizer, notes)
    sequences = list(product(WORDS, repeat=settings.length))
    if settings.corruption == "permuted":
        sequences = [words for words in sequences if len(set(words)) > 1]
    rng = random.Random(settings.seed)
    pairs = []
    for words in at_most(sequences, settings.size, settings.seed):
        others = sorted(set(permutations(words))) if settings.corruption == "permuted" else sequences
        prompts = [[BOS, *other] for other in others if other != words]
        pairs.append(
            Pair(
                [BOS, *words],
                partners(settings, rng.choice(prompts), partial(rng.choice, prompts)),
                answers=[[word] for word in reversed(words)],
                wrong_answers=[[other for other in WORDS if other != word] for word in reversed(words)],
                position=list(range(1, settings.length + 1)),
                labels={"BOS": 0, "words": [1, settings.length + 1]},
            )
        )
    return Task(settings.name, pairs, "l2", {"l2": L2_THRESHOLD}, notes, model=MODEL)
