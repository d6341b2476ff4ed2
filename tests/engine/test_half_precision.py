"""The engines in float16, on a model whose activations are so large that their squares overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from experiments import random_pairs
from transformers import AutoModelForCausalLM

from acdc import discover
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.engine.state import CircuitState
from acdc.experiment import Experiment
from acdc.model import ModelSettings
from acdc.tasks.base import Task


def experiments(folder: Path, metric: str) -> list[Experiment]:
    """The same model and pairs in float16 and float32; one direction of the embedding is hundreds long."""
    path = make_checkpoint("llama", folder)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] = torch.linspace(300, 600, 10)
    model.half().float().save_pretrained(path)
    task = Task("ids", random_pairs(0), metric)
    return [
        Experiment.build(ModelSettings("local", str(path), device="cpu", dtype=dtype), task)
        for dtype in ("float16", "float32")
    ]


@pytest.mark.parametrize("metric", ["logit_diff", "kl_div", "nll"])
@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_losses_are_those_of_float32_but_for_rounding(engine: str, metric: str, tmp_path: Path) -> None:
    losses = []
    for one in experiments(tmp_path, metric):
        everything = EdgeMask.all(one.graph)
        masks = [everything, *(everything.without(edge) for edge in list(one.graph)[::7])]
        losses_of = FullEngine(one, None).losses if engine == "full" else CircuitState(one, everything).losses_of
        losses.append(torch.tensor([float(loss) for loss in losses_of(masks)]))
    assert torch.isfinite(losses[0]).all()
    torch.testing.assert_close(losses[0], losses[1], rtol=0.01, atol=0.02)


@pytest.mark.parametrize("metric", ["logit_diff", "kl_div", "nll"])
@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_effects_are_those_of_float32_but_for_rounding(engine: str, metric: str, tmp_path: Path) -> None:
    half, single = (discover(one, "acdc", threshold=0.3, engine=engine) for one in experiments(tmp_path, metric))
    assert set(half.edges) == set(single.edges)
    for edge, effect in single.edges.items():
        assert half.edges[edge] == pytest.approx(effect, rel=0.03, abs=0.03)
