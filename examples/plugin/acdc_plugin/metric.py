"""A metric: by how much the answer's logit beats the best of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from acdc.metrics import Metric, Readouts


@dataclass(frozen=True)
class Margin(Metric):
    """The answer's logit − the largest of all other logits; larger is better. Needs answers."""

    larger_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    name: str = "margin"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        """`... readout vocabulary` → `... readout`."""
        answer = readouts.answers[:, :1].expand(*logits.shape[:-1], 1)
        others = logits.scatter(-1, answer, float("-inf"))
        return logits.gather(-1, answer)[..., 0] - others.max(-1).values
