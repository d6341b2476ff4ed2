"""The three tests of an ideal circuit of Shi et al. 2024 (arXiv:2410.13032), after the paper and its code, `circuitry`.

The score s of a pair is the metric, in the direction in which larger is better. KL and l2 compare with the model
itself, so no circuit can do better than the model. The logit difference stands for them, if the pairs have answers and
wrong answers.

equivalence   H0: |P(s(C) > s(M)) − ½| < ε: circuit and model have about the same chance to outdo each other.
independence  H0: s(M ∖ C) is independent of s(M): without the circuit, the rest knows nothing of the task.
minimality    H0: with probability q or more, an edge of the circuit is worth more than a random edge of an inflated
              circuit. An edge's worth is the mean over pairs of the squared change of the score without it.

An ideal circuit fulfils each H0, so a small p-value speaks against the circuit. A large one proves nothing, least of
all with few pairs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.mask import EdgeMask
from acdc.engine.variations import Variations
from acdc.errors import ConfigError
from acdc.evaluation.part import PartByCircuit
from acdc.evaluation.random_circuits import Walk
from acdc.experiment import Experiment
from acdc.graph import Edge
from acdc.process import undisturbed

LEVEL = 0.05  # below which a null hypothesis is rejected


@dataclass(frozen=True)
class Test:
    """The outcome of a test.

    Attributes
    ----------
    name : str
    null : str
        The null hypothesis in words.
    statistic, p_value : float or None
        None where the test does not apply; `note` says why.
    note : str
    of_edges : mapping of Edge to float, optional
        The p-values of single edges, not corrected.
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

    def as_dict(self) -> dict[str, object]:
        values = {"null": self.null, "statistic": self.statistic, "p_value": self.p_value, "rejected": self.rejected}
        edges = {} if self.of_edges is None else {"of_edges": {str(e): p for e, p in self.of_edges.items()}}
        return {**values, **({"note": self.note} if self.note else {}), **edges}


class Scores:
    """Scores of sets of edges on every pair.

    Raises
    ------
    ConfigError
        The metric compares with the model, and the pairs have no answers and wrong answers.
    """

    def __init__(self, experiment: Experiment) -> None:
        if experiment.measured.compares_with_model:
            readouts = experiment.readouts
            if any(bool((ids < 0).all(-1).any()) for ids in (readouts.answers, readouts.wrong_answers)):
                raise ConfigError(
                    f"metric={experiment.metric_name} compares with the model itself, so no circuit can do better: the"
                    " tests need pairs with answers and wrong_answers, or another metric"
                )
            experiment = experiment.with_metric("logit_diff")
        self.experiment = experiment

    def __call__(self, masks: Sequence[EdgeMask]) -> Tensor:
        """Return the scores, `variant pair`, in float64; larger is better.

        Parameters
        ----------
        masks : sequence of EdgeMask
            Evaluating is fastest when the others differ little from the first.
        """
        values = Variations(self.experiment, masks[0]).values(masks)
        return -self.experiment.metric.as_loss(self.experiment.mean_by_pair(values)).cpu()


@undisturbed
def equivalence(scores: Scores, circuit: Circuit, epsilon: float = 0.1) -> Test:
    """Test whether the circuit does better than the model about as often as worse.

    The statistic is t = |k/n − ½|, with k the number of pairs on which the circuit does better; p = P(|K/n − ½| ≥ t),
    with K binomial with ½ + ε. A tie counts half; the paper's test has no ties. `circuitry` uses the mean difference of
    the scores instead of k/n. This follows the hypothesis, which is about how often, not by how much.
    """
    null = f"|P(circuit better than model) − 1/2| < {epsilon:g}"
    own, model = scores([EdgeMask.of(circuit.graph, circuit), EdgeMask.all(circuit.graph)])
    reach = _TIE * (1 + model.abs())
    better = float((own > model + reach).sum() + ((own - model).abs() <= reach).sum() / 2)
    n = len(own)
    counts = np.arange(n + 1)
    as_far = counts[abs(counts / n - 0.5) >= abs(better / n - 0.5) - 1e-12]
    return Test("equivalence", null, better / n, min(float(binom.pmf(as_far, n, 0.5 + epsilon).sum()), 1.0))


