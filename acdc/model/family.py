"""Model families: how a loaded model is taken apart. The standard one reads every model that TransformerLens brings in
its usual form; one of one's own reads the architectures that it names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from acdc.doors import Door
from acdc.errors import ExtensionError, ModelError
from acdc.model.checkpoint import SUPPORTED, stand_in_tokenizer
from acdc.model.parts import LanguageModel
from acdc.settings import Settings


@dataclass(frozen=True)
class Family(Settings, ABC):
    """A model family.

    Whatever it reads is compared with the model itself, layer by layer, before anything is found on it.

    Attributes
    ----------
    architectures : the class names of the Hugging Face models that it reads, such as `LlamaForCausalLM`.
    """

    GROUP: ClassVar[str] = "model.family"
    architectures: ClassVar[tuple[str, ...]] = ()

    def bridge(self, model: Any, source: str, dtype: torch.dtype) -> Any:
        """A TransformerBridge around Hugging Face's model; by default TransformerLens' own for its architecture.

        Raises
        ------
        ModelError
            There is none.
        """
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge import TransformerBridge

        what = type(model).__name__
        if what not in SUPPORTED_ARCHITECTURES:
            raise ModelError(
                f"the architecture {what} is not supported: TransformerLens does not know it ({SUPPORTED})"
            )
        named = model.config.architectures
        try:
            model.config.architectures = named or [what]  # a model that was never saved names none
            tokenizer = stand_in_tokenizer(source)
            return TransformerBridge.boot_transformers(source, hf_model=model, dtype=dtype, tokenizer=tokenizer)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(
                f"the architecture {what} is not supported with this configuration: TransformerLens cannot take it"
                f" apart ({reason}); {SUPPORTED}"
            ) from error
        finally:
            model.config.architectures = named

    @abstractmethod
    def parts(self, bridge: Any, name: str, tokenizer: Any, split_embedding: bool) -> LanguageModel:
        """The model as parts, without gradients.

        Parameters
        ----------
        bridge : the TransformerBridge, with raw weights: nothing folded, nothing centred.
        name : what the model is called in messages and files.
        tokenizer : the model's own, or None.
        split_embedding : whether token and position embeddings are senders of their own.

        Raises
        ------
        ModelError
            A part that is not supported.
        """


FAMILIES: Door[Family] = Door(
    base=Family,  # type: ignore[type-abstract]
    built_in={"standard": "acdc.model.load:Standard"},
    entry_points="acdc.families",
    what="a model family",
)


def family_of(architecture: str, asked: str | None) -> Family:
    """The family that reads a model.

    Parameters
    ----------
    architecture : the class name of the Hugging Face model.
    asked : a family's name or `module.Class`; None takes the installed one that names the architecture, or else the
        standard one.

    Raises
    ------
    ConfigError, ExtensionError
        The family that was asked for cannot be had.
    """
    if asked is not None:
        return (FAMILIES.target(asked) if "." in asked else FAMILIES.load(asked))()
    for name in FAMILIES:
        if name not in FAMILIES.built_in:
            with suppress(ExtensionError):  # what cannot be used stands in no other model's way
                if architecture in FAMILIES.load(name).architectures:
                    return FAMILIES.load(name)()
    return FAMILIES.load("standard")()
