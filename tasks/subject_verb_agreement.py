"""Subject-verb agreement (Linzen et al. 2016): the verb follows its subject's number, past a noun that may mislead.

    clean      The key near the cabinets    → is, was, has, not are, were, have
    corrupted  The keys near the cabinets   (number)
               The dogs near the cabinets   (other_noun)

Corruptions: `number` has the subject in the other number, so the answer flips; `both` the subject and the second
noun; `other_noun` another subject in the other number, of which a prompt can have several (`task.partners`). The second
noun's number is random unless `attractor` says that it is always the `opposite` or the `same` as the
subject's.

The metric is the logit difference, mean of the right forms minus mean of the wrong ones. Conmy et al. 2023 did not
treat the task; 0.03 and, for KL, 0.01 lie where they swept the others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from acdc.errors import TaskError
from acdc.settings import option
from acdc.tasks._common import distinct_pairs, fill, partners
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("number", "both", "other_noun")
ATTRACTORS = ("mixed", "opposite", "same")
TEMPLATES = (
    "The {subject} near the {attractor}",
    "The {subject} behind the {attractor}",
    "The {subject} that the {attractor} saw",
    "I think that the {subject} beside the {attractor}",
    "Today the {subject} with the {attractor}",
)
NOUNS = (
    "key keys,book books,dog dogs,car cars,tree trees,boy boys,girl girls,teacher teachers,doctor doctors,guard guards,"
    "king kings,house houses,horse horses,friend friends,author authors,player players,farmer farmers,window windows,"
    "table tables,river rivers,picture pictures,student students,lawyer lawyers,painting paintings,building buildings"
)
VERBS = (("is", "was", "has"), ("are", "were", "have"))  # singular, plural


@dataclass(frozen=True)
class SubjectVerbAgreement(TaskSettings):
    """Subject-verb agreement: "The key near the cabinets" → is"""

    name: str = "subject_verb_agreement"
    corruption: str = option(
        "number",
        "number: the subject in the other number; both: the second noun too; other_noun: another subject in"
        " the other number",
        CORRUPTIONS,
    )
    attractor: str = option(
        "mixed",
        "number of the second noun: mixed, opposite to or same as the subject's",
        ATTRACTORS,
    )

    def build(self, tokenizer: Tokenizer) -> Task:
        notes: list[str] = []
        pairs_of_forms = [noun.split() for noun in NOUNS.split(",")]
        known = set(tokenizer.words([form for forms in pairs_of_forms for form in forms], "nouns", notes))
        nouns = [forms for forms in pairs_of_forms if known.issuperset(forms)]
        needed = 3 if self.corruption == "other_noun" else 2
        if len(nouns) < needed:
            raise TaskError(
                f"the model's tokenizer knows {len(nouns)} of subject_verb_agreement's nouns in both numbers, and"
                f" task.corruption={self.corruption} needs {needed}: choose another task or model, or write pairs of"
                " your own (task=pairs)"
            )
        rng = random.Random(self.seed)

        def draw() -> Pair:
            template = rng.choice(TEMPLATES)
            subject, attractor = rng.sample(nouns, 2)
            number = rng.randrange(2)
            other = {"mixed": rng.randrange(2), "opposite": 1 - number, "same": number}[self.attractor]
            clean = fill(template, {"subject": subject[number], "attractor": attractor[other]})
            changed = 1 - other if self.corruption == "both" else other
            strangers = [noun for noun in nouns if noun not in (subject, attractor)]

            def corrupted() -> str:
                noun = rng.choice(strangers) if self.corruption == "other_noun" else subject
                return fill(template, {"subject": noun[1 - number], "attractor": attractor[changed]}).text

            at = clean.span("subject", tokenizer)
            return Pair(
                clean.text,
                partners(self, corrupted(), corrupted),
                answers=[f" {verb}" for verb in VERBS[number]],
                wrong_answers=[f" {verb}" for verb in VERBS[1 - number]],
                subject=at,
                labels={"subject": at, "attractor": clean.span("attractor", tokenizer), "end": -1},
            )

        return Task(
            "subject_verb_agreement",
            distinct_pairs(self.size, draw, notes),
            metric="logit_diff",
            thresholds={"logit_diff": 0.03, "kl_div": 0.01},
            notes=notes,
        )
