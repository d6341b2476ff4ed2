"""From a name or a folder to a `LanguageModel`. Nothing outside `acdc/model/` knows TransformerLens."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc.errors import ConfigError, ModelError
from acdc.files import write_atomically, write_json
from acdc.graph import GraphConfig, GraphSettings
from acdc.model.parts import LanguageModel, Layer, Mlp, Norm, Rotary
from acdc.process import undisturbed

POCKET = Path(__file__).parent / "pocket"
COMPILED = Path(__file__).parent / "compiled"
BUNDLED = {"pocket": POCKET} | {
    name: COMPILED / name for name in ("tracr_reverse", "tracr_proportion", "gate_or", "gate_and")
}
SPLIT = ("tracr_reverse", "tracr_proportion")  # compiled programs are stated with both embeddings
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

_MAX_POSITIONS = 32768  # of a rotary table
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and where it runs.

    Attributes
    ----------
    name: a bundled model (`pocket`, or one with a known circuit: `tracr_reverse`, `tracr_proportion`, `gate_or`,
        `gate_and`), or the name of a model that TransformerLens can fetch.
    path: a local checkpoint folder; then `name` is only a label.
    device: `auto` (CUDA, then CPU), or a torch device.
    dtype: float32, float64, bfloat16 or float16.
    tf32: let CUDA multiply float32 in TensorFloat-32, which is faster and keeps ten bits of the fraction.
    """

    name: str = "pocket"
    path: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"model.dtype={self.dtype} is not known: choose one of {', '.join(DTYPES)}")
        if self.name == "local" and not self.path:
            raise ConfigError("model=local needs model.path=FOLDER, a Hugging Face checkpoint folder")

    def resolved_device(self) -> torch.device:
        """The torch device; ConfigError if there is none of that name."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except Exception as error:
            raise ConfigError(f"model.device={self.device} cannot be used here: choose auto, cpu or cuda") from error
        return device


@undisturbed
def load_model(settings: ModelSettings, graph: GraphSettings | None = None) -> tuple[LanguageModel, Any]:
    """The model as parts and the bridge it was read from (for `check_parts`).

    Parameters
    ----------
    graph: None is the model's own: compiled programs have token and position embeddings apart.

    Raises
    ------
    ModelError: the folder or name cannot be loaded, or the architecture has a part that is not supported.
    """
    device, dtype = settings.resolved_device(), DTYPES[settings.dtype]
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    elif settings.tf32:
        raise ConfigError(f"model.tf32=true has no effect on {device.type}: it is for CUDA")
    bridge, tokenizer = load_bridge(settings, device, dtype)
    name = settings.name if settings.name != "local" else str(settings.path)
    split = None if graph is None else graph.split_embedding
    if split is None:
        split = settings.path is None and settings.name in SPLIT
    return read_parts(bridge, name, tokenizer, split), bridge


def load_bridge(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A TransformerBridge with raw weights (nothing folded, nothing centred), and the model's tokenizer or None."""
    folder = BUNDLED.get(settings.name) if settings.path is None else settings.path
    if folder is not None:
        folder = Path(folder).expanduser().resolve()
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise ModelError(f"model.path={folder} is not a checkpoint folder: it has no config.json")
        try:
            native = json.loads(config_file.read_text()).get("architecture") == "TransformerLensNative"
        except (ValueError, AttributeError) as error:
            raise ModelError(f"model.path={folder} cannot be loaded: its config.json is damaged ({error})") from error
        # A folder is complete or an error: nothing of it is looked up on the hub.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    else:
        native = False
    from transformer_lens.model_bridge import TransformerBridge  # takes seconds, so not before it is needed
    from transformers import AutoTokenizer

    _quiet()
    source = str(folder) if folder is not None else settings.name
    try:
        if native:
            with redirect_stdout(io.StringIO()):  # the bridge prints when it is moved
                return load_native(Path(source)).to(device).to(dtype), None
        if folder is not None:
            _refuse_missing_weights(source, dtype)
        if folder is not None and not any((folder / file).exists() for file in _TOKENIZER_FILES):
            stand_in = _stand_in_tokenizer(source)
            return TransformerBridge.boot_transformers(source, device=device, dtype=dtype, tokenizer=stand_in), None
        bridge = TransformerBridge.boot_transformers(source, device=device, dtype=dtype)
        # The bridge's copy always prepends BOS; prompts get what the model's own tokenizer adds.
        return bridge, AutoTokenizer.from_pretrained(bridge.tokenizer.name_or_path)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        where = f"model.path={source}" if folder is not None else f"model {source!r} (by name, which needs a network)"
        raise ModelError(f"{where} cannot be loaded: {reason}") from error


