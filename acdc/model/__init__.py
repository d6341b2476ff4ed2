"""A language model as parts: embedding, heads, MLPs and unembedding, taken from a TransformerLens bridge."""

from __future__ import annotations

from acdc.model.load import ModelSettings, load_model
from acdc.model.parts import LanguageModel

__all__ = ["LanguageModel", "ModelSettings", "load_model"]
