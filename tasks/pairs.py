"""Pairs of your own, from a JSONL file: one JSON object a line.

    {"clean": "The war lasted from 1741 to 17", "corrupted": "The war lasted from 1701 to 17",
     "answers": ["42", "43"], "wrong_answers": ["39", "40"]}                                      (on one line)

Keys: `clean`, `corrupted` (a prompt, or a list of several partners); optional `answers`, `wrong_answers` (a list, or
a list per position), `position` (an index or a list), `subject` ([start, end)), `labels` (names of positions:
{"name": index or [start, end)}, or a list of one name, or null, per token). Prompts are text or lists of token ids.

The metric is the logit difference where every pair has answers and wrong answers, else KL. The thresholds are those
of ioi (0.03) and the middle of what Conmy et al. 2023 swept for KL (0.01): with prompts of your own, try several.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from acdc.errors import ConfigError, FormatError
from acdc.settings import option
from acdc.tasks.base import Pair, Task, TaskSettings, Tokenizer, lone_surrogate

REQUIRED = ("clean", "corrupted")
OPTIONAL = ("answers", "wrong_answers", "position", "subject", "labels")


@dataclass(frozen=True)
class Pairs(TaskSettings):
    """Pairs of your own, from a JSONL file: task=pairs task.path=FILE.jsonl"""

    from_file: ClassVar[bool] = True

    name: str = option("pairs", "what the task is called in files and pictures, a word of your own")
    size: int | None = option(
        None, "null: all pairs of the file; a number: a sample of that size, drawn by the seed", least=1
    )  # type: ignore[assignment]
    seed: int = option(0, "of that sample")
    corruption: str = option("", "stays empty: the file says what is corrupted")
    partners: int = option(1, "stays 1: the file says it, by a list of corrupted prompts", least=1)
    prepend_bos: bool | None = option(
        None, "null: the tokenizer's own habit; true: BOS in front of text; false: no special token"
    )
    path: str | None = option(None, "the file")
    title: str | None = option(None, "a line that says what the task is about; null: none")

    def build(self, tokenizer: Tokenizer) -> Task:
        if not self.path:
            raise ConfigError("task=pairs needs a file: give task.path=FILE.jsonl")
        if self.corruption:
            raise ConfigError(
                f"task.corruption={self.corruption} has no effect on task=pairs: the file holds both prompts"
            )
        if self.partners != 1:
            raise ConfigError(
                f"task.partners={self.partners} has no effect on task=pairs: the file gives a list of corrupted prompts"
            )
        pairs = read(self.path, tokenizer)
        if self.size is not None:
            if not 1 <= self.size <= len(pairs):
                raise ConfigError(f"task.size={self.size}, but {self.path} holds {len(pairs)}: give 1 to that, or null")
            chosen = sorted(random.Random(self.seed).sample(range(len(pairs)), self.size))
            pairs = [pairs[i] for i in chosen]
        answered = all(pair.answers and pair.wrong_answers for pair in pairs)
        thresholds = {"logit_diff": 0.03, "prob_diff": 0.01, "kl_div": 0.01}
        return Task(
            self.name,
            pairs,
            metric="logit_diff" if answered else "kl_div",
            thresholds=thresholds,
            title=self.title or "",
        )


def read(path: str | Path, tokenizer: Tokenizer) -> list[Pair]:
    """The pairs of a file; blank lines are skipped.

    Raises
    ------
    ConfigError: there is no such file.
    FormatError: a line is no pair; the message names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"task.path={path} cannot be read ({error.strerror}): give a JSONL file of pairs") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not a text file in UTF-8: give a JSONL file of pairs") from None
    pairs = [_read_pair(line, f"{path} line {n}", tokenizer) for n, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise FormatError(f"{path} is empty: give at least one pair, a JSON object on a line")
    return pairs


def _read_pair(line: str, where: str, tokenizer: Tokenizer) -> Pair:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is not JSON ({error}): give one object on the line") from None
    if half := lone_surrogate(record):
        raise FormatError(f"{where} holds half of a character, {half}: write the whole one, or leave it out")
    if not isinstance(record, dict):
        raise FormatError(f'{where} is not a JSON object: give {{"clean": …, "corrupted": …}}')
    for key in REQUIRED:
        if key not in record:
            raise FormatError(f"{where} has no {key!r}: a pair needs {' and '.join(map(repr, REQUIRED))}")
    for key in record:
        if key not in REQUIRED + OPTIONAL:
            raise FormatError(f"{where}: {key!r} is not a key of a pair; known are {', '.join(REQUIRED + OPTIONAL)}")

    def check(key: str, is_right: bool, expected: str) -> None:
        if not is_right:
            shown = json.dumps(record[key], ensure_ascii=False)
            raise FormatError(f"{where}: {key!r} is {shown[:60]}, but must be {expected}")

    given = {key: value for key, value in record.items() if value is not None or key in REQUIRED}
    check("clean", _is_prompt(given["clean"]), "text or a list of token ids")
    partners = given["corrupted"]
    several = isinstance(partners, list) and bool(partners) and all(map(_is_prompt, partners))
    check("corrupted", _is_prompt(partners) or several, "text, a list of token ids, or a list of several such prompts")
    for key in ("answers", "wrong_answers"):
        if key in given:
            check(key, _is_answers(given[key]), "a list of tokens (text or ids), or one such list per position")
    if "position" in given:
        at = given["position"]
        check("position", _is_index(at) or (_is_indices(at) and bool(at)), "an index or a list of indices")
    if "subject" in given:
        check("subject", _is_indices(given["subject"]) and len(given["subject"]) == 2, "[start, end) in tokens")
    labels = given.get("labels", {})
    if isinstance(labels, list):
        check("labels", all(name is None or isinstance(name, str) for name in labels), "names, one (or null) per token")
        labels = _named_positions(labels, given["clean"], where, tokenizer)
    check(
        "labels",
        isinstance(labels, dict) and all(map(_is_place, labels.values())),
        "names with an index or [start, end)",
    )
    return Pair(**{**given, "labels": labels}, where=where)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_index, value))


def _is_place(value: Any) -> bool:
    return _is_index(value) or (_is_indices(value) and len(value) == 2)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or (_is_indices(value) and bool(value))


def _is_answers(value: Any) -> bool:
    def is_flat(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(v, str) or _is_index(v) for v in values)

    return is_flat(value) or (isinstance(value, list) and all(map(is_flat, value)))


def _named_positions(
    names: list[str | None], clean: str | list[int], where: str, tokenizer: Tokenizer
) -> dict[str, int | list[int]]:
    """One name per token as places; a name on neighbouring tokens is a span, null or "" no name."""
    n_tokens = len(tokenizer.encode(clean)) if isinstance(clean, str) else len(clean)
    if len(names) != n_tokens:
        raise FormatError(
            f"{where}: 'labels' has {len(names)} names for {n_tokens} tokens; give one, or null, for each"
        )
    spans: dict[str, int | list[int]] = {}
    for i, name in enumerate(names):
        span = spans.get(name) if name else None
        if not name:
            continue
        if span is None:
            spans[name] = [i, i + 1]
        elif isinstance(span, list) and span[1] == i:
            span[1] = i + 1
        else:
            raise FormatError(f"{where}: the label {name!r} stands on tokens that are not neighbours; use two names")
    return spans
