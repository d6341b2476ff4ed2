"""The incremental engine against the full one: on random walks through circuits, and decision for decision."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import KINDS, assert_same_decisions, decide, experiment, random_pairs, small
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from acdc.ablation import Noise
from acdc.discovery.acdc import ACDC
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.engine.pruning import make_pruning_engine
from acdc.errors import ConfigError
from acdc.experiment import Experiment
from acdc.graph import Edge, Graph
from acdc.metrics import METRICS
from acdc.model import LanguageModel, ModelSettings, load_model
from acdc.tasks.base import Pair, Task

SHARED = Path(__file__).parents[2] / "../shared"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Recipe:
    """What an experiment is drawn from, short enough to read when one fails."""

    kind: str
    seed: int
    n_layers: int
    n_heads: int
    metric: str
    ablation: str
    lengths: tuple[int, ...]
    positions: int | None
    partners: int
    n_answers: int
    projection_edges: bool

    def experiment(self) -> Experiment:
        pairs = random_pairs(self.seed, self.lengths, self.positions, self.partners, self.n_answers)
        noisy = Noise(scale=0.7, draws=2, seed=1)
        model = small(self.kind, self.seed % 3, self.n_layers, self.n_heads)
        return experiment(model, pairs, self.metric, noisy if self.ablation == "noise" else self.ablation)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any family, shape, metric and ablation; pairs of different lengths, several positions and partners."""
    kind = draw(st.sampled_from(KINDS))
    ablation = draw(st.sampled_from(["corrupted", "zero", "mean", "noise"]))
    lengths = draw(st.lists(st.integers(3, 7), min_size=1, max_size=3))
    return Recipe(
        kind=kind,
        seed=draw(st.integers(0, 50)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=draw(st.sampled_from([1, 2, 4] if kind.startswith("llama") else [1, 2, 3, 4])),
        metric=draw(st.sampled_from(list(METRICS.built_in))),
        ablation=ablation,
        lengths=tuple(lengths if ablation in ("corrupted", "zero") else lengths[:1] * len(lengths)),
        positions=draw(st.sampled_from([None, 1, 2, 3])),
        partners=draw(st.integers(1, 2)),
        n_answers=draw(st.integers(1, 2)),
        projection_edges=draw(st.booleans()),
    )


def tolerance(one: Experiment) -> float:
    """What single precision is good for: models without norms have logits, and scores, in the hundreds."""
    return 1e-4 * max(1.0, float(one.clean_logits.abs().max()) / 10)


def masks_without(mask: EdgeMask, edges: list[Edge], gone: list[bool]) -> list[EdgeMask]:
    """The masks without each edge and those before it that are gone."""
    masks = []
    for edge, goes in zip(edges, gone, strict=True):
        masks.append(mask.without(edge))
        mask = masks[-1] if goes else mask
    return masks


def walk(one: Experiment, graph: Graph, keep: float, seed: int, chunk: int | None, stop: int) -> Iterator[tuple]:
    """The pruning loop with edges kept at random: (edge, loss without it, the same in float64 and in full).

    Batches assume whatever is drawn about the edges before; decisions fall otherwise, and the next batch begins behind
    one. It ends after `stop` tests, since an error would only go on from there.
    """
    rng = random.Random(seed)
    mask, exact = EdgeMask.all(graph), FullEngine(one.to("cpu", torch.float64))
    engine = make_pruning_engine("incremental", one, mask)
    tested = 0
    for receiver, senders in graph.test_order:
        senders = rng.sample(senders, len(senders))  # any order within a receiver
        edges = [Edge(sender, receiver) for sender in senders]
        if not mask.is_used(receiver):
            mask.set(edges, False)
            continue
        engine.enter(receiver, senders)
        removed = []
        while edges:
            batch = edges[: min(chunk or rng.choice([1, 2, 8]), engine.most_variants)]
            gone = [rng.random() >= keep for _ in batch]
            wanted = [rng.random() < 0.8 for _ in batch]
            expected = exact.losses(list(compress(masks_without(mask, batch, gone), wanted)))
            yield from zip(compress(batch, wanted), engine.losses(batch, gone, wanted), expected, strict=True)
            decided = batch[: rng.randint(1, len(batch))]
            tested += len(batch)
            for edge in decided:
                if rng.random() >= keep:
                    mask.set([edge], False)
                    removed.append(edge)
            edges = edges[len(decided) :]
        engine.leave(removed)
        if tested > stop:
            break


# Once wrong: an input that should be zero before an RMS norm; logits hundreds above the clean ones.
NEARLY_ZERO = Recipe("llama", 0, 2, 1, "logit_diff", "zero", (3,), None, 1, 1, False)
FAR = Recipe("bidirectional", 0, 2, 4, "kl_div", "corrupted", (3,), None, 1, 1, False)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@example(NEARLY_ZERO, 0.03, 2519, None)
@example(FAR, 0.2, 0, None)
@given(recipes(), st.sampled_from([0.03, 0.2, 0.5, 0.9]), st.integers(0, 10**6), st.sampled_from([None, 1, 5]))
def test_losses_on_a_random_walk(recipe: Recipe, keep: float, seed: int, chunk: int | None) -> None:
    one = recipe.experiment()
    graph = Graph(one.model.config, recipe.projection_edges)
    for edge, loss, expected in walk(one, graph, keep, seed, chunk, stop=150):
        assert abs(loss - expected) <= tolerance(one) * max(1.0, abs(expected)), f"{edge}: {loss}, not {expected}"


def decide_with_both(recipe: Recipe, threshold: float, batch_size: int | str) -> None:
    one = recipe.experiment()
    options: dict[str, Any] = {"projection_edges": recipe.projection_edges, "threshold": threshold}
    _, full = decide(one, engine="full", **options)
    _, ours = decide(one, engine="incremental", batch_size=batch_size, **options)
    assert_same_decisions(ours, full, tolerance(one))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@example(NEARLY_ZERO, 0.01, "auto")
@example(FAR, 0.001, "auto")
@given(recipes(), st.sampled_from([0.001, 0.01, 0.1, 1.0]), st.sampled_from(["auto", 3]))
def test_decisions_are_the_full_engines(recipe: Recipe, threshold: float, batch_size: int | str) -> None:
    decide_with_both(recipe, threshold, batch_size)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipes(), st.floats(0.001, 1.0), st.sampled_from(["auto", 1, 3]))
