"""What a model prefers on the clean and on the corrupted prompts of an experiment, and how sure it is.

If a pair has no answers, the model's own top token on the clean prompt takes their place. If it has no wrong answers,
the strongest other token of each run does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.experiment import Experiment
from acdc.model.forward import run
from acdc.process import undisturbed

# The numbers of a block of pairs: logits that are held at once.
BLOCK = 20_000_000


@dataclass(frozen=True)
class Preference:
    """One run's preference, averaged over the positions that the metric reads.

    Attributes
    ----------
    value : float
        Answers minus wrong answers: the logit difference or, with metric=prob_diff, the difference of probability. NaN
        for a model with one output, which cannot prefer.
    p_answers, p_wrong : float
        The summed probability of the answers and of the wrong answers.
    accuracy : float
        The share of positions at which the model's top token is an answer.
    """

    value: float
    p_answers: float
    p_wrong: float
    accuracy: float

    @property
    def margin(self) -> float:
        """Probability of the answers minus that of the wrong answers, −1 to 1: how sure the model is."""
        return self.p_answers - self.p_wrong


@dataclass(frozen=True)
class Comparison:
    """A clean and a corrupted run of one pair.

    Attributes
    ----------
    clean, corrupted : Preference
    kl : float
        KL(clean ‖ corrupted) in nats.
    l2 : float
        The mean squared difference of the logits.
    """

    clean: Preference
    corrupted: Preference
    kl: float
    l2: float


@undisturbed
@torch.no_grad()
def preferences(experiment: Experiment) -> list[Comparison]:
    """Return what the two runs give, for every pair and each of its corrupted partners in turn.

    Costs one run on the corrupted prompts, in blocks. The clean run is the experiment's own.
    """
    readouts, batch, model = experiment.readouts, experiment.batch, experiment.model
    draws = experiment.ablation.n_draws  # a partner's rows differ only in what removed edges carry
    used = (readouts.row % draws == 0).nonzero()[:, 0]
    owner = readouts.row[used] // draws
    n = len(batch.lengths) // draws
    most_positions = int(torch.bincount(owner, minlength=n).max())
    block = max(1, min(64, BLOCK // (model.W_U.shape[1] * most_positions)))
    results: list[Tensor] = []
    for start in range(0, n, block):
        rows = slice(start * draws, (start + block) * draws, draws)
        stream = run(model, batch.corrupted[rows], batch.lengths[rows])[1]
        here = (owner >= start) & (owner < start + block)
        chosen, local = used[here], owner[here] - start
        corrupted = model.unembed(stream[local, readouts.position[chosen]])
        values = _compare(
            experiment.clean_logits[chosen].float(),
            corrupted.float(),
            readouts.answers[chosen],
            readouts.wrong_answers[chosen],
            probabilities=experiment.metric_name == "prob_diff",
        )
        counts = torch.bincount(local, minlength=len(stream)).double()
        sums = torch.zeros(len(stream), values.shape[1], dtype=torch.float64, device=values.device)
        results.append((sums.index_add(0, local, values.double()) / counts[:, None]).cpu())
    return [
        Comparison(Preference(*values[:4]), Preference(*values[4:8]), *values[8:])
        for values in torch.cat(results).tolist()
    ]


def _compare(clean: Tensor, corrupted: Tensor, answers: Tensor, wrong: Tensor, probabilities: bool) -> Tensor:
    """Return the numbers of `Comparison` in order at each readout, `readout 10`. Logits are `readout vocabulary`."""
    none = torch.full_like(clean[:, :1], -1, dtype=torch.long)
    given = (answers >= 0).any(-1, keepdim=True)
    answers = torch.cat((answers, torch.where(given, none, clean.argmax(-1, keepdim=True))), -1)
    given = (wrong >= 0).any(-1, keepdim=True)
    columns = []
    for logits in (clean, corrupted):
        others = torch.where(given, none, _strongest_other(logits, answers))
        columns += _preference(logits, answers, torch.cat((wrong, others), -1), probabilities)
    log_p, log_q = clean.log_softmax(-1), corrupted.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)  # rounding can make it −1e-7
    return torch.stack([*columns, kl, (clean - corrupted).square().mean(-1)], -1)


def _strongest_other(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the best token that is no answer, `readout 1`; −1 where there is no other."""
    rest = logits.clone()
    row, column = (answers >= 0).nonzero(as_tuple=True)
    rest[row, answers[row, column]] = float("-inf")
    best = rest.max(-1, keepdim=True)
    return best.indices.masked_fill(best.values == float("-inf"), -1)


def _preference(logits: Tensor, answers: Tensor, wrong: Tensor, probabilities: bool) -> list[Tensor]:
    """Return the four numbers of `Preference`, each `readout`. −1 among the ids stands for none."""
    p = logits.softmax(-1)

    def total(scores: Tensor, ids: Tensor) -> Tensor:
        return scores.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, 0).sum(-1)

    def mean(ids: Tensor) -> Tensor:
        return total(logits, ids) / (ids >= 0).sum(-1)  # NaN where there is none

    p_answers, p_wrong = total(p, answers), total(p, wrong)
    top = (logits.argmax(-1, keepdim=True) == answers).any(-1)
    value = p_answers - p_wrong if probabilities else mean(answers) - mean(wrong)
    return [value, p_answers, p_wrong, top.to(value.dtype)]
