"""Experiments on tiny random models, and the same ones in the oracle's terms.

The package sees a checkpoint folder, pairs and a metric's name; the oracle sees the Hugging Face (or native) model, one
row a (pair, corrupted partner, position), and `naive_loss`, which computes a metric from its definition row by row.
"""

from __future__ import annotations

import atexit
import math
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import torch
from checkpoints import FAMILIES, NATIVE_KINDS, make_checkpoint, make_model, make_native

from acdc.ablation import Ablation
from acdc.circuit import Circuit
from acdc.discovery import discover
from acdc.discovery.base import Decision, NoObserver
from acdc.engine.mask import EdgeMask
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.model import LanguageModel, ModelSettings, load_model
from acdc.model.load import read_parts
from acdc.tasks.base import Pair, Task

KINDS = FAMILIES + NATIVE_KINDS
VOCABULARY = 10
_FOLDER = tempfile.TemporaryDirectory(prefix="acdc-tests-")
atexit.register(_FOLDER.cleanup)


@dataclass(frozen=True)
class Small:
    """A tiny model: the package's parts in float32, the bridge they were read from, and the oracle's in float64."""

    parts: LanguageModel
    bridge: Any
    truth: SimpleNamespace


@cache
def small(kind: str, seed: int = 0, n_layers: int = 2, n_heads: int = 2, d_head: int = 4, **config: object) -> Small:
    """A random model of one of `KINDS`; loaded once."""
    if kind in NATIVE_KINDS:
        bridge = make_native(kind, seed, n_layers, n_heads, d_head)
        return Small(read_parts(bridge, kind), bridge, oracle.read(bridge))
    folder = Path(_FOLDER.name) / "-".join(map(str, (seed, n_layers, n_heads, d_head, *sorted(config.items()))))
    path = make_checkpoint(kind, folder, seed, n_layers, n_heads, d_head, **config)
    parts, bridge = load_model(ModelSettings(name="local", path=str(path), device="cpu"))
    return Small(parts, bridge, oracle.read(make_model(kind, seed, n_layers, n_heads, d_head, **config)))


def random_pairs(
    seed: int = 0,
    lengths: Sequence[int] = (5, 5, 5, 5),
    positions: int | None = None,
    partners: int = 1,
    n_answers: int = 1,
    vocabulary: int = VOCABULARY,
) -> list[Pair]:
    """Pairs of random tokens of these lengths, with disjoint answers and wrong answers.

    positions: how many positions the metric reads, the last among them; None is the last one as tasks mostly give it.
    partners: corrupted prompts of a pair. n_answers: answers (and wrong ones) at each position.
    """
    rng = random.Random(seed)
    pairs = []
    for length in lengths:
        prompts = [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(1 + partners)]
        where: list[int] | None = None
        if positions is not None:
            where = [*sorted(rng.sample(range(length - 1), positions - 1)), length - 1]
        drawn = [rng.sample(range(vocabulary), 2 * n_answers) for _ in range(positions or 1)]
        right, wrong = [ids[:n_answers] for ids in drawn], [ids[n_answers:] for ids in drawn]
        pairs.append(
            Pair(
                clean=prompts[0],
                corrupted=prompts[1] if partners == 1 else list(prompts[1:]),
                answers=right if where else right[0],
                wrong_answers=wrong if where else wrong[0],
                position=where,
            )
        )
    return pairs


def experiment(
    model: LanguageModel | Small,
    pairs: list[Pair],
    metric: str = "kl_div",
    ablation: str | Ablation = "corrupted",
) -> Experiment:
    parts = model.parts if isinstance(model, Small) else model
    return Experiment.build(parts, Task("random", pairs, metric), ablation=ablation)


@dataclass(frozen=True)
class Rows:
    """Pairs as the oracle takes them: a row for each (pair, corrupted partner, position), padded with 0 behind."""

    clean: torch.Tensor
    corrupted: torch.Tensor
    lengths: list[int]
    positions: list[int]
    answers: list[list[int]]
    wrong: list[list[int]]
    weights: list[float]


def rows_of(pairs: list[Pair]) -> Rows:
    width = max(len(pair.clean) for pair in pairs)
    rows: list[tuple[Any, ...]] = []
    for pair in pairs:
        partners = pair.corrupted if isinstance(pair.corrupted[0], list) else [pair.corrupted]
        positions = pair.position if isinstance(pair.position, list) else [len(pair.clean) - 1]
        for partner in partners:
            for i, position in enumerate(positions):
                right, wrong = (x[i] if x and isinstance(x[0], list) else x for x in (pair.answers, pair.wrong_answers))
                weight = 1 / (len(pairs) * len(partners) * len(positions))
                rows.append((pair.clean, partner, len(pair.clean), position, right, wrong, weight))
    clean, corrupted, *rest = (list(column) for column in zip(*rows, strict=True))
    padded = [torch.tensor([[*x, *[0] * (width - len(x))] for x in prompts]) for prompts in (clean, corrupted)]
    return Rows(*padded, *rest)


