"""Sentiment (after Tigges et al. 2023): one adjective decides how a review goes on.

    clean      I thought this movie was fantastic. I would call it    → great, good …, not terrible, bad …
    corrupted  I thought this movie was dreadful. I would call it     (opposite)

Corruptions: `opposite` has an adjective of the other sentiment, so the answer flips; `neutral` has one of none. No
adjective of a prompt is also an answer, so nothing can be copied.

The metric is the logit difference, mean positive minus mean negative or the reverse. Conmy et al. 2023 did not treat
the task; 0.03 and, for KL, 0.01 lie where they swept the others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.settings import option
from acdc.tasks._common import distinct_pairs, fill, partners, words_of
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("opposite", "neutral")
TEMPLATES = (
    "I thought this {thing} was {adjective}. I would call it",
    "Everyone said the {thing} was {adjective}. In short, it was",
    "The {thing} was {adjective} from start to end. I found it",
    "My friend found the {thing} {adjective}. It must be",
)
THINGS = words_of("movie film book play show song story game concert album novel series")
ADJECTIVES = {
    "positive": words_of(
        "fantastic delightful superb stunning charming enjoyable impressive magnificent perfect lovely"
    ),
    "negative": words_of("dreadful disgusting annoying disappointing miserable pathetic boring worthless nasty ugly"),
    "neutral": words_of("long short recent foreign old modern local French"),
}
ANSWERS = {"positive": words_of("great good wonderful"), "negative": words_of("terrible bad awful")}


@dataclass(frozen=True)
class Sentiment(TaskSettings):
    """Sentiment: "I thought this movie was fantastic. I would call it" → great"""

    name: str = "sentiment"
    corruption: str = option(
        "opposite",
        "opposite: an adjective of the other sentiment; neutral: of none",
        CORRUPTIONS,
    )

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        things = tokenizer.words(THINGS, "things", notes)
        adjectives = {kind: tokenizer.words(words, f"{kind} adjectives", notes) for kind, words in ADJECTIVES.items()}
        answers = {
            kind: tokenizer.words(words, f"{kind} answers", notes, at_least=1) for kind, words in ANSWERS.items()
        }
        rng = random.Random(self.seed)

        def draw() -> Pair:
            kind, other = rng.sample(list(ANSWERS), 2)
            template = rng.choice(TEMPLATES)
            thing = {"thing": rng.choice(things)}
            clean = fill(template, thing | {"adjective": rng.choice(adjectives[kind])})

            def corrupted() -> str:
                adjective = rng.choice(adjectives[other if self.corruption == "opposite" else "neutral"])
                return fill(template, thing | {"adjective": adjective}).text

            at = clean.span("adjective", tokenizer)
            return Pair(
                clean.text,
                partners(self, corrupted(), corrupted),
                answers=[f" {word}" for word in answers[kind]],
                wrong_answers=[f" {word}" for word in answers[other]],
                subject=at,
                labels={"thing": clean.span("thing", tokenizer), "adjective": at, "end": -1},
            )

        return Task(
            "sentiment",
            distinct_pairs(self.size, draw, notes),
            metric="logit_diff",
            thresholds={"logit_diff": 0.03, "kl_div": 0.01},
            notes=notes,
        )
