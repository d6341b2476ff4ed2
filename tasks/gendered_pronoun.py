"""Gendered pronoun: a name decides between "he" and "she".

    clean      So Mary is a really great friend, isn't                   → she, not he   (family=friend)
    clean      Once upon a time, there was a little girl named Lily.     → She, not He   (family=story)
    corrupted  the same about John, or about a boy named Tim             (opposite)

The friend family is Mathwin et al.'s, for models of ordinary text; the story family is for models of children's
stories, whose tokenizers know few words. With `family=auto` the first family whose words are single tokens is used.
Names are those with the fewest tokens that both genders have, and a pair's names have equally many.

Corruptions: `opposite` has a name (and child) of the other gender, so the answer flips; `neutral` has words that say
nothing about gender. The metric is the logit difference of the pronouns. Its threshold is that of the other name task
(ioi), and 0.01 for KL lies in the middle of the range that the original ACDC swept for most tasks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.errors import TaskError
from acdc.settings import option
from acdc.tasks._common import FEMALE_NAMES, MALE_NAMES, distinct_pairs, fill, partners
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("opposite", "neutral")
FAMILIES: dict[str, tuple[str, ...]] = {
    "friend": (
        "So {name} is a really {adjective} {role}, isn't",
        "So {name} is such a {adjective} {role}, isn't",
        "I think {name} is a {adjective} {role}, isn't",
        "We know that {name} is a {adjective} {role}, isn't",
    ),
    # Tried on a TinyStories model: each gets every name's gender right, with and without BOS.
    "story": (
        "Once upon a time, there was a {adjective} {child} named {name}.",
        "Once upon a time, there was a {adjective} {child} named {name}. One day,",
        "Once upon a time, there was a {adjective} {child} named {name} who loved to play.",
        "Once upon a time, there was a {adjective} {child} named {name}. {name} was very happy.",
        "One day, a {adjective} {child} named {name} went to the park.",
        "There was a {adjective} {child} named {name}.",
        "Once there was a {adjective} {child} named {name}.",
    ),
}
SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
    "friend": {
        "adjective": ("great", "good", "nice", "kind", "funny", "smart", "strong"),
        "role": ("friend", "teacher", "student", "writer", "singer", "leader", "player", "doctor"),
    },
    "story": {"adjective": ("little", "happy", "big")},
}
NAMES = {"female": FEMALE_NAMES, "male": [*MALE_NAMES, "Timmy"]}
PRONOUNS = {"female": "she", "male": "he"}
CHILDREN = {"female": "girl", "male": "boy"}
# Genderless words: one is used that has as many tokens as what it replaces.
NEUTRAL = {
    "name": ("someone", "everyone", "it", "they"),
    "child": ("child", "kid", "person", "dog", "bird"),
}


@dataclass(frozen=True)
class GenderedPronoun(TaskSettings):
    """Gendered pronoun: "So Mary is a really great friend, isn't" → she"""

    name: str = "gendered_pronoun"
    corruption: str = option("opposite", "opposite: a name of the other gender; neutral: a word of none", CORRUPTIONS)
    family: str = option(
        "auto",
        "templates: friend, story, or auto for the first that fits the tokenizer",
        ("auto", *FAMILIES),
    )

    def build(self, tokenizer: Tokenizer) -> Task:
        family = _fitting_family(tokenizer) if self.family == "auto" else self.family
        names, notes = _names(tokenizer)
        neutral = {
            "name": _same_length(NEUTRAL["name"], names["female"][0], tokenizer),
            "child": _same_length(NEUTRAL["child"], CHILDREN["female"], tokenizer),
        }
        rng = random.Random(self.seed)

        def draw() -> Pair:
            gender, other = rng.sample(list(PRONOUNS), 2)
            template = rng.choice(FAMILIES[family])
            words = {slot: rng.choice(choices) for slot, choices in SLOTS[family].items()}
            clean = fill(template, words | {"name": rng.choice(names[gender]), "child": CHILDREN[gender]})

            def corrupted() -> str:
                opposite = self.corruption == "opposite"
                replaced = {"name": rng.choice(names[other]), "child": CHILDREN[other]} if opposite else neutral
                return fill(template, words | replaced).text

            prompts = partners(self, corrupted(), corrupted)
            answer, wrong = (
                f" {PRONOUNS[g].capitalize() if template.endswith('.') else PRONOUNS[g]}" for g in (gender, other)
            )
            name = clean.span("name", tokenizer)
            labels: dict[str, int | list[int]] = {"name": name, "end": -1}
            for slot in ("role", "child"):
                if slot in clean.places:
                    labels[slot] = clean.span(slot, tokenizer)
            return Pair(clean.text, prompts, [answer], [wrong], subject=name, labels=labels)

        return Task(
            "gendered_pronoun",
            distinct_pairs(self.size, draw, notes),
            metric="logit_diff",
            thresholds={"logit_diff": 0.03, "kl_div": 0.01},
            notes=notes,
        )


def _length(word: str, tokenizer: Tokenizer) -> int:
    """Number of a word's tokens; 0 if the tokenizer does not know it."""
    ids = tokenizer.added("a", f" {word}")
    return 0 if tokenizer.unknown_id in ids else len(ids)


def _fitting_family(tokenizer: Tokenizer) -> str:
    for family, slots in SLOTS.items():
        if all(tokenizer.is_word(word) for words in slots.values() for word in words):
            return family
    raise TaskError(
        f"the model's tokenizer fits no family of gendered_pronoun's templates: name one of {', '.join(FAMILIES)}"
        " (task.family), or write pairs of your own (task=pairs)"
    )


def _names(tokenizer: Tokenizer) -> tuple[dict[str, list[str]], list[str]]:
    """Names by gender, of the smallest number of tokens that both genders have, and what was left out."""
    known = {gender: {name: n for name in names if (n := _length(name, tokenizer))} for gender, names in NAMES.items()}
    shared = set(known["female"].values()) & set(known["male"].values())
    if not shared:
        raise TaskError(
            "the model's tokenizer knows no names for gendered_pronoun: write pairs of your own (task=pairs)"
        )
    kept = {gender: [name for name in names if names[name] == min(shared)] for gender, names in known.items()}
    left_out = [name for gender in NAMES for name in NAMES[gender] if name not in kept[gender]]
    shown = ", ".join(left_out[:8]) + (f" and {len(left_out) - 8} more" if len(left_out) > 8 else "")
    return kept, [f"names left out because they are not {min(shared)} token(s): {shown}"] if left_out else []


def _same_length(candidates: tuple[str, ...], word: str, tokenizer: Tokenizer) -> str:
    """The first candidate of as many tokens as a word."""
    for candidate in candidates:
        if _length(candidate, tokenizer) == _length(word, tokenizer):
            return candidate
    return candidates[0]
