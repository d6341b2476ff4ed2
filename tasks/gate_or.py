"""An OR gate in a transformer of one layer and two heads (as in Conmy et al. 2023, figure of the OR gate).

    clean      A=1 B=1    → true
    corrupted  A=0 B=0    (opposite)    → false

Head 0 copies bit A, head 1 bit B, and the MLP writes whether one of them is set (`scripts/gates.py`). The prompts
are token ids, because the model has no tokenizer. Clean inputs: `ones` has only A=1 B=1, as the original; `all` has all
four. Corruptions: `opposite` flips both bits; `resample` is every other input.

With A=1 B=1 either head alone is enough, so ACDC finds that the first one it tests makes no difference, drops it, and
keeps the other: half of the circuit is missed.

The metric is L2, as in the original, whose OR gate has zero ablation and no recorded threshold: it is that of the tracr
tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from acdc.settings import option
from acdc.tasks._compiled import GateSettings, gate_task
from acdc.tasks.base import Task, Tokenizer


@dataclass(frozen=True)
class GateOr(GateSettings):
    """An OR gate of two heads: A=1 B=1 → true"""

    own_model: ClassVar[str | None] = "gate_or"

    name: str = "gate_or"
    size: int = option(32, "number of pairs, at most; there are 1 to 12")

    def build(self, tokenizer: Tokenizer) -> Task:
        return gate_task(self, tokenizer, lambda a, b: a | b)
