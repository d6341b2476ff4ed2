"""What is measured on the logits, and which way is better. No caller negates by hand: `loss` is what is minimised."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from acdc.errors import ConfigError, TaskError

METRICS = ("logit_diff", "kl_div", "prob_diff", "l2", "nll")
LARGER_IS_BETTER = {"logit_diff": True, "prob_diff": True, "kl_div": False, "l2": False, "nll": False}
ROUNDING = 1e-6  # of a metric, as a share of its size: what differs by less is the same
_NEEDS_ANSWERS = ("logit_diff", "prob_diff", "nll")
_NEEDS_WRONG = ("logit_diff", "prob_diff")


@dataclass(frozen=True)
class Readouts:
    """Where and against what the metric reads: one row a (pair, position).

    `pair`, `position`: `row`. `weight`: `row`, summing to 1 (the mean over pairs of the mean over a pair's positions
    and corrupted partners); in float64 whatever the model's precision, for 1/50 in float32 is off by 2e-8. `answers`,
    `wrong_answers`: `row answer`, token ids padded with -1.
    """

    pair: Tensor
    position: Tensor
    weight: Tensor
    answers: Tensor
    wrong_answers: Tensor

    def __len__(self) -> int:
        return len(self.pair)

    def to(self, device: torch.device | str) -> Readouts:
        return Readouts(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Metric:
    """A metric tied to its readouts.

    `reference`: the full model's logits at the readouts, `row vocabulary` (for kl_div and l2). `columns`: the only
    logits the metric needs, or None for all; `values` then expects logits of those columns.
    """

    name: str
    readouts: Readouts
    reference: Tensor | None = None
    columns: Tensor | None = None

    @property
    def larger_is_better(self) -> bool:
        return LARGER_IS_BETTER[self.name]

    def values(self, logits: Tensor) -> Tensor:
        """The metric per readout: `... row column` → `... row`, in the metric's own direction and at least float32."""
        logits = at_least_single(logits)
        if self.name == "kl_div":
            assert self.reference is not None
            reference, ours = at_least_single(self.reference).log_softmax(-1), logits.log_softmax(-1)
            return (reference.exp() * (reference - ours)).sum(-1)
        if self.name == "l2":
            assert self.reference is not None
            return (logits - self.reference).square().mean(-1)
        if self.name == "logit_diff":
            return self._gather(logits, "answers", mean=True) - self._gather(logits, "wrong_answers", mean=True)
        if self.name == "prob_diff":
            p = logits.softmax(-1)
            return self._gather(p, "answers") - self._gather(p, "wrong_answers")
        log_p = logits.log_softmax(-1)
        ids = self._ids("answers")
        chosen = log_p.gather(-1, ids.clamp_min(0).expand(*log_p.shape[:-1], -1))
        return -chosen.masked_fill(ids < 0, float("-inf")).logsumexp(-1)

    def value(self, logits: Tensor) -> Tensor:
        """The metric over all pairs, `...`, in float64."""
        return (self.values(logits) * self.readouts.weight).sum(-1)

    def loss(self, logits: Tensor) -> Tensor:
        """What the pruning loop minimises, `...`: the metric, negated where larger is better."""
        return self.as_loss(self.value(logits))

    def loss_of_model(self, logits: Tensor) -> float:
        """The loss of all logits at the readouts, `readout vocabulary`."""
        return float(self.loss(logits if self.columns is None else logits[:, self.columns]))

    def as_loss(self, value: Tensor) -> Tensor:
        return -value if self.larger_is_better else value

    def from_loss(self, loss: float) -> float:
        """The metric of a loss, or the loss of a metric: the same change of sign."""
        return -loss if self.larger_is_better else loss

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Metric:
        return replace(
            self,
            readouts=self.readouts.to(device),
            reference=None if self.reference is None else self.reference.to(device, dtype),
            columns=None if self.columns is None else self.columns.to(device),
        )

    def _ids(self, which: str) -> Tensor:
        """Answer ids as indices into the logits' last axis, -1 where there is none."""
        ids: Tensor = getattr(self.readouts, which)
        if self.columns is None:
            return ids
        return torch.searchsorted(self.columns, ids.clamp_min(0)).masked_fill(ids < 0, -1)

    def _gather(self, scores: Tensor, which: str, mean: bool = False) -> Tensor:
        ids = self._ids(which)
        chosen = scores.gather(-1, ids.clamp_min(0).expand(*scores.shape[:-1], -1))
        total = chosen.masked_fill(ids < 0, 0).sum(-1)
        return total / (ids >= 0).sum(-1) if mean else total


def at_least_single(logits: Tensor) -> Tensor:
    """Logits of half precision in float32: sums over the vocabulary need it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def make_metric(name: str, readouts: Readouts, reference: Tensor) -> Metric:
    """A metric for these readouts.

    Parameters
    ----------
    reference: the full model's logits at the readouts, `row vocabulary`.

    Raises
    ------
    ConfigError: no metric of that name. TaskError: the metric compares answers that the pairs do not have.
    """
    if name not in METRICS:
        raise ConfigError(f"metric={name} is not known: choose one of {', '.join(METRICS)}")
    for which, needing in (("answers", _NEEDS_ANSWERS), ("wrong_answers", _NEEDS_WRONG)):
        if name in needing and bool((getattr(readouts, which) < 0).all(-1).any()):
            raise TaskError(f"metric={name} needs {which} in every pair: give them, or choose kl_div or l2")
    columns = None
    if name == "logit_diff":
        ids = torch.cat((readouts.answers, readouts.wrong_answers), -1)
        columns = ids[ids >= 0].unique(sorted=True)
    return Metric(name, readouts, reference if name in ("kl_div", "l2") else None, columns)


def recovery(value: float, clean: float, corrupted: float) -> float:
    """(value − corrupted) / (clean − corrupted); NaN where the two runs differ by no more than rounding."""
    return float("nan") if alike(clean, corrupted) else (value - corrupted) / (clean - corrupted)


def alike(clean: float, corrupted: float) -> bool:
    """Whether two metrics differ by no more than rounding, so that there is nothing to recover between them."""
    return not abs(clean - corrupted) > ROUNDING * max(1.0, abs(clean), abs(corrupted))
