"""Sparse autoencoders (Bricken et al. 2023; Cunningham et al. 2023): a model's activations as few of many features.

f = activation(x W_enc + b_enc) and x ≈ f W_dec + b_dec, where x is first reduced by b_dec if the autoencoder was
trained so. Three kinds: `relu`; `jumprelu` (Rajamanoharan et al. 2024: what does not exceed a feature's own threshold
is 0); `topk` (Gao et al. 2024: all but the k largest are 0).

They come from a folder (`sae.safetensors` or SAELens' `sae_weights.safetensors`, and `cfg.json`), are bundled, or are
fetched by SAELens under the name of a release. Conventions are SAELens': what it computes otherwise is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.files import write_atomically, write_json
from acdc.process import undisturbed

KINDS = ("relu", "jumprelu", "topk")
HOOKS = ("resid_pre", "resid_post", "attn_out", "mlp_out")  # where one can stand in a layer
BUNDLED = {"pocket": Path(__file__).parent / "pocket_sae"}
WEIGHTS = ("sae.safetensors", "sae_weights.safetensors")  # the second is SAELens'
_SPELLINGS = {"standard": "relu"} | {kind: kind for kind in KINDS}  # SAELens' names of the kinds, and ours


@dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary of features of the activation at one site.

    Attributes
    ----------
    name: what messages call it. kind: one of `KINDS`. hook, layer: where it stands, `hook` one of `HOOKS`.
    W_enc: `d_in d_sae`. b_enc: `d_sae`. W_dec: `d_sae d_in`. b_dec: `d_in`.
    threshold: `d_sae`, of jumprelu. k: of topk.
    subtracts_b_dec: whether b_dec is taken from the input first.
    centred: whether the input's mean over its dimensions is taken from it first (and kept): so of models trained on
        weights that TransformerLens had centred.
    model: the name of the model it was trained on, empty if not known. prepend_bos: whether prompts began with the
        tokenizer's first token there; None if not known.
    """

    name: str
    kind: str
    hook: str
    layer: int
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    k: int | None = None
    subtracts_b_dec: bool = True
    centred: bool = False
    model: str = ""
    prepend_bos: bool | None = None

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def site(self) -> str:
        return f"{self.hook} of layer {self.layer}"

    def to(self, device: torch.device | str, dtype: torch.dtype) -> SparseAutoencoder:
        """The same elsewhere, in at least single precision."""
        dtype = torch.promote_types(dtype, torch.float32)
        tensors: dict[str, Any] = {
            name: value.to(device, dtype) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def encode(self, x: Tensor) -> Tensor:
        """The features of activations, `... d_in` → `... d_sae`: 0 where a feature is not active."""
        x = x.to(self.W_enc.dtype)
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if self.subtracts_b_dec:
            x = x - self.b_dec
        before = x @ self.W_enc + self.b_enc
        if self.kind == "topk":
            assert self.k is not None
            largest, where = before.topk(self.k)
            return torch.zeros_like(before).scatter_(-1, where, largest.relu())
        if self.kind == "jumprelu":
            assert self.threshold is not None
            return before.relu() * (before > self.threshold)
        return before.relu()

    def decode(self, features: Tensor) -> Tensor:
        """The activation that features stand for, `... d_sae` → `... d_in`."""
        return features @ self.W_dec + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """Activations as their features give them back, `... d_in`; x minus it is the error term."""
        back = self.decode(self.encode(x)).to(x.dtype)
        return back + x.mean(-1, keepdim=True) if self.centred else back


@undisturbed
def load_sae(name: str = "pocket", path: str | Path | None = None) -> SparseAutoencoder:
    """A bundled autoencoder, one in a folder, or a release of SAELens as RELEASE/ID.

    Raises
    ------
    ModelError: no such autoencoder, or one that cannot be used, in one line.
    """
    if path is not None:
        return read_sae(path)
    if name in BUNDLED:
        return replace(read_sae(BUNDLED[name]), name=name)
    release, slash, sae_id = name.partition("/")
    if not (release and slash and sae_id):
        raise ModelError(
            f"patch.sae={name} is not known: choose {', '.join(BUNDLED)}, give a release of SAELens as RELEASE/ID, or a"
            " folder by patch.path=FOLDER"
        )
    return _fetch(release, sae_id)


def read_sae(folder: str | Path) -> SparseAutoencoder:
    """The autoencoder of a folder with `cfg.json` and `sae.safetensors` or `sae_weights.safetensors`.

    Raises
    ------
    ModelError: files or tensors are missing or damaged, a kind, site or option that is not supported.
    """
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / "cfg.json").is_file():
        lacking = "cfg.json" if weights is not None else " or ".join(WEIGHTS)
        raise ModelError(f"patch.path={folder} is not the folder of a sparse autoencoder: it has no {lacking}")
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise ModelError(f"patch.path={folder}: its cfg.json is damaged ({error})") from error
    try:
        tensors = load_file(weights)
    except Exception as error:  # safetensors has an error class of its own for each thing that can be wrong
        raise ModelError(f"patch.path={folder}: its {weights.name} is damaged ({error})") from error
    return _build(str(folder), config, tensors)


