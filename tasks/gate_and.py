"""An AND gate in a transformer of one layer and two heads.

    clean      A=1 B=1    → true
    corrupted  A=0 B=0    (opposite)    → false

Head 0 copies bit A, head 1 bit B, and the MLP writes whether both are set (`scripts/gates.py`). The prompts are
token ids, because the model has no tokenizer. Clean inputs: `ones` has only A=1 B=1; `all` has all four. Corruptions:
`opposite` flips both bits; `resample` is every other input.

With A=1 B=1 both heads are needed, so ACDC finds the whole circuit. (With A=0 B=0 either head alone keeps the answer
false, and an AND gate hides a branch as an OR gate does with A=1 B=1.)

The metric is L2 and the threshold that of the tracr tasks; the original has an AND gate that it does not use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from acdc.settings import option
from acdc.tasks._compiled import GateSettings, gate_task
from acdc.tasks.base import Task, Tokenizer


@dataclass(frozen=True)
class GateAnd(GateSettings):
    """An AND gate of two heads: A=1 B=1 → true"""

    own_model: ClassVar[str | None] = "gate_and"

    name: str = "gate_and"
    size: int = option(32, "number of pairs, at most; there are 1 to 12")

    def build(self, tokenizer: Tokenizer) -> Task:
        return gate_task(self, tokenizer, lambda a, b: a & b)
