"""A model family: OLMo, whose norms have no weights, so that the standard family does not know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from acdc.model.family import Family
from acdc.model.load import read_parts, usual_norm
from acdc.model.parts import LanguageModel, Norm


@dataclass(frozen=True)
class Olmo(Family):
    """OLMo (Groeneveld et al. 2024): layer norms without weights, rotary positions, gated MLPs."""

    architectures: ClassVar[tuple[str, ...]] = ("OlmoForCausalLM",)

    def parts(self, bridge: Any, name: str, tokenizer: Any, split_embedding: bool) -> LanguageModel:
        return read_parts(bridge, name, tokenizer, split_embedding, read_norm=_norm)


def _norm(module: Any, where: str) -> Norm:
    inner = getattr(module, "_original_component", module)
    return Norm("layer", eps=1e-5) if type(inner).__name__ == "OlmoLayerNorm" else usual_norm(module, where)
