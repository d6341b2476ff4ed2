"""The bundled model and how it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from acdc import Experiment
from acdc.evaluation.pair_check import check_pairs
from acdc.model.load import POCKET
from acdc.tasks._common import FEMALE_NAMES, MALE_NAMES
from acdc.tasks.base import Tokenizer
from scripts import train_pocket

PROMPTS = [
    "Then, Mary and John went to the store. John gave a drink to",
    "The war lasted from the year 1741 to the year 17",
    "So Mary is a really great friend, isn't",
    'def port(self, load, size, file, last):\n    """oil column piece\n\n    :param load: crime population\n    :param',
    "Once upon a time, there was a little girl named Lily.",
]


@pytest.fixture(scope="module")
def splitter() -> train_pocket.WordSplitter:
    return train_pocket.WordSplitter(train_pocket.build_vocabulary())


def test_fits_in_five_megabytes() -> None:
    assert sum(file.stat().st_size for file in POCKET.iterdir()) < 5_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in POCKET.iterdir()
    }


def test_training_splits_words_as_the_saved_tokenizer(pocket: Tokenizer, splitter: train_pocket.WordSplitter) -> None:
    for prompt in [*PROMPTS, "an unseen-word: 123 x1y", ""]:
        assert splitter(prompt)["input_ids"] == pocket.encode(prompt)
    assert pocket.encode(PROMPTS[1])[6:8] == pocket.encode("17 41")
    assert pocket.encode("unseenword") == [0]


def test_vocabulary_is_that_of_the_bundled_model(splitter: train_pocket.WordSplitter) -> None:
    saved = json.loads((POCKET / "tokenizer.json").read_text())["model"]["vocab"]
    assert splitter.ids == saved


def test_word_counts_are_those_of_the_training_prompts(pocket: Tokenizer, splitter: train_pocket.WordSplitter) -> None:
    """Counted again in the prompts as text; the committed file is what the function gives."""
    committed = json.loads((POCKET / "counts.json").read_text())
    assert train_pocket.count_words(splitter.ids, seed=0) == committed
    tokenizer = Tokenizer(splitter, len(splitter.ids))  # type: ignore[arg-type]
    text, prompts = "", 0
    for name, recipe in train_pocket.RECIPES.items():
        batches = list(train_pocket.draw_examples(name, train_pocket.STEPS_A_ROUND, 1, tokenizer))
        assert {len(batch) for batch in batches} == {recipe.batch}
        prompts += sum(map(len, batches))
        text += "".join(f"{pocket.decode(list(example.ids))} " for batch in batches for example in batch)
    words = text.split(" ")[:-1]
    assert {word: words.count(word) for word in committed} == committed
    assert len(words) == sum(committed.values())
    assert prompts == 10_800


def test_swapped_words_are_ranked_by_those_counts() -> None:
    committed = json.loads((POCKET / "counts.json").read_text())
    experiment = Experiment.build("pocket", "gendered_pronoun", size=8)
    found = check_pairs(experiment)
    assert found.swaps
    for swap in found.swaps:
        for token, rank in ((swap.clean, swap.clean_rank), (swap.corrupted, swap.corrupted_rank)):
            count = committed[experiment.model.tokenizer.decode([token])]
            assert rank == 1 + sum(other > count for other in committed.values())
    assert found.frequencies is not None
    assert found.frequencies.source == "the bundled model's training prompts"


def test_held_out_prompts_are_never_trained_on(splitter: train_pocket.WordSplitter) -> None:
    tokenizer = Tokenizer(splitter, len(splitter.ids))  # type: ignore[arg-type]
    trained: dict[frozenset[int], int] = {}
    for pair in train_pocket.draw_pairs("ioi", 3000, 1, tokenizer):
        names = frozenset((pair.answers[0][0], pair.wrong_answers[0][0]))
        held_out = train_pocket.is_held_out("ioi", pair)
        # A pair of names is on one side altogether, whatever the template and the order.
        assert trained.setdefault(names, held_out) == held_out
    held_out_names = {names for names, held_out in trained.items() if held_out}
    assert 0.08 < len(held_out_names) / len(trained) < 0.17
    for batch in train_pocket.draw_examples("ioi", 20, 2, tokenizer):
        for example in batch:
            names = frozenset(i for i in example.ids if splitter.decode([i]) in MALE_NAMES + FEMALE_NAMES)
            assert len(names) == 2
            assert names not in held_out_names


@pytest.mark.parametrize(
    ("name", "size", "least"),  # pairs drawn, and how many of them at least were left out of training
    [
        ("ioi", 500, 40),
        ("greater_than", 500, 30),
        ("gendered_pronoun", 500, 30),
        ("induction", 500, 40),
        ("docstring", 500, 40),
        ("factual_recall", 6000, 31),  # all there are
        ("sentiment", 1500, 40),
        ("subject_verb_agreement", 1000, 40),
    ],
)
def test_bundled_model_does_held_out_prompts(name: str, size: int, least: int, pocket: Tokenizer) -> None:
    model = GPT2LMHeadModel.from_pretrained(POCKET).eval()
    result = train_pocket.measure(model, name, pocket, seed=7, size=size)
    assert result["prompts"] >= least
    assert result["accuracy"] >= 0.95
    assert result["probability"] >= 0.8


def test_readme_states_what_is_measured(pocket: Tokenizer) -> None:
    readme = (POCKET / "README.md").read_text()
    rows = dict(line.strip("| ").split(" | ", 1) for line in readme.splitlines() if line.startswith("| "))
    model = GPT2LMHeadModel.from_pretrained(POCKET).eval()
    for name in ("greater_than", "factual_recall"):
        result = train_pocket.measure(model, name, pocket, seed=0)
        stated = [float(cell) for cell in rows[name].split(" | ")]
        keys = ("prompts", "accuracy", "top1", "probability", "logit_diff")
        assert stated == pytest.approx([result[key] for key in keys], abs=0.051)


def test_training_is_repeatable_and_learns(tmp_path: Path, splitter: train_pocket.WordSplitter) -> None:
    from rich.console import Console

    few = {"factual_recall": train_pocket.Recipe(16)}
    weights = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_pocket, "RECIPES", few)
        for _ in range(2):
            model = train_pocket.train(splitter.ids, 30, 3, tmp_path, Console(quiet=True))
            weights.append(torch.cat([p.flatten() for p in model.parameters()]))
        assert torch.equal(*weights)
        tokenizer = Tokenizer(splitter, len(splitter.ids))  # type: ignore[arg-type]
        trained = train_pocket.measure(model, "factual_recall", tokenizer, 0)["probability"]
        untrained = train_pocket.train(splitter.ids, 1, 3, tmp_path, Console(quiet=True))
        assert trained > 3 * train_pocket.measure(untrained, "factual_recall", tokenizer, 0)["probability"]
