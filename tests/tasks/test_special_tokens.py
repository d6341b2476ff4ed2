"""Special tokens: those that a tokenizer puts behind a text are left out, and a text gets no second BOS."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Rust
from tokenizers import models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from acdc.errors import TaskError
from acdc.tasks.base import Pair, Tokenizer, tokenize_pairs
from acdc.tasks.pairs import _named_positions

WORDS = ("<s>", "</s>", "<unk>", "[G]", "the", "cat", "saw", "dog", "a")
BOS, EOS, UNK, G, THE, CAT, SAW, DOG, A = range(len(WORDS))


def tokenizer(template: str, prepend_bos: bool | None = None, **special: str) -> Tokenizer:
    """A word-level tokenizer whose template stands around every text."""
    rust = Rust(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = [(word, WORDS.index(word)) for word in template.split() if word in WORDS[:4]]
    rust.post_processor = TemplateProcessing(single=template, special_tokens=own)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, **names), len(WORDS), prepend_bos)


@pytest.mark.parametrize(
    ("template", "prepend_bos", "before"),
    [
        ("$A", None, []),
        ("$A", True, [BOS]),
        ("<s> $A", None, [BOS]),
        ("<s> $A", True, [BOS]),
        ("<s> $A", False, []),
        ("$A </s>", None, []),
        ("$A </s>", True, [BOS]),
        ("$A </s>", False, []),
        ("<s> $A </s>", None, [BOS]),
        ("<s> $A </s>", False, []),
        ("[G] <s> $A </s> </s>", None, [G, BOS]),
        ("</s> $A", None, [EOS]),  # XGLM
        ("</s> $A", True, [BOS, EOS]),
    ],
)
def test_what_stands_around_a_prompt(template: str, prepend_bos: bool | None, before: list[int]) -> None:
    own = tokenizer(template, prepend_bos)
    pair = Pair("the cat saw the", "the dog saw the", [" dog"], [" cat"], labels={"noun": 1 + len(before), "last": -1})
    (one,) = tokenize_pairs([pair], own)
    assert list(one.clean) == [*before, THE, CAT, SAW, THE]
    assert list(one.corrupted[0]) == [*before, THE, DOG, SAW, THE]
    assert (one.positions, one.answers, one.wrong_answers) == ((len(before) + 3,), ((DOG,),), ((CAT,),))
    assert one.clean[one.labels["noun"][0]] == CAT
    assert one.clean[one.labels["last"][0]] == THE
    assert own.last_token_of("the cat saw the", "cat") == len(before) + 1
    assert own.bos == before[:1]
    appended = "</s>" in template.partition("$A")[2] and prepend_bos is not False
    assert [("ends every text with" in note) for note in own.notes] == [True] * appended


@pytest.mark.parametrize("special", [{}, {"unk_token": "<s>", "eos_token": "<s>"}])
@pytest.mark.parametrize(("template", "prepend_bos"), [("<s> $A", None), ("$A", True), ("<s> $A </s>", True)])
def test_a_prompt_that_begins_with_bos_gets_no_second_one(
    template: str, prepend_bos: bool | None, special: dict[str, str]
) -> None:
    own = tokenizer(template, prepend_bos, **special)
    plain, written = (Pair(f"{bos}the cat saw", f"{bos}the dog saw", [" the"], [" a"]) for bos in ("", "<s> "))
    first, second = tokenize_pairs([plain, written], own)
    assert first.clean == second.clean == (BOS, THE, CAT, SAW)
    assert first.answers == second.answers == ((THE,),)
    assert sum("no second one" in note for note in own.notes) == 1
    names = ["bos", "noun", "noun", "verb"]
    assert _named_positions(names, "<s> the cat saw", "line 1", own) == {"bos": [0, 1], "noun": [1, 3], "verb": [3, 4]}


def test_without_special_tokens_a_written_bos_stays() -> None:
    assert tokenizer("<s> $A </s>", False).encode("<s> the cat </s>") == [BOS, THE, CAT, EOS]
    assert tokenizer("<s> $A </s>").encode("the cat </s>") == [BOS, THE, CAT, EOS]
    assert tokenizer("<s> $A </s>").encode("") == [BOS]


def test_an_end_alone_is_no_prompt() -> None:
    with pytest.raises(TaskError, match="pair 0: a prompt is empty"):
        tokenize_pairs([Pair("", "")], tokenizer("$A </s>"))
