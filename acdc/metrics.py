"""What is measured on the logits, and which way is better. No caller negates by hand: `loss` is what is minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from acdc.doors import Door
from acdc.errors import TaskError
from acdc.settings import Settings

ROUNDING = 1e-6  # of a metric, as a share of its size: what differs by less is the same


@dataclass(frozen=True)
class Readouts:
    """Where and against what the metric reads: one readout a row (of the batch) and position.

    Attributes
    ----------
    row : the row of the batch, `readout`.
    position : the position in it, `readout`.
    weight : `readout`, summing to 1: the mean over pairs of the mean over a pair's positions, partners and draws. In
        float64 whatever the model's precision, for 1/50 in float32 is off by 2e-8.
    answers, wrong_answers : token ids, `readout answer`, padded with -1.
    """

    row: Tensor
    position: Tensor
    weight: Tensor
    answers: Tensor
    wrong_answers: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device | str) -> Readouts:
        return Readouts(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Metric(Settings, ABC):
    """A metric: its options are fields, and `values` measures.

    Attributes
    ----------
    larger_is_better : which way is better.
    needs : which of `answers` and `wrong_answers` every pair has to have.
    compares_with_model : whether it is a distance to the full model's logits. Such a metric has its least value, and no
        slope, at the full model.
    reads_answers_only : whether it reads no logits but those of the answers and wrong answers, so that only those have
        to be computed.
    """

    GROUP: ClassVar[str] = "metric"
    larger_is_better: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]] = ()
    compares_with_model: ClassVar[bool] = False
    reads_answers_only: ClassVar[bool] = False

    name: str = ""

    @abstractmethod
    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        """The metric at each readout, in its own direction.

        Parameters
        ----------
        logits : `... readout vocabulary`, in float32 at least.
        readouts : the answers at each readout.
        reference : the full model's logits, `readout vocabulary`; None unless `compares_with_model`.

        Returns
        -------
        Tensor
            `... readout`.
        """


@dataclass(frozen=True)
class LogitDiff(Metric):
    """mean(answer logits) − mean(wrong answer logits); larger is better. Needs answers and wrong answers."""

    larger_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")
    reads_answers_only: ClassVar[bool] = True

    name: str = "logit_diff"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        right, wrong = (
            total_at(logits, ids) / (ids >= 0).sum(-1) for ids in (readouts.answers, readouts.wrong_answers)
        )
        return right - wrong


@dataclass(frozen=True)
class KLDivergence(Metric):
    """KL(model ‖ circuit) of the next token's distribution, in nats; smaller is better. Needs no answers."""

    larger_is_better: ClassVar[bool] = False
    compares_with_model: ClassVar[bool] = True

    name: str = "kl_div"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        assert reference is not None
        model, ours = at_least_single(reference).log_softmax(-1), logits.log_softmax(-1)
        return (model.exp() * (model - ours)).sum(-1)


@dataclass(frozen=True)
class ProbDiff(Metric):
    """Σ P(answers) − Σ P(wrong answers); larger is better. Needs answers and wrong answers."""

    larger_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")

    name: str = "prob_diff"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        p = logits.softmax(-1)
        return total_at(p, readouts.answers) - total_at(p, readouts.wrong_answers)


@dataclass(frozen=True)
class SquaredDistance(Metric):
    """Mean squared difference to the full model's logits; smaller is better. Needs no answers."""

    larger_is_better: ClassVar[bool] = False
    compares_with_model: ClassVar[bool] = True

    name: str = "l2"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        assert reference is not None
        return (logits - reference).square().mean(-1)


@dataclass(frozen=True)
class NegativeLogLikelihood(Metric):
    """−log Σ P(answers), in nats; smaller is better. Needs answers."""

    larger_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    name: str = "nll"

    def values(self, logits: Tensor, readouts: Readouts, reference: Tensor | None) -> Tensor:
        log_p, ids = logits.log_softmax(-1), readouts.answers
        chosen = log_p.gather(-1, ids.clamp_min(0).expand(*log_p.shape[:-1], -1))
        return -chosen.masked_fill(ids < 0, float("-inf")).logsumexp(-1)


