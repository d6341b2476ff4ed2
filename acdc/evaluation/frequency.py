"""How frequent tokens are, so that swapped tokens can be matched.

A rare word differs from a frequent one in more than its meaning.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from acdc.errors import ConfigError, FormatError
from acdc.model.load import BUNDLED
from acdc.model.parts import LanguageModel

# A vocabulary with at least this share of neighbours in alphabetical order is sorted by the alphabet, not by frequency.
ALPHABETICAL = 0.9


@dataclass(frozen=True)
class Frequencies:
    """Ranks of tokens.

    Attributes
    ----------
    ranks : mapping of int to int
        By token id, 1 for the most frequent token. A token of unknown frequency has no rank.
    source : str
        Where the ranks are from.
    """

    ranks: Mapping[int, int]
    source: str

    def rank(self, token: int) -> int | None:
        return self.ranks.get(token)

    @classmethod
    def of_model(cls, model: LanguageModel) -> Frequencies | None:
        """Rank by the counts beside a bundled model, if it has some; otherwise by the order of its tokenizer."""
        counts = BUNDLED.get(model.name, Path()) / "counts.json"
        if model.name not in BUNDLED or not counts.is_file():
            return cls.of_tokenizer(model.tokenizer)
        return replace(cls.read(counts, model.tokenizer), source="the bundled model's training prompts")

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> Frequencies | None:
        """Rank by the order of a Hugging Face tokenizer's vocabulary; None where the order says nothing.

        Byte-pair encoding numbers its tokens in the order in which they were merged, the most frequent pair first.
        SentencePiece and WordPiece vocabularies are sorted by score or count. So an id is roughly a rank, unless the
        vocabulary is in alphabetical order. Special tokens have no rank.
        """
        if tokenizer is None:
            return None
        words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        special = set(tokenizer.all_special_ids)
        words = [(word, token) for word, token in words if token not in special]
        ascending = sum(a < b for (a, _), (b, _) in pairwise(words))
        if len(words) < 3 or ascending >= ALPHABETICAL * (len(words) - 1):
            return None
        ranks = {token: rank for rank, (_, token) in enumerate(words, 1)}
        return cls(ranks, "the order of the tokenizer's vocabulary")

    @classmethod
    def read(cls, path: str | Path, tokenizer: Any) -> Frequencies:
        """Read ranks from a JSON file of counts, `{token: count}`; tokens with the same count share the better rank.

        Parameters
        ----------
        path : str or Path
            The file. A token is written as its text (`" Mary"`), in the tokenizer's own spelling (`"ĠMary"`), or, for a
            model without a tokenizer, as its id (`"5335"`).
        tokenizer : object or None

        Raises
        ------
        ConfigError
            No such file.
        FormatError
            The file holds something other than counts, or no token of this tokenizer.
        """
        try:
            counts = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the frequency file {path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise FormatError(f"{path} is not JSON ({error}): give an object, token to count") from None
        if not isinstance(counts, dict):
            raise FormatError(f"{path} holds no JSON object: give one, token to count")
        for token, count in counts.items():
            if not isinstance(count, int | float) or isinstance(count, bool) or not 0 <= count < float("inf"):
                raise FormatError(f"{path}: {token!r} has the count {count!r}: give a number, 0 or more")
        of_id = _ids(counts, tokenizer)
        if not of_id:
            raise FormatError(f"{path} has none of this model's tokens: write them as text, such as ' Mary'")
        falling = sorted(-count for count in of_id.values())
        ranks = {token: bisect_left(falling, -count) + 1 for token, count in of_id.items()}
        return cls(ranks, f"the counts in {Path(path).name}")


def _ids(counts: Mapping[str, float], tokenizer: Any) -> dict[int, float]:
    """Return the counts by token id."""
    if tokenizer is None:
        return {int(token): count for token, count in counts.items() if token.isdecimal()}
    found = {}
    for spelling, token in tokenizer.get_vocab().items():
        text = tokenizer.decode([token])
        if (count := counts.get(text, counts.get(spelling))) is not None:
            found[token] = count
    return found
