"""Tiny random models for the tests: checkpoint folders of every family, and native models of TransformerLens.

Every parameter is drawn anew, biases and norm weights too (their usual 0 and 1 would hide mistakes), large enough that
the effects of edges differ clearly. The same seed gives the same model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

FAMILIES = ("gpt2", "llama", "llama_tied", "gpt_neox", "gpt_neox_sequential")
NATIVE_KINDS = ("layer_norm", "attention_only", "bidirectional")
WORDS = ("<s>", "<unk>", "cat", "dog", "bird", "the", "and", "saw", "heard", "then")


def make_checkpoint(
    family: str,
    directory: Path,
    seed: int = 0,
    n_layers: int = 2,
    n_heads: int = 2,
    d_head: int = 4,
    tokenizer: bool = False,
    **config: object,
) -> Path:
    """Save a random model, and a tokenizer of `WORDS` where asked for, in `directory`/family; give that folder.

    `config` goes to the family's configuration: `vocab_size` (10), `num_key_value_heads` (half of the heads) and so on.
    """
    folder = Path(directory).resolve() / family
    make_model(family, seed, n_layers, n_heads, d_head, **config).save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder)
    return folder


def make_model(
    family: str, seed: int = 0, n_layers: int = 2, n_heads: int = 2, d_head: int = 4, **config: object
) -> PreTrainedModel:
    """A random Hugging Face model in float32 of one of `FAMILIES`."""
    width = n_heads * d_head
    special: dict[str, object] = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
    names: dict[str, object] = {
        "hidden_size": width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 16,
    }
    if family == "gpt2":
        shape = {"n_embd": width, "n_layer": n_layers, "n_head": n_heads, "n_inner": 2 * width, "n_positions": 16}
        model = GPT2LMHeadModel(GPT2Config(**special | shape | config))
    elif family in ("llama", "llama_tied"):
        special |= {"num_key_value_heads": max(1, n_heads // 2), "tie_word_embeddings": family == "llama_tied"}
        model = LlamaForCausalLM(LlamaConfig(**special | names | config))
    elif family in ("gpt_neox", "gpt_neox_sequential"):
        special |= {"rotary_pct": 0.5, "use_parallel_residual": family == "gpt_neox"}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**special | names | config))
    else:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    return _randomise(model, seed).eval()


def make_native(
    kind: str, seed: int = 0, n_layers: int = 2, n_heads: int = 2, d_head: int = 4, d_vocab: int = 10, **config: object
):
    """A `TransformerBridge` around a native model: one of `NATIVE_KINDS`, the last two without norms; `config` goes to
    its configuration."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge  # slow to import, and few tests need it

    settings: dict[str, object] = {
        "layer_norm": {"normalization_type": "LN", "act_fn": "gelu_new"},
        "attention_only": {"normalization_type": None, "attn_only": True},
        "bidirectional": {"normalization_type": None, "attention_dir": "bidirectional", "act_fn": "relu"},
    }[kind] | config
    width = n_heads * d_head
    shape = {"d_model": width, "d_head": d_head, "n_heads": n_heads, "n_layers": n_layers, "d_mlp": 2 * width}
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**shape, n_ctx=16, d_vocab=d_vocab, **settings))
    _randomise(bridge.original_model, seed)
    return bridge


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer that knows `WORDS`, split at white space; no special token is added by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "<s>", "pad_token": "<s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    # Built by hand it lacks what loading gives it (KeyError 'name_or_path' later), so it is loaded once.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@torch.no_grad()
def _randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(0.5 * noise)
        else:  # a bias, or a norm's weight
            parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model