def _refuse_missing_weights(folder: str, dtype: torch.dtype) -> None:
    """ModelError if the checkpoint lacks a weight, which Hugging Face would draw at random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if type(AutoConfig.from_pretrained(folder)) not in AutoModelForCausalLM._model_mapping:
        return  # no causal language model: refused by its parts
    _, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"its weights lack {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}")


def _stand_in_tokenizer(name: str) -> Any:
    """For a checkpoint without tokenizer files, which the bridge would refuse or give an empty tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"0": 0}, unk_token="0")), unk_token="0")
    tokenizer.init_kwargs["name_or_path"] = name
    return tokenizer


def load_native(folder: Path) -> Any:
    """A TransformerLens-native model from a folder of this project's own: config.json and model.safetensors."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    config.pop("architecture")
    weights = load_file(folder / "model.safetensors")
    bridge = make_native(config, weights)
    if missing := sorted(set(_native_parameters(bridge)) - set(weights)):
        raise ModelError(f"{folder / 'model.safetensors'} lacks {', '.join(missing[:5])}")
    return bridge


def make_native(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """A native bridge with these parameters; those that are not named are 0.

    Parameters
    ----------
    config: the keyword arguments of its TransformerBridgeConfig.
    weights: by the native model's own names, such as `layers.0.attn.q.weight` (`out in`, as torch has linear layers).

    Raises
    ------
    ModelError: a parameter that does not exist or has another shape.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**config))
    parameters = _native_parameters(bridge)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        for name, value in weights.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise ModelError(f"a native model of this configuration has no {name} of shape {list(value.shape)}")
            parameters[name].copy_(value)
    return bridge


def save_native(bridge: Any, folder: Path, config: dict[str, Any]) -> None:
    """Write a native bridge as such a folder; `config` holds the keyword arguments of its TransformerBridgeConfig."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"architecture": "TransformerLensNative", **config})
    state = {name: parameter.detach().contiguous() for name, parameter in _native_parameters(bridge).items()}
    write_atomically(folder / "model.safetensors", save(state))


def _native_parameters(bridge: Any) -> dict[str, nn.Parameter]:
    """The parameters of a native bridge by the native model's own names, without the bridge's wrappers in them."""
    return {name.replace("_original_component.", ""): p for name, p in bridge.original_model.named_parameters()}


def _quiet() -> None:
    """Hugging Face's progress bars would break the live display."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)


@undisturbed
def read_parts(bridge: Any, name: str, tokenizer: Any = None, split_embedding: bool = False) -> LanguageModel:
    """The parts of a bridge, without gradients. ModelError names a part that is not supported."""
    config = bridge.cfg
    _refuse_unsupported(config, name)
    n_kv = config.n_key_value_heads
    graph_config = GraphConfig(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_model=config.d_model,
        n_key_value_heads=n_kv if n_kv not in (None, config.n_heads) else None,
        parallel_attn_mlp=bool(config.parallel_attn_mlp),
        attn_only=bool(config.attn_only),
        split_embedding=split_embedding,
    )
    learned = config.positional_embedding_type == "standard"
    if split_embedding and not learned:
        raise ConfigError("graph.split_embedding=true needs learned positions; this model's positions are rotary")
    window = getattr(config, "window_size", None)
    with torch.no_grad():
        rotary = None if learned else _read_rotary(bridge, name)
        return LanguageModel(
            name=name,
            config=graph_config,
            W_E=bridge.W_E.detach(),
            W_pos=bridge.W_pos.detach() if learned else None,
            layers=tuple(_read_layer(block, f"blocks.{i}", config, rotary) for i, block in enumerate(bridge.blocks)),
            final_norm=_read_norm(bridge.ln_final, "ln_final"),
            W_U=bridge.W_U.detach(),
            b_U=bridge.b_U.detach() if bridge.b_U is not None and bool(bridge.b_U.any()) else None,
            causal=config.attention_dir == "causal",
            max_length=min(config.n_ctx, window or config.n_ctx, _MAX_POSITIONS),
            tokenizer=tokenizer,
        )


