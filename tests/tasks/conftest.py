"""Tokenizers for the tests of tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acdc.tasks.base import Tokenizer

POCKET = Path(__file__).parents[2] / "acdc" / "model" / "pocket"


@pytest.fixture(scope="session")
def gpt2(shared: Path) -> Tokenizer:
    """GPT-2's own tokenizer: byte-pair encoding, no special tokens added."""
    from transformers import GPT2Tokenizer

    folder = shared / "data" / "gpt2-tokenizer"
    merges = (folder / "vocab.bpe").read_text().splitlines()[1:]
    vocabulary = json.loads((folder / "encoder.json").read_text())
    return Tokenizer(GPT2Tokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges if m]), len(vocabulary))


@pytest.fixture(scope="session")
def pocket() -> Tokenizer:
    """The bundled model's: a token for a word, two digits or a punctuation mark."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(POCKET)
    return Tokenizer(tokenizer, len(tokenizer))


@pytest.fixture(scope="session")
def stories_folder(shared: Path) -> Path:
    """A TinyStories Llama: SentencePiece-like pieces, spaces written as ▁."""
    return shared / "data" / "models" / "stories260K"


@pytest.fixture(params=["gpt2", "pocket"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)
