"""The language tasks against what a reader of the prompts would say."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from acdc.errors import ConfigError, TaskError
from acdc.tasks import TASKS
from acdc.tasks.base import Pair, Task, Tokenizer, tokenize_pairs

CORRUPTIONS = {
    "ioi": ("abc", "flipped", "s2_random"),
    "greater_than": ("01", "random_earlier"),
    "gendered_pronoun": ("opposite", "neutral"),
    "induction": ("broken", "shuffled"),
    "docstring": ("random", "random_answer", "random_doc"),
    "factual_recall": ("other_subject", "neutral"),
    "sentiment": ("opposite", "neutral"),
    "subject_verb_agreement": ("number", "both", "other_noun"),
}
EVERY_CORRUPTION = [(task, corruption) for task, corruptions in CORRUPTIONS.items() for corruption in corruptions]


def said(corruptions: tuple[str, ...]) -> str:
    return (" or " if len(corruptions) == 2 else ", ").join(corruptions)


def build(name: str, tokenizer: Tokenizer, **settings: Any) -> Task:
    return TASKS.load(name)(**settings).build(tokenizer)


def names_of(text: str) -> list[str]:
    """The names in an ioi prompt: its capitalized words, but for the first word and "Later"."""
    return re.findall(r"(?<!^)\b(?!Later)[A-Z][a-z]+", text)


def words_at(pair: Pair, tokenizer: Tokenizer) -> dict[str, str]:
    (tokenized,) = tokenize_pairs([pair], tokenizer)
    return {name: tokenizer.decode(tokenized.clean[a:b]).strip() for name, (a, b) in tokenized.labels.items()}


@pytest.mark.parametrize(("name", "corruption"), EVERY_CORRUPTION)
def test_pairs_are_usable_distinct_and_seeded(name: str, corruption: str, tokenizer: Tokenizer) -> None:
    task = build(name, tokenizer, corruption=corruption, size=100)
    pairs = tokenize_pairs(task.pairs, tokenizer)  # lengths, answers and positions are checked there
    assert task.name == name
    assert len(pairs) == 100 == len({(pair.clean, pair.corrupted) for pair in pairs})
    assert all(pair.clean not in pair.corrupted for pair in pairs)
    equal = [sum(a == b for a, b in zip(p.clean, q, strict=True)) / len(q) for p in pairs for q in p.corrupted]
    assert min(equal) >= 0.5  # the same structure
    assert all(all(pair.answers) and all(pair.wrong_answers) for pair in pairs)
    assert task.metric in task.thresholds
    assert build(name, tokenizer, corruption=corruption, size=100).pairs == task.pairs
    assert build(name, tokenizer, corruption=corruption, size=100, seed=1).pairs != task.pairs


def test_pocket_knows_every_word(pocket: Tokenizer) -> None:
    for name, corruption in EVERY_CORRUPTION:
        task = build(name, pocket, corruption=corruption, size=500)
        unknown = [p for p in tokenize_pairs(task.pairs, pocket) if 0 in p.clean + sum(p.corrupted, ())]
        assert not unknown, f"{name}: {pocket.decode(unknown[0].clean)}"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        *[(n, {"corruption": "foo"}, rf"task\.corruption=foo .*{said(c)}") for n, c in CORRUPTIONS.items()],
        *[(n, {"size": 0}, r"task\.size=0 .* 1 or more") for n in CORRUPTIONS],
        ("ioi", {"order": "abab"}, "task.order=abab .* mixed, abba, baba"),
        ("ioi", {"template": 99}, "task.template=99 .* 0, 1"),
        ("gendered_pronoun", {"family": "x"}, "task.family=x .* auto, friend, story"),
        ("greater_than", {"template": 3}, "task.template=3 .* 0, 1, 2"),
        ("greater_than", {"century": 21}, "task.century=21 .* 11"),
        ("induction", {"length": 1}, "task.length=1 .* 2 or more"),
        ("docstring", {"documented": 4}, "task.documented=4 .* 1, 2, 3"),
        ("subject_verb_agreement", {"attractor": "x"}, "task.attractor=x .* mixed, opposite, same"),
    ],
)
def test_unknown_settings_are_refused(name: str, wrong: dict[str, Any], message: str, pocket: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, pocket, **wrong)


def test_pairs_repeat_only_when_there_are_no_more() -> None:
    task = build("induction", Tokenizer(None, 4), length=2, size=30)  # 4·3·2·1 = 24 blocks with their partners
    assert len(task.pairs) == 30
    assert len({str(pair) for pair in task.pairs}) >= 24
    assert "only 24 different pairs" in task.notes[0]


class TestIoi:
    def test_is_the_original_prompt_for_gpt2(self, gpt2: Tokenizer) -> None:
        assert len(gpt2.encode("Then, Mary and John went to the store. John gave a drink to")) == 15
        task = build("ioi", gpt2, order="abba", template=0, size=100)
        assert {len(gpt2.encode(pair.clean)) for pair in task.pairs} == {15}

    @pytest.mark.parametrize("order", ["abba", "baba"])
    def test_answer_is_who_does_not_act(self, order: str, tokenizer: Tokenizer) -> None:
        for pair in build("ioi", tokenizer, order=order, size=60).pairs:
            first, second, acting = names_of(pair.clean)
            assert acting == (second if order == "abba" else first)
            assert pair.answers == [f" {first if order == 'abba' else second}"]
            assert pair.wrong_answers == [f" {acting}"]
            places = words_at(pair, tokenizer)
            assert (places["IO"], places["S1"], places["S2"]) == (pair.answers[0].strip(), acting, acting)
            assert places["end"] == pair.clean.split()[-1]

    def test_corruptions(self, pocket: Tokenizer) -> None:
        for pair in build("ioi", pocket, size=60).pairs:
            assert len({*names_of(pair.clean), *names_of(str(pair.corrupted))}) == 5
        for pair in build("ioi", pocket, size=60, corruption="flipped").pairs:
            (a, b, acting), (c, d, other) = names_of(pair.clean), names_of(str(pair.corrupted))
            assert (a, b) == (c, d)
            assert {acting, other} == {a, b}
        for pair in build("ioi", pocket, size=60, corruption="s2_random").pairs:
            (a, b, _), (c, d, other) = names_of(pair.clean), names_of(str(pair.corrupted))
            assert (a, b) == (c, d)
            assert other not in (a, b)


class TestGreaterThan:
    @pytest.mark.parametrize("corruption", ["01", "random_earlier"])
    def test_answers_are_later_years(self, corruption: str, tokenizer: Tokenizer) -> None:
        template = None if tokenizer.vocabulary_size > 50_000 else 0  # the bundled model knows the first one's words
        pairs = build("greater_than", tokenizer, corruption=corruption, size=60, template=template).pairs
        kinds = {(words[0], words[-4]) for words in (pair.clean.split() for pair in pairs)}
        assert len(kinds) == (3 if template is None else 1)
        for pair in pairs:
            (century, year, again), (same, other, _) = (
                re.findall(r"\d\d", text) for text in (pair.clean, str(pair.corrupted))
            )
            assert century == same == again
            assert other == "01" if corruption == "01" else other < year
            decoded = [tokenizer.decode([token]).strip() for token in pair.answers]
            wrong = [tokenizer.decode([token]).strip() for token in pair.wrong_answers]
            assert all(len(y) == 2 and y > year for y in decoded)
            assert all(len(y) == 2 and y <= year for y in wrong)
            assert sorted(decoded + wrong) == [f"{y:02d}" for y in range(100)]
            # The year's last two digits are the same token in the prompt as among the answers.
            assert tokenizer.encode(pair.clean)[pair.subject[0]] in pair.wrong_answers
            places = words_at(pair, tokenizer)
            assert (places["XX"], places["YY"], places["end"]) == (century, year, century)

    def test_years_that_gpt2_cuts_otherwise_are_left_out(self, gpt2: Tokenizer) -> None:
        assert len(gpt2.encode(" 1865")) == 1
        task = build("greater_than", gpt2, century=18, size=2000)
        assert all(len(gpt2.encode(year)) == 2 for p in task.pairs for year in re.findall(r" \d{4}", p.clean))

    def test_a_template_of_unknown_words_is_refused(self, pocket: Tokenizer) -> None:
        with pytest.raises(TaskError, match=r"does not know began, .*: give task\.template=0"):
            build("greater_than", pocket, template=1)

    def test_a_tokenizer_of_single_digits_is_refused(self, stories_folder: Path) -> None:
        with pytest.raises(TaskError, match=r"no year .* greater_than|as one token"):
            build("greater_than", stories(stories_folder))


def stories(folder: Path, prepend_bos: bool | None = None) -> Tokenizer:
    from transformers import AutoTokenizer

    return Tokenizer(AutoTokenizer.from_pretrained(folder), 512, prepend_bos)


class TestGenderedPronoun:
    @pytest.mark.parametrize("family", ["friend", "story"])
    def test_pronoun_fits_the_name(self, family: str, tokenizer: Tokenizer) -> None:
        women = {"Mary", "Emma", "Alice", "Lily", "Susan", "Anna"}
        men = {"John", "Tom", "David", "Tim", "Paul", "Mark"}
        seen = set()
        for pair in build("gendered_pronoun", tokenizer, family=family, size=600).pairs:
            name = words_at(pair, tokenizer)["name"]
            if name in women | men:
                seen.add(name)
                pronouns = [pair.answers[0].strip().lower(), pair.wrong_answers[0].strip().lower()]
                assert pronouns == (["she", "he"] if name in women else ["he", "she"])
                assert ("girl" if name in women else "boy") in pair.clean or family == "friend"
            assert pair.answers[0].strip()[0].isupper() == pair.clean.endswith(".")
        assert seen == women | men

    def test_family_is_chosen_by_the_tokenizer(self, gpt2: Tokenizer, stories_folder: Path) -> None:
        assert all("isn't" in pair.clean for pair in build("gendered_pronoun", gpt2).pairs)
        task = build("gendered_pronoun", stories(stories_folder))
        assert all("named" in pair.clean for pair in task.pairs)
        assert "Mary" in task.notes[0]  # five tokens there, so left out

    @pytest.mark.parametrize("prepend_bos", [True, None])
    def test_a_real_model_knows_the_pronouns(self, prepend_bos: bool | None, stories_folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(stories_folder).eval()
        tokenizer = stories(stories_folder, prepend_bos)

        @torch.no_grad()
        def preferences(corruption: str) -> list[list[float]]:
            rows = []
            for pair in tokenize_pairs(build("gendered_pronoun", tokenizer, corruption=corruption).pairs, tokenizer):
                logits = model(torch.tensor([pair.clean, *pair.corrupted])).logits[:, -1]
                rows.append((logits[:, pair.answers[0][0]] - logits[:, pair.wrong_answers[0][0]]).tolist())
            return rows

        assert all(clean > 1 and corrupted < -1 for clean, corrupted in preferences("opposite"))
        rows = preferences("neutral")
        assert all(abs(corrupted) < clean for clean, corrupted in rows)


class TestInduction:
    @pytest.mark.parametrize("corruption", ["broken", "shuffled"])
    @pytest.mark.parametrize("prepend_bos", [None, True])
    def test_answers_follow_the_earlier_occurrence(
        self, corruption: str, prepend_bos: bool | None, stories_folder: Path
    ) -> None:
        tokenizer = stories(stories_folder, prepend_bos)
        task = build("induction", tokenizer, corruption=corruption, length=7, size=40)
        for pair in tokenize_pairs(task.pairs, tokenizer):
            assert len(pair.clean) == 14 + bool(prepend_bos)
            assert not tokenizer.special_ids & set(pair.clean[1:])
            assert (pair.clean[0] == 1) == bool(prepend_bos)
            assert len(pair.positions) == 6
            for position, answers, wrong in zip(pair.positions, pair.answers, pair.wrong_answers, strict=True):
                earlier = pair.clean.index(pair.clean[position])
                assert earlier < position
                assert answers == (pair.clean[earlier + 1],) == (pair.clean[position + 1],)
                assert wrong[0] in pair.clean
            start, middle = pair.labels["first"]
            (corrupted,) = pair.corrupted
            assert corrupted[middle:] == pair.clean[middle:]
            before, after = pair.clean[start:middle], corrupted[start:middle]
            if corruption == "broken":
                assert not set(before) & set(after)
            else:
                assert sorted(before) == sorted(after)
                assert not set(pairwise(before)) & set(pairwise(after))

    def test_needs_no_tokenizer_but_enough_tokens(self) -> None:
        task = build("induction", Tokenizer(None, 20), length=10)
        assert len(tokenize_pairs(task.pairs, Tokenizer(None, 20))) == 32
        with pytest.raises(TaskError, match=r"has 19 tokens .* needs 20"):
            build("induction", Tokenizer(None, 19), length=10)


@pytest.mark.parametrize("documented", [1, 2, 3])
def test_docstring_asks_for_the_next_argument(documented: int, tokenizer: Tokenizer) -> None:
    for pair in build("docstring", tokenizer, documented=documented, size=40).pairs:
        function = ast.parse(f'{pair.clean}"""').body[0]
        assert isinstance(function, ast.FunctionDef)
        arguments = [argument.arg for argument in function.args.args][1:]
        in_docstring = re.findall(r":param (\w+):", ast.get_docstring(function) or "")
        assert in_docstring == arguments[:documented]
        answer = arguments[documented]
        assert pair.answers == [f" {answer}"]
        assert sorted(pair.wrong_answers) == sorted(f" {a}" for a in arguments if a != answer)
        places = words_at(pair, tokenizer)
        assert [places[f"{letter}_def"] for letter in "ABCD"[: documented + 1]] == [*in_docstring, answer]
        assert [places[f"{letter}_doc"] for letter in "ABCD"[:documented]] == in_docstring


