"""Train the bundled model, a four-layer GPT-2 that does all the language tasks.

    python -m scripts.train_pocket                                  # writes acdc/model/pocket/
    python -m scripts.train_pocket --output DIR --steps 500 --threads 4

The training prompts come from the task files, fresh every round. An eighth of what each task is about (for ioi the
pairs of names, for greater_than the years, …) never occurs in training; the table in the output's README.md is
measured on that.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from acdc.files import write_atomically, write_json
from acdc.model.load import POCKET
from acdc.settings import options
from acdc.tasks import TASKS
from acdc.tasks.base import Task, TokenizedPair, Tokenizer, tokenize_pairs

PATTERN = r"\d{2}|\w+|[^\w\s]"  # two digits, a word, or one punctuation mark; spaces only separate
UNKNOWN = "<unk>"
POSITIONS = 64  # longest prompt
LAYERS, HEADS, WIDTH = 4, 4, 128
INITIAL_SCALE = 0.08  # about 1 / √width; with GPT-2's 0.02 a model so narrow takes many times longer to begin copying
PEAK_LEARNING_RATE = 1e-3
BETAS = (0.9, 0.98)
STEPS_A_ROUND = 100  # prompts are generated for this many steps at once
HELD_OUT = 8  # one in eight is never trained on


@dataclass(frozen=True)
class Recipe:
    """How a task is trained.

    Attributes
    ----------
    batch: prompts a step.
    key: labels whose tokens, in any order, decide whether a prompt is held out; the whole prompt where there are none.
    variants: settings to draw prompts with.
    """

    batch: int
    key: tuple[str, ...] = ()
    variants: tuple[dict[str, Any], ...] = ({},)


RECIPES = {
    "ioi": Recipe(48, key=("IO", "S1")),
    "greater_than": Recipe(12, key=("XX", "YY")),
    "gendered_pronoun": Recipe(8, key=("name", "role"), variants=({"family": "friend"}, {"family": "story"})),
    "induction": Recipe(10, variants=tuple({"length": n} for n in (4, 7, 10, 10, 15, 31))),
    "docstring": Recipe(6, key=("A_def", "B_def"), variants=tuple({"documented": n} for n in (1, 2, 2, 3))),
    "factual_recall": Recipe(8),
    "sentiment": Recipe(8, key=("thing", "adjective")),
    "subject_verb_agreement": Recipe(8, key=("subject", "attractor")),
}


class Example(NamedTuple):
    """A training prompt; `targets[i]` are the equally right tokens behind `positions[i]`."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]


class WordSplitter:
    """The pocket tokenizer's rule without its library: many times faster, and its vocabulary may still grow."""

    bos_token_id = None
    unk_token_id = 0
    all_special_ids = (0,)

    def __init__(self, vocabulary: dict[str, int] | None = None) -> None:
        self.ids = dict(vocabulary or {UNKNOWN: 0})
        self.growing = vocabulary is None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        words = re.findall(PATTERN, text)
        if self.growing:
            return {"input_ids": [self.ids.setdefault(word, len(self.ids)) for word in words]}
        return {"input_ids": [self.ids.get(word, 0) for word in words]}

    def decode(self, token_ids: list[int]) -> str:
        words = list(self.ids)
        return " ".join(words[i] for i in token_ids)


def build_vocabulary() -> dict[str, int]:
    """Every word that the tasks use, in alphabetical order behind the unknown word."""
    splitter = WordSplitter()
    for name, recipe in RECIPES.items():
        if name == "induction":  # draws from whatever vocabulary there is
            continue
        tokenizer = Tokenizer(splitter, 1 << 20)  # type: ignore[arg-type]
        for variant in recipe.variants:
            for corruption in options(TASKS.load(name))["corruption"].option.choices:
                task = _build(name, tokenizer, size=1000, seed=0, corruption=corruption, **variant)
                tokenize_pairs(task.pairs, tokenizer)
    words = sorted(set(splitter.ids) - {UNKNOWN})
    return {word: i for i, word in enumerate([UNKNOWN, *words])}


def _build(name: str, tokenizer: Tokenizer, **settings: Any) -> Task:
    return TASKS.chosen(name, settings).build(tokenizer)


