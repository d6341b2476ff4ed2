"""What a task is: pairs of prompts, where the metric reads and what it compares. No torch, no model: only a tokenizer.

A task is a class that extends `TaskSettings`: its fields are its options, and `build` makes its pairs. Pairs are text
or token ids; `tokenize_pairs` turns them into ids and refuses, with the place of the offending pair, what no metric
could use.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

from acdc.errors import TaskError
from acdc.settings import Settings, option

Prompt = str | list[int]
Answer = str | int
CHECKS = ("error", "warn", "off")


@dataclass(frozen=True)
class TaskSettings(Settings, ABC):
    """A task: its options are fields, and `build` makes its pairs.

    Attributes
    ----------
    own_model : the model that the task needs; None fits any model.
    from_file : whether the pairs are those of a file, so that no seed makes others.
    """

    GROUP: ClassVar[str] = "task"
    own_model: ClassVar[str | None] = None
    from_file: ClassVar[bool] = False

    name: str = ""
    size: int = option(32, "number of pairs", least=1)
    seed: int = option(0, "the same seed gives the same pairs")
    corruption: str = option("", "how the corrupted prompt is made")
    partners: int = option(1, "corrupted prompts of each clean one; metrics average over them", least=1)
    prepend_bos: bool | None = option(
        None, "null: the tokenizer's own habit; true: BOS in front; false: no special token"
    )
    check: str = option("warn", "pairs that look unsuitable for the model: error, warn or off", CHECKS)
    filter: list[str] | str = option([], "keep good pairs only, such as [correct,minimal:2]; acdc job=check lists them")
    frequencies: str | None = option(
        None,
        "a JSON file of counts, {token: count}; null: those of the bundled model, or the tokenizer's order",
    )

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> Task:
        """The pairs, and what a run needs to know about them.

        Raises
        ------
        ConfigError
            An option that does not fit.
        TaskError
            The tokenizer lacks words that the task needs.
        """


@dataclass
class Pair:
    """A clean prompt and its corrupted partner(s), as a person writes them.

    Attributes
    ----------
    clean, corrupted: text, or token ids used as they are; `corrupted` may be a list of several partners.
    answers, wrong_answers: tokens (text or ids) whose logits the metric compares, the same at every position, or
        one list per position.
    position: where the metric reads, an index or several into the final tokens; None is the last token.
    subject: [start, end) token span of the subject, for causal tracing.
    labels: names of positions, each an index or a [start, end) span.
    where: what error messages call the pair, such as `pairs.jsonl line 3`.
    """

    clean: Prompt
    corrupted: Prompt | list[Prompt]
    answers: list[Any] = field(default_factory=list)
    wrong_answers: list[Any] = field(default_factory=list)
    position: int | list[int] | None = None
    subject: list[int] | None = None
    labels: dict[str, int | list[int]] = field(default_factory=dict)
    where: str = ""


@dataclass
class Task:
    """Pairs with everything a run needs to know about them.

    Attributes
    ----------
    metric: the metric used unless another is asked for.
    thresholds: ACDC's threshold per metric, used unless one is given; the task's docstring says where it is from.
    notes: what the user should hear (a name left out because it is not one token, say).
    model: the model the task needs, where it needs its own.
    title: a line that says what the task is about, for pictures and reports; empty for none.
    """

    name: str
    pairs: list[Pair]
    metric: str
    thresholds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    model: str | None = None
    title: str = ""


@dataclass(frozen=True)
class TokenizedPair:
    """A pair as ids. `positions` are non-negative; `answers[i]` belong to `positions[i]`.

    `corrupted` holds one or more partners, each as long as `clean`. `is_text`: whether all prompts were given as text.
    """

    clean: tuple[int, ...]
    corrupted: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    wrong_answers: tuple[tuple[int, ...], ...]
    subject: tuple[int, int] | None
    labels: dict[str, tuple[int, int]]
    where: str
    is_text: bool


class HuggingFaceTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    bos_token_id: int | None
    all_special_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any: ...
    def decode(self, token_ids: list[int]) -> str: ...


class Tokenizer:
    """A Hugging Face tokenizer with one rule for special tokens: those in front of a text count, none behind it does.

    Parameters
    ----------
    tokenizer: the model's own, or None for a model without one (then only token ids can be used).
    vocabulary_size: number of ids the model knows.
    prepend_bos: None keeps what the tokenizer puts in front by itself; True puts its BOS first; False adds no special
        token. A text that begins with that token already gets no second one.

    Attributes
    ----------
    notes: what the user should hear of how texts became ids, each said once.
    """

    def __init__(
        self, tokenizer: HuggingFaceTokenizer | None, vocabulary_size: int, prepend_bos: bool | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.prepend_bos = prepend_bos
        self.notes: list[str] = []
        if prepend_bos and (tokenizer is None or tokenizer.bos_token_id is None):
            raise TaskError("task.prepend_bos=true, but the model's tokenizer has no BOS token: give null or false")

    def _required(self) -> HuggingFaceTokenizer:
        if self.tokenizer is None:
            raise TaskError("this model has no tokenizer, so prompts must be lists of token ids, not text")
        return self.tokenizer

    @property
    def special_ids(self) -> set[int]:
        return set(self.tokenizer.all_special_ids) if self.tokenizer is not None else set()

    @property
    def bos(self) -> list[int]:
        """The ids a prompt of token ids should begin with: BOS where it is asked for or the tokenizer's habit."""
        return [] if self.tokenizer is None else self._around[0][:1]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens in front of a text, and those that the tokenizer would put behind it."""
        tokenizer = self._required()
        if self.prepend_bos is False:
            return [], []
        before, behind = self._habit()
        if self.prepend_bos and before[:1] != [tokenizer.bos_token_id]:
            assert tokenizer.bos_token_id is not None
            before = [tokenizer.bos_token_id, *before]
        return before, behind

    def _habit(self) -> tuple[list[int], list[int]]:
        """What the tokenizer adds by itself, seen on a text of ordinary tokens: so it is clear which are its own."""
        tokenizer, special = self._required(), self.special_ids
        if not tokenizer("")["input_ids"]:
            return [], []
        for token in range(self.vocabulary_size):
            text = tokenizer.decode([token])
            ids = self._plain(text)
            if not ids or special & set(ids):
                continue
            whole = list(tokenizer(text)["input_ids"])
            starts = [i for i in range(len(whole)) if whole[i : i + len(ids)] == ids]
            if len(starts) == 1:
                return whole[: starts[0]], whole[starts[0] + len(ids) :]
        return [], []

    def _plain(self, text: str) -> list[int]:
        return list(self._required()(text, add_special_tokens=False)["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens in front of it."""
        (before, behind), ids = self._around, self._plain(text)
        if behind:
            self.note(
                f"the model's tokenizer ends every text with {self.decode(behind)!r}: it is left out, so that a prompt"
                " ends with its own last token"
            )
        if before and ids[:1] == before[:1]:
            self.note(f"a prompt begins with {self.decode(before[:1])!r} already, so no second one is put in front")
            return ids
        return [*before, *ids]

    def note(self, text: str) -> None:
        """Keep what the user should hear."""
        if text not in self.notes:
            self.notes.append(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; the ids themselves where there is no tokenizer."""
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(list(ids))

    def added(self, prompt: str, text: str) -> list[int]:
        """The ids a text adds behind a prompt; empty if it changes how the prompt itself is cut into tokens."""
        before, after = self.encode(prompt), self.encode(prompt + text)
        return after[len(before) :] if after[: len(before)] == before else []

    @property
    def unknown_id(self) -> int | None:
        """The id of every word outside the vocabulary; None where there is no such token."""
        return getattr(self.tokenizer, "unk_token_id", None)

    def unknown_word(self, text: str) -> str | None:
        """The first word of a text that the vocabulary lacks; None where there is none, or the text itself has the
        unknown token (GPT-2's is its end-of-text token)."""
        tokenizer, literal = self._required(), getattr(self.tokenizer, "unk_token", None)
        if self.unknown_id is None or (literal and literal in text):
            return None

        def is_unknown(part: str) -> bool:
            return self.unknown_id in tokenizer(part, add_special_tokens=False)["input_ids"]

        words = re.findall(r"\w+|[^\w\s]", text) if is_unknown(text) else []
        return next(filter(is_unknown, words), text if words else None)

    def is_word(self, word: str) -> bool:
        """Whether a word is one known token inside a text, where a space stands in front of it."""
        inside = self.added("a", f" {word}")
        return len(inside) == 1 and inside[0] != self.unknown_id

    def words(self, candidates: Sequence[str], kind: str, notes: list[str], at_least: int = 2) -> list[str]:
        """The candidates that are one token; what is left out goes to `notes`, too few is a TaskError."""
        kept = [word for word in candidates if self.is_word(word)]
        dropped = [word for word in candidates if word not in set(kept)]
        if len(kept) < at_least:
            raise TaskError(
                f"the model's tokenizer knows {len(kept)} of this task's {len(candidates)} {kind} as one token and"
                f" the task needs {at_least}: choose another task or model, or write pairs of your own (task=pairs)"
            )
        if dropped:
            shown = ", ".join(dropped[:8]) + (f" and {len(dropped) - 8} more" if len(dropped) > 8 else "")
            notes.append(f"{kind} left out because they are not one token: {shown}")
        return kept

    def last_token_of(self, text: str, part: str, occurrence: int = 0) -> int:
        """Index of the token in which an occurrence of `part` ends inside `text` (-1 counts from the end)."""
        starts = [i for i in range(len(text)) if text.startswith(part, i)]
        end = starts[occurrence] + len(part)
        return len(self.encode(text[:end])) - 1


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def lone_surrogate(data: Any) -> str | None:
    """Half of a character, as it would be escaped, from the texts in lists, objects and numbers; None if all are whole.

    JSON and Python can write one; a tokenizer or a file in UTF-8 cannot.
    """
    found = _LONE_SURROGATE.search(json.dumps(data, ensure_ascii=False, default=str))
    return None if found is None else ascii(found.group())[1:-1]


def tokenize_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[TokenizedPair]:
    """Pairs as token ids. An answer that a pair gives twice counts once; the tokenizer's notes say where that was.

    Raises
    ------
    TaskError: no pairs; a clean and a corrupted prompt of different length; an answer that is not one token or is
        also a wrong answer; a word or an id outside the vocabulary; half of a character; a position outside the
        prompt. The message names the pair.
    """
    if not pairs:
        raise TaskError("the task has no pairs: give at least one")
    tokenized, repeated = [], []
    for i, pair in enumerate(pairs):
        where = pair.where or f"pair {i}"
        one = _tokenize_pair(pair, tokenizer, where)
        answers, wrong = (tuple(tuple(dict.fromkeys(ids)) for ids in all_) for all_ in (one.answers, one.wrong_answers))
        if (answers, wrong) != (one.answers, one.wrong_answers):
            repeated.append(where)
        tokenized.append(replace(one, answers=answers, wrong_answers=wrong))
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        tokenizer.note(f"an answer that is given twice counts once: {', '.join(repeated[:3])}{more}")
    return tokenized


def _tokenize_pair(pair: Pair, tokenizer: Tokenizer, where: str) -> TokenizedPair:
    if half := lone_surrogate([pair.clean, pair.corrupted, pair.answers, pair.wrong_answers, [*pair.labels]]):
        raise TaskError(f"{where} holds half of a character, {half}: write the whole one, or leave it out")
    clean = _tokenize_prompt(pair.clean, tokenizer, where)
    partners = [_tokenize_prompt(prompt, tokenizer, where) for prompt in _partners(pair.corrupted)]
    for partner in partners:
        if len(partner) != len(clean):
            raise TaskError(
                f"{where}: the clean prompt has {len(clean)} tokens and the corrupted one {len(partner)}; they must"
                f" have the same number (clean: {tokenizer.decode(clean)!r}, corrupted: {tokenizer.decode(partner)!r})"
            )
    positions = [-1] if pair.position is None else [pair.position] if isinstance(pair.position, int) else pair.position
    if not positions:
        raise TaskError(f"{where}: the list of positions is empty; leave it out to read the last token")
    for position in positions:
        if not -len(clean) <= position < len(clean):
            raise TaskError(f"{where}: position {position} lies outside the prompt of {len(clean)} tokens")
    positions = [position % len(clean) for position in positions]
    answers = _tokenize_answers(pair.answers, pair.clean, len(positions), tokenizer, where)
    wrong = _tokenize_answers(pair.wrong_answers, pair.clean, len(positions), tokenizer, where)
    for right_here, wrong_here in zip(answers, wrong, strict=True):
        if both := set(right_here) & set(wrong_here):
            raise TaskError(f"{where}: {tokenizer.decode(sorted(both))!r} is both an answer and a wrong answer")
    return TokenizedPair(
        clean=tuple(clean),
        corrupted=tuple(map(tuple, partners)),
        positions=tuple(positions),
        answers=answers,
        wrong_answers=wrong,
        subject=None if pair.subject is None else _span(pair.subject, len(clean), f"{where}: subject"),
        labels={name: _span(at, len(clean), f"{where}: label {name!r}") for name, at in pair.labels.items()},
        where=where,
        is_text=all(isinstance(prompt, str) for prompt in (pair.clean, *_partners(pair.corrupted))),
    )


def _partners(corrupted: Any) -> list[Prompt]:
    """One prompt is text or a list of ids; several are a list of those."""
    if isinstance(corrupted, list) and corrupted and not isinstance(corrupted[0], int):
        return corrupted
    return [corrupted]


def _tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer, where: str) -> list[int]:
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise TaskError(f"{where}: a prompt is empty; it needs at least one token")
    if isinstance(prompt, str) and (word := tokenizer.unknown_word(prompt)):
        raise TaskError(
            f"{where}: the word {word!r} of the prompt {prompt!r} is not in the model's vocabulary; use words that it"
            " knows, or another model"
        )
    for token in ids:
        _check_id(token, tokenizer, where)
    return ids


def _check_id(token: Any, tokenizer: Tokenizer, where: str) -> int:
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < tokenizer.vocabulary_size:
        raise TaskError(f"{where}: {token!r} is not a token id of this model (0 to {tokenizer.vocabulary_size - 1})")
    return token


def _tokenize_answers(
    answers: list[Any], prompt: Prompt, n_positions: int, tokenizer: Tokenizer, where: str
) -> tuple[tuple[int, ...], ...]:
    per_position = answers if answers and isinstance(answers[0], list) else [answers] * n_positions
    if len(per_position) != n_positions:
        raise TaskError(f"{where}: {len(per_position)} lists of answers for {n_positions} positions; give one for each")
    return tuple(tuple(_answer_id(answer, prompt, tokenizer, where) for answer in here) for here in per_position)


def _answer_id(answer: Answer, prompt: Prompt, tokenizer: Tokenizer, where: str) -> int:
    if not isinstance(answer, str):
        return _check_id(answer, tokenizer, where)
    if not isinstance(prompt, str):
        raise TaskError(f"{where}: the answer {answer!r} is text, but the prompt is token ids; give the answer's id")
    ids = tokenizer.added(prompt, answer)
    if len(ids) != 1:
        count = f"is {len(ids)} tokens" if ids else "merges with the prompt's last token"
        raise TaskError(f"{where}: the answer {answer!r} {count} behind the prompt; it must add exactly one token")
    if tokenizer.unknown_word(answer):
        raise TaskError(
            f"{where}: the answer {answer!r} is not in the model's vocabulary; use a word that it knows, or another"
            " model"
        )
    return ids[0]


def _span(at: Any, length: int, what: str) -> tuple[int, int]:
    """An index or a [start, end) span as a span of non-negative indices."""
    start, end = (at, at + 1) if isinstance(at, int) else at
    if isinstance(at, int) and at < 0:
        start, end = at % length, at % length + 1
    if not 0 <= start < end <= length:
        raise TaskError(f"{what} {at} is not a span inside the prompt of {length} tokens")
    return start, end