@pytest.mark.parametrize(
    ("corruption", "signature_changes", "docstring_changes"),
    [("random", True, True), ("random_answer", True, False), ("random_doc", False, True)],
)
def test_docstring_corruptions(
    corruption: str, signature_changes: bool, docstring_changes: bool, pocket: Tokenizer
) -> None:
    for pair in build("docstring", pocket, corruption=corruption, size=40).pairs:
        (signature, docs), (other_signature, other_docs) = (
            text.split("\n", 1) for text in (pair.clean, str(pair.corrupted))
        )
        assert (signature != other_signature) == signature_changes
        assert (docs != other_docs) == docstring_changes
        assert words_at(pair, pocket)["B_def+1"] == ","
        answer = pair.answers[0].strip()
        assert (f" {answer}," in other_signature) == (not signature_changes)


def test_factual_recall_knows_capitals(tokenizer: Tokenizer) -> None:
    capitals = {
        "France": "Paris",
        "Egypt": "Cairo",
        "Norway": "Oslo",
        "Cuba": "Havana",
        "Peru": "Lima",
        "Iran": "Tehran",
    }
    seen = set()
    for pair in build("factual_recall", tokenizer, size=400).pairs:
        country = words_at(pair, tokenizer)["subject"]
        if country in capitals:
            seen.add(country)
            assert pair.answers == [f" {capitals[country]}"]
        for other in capitals.keys() & set(str(pair.corrupted).split()):
            assert pair.wrong_answers == [f" {capitals[other]}"]
    assert seen == capitals.keys()


