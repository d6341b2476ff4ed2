"""A task: tokens that come a second time, and the one that followed them the first time.

clean      A B C D A B C    → D
corrupted  W X Y Z A B C    (other tokens the first time)
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.settings import option
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer


@dataclass(frozen=True)
class Copying(TaskSettings):
    """Copying: tokens come a second time, and the one that followed them is asked for."""

    name: str = "copying"
    corruption: str = option("other_first", "other_first: other tokens the first time", ("other_first",))
    length: int = option(10, "tokens that come twice, the last one being asked for", least=2)

    def build(self, tokenizer: Tokenizer) -> Task:
        rng = random.Random(self.seed)
        usable = sorted(set(range(tokenizer.vocabulary_size)) - tokenizer.special_ids)
        bos, n = tokenizer.bos, self.length
        pairs = []
        for _ in range(self.size):
            tokens = rng.sample(usable, 2 * n)
            block, others = tokens[:n], tokens[n:]
            pairs.append(
                Pair(
                    clean=[*bos, *block, *block[:-1]],
                    corrupted=[*bos, *others, *block[:-1]],
                    answers=[block[-1]],
                    wrong_answers=[block[0]],
                    labels={"first": [len(bos), len(bos) + n], "end": -1},
                )
            )
        return Task(self.name, pairs, metric="logit_diff", thresholds={"logit_diff": 0.03, "margin": 0.03})
