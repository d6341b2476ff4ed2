"""Pairs files: what is read, and what is said about files that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acdc.errors import AcdcError, ConfigError, FormatError, TaskError
from acdc.tasks.base import Pair, Tokenizer, tokenize_pairs
from acdc.tasks.pairs import Pairs

PAIR = {"clean": [0, 2, 1], "corrupted": [2, 2, 1], "answers": [0], "wrong_answers": [1]}
IDS = Tokenizer(None, 3)


def write(folder: Path, *records: Any) -> str:
    path = folder / "my pairs.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records))
    return str(path)


def test_reads_every_field(tmp_path: Path, pocket: Tokenizer) -> None:
    record = {
        "clean": "The war lasted from the year 1741 to the year 17",
        "corrupted": [
            "The war lasted from the year 1701 to the year 17",
            "The war lasted from the year 1702 to the year 17",
        ],
        "answers": ["42", "43"],
        "wrong_answers": ["39", "40"],
        "position": -1,
        "subject": [1, 2],
        "labels": {"noun": 1, "year": [6, 8]},
    }
    task = Pairs(path=write(tmp_path, record, "", record | {"position": None})).build(pocket)
    first, second = tokenize_pairs(task.pairs, pocket)
    assert task.metric == "logit_diff"
    assert [pocket.decode([i]) for i in first.answers[0] + first.wrong_answers[0]] == ["42", "43", "39", "40"]
    assert len(first.corrupted) == 2
    assert first.subject == (1, 2)
    assert first.labels == {"noun": (1, 2), "year": (6, 8)}
    assert first.positions == second.positions == (11,)
    assert second.where.endswith("my pairs.jsonl line 3")


def test_ids_several_positions_and_one_label_per_token(tmp_path: Path) -> None:
    record = {
        "clean": [0, 2, 1, 1],
        "corrupted": [2, 2, 1, 1],
        "answers": [[0], [1, 2]],
        "position": [1, -1],
        "labels": ["first", None, "rest", "rest"],
    }
    task = Pairs(path=write(tmp_path, record)).build(IDS)
    (pair,) = tokenize_pairs(task.pairs, IDS)
    assert task.metric == "kl_div"  # no wrong answers
    assert (pair.positions, pair.answers) == ((1, 3), ((0,), (1, 2)))
    assert pair.labels == {"first": (0, 1), "rest": (2, 4)}


def test_size_samples_by_seed_in_the_files_order(tmp_path: Path) -> None:
    path = write(tmp_path, *[PAIR | {"clean": [0, i % 3, i // 3]} for i in range(9)])
    assert len(Pairs(path=path).build(IDS).pairs) == 9
    samples = [[p.clean for p in Pairs(path=path, size=4, seed=s).build(IDS).pairs] for s in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert all(len(s) == 4 and s == sorted(s, key=lambda clean: clean[1] + 3 * clean[2]) for s in samples)
    with pytest.raises(ConfigError, match=r"task.size=10, but .* holds 9"):
        Pairs(path=path, size=10).build(IDS)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in PAIR.items() if k != key}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{clean: 1", "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        (without("clean"), "has no 'clean'"),
        (without("corrupted"), "has no 'corrupted'"),
        (PAIR | {"answer": [1]}, "'answer' is not a key of a pair; known are clean, corrupted, answers"),
        (PAIR | {"clean": 3}, "'clean' is 3, but must be text or a list"),
        (PAIR | {"clean": None}, "'clean' is null, but must be text"),
        (PAIR | {"clean": []}, "'clean' is"),
        (PAIR | {"clean": [0, 1.5]}, "'clean' is"),
        (PAIR | {"clean": [True, False]}, "'clean' is"),
        (PAIR | {"corrupted": {}}, "'corrupted' is"),
        (PAIR | {"corrupted": [[0, 1], 2]}, "'corrupted' is"),
        (PAIR | {"answers": "42"}, "'answers' is \"42\", but must be a list of tokens"),
        (PAIR | {"wrong_answers": [[1], 2]}, "'wrong_answers' is"),
        (PAIR | {"position": "end"}, "'position' is \"end\", but must be an index"),
        (PAIR | {"position": []}, "'position' is"),
        (PAIR | {"subject": 1}, "'subject' is 1, but must be"),
        (PAIR | {"subject": [1, 2, 3]}, "'subject' is"),
        (PAIR | {"labels": "end"}, "'labels' is"),
        (PAIR | {"labels": {"a": [1]}}, "'labels' is"),
        (PAIR | {"labels": ["a", 1, "b"]}, "'labels' is"),
        (PAIR | {"labels": ["a", "b"]}, "'labels' has 2 names for 3 tokens"),
        (PAIR | {"labels": ["a", "b", "a"]}, "the label 'a' stands on tokens that are not neighbours"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, PAIR, line)
    with pytest.raises(FormatError) as caught:
        Pairs(path=path).build(IDS)
    assert f"{path} line 2" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unequal_lengths_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR, PAIR | {"corrupted": [1, 2]})
    with pytest.raises(TaskError, match=r"my pairs.jsonl line 2: .* 3 tokens and the corrupted one 2"):
        tokenize_pairs(Pairs(path=path).build(IDS).pairs, IDS)


def test_unusable_files(tmp_path: Path) -> None:
    empty = write(tmp_path, "")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for settings, message in [
        (Pairs(), "task.path=FILE.jsonl"),
        (Pairs(path=empty), "is empty"),
        (Pairs(path=str(tmp_path / "none.jsonl")), "none.jsonl cannot be read"),
        (Pairs(path=str(tmp_path)), "cannot be read"),
        (Pairs(path=str(binary)), "not a text file"),
        (Pairs(path=empty, corruption="abc"), "task.corruption=abc has no effect"),
    ]:
        with pytest.raises(AcdcError, match=message):
            settings.build(IDS)


@pytest.mark.parametrize(
    ("name", "text", "unknown"),
    [
        ("pocket", "So Mary is", None),
        ("pocket", "So Zaphod, is", "Zaphod"),
        ("pocket", "So <unk> is", None),  # written as it is
        ("gpt2", "So Zaphod is", None),  # bytes cover every word
        ("gpt2", "<|endoftext|>So Mary is", None),  # GPT-2's unknown token, written as it is
    ],
)
def test_words_outside_the_vocabulary(
    name: str, text: str, unknown: str | None, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(name).unknown_word(text) == unknown


@pytest.mark.parametrize("key", ["answers", "wrong_answers"])
def test_a_repeated_answer_counts_once(tmp_path: Path, pocket: Tokenizer, key: str) -> None:
    """As text twice, as text and id, and at one of several positions; a note names the lines."""
    (mary,) = pocket.encode(" Mary")
    both = {"answers": [" John"], "wrong_answers": [" John"]}
    del both[key]
    given = [[" Mary", " Mary"], [" Mary", mary], [" Mary"], [[" Mary"], [" Mary", " Mary"]]]
    record = {"clean": "Mary and John went to", "corrupted": "John and John went to", **both}
    records = [record | {key: answers} for answers in given]
    records[3] |= {"position": [2, -1], **{other: [answers, answers] for other, answers in both.items()}}
    tokenizer = Tokenizer(pocket.tokenizer, pocket.vocabulary_size)
    pairs = tokenize_pairs(Pairs(path=write(tmp_path, *records)).build(tokenizer).pairs, tokenizer)
    assert [getattr(pair, key) for pair in pairs] == [((mary,),)] * 3 + [((mary,), (mary,))]
    (note,) = tokenizer.notes
    assert [f"line {n}" in note for n in (1, 2, 3, 4)] == [True, True, False, True]


@pytest.mark.parametrize("key", ["clean", "corrupted", "answers", "labels", "name"])
def test_half_a_character_is_refused_with_its_line(tmp_path: Path, pocket: Tokenizer, key: str) -> None:
    half = {"corrupted": ["Mary went", "\ud83d went"], "answers": ["\ud83d"], "labels": {"\ud83d": 1}}.get(
        key, "\ud83d"
    )
    record = {"clean": "John went", "corrupted": "Mary went", key: half}
    path = write(tmp_path, {"clean": "John went", "corrupted": "Mary went"}, json.dumps(record))
    with pytest.raises(FormatError, match=r"my pairs\.jsonl line 2 holds half of a character, \\ud83d: write"):
        Pairs(path=path).build(pocket)
    if key != "name":
        with pytest.raises(TaskError, match=r"^pair 0 holds half of a character, \\ud83d: write"):
            tokenize_pairs([Pair(**record)], pocket)