def test_sentiment_follows_the_adjective(tokenizer: Tokenizer) -> None:
    good, bad = {"fantastic", "perfect", "lovely"}, {"dreadful", "boring", "ugly"}
    seen = set()
    for pair in build("sentiment", tokenizer, size=300).pairs:
        clean, corrupted = (set(re.findall(r"\w+", text)) for text in (pair.clean, str(pair.corrupted)))
        for words, answers in ((clean, pair.answers), (corrupted, pair.wrong_answers)):
            seen |= words & (good | bad)
            if words & good:
                assert " great" in answers
            if words & bad:
                assert " terrible" in answers
        assert len(clean ^ corrupted) == 2  # one adjective for another
        assert not clean & {answer.strip() for answer in pair.answers + pair.wrong_answers}
    assert seen == good | bad


def is_plural(noun: str) -> bool:
    return noun.endswith("s")


@pytest.mark.parametrize("attractor", ["opposite", "same"])
@pytest.mark.parametrize("corruption", ["number", "both", "other_noun"])
def test_verb_agrees_with_the_subject(attractor: str, corruption: str, tokenizer: Tokenizer) -> None:
    settings = {"attractor": attractor, "corruption": corruption, "size": 80}
    for pair in build("subject_verb_agreement", tokenizer, **settings).pairs:
        places = words_at(pair, tokenizer)
        plural = is_plural(places["subject"])
        assert (" are" in pair.answers, " is" in pair.answers) == (plural, not plural)
        assert (" are" in pair.wrong_answers) == (not plural)
        assert (is_plural(places["attractor"]) == plural) == (attractor == "same")
        corrupted = words_at(Pair(pair.corrupted, pair.clean, labels=pair.labels), tokenizer)
        assert is_plural(corrupted["subject"]) != plural
        assert (corrupted["attractor"] == places["attractor"]) == (corruption != "both")
        same_noun = corrupted["subject"].removesuffix("s") == places["subject"].removesuffix("s")
        assert same_noun == (corruption != "other_noun")


