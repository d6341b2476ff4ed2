"""An ablation: a removed edge carries a value on the way from the clean to the corrupted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from acdc.ablation import Ablation, Values
from acdc.settings import option
from acdc.tasks.base import TokenizedPair


@dataclass(frozen=True)
class Partway(Ablation):
    """A removed edge carries what lies partway between the clean and the corrupted value."""

    name: str = "partway"
    share: float = option(0.5, "how far towards the corrupted value: 0 is the clean one, 1 that", least=0, most=1)

    def values(self, clean: Values, corrupted: Values, lengths: Tensor, pairs: Sequence[TokenizedPair]) -> Values:
        def between(a: Tensor, b: Tensor) -> Tensor:
            return a + self.share * (b - a)

        return Values(
            between(clean.inputs, corrupted.inputs),
            between(clean.heads, corrupted.heads),
            between(clean.mlps, corrupted.mlps),
        )
