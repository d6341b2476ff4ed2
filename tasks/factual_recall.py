"""Factual recall (Meng et al. 2022, for capitals): a country's capital, known by heart.

    clean      The capital of France is the city of    → Paris, not Rome
    corrupted  The capital of Italy is the city of     (other_subject)

Corruptions: `other_subject` has another country, whose capital is the wrong answer; `neutral` has a word that is no
country ("The capital of somewhere is …"). `subject` is the country, for causal tracing.

The metric is the logit difference of the two capitals. Conmy et al. 2023 did not treat the task; 0.03 and, for KL,
0.01 lie where they swept the others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.settings import option
from acdc.tasks._common import distinct_pairs, fill, partners, words_of
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("other_subject", "neutral")
TEMPLATES = (
    "The capital of {country} is the city of",
    "The capital city of {country} is called",
    "The government of {country} sits in the city of",
    "The parliament of {country} meets in",
    "The president of {country} lives in the city of",
    "Everyone knows that the capital of {country} is",
)
NEUTRAL = ("somewhere", "everywhere", "nowhere", "something")
COUNTRIES = words_of(
    "France Germany Italy Spain Russia Japan China Egypt England Poland Austria Greece Ireland Portugal Norway Sweden"
    " Denmark Finland Hungary Turkey Iraq Iran Syria Lebanon Cuba Canada Peru Chile Ukraine Thailand Philippines"
    " Scotland Wales Belgium Netherlands Afghanistan Libya Pakistan Indonesia Australia"
)
CITIES = words_of(
    "Paris Berlin Rome Madrid Moscow Tokyo Beijing Cairo London Warsaw Vienna Athens Dublin Lisbon Oslo Stockholm"
    " Copenhagen Helsinki Budapest Ankara Baghdad Tehran Damascus Beirut Havana Ottawa Lima Santiago Kiev Bangkok"
    " Manila Edinburgh Cardiff Brussels Amsterdam Kabul Tripoli Islamabad Jakarta Canberra"
)
CAPITALS = dict(zip(COUNTRIES, CITIES, strict=True))


@dataclass(frozen=True)
class FactualRecall(TaskSettings):
    """Factual recall: "The capital of France is the city of" → Paris"""

    name: str = "factual_recall"
    corruption: str = option(
        "other_subject",
        "other_subject: another country; neutral: a word that is no country",
        CORRUPTIONS,
    )

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        cities = set(tokenizer.words(list(CAPITALS.values()), "capitals", notes))
        countries = tokenizer.words([c for c, city in CAPITALS.items() if city in cities], "countries", notes)
        neutral = tokenizer.words(NEUTRAL, "neutral words", notes, at_least=1) if self.corruption == "neutral" else []
        rng = random.Random(self.seed)

        def draw() -> Pair:
            template = rng.choice(TEMPLATES)
            country, other = rng.sample(countries, 2)
            others = [other]  # of whom the wrong answers are the capitals
            clean = fill(template, {"country": country})

            def with_subject(subject: str) -> str:
                return fill(template, {"country": subject}).text

            def another() -> str:
                if neutral:
                    return with_subject(rng.choice(neutral))
                others.append(rng.choice([c for c in countries if c not in (country, *others)] or others))
                return with_subject(others[-1])

            corrupted = partners(self, with_subject(rng.choice(neutral) if neutral else other), another)
            subject = clean.span("country", tokenizer)
            return Pair(
                clean.text,
                corrupted,
                answers=[f" {CAPITALS[country]}"],
                wrong_answers=[f" {CAPITALS[c]}" for c in others],
                subject=subject,
                labels={"subject": subject, "end": -1},
            )

        return Task(
            "factual_recall",
            distinct_pairs(self.size, draw, notes),
            metric="logit_diff",
            thresholds={"logit_diff": 0.03, "kl_div": 0.01},
            notes=notes,
        )