def from_saelens(sae: Any, name: str) -> SparseAutoencoder:
    """An autoencoder that SAELens has loaded: its configuration as a mapping, and its parameters by name."""
    return _build(name, sae.cfg.to_dict(), {key: value.detach() for key, value in sae.state_dict().items()})


def save_sae(sae: SparseAutoencoder, folder: str | Path) -> None:
    """Write `sae.safetensors` and `cfg.json`, whose keys are SAELens'."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    write_atomically(folder / WEIGHTS[0], save({key: value.contiguous() for key, value in tensors.items()}))
    metadata: dict[str, Any] = {"model_name": sae.model, "hook_name": f"blocks.{sae.layer}.hook_{sae.hook}"}
    if sae.centred:
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    if sae.prepend_bos is not None:
        metadata["prepend_bos"] = sae.prepend_bos
    config = {
        "architecture": "standard" if sae.kind == "relu" else sae.kind,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **({} if sae.k is None else {"k": sae.k}),
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "apply_b_dec_to_input": sae.subtracts_b_dec,
        "normalize_activations": "none",
        "metadata": metadata,
    }
    write_json(folder / "cfg.json", config)


def _fetch(release: str, sae_id: str) -> SparseAutoencoder:
    """A release of SAELens; the package is imported only here."""
    name = f"{release}/{sae_id}"
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise ModelError(
            f"patch.sae={name} needs SAELens, which cannot be imported here ({error}): its releases so far need"
            " transformer-lens below 4, which acdc is not for. Where SAELens works, run"
            f" SAE.from_pretrained({release!r}, {sae_id!r}).save_model('FOLDER'), and give patch.path=FOLDER here"
        ) from error
    try:
        found = SAE.from_pretrained(release, sae_id)
    except Exception as error:  # of the network, the hub, or SAELens' own
        raise ModelError(f"patch.sae={name} cannot be loaded by SAELens ({error}): is the network there?") from error
    return from_saelens(found[0] if isinstance(found, tuple) else found, name)  # before version 6 a tuple


def _build(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
    """An autoencoder out of a configuration, SAELens' of any version or ours, and its tensors."""
    metadata = {**config, **(config.get("metadata") or {})}
    _refuse_unsupported(name, config, metadata)
    kind, k = _kind(name, config)
    hook, layer = _site(name, metadata)
    needed = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (kind == "jumprelu")
    if missing := [key for key in needed if key not in tensors]:
        raise ModelError(f"{name}: the {kind} autoencoder has no tensor {missing[0]} (it needs {', '.join(needed)})")
    found = {key: tensors[key] for key in needed}
    if found["W_enc"].ndim != 2:
        raise ModelError(f"{name}: W_enc has shape {tuple(found['W_enc'].shape)}; it needs d_in × d_sae")
    d_in, d_sae = found["W_enc"].shape
    shapes = {"W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,), "threshold": (d_sae,)}
    for key in needed[1:]:
        if tuple(found[key].shape) != shapes[key]:
            raise ModelError(
                f"{name}: {key} has shape {tuple(found[key].shape)}, but W_enc's {d_in} × {d_sae} asks for"
                f" {shapes[key]}"
            )
    for key, size in (("d_in", d_in), ("d_sae", d_sae)):
        if config.get(key, size) != size:
            raise ModelError(f"{name}: cfg.json says {key} is {config[key]}, but W_enc is {d_in} × {d_sae}")
    if k is not None and k > d_sae:
        raise ModelError(f"{name}: k is {k}, more than its {d_sae} features")
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise ModelError(f"{name}: a tensor holds numbers that are not finite")
    found = {key: value.to(torch.promote_types(value.dtype, torch.float32)) for key, value in found.items()}
    if config.get("rescale_acts_by_decoder_norm"):  # the same with decoder rows of length 1 (SAELens' folding)
        norms = found["W_dec"].norm(dim=-1).clamp_min(1e-8)
        found |= {"W_enc": found["W_enc"] * norms, "b_enc": found["b_enc"] * norms}
        found["W_dec"] = found["W_dec"] / norms[:, None]
    changed = metadata.get("model_from_pretrained_kwargs") or {}
    return SparseAutoencoder(
        name, kind, hook, layer, **found, k=k,
        subtracts_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        centred=bool(changed.get("center_writing_weights")),
        model=str(metadata.get("model_name") or ""),
        prepend_bos=metadata.get("prepend_bos"),
    )  # fmt: skip


def _refuse_unsupported(name: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    normalised = config.get("normalize_activations") or "none"
    if normalised != "none":
        raise ModelError(
            f"{name}: normalize_activations={normalised} is not supported: fold it into the weights first (SAELens can)"
            " and give 'none'"
        )
    if config.get("finetuning_scaling_factor"):
        raise ModelError(f"{name}: finetuning_scaling_factor is not supported")
    if metadata.get("hook_head_index") is not None:
        raise ModelError(f"{name}: it stands at one head (hook_head_index), which is not supported")


def _kind(name: str, config: Mapping[str, Any]) -> tuple[str, int | None]:
    """The kind and, of topk, k; before SAELens' version 6 a standard autoencoder could have the function topk."""
    given = config.get("kind", config.get("architecture", "standard"))
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    kind = _SPELLINGS.get(str(given).lower())
    if kind == "relu" and function == "topk":
        kind, function = "topk", "relu"
    if kind is None or (function != "relu" and kind != "topk"):
        what = f"kind {given}" if kind is None else f"activation function {function}"
        raise ModelError(f"{name}: the {what} is not supported: choose from {', '.join(KINDS)}")
    if kind != "topk":
        return kind, None
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ModelError(f"{name}: a topk autoencoder needs k in its cfg.json, a whole number of 1 or more, not {k}")
    return kind, k


def _site(name: str, metadata: Mapping[str, Any]) -> tuple[str, int]:
    """Hook and layer: as `hook` and `layer`, or as TransformerLens names the place."""
    full = metadata.get("hook_name", metadata.get("hook_point"))
    hook, layer = metadata.get("hook"), metadata.get("layer")
    if full is not None:
        match = re.fullmatch(rf"blocks\.(\d+)\.hook_({'|'.join(HOOKS)})", str(full))
        hook, layer = (match[2], int(match[1])) if match else (full, 0)
    if hook not in HOOKS or not isinstance(layer, int) or isinstance(layer, bool):
        given = "cfg.json does not say where (hook_name)" if hook is None else f"at {hook}, layer {layer}"
        given = given if full is None else f"at {full}"
        raise ModelError(
            f"{name} stands at a place that is not supported ({given}): choose one of"
            f" {', '.join(f'blocks.LAYER.hook_{known}' for known in HOOKS)}"
        )
    return hook, layer
