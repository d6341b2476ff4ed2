"""The self-check: in single precision, for every experiment and every length of prompt, whoever loaded the model."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from checkpoints import FAMILIES, make_checkpoint
from experiments import random_pairs

from acdc.errors import ModelError
from acdc.evaluation.fresh import fresh_experiment
from acdc.experiment import Experiment
from acdc.model import LanguageModel, ModelSettings, load_model
from acdc.model import check as check_module
from acdc.tasks import TASKS
from acdc.tasks.base import Task, TaskSettings

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 8,
    "short_factor": [1.0] * 2, "long_factor": [3.0] * 2,
}  # fmt: skip


def load(path: Path, dtype: str = "float32") -> LanguageModel:
    return load_model(ModelSettings(name="local", path=str(path), device="cpu", dtype=dtype))[0]


def task(*lengths: int) -> Task:
    return Task("ids", random_pairs(0, lengths=lengths), "logit_diff")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of prompts that were compared, in order."""
    lengths: list[int] = []
    own = check_module.check_parts

    def check(model: Any, bridge: Any, tokens: torch.Tensor) -> float:
        lengths.append(tokens.shape[1])
        return own(model, bridge, tokens)

    monkeypatch.setattr(check_module, "check_parts", check)
    return lengths


def test_each_length_is_looked_at_once(seen: list[int], tmp_path: Path) -> None:
    model = load(make_checkpoint("gpt2", tmp_path))  # its bridge is gone by now
    one = Experiment.build(model, task(3, 5, 3))
    one.with_pairs([0])
    Experiment.build(model.to("cpu", torch.float64), task(5))
    assert seen == [3, 5]
    Experiment.build(model, task(3, 4))
    assert seen == [3, 5, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_that_goes_wrong_at_some_length(dtype: str, tmp_path: Path) -> None:
    """A window that the model has not: nothing shows in prompts that are no longer, whatever the precision."""
    model = dataclasses.replace(load(make_checkpoint("llama", tmp_path), dtype), window=4)
    one = Experiment.build(model, task(3, 4))
    with pytest.raises(ModelError, match="attention of layer 0 differs") as caught:
        Experiment.build(model, task(3, 5))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="attention of layer 0 differs"):
        one._on(one.task, Experiment.build(load(tmp_path / "llama", dtype), task(6)).pairs)


def test_fresh_pairs_are_looked_at(seen: list[int], tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path)
    pairs = tmp_path / "pairs.jsonl"
    lines = ['{"clean": [1, 2, 3], "corrupted": [1, 4, 3], "answers": [5], "wrong_answers": [6]}']
    lines += ['{"clean": [1, 2, 3, 7], "corrupted": [1, 4, 3, 7], "answers": [5], "wrong_answers": [6]}']
    pairs.write_text("\n".join(lines))

    settings: TaskSettings = TASKS.load("pairs")(path=str(pairs), size=1, seed=0)
    one = Experiment.build(str(path), settings)
    fresh = fresh_experiment(one, settings)
    assert sorted(seen) == [3, 4]
    assert {len(pair.clean) for pair in (*one.pairs, *fresh.pairs)} == {3, 4}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_wrong_positions_do_not_pass_in_low_precision(dtype: str, tmp_path: Path) -> None:
    """Longrope turns short prompts less than long ones; in bfloat16 the difference is that of rounding."""
    config = hf.LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, rope_parameters=LONGROPE, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "longrope")
    settings = ModelSettings("local", str(tmp_path / "longrope"), device="cpu", dtype=dtype)
    with pytest.raises(ModelError, match="attention of layer 0 differs"):
        Experiment.build(settings, task(6))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bridge_is_as_before_when_half_precision_was_checked(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path)
    model, bridge = load_model(ModelSettings("local", str(path), device="cpu", dtype="bfloat16"))
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in bridge.original_model.state_dict().items()}
    tokens = torch.tensor([[2, 5, 3, 7]])
    logits = bridge(tokens)
    assert check_module.check_parts(model, bridge, tokens) < 2e-4
    after = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in bridge.original_model.state_dict().items()}
    assert after == before
    assert torch.equal(bridge(tokens), logits)


def test_a_copy_checks_too(tmp_path: Path) -> None:
    model = load(make_checkpoint("gpt2", tmp_path))
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        wrong = dataclasses.replace(twin, W_E=2 * twin.W_E)
        with pytest.raises(ModelError, match="the embedding"):
            Experiment.build(wrong, task(3))
