"""What the language tasks share: filled templates, distinct pairs, first names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter

from acdc.errors import ConfigError
from acdc.tasks.base import Pair, Prompt, TaskSettings, Tokenizer


def words_of(text: str) -> list[str]:
    """A list of words, written as one string."""
    return text.split()


# Frequent first names that are one token for GPT-2; no more, so that a small model can learn them all.
MALE_NAMES = words_of(
    "John Mark Paul David James Robert Michael Richard Thomas Charles Daniel Matthew Steven Andrew Kevin Brian Jason"
    " Jack Tom Tim"
)
FEMALE_NAMES = words_of(
    "Mary Linda Susan Jessica Sarah Karen Nancy Lisa Emily Michelle Laura Anna Rachel Emma Julia Alice Jane Kate Lucy"
    " Lily"
)


def partners(settings: TaskSettings, first: Prompt, draw: Callable[[], Prompt]) -> Prompt | list[Prompt]:
    """The corrupted prompt of a clean one. With `task.partners` it is a list: the first, then what `draw` gives.

    Raises
    ------
    ConfigError: there are fewer different ones.
    """
    if settings.partners == 1:
        return first
    found, idle = [first], 0
    while len(found) < settings.partners and idle < 50 * (len(found) + 20):
        another = draw()
        idle = idle + 1 if another in found else 0
        if another not in found:
            found.append(another)
    if len(found) < settings.partners:
        raise ConfigError(
            f"task.partners={settings.partners}, but with task.corruption={settings.corruption} a clean prompt of"
            f" {settings.name} can have only {len(found)}: give fewer, or another task.corruption"
        )
    return found


@dataclass(frozen=True)
class Filled:
    """A template with words in its slots. `places` holds each slot's first and last character (exclusive)."""

    text: str
    places: dict[str, tuple[int, int]]

    def last(self, slot: str, tokenizer: Tokenizer) -> int:
        """Index of the token in which a slot's word ends."""
        return tokenizer.last_token_of(self.text, self.text[: self.places[slot][1]])

    def span(self, slot: str, tokenizer: Tokenizer) -> list[int]:
        """[start, end) of a slot's tokens."""
        before = self.text[: self.places[slot][0]].rstrip(" ")
        return [len(tokenizer.encode(before)), self.last(slot, tokenizer) + 1]


def fill(template: str, words: Mapping[str, str]) -> Filled:
    """Put words into the `{slots}` of a template; a slot that occurs twice keeps its last place."""
    text, places = "", {}
    for literal, slot, _, _ in Formatter().parse(template):
        text += literal
        if slot is not None:
            places[slot] = (len(text), len(text) + len(words[slot]))
            text += words[slot]
    return Filled(text, places)


def distinct_pairs(size: int, draw: Callable[[], Pair | None], notes: list[str]) -> list[Pair]:
    """Draw until there are `size` different pairs; repeat pairs (and note it) only if there are fewer.

    `draw` returns None where what it drew does not do.
    """
    pairs: dict[str, Pair] = {}
    idle = 0
    while len(pairs) < size and idle < 50 * (len(pairs) + 20):  # a missing pair stays unseen with probability e^-50
        pair = draw()
        key = None if pair is None else f"{pair.clean}|{pair.corrupted}"
        idle = idle + 1 if key is None or key in pairs else 0
        if pair is not None and key is not None:
            pairs.setdefault(key, pair)
    found = list(pairs.values())
    if found and len(found) < size:
        notes.append(f"only {len(found)} different pairs exist, so some of the {size} occur more than once")
        found = [found[i % len(found)] for i in range(size)]
    return found
