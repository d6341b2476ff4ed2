"""From a name or a folder to a `LanguageModel`. Nothing outside `acdc/model/` knows TransformerLens."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc.errors import ConfigError, ModelError
from acdc.files import write_atomically, write_json
from acdc.graph import GraphConfig, GraphSettings
from acdc.model.check import SelfCheck
from acdc.model.checkpoint import SUPPORTED, load_checkpoint, quiet, read_config
from acdc.model.family import Family, family_of
from acdc.model.parts import LanguageModel, Layer, Mlp, Norm, Rotary
from acdc.process import undisturbed, use_tf32
from acdc.settings import Settings, option

POCKET = Path(__file__).parent / "pocket"
COMPILED = Path(__file__).parent / "compiled"
BUNDLED = {"pocket": POCKET} | {
    name: COMPILED / name for name in ("tracr_reverse", "tracr_proportion", "gate_or", "gate_and")
}
SPLIT = ("tracr_reverse", "tracr_proportion")  # compiled programs are stated with both embeddings
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

_MAX_POSITIONS = 32768  # of a rotary table
# What a native bridge heeds: all else is refused, unless it says what is so anyway or has no bearing on a value.
_NATIVE_SETTINGS = (
    *("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "d_vocab_out"),
    *("act_fn", "gated_mlp", "attn_only", "attention_dir", "attn_scale", "normalization_type", "eps", "final_rms"),
    *("positional_embedding_type", "rotary_base", "rotary_dim", "attn_scores_soft_cap", "output_logits_soft_cap"),
    *("model_name", "seed", "init_weights", "init_mode", "initializer_range"),
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
class ModelSettings(Settings):
    """A model, and where it runs."""

    GROUP: ClassVar[str] = "model"

    name: str = option("pocket", "a bundled model, one that TransformerLens can fetch by name, or local")
    path: str | None = option(None, "a local checkpoint folder instead of a name")
    device: str = option("auto", "auto (CUDA, then CPU), cpu, cuda, cuda:1, ...")
    dtype: str = option("float32", "float32, float64, bfloat16, float16", tuple(DTYPES))
    tf32: bool = option(False, "on CUDA: products in TensorFloat-32, faster and less exact")
    family: str | None = option(
        None, "a model family of your own, by its installed name or as MODULE.CLASS; null: by the model's architecture"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
    """The model as parts and the bridge it was read from, which need not be kept.

    Parameters
    ----------
    graph : None is the model's own: compiled programs have token and position embeddings apart.

    Raises
    ------
    ConfigError
        A device, family or split of the embedding that cannot be had.
    ModelError
        The folder or name cannot be loaded, or the architecture has a part that is not supported.
    """
    device, dtype = settings.resolved_device(), DTYPES[settings.dtype]
    if settings.tf32 and device.type != "cuda":
        raise ConfigError(f"model.tf32=true has no effect on {device.type}: it is for CUDA")
    use_tf32(settings.tf32)
    bridge, tokenizer, notes = load_bridge(settings, device, dtype)
    name = settings.name if settings.name != "local" else str(settings.path)
    split = None if graph is None else graph.split_embedding
    if split is None:
        split = settings.path is None and settings.name in SPLIT
    family = family_of(type(bridge.original_model).__name__, settings.family)
    model = family.parts(bridge, name, tokenizer, split)
    check = SelfCheck(bridge, partial(load_bridge, settings, device, dtype))
    return replace(model, notes=tuple(notes), self_check=check), bridge


@undisturbed
def adopt_model(model: Any, tokenizer: Any = None, graph: GraphSettings | None = None) -> LanguageModel:
    """The parts of a model that is loaded already; it keeps its device and precision.

    Parameters
    ----------
    model : a TransformerBridge with raw weights, or a Hugging Face model.
    tokenizer : the model's own; None takes that of a bridge, and without one prompts are token ids.

    Raises
    ------
    ModelError
        It is neither, or its architecture has a part that is not supported.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    if isinstance(model, TransformerBridge):
        bridge, tokenizer = model, model.tokenizer if tokenizer is None else tokenizer
        family = family_of(type(bridge.original_model).__name__, None)
    elif isinstance(model, PreTrainedModel):
        family = family_of(type(model).__name__, None)
        with quiet(), redirect_stdout(io.StringIO()):
            bridge = family.bridge(model, str(model.config.name_or_path or type(model).__name__), model.dtype)
    else:
        raise ModelError(
            f"a model of type {type(model).__name__} is not supported: give a name, a checkpoint folder, a"
            " TransformerBridge, or a Hugging Face model with tokenizer=…"
        )
    name = getattr(bridge.cfg, "model_name", None) or type(bridge.original_model).__name__
    parts = family.parts(bridge, name, tokenizer, bool(graph and graph.split_embedding))
    return replace(parts, self_check=SelfCheck(bridge, lambda: (bridge,)))