def naive_value(
    metric: str, logits: Sequence[float], full: Sequence[float], right: list[int], wrong: list[int]
) -> float:
    """One row's metric from its definition, in plain Python floats."""

    def probabilities(x: Sequence[float]) -> list[float]:
        top = max(x)
        exponentials = [math.exp(value - top) for value in x]
        return [value / math.fsum(exponentials) for value in exponentials]

    p = probabilities(logits)
    if metric == "logit_diff":
        return sum(logits[i] for i in right) / len(right) - sum(logits[i] for i in wrong) / len(wrong)
    if metric == "prob_diff":
        return sum(p[i] for i in right) - sum(p[i] for i in wrong)
    if metric == "nll":
        return -math.log(sum(p[i] for i in right))
    if metric == "l2":
        return sum((a - b) ** 2 for a, b in zip(logits, full, strict=True)) / len(full)
    if metric == "kl_div":
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(probabilities(full), p, strict=True))
    raise ValueError(metric)


def naive_metric(metric: str, rows: Rows, logits: torch.Tensor, full: torch.Tensor) -> float:
    """The metric over all rows, from logits `row vocabulary`."""
    each = zip(rows.weights, logits.tolist(), full.tolist(), rows.answers, rows.wrong, strict=True)
    return sum(weight * naive_value(metric, *row) for weight, *row in each)


def naive_loss(metric: str, rows: Rows, logits: torch.Tensor, full: torch.Tensor) -> float:
    """What is minimised: minus the two metrics that should be large."""
    value = naive_metric(metric, rows, logits, full)
    return -value if metric in ("logit_diff", "prob_diff") else value


def oracle_logits(
    truth: SimpleNamespace, rows: Rows, present: Iterable[Edge], ablation: str = "corrupted", projection: bool = False
) -> torch.Tensor:
    """The oracle's logits `row vocabulary` at the rows' positions; prompts of different lengths are run one by one."""
    present = {tuple(edge) for edge in present}
    if len(set(rows.lengths)) == 1:
        groups = [list(range(len(rows.lengths)))]
    else:
        assert ablation != "mean"
        groups = [[i] for i in range(len(rows.lengths))]
    out = []
    for group in groups:
        length = rows.lengths[group[0]]
        clean, corrupted = rows.clean[group, :length], rows.corrupted[group, :length]
        carried = oracle.ablated(truth, corrupted, ablation)
        logits, _ = oracle.evaluate(truth, clean, present, carried, projection)
        out += [logits[i, rows.positions[row]] for i, row in enumerate(group)]
    return torch.stack(out)


def oracle_acdc(
    truth: SimpleNamespace,
    pairs: list[Pair],
    metric: str,
    threshold: float,
    ablation: str = "corrupted",
    projection_edges: bool = False,
) -> list[tuple[Edge, float, bool]]:
    """Every decision of the brute-force ACDC, in order."""
    rows = rows_of(pairs)
    tested, _ = oracle.acdc(
        truth,
        rows.clean,
        rows.corrupted,
        lambda logits, full: naive_loss(metric, rows, logits, full),
        threshold,
        ablation,
        projection_edges,
        positions=rows.positions,
    )
    return [(Edge(sender, receiver), effect, kept) for sender, receiver, effect, kept in tested]


class Recorder(NoObserver):
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.replays: list[Decision] = []
        self.remaining: list[int] = []

    def decided(self, decision: Decision, remaining: int) -> None:
        self.decisions.append(decision)
        self.remaining.append(remaining)

    def replayed(self, decision: Decision, remaining: int) -> None:
        self.replays.append(decision)


def decide(experiment: Experiment, threshold: float, **options: Any) -> tuple[Circuit, list[Decision]]:
    """A run of ACDC and its decisions, in order."""
    recorder = Recorder()
    circuit = discover(experiment, method="acdc", threshold=threshold, observer=recorder, **options)
    return circuit, recorder.decisions


def assert_same_decisions(
    ours: Sequence[Decision], theirs: Sequence[Decision] | Sequence[tuple[Edge, float, bool]], tolerance: float = 1e-4
) -> None:
    """Edge for edge, in order, with effects alike to `tolerance`, relative to effects above 1."""
    expected = [(d.edge, d.effect, d.kept) if isinstance(d, Decision) else d for d in theirs]
    for i, (decision, (edge, effect, kept)) in enumerate(zip(ours, expected, strict=False)):
        about = f"decision {i}: {decision}, expected {edge} effect={effect} kept={kept}"
        assert (decision.edge, decision.kept) == (edge, kept), about
        assert abs(decision.effect - effect) <= tolerance * max(1.0, abs(effect)), about
    assert len(ours) == len(expected)


def random_mask(graph: Graph, seed: int, share: float = 0.5) -> tuple[list[Edge], EdgeMask]:
    """A random set of present edges."""
    rng = random.Random(seed)
    edges = [edge for edge in graph if rng.random() < share]
    return edges, EdgeMask.of(graph, edges)