def is_held_out(name: str, pair: TokenizedPair) -> bool:
    """Whether training never sees this prompt: one in `HELD_OUT` of its task's keys, chosen by a checksum."""
    labels = RECIPES[name].key
    if labels and pair.labels.keys() >= set(labels):
        key = sorted(token for label in labels for token in pair.clean[slice(*pair.labels[label])])
    else:
        key = list(pair.clean)
    return zlib.crc32(repr((name, key)).encode()) % HELD_OUT == 0


def draw_pairs(name: str, size: int, seed: int, tokenizer: Tokenizer) -> list[TokenizedPair]:
    """About `size` pairs of a task, held-out ones and others, in equal parts of the recipe's variants."""
    pairs: list[TokenizedPair] = []
    variants = RECIPES[name].variants
    for i, variant in enumerate(variants):
        task = _build(name, tokenizer, size=-(-size // len(variants)), seed=seed * 1009 + i, **variant)
        pairs += tokenize_pairs(task.pairs, tokenizer)
    return pairs


def draw_examples(name: str, n_steps: int, seed: int, tokenizer: Tokenizer) -> Iterator[list[Example]]:
    """One batch a step."""
    recipe = RECIPES[name]
    pairs = draw_pairs(name, recipe.batch * n_steps, seed, tokenizer)
    examples = [Example(pair.clean, pair.positions, pair.answers) for pair in pairs if not is_held_out(name, pair)]
    rng = random.Random(seed)
    for _ in range(n_steps):
        yield rng.sample(examples, recipe.batch)


def count_words(vocabulary: dict[str, int], seed: int) -> dict[str, int]:
    """How often each word occurs in the prompts of the first round of training; 0 for one that only answers or
    corrupted prompts have.
    """
    tokenizer = Tokenizer(WordSplitter(vocabulary), len(vocabulary))  # type: ignore[arg-type]
    counts = Counter(
        token
        for name in RECIPES
        for batch in draw_examples(name, STEPS_A_ROUND, _round_seed(seed, 0), tokenizer)
        for example in batch
        for token in example.ids
    )
    return {word: counts[token] for word, token in vocabulary.items() if word != UNKNOWN}


def _round_seed(seed: int, round_: int) -> int:
    return seed * 1_000_003 + 1 + round_


def task_loss(model: GPT2LMHeadModel, batch: list[Example]) -> Tensor:
    """Cross-entropy at the answer positions; several right answers are expected equally often."""
    rows = [i for i, example in enumerate(batch) for _ in example.positions]
    columns = [position for example in batch for position in example.positions]
    log_probs = _logits_at(model, [example.ids for example in batch], rows, columns).log_softmax(-1)
    expected = torch.zeros_like(log_probs)
    for row, targets in zip(expected, (targets for example in batch for targets in example.targets), strict=True):
        row[list(targets)] = 1 / len(targets)
    return -(expected * log_probs).sum(-1).mean()


def _logits_at(model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], rows: list[int], columns: list[int]) -> Tensor:
    """Logits [read, word] at positions (row, column) of some prompts.

    Shorter prompts are filled up behind, where no earlier position looks.
    """
    length = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts])
    hidden = model.transformer(ids, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[rows, columns])
    return logits