def load_bridge(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, list[str]]:
    """A TransformerBridge with raw weights (nothing folded, nothing centred), the model's tokenizer or None, notes."""
    folder = BUNDLED.get(settings.name) if settings.path is None else settings.path
    native = False
    if folder is not None:
        folder = Path(folder).expanduser().resolve()
        native = read_config(folder).get("architecture") == "TransformerLensNative"
    source = str(folder) if folder is not None else settings.name
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    try:
        with quiet(), redirect_stdout(io.StringIO()):  # a native bridge prints when it is moved
            if native:
                return load_native(Path(source)).to(device).to(dtype), None, []
            if folder is None:
                source = resolve_model_alias(source) or source
            model, tokenizer, notes = load_checkpoint(source, device, dtype, local=folder is not None)
            family = family_of(type(model).__name__, settings.family)
            return family.bridge(model, source, dtype), tokenizer, notes
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ModelError):
            reason = reason[:300]
        where = f"model.path={source}" if folder is not None else f"model {source!r} (by name, which needs a network)"
        raise ModelError(f"{where} cannot be loaded: {reason}") from error


def load_native(folder: Path) -> Any:
    """A TransformerLens-native model from a folder of this project's own: config.json and model.safetensors."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
    ModelError: a parameter that does not exist or has another shape, or a setting that would have no effect.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    default = TransformerBridgeConfig(d_model=1, d_head=1, n_layers=1, n_ctx=1, n_heads=1)
    for key, value in config.items():
        without_effect = key not in _NATIVE_SETTINGS and (not hasattr(default, key) or value != getattr(default, key))
        if without_effect or (key == "rotary_base" and value != int(value)):
            raise ModelError(
                f"a native model's configuration has {key}={json.dumps(value)}, which TransformerLens ignores: take it"
                f" out if the model was not made with it (what counts: {', '.join(_NATIVE_SETTINGS)})"
            )
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


@undisturbed
def read_parts(
    bridge: Any,
    name: str,
    tokenizer: Any = None,
    split_embedding: bool = False,
    read_norm: Callable[[Any, str], Norm] | None = None,
) -> LanguageModel:
    """The parts of a bridge, without gradients.

    Parameters
    ----------
    read_norm : reads a norm of a kind of one's own, from the bridge's module and the name of the place it stands in;
        None reads the usual ones.

    Raises
    ------
    ModelError
        A part that is not supported; the message names it.
    """
    read_norm = read_norm or usual_norm
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
    windows = _read_windows(bridge)
    uneven = len(set(windows)) > 1
    shortest = min((window for window in windows if window), default=None)
    with torch.no_grad():
        rotary = None if learned else _read_rotary(bridge, name)
        return LanguageModel(
            name=name,
            config=graph_config,
            W_E=_component(bridge, "W_E", name).detach(),
            W_pos=_component(bridge, "W_pos", name).detach() if learned else None,
            layers=tuple(
                _read_layer(block, f"blocks.{i}", config, rotary, read_norm) for i, block in enumerate(bridge.blocks)
            ),
            final_norm=read_norm(_component(bridge, "ln_final", name), "ln_final"),
            W_U=_component(bridge, "W_U", name).detach(),
            b_U=bridge.b_U.detach() if bridge.b_U is not None and bool(bridge.b_U.any()) else None,
            causal=config.attention_dir == "causal",
            max_length=min(config.n_ctx, _MAX_POSITIONS, shortest if uneven and shortest else _MAX_POSITIONS),
            tokenizer=tokenizer,
            window=None if uneven else shortest,
            limit="the attention window of some of its layers" if uneven else "",
        )


@dataclass(frozen=True)
class Standard(Family):
    """Whatever TransformerLens brings in its usual form: one norm before each of attention and MLP."""

    def parts(self, bridge: Any, name: str, tokenizer: Any, split_embedding: bool) -> LanguageModel:
        return read_parts(bridge, name, tokenizer, split_embedding)


def _refuse_unsupported(config: Any, name: str) -> None:
    """One line for architectures whose parts would not add up."""
    positions = config.positional_embedding_type
    missing = {
        "query/key norms": config.use_qk_norm,
        "attention score soft-capping": config.attn_scores_soft_cap > 0,
        "logit soft-capping": config.output_logits_soft_cap > 0,
        "norms behind attention and MLP": config.use_normalization_before_and_after,
        "mixture-of-experts MLPs": config.num_experts,
        "a norm behind the embedding": config.post_embedding_ln,
        "local attention": config.use_local_attn,
        f"{'no' if positions == 'none' else positions} positions": positions not in ("standard", "rotary"),
        f"the activation {config.act_fn}": not config.attn_only and config.act_fn not in _ACTIVATIONS,
    }
    if lacking := [what for what, present in missing.items() if present]:
        raise ModelError(
            f"the architecture {config.architecture} of {name} is not supported: it has {', '.join(lacking)}"
            f" ({SUPPORTED})"
        )


def _read_windows(bridge: Any) -> list[int | None]:
    """How far back each layer looks; None is all the way. TransformerLens's own setting may say None wrongly."""
    config = getattr(bridge.original_model, "config", None)
    window = getattr(config, "sliding_window", None) or getattr(bridge.cfg, "window_size", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * bridge.cfg.n_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _component(bridge: Any, attribute: str, where: str) -> Any:
    """ModelError if a bridge (or a block) has no such part; some raise where they lack what it is made of."""
    try:
        return getattr(bridge, attribute)
    except AttributeError:
        raise ModelError(f"{where} has no {attribute}: this architecture is not supported ({SUPPORTED})") from None


def usual_norm(bridge: Any, where: str) -> Norm:
    """A layer norm, an RMS norm or none. ModelError for any other, which names where it stands."""
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
    probe = bridge.W_E[:1, None, :].float().expand(1, n_positions, -1)
    cos, sin = modules[0](probe, torch.arange(n_positions, device=probe.device)[None])
    return Rotary(cos[0].detach(), sin[0].detach(), adjacent=False)


def _read_layer(
    block: Any, where: str, config: Any, rotary: Rotary | None, read_norm: Callable[[Any, str], Norm]
) -> Layer:
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
        norm=read_norm(_component(block, "ln1", where), f"{where}.ln1"),
        scale=scale,
        rotary=rotary,
        mlp=None if config.attn_only else _read_mlp(block, where, config, read_norm),
        **weights,
    )


def _read_mlp(block: Any, where: str, config: Any, read_norm: Callable[[Any, str], Norm]) -> Mlp:
    mlp = _component(block, "mlp", where)
    gate = getattr(mlp, "gate", None)
    weights: dict[str, Any] = {key: getattr(mlp, key) for key in ("W_in", "W_out", "b_in", "b_out")}
    weights["W_gate"] = mlp.W_gate if config.gated_mlp else None
    weights["b_gate"] = getattr(gate, "bias", None) if config.gated_mlp else None
    weights = {key: None if w is None else w.detach() for key, w in weights.items()}
    norm = read_norm(_component(block, "ln2", where), f"{where}.ln2")
    return Mlp(norm=norm, activation=_ACTIVATIONS[config.act_fn], **weights)
