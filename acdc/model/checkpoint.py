"""From a checkpoint folder, or a name on the hub, to Hugging Face's model and tokenizer. No code of its own is run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from acdc.errors import ModelError

SUPPORTED = (
    "supported: the families GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, OPT, StableLM, StarCoder2 and GPTBigCode, and"
    " TransformerLens-native models"
)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ADAPTER = re.compile(
    r"lora|adapter|(^|[._])(ia3|oft|boft|vera|dora|hada|loha|lokr|lokra)_|base_layer|modules_to_save|original_module"
    r"|prompt_(embeddings|encoder)|prefix_encoder",
    re.IGNORECASE,
)
_HEAD = re.compile(r"(^|\.)(?!lm_head)(scores?|classifier|qa_outputs|cls|regressor|value|summary|heads?|\w*_head)\.")


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json holds. ModelError if it cannot be read, or the folder holds adapter weights."""
    adapters = [file for file in _ADAPTER_FILES if (folder / file).exists()]
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path={folder} is not a checkpoint folder: it has no config.json"
            + (f", only {adapters[0]}: merge the adapter into its base model and save that" if adapters else "")
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert isinstance(config, dict), "it is no table of settings"
    except (ValueError, AssertionError, RecursionError) as error:
        raise ModelError(f"model.path={folder} cannot be loaded: its config.json is damaged ({error})") from error
    if adapters:
        raise ModelError(
            f"model.path={folder} holds adapter weights ({adapters[0]}), which would be left out: merge the adapter"
            " into its base model and save that"
        )
    return config


def load_checkpoint(source: str, device: torch.device, dtype: torch.dtype, local: bool) -> tuple[Any, Any, list[str]]:
    """Hugging Face's own model, without gradients to come, its tokenizer or None, and notes on what was left out.

    Parameters
    ----------
    source: a folder, or a name on the hub. local: nothing is looked up on the hub.

    Raises
    ------
    ModelError: what transformers does not know, what needs code of its own, what is no causal language model, and
        weights that do not fit the configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

    own: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    written, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local)
    _refuse_unknown(written)
    config = AutoConfig.from_pretrained(source, **own)
    _refuse_other_kinds(config)
    notes = _code_left_out(source, written, local)
    for reference in ("auto_map", "original_architecture"):  # TransformerLens would follow them
        if hasattr(config, reference):
            delattr(config, reference)
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        weights_only=True,
        output_loading_info=True,
        **own,
    )
    notes += _left_over(model, sorted(info["unexpected_keys"]))
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"its weights lack {_few(missing)}")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError("adapter weights lie beside it: merge the adapter into its base model and save that")
    model.config.architectures = [type(model).__name__]
    model = model.to(device).eval()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)  # some families keep a few in float32
    return model, _load_tokenizer(source, own), notes


def _refuse_unknown(written: dict[str, Any]) -> None:
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = written.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError("its config.json has no model_type, so its architecture is not known")
    if kind in CONFIG_MAPPING:
        return
    what = _first(written.get("architectures")) or kind
    if "auto_map" in written:
        raise ModelError(
            f"the architecture {what} is not supported: it needs code of its own (auto_map in config.json), which is"
            f" never run here ({SUPPORTED})"
        )
    raise ModelError(
        f"the architecture {what} is not supported: transformers {__version__} does not know model_type={kind}"
        f" ({SUPPORTED})"
    )


def _refuse_other_kinds(config: Any) -> None:
    """What is not a language model that reads from left to right and nothing else."""
    from transformers import AutoModelForCausalLM

    if config.is_encoder_decoder:
        why = "it is an encoder-decoder"
    elif config.get_text_config() is not config:
        why = "it has parts beside its language model"
    elif type(config) not in AutoModelForCausalLM._model_mapping:
        why = "it is no causal language model"
    elif getattr(config, "quantization_config", None):
        why = "its weights are quantised"
    elif getattr(config, "word_embed_proj_dim", None) not in (None, config.hidden_size):
        why = "its embedding is projected (word_embed_proj_dim)"
    elif getattr(config, "do_layer_norm_before", True) is False:
        why = "its norms stand behind attention and MLP (do_layer_norm_before=false)"
    elif getattr(config, "_remove_final_layer_norm", False):
        why = "it has no last norm (_remove_final_layer_norm)"
    else:
        return
    what = _first(config.architectures) or type(config).__name__
    raise ModelError(f"the architecture {what} is not supported: {why} ({SUPPORTED})")


def _first(architectures: Any) -> str:
    return str(architectures[0]) if isinstance(architectures, Sequence) and architectures else ""


def _code_left_out(source: str, written: dict[str, Any], local: bool) -> list[str]:
    """A note where the checkpoint brings code that transformers' own class stands in for; ModelError if none does."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name

    words = get_tokenizer_config(source, local_files_only=local)
    name = words.get("tokenizer_class")
    if "auto_map" in words and name and tokenizer_class_from_name(str(name)) is None:
        raise ModelError(
            f"its tokenizer {name} needs code of its own (auto_map in tokenizer_config.json), which is never run here"
        )
    return [
        f"{file} of {source} names code of its own (auto_map), which is never run here: transformers' own {what} is"
        " used"
        for file, what, content in (("config.json", "model", written), ("tokenizer_config.json", "tokenizer", words))
        if "auto_map" in content
    ]


def _left_over(model: Any, unused: list[str]) -> list[str]:
    """A note of the checkpoint's weights that the model has no place for; ModelError for those that change it."""
    places = [name for name, _ in model.named_parameters()]
    layers = {place for name in places for place in _places(name)}
    lists = {place.rpartition(".")[0] for place in layers}
    for what, found in (
        ("adapter weights", [key for key in unused if _ADAPTER.search(key)]),
        (
            f"whole layers, of which its configuration has {model.config.num_hidden_layers}",
            [key for key in unused if any(p not in layers and p.rpartition(".")[0] in lists for p in _places(key))],
        ),
        ("the head of another model", [key for key in unused if _HEAD.search(key)]),
    ):
        if found:
            raise ModelError(f"its weights hold {what}, which would be left out: {_few(found)}")
    return [f"the checkpoint's weights that the model does not use are left out: {_few(unused)}"] if unused else []


def _places(name: str) -> Iterator[str]:
    """The numbered modules that a weight lies in, such as `h.3`, without what names the whole model."""
    parts = name.split(".")
    return (f"{parts[i - 1]}.{parts[i]}" for i in range(1, len(parts)) if parts[i].isdigit())


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"


def _load_tokenizer(source: str, own: dict[str, Any]) -> Any:
    """The model's own tokenizer; None for a folder without one."""
    from transformers import AutoTokenizer

    if own["local_files_only"] and not any((Path(source) / file).exists() for file in _TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(source, **own)


def stand_in_tokenizer(name: str) -> Any:
    """For the bridge, which wants one, changes it, and is only ever given token ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"0": 0}, unk_token="0")), unk_token="0")
    tokenizer.init_kwargs["name_or_path"] = name
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and warnings, which would break the live display; afterwards all is as it was."""
    from transformers.utils import logging as transformers_logging

    lens = logging.getLogger("transformer_lens")
    bars, level = transformers_logging.is_progress_bar_enabled(), (transformers_logging.get_verbosity(), lens.level)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    lens.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level[0])
        lens.setLevel(level[1])
        if bars:
            transformers_logging.enable_progress_bar()
