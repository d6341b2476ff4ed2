"""The three tests of an ideal circuit of Shi et al. 2024 (arXiv:2410.13032), after the paper and its code, `circuitry`.

The score s of a pair is the metric, in the direction in which larger is better. KL and l2 compare with the model
itself, so no circuit can do better than it; the logit difference stands for them, where the pairs have answers and
wrong answers.

equivalence   H0: |P(s(C) > s(M)) − ½| < ε: circuit and model have about the same chance to outdo each other.
independence  H0: s(M ∖ C) is independent of s(M): with the circuit gone, the rest knows nothing of the task.
minimality    H0: every edge of the circuit is worth more than a random one of an inflated circuit with probability q at
              least; of each edge, the worth is the mean over pairs of the squared change of the score without it.

Each H0 is what an ideal circuit fulfils: a small p-value speaks against the circuit. That it is not rejected proves
nothing, least of all with few pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.errors import ConfigError
from acdc.evaluation.random_circuits import Walk
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

LEVEL = 0.05  # below which a null is rejected


@dataclass(frozen=True)
class Test:
    """`null`: in words. `statistic`, `p_value`: None where the test does not apply, and `note` says why.

    `of_edges`: p-values of single edges, not corrected.
    """

    name: str
    null: str
    statistic: float | None = None
    p_value: float | None = None
    note: str = ""
    of_edges: Mapping[Edge, float] | None = None

    @property
    def rejected(self) -> bool | None:
        return None if self.p_value is None else self.p_value < LEVEL

    def as_dict(self) -> dict[str, Any]:
        values = {"null": self.null, "statistic": self.statistic, "p_value": self.p_value, "rejected": self.rejected}
        edges = {} if self.of_edges is None else {"of_edges": {str(e): p for e, p in self.of_edges.items()}}
        return {**values, **({"note": self.note} if self.note else {}), **edges}


class Scores:
    """Scores of sets of edges on every pair.

    Raises
    ------
    ConfigError: the metric compares with the model, and the pairs have no answers and wrong answers.
    """

    def __init__(self, experiment: Experiment) -> None:
        if experiment.metric_name in ("kl_div", "l2"):
            readouts = experiment.readouts
            if any(bool((ids < 0).all(-1).any()) for ids in (readouts.answers, readouts.wrong_answers)):
                raise ConfigError(
                    f"metric={experiment.metric_name} compares with the model itself, so no circuit can do better: the"
                    " tests need pairs with answers and wrong_answers, or another metric"
                )
            ablated, run = experiment.ablated, experiment._clean_run
            experiment = replace(experiment, metric_name="logit_diff")
            experiment.__dict__.update(ablated=ablated, _clean_run=run)  # they do not depend on the metric
        self.experiment = experiment

    def __call__(self, masks: Sequence[EdgeMask]) -> Tensor:
        """`variant pair`, larger is better, in float64. The first is what the others differ from in little, at best."""
        values = Variations(self.experiment, masks[0]).values(masks)
        return -self.experiment.metric.as_loss(self.experiment.by_pair(values)).cpu()


@undisturbed
def equivalence(scores: Scores, circuit: Circuit, epsilon: float = 0.1) -> Test:
    """Does the circuit do better than the model about as often as worse?

    The statistic is t = |k/n − ½|, k the pairs on which the circuit does better; p = P(|K/n − ½| ≥ t), K binomial with
    ½ + ε. A tie counts half here (the test is not made for ties). `circuitry` has the mean difference of the scores in
    the place of k/n; this follows the hypothesis, which is about how often, not by how much.
    """
    null = f"|P(circuit better than model) − 1/2| < {epsilon:g}"
    own, model = scores([EdgeMask.of(circuit.graph, circuit), EdgeMask.all(circuit.graph)])
    reach = _TIE * (1 + model.abs())
    better = float((own > model + reach).sum() + ((own - model).abs() <= reach).sum() / 2)
    n = len(own)
    distance = abs(better / n - 0.5)
    p = math.fsum(binomial(n, k, 0.5 + epsilon) for k in range(n + 1) if abs(k / n - 0.5) >= distance - 1e-12)
    return Test("equivalence", null, better / n, min(p, 1.0))


@undisturbed
def independence(scores: Scores, circuit: Circuit, permutations: int = 1000, seed: int = 0) -> Test:
    """Is what is left without the circuit independent of the model? A permutation test with HSIC.

    One kernel width for both scores, the median of their distances to each other, as in `circuitry`. Here the observed
    order counts as one of the permutations, so that p is never 0.
    """
    null = "the scores without the circuit are independent of the model's"
    mask = EdgeMask.of(circuit.graph, [edge for edge in circuit.graph if edge not in circuit])
    rest, model = scores([mask, EdgeMask.all(circuit.graph)])
    value, p = hsic_test(model, rest, permutations, seed)
    return Test("independence", null, value, p)


@undisturbed
def minimality_test(scores: Scores, circuit: Circuit, draws: int = 100, quantile: float = 0.9, seed: int = 0) -> Test:
    """Is every edge worth more than random ones that are put in beside the circuit?

    An inflated circuit is the circuit with a random path; one of the edges that came with it is taken out again. An
    edge that beats fewer than q of them has a small p, the lower tail of a binomial. The test's own p-value is the
    smallest times the number of edges (Bonferroni), its statistic the smallest share of random edges an edge beats.
    """
    null = f"each edge outdoes a random edge with probability {quantile:g} or more"
    pairs = _inflated(circuit, draws, seed)
    if not len(circuit) or not pairs:
        return Test("minimality", null, note="the circuit has no edges" if pairs else "no edge can be added to it")
    whole = EdgeMask.of(circuit.graph, circuit)
    own, *others = scores(
        [whole, *(whole.without(edge) for edge in circuit), *(mask for pair in pairs for mask in pair)]
    )
    worth = (torch.stack(others[: len(circuit)]) - own).square().mean(-1)
    inflated = torch.stack(others[len(circuit) :])
    random_worth = (inflated[::2] - inflated[1::2]).square().mean(-1)
    beaten = (worth[:, None] > random_worth).sum(-1).tolist()
    p_values = [math.fsum(binomial(len(pairs), k, quantile) for k in range(count + 1)) for count in beaten]
    of_edges = dict(zip(circuit, p_values, strict=True))
    return Test("minimality", null, min(beaten) / len(pairs), min(1.0, min(p_values) * len(circuit)), "", of_edges)


def _inflated(circuit: Circuit, draws: int, seed: int) -> list[tuple[EdgeMask, EdgeMask]]:
    """Inflated circuits, and each without one of the edges that were added."""
    walk = Walk(circuit.graph, random.Random(seed))
    found: list[tuple[EdgeMask, EdgeMask]] = []
    idle = 0
    while len(found) < draws and idle < _IDLE:
        added = [edge for edge in walk.path() if edge not in circuit]
        idle = 0 if added else idle + 1
        if added:
            mask = EdgeMask.of(circuit.graph, [*circuit, *added])
            found.append((mask, mask.without(walk.rng.choice(added))))
    return found


_IDLE = 1000  # random paths in a row that add nothing
_TIE = 1e-6  # relative: what rounding does to scores that are the same


def binomial(n: int, k: int, p: float) -> float:
    """P(K = k) of n trials."""
    if p in (0.0, 1.0):
        return float(k == n * p)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return math.exp(log)


@undisturbed
def hsic_test(x: Tensor, y: Tensor, permutations: int = 1000, seed: int = 0) -> tuple[float, float]:
    """HSIC of two samples and the share of permutations with at least as much.

    Parameters
    ----------
    x, y: `sample`. Two constant samples, or one sample, are independent: 0 and 1.
    """
    x, y = x.double(), y.double()
    n = len(x)
    width = float((x[:, None] - y).abs().median()) or 1.0
    K, L = _centred(_kernel(x, width)), _centred(_kernel(y, width))
    scale = float((K.square().sum() * L.square().sum()).sqrt())
    generator = torch.Generator().manual_seed(seed)
    observed = float((K * L).sum())
    if n < 2 or not scale > 1e-9:
        return 0.0, 1.0
    shuffled = []
    for _ in range(permutations):
        order = torch.randperm(n, generator=generator)
        shuffled.append(float((K * L[order][:, order]).sum()))
    as_much = sum(value >= observed - 1e-12 * scale for value in shuffled)
    return observed / (n - 1) ** 2, (1 + as_much) / (1 + permutations)


def _kernel(x: Tensor, width: float) -> Tensor:
    return torch.exp(-(x[:, None] - x).square() / (2 * width**2))


def _centred(K: Tensor) -> Tensor:
    return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