METRICS: Door[Metric] = Door(
    base=Metric,  # type: ignore[type-abstract]
    built_in={
        "logit_diff": "acdc.metrics:LogitDiff",
        "kl_div": "acdc.metrics:KLDivergence",
        "prob_diff": "acdc.metrics:ProbDiff",
        "l2": "acdc.metrics:SquaredDistance",
        "nll": "acdc.metrics:NegativeLogLikelihood",
    },
    entry_points="acdc.metrics",
    what="a metric",
)


@dataclass(frozen=True)
class BoundMetric:
    """A metric together with its readouts.

    Attributes
    ----------
    reference : the full model's logits at the readouts, `readout vocabulary`, for a metric that compares with them.
    columns : the only logits that the metric reads, or None for all; `values` then takes logits of those columns.
    """

    metric: Metric
    readouts: Readouts
    reference: Tensor | None = None
    columns: Tensor | None = None

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def larger_is_better(self) -> bool:
        return self.metric.larger_is_better

    def values(self, logits: Tensor) -> Tensor:
        """The metric at each readout: `... readout column` → `... readout`, in the metric's own direction."""
        readouts = self.readouts
        if self.columns is not None:
            answers, wrong = (self._columns_of(ids) for ids in (readouts.answers, readouts.wrong_answers))
            readouts = replace(readouts, answers=answers, wrong_answers=wrong)
        return self.metric.values(at_least_single(logits), readouts, self.reference)

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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> BoundMetric:
        return replace(
            self,
            readouts=self.readouts.to(device),
            reference=None if self.reference is None else self.reference.to(device, dtype),
            columns=None if self.columns is None else self.columns.to(device),
        )

    def _columns_of(self, ids: Tensor) -> Tensor:
        """Token ids as indices into `columns`, -1 where there is none."""
        assert self.columns is not None
        return torch.searchsorted(self.columns, ids.clamp_min(0)).masked_fill(ids < 0, -1)


def total_at(scores: Tensor, ids: Tensor) -> Tensor:
    """The sum of some tokens' scores at each readout, `... readout vocabulary` → `... readout`; ids are -1 for none."""
    chosen = scores.gather(-1, ids.clamp_min(0).expand(*scores.shape[:-1], -1))
    return chosen.masked_fill(ids < 0, 0).sum(-1)


def at_least_single(logits: Tensor) -> Tensor:
    """Logits of half precision in float32: sums over the vocabulary need it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def bind(metric: Metric, readouts: Readouts, reference: Tensor) -> BoundMetric:
    """A metric with these readouts.

    Parameters
    ----------
    reference : the full model's logits at the readouts, `readout vocabulary`.

    Raises
    ------
    TaskError
        The metric compares answers that the pairs do not have.
    """
    for which in metric.needs:
        if bool((getattr(readouts, which) < 0).all(-1).any()):
            raise TaskError(f"metric={metric.name} needs {which} in every pair: give them, or choose kl_div or l2")
    columns = None
    if metric.reads_answers_only:
        ids = torch.cat((readouts.answers, readouts.wrong_answers), -1)
        columns = ids[ids >= 0].unique(sorted=True)
    return BoundMetric(metric, readouts, reference if metric.compares_with_model else None, columns)


def recovery(value: float, clean: float, corrupted: float) -> float:
    """(value − corrupted) / (clean − corrupted); NaN where the two runs differ by no more than rounding."""
    return float("nan") if alike(clean, corrupted) else (value - corrupted) / (clean - corrupted)


def alike(clean: float, corrupted: float) -> bool:
    """Whether two metrics differ by no more than rounding, so that there is nothing to recover between them."""
    return not abs(clean - corrupted) > ROUNDING * max(1.0, abs(clean), abs(corrupted))
