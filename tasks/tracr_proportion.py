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

from acdc.tasks._common import check_choice, check_settings, partners
from acdc.tasks._compiled import L2_THRESHOLD, at_most, check_model
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("resample", "permuted")
PROMPTS = ("words", "original")
BOS, PAD, W, X, Y, Z = range(6)
MAX_LENGTH = 4

MODEL = "tracr_proportion"


@dataclass(frozen=True)
class Settings(TaskSettings):
    """`length`: words behind BOS, 2 to 4. `prompts`: `words`, or `original`, the ids of the original ACDC's code."""

    name: str = "tracr_proportion"
    corruption: str = "resample"
    length: int = MAX_LENGTH
    prompts: str = "words"


def build(settings: Settings, tokenizer: Tokenizer) -> Task:
    check_settings(settings, CORRUPTIONS)
    check_choice("length", settings.length, range(2, MAX_LENGTH + 1))
    check_choice("prompts", settings.prompts, PROMPTS)
    notes: list[str] = []
    check_model(settings.name, 6, tokenizer, notes)
    start, words = ([BOS], (W, X, Y, Z)) if settings.prompts == "words" else ([], (BOS, PAD, W, X))
    sequences = list(product(words, repeat=settings.length))
    if settings.corruption == "permuted":
        sequences = [sequence for sequence in sequences if len(set(_is_x(sequence))) > 1]
    rng = random.Random(settings.seed)
    pairs = []
    for sequence in at_most(sequences, settings.size, settings.seed):
        others = sorted(set(permutations(sequence))) if settings.corruption == "permuted" else sequences
        prompts = [[*start, *other] for other in others if _is_x(other) != _is_x(sequence)]
        corrupted = partners(settings, rng.choice(prompts), partial(rng.choice, prompts))
        positions = list(range(1, len(start) + settings.length))
        pairs.append(Pair([*start, *sequence], corrupted, position=positions))
    return Task(settings.name, pairs, "l2", {"l2": L2_THRESHOLD}, notes, model=MODEL)


def _is_x(words: tuple[int, ...]) -> list[bool]:
    return [word == X for word in words]