def test_decisions_are_the_full_engines_at_length(recipe: Recipe, threshold: float, batch_size: int | str) -> None:
    decide_with_both(recipe, threshold, batch_size)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean", "noise"])
def test_a_port_whose_edges_are_all_gone(ablation: str) -> None:
    """RMS norm blows up what rounding leaves of an input that should be zero, so nothing may be left."""
    noisy = Noise(seed=3)
    one = experiment(small("llama"), random_pairs(3), "kl_div", noisy if ablation == "noise" else ablation)
    graph = one.graph
    mask, exact = EdgeMask.all(graph), FullEngine(one.to("cpu", torch.float64))
    engine = make_pruning_engine("incremental", one, mask)
    for receiver, senders in graph.test_order:
        edges = [Edge(sender, receiver) for sender in senders]
        engine.enter(receiver, senders)
        batch = edges[: engine.most_variants]
        gone = [True] * len(batch)
        for loss, expected in zip(
            engine.losses(batch, gone), exact.losses(masks_without(mask, batch, gone)), strict=True
        ):
            assert loss == pytest.approx(expected, abs=2e-5), receiver  # every edge is kept after that
        engine.leave([])


@pytest.mark.parametrize("metric", METRICS.built_in)
@pytest.mark.parametrize("kind", ["layer_norm", "bidirectional", "attention_only"])
def test_logits_far_from_the_clean_ones(kind: str, metric: str) -> None:
    """Without the unembedding's usual size, ablated logits lie hundreds above or below the clean ones."""
    one = experiment(scaled_unembedding(small(kind).parts, 60.0), random_pairs(9), metric, "zero")
    graph = one.graph
    for edge, loss, expected in walk(one, graph, 0.4, 1, None, stop=30):
        assert abs(loss - expected) <= 1e-4 * max(1.0, abs(expected)), f"{edge}: {loss}, not {expected}"


def scaled_unembedding(model: LanguageModel, factor: float) -> LanguageModel:
    b_U = None if model.b_U is None else model.b_U * factor
    return replace(model, W_U=model.W_U * factor, b_U=b_U)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_a_whole_vocabulary_of_tiles(kind: str) -> None:
    """A vocabulary that is cut into several pieces, the last one short."""
    it = small(kind, vocab_size=9001)
    for metric in ("kl_div", "l2", "nll"):
        one = experiment(it, random_pairs(4, (4, 4), vocabulary=9001), metric)
        for edge, loss, expected in walk(one, one.graph, 0.3, 2, None, stop=25):
            assert abs(loss - expected) <= 1e-4 * max(1.0, abs(expected)), f"{edge}: {loss}, not {expected}"


# Real models.


def stories_pairs() -> list[Pair]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data/models/stories260K")

    def ids(text: str) -> list[int]:
        return tokenizer("<s>" + text, add_special_tokens=False)["input_ids"]

    she, he = (ids(f"x {word}")[-1] for word in ("She", "He"))
    names = [("Lily", "Tim"), ("Lily", "Tom"), ("Sue", "Ben"), ("Mia", "Max")]
    pairs = []
    for template in ("One day {} went to the park.", "There was {} in the park."):
        for girl, boy in names:
            clean, corrupted = ids(template.format(girl)), ids(template.format(boy))
            if len(clean) == len(corrupted):
                pairs.append(Pair(clean, corrupted, [she], [he]))
    return pairs


