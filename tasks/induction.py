"""Induction (Elhage et al. 2021, Olsson et al. 2022): random tokens, repeated; the second time each is predictable.

    clean      5 9 2 7 | 5 9 2 7    → after the second 5 comes 9, after 9 comes 2, after 2 comes 7
    corrupted  1 4 8 3 | 5 9 2 7    (broken)

The prompts are token ids, so the task needs no tokenizer and works for any model; BOS stands in front where it is the
tokenizer's habit, and no other special token occurs. Corruptions: `broken` has other tokens in the first half, so
nothing can be copied; `shuffled` has the same tokens in an order in which none has its old successor. The metric
reads every predictable position. A wrong answer, for the logit difference, is another token of the block.

The metric is KL, as in Conmy et al. 2023; 0.01 lies in the middle of the range they swept for most tasks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from acdc.errors import TaskError
from acdc.settings import option
from acdc.tasks._common import distinct_pairs, partners
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("broken", "shuffled")


@dataclass(frozen=True)
class Induction(TaskSettings):
    """Induction: random tokens, repeated; the second time each is predictable"""

    name: str = "induction"
    corruption: str = option(
        "broken",
        "broken: other tokens in the first half; shuffled: the same ones in another order",
        CORRUPTIONS,
    )
    length: int = option(10, "number of tokens that are repeated", least=2)

    def build(self, tokenizer: Tokenizer) -> Task:
        n = self.length
        usable = sorted(set(range(tokenizer.vocabulary_size)) - tokenizer.special_ids)
        if len(usable) < 2 * n:
            raise TaskError(
                f"the model has {len(usable)} tokens besides special ones and task.length={n} needs {2 * n} different"
                " ones: give a smaller task.length or another task"
            )
        bos = tokenizer.bos
        start, middle, end = len(bos), len(bos) + n, len(bos) + 2 * n
        rng = random.Random(self.seed)

        def draw() -> Pair:
            tokens = rng.sample(usable, 2 * n)
            block, others = tokens[:n], tokens[n:]
            rest = [token for token in usable if token not in block]

            def corrupted(others: list[int]) -> list[int]:
                return bos + (others if self.corruption == "broken" else _shuffled(block, rng)) + block

            prompts = partners(self, corrupted(others), lambda: corrupted(rng.sample(rest, n)))
            return Pair(
                bos + block + block,
                prompts,
                answers=[[token] for token in block[1:]],
                wrong_answers=[[rng.choice([t for t in block if t != token])] for token in block[1:]],
                position=list(range(middle, end - 1)),
                labels={"first": [start, middle], "second": [middle, end]},
            )

        notes: list[str] = []
        pairs = distinct_pairs(self.size, draw, notes)
        return Task("induction", pairs, metric="kl_div", thresholds={"kl_div": 0.01, "logit_diff": 0.03}, notes=notes)


def _shuffled(block: list[int], rng: random.Random) -> list[int]:
    """The tokens in an order in which none is followed by its old successor."""
    successors = set(pairwise(block))
    while True:
        order = rng.sample(block, len(block))
        if successors.isdisjoint(pairwise(order)):
            return order