def test_several_subjects_in_the_other_number(tokenizer: Tokenizer) -> None:
    task = build("subject_verb_agreement", tokenizer, corruption="other_noun", partners=5, size=30)
    for pair in task.pairs:
        clean = words_at(pair, tokenizer)
        turned = [words_at(Pair(prompt, pair.clean, labels=pair.labels), tokenizer) for prompt in pair.corrupted]
        subjects = {words["subject"] for words in turned}
        assert len(subjects) == 5
        assert {is_plural(subject) for subject in subjects} == {not is_plural(clean["subject"])}
        assert {words["attractor"] for words in turned} == {clean["attractor"]}
        ours = {clean[place].removesuffix("s") for place in ("subject", "attractor")}
        assert not ours & {subject.removesuffix("s") for subject in subjects}
    with pytest.raises(ConfigError, match=r"task\.partners=2, but with task\.corruption=number .* can have only 1"):
        build("subject_verb_agreement", tokenizer, partners=2)


def test_bos_in_front_moves_the_labels(stories_folder: Path) -> None:
    for prepend_bos in (True, None):
        tokenizer = stories(stories_folder, prepend_bos)
        for pair in build("gendered_pronoun", tokenizer).pairs:
            assert words_at(pair, tokenizer)["name"] in ("Lily", "Tim", "Timmy")