@cache
def stories(metric: str, ablation: str) -> Experiment:
    path = str(SHARED / "data/models/stories260K")
    pairs = stories_pairs()
    if ablation == "mean":
        pairs = [pair for pair in pairs if len(pair.clean) == len(pairs[0].clean)]
    model, _ = load_model(ModelSettings("local", path, device="cpu"))
    return Experiment.build(model, Task("stories", pairs, metric), ablation=ablation)


STORIES = list(
    itertools.product(("kl_div", "logit_diff"), ("corrupted", "zero", "mean"), (False, True), (0.3, 0.1, 0.03))
)


def same_on_both_engines(one: Experiment, threshold: float, projection_edges: bool, **options: Any) -> None:
    full, expected = decide(one, threshold, engine="full", projection_edges=projection_edges)
    ours, decisions = decide(one, threshold, engine="incremental", projection_edges=projection_edges, **options)
    assert_same_decisions(decisions, expected)
    assert list(ours) == list(full)
    assert len(ours) < len(ours.graph)
    assert len(decisions) > 10


def test_a_real_llama(shared: Path) -> None:
    same_on_both_engines(stories("kl_div", "corrupted"), 0.1, False)


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "ablation", "projection_edges", "threshold"), STORIES)
def test_a_real_llama_in_all_settings(
    metric: str, ablation: str, projection_edges: bool, threshold: float, shared: Path
) -> None:
    same_on_both_engines(stories(metric, ablation), threshold, projection_edges)


TASKS = (
    "ioi",
    "greater_than",
    "gendered_pronoun",
    "induction",
    "docstring",
    "factual_recall",
    "sentiment",
    "subject_verb_agreement",
)
POCKET = list(
    itertools.product(TASKS, ("kl_div", "logit_diff"), ("corrupted", "zero", "mean"), (False, True), (0.5, 0.1, 0.02))
)


@cache
def pocket(task: str, metric: str, ablation: str) -> Experiment:
    """Few pairs; where averages need equal lengths, those as long as the first."""
    one = Experiment.build("pocket", task, metric=metric, size=5)
    try:
        return Experiment.build(one.model, one.task, metric=metric, ablation=ablation)
    except ConfigError:  # a mean over positions that do not correspond
        alike = [pair for pair in one.task.pairs if len(pair.clean) == len(one.task.pairs[0].clean)]
        assert ablation == "mean"
        assert len(alike) < len(one.task.pairs)
        return Experiment.build(one.model, Task(task, alike, metric), ablation="mean")


@pytest.mark.parametrize(
    ("task", "metric", "ablation", "projection_edges", "threshold"),
    [
        ("ioi", "kl_div", "corrupted", True, 0.1),
        ("greater_than", "logit_diff", "zero", False, 0.5),
        ("gendered_pronoun", "logit_diff", "corrupted", True, 0.1),
        ("induction", "kl_div", "zero", False, 0.5),
    ],
)
def test_bundled_model(task: str, metric: str, ablation: str, projection_edges: bool, threshold: float) -> None:
    same_on_both_engines(pocket(task, metric, ablation), threshold, projection_edges)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric", "ablation", "projection_edges", "threshold"), POCKET)
def test_bundled_model_in_all_settings(
    task: str, metric: str, ablation: str, projection_edges: bool, threshold: float
) -> None:
    same_on_both_engines(pocket(task, metric, ablation), threshold, projection_edges)


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize(
    ("task", "metric", "ablation"),
    [("ioi", "logit_diff", "corrupted"), ("ioi", "kl_div", "zero"), ("induction", "kl_div", "corrupted")],
)
def test_near_ties_reach_as_far_as_single_precision_errs(task: str, metric: str, ablation: str, engine: str) -> None:
    """Else an edge whose threshold lies between its effect and what single precision makes of it is decided wrongly."""
    one = pocket(task, metric, ablation)
    exact = decide(one.to("cpu", torch.float64), 0.02, engine="full")[1]
    rough = decide(one, 0.02, engine=engine)[1]
    assert_same_decisions(rough, exact)
    logits = float(one.clean_logits.square().mean().sqrt())
    for a, b in zip(exact, rough, strict=True):
        before = abs(a.metric) if a.kept else abs(a.metric - one.metric.from_loss(a.effect))
        window = ACDC().tie_tolerance * (1 + before + logits)
        assert abs(a.effect - b.effect) < window, f"{b}, exactly {a.effect}, window {window}"