@undisturbed
def independence(scores: Scores, circuit: Circuit, permutations: int = 1000, seed: int = 0) -> Test:
    """Test whether what is left without the circuit is independent of the model: a permutation test with HSIC.

    Both scores have one kernel width, the median of their distances to each other, as in `circuitry`. Here the observed
    order counts as one of the permutations, so p is never 0.
    """
    null = "the scores without the circuit are independent of the model's"
    mask = EdgeMask.of(circuit.graph, [edge for edge in circuit.graph if edge not in circuit])
    rest, model = scores([mask, EdgeMask.all(circuit.graph)])
    value, p = hsic_test(model, rest, permutations, seed)
    return Test("independence", null, value, p)


@undisturbed
def minimality_test(scores: Scores, circuit: Circuit, draws: int = 100, quantile: float = 0.9, seed: int = 0) -> Test:
    """Test whether every edge is worth more than random edges that are put in beside the circuit.

    An inflated circuit is the circuit with a random path. One of the edges that came with the path is taken out again.
    An edge that beats fewer than q of these edges has a small p, the lower tail of a binomial. The p-value of the test
    is the smallest one times the number of edges (Bonferroni). Its statistic is the smallest share of random edges that
    an edge beats.
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
    of_edges = dict(zip(circuit, binom.cdf(beaten, len(pairs), quantile).tolist(), strict=True))
    p = min(1.0, min(of_edges.values()) * len(circuit))
    return Test("minimality", null, min(beaten) / len(pairs), p, "", of_edges)


def _inflated(circuit: Circuit, draws: int, seed: int) -> list[tuple[EdgeMask, EdgeMask]]:
    """Return inflated circuits, each also without one of the edges that were added."""
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


@undisturbed
def hsic_test(x: Tensor, y: Tensor, permutations: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return HSIC of two samples, and the share of permutations with at least as much.

    Parameters
    ----------
    x, y : Tensor
        `sample`. Constant ones, or single ones, are independent: 0 and 1.
    permutations : int
    seed : int
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


@dataclass(frozen=True)
class Tested:
    """The tests of a circuit.

    Attributes
    ----------
    tests : tuple of Test
    random : mapping of str to float
        By the test's name, the median p-value of random circuits; not of every test.
    """

    tests: tuple[Test, ...]
    random: Mapping[str, float]

    def as_dict(self) -> dict[str, object]:
        beside = {name: {"random_p_value_median": p} for name, p in self.random.items()}
        return {test.name: {**test.as_dict(), **beside.get(test.name, {})} for test in self.tests}

    def measures(self) -> dict[str, object]:
        keys = ("statistic", "p_value")
        return {f"{test.name} test, {key}": getattr(test, key) for test in self.tests for key in keys}

    def numbers(self) -> dict[str, object]:
        return {f"{test.name}_p_value": test.p_value for test in self.tests}


class HypothesesPart(PartByCircuit[Tested]):
    """The tests of each circuit."""

    name = "hypotheses"


@undisturbed
def hypotheses_of_circuits(
    experiment: Experiment,
    circuits: Mapping[str, Circuit],
    randoms: Mapping[str, Sequence[Circuit]],
    epsilon: float = 0.1,
    permutations: int = 1000,
    inflated: int = 100,
    quantile: float = 0.9,
    seed: int = 0,
) -> HypothesesPart:
    """Test each circuit, and random circuits by the first two tests, which are quick.

    Parameters
    ----------
    experiment : Experiment
    circuits : mapping of str to Circuit
    randoms : mapping of str to sequence of Circuit
        By the circuit's name, random circuits of its size.
    epsilon
        As in `equivalence`.
    permutations
        As in `independence`.
    inflated, quantile
        How many inflated circuits, and q, of `minimality_test`.
    seed : int
    """
    try:
        scores = Scores(experiment)
    except ConfigError as error:
        return HypothesesPart(dict.fromkeys(circuits, str(error)), str(error))

    def quick(circuit: Circuit) -> list[Test]:
        return [equivalence(scores, circuit, epsilon), independence(scores, circuit, permutations, seed)]

    found: dict[str, Tested | str] = {}
    for name, circuit in circuits.items():
        p_values: dict[str, list[float]] = {}
        for test in (test for other in randoms[name] for test in quick(other)):
            p_values.setdefault(test.name, []).append(test.p_value or 0.0)
        tests = [*quick(circuit), minimality_test(scores, circuit, inflated, quantile, seed)]
        found[name] = Tested(tuple(tests), {name: median(column) for name, column in p_values.items()})
    return HypothesesPart(found)
