"""Greater-than (Hanna et al. 2023): a span of years ends later than it began.

    clean      The war lasted from the year 1741 to the year 17    → 42, 43 … 99, not 00 … 41
    corrupted  The war lasted from the year 1701 to the year 17    (01)

Corruptions: `01` has the first year end in 01, which rules nothing out; `random_earlier` in some earlier year. Only
years that are two tokens, century and rest, are used. The span that causal tracing disturbs (`subject`) is the rest,
41.

The metric is Hanna et al.'s difference of probability, later minus earlier or equal; the original ACDC swept it and
KL over 1e-3 … 1e-1, and 0.01 is the middle of that sweep.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from acdc.errors import TaskError
from acdc.settings import option
from acdc.tasks._common import distinct_pairs, fill, partners, words_of
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer

CORRUPTIONS = ("01", "random_earlier")
TEMPLATES = (
    "The {noun} {verb} from the year {XX}{YY} to the year {XX2}",  # Hanna et al.'s, and the bundled model's
    "The {noun} began in the year {XX}{YY} and ended in the year {XX2}",
    "It began in the year {XX}{YY}, and the {noun} was over in the year {XX2}",
)
CENTURIES = [str(century) for century in range(11, 19)]
YEARS = [f"{year:02d}" for year in range(100)]
VERBS = words_of("lasted ran extended continued")
NOUNS = words_of(
    "war conflict battle siege campaign expedition voyage journey pilgrimage project program work construction reform"
    " reign empire dynasty rule alliance treaty dispute feud strike protest rebellion revolution crisis famine"
    " plague drought exile marriage friendship trial investigation study experiment tour festival tradition"
)


@dataclass(frozen=True)
class GreaterThan(TaskSettings):
    """Greater-than: "The war lasted from the year 1741 to the year 17" → 42 … 99"""

    name: str = "greater_than"
    corruption: str = option("01", "01: the first year ends in 01; random_earlier: in an earlier year", CORRUPTIONS)
    century: int | None = option(
        None,
        "11 to 18: only years of that century; null: all that the tokenizer cuts into two tokens",
        tuple(map(int, CENTURIES)),
    )
    template: int | None = option(
        0,
        "a number from 0 to 2, 0 is that of Hanna et al. and of the bundled model; null: all",
        range(len(TEMPLATES)),
    )

    def build(self, tokenizer: Tokenizer) -> Task:
        templates = TEMPLATES if self.template is None else (TEMPLATES[self.template],)
        _check_known(templates, tokenizer)
        centuries = CENTURIES if self.century is None else [str(self.century)]
        notes: list[str] = []
        nouns = tokenizer.words(NOUNS, "nouns", notes)
        verbs = tokenizer.words(VERBS, "verbs", notes, at_least=1)
        years, ids = _two_token_years(tokenizer, centuries)
        if not years:
            raise TaskError(
                f"the model's tokenizer cuts no year of {', '.join(f'{c}00' for c in centuries)} into century and"
                " rest, as greater_than needs: choose another task, model or task.century, or write pairs of your own"
                " (task=pairs)"
            )
        rng = random.Random(self.seed)

        def draw() -> Pair | None:
            century = rng.choice(list(years))
            first, *later = years[century]  # `first` is 01
            year = rng.choice(later)
            earlier = [first] if self.corruption == "01" else years[century][: years[century].index(year)]
            other = first if self.corruption == "01" else rng.choice(earlier)
            words = {"noun": rng.choice(nouns), "verb": rng.choice(verbs), "XX": century, "XX2": century}
            template = rng.choice(templates) if len(templates) > 1 else templates[0]
            clean = fill(template, words | {"YY": year})

            def with_year(yy: str) -> str:
                return fill(template, words | {"YY": yy}).text

            if self.corruption != "01" and len(earlier) < self.partners < len(years[century]):
                return None  # too few years come before this one
            at = clean.last("YY", tokenizer)
            return Pair(
                clean.text,
                partners(self, with_year(other), lambda: with_year(rng.choice(earlier))),
                answers=[ids[yy] for yy in ids if yy > year],
                wrong_answers=[ids[yy] for yy in ids if yy <= year],
                subject=[at, at + 1],
                labels={"noun": clean.last("noun", tokenizer), "XX": at - 1, "YY": at, "end": -1},
            )

        return Task(
            "greater_than",
            distinct_pairs(self.size, draw, notes),
            metric="prob_diff",
            thresholds={"prob_diff": 0.01, "kl_div": 0.01},
            notes=notes,
        )


def _check_known(templates: Sequence[str], tokenizer: Tokenizer) -> None:
    """TaskError if a template has a word that the tokenizer does not know, as the bundled model's small one may not."""
    unknown = tokenizer.unknown_id
    for template in templates:
        words = re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", " ", template))
        if strangers := [word for word in words if unknown in tokenizer.added("a", f" {word}")]:
            raise TaskError(
                f"the model's tokenizer does not know {', '.join(strangers)} of the template {template!r}: give"
                " task.template=0, or another model"
            )


def _two_token_years(tokenizer: Tokenizer, centuries: list[str]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Per century the rests, 01 to 98, of its two-token years (01 is always among them), and the ids of 00 to 99."""
    unknown = tokenizer.unknown_id
    # Behind a colon, where nothing merges: some years, such as 1700, are one token, but 00 is an answer all the same.
    added = {yy: tokenizer.added("at 12:", yy) for yy in YEARS}
    ids = {yy: tokens[0] for yy, tokens in added.items() if len(tokens) == 1 and tokens[0] != unknown}
    years = {}
    for century in filter(tokenizer.is_word, centuries):
        fits = [yy for yy in YEARS[1:99] if yy in ids and tokenizer.added(f"the year {century}", yy) == [ids[yy]]]
        if fits[:1] == ["01"] and len(fits) > 1:
            years[century] = fits
    return years, ids