def train(vocabulary: dict[str, int], steps: int, seed: int, folder: Path, console: Console) -> GPT2LMHeadModel:
    """A model trained from scratch on all tasks at once, whose losses count alike; saved after every round."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        initializer_range=INITIAL_SCALE, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    tokenizer = Tokenizer(WordSplitter(vocabulary), len(vocabulary))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=BETAS, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1)
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=steps)
        for step in range(steps):
            if step % STEPS_A_ROUND == 0:
                round_seed = _round_seed(seed, step // STEPS_A_ROUND)
                batches = {name: draw_examples(name, STEPS_A_ROUND, round_seed, tokenizer) for name in RECIPES}
            losses = {}
            for name in RECIPES:
                loss = task_loss(model, next(batches[name]))
                loss.backward()
                losses[name] = loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.advance(bar)
            if step % STEPS_A_ROUND == STEPS_A_ROUND - 1:
                shown = "  ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
                progress.console.print(f"step {step + 1}: {shown}", highlight=False, soft_wrap=True)
                save(model, vocabulary, folder)
    return model.eval()


@torch.no_grad()
def measure(model: GPT2LMHeadModel, name: str, tokenizer: Tokenizer, seed: int, size: int = 6000) -> dict[str, float]:
    """How well the model does on the held-out prompts among `size` pairs, at every position that the task reads.

    `accuracy`: share with the answers' mean logit above the wrong answers'; `top1`: share whose best word is an
    answer; `probability`: mean of the answers' summed probability; `logit_diff`: mean of the answers' mean logit minus
    the wrong answers'.
    """
    drawn = draw_pairs(name, size, seed * 1_000_003, tokenizer)
    pairs = list({pair.clean: pair for pair in drawn if is_held_out(name, pair)}.values())
    pairs = random.Random(seed).sample(pairs, min(500, len(pairs)))
    sums = dict.fromkeys(("accuracy", "top1", "probability", "logit_diff"), 0.0)
    for pair in pairs:
        logits = _logits_at(model, [pair.clean], [0] * len(pair.positions), list(pair.positions))
        for row, right, wrong in zip(logits, map(list, pair.answers), map(list, pair.wrong_answers), strict=True):
            difference = float(row[right].mean() - row[wrong].mean())
            sums["accuracy"] += difference > 0
            sums["top1"] += int(row.argmax()) in right
            sums["probability"] += float(row.softmax(0)[right].sum())
            sums["logit_diff"] += difference
    reads = sum(len(pair.positions) for pair in pairs)
    return {"prompts": len(pairs)} | {key: total / reads for key, total in sums.items()}


def save(model: GPT2LMHeadModel, vocabulary: dict[str, int], folder: Path) -> None:
    """A Hugging Face checkpoint folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = RustTokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN).save_pretrained(folder)
    model.save_pretrained(folder)


def write_readme(folder: Path, rows: dict[str, dict[str, float]], command: str, minutes: float, threads: int) -> None:
    """The output's README.md: what the model is and how well it does."""
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != "README.md") / 1e6
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    table = "\n".join(
        f"| {name} | {row['prompts']} | {row['accuracy']:.3f} | {row['top1']:.3f} | {row['probability']:.3f}"
        f" | {row['logit_diff']:.1f} |"
        for name, row in rows.items()
    )
    text = f"""# The pocket model

A GPT-2 of {LAYERS} layers, {HEADS} heads and width {WIDTH} with {words} words, {size:.1f} MB, that does every language
task of this project. It is a Hugging Face checkpoint folder; its tokenizer has one token for a word, two digits or a
punctuation mark, and adds no special tokens. `counts.json` says how often each word occurs in the prompts of the first
round of training.

Made by `{command}` in {minutes:.0f} minutes ({threads} threads, {platform.machine()}, torch {torch.__version__}).

An eighth of the name pairs (ioi), years (greater_than), names with roles (gendered_pronoun), argument pairs
(docstring), adjectives with things (sentiment), noun pairs (subject_verb_agreement) and questions (factual_recall) was
left out of training; induction has fresh random tokens. On those held-out prompts:

| task | prompts | accuracy | best word is an answer | probability of the answers | mean logit difference |
|---|---|---|---|---|---|
{table}

Accuracy is the share of answer positions where the mean logit of the answers is above that of the wrong answers.
"""
    write_atomically(folder / "README.md", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--output", type=Path, default=POCKET, help="folder to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more help little at this size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    console = Console()
    start = time.monotonic()
    vocabulary = build_vocabulary()
    console.print(f"{len(vocabulary)} words")
    model = train(vocabulary, arguments.steps, arguments.seed, arguments.output, console)
    minutes = (time.monotonic() - start) / 60
    save(model, vocabulary, arguments.output)
    write_json(arguments.output / "counts.json", count_words(vocabulary, arguments.seed))
    reloaded = GPT2LMHeadModel.from_pretrained(arguments.output).eval()
    tokenizer = Tokenizer(PreTrainedTokenizerFast.from_pretrained(arguments.output), len(vocabulary))
    rows = {name: measure(reloaded, name, tokenizer, arguments.seed) for name in RECIPES}
    for name, row in rows.items():
        console.print(name, {key: round(value, 3) for key, value in row.items()})
    command = f"python -m scripts.train_pocket --steps {arguments.steps} --seed {arguments.seed}"
    write_readme(arguments.output, rows, command, minutes, arguments.threads)


if __name__ == "__main__":
    main()
