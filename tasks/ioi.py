"""Indirect object identification (Wang et al. 2022): who receives what the other gives.

    clean      Then, Mary and John went to the store. John gave a drink to    → Mary (IO), not John (S)
    corrupted  Then, Alice and Paul went to the store. Mark gave a drink to   (abc)

Corruptions: `abc` has three other names, so nobody is named twice and nobody stands out; `flipped` has the first part
unchanged and the other person acting, so the answer flips; `s2_random` has a third person acting. With `order=abba`
and `template=0` the prompts are those of Conmy et al. 2023 (ACDC).

The metric is the logit difference, as in Wang et al. and MIB; the original ACDC swept it over 1e-4 … 1, KL over 1e-6
… 1. 0.03 sits inside that sweep where circuits are sparse; 0.0575 for KL is the value usually quoted for ACDC on this
task.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.settings import option
from acdc.tasks._common import (
    FEMALE_NAMES,
    MALE_NAMES,
    Filled,
    distinct_pairs,
    fill,
    partners,
    words_of,
)
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("abc", "flipped", "s2_random")
ORDERS = ("mixed", "abba", "baba")
TEMPLATES = (
    "Then, {A} and {B} went to the {place}. {S2} gave a {object} to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S2} gave a {object} to",
    "Then, {A} and {B} were working at the {place}. {S2} decided to give a {object} to",
    "Then, {A} and {B} were thinking about going to the {place}. {S2} wanted to give a {object} to",
    "When {A} and {B} got a {object} at the {place}, {S2} decided to give it to",
    "After {A} and {B} went to the {place}, {S2} gave a {object} to",
    "While {A} and {B} were working at the {place}, {S2} gave a {object} to",
    "The {place} was where {A} and {B} met. Later {S2} sent a {object} to",
)
PLACES = words_of("store garden restaurant school hospital office house station park market")
OBJECTS = words_of("ring kiss bone basketball computer necklace drink snack book letter")


@dataclass(frozen=True)
class IOI(TaskSettings):
    """Indirect object identification: "Then, Mary and John went to the store. John gave a drink to" → Mary"""

    name: str = "ioi"
    corruption: str = option(
        "abc",
        "abc: three other names; flipped: the other person acts; s2_random: a third person acts",
        CORRUPTIONS,
    )
    order: str = option("mixed", "abba: the receiver is named first; baba: second; mixed", ORDERS)
    template: int | None = option(None, "a number from 0 to 7: only that template; null: all", range(len(TEMPLATES)))

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        names = tokenizer.words(MALE_NAMES + FEMALE_NAMES, "names", notes, at_least=5)
        places = tokenizer.words(PLACES, "places", notes)
        objects = tokenizer.words(OBJECTS, "objects", notes)
        rng = random.Random(self.seed)

        def draw() -> Pair:
            io, s, *others = rng.sample(names, 5)
            template = rng.choice(TEMPLATES) if self.template is None else TEMPLATES[self.template]
            words = {"place": rng.choice(places), "object": rng.choice(objects)}
            abba = rng.random() < 0.5 if self.order == "mixed" else self.order == "abba"
            first, second = ("IO", "S1") if abba else ("S1", "IO")
            roles = {"IO": io, "S1": s, "S2": s}

            def other_roles(others: list[str]) -> dict[str, str]:
                return {
                    "abc": dict(zip(roles, others, strict=True)),
                    "flipped": roles | {"S2": io},
                    "s2_random": roles | {"S2": others[0]},
                }[self.corruption]

            def filled(who: dict[str, str]) -> Filled:
                return fill(template, words | {"A": who[first], "B": who[second], "S2": who["S2"]})

            def corrupted(others: list[str]) -> str:
                return filled(other_roles(others)).text

            clean = filled(roles)
            strangers = [name for name in names if name not in (io, s)]
            at = {first: clean.last("A", tokenizer), second: clean.last("B", tokenizer)}
            return Pair(
                clean.text,
                partners(self, corrupted(others), lambda: corrupted(rng.sample(strangers, 3))),
                answers=[f" {io}"],
                wrong_answers=[f" {s}"],
                labels={
                    "IO": at["IO"],
                    "S1": at["S1"],
                    "S1+1": at["S1"] + 1,
                    "S2": clean.last("S2", tokenizer),
                    "end": -1,
                },
            )

        return Task(
            "ioi",
            distinct_pairs(self.size, draw, notes),
            metric="logit_diff",
            thresholds={"logit_diff": 0.03, "kl_div": 0.0575},
            notes=notes,
        )
