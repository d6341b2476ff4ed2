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

from acdc.tasks._compiled import GateSettings, gate_task
from acdc.tasks.base import Task, Tokenizer

MODEL = "gate_and"


@dataclass(frozen=True)
class Settings(GateSettings):
    """`inputs`: `ones`, only the clean input A=1 B=1; `all`, all four. `size`: at most so many pairs."""

    name: str = "gate_and"


def build(settings: Settings, tokenizer: Tokenizer) -> Task:
    return gate_task(settings, tokenizer, lambda a, b: a & b)
