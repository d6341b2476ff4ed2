"""What the tasks on compiled and hand-built models share. Their prompts are token ids: the models have no tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeVar

from acdc.settings import option
from acdc.tasks._common import partners
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

T = TypeVar("T")

# The middle of the range that Conmy et al. 2023 swept on the tracr tasks, 1e-5 … 1e-1.
L2_THRESHOLD = 1e-3


def check_model(name: str, n_tokens: int, tokenizer: Tokenizer, notes: list[str]) -> None:
    """Note it where the model cannot be the task's own: its prompts mean nothing to another."""
    if tokenizer.vocabulary_size != n_tokens:
        notes.append(
            f"task={name} is made for model={name}, which has {n_tokens} tokens; this model has"
            f" {tokenizer.vocabulary_size}, and the prompts mean nothing to it"
        )


def at_most(items: Sequence[T], size: int, seed: int) -> list[T]:
    """`size` of all there are, drawn by the seed; where there are fewer, all of them, each once."""
    return random.Random(seed).sample(items, min(size, len(items)))


# Logic gates. Tokens: A=0, A=1, B=0, B=1 (ids 0 to 3); outputs: false, true (0 and 1); as in scripts/gates.py.

GATE_CORRUPTIONS = ("opposite", "resample")
GATE_INPUTS = ("ones", "all")
N_GATE_TOKENS = 4


@dataclass(frozen=True)
class GateSettings(TaskSettings):
    """A logic gate."""

    corruption: str = option("opposite", "opposite: both bits flipped; resample: another input", GATE_CORRUPTIONS)
    prepend_bos: bool | None = option(None, "stays null: the prompts are token ids, and the model has no tokenizer")
    inputs: str = option("ones", "clean inputs, ones: only A=1 B=1; all: all four", GATE_INPUTS)


def gate_task(settings: GateSettings, tokenizer: Tokenizer, gate: Callable[[int, int], int]) -> Task:
    """The task of a gate: every clean input with every corrupted one that the settings allow, or one pair with some."""
    notes: list[str] = []
    check_model(settings.name, N_GATE_TOKENS, tokenizer, notes)
    inputs = list(product((0, 1), repeat=2))
    rng = random.Random(settings.seed)
    pairs = []
    for clean in inputs if settings.inputs == "all" else [(1, 1)]:
        others = [i for i in inputs if i != clean] if settings.corruption == "resample" else [_opposite(clean)]
        for corrupted in others if settings.partners == 1 else others[:1]:
            pairs.append(
                Pair(
                    _prompt(clean),
                    partners(settings, _prompt(corrupted), partial(_one_of, others, rng)),
                    answers=[gate(*clean)],
                    wrong_answers=[1 - gate(*clean)],
                    labels={"A": 0, "B": 1},
                )
            )
    pairs = at_most(pairs, settings.size, settings.seed)
    return Task(settings.name, pairs, "l2", {"l2": L2_THRESHOLD}, notes, model=settings.name)


def _prompt(bits: tuple[int, ...]) -> list[int]:
    a, b = bits
    return [a, 2 + b]


def _one_of(inputs: Sequence[tuple[int, ...]], rng: random.Random) -> list[int]:
    return _prompt(rng.choice(inputs))


def _opposite(bits: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 - bit for bit in bits)