def _refuse_unsupported(config: Any, name: str) -> None:
    """One line for architectures whose parts would not add up."""
    missing = {
        "query/key norms": config.use_qk_norm,
        "attention score soft-capping": config.attn_scores_soft_cap > 0,
        "logit soft-capping": config.output_logits_soft_cap > 0,
        "norms behind attention and MLP": config.use_normalization_before_and_after,
        "mixture-of-experts MLPs": config.num_experts,
        "a norm behind the embedding": config.post_embedding_ln,
        "local attention": config.use_local_attn,
        f"{config.positional_embedding_type} positions": config.positional_embedding_type not in ("standard", "rotary"),
        f"the activation {config.act_fn}": not config.attn_only and config.act_fn not in _ACTIVATIONS,
    }
    if lacking := [what for what, present in missing.items() if present]:
        raise ModelError(
            f"the architecture {config.architecture} of {name} is not supported: it has {', '.join(lacking)}"
            " (supported: the GPT-2, Llama and GPT-NeoX families and TransformerLens-native models)"
        )


def _component(bridge: Any, attribute: str, where: str) -> Any:
    part = getattr(bridge, attribute, None)
    if part is None:
        raise ModelError(f"{where} has no {attribute}: this architecture is not supported")
    return part


def _read_norm(bridge: Any, where: str) -> Norm:
    module = getattr(bridge, "_original_component", bridge)
    kind = type(module).__name__
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    weight, bias = (None if t is None else t.detach() for t in (weight, bias))
    if isinstance(module, nn.Identity):
        return Norm("none")
    if isinstance(module, nn.LayerNorm) or kind == "NativeLayerNormPre":
        return Norm("layer", float(module.eps), weight, bias)
    if kind in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "RMSNorm", "NativeRMSNorm", "NativeRMSNormPre"):
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        return Norm("rms", float(eps or 0.0), weight)
    raise ModelError(f"{where}: the norm {kind} is not supported (LayerNorm, RMSNorm or none)")


def _read_rotary(bridge: Any, name: str) -> Rotary:
    native = getattr(bridge.original_model, "rotary", None)
    if native is not None:
        return Rotary(native.cos_cached.detach(), native.sin_cached.detach(), adjacent=True)
    modules = [
        m for n, m in bridge.original_model.named_modules() if n.endswith("rotary_emb") and hasattr(m, "inv_freq")
    ]
    if not modules:
        raise ModelError(f"{name}: no single table of rotary frequencies was found; this architecture is not supported")
    n_positions = min(bridge.cfg.n_ctx, _MAX_POSITIONS)
    probe = bridge.W_E[:1, None, :].expand(1, n_positions, -1)
    cos, sin = modules[0](probe, torch.arange(n_positions, device=probe.device)[None])
    return Rotary(cos[0].detach(), sin[0].detach(), adjacent=False)


def _read_layer(block: Any, where: str, config: Any, rotary: Rotary | None) -> Layer:
    attention = _component(block, "attn", where)
    inner = attention._original_component
    if hasattr(inner, "scaling"):
        scale = float(inner.scaling)
    elif type(inner).__name__ == "NativeAttention":
        scale = 1.0 / float(inner.scale)
    else:
        raise ModelError(f"{where}.attn: {type(inner).__name__} does not say its attention scale; it is not supported")
    weights = {key: getattr(attention, key) for key in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V", "W_O", "b_O")}
    weights = {key: None if w is None else w.detach().contiguous() for key, w in weights.items()}
    for key in ("b_Q", "b_K", "b_V"):
        if weights[key] is not None:
            weights[key] = weights[key].reshape(-1, config.d_head)
    return Layer(
        norm=_read_norm(_component(block, "ln1", where), f"{where}.ln1"),
        scale=scale,
        rotary=rotary,
        mlp=None if config.attn_only else _read_mlp(block, where, config),
        **weights,
    )


def _read_mlp(block: Any, where: str, config: Any) -> Mlp:
    mlp = _component(block, "mlp", where)
    gate = getattr(mlp, "gate", None)
    weights: dict[str, Any] = {key: getattr(mlp, key) for key in ("W_in", "W_out", "b_in", "b_out")}
    weights["W_gate"] = mlp.W_gate if config.gated_mlp else None
    weights["b_gate"] = getattr(gate, "bias", None) if config.gated_mlp else None
    weights = {key: None if w is None else w.detach() for key, w in weights.items()}
    norm = _read_norm(_component(block, "ln2", where), f"{where}.ln2")
    return Mlp(norm=norm, activation=_ACTIVATIONS[config.act_fn], **weights)
