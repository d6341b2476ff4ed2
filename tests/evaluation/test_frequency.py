"""How frequent swapped tokens are, by tokenizer and by file, and how text pairs are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from pages import html_of
from transformers import AutoTokenizer, GPT2TokenizerFast

from acdc.errors import ConfigError, FormatError
from acdc.evaluation import preference
from acdc.evaluation.frequency import Frequencies
from acdc.evaluation.pair_check import check_pairs
from acdc.evaluation.pair_record import Limits
from acdc.experiment import Experiment
from acdc.report.pairs import pairs_section
from acdc.tasks.base import Pair, Task


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Text pairs: <s> <unk> cat dog bird the and saw heard then are the tokens 0 to 9."""
    path = make_checkpoint("gpt2", tmp_path_factory.mktemp("words"), tokenizer=True)
    pairs = [
        Pair("the cat saw the dog", "the bird saw the dog", [" cat"], [" dog"], where="file line 1"),
        Pair("then the dog heard", "then the <unk> saw", [" cat"], [" dog"], where="file line 2"),
    ]
    return Experiment.build(str(path), Task("words", pairs, "logit_diff"))


def test_ranks_follow_the_tokenizers_order(words: Experiment) -> None:
    swaps = check_pairs(words).swaps
    assert [(s.clean, s.corrupted) for s in swaps] == [(2, 4), (3, 1), (8, 7)]
    # Special tokens, ids 0 and 1, have no rank: cat is the first.
    assert [(s.clean_rank, s.corrupted_rank) for s in swaps] == [(1, 3), (2, None), (7, 6)]
    assert swaps[0].rank_ratio == 3
    assert swaps[1].rank_ratio is None


def test_ranks_from_a_file(words: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"the": 900, "cat": 50, "dog": 50, "bird": 2, "saw": 1, "unheard of": 7}))
    frequencies = Frequencies.read(file, words.model.tokenizer)
    assert frequencies.ranks == {5: 1, 2: 2, 3: 2, 4: 4, 7: 5}
    found = check_pairs(words, frequencies=frequencies)
    assert [s.rank_ratio for s in found.swaps] == [2, None, None]
    assert found.rank_factor == pytest.approx(2)
    assert not any("rarer" in line for line in found.problems())
    strict = check_pairs(words, Limits(rank_factor=1.9), frequencies)
    assert any("corrupted prompts' tokens are 2 times rarer" in line for line in strict.problems())
    assert "counts.json" in html_of(pairs_section(strict))


def test_ids_are_the_words_of_a_model_without_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text('{"3": 10, "4": 1000}')
    assert Frequencies.of_tokenizer(None) is None
    assert Frequencies.read(file, None).ranks == {4: 1, 3: 2}


@pytest.mark.parametrize("content", ["[1]", "{", '{"cat": "many"}', '{"cat": -1}', '{"nothing": 3}', '{"cat": true}'])
def test_what_is_no_frequency_file(words: Experiment, tmp_path: Path, content: str) -> None:
    file = tmp_path / "counts.json"
    file.write_text(content)
    with pytest.raises(FormatError) as caught:
        Frequencies.read(file, words.model.tokenizer)
    assert "counts.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Frequencies.read(tmp_path / "none.json", words.model.tokenizer)


def test_the_order_of_real_tokenizers(shared: Path) -> None:
    """GPT-2 numbers its tokens by their merges; an alphabetical vocabulary (the bundled model's) tells no frequency."""
    folder = shared / "data" / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    frequencies = Frequencies.of_tokenizer(tokenizer)
    assert frequencies is not None

    def rank(word: str) -> int:
        (token,) = tokenizer(word)["input_ids"]
        found = frequencies.rank(token)
        assert found is not None
        return found

    assert rank(" the") < rank(" John") < rank(" Mary") < rank(" Edmund")
    assert frequencies.rank(tokenizer.eos_token_id) is None
    pocket = Path(preference.__file__).parents[1] / "model" / "pocket"
    assert Frequencies.of_tokenizer(AutoTokenizer.from_pretrained(pocket)) is None


def test_rows_for_a_file(words: Experiment) -> None:
    first, second = check_pairs(words).as_rows()
    assert list(first) == list(second)
    assert (first["where"], first["clean"], first["corrupted"]) == (
        "file line 1",
        "the cat saw the dog",
        "the bird saw the dog",
    )
    assert (first["differing"], first["positions"], first["clean_tokens"], first["corrupted_ranks"]) == (
        1,
        "1",
        "cat",
        "3",
    )
    assert (second["differing"], second["positions"], second["corrupted_ranks"]) == (2, "2 3", "- 6")
    assert first["logit_diff_clean"] == check_pairs(words).records[0].clean.value
    assert first["repeats"] is None


def test_the_section_marks_what_differs(words: Experiment) -> None:
    html = html_of(pairs_section(check_pairs(words)))
    assert "the <mark>cat</mark> saw the dog<br>the <mark>bird</mark> saw the dog" in html
    assert "then the <mark>&lt;unk&gt;</mark> <mark>saw</mark>" in html  # text is escaped
