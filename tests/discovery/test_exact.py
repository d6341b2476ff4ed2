"""Every edge's own effect against the brute-force oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from experiments import KINDS, Small, experiment, naive_loss, oracle_logits, random_pairs, rows_of, small

from acdc.discovery import discover
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import RunError
from acdc.graph import Edge, GraphSettings
from acdc.model import ModelSettings, load_model
from acdc.tasks.base import Pair

METRICS = ("logit_diff", "kl_div", "prob_diff", "l2", "nll")


def brute_force(model: Small, pairs: list[Pair], metric: str, ablation: str, edges: list[Edge]) -> dict[Edge, float]:
    rows, everything = rows_of(pairs), set(edges)
    full = oracle_logits(model.truth, rows, everything, ablation)
    before = naive_loss(metric, rows, full, full)
    effects = {}
    for edge in edges:
        logits = oracle_logits(model.truth, rows, everything - {edge}, ablation)
        effects[edge] = naive_loss(metric, rows, logits, full) - before
    return effects


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_effect_is_the_brute_force_one(kind: str, ablation: str) -> None:
    model, metric = small(kind, 5), METRICS[(KINDS.index(kind) + (ablation == "zero")) % len(METRICS)]
    pairs = random_pairs(3, (4, 4), positions=2, partners=2)
    one = experiment(model, pairs, metric, ablation)
    found = discover(one, method="exact").tested
    expected = brute_force(model, pairs, metric, ablation, list(one.graph))
    assert list(found) == list(one.graph)
    assert max(abs(effect) for effect in expected.values()) > 0.01
    for edge, effect in expected.items():
        assert found[edge] == pytest.approx(effect, rel=1e-4, abs=1e-4), edge


@pytest.mark.parametrize("ablation", ["mean", "noise"])
def test_other_ablations_are_those_of_the_full_engine(ablation: str) -> None:
    one = experiment(small("gpt_neox", 5), random_pairs(4, (5, 5, 5)), "nll", ablation)
    found, engine = discover(one, method="exact").tested, FullEngine(one)
    before = engine.loss(EdgeMask.all(one.graph))
    losses = engine.losses([EdgeMask.all(one.graph).without(edge) for edge in found])
    expected = {edge: loss - before for edge, loss in zip(found, losses, strict=True)}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_prompts_of_different_lengths() -> None:
    model, pairs = small("llama", 6), random_pairs(5, (3, 6, 4))
    one = experiment(model, pairs, "logit_diff")
    expected = brute_force(model, pairs, "logit_diff", "corrupted", list(one.graph))
    assert discover(one, method="exact").tested == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_two_inputs(tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path)
    model, _ = load_model(ModelSettings("local", str(path), device="cpu"), GraphSettings(split_embedding=True))
    one = experiment(model, random_pairs(6), "nll", "zero")
    found, engine = discover(one, method="exact").tested, FullEngine(one)
    before = engine.loss(EdgeMask.all(one.graph))
    losses = engine.losses([EdgeMask.all(one.graph).without(edge) for edge in found])
    assert list(found.values()) == pytest.approx([loss - before for loss in losses], rel=1e-4, abs=1e-4)
    assert abs(found[Edge("input.pos", "m0")]) > 1e-3


def test_what_does_not_differ_has_no_effect_at_all() -> None:
    """A pair whose prompts are the same: exactly 0, not what rounding leaves."""
    [pair] = random_pairs(7, (5,))
    same = Pair(pair.clean, pair.clean, pair.answers, pair.wrong_answers)
    effects = discover(experiment(small("gpt2", 5), [same], "nll"), method="exact").tested
    assert set(effects.values()) == {0.0}


class Memory:
    """A store that holds what was saved last, and stops the run after so many saves."""

    def __init__(self, stop: int | None = None) -> None:
        self.kept: dict[str, torch.Tensor] = {}
        self.saves, self.stop = 0, stop

    def load(self) -> dict[str, torch.Tensor]:
        return self.kept

    def save(self, tensors: dict[str, torch.Tensor]) -> None:
        self.kept = {name: tensor.clone() for name, tensor in tensors.items()}
        self.saves += 1
        if self.saves == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("method", "options"), [("exact", {}), ("eap_ig", {"interpolate": "activations"}), ("hisp", {}), ("eap", {})]
)
def test_a_stopped_run_goes_on(method: str, options: dict[str, str]) -> None:
    one = experiment(small("gpt2", 5), random_pairs(8, (5, 5, 4)), "nll")
    whole, store = Memory(), Memory(stop=2)
    expected = discover(one, method=method, store=whole, memory_gb=1e-9, **options)
    with pytest.raises(KeyboardInterrupt):
        discover(one, method=method, store=store, memory_gb=1e-9, **options)
    store.stop = None
    # With more memory than before, the blocks stay what they were.
    found = discover(one, method=method, store=store, memory_gb=1.0, **options).tested
    assert found == pytest.approx(expected.tested, rel=1e-4, abs=1e-6)
    assert store.saves == whole.saves
    other = experiment(small("gpt2", 5, n_layers=1), random_pairs(8), "nll")
    with pytest.raises(RunError, match="of another run"):
        discover(other, method=method, store=store, **options)
