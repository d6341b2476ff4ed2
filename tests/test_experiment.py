"""Building experiments: what the pairs become, what is refused, and that nothing is checked too little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import WORDS, make_checkpoint, make_model
from experiments import KINDS, experiment, oracle_logits, random_pairs, rows_of, small

from acdc.discovery import discover
from acdc.errors import AcdcError, ConfigError, TaskError
from acdc.experiment import Experiment
from acdc.metrics import METRICS
from acdc.model import ModelSettings
from acdc.tasks.base import Pair, Task


def one_pair(**changes: Any) -> Pair:
    return Pair(**({"clean": [2, 3, 4], "corrupted": [2, 5, 4], "answers": [6], "wrong_answers": [7]} | changes))


def task(*pairs: Pair, metric: str = "logit_diff") -> Task:
    return Task("mine", list(pairs), metric)


def test_pairs_become_rows() -> None:
    pairs = [
        one_pair(corrupted=[[2, 5, 4], [2, 6, 4]], position=[0, 2], answers=[[6, 8], [1]], wrong_answers=[[7], [3, 4]]),
        one_pair(clean=[1, 2, 3, 4, 5], corrupted=[1, 2, 0, 4, 5], position=-2),
    ]
    one = experiment(small("gpt2"), pairs)
    assert one.batch.clean.tolist() == [[2, 3, 4, 0, 0], [2, 3, 4, 0, 0], [1, 2, 3, 4, 5]]
    assert one.batch.corrupted.tolist() == [[2, 5, 4, 0, 0], [2, 6, 4, 0, 0], [1, 2, 0, 4, 5]]
    assert one.batch.lengths.tolist() == [3, 3, 5]
    assert one.batch.source == (0, 0, 1)
    read = one.readouts
    assert read.row.tolist() == [0, 0, 1, 1, 2]
    assert read.position.tolist() == [0, 2, 0, 2, 3]
    assert read.weight.tolist() == pytest.approx([1 / 8] * 4 + [1 / 2])
    assert read.answers.tolist() == [[6, 8], [1, -1], [6, 8], [1, -1], [6, -1]]
    assert read.wrong_answers.tolist() == [[7, -1], [3, 4], [7, -1], [3, 4], [7, -1]]


@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 6, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_clean_logits_are_the_models_own_at_the_readouts(kind: str, lengths: tuple[int, ...]) -> None:
    pairs = random_pairs(1, lengths, positions=2, partners=2)
    one = experiment(small(kind), pairs)
    rows = rows_of(pairs)
    expected = oracle_logits(small(kind).truth, rows, one.graph)
    torch.testing.assert_close(one.clean_logits.double(), expected, rtol=0, atol=1e-4)


def test_in_double_precision_everything_is_computed_anew() -> None:
    pairs = random_pairs(2)
    double = experiment(small("gpt2"), pairs).to("cpu", torch.float64)
    assert double.clean_logits.dtype == double.ablated.heads.dtype == double.readouts.weight.dtype == torch.float64
    expected = oracle_logits(small("gpt2").truth, rows_of(pairs), double.graph)
    torch.testing.assert_close(double.clean_logits, expected, rtol=0, atol=1e-12)


def test_text_and_ids_are_the_same_prompt(tmp_path: Path) -> None:
    path = str(make_checkpoint("gpt2", tmp_path, tokenizer=True))
    texts = Pair("the cat saw", "the dog saw", [" bird"], [" cat", " dog"])
    ids = Pair(
        *([WORDS.index(word) for word in text.split()] for text in (texts.clean, texts.corrupted)),
        [WORDS.index("bird")],
        [WORDS.index("cat"), WORDS.index("dog")],
    )
    a, b = (Experiment.build(path, task(pair)) for pair in (texts, ids))
    assert torch.equal(a.batch.clean, b.batch.clean)
    assert torch.equal(a.clean_logits, b.clean_logits)
    assert torch.equal(a.readouts.wrong_answers, b.readouts.wrong_answers)


@pytest.mark.parametrize("form", ["absolute", "Path", "./sub/llama", "sub/llama", "llama/", "settings"])
def test_a_checkpoint_folder_in_any_spelling(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path if form == "llama/" else tmp_path / "sub"
    path = make_checkpoint("llama", folder, seed=3)
    monkeypatch.chdir(tmp_path)
    model: Any = {"absolute": str(path), "Path": path, "settings": ModelSettings("local", str(path))}.get(form, form)
    one = Experiment.build(model, task(one_pair()))
    with torch.no_grad():
        expected = make_model("llama", seed=3)(torch.tensor([[2, 3, 4]])).logits[:, -1]
    torch.testing.assert_close(one.clean_logits, expected, rtol=0, atol=1e-4)


def test_settings_of_the_task_hold() -> None:
    mine = Task("mine", [one_pair()], "nll", thresholds={"nll": 0.5})
    one = Experiment.build(small("gpt2").parts, mine)
    assert one.metric_name == "nll"
    assert one.default_threshold == 0.5
    other = Experiment.build(small("gpt2").parts, mine, metric="kl_div")
    assert other.metric_name == "kl_div"
    assert other.default_threshold is None
    assert discover(one).method["threshold"] == 0.5
    with pytest.raises(ConfigError, match=r"method\.threshold"):
        discover(other)


def test_options_reach_the_task() -> None:
    one = Experiment.build("pocket", "ioi", size=3, seed=5)
    again = Experiment.build("pocket", "ioi", size=3, seed=5)
    assert len(one.pairs) == 3
    assert torch.equal(one.batch.clean, again.batch.clean)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"task": "ioi", "sise": 3}, ConfigError, "has no option sise: choose from "),
        ({"task": "iio"}, ConfigError, "task=iio does not exist; choose one of "),
        ({"metric": "accuracy"}, ConfigError, "metric=accuracy does not exist; choose one of "),
        ({"ablation": "patch"}, ConfigError, "ablation=patch does not exist; choose one of "),
        ({"task": task()}, TaskError, "no pairs"),
        ({"task": task(one_pair(corrupted=[2, 5]))}, TaskError, "pair 0: the clean prompt has 3 tokens and .* 2"),
        ({"task": task(one_pair(), one_pair(corrupted=[2, 5, 4, 4], where="line 2"))}, TaskError, "line 2"),
        ({"task": task(one_pair(clean=[2] * 17, corrupted=[3] * 17))}, TaskError, "17 tokens, more than the 16"),
        ({"task": task(one_pair(clean=[2, 3, 10]))}, TaskError, r"10 is not a token id of this model \(0 to 9\)"),
        ({"task": task(one_pair(clean="the cat"))}, TaskError, "no tokenizer"),
        ({"task": task(one_pair(answers=[]))}, TaskError, "metric=logit_diff needs answers"),
        ({"task": task(one_pair(), one_pair(wrong_answers=[]))}, TaskError, "metric=logit_diff needs wrong_answers"),
        ({"task": task(one_pair(position=3))}, TaskError, "position 3"),
        ({"task": task(one_pair()), "size": 5}, ConfigError, "size"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(arguments: dict, error: type[AcdcError], said: str) -> None:
    given: dict[str, Any] = {"model": small("gpt2").parts, "task": task(one_pair())} | arguments
    with pytest.raises(error, match=said) as caught:
        Experiment.build(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", METRICS.built_in)
def test_a_pair_without_answers_does_for_the_metrics_without(metric: str) -> None:
    bare = task(one_pair(answers=[], wrong_answers=[]), metric=metric)
    if metric in ("kl_div", "l2"):
        assert float(Experiment.build(small("gpt2").parts, bare).metric.loss(torch.zeros(1, 10))) > 0
    else:
        with pytest.raises(TaskError, match="needs answers"):
            Experiment.build(small("gpt2").parts, bare)


@pytest.mark.parametrize("lengths", [(4, 9), (9, 4)])
def test_prompts_longer_than_an_attention_window(lengths: tuple[int, int], tmp_path: Path) -> None:
    """Whichever pair comes first, the logits are Hugging Face's."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, sliding_window=4,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "mistral")
    one = Experiment.build(str(tmp_path / "mistral"), task(*random_pairs(0, lengths=lengths)))
    for row, i in enumerate(one.batch.source):
        with torch.no_grad():
            own = model(torch.tensor([one.pairs[i].clean])).logits[0, -1]
        torch.testing.assert_close(one.clean_logits[row], own, rtol=0, atol=1e-5)


def test_a_prompt_may_be_as_long_as_the_rotary_model_reads(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path, n_layers=1, max_position_embeddings=8192)
    one = Experiment.build(str(path), task(one_pair(clean=[2] * 4200, corrupted=[3] * 4200)))
    assert one.clean_logits.shape == (1, 10)
